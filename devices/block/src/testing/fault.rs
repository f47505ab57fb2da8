//! A disk that fails as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::borrow::borrow;
use crate::gather::Gathered;
use crate::{
    BlockError, Buffer, Completion, Disk, DiskInfo, DiskQueue, IoError, Operation, Request, ResizeListener,
    ResizeSubscription,
};

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing of it is done.
    Fail(IoError),
    /// The first `blocks` blocks are read or written, then it fails: a short read, a torn write.
    Partial {
        /// How many blocks are moved.
        blocks: u32,
        /// What it fails with.
        error: IoError,
    },
    /// Its completion is held back until so many later requests of its queue have completed, or none is left.
    Delay(u32),
    /// It hangs until [`FaultDisk::release`], or until it is cancelled.
    Hang,
    /// As [`Fault::Hang`], and it can't be cancelled.
    HangForGood,
}

type Rule = Box<dyn FnMut(&Operation) -> Option<Fault> + Send>;

#[derive(Default)]
struct Plan {
    rule: Option<Rule>,
    /// How often [`FaultDisk::release`] was called: a queue that has seen fewer lets go of what hangs.
    releases: u64,
    hanging: usize,
    queues: Vec<Weak<EventFd>>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk before another one, which fails requests by a rule.
pub struct FaultDisk {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
}

impl FaultDisk {
    /// A disk that does what `disk` does, until a rule is set.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { disk, shared: Arc::default() })
    }

    /// Asks `rule` about each request from now on.
    pub fn set_rule(&self, rule: impl FnMut(&Operation) -> Option<Fault> + Send + 'static) {
        self.shared.lock().rule = Some(Box::new(rule));
    }

    /// No more faults.
    pub fn clear_rule(&self) {
        self.shared.lock().rule = None;
    }

    /// Waits until so many requests hang.
    pub fn wait_hanging(&self, count: usize) {
        let plan = self.shared.lock();
        drop(self.shared.changed.wait_while(plan, |plan| plan.hanging < count));
    }

    /// Lets everything that hangs be done now.
    pub fn release(&self) {
        let mut plan = self.shared.lock();
        plan.releases += 1;
        plan.queues.retain(|queue| queue.strong_count() > 0);
        for queue in plan.queues.iter().filter_map(Weak::upgrade) {
            let _ = queue.write(1);
        }
    }
}

impl Disk for FaultDisk {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let failed = |what| move |source| BlockError::Queue { what, source };
        let queue = self.disk.open_queue(depth)?;
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(failed("make an eventfd"))?);
        let gathered = Gathered::new(&[queue.event(), borrow(&event)]).map_err(failed("make an epoll descriptor"))?;
        let mut plan = self.shared.lock();
        plan.queues.push(Arc::downgrade(&event));
        Ok(Box::new(Queue {
            queue,
            shared: self.shared.clone(),
            depth: depth.into(),
            block_size: self.disk.info().block_size as usize,
            released: plan.releases,
            hanging: Vec::new(),
            partial: BTreeMap::new(),
            delayed: BTreeMap::new(),
            late: Vec::new(),
            failed: VecDeque::new(),
            event,
            gathered,
        }))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.disk.on_resize(listener)
    }
}

struct Queue {
    // Dropped first: what is in flight below ends before what it was gathered with.
    queue: Box<dyn DiskQueue>,
    shared: Arc<Shared>,
    depth: usize,
    block_size: usize,
    released: u64,
    /// Whether they can be cancelled, and how many releases there had been when they came.
    hanging: Vec<(Request, bool, u64)>,
    /// Of those of which a part is being done: their own buffer, and what they fail with.
    partial: BTreeMap<u64, (Buffer, IoError)>,
    /// Of those that are delayed and not yet done below: by how much.
    delayed: BTreeMap<u64, u32>,
    late: Vec<(u32, Completion)>,
    failed: VecDeque<Completion>,
    event: Arc<EventFd>,
    gathered: Gathered,
}

