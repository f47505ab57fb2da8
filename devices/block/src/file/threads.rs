//! Requests by threads.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::job::Job;
use super::now::Now;
use super::{Target, host};
use crate::borrow::borrow;
use crate::{BlockError, Completion, DiskQueue, Request};

/// Threads of one disk at most: what a disk is asked at once.
const MOST: usize = 8;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<(Job, Arc<Finished>)>,
    idle: usize,
    threads: usize,
    closed: bool,
}

struct Shared {
    work: Mutex<Work>,
    more: Condvar,
    target: Arc<Target>,
}

impl Shared {
    fn serve(&self) {
        let mut work = locked(&self.work);
        loop {
            while let Some((mut job, finished)) = work.jobs.pop_front() {
                drop(work);
                while let Some(step) = job.step() {
                    let result = host::run(&self.target.file, &step);
                    job.advance(result, &self.target);
                }
                finished.push(job);
                work = locked(&self.work);
            }
            if work.closed {
                return;
            }
            work.idle += 1;
            work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
            work.idle -= 1;
        }
    }
}

/// The threads of one disk, begun as they are needed.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    pub(super) fn new(target: Arc<Target>) -> Arc<Self> {
        let shared = Arc::new(Shared { work: Mutex::default(), more: Condvar::new(), target });
        Arc::new(Self { shared, threads: Mutex::default() })
    }

    fn begin_thread(&self, work: &mut Work) -> Result<(), BlockError> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || shared.serve());
        let thread = thread.map_err(|source| BlockError::Queue { what: "begin a thread", source })?;
        locked(&self.threads).push(thread);
        work.threads += 1;
        Ok(())
    }

    /// Makes sure that there is one thread, so that what is given to it is done.
    fn begin(&self) -> Result<(), BlockError> {
        let mut work = locked(&self.shared.work);
        if work.threads > 0 { Ok(()) } else { self.begin_thread(&mut work) }
    }

    fn give(&self, jobs: Vec<Job>, finished: &Arc<Finished>) {
        let mut work = locked(&self.shared.work);
        work.jobs.extend(jobs.into_iter().map(|job| (job, finished.clone())));
        let wanted = work.jobs.len().saturating_sub(work.idle).min(MOST - work.threads.min(MOST));
        for _ in 0..wanted {
            if let Err(error) = self.begin_thread(&mut work) {
                tracing::debug!("{error}");
                break;
            }
        }
        drop(work);
        self.shared.more.notify_all();
    }

    /// Takes back a job that no thread has begun.
    fn take_back(&self, tag: u64, finished: &Arc<Finished>) -> Option<Job> {
        let mut work = locked(&self.shared.work);
        let place = work.jobs.iter().position(|(job, of)| job.tag() == tag && Arc::ptr_eq(of, finished))?;
        work.jobs.remove(place).map(|(job, _)| job)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        locked(&self.shared.work).closed = true;
        self.shared.more.notify_all();
        // All queues have gone, and waited for what they had in flight: the threads are idle. Once they have ended, nobody has the file.
        for thread in locked(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

/// What the threads have finished of one queue's jobs.
struct Finished {
    jobs: Mutex<Vec<Job>>,
    changed: Condvar,
    event: EventFd,
}

impl Finished {
    fn push(&self, job: Job) {
        locked(&self.jobs).push(job);
        self.changed.notify_all();
        // An eventfd whose count is full is readable all the same.
        let _ = self.event.write(1);
    }
}

/// A queue that shares its disk's threads.
pub(super) struct Queue {
    pool: Arc<Pool>,
    finished: Arc<Finished>,
    submitted: Vec<Job>,
    /// Those that needed no thread.
    done: Vec<Job>,
    depth: usize,
    with_threads: usize,
    now: Now,
}

impl Queue {
    pub(super) fn new(pool: Arc<Pool>, depth: u16) -> Result<Self, BlockError> {
        pool.begin()?;
        let event =
            EventFd::new(EFD_NONBLOCK).map_err(|source| BlockError::Queue { what: "make an eventfd", source })?;
        let finished = Arc::new(Finished { jobs: Mutex::default(), changed: Condvar::new(), event });
        let depth = depth.into();
        Ok(Self {
            pool,
            finished,
            submitted: Vec::new(),
            done: Vec::new(),
            depth,
            with_threads: 0,
            now: Now::default(),
        })
    }
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.depth {
            return Err(request);
        }
        self.submitted.push(Job::new(request, &self.pool.shared.target));
        Ok(())
    }

    fn kick(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let target = &self.pool.shared.target;
        let mut later = Vec::new();
        for mut job in self.submitted.drain(..) {
            let ended = self.now.try_to_end(&mut job, target, true);
            if ended { self.done.push(job) } else { later.push(job) }
        }
        if !later.is_empty() {
            self.with_threads += later.len();
            self.pool.give(later, &self.finished);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.extend(self.done.drain(..).map(Job::complete));
        if self.with_threads > 0 {
            let finished = std::mem::take(&mut *locked(&self.finished.jobs));
            if !finished.is_empty() {
                // One that is signalled after this leaves it readable, which harms nobody.
                let _ = self.finished.event.read();
            }
            self.with_threads -= finished.len();
            done.extend(finished.into_iter().map(Job::complete));
        }
    }

    fn in_flight(&self) -> usize {
        self.submitted.len() + self.done.len() + self.with_threads
    }

    fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.finished.event)
    }

    fn cancel(&mut self, tag: u64) {
        if let Some(job) = self.submitted.iter_mut().find(|job| job.tag() == tag) {
            job.cancel();
        } else if let Some(mut job) = self.pool.take_back(tag, &self.finished) {
            job.cancel();
            // Without a step left it is at its end.
            let _ = job.step();
            self.with_threads -= 1;
            self.done.push(job);
            let _ = self.finished.event.write(1);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let jobs = locked(&self.finished.jobs);
        drop(self.finished.changed.wait_while(jobs, |jobs| jobs.len() < self.with_threads));
    }
}
