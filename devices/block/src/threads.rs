//! Requests by threads: what raw images do without io_uring, and what needs more than one call of the host.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::borrow::borrow;
use crate::now::Now;
use crate::{BlockError, Completion, DiskQueue, Request};

/// Threads of one disk at most: what a disk is asked at once.
const MOST: usize = 8;

/// A request on its way.
pub(crate) trait Job: Send {
    /// The request's tag.
    fn tag(&self) -> u64;

    /// Ends it before its next step: what is called after this finds nothing left to do.
    fn cancel(&mut self);

    /// What its submitter gets.
    fn complete(self) -> Completion;
}

/// A disk whose requests are done by threads.
pub(crate) trait Serve: Send + Sync {
    /// Its requests.
    type Job: Job;

    /// A job for `request`; one that could never be done has ended.
    fn begin(&self, request: Request) -> Self::Job;

    /// Does what can be done without waiting, and says whether the job has ended.
    fn try_now(&self, job: &mut Self::Job, now: &mut Now) -> bool;

    /// Runs the job to its end.
    fn run(&self, job: &mut Self::Job);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Work<J> {
    jobs: VecDeque<(J, Arc<Finished<J>>)>,
    idle: usize,
    threads: usize,
    closed: bool,
}

impl<J> Default for Work<J> {
    fn default() -> Self {
        Self { jobs: VecDeque::new(), idle: 0, threads: 0, closed: false }
    }
}

struct Shared<S: Serve> {
    work: Mutex<Work<S::Job>>,
    more: Condvar,
    serve: Arc<S>,
}

impl<S: Serve> Shared<S> {
    fn work(&self) {
        let mut work = locked(&self.work);
        loop {
            while let Some((mut job, finished)) = work.jobs.pop_front() {
                drop(work);
                self.serve.run(&mut job);
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
pub(crate) struct Pool<S: Serve> {
    shared: Arc<Shared<S>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: Serve + 'static> Pool<S> {
    pub(crate) fn new(serve: Arc<S>) -> Arc<Self> {
        let shared = Arc::new(Shared { work: Mutex::default(), more: Condvar::new(), serve });
        Arc::new(Self { shared, threads: Mutex::default() })
    }

    pub(crate) fn serve(&self) -> &S {
        &self.shared.serve
    }

    fn begin_thread(&self, work: &mut Work<S::Job>) -> Result<(), BlockError> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || shared.work());
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

    fn give(&self, jobs: Vec<S::Job>, finished: &Arc<Finished<S::Job>>) {
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
    fn take_back(&self, tag: u64, finished: &Arc<Finished<S::Job>>) -> Option<S::Job> {
        let mut work = locked(&self.shared.work);
        let place = work.jobs.iter().position(|(job, of)| job.tag() == tag && Arc::ptr_eq(of, finished))?;
        work.jobs.remove(place).map(|(job, _)| job)
    }
}

impl<S: Serve> Drop for Pool<S> {
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
struct Finished<J> {
    jobs: Mutex<Vec<J>>,
    changed: Condvar,
    event: EventFd,
}

impl<J> Finished<J> {
    fn push(&self, job: J) {
        locked(&self.jobs).push(job);
        self.changed.notify_all();
        // An eventfd whose count is full is readable all the same.
        let _ = self.event.write(1);
    }
}

/// A queue that shares its disk's threads.
pub(crate) struct Queue<S: Serve> {
    pool: Arc<Pool<S>>,
    finished: Arc<Finished<S::Job>>,
    submitted: Vec<S::Job>,
    /// Those that needed no thread.
    done: Vec<S::Job>,
    depth: usize,
    with_threads: usize,
    now: Now,
}

impl<S: Serve + 'static> Queue<S> {
    pub(crate) fn new(pool: Arc<Pool<S>>, depth: u16) -> Result<Self, BlockError> {
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

impl<S: Serve + 'static> DiskQueue for Queue<S> {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.depth {
            return Err(request);
        }
        self.submitted.push(self.pool.shared.serve.begin(request));
        Ok(())
    }

    fn kick(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let serve = &self.pool.shared.serve;
        let mut later = Vec::new();
        for mut job in self.submitted.drain(..) {
            let ended = serve.try_now(&mut job, &mut self.now);
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
            self.with_threads -= 1;
            self.done.push(job);
            let _ = self.finished.event.write(1);
        }
    }
}

impl<S: Serve> Drop for Queue<S> {
    fn drop(&mut self) {
        let jobs = locked(&self.finished.jobs);
        drop(self.finished.changed.wait_while(jobs, |jobs| jobs.len() < self.with_threads));
    }
}