impl Queue {
    fn fail(&mut self, tag: u64, error: IoError, buffer: Buffer) {
        self.failed.push_back(Completion { tag, result: Err(error), buffer });
        let _ = self.event.write(1);
    }

    fn pass(&mut self, request: Request) {
        if let Err(request) = self.queue.submit(request) {
            self.fail(request.tag, IoError::Host(libc::EAGAIN), request.buffer);
        }
    }

    fn begin_partial(&mut self, request: Request, blocks: u32, error: IoError) {
        let part = (self.block_size * blocks as usize).min(request.buffer.len());
        let buffer = Buffer::zeroed(part);
        let mut bytes = vec![0; part];
        request.buffer.copy_out(0, &mut bytes);
        buffer.copy_in(0, &bytes);
        self.partial.insert(request.tag, (request.buffer, error));
        self.pass(Request { buffer, ..request });
    }

    fn finish_partial(&mut self, completion: Completion) -> Completion {
        let Some((whole, error)) = self.partial.remove(&completion.tag) else { return completion };
        let mut bytes = vec![0; completion.buffer.len()];
        completion.buffer.copy_out(0, &mut bytes);
        // Of a write this puts back what is there.
        whole.copy_in(0, &bytes);
        Completion { tag: completion.tag, result: Err(error), buffer: whole }
    }

    fn let_go(&mut self) {
        let (releases, free) = {
            let mut plan = self.shared.lock();
            let free: Vec<_> = self.hanging.extract_if(.., |(.., since)| *since < plan.releases).collect();
            plan.hanging -= free.len();
            (plan.releases, free)
        };
        if releases != self.released {
            self.released = releases;
            free.into_iter().for_each(|(request, ..)| self.pass(request));
            self.queue.kick();
        }
    }
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.depth {
            return Err(request);
        }
        // A release that comes from here on is one for this request.
        let (fault, since) = {
            let mut plan = self.shared.lock();
            (plan.rule.as_mut().and_then(|rule| rule(&request.operation)), plan.releases)
        };
        match fault {
            None => self.pass(request),
            Some(Fault::Fail(error)) => self.fail(request.tag, error, request.buffer),
            Some(Fault::Partial { blocks, error }) => self.begin_partial(request, blocks, error),
            Some(Fault::Delay(by)) => {
                self.delayed.insert(request.tag, by);
                self.pass(request);
            }
            Some(fault @ (Fault::Hang | Fault::HangForGood)) => {
                self.hanging.push((request, fault == Fault::Hang, since));
                self.shared.lock().hanging += 1;
                self.shared.changed.notify_all();
            }
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let _ = self.event.read();
        self.let_go();
        let mut found: Vec<_> = self.failed.drain(..).collect();
        self.queue.reap(&mut found);
        for completion in found {
            if let Some(by) = self.delayed.remove(&completion.tag) {
                self.late.push((by, completion));
                continue;
            }
            let completion = self.finish_partial(completion);
            done.push(completion);
            for (left, _) in &mut self.late {
                *left = left.saturating_sub(1);
            }
        }
        let alone = self.queue.in_flight() == 0 && self.failed.is_empty() && self.hanging.is_empty();
        let (ready, late): (Vec<_>, Vec<_>) = self.late.drain(..).partition(|(left, _)| alone || *left == 0);
        self.late = late;
        done.extend(ready.into_iter().map(|(_, completion)| completion));
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight() + self.hanging.len() + self.late.len() + self.failed.len()
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.gathered.event()
    }

    fn cancel(&mut self, tag: u64) {
        match self.hanging.iter().position(|(request, can, _)| request.tag == tag && *can) {
            Some(place) => {
                let (request, ..) = self.hanging.swap_remove(place);
                self.shared.lock().hanging -= 1;
                self.fail(tag, IoError::Cancelled, request.buffer);
            }
            None => self.queue.cancel(tag),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().hanging -= self.hanging.len();
    }
}
