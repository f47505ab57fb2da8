//! A unit of work: a completion queue with all its submission queues, and the thread that alone touches them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use skep_block::{Buffer, Completion, DiskQueue, Operation, Request};
use skep_memory::RamView;
use skep_worker::{EventSet, Job, Sources};

use crate::doorbell::{Shadow, Wake};
use crate::namespace::{Namespace, Table};
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::shared::{Counters, Shared};
use crate::spec::register::status;
use crate::spec::{CompletionEntry, Status};
use crate::state::{SubmissionQueueState, UnitState};

mod command;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "fault_test.rs"]
pub(crate) mod fault_test;
#[cfg(test)]
#[path = "unit_test.rs"]
mod test;

pub(crate) use command::MAX_TRANSFER_SHIFT;

/// Commands that one submission queue is served at most before others are.
const MOST_BURST: u64 = 64;

/// What the admin worker tells a unit.
pub(crate) enum Order {
    /// A submission queue has been created: its doorbell is open, since the guest is told so before this is heard.
    Add(Box<SubmissionQueue>),
    /// A submission queue is being deleted: [`Answer::Removed`] when nothing of it is in flight.
    Remove(u16),
    /// Shadow doorbells from now on: [`Answer::Shadowed`].
    Shadow(Shadow),
    /// A command is to be aborted: [`Answer::Aborted`].
    Abort { queue: u16, command: u16, token: u64 },
    /// Nothing more is taken: [`Answer::Paused`] with this number when nothing is in flight.
    Pause(u64),
    /// Goes on, also if something is still in flight.
    Resume,
    /// Everything ends, and is told to nobody: [`Answer::Stopped`] when nothing is in flight.
    Stop,
}

/// What a unit tells the admin worker.
pub(crate) enum Answer {
    Removed(u16),
    Shadowed,
    Aborted { token: u64, aborted: bool },
    Paused(u64, Box<UnitState>),
    Stopped(u16),
}

/// Where units leave their answers.
pub(crate) struct Answers {
    answers: Mutex<Vec<Answer>>,
    wake: Arc<Wake>,
}

impl Answers {
    pub(crate) fn new(wake: Arc<Wake>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::default(), wake })
    }

    fn give(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.wake.force();
    }

    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Running,
    Pausing(u64),
    Paused,
    /// The queues are dead, or can't be reached: what ends is dropped.
    Dead,
    Stopping,
    Stopped,
}

/// A namespace's disk, as this unit has it open.
struct Open {
    namespace: Arc<Namespace>,
    queue: Box<dyn DiskQueue>,
}

/// Why a command is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    Deleted,
    /// By an Abort command, which waits for the answer.
    Asked(u64),
}

/// A command in flight.
struct Active {
    queue: u16,
    command: u16,
    namespace: u32,
    first_block: u64,
    work: command::Work,
    cancel: Option<Cancel>,
}

/// The thread's own.
pub(crate) struct Unit {
    shared: Arc<Shared>,
    answers: Arc<Answers>,
    counters: Arc<Counters>,
    wake: Arc<Wake>,
    sources: Option<Sources>,
    /// The epoch in which its queues were created.
    epoch: u64,
    /// Bytes of a memory page.
    page: u64,
    mode: Mode,
    completion: CompletionQueue,
    submission: Vec<SubmissionQueue>,
    next: usize,
    slots: Vec<Option<Active>>,
    free: Vec<u16>,
    open: BTreeMap<u32, Open>,
    /// Of namespaces that have gone, until nothing of them is in flight.
    retired: Vec<Open>,
    table: Arc<Table>,
    done: Vec<Completion>,
    /// Buffers to be used again.
    spare: Vec<Buffer>,
    posted: bool,
    busy_since: Option<u64>,
    armed: bool,
}

/// What a unit is made of.
pub(crate) struct UnitConfig<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) answers: &'a Arc<Answers>,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) page: u64,
    pub(crate) state: &'a UnitState,
    pub(crate) shadow: Option<Shadow>,
    pub(crate) paused: bool,
}

/// A submission queue of that state, with its doorbell open to wake the unit that it is for.
pub(crate) fn open(
    shared: &Shared,
    state: &SubmissionQueueState,
    shadow: Option<Shadow>,
    wake: &Arc<Wake>,
) -> Option<SubmissionQueue> {
    let mut queue = SubmissionQueue::open(state, shared.doorbells.submission(state.id)?, wake);
    queue.set_shadow(shadow, None);
    Some(queue)
}

