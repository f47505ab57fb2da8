//! The admin worker: the controller's life (Base 3.5, 3.6), the admin queues, and all that is not I/O.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use skep_clock::{GuestNanos, Timer};
use skep_memory::RamView;
use skep_worker::{EventSet, Job, Sources, Worker};

use crate::doorbell::{Shadow, Wake};
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::shared::{Counters, Shared};
use crate::spec::{CompletionEntry, Status};
use crate::state::{ControllerState, FeaturesState, HealthState, UnitState};
use crate::unit::{Answer, Answers, Order, Unit, UnitConfig};

mod command;
mod events;
mod features;
mod identify;
mod life;
mod logs;
mod saved;
mod task;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "admin_test.rs"]
pub(crate) mod test;

pub(crate) use events::{Event, Events};
pub(crate) use features::EVENT_MASK;
pub(crate) use identify::VENDOR;
pub(crate) use saved::power_on;
use task::Task;

/// Called once, when nothing is in flight any more.
pub(crate) type Stopped = Box<dyn FnOnce(ControllerState) + Send>;

/// What the controller's owner tells the admin worker.
pub(crate) enum AdminOrder {
    /// Takes nothing more, and says its state when nothing is in flight.
    Pause(Stopped),
    /// Goes on.
    Resume,
    /// Takes on a state, and stays paused.
    Restore(Box<ControllerState>, Sender<()>),
    /// A namespace has come, gone, or changed its size.
    Changed(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// There are no queues.
    Disabled,
    Enabled,
    /// Queues are dead, and something of them is in flight.
    Stopping,
}

/// An I/O worker, and the queues that it has.
struct UnitHandle {
    worker: Worker<Order>,
    wake: Arc<Wake>,
    counters: Arc<Counters>,
    submission: Vec<u16>,
    /// What it was when it paused.
    paused: Option<UnitState>,
    stopping: bool,
}

/// A command that waits for a unit.
enum Pending {
    DeleteSubmission { command: u16, queue: u16, completion: u16 },
    DeleteCompletion { command: u16, queue: u16 },
    Abort { command: u16, token: u64 },
    AbortFormat { command: u16, format: u16 },
    Shadow { command: u16, left: usize, shadow: Shadow },
}

/// The thread's own.
pub(crate) struct Admin {
    shared: Arc<Shared>,
    answers: Arc<Answers>,
    sources: Option<Sources>,
    life: Life,
    epoch: u64,
    /// Bytes of a memory page.
    page: u64,
    completion: Option<CompletionQueue>,
    submission: Option<SubmissionQueue>,
    units: BTreeMap<u16, UnitHandle>,
    pending: Vec<Pending>,
    tasks: Vec<Task>,
    tokens: u64,
    shadow: Option<Shadow>,
    features: FeaturesState,
    events: Events,
    health: HealthState,
    /// When it was powered on, or restored.
    powered: GuestNanos,
    /// When the power state was last set, in the controller's nanoseconds.
    power_set: u64,
    keep_alive: Timer,
    /// When that comes.
    alive_until: GuestNanos,
    pausing: Option<Stopped>,
    /// How often it was to pause: what units say of an earlier time, which was given up, is no news.
    pauses: u64,
    paused: bool,
    posted: bool,
    /// A shutdown has been begun and not ended.
    shutting_down: bool,
}

/// How a command goes on.
enum Outcome {
    /// It has ended, with this in its dword 0.
    Done(Status, u32),
    /// It ends later.
    Later,
}

impl From<Result<u32, Status>> for Outcome {
    fn from(result: Result<u32, Status>) -> Self {
        match result {
            Ok(result) => Self::Done(Status::SUCCESS, result),
            Err(status) => Self::Done(status, 0),
        }
    }
}

impl Admin {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let expired = Arc::downgrade(&shared);
        let keep_alive = shared.clock.timer(move || {
            if let Some(shared) = expired.upgrade() {
                shared.happened.keep_alive.store(true, Ordering::SeqCst);
                shared.wake.force();
            }
        });
        Self {
            answers: Answers::new(shared.wake.clone()),
            sources: None,
            life: Life::Disabled,
            epoch: shared.epoch(),
            page: 4096,
            completion: None,
            submission: None,
            units: BTreeMap::new(),
            pending: Vec::new(),
            tasks: Vec::new(),
            tokens: 0,
            shadow: None,
            features: features::power_on(),
            events: Events::default(),
            health: HealthState { power_cycles: 1, ..HealthState::default() },
            powered: shared.clock.now(),
            power_set: 0,
            keep_alive,
            alive_until: 0,
            pausing: None,
            pauses: 0,
            paused: false,
            posted: false,
            shutting_down: false,
            shared,
        }
    }

    fn ram(&self) -> Option<Arc<RamView>> {
        self.shared.dma.memory().ok().map(skep_memory::DmaGuard::into_inner)
    }

    /// Takes commands, as long as there is room for their ends.
    fn fetch(&mut self, ram: &Arc<RamView>) -> bool {
        let mut any = false;
        for _ in 0..64 {
            let (Some(submission), Some(completion)) = (&mut self.submission, &mut self.completion) else { break };
            // Requests for events reserve nothing: an event waits until there is room.
            let reserved = submission.in_flight - self.events.requests.len() as u32;
            if !completion.has_room(reserved, ram) {
                break;
            }
            match submission.take(ram) {
                Ok(None) => break,
                Ok(Some(command)) => {
                    any = true;
                    submission.in_flight += 1;
                    if let Outcome::Done(status, result) = self.execute(&command, ram) {
                        if !status.is_success() {
                            self.shared.note_error(0, command.id(), status, 0, command.namespace());
                        }
                        self.complete(command.id(), status, result);
                    }
                }
                Err(_) => {
                    self.submission = None;
                    self.shared.fail("the admin submission queue is not in RAM");
                }
            }
        }
        any
    }

    fn complete(&mut self, command: u16, status: Status, result: u32) {
        let ram = self.ram();
        let (Some(submission), Some(completion)) = (&mut self.submission, &mut self.completion) else { return };
        submission.in_flight -= 1;
        let entry = CompletionEntry { result, sq_head: submission.head(), sq_id: 0, command, status };
        let posted = ram.is_some_and(|ram| completion.post(entry, &ram).is_ok());
        if posted {
            self.posted = true;
        } else {
            self.shared.fail("the admin completion queue is not in RAM");
        }
    }

    /// Takes what units have to say.
    fn hear(&mut self) -> bool {
        let answers = self.answers.take();
        let any = !answers.is_empty();
        for answer in answers {
            match answer {
                Answer::Removed(queue) => {
                    self.shared.bus.doorbells_changed();
                    self.end_pending(|pending| match pending {
                        Pending::DeleteSubmission { command, queue: of, .. } if *of == queue => Some((*command, 0)),
                        _ => None,
                    });
                }
                Answer::Aborted { token, aborted } => self.end_pending(|pending| match pending {
                    Pending::Abort { command, token: of } if *of == token => Some((*command, (!aborted).into())),
                    _ => None,
                }),
                Answer::Shadowed => self.shadowed(),
                Answer::Paused(number, state) if number == self.pauses && self.pausing.is_some() => {
                    if let Some(unit) = self.units.get_mut(&state.completion.id) {
                        unit.paused = Some(*state);
                    }
                }
                Answer::Paused(..) => {}
                Answer::Stopped(queue) => {
                    if let Some(unit) = self.units.remove(&queue) {
                        unit.counters.add_to(&mut self.health);
                        // Its thread has nothing in flight, so that it ends at once.
                        drop(unit);
                    }
                    self.shared.bus.doorbells_changed();
                    self.end_pending(|pending| match pending {
                        Pending::DeleteCompletion { command, queue: of } if *of == queue => Some((*command, 0)),
                        _ => None,
                    });
                }
            }
        }
        any
    }

    /// Ends the commands for which `which` says their id and result.
    fn end_pending(&mut self, which: impl Fn(&Pending) -> Option<(u16, u32)>) {
        let ended: Vec<_> = self.pending.iter().filter_map(&which).collect();
        self.pending.retain(|pending| which(pending).is_none());
        for (command, result) in ended {
            self.complete(command, Status::SUCCESS, result);
        }
    }