impl Unit {
    /// A unit of that state. `None` where there is no such queue, which its creator has checked.
    pub(crate) fn new(config: &UnitConfig<'_>) -> io::Result<Option<Self>> {
        let UnitConfig { shared, state, .. } = config;
        let wake = Wake::new()?;
        let Some(doorbell) = shared.doorbells.completion(state.completion.id) else { return Ok(None) };
        let mut completion = CompletionQueue::open(&state.completion, doorbell, &wake);
        completion.set_shadow(config.shadow, None);
        let slots = shared.config.in_flight;
        let mut unit = Self {
            shared: Arc::clone(shared),
            answers: config.answers.clone(),
            counters: config.counters.clone(),
            wake,
            sources: None,
            epoch: shared.epoch(),
            page: config.page,
            mode: if config.paused { Mode::Paused } else { Mode::Running },
            completion,
            submission: Vec::new(),
            next: 0,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            open: BTreeMap::new(),
            retired: Vec::new(),
            table: Arc::default(),
            done: Vec::new(),
            spare: Vec::new(),
            posted: false,
            busy_since: None,
            armed: false,
        };
        let wake = &unit.wake;
        unit.submission.extend(state.submission.iter().filter_map(|queue| open(shared, queue, config.shadow, wake)));
        Ok(Some(unit))
    }

    /// By this its queues' doorbells wake it.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    fn ram(&self) -> Option<Arc<RamView>> {
        self.shared.dma.memory().ok().map(skep_memory::DmaGuard::into_inner)
    }

    fn active(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// A round in which commands are taken.
    fn take_round(&mut self) -> bool {
        let wake = self.wake.clone();
        let _round = wake.round();
        self.look_at_epoch();
        self.follow();
        let (Some(ram), Mode::Running) = (self.ram(), self.mode) else { return false };
        self.fetch(&ram)
    }

    /// Takes commands, each queue its share in its turn.
    fn fetch(&mut self, ram: &Arc<RamView>) -> bool {
        let burst = self.shared.burst.load(Ordering::Relaxed).min(MOST_BURST);
        let mut any = false;
        for _ in 0..self.submission.len() {
            self.next = (self.next + 1) % self.submission.len();
            for _ in 0..burst {
                let reserved = self.active();
                let Some(queue) = self.submission.get_mut(self.next).filter(|queue| !queue.leaving) else { break };
                if self.free.is_empty() || !self.completion.has_room(reserved, ram) {
                    return any;
                }
                match queue.take(ram) {
                    Ok(None) => break,
                    Ok(Some(command)) => {
                        let (id, command_id) = (queue.id(), command.id());
                        queue.in_flight += 1;
                        // Before its disk has it: a controller that rests is left by a command, not by its end.
                        self.counters.last.store(Counters::BUSY, Ordering::Relaxed);
                        any = true;
                        if let Some(status) = self.begin(id, &command, ram) {
                            if !status.is_success() {
                                let block = command.first_block();
                                self.shared.note_error(id, command_id, status, block, command.namespace());
                            }
                            self.complete(id, command_id, status, ram);
                        }
                    }
                    Err(_) => {
                        self.die("a submission queue is not in RAM");
                        return any;
                    }
                }
            }
        }
        any
    }

    /// Posts a command's end, for which there is room.
    fn complete(&mut self, queue: u16, command: u16, status: Status, ram: &RamView) {
        let Some(submission) = self.submission.iter_mut().find(|one| one.id() == queue) else { return };
        submission.in_flight -= 1;
        if !matches!(self.mode, Mode::Running | Mode::Pausing(_)) {
            return;
        }
        let entry = CompletionEntry { result: 0, sq_head: submission.head(), sq_id: queue, command, status };
        if self.completion.post(entry, ram).is_err() {
            return self.die("a completion queue is not in RAM");
        }
        self.posted = true;
    }

    /// The queues can't be reached.
    fn die(&mut self, why: &str) {
        self.shared.fail(why);
        if matches!(self.mode, Mode::Running) {
            self.mode = Mode::Dead;
        }
    }

    /// Gives a request to a namespace's disk. There is room for as many as there are slots.
    fn submit(&mut self, namespace: u32, slot: u16, operation: Operation, buffer: Buffer) {
        let request = Request { tag: slot.into(), operation, buffer };
        let refused = match self.open.get_mut(&namespace) {
            Some(open) => open.queue.submit(request).err(),
            None => Some(request),
        };
        if let Some(request) = refused {
            let result = Err(skep_block::IoError::Cancelled);
            self.done.push(Completion { tag: request.tag, result, buffer: request.buffer });
        }
    }

    fn each_queue(&mut self, mut act: impl FnMut(&mut dyn DiskQueue)) {
        self.open.values_mut().chain(&mut self.retired).for_each(|open| act(&mut *open.queue));
    }

    /// Hands over what was submitted and takes what is done, until nothing follows from it.
    fn run(&mut self) -> bool {
        let wake = self.wake.clone();
        let mut any = false;
        loop {
            // The page cache may hold this up, so that nobody waits for it.
            self.each_queue(|queue| queue.kick());
            let _round = wake.round();
            self.look_at_epoch();
            let ram = self.ram();
            let mut done = std::mem::take(&mut self.done);
            self.each_queue(|queue| queue.reap(&mut done));
            let found = !done.is_empty();
            for completion in done.drain(..) {
                self.finish(completion, ram.as_ref());
            }
            // What was put there meanwhile comes next; the allocation stays.
            done.append(&mut self.done);
            self.done = done;
            if !found {
                return any;
            }
            any = true;
        }
    }

    /// Queues of an epoch that has ended are dead.
    fn look_at_epoch(&mut self) {
        if self.epoch != self.shared.epoch() && matches!(self.mode, Mode::Running | Mode::Pausing(_)) {
            self.mode = Mode::Dead;
        }
    }

    /// Follows the table of namespaces.
    fn follow(&mut self) {
        let table = self.shared.namespaces.load();
        if !Arc::ptr_eq(&table, &self.table) {
            self.table = Arc::clone(&table);
            let gone = |id: &u32, open: &Open| !table.get(id).is_some_and(|now| Arc::ptr_eq(now, &open.namespace));
            let ids: Vec<u32> = self.open.iter().filter(|(id, open)| gone(id, open)).map(|(id, _)| *id).collect();
            self.retired.extend(ids.iter().filter_map(|id| self.open.remove(id)));
        }
        self.retired.retain(|open| open.queue.in_flight() > 0);
    }

    /// The disk of a namespace that is attached, open.
    fn open(&mut self, namespace: u32) -> Result<&mut Open, Status> {
        if !self.open.contains_key(&namespace) {
            let found = self.table.get(&namespace).cloned().ok_or(Status::INVALID_NAMESPACE)?;
            let queue = found.disk.open_queue(self.shared.config.in_flight).map_err(|error| {
                tracing::warn!("NVMe namespace {namespace}: {error}");
                Status::INTERNAL_ERROR
            })?;
            if let Some(sources) = &self.sources
                && let Err(error) = sources.add(&queue.event(), u64::from(namespace), EventSet::IN)
            {
                tracing::warn!("NVMe namespace {namespace}: its disk can't be waited for: {error}");
                return Err(Status::INTERNAL_ERROR);
            }
            self.open.insert(namespace, Open { namespace: found, queue });
        }
        self.open.get_mut(&namespace).ok_or(Status::INTERNAL_ERROR)
    }

    fn cancel(&mut self, which: impl Fn(&Active) -> bool, why: Option<Cancel>) {
        let mut tags = Vec::new();
        for (slot, active) in self.slots.iter_mut().enumerate() {
            if let Some(active) = active.as_mut().filter(|active| which(active)) {
                if why.is_some() {
                    active.cancel = why;
                }
                tags.push(slot as u64);
            }
        }
        self.each_queue(|queue| tags.iter().for_each(|tag| queue.cancel(*tag)));
    }

    /// Looks whether what it was told to wait for has come.
    fn settle(&mut self) {
        for queue in self.submission.extract_if(.., |queue| queue.leaving && queue.in_flight == 0) {
            let id = queue.id();
            // Its doorbell is closed before its number may be used again.
            drop(queue);
            self.answers.give(Answer::Removed(id));
        }
        if self.active() > 0 {
            return;
        }
        match self.mode {
            Mode::Pausing(number) => {
                self.mode = Mode::Paused;
                let ram = self.ram();
                let state = UnitState {
                    completion: self.completion.state(ram.as_deref()),
                    submission: self.submission.iter().map(SubmissionQueue::state).collect(),
                };
                self.answers.give(Answer::Paused(number, Box::new(state)));
            }
            Mode::Stopping => {
                self.mode = Mode::Stopped;
                self.open.clear();
                self.retired.clear();
                self.answers.give(Answer::Stopped(self.completion.id()));
            }
            _ => {}
        }
    }

    fn count_time(&mut self) {
        match (self.active() > 0, self.busy_since) {
            (true, None) => {
                self.busy_since = Some(self.shared.nanos());
            }
            (false, Some(since)) => {
                let now = self.shared.nanos();
                Counters::add(&self.counters.busy, now - since);
                self.counters.last.store(now, Ordering::Relaxed);
                self.busy_since = None;
            }
            (false, None) if self.counters.last.load(Ordering::Relaxed) == Counters::BUSY => {
                self.counters.last.store(self.shared.nanos(), Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Whether it could take a command now.
    fn could_take(&mut self, ram: &RamView) -> bool {
        let reserved = self.active();
        self.mode == Mode::Running
            && !self.free.is_empty()
            && self.submission.iter().any(|queue| !queue.leaving && queue.has_more(ram))
            && self.completion.has_room(reserved, ram)
    }
}

impl Job for Unit {
    type Command = Order;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(&**self.wake.event(), u64::from(u32::MAX), EventSet::IN)?;
        self.sources = Some(sources.clone());
        Ok(())
    }

    fn command(&mut self, order: Order) {
        match order {
            Order::Add(queue) => self.submission.push(*queue),
            Order::Remove(id) => {
                if let Some(queue) = self.submission.iter_mut().find(|queue| queue.id() == id) {
                    queue.leaving = true;
                }
                self.cancel(|active| active.queue == id && active.cancel.is_none(), Some(Cancel::Deleted));
            }
            Order::Shadow(shadow) => {
                let ram = self.ram();
                self.submission.iter_mut().for_each(|queue| queue.set_shadow(Some(shadow), ram.as_deref()));
                self.completion.set_shadow(Some(shadow), ram.as_deref());
                self.answers.give(Answer::Shadowed);
            }
            Order::Abort { queue, command, token } => {
                let matches =
                    |active: &Active| (active.queue, active.command) == (queue, command) && active.cancel.is_none();
                if self.slots.iter().flatten().any(matches) {
                    self.cancel(matches, Some(Cancel::Asked(token)));
                } else {
                    self.answers.give(Answer::Aborted { token, aborted: false });
                }
            }
            Order::Pause(number) => {
                if matches!(self.mode, Mode::Running | Mode::Dead | Mode::Pausing(_)) {
                    self.mode = Mode::Pausing(number);
                }
            }
            Order::Resume => {
                if matches!(self.mode, Mode::Paused | Mode::Pausing(_)) {
                    let fatal = self.shared.registers().status & status::FATAL != 0;
                    self.mode = if fatal { Mode::Dead } else { Mode::Running };
                }
            }
            Order::Stop => {
                if self.mode != Mode::Stopped {
                    self.mode = Mode::Stopping;
                    self.cancel(|_| true, None);
                }
            }
        }
    }

    fn ready(&mut self, _token: u64, _events: EventSet) {}

    fn work(&mut self) -> bool {
        if std::mem::take(&mut self.armed) {
            self.wake.is_up();
        }
        let mut any = self.take_round();
        any |= self.run();
        self.count_time();
        if let (true, Some(vector)) = (std::mem::take(&mut self.posted), self.completion.vector()) {
            self.shared.interrupt(vector);
        }
        self.settle();
        any
    }

    fn peek(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.each_queue(|queue| queue.reap(&mut done));
        self.done = done;
        if !self.done.is_empty() || self.epoch != self.shared.epoch() && self.mode == Mode::Running {
            return true;
        }
        self.ram().is_some_and(|ram| self.could_take(&ram))
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.wake.will_sleep();
        if let Some(ram) = self.ram() {
            self.submission.iter().for_each(|queue| queue.ask(&ram));
            // By the pin the host is told of what it has not taken, so each step of it matters; else only where room is short.
            let reserved = self.active();
            if self.completion.vector().is_some() && !self.shared.bus.messages_enabled() {
                self.completion.update_head(Some(&ram));
                self.completion.ask(&ram);
                self.shared.update_pin();
            } else if !self.completion.has_room(reserved, &ram) {
                self.completion.ask(&ram);
            }
        }
        self.peek()
    }
}