    fn shadowed(&mut self) {
        let mut ended = None;
        for pending in &mut self.pending {
            if let Pending::Shadow { command, left, shadow } = pending {
                *left -= 1;
                if *left == 0 {
                    ended = Some((*command, *shadow));
                }
            }
        }
        if let Some((command, shadow)) = ended {
            self.pending.retain(|pending| !matches!(pending, Pending::Shadow { left: 0, .. }));
            self.use_shadow(shadow);
            self.complete(command, Status::SUCCESS, 0);
        }
    }

    fn use_shadow(&mut self, shadow: Shadow) {
        self.shadow = Some(shadow);
        self.shared.shadowed.store(true, Ordering::SeqCst);
        self.shared.bus.doorbells_changed();
    }

    /// Starts the worker of a completion queue.
    fn start_unit(&mut self, state: &UnitState, paused: bool) -> io::Result<()> {
        let counters = Arc::new(Counters::default());
        let config = UnitConfig {
            shared: &self.shared,
            answers: &self.answers,
            counters: &counters,
            page: self.page,
            state,
            shadow: self.shadow,
            paused,
        };
        let id = state.completion.id;
        let Some(unit) = Unit::new(&config)? else { return Err(io::ErrorKind::NotFound.into()) };
        let wake = unit.wake().clone();
        let worker = Worker::spawn(&format!("nvme-{id}"), self.shared.config.poll, unit)?;
        let submission = state.submission.iter().map(|queue| queue.id).collect();
        let state = paused.then(|| state.clone());
        self.units.insert(id, UnitHandle { worker, wake, counters, submission, paused: state, stopping: false });
        self.shared.bus.doorbells_changed();
        Ok(())
    }
}

impl Job for Admin {
    type Command = AdminOrder;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(&**self.shared.wake.event(), 0, EventSet::IN)?;
        self.sources = Some(sources.clone());
        Ok(())
    }

    fn command(&mut self, order: AdminOrder) {
        match order {
            AdminOrder::Pause(stopped) => self.begin_pause(stopped),
            AdminOrder::Resume => {
                self.paused = false;
                self.pausing = None;
                for unit in self.units.values_mut() {
                    unit.paused = None;
                    unit.worker.send(Order::Resume);
                }
                self.shared.update_pin();
                self.shared.bus.doorbells_changed();
            }
            AdminOrder::Restore(state, done) => {
                self.restore(&state);
                // Whoever restores waits for it.
                let _ = done.send(());
            }
            AdminOrder::Changed(namespace) => self.namespace_changed(namespace),
        }
    }

    fn ready(&mut self, _token: u64, _events: EventSet) {}

    fn work(&mut self) -> bool {
        let shared = self.shared.clone();
        let round = shared.wake.round();
        let mut any = self.hear();
        any |= self.run_tasks();
        // A reset ends a pause's rest; the queues of a paused controller are left alone otherwise.
        if !self.paused || self.epoch != self.shared.epoch() || self.life == Life::Stopping {
            any |= self.follow();
        }
        if !self.paused && self.pausing.is_none() && self.life == Life::Enabled && self.epoch == self.shared.epoch() {
            self.notice();
            if let Some(ram) = self.ram() {
                any |= self.fetch(&ram);
            }
            self.deliver_events();
        }
        if std::mem::take(&mut self.posted) {
            self.shared.interrupt(0);
        }
        // Whoever is told of a pause may reset the controller.
        drop(round);
        self.look_at_pause();
        any
    }

    fn peek(&mut self) -> bool {
        if !self.answers.is_empty() {
            return true;
        }
        if self.paused || self.pausing.is_some() || self.life != Life::Enabled {
            return false;
        }
        let ram = self.ram();
        let (Some(ram), Some(submission), Some(completion)) = (ram, &self.submission, &mut self.completion) else {
            return false;
        };
        let reserved = submission.in_flight - self.events.requests.len() as u32;
        submission.has_more(&ram) && completion.has_room(reserved, &ram)
    }

    fn arm(&mut self) -> bool {
        self.shared.wake.will_sleep();
        self.peek() || self.run_tasks() || !self.paused && self.follow()
    }
}
