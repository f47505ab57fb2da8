//! Pausing, saving, and going on: what makes a machine stand still and lets it move again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_clock::nanos;
use skep_config::Config;
use skep_memory::Region;
use skep_state::Record;

use super::command::{self, microseconds};
use super::migrate::Leaving;
use super::wait::{Waited, wait};
use crate::Error;
use crate::ctl::protocol::{Activity, Answer, ErrorKind, Failure, Nothing, Save, Saved, Status};
use crate::ctl::{Call, Command, Reply};
use crate::leftover::Leftover;
use crate::machine::{DiskImages, Machine, Saved as SavedMachine};
use crate::migrate::{MigrateError, Settled, Settling};
use crate::run::{Control, Gate, Request, Requests, StopReason};
use crate::state::changes::Changes;
use crate::state::records::DISKS;
use crate::state::{
    CONTAINER, Draft, Event, Header, MAGIC, MEMORY, NamedRecord, Progress, RECORDS, REQUIRES_BASE, Records,
    RecordsFile, SnapshotError, Wanted, Why, memory,
};

#[cfg(test)]
#[path = "save_test.rs"]
mod test;

/// A save that is being written.
pub(super) struct Job {
    progress: Arc<Progress>,
    wanted: Arc<Wanted>,
    /// It was given up: what it still reads is thrown away.
    cancelled: bool,
    /// Memory is still being read: nothing may change.
    reads_memory: bool,
    /// All that is left to do is to answer.
    done: Arc<AtomicBool>,
    /// It has come to its end, whichever, and who asked has been answered.
    ended: Arc<Event>,
    thread: JoinHandle<()>,
}

impl Job {
    /// Whether another may begin: who hears of its end may ask for the next at once.
    fn is_over(&self) -> bool {
        !self.reads_memory && (self.done.load(Ordering::Acquire) || self.thread.is_finished())
    }
}

/// Whether and why a machine stands still.
#[derive(Default)]
pub(super) struct Standing {
    /// When it began to stand.
    pub(super) since: Option<Instant>,
    /// Somebody has paused it.
    pub(super) paused: bool,
    /// What its devices come to rest for, as long as they do.
    pub(super) stopping: Option<Purpose>,
    pub(super) job: Option<Job>,
    /// It migrates to another process.
    pub(super) leaving: Option<Leaving>,
    /// It comes from another process, which has not given it away yet.
    pub(super) arriving: Option<(Settling, Option<Leftover>)>,
    /// It has come from there.
    pub(super) settled: Option<Settled>,
}

/// What a machine is to stand still for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Pause,
    Save,
    Migration,
}

/// What has come of it that a machine was to stand still.
pub(super) enum Frozen {
    /// It stands.
    Still,
    /// Its guest, or somebody else, has asked for its end, or it failed: that would not be heard, were it stopped.
    Ending,
    /// It goes on: somebody has given up what it was to stand for, before its devices had come to rest.
    GivenUp,
    /// Somebody has ended it meanwhile.
    Ended(StopReason),
}

/// The parts of a machine that runs.
pub(super) struct Parts<'a, A: SavedMachine> {
    pub(super) machine: &'a mut Machine<A>,
    pub(super) control: &'a mut Control,
    pub(super) requests: &'a Arc<Requests>,
    pub(super) gate: &'a Gate,
}

impl Standing {
    /// One that waits for somebody to resume it before it runs at all.
    pub(super) fn paused() -> Self {
        Self { since: Some(Instant::now()), paused: true, ..Self::default() }
    }

    /// Whether it stands.
    pub(super) fn is_still(&self) -> bool {
        self.since.is_some()
    }

    /// Whether nothing of it may change, since it is being saved, or on its way to another process or from one.
    pub(super) fn is_saving(&self) -> bool {
        let saving = self.job.as_ref().is_some_and(|job| job.reads_memory && !job.cancelled);
        saving || self.arriving.is_some() || self.leaving.as_ref().is_some_and(Leaving::is_handed)
    }

    pub(super) fn status(&self) -> Status {
        let activity = match (&self.leaving, self.stopping) {
            (_, Some(Purpose::Pause)) => Activity::Pausing,
            (Some(_), _) => Activity::Migrating,
            (None, Some(Purpose::Save)) => Activity::Saving,
            (None, _) if self.is_saving() => Activity::Saving,
            (None, _) if self.paused => Activity::Paused,
            (None, _) => Activity::Running,
        };
        let job = self.job.as_ref().filter(|job| !job.cancelled).map(|job| &*job.progress);
        let progress = self.leaving.as_ref().map(Leaving::progress).or(job);
        let get = |read: fn(&Progress) -> u64| progress.map_or(0, read);
        Status {
            activity,
            done: get(|progress| progress.done.load(Ordering::Relaxed)),
            of: get(|progress| progress.of.load(Ordering::Relaxed)),
            migration: self.leaving.as_ref().map(Leaving::status),
            waits_for_devices: self.stopping.is_some(),
        }
    }

    /// Stops everything. What the host takes for what the devices have in flight may be long: it can be given up meanwhile.
    pub(super) fn freeze<A: SavedMachine>(
        &mut self,
        parts: &mut Parts<'_, A>,
        purpose: Purpose,
    ) -> Result<Frozen, Error> {
        parts.gate.close_and_wait();
        if parts.requests.is_ending() {
            return Ok(Frozen::Ending);
        }
        if self.since.is_some() {
            return Ok(Frozen::Still);
        }
        parts.machine.clock().pause();
        // Not before: until here the guest's clocks have gone on by themselves, however long the gate took to close.
        self.since = Some(Instant::now());
        if !parts.machine.has_devices() {
            return Ok(Frozen::Still);
        }
        let (ticket, tell) = parts.requests.ticket();
        parts.machine.begin_stop(tell);
        self.stopping = Some(purpose);
        let waited = wait(parts.control, parts.requests, ticket, |call| self.hear(purpose, call, parts.requests));
        self.stopping = None;
        Ok(match waited? {
            Waited::Done => Frozen::Still,
            Waited::Ended(reason) => Frozen::Ended(reason),
            Waited::GivenUp(reply) => {
                self.thaw(parts.machine);
                reply.send(Ok(Answer::Nothing(Nothing {})));
                Frozen::GivenUp
            }
        })
    }

    /// What a client asks for while the devices come to rest: whoever gives that up is to be answered.
    fn hear(&self, purpose: Purpose, call: Call, requests: &Requests) -> Option<Reply> {
        match (purpose, &call.command) {
            (Purpose::Pause, Command::Resume) | (Purpose::Save, Command::SaveCancel) => return Some(call.reply),
            (Purpose::Migration, Command::MigrateCancel) => match self.cancel_migration() {
                Ok(_) => return Some(call.reply),
                Err(failure) => call.reply.send(Err(failure)),
            },
            (_, Command::Status) => call.reply.send(Ok(Answer::Status(self.status()))),
            _ => {
                let by = match purpose {
                    Purpose::Pause => "`resume` gives the pause up",
                    Purpose::Save => "`save-cancel` gives the save up",
                    Purpose::Migration => "`migrate-cancel` gives the migration up",
                };
                let text = format!(
                    "the machine's devices come to rest, and wait for what they have in flight\n  try: again in a moment; or {by}"
                );
                command::refuse(call, requests, &text);
            }
        }
        None
    }

    /// Lets the clocks of a machine that stands be of now: the counters that the backend keeps have run on since, and its records are to be of one moment.
    /// Answers which.
    pub(super) fn catch_up<A: SavedMachine>(&mut self, machine: &Machine<A>) -> Instant {
        let now = Instant::now();
        if let Some(before) = self.since.replace(now) {
            machine.pass_time(nanos(now.saturating_duration_since(before)));
        }
        now
    }

    /// Lets everything go on, unless somebody wants it to stand. The guest's clocks have gone on, as on a host that stood still.
    pub(super) fn thaw<A: SavedMachine>(&mut self, machine: &Machine<A>) -> Duration {
        if self.paused || self.is_saving() {
            return Duration::ZERO;
        }
        let Some(since) = self.since.take() else { return Duration::ZERO };
        let stood = since.elapsed();
        machine.pass_time(nanos(stood));
        // At once: what the devices take to go on is no standstill of the clock's.
        machine.clock().resume();
        machine.resume();
        stood
    }

    pub(super) fn pause<A: SavedMachine>(
        &mut self,
        parts: &mut Parts<'_, A>,
        reply: Reply,
    ) -> Result<Option<StopReason>, Error> {
        if self.is_saving() {
            reply.send(Err(being_saved()));
            return Ok(None);
        }
        match self.freeze(parts, Purpose::Pause)? {
            Frozen::Still => {
                self.paused = true;
                reply.send(Ok(Answer::Nothing(Nothing {})));
            }
            Frozen::Ending => reply.send(Err(ending().into())),
            Frozen::GivenUp => reply.send(Err(SnapshotError::Cancelled.into())),
            Frozen::Ended(reason) => return Ok(Some(reason)),
        }
        Ok(None)
    }

    pub(super) fn resume<A: SavedMachine>(&mut self, machine: &Machine<A>) -> Result<(), Error> {
        // They may have been given to another process, which has not taken the machine.
        machine.hold_images().map_err(MigrateError::Stranded)?;
        self.paused = false;
        self.thaw(machine);
        Ok(())
    }

    /// The machine begins anew, and runs.
    pub(super) fn forget(&mut self) {
        (self.since, self.paused) = (None, false);
    }

    /// Begins to save. What can't be done leaves the machine as it was.
    pub(super) fn save<A: SavedMachine>(
        &mut self,
        parts: &mut Parts<'_, A>,
        save: Save,
        reply: Reply,
    ) -> Result<Option<StopReason>, Error> {
        let busy = self.job.as_ref().is_some_and(|job| !job.is_over());
        if busy || self.leaving.is_some() || self.arriving.is_some() {
            reply.send(Err(being_saved()));
            return Ok(None);
        }
        self.job = None;
        let draft = match base(parts.machine, &save).and_then(|()| Draft::begin(&save.folder)) {
            Ok(draft) => draft,
            Err(error) => {
                reply.send(Err(error.into()));
                return Ok(None);
            }
        };
        let begin = Instant::now();
        match self.freeze(parts, Purpose::Save)? {
            Frozen::Still => {}
            Frozen::Ending => {
                reply.send(Err(ending().into()));
                return Ok(None);
            }
            Frozen::GivenUp => {
                reply.send(Err(SnapshotError::Cancelled.into()));
                return Ok(None);
            }
            Frozen::Ended(reason) => return Ok(Some(reason)),
        }
        self.catch_up(parts.machine);
        let begun = parts.machine.save().and_then(|records| {
            let changes = changes(parts.machine, &save)?;
            let writer = Writer {
                draft,
                records,
                changes,
                diff: save.diff,
                images: parts.machine.disk_images(),
                ram: parts.machine.ram(),
                config: parts.machine.config().clone(),
                progress: Arc::default(),
                wanted: Arc::default(),
                done: Arc::default(),
                begin,
                quit: save.quit,
                requests: parts.requests.clone(),
            };
            let (progress, wanted, done) = (writer.progress.clone(), writer.wanted.clone(), writer.done.clone());
            let ended = Arc::<Event>::default();
            let tell_ended = Ended(ended.clone());
            let thread = Builder::new().name("save".to_owned());
            let (told, refused) = (reply.clone(), save.folder.clone());
            let thread = thread
                .spawn(move || {
                    let _ended = tell_ended;
                    writer.run(told);
                })
                .map_err(|source| {
                    let what = "start a thread for";
                    SnapshotError::Host { what, path: refused, source }
                })?;
            Ok(Job { progress, wanted, cancelled: false, reads_memory: true, done, ended, thread })
        });
        match begun {
            Ok(job) => self.job = Some(job),
            Err(error) => reply.send(Err(error.into())),
        }
        Ok(None)
    }

    /// Memory has been written.
    pub(super) fn written(&mut self) {
        if let Some(job) = &mut self.job {
            job.reads_memory = false;
        }
    }

    /// Gives a save up, unless it is whole: the guest goes on, and what was written goes.
    pub(super) fn cancel_save(&mut self) -> Result<Answer, Failure> {
        let Some(job) = self.job.as_mut().filter(|job| !job.is_over()) else {
            return Err(Failure::new(ErrorKind::BadArguments, "the machine is not being saved"));
        };
        if !job.wanted.give_up(Why::Cancelled) {
            return Err(Failure::new(ErrorKind::Busy, "the snapshot is whole: it is too late"));
        }
        job.cancelled = true;
        Ok(Answer::Nothing(Nothing {}))
    }

    /// The machine ends: a save that has not read all of its memory is given up, one that has goes on. `tell` is called when it has come to its end;
    /// `false` where there is none to wait for.
    pub(super) fn end(&mut self, tell: impl FnOnce() + Send + 'static) -> bool {
        self.refuse_arrival();
        if let Some(leaving) = &self.leaving {
            leaving.give_up();
        }
        let Some(job) = self.job.take() else { return false };
        if job.reads_memory {
            job.wanted.give_up(Why::Ended);
        }
        job.ended.on(tell);
        true
    }
}

/// Refuses a difference to what is not there any more, while the guest still runs.
fn base<A: SavedMachine>(machine: &Machine<A>, save: &Save) -> Result<(), SnapshotError> {
    if !save.diff {
        return Ok(());
    }
    let origin = machine.tracker().and_then(|tracker| tracker.origin()).ok_or(SnapshotError::NotTracked)?;
    origin.check(&machine.ram_ranges())
}

/// What goes with a save of those that are tracked. Of one that is whole, too, the next is the difference to it.
fn changes<A: SavedMachine>(machine: &mut Machine<A>, save: &Save) -> Result<Option<Changes>, SnapshotError> {
    let tracker = match machine.tracker() {
        Some(tracker) if save.track || save.diff => tracker,
        None if save.track && !save.diff => machine.track(None)?,
        None if save.diff => return Err(SnapshotError::NotTracked),
        _ => return Ok(None),
    };
    let changes = tracker.take()?;
    if save.diff && changes.origin.is_none() {
        return Err(SnapshotError::NotTracked);
    }
    Ok(Some(changes))
}

/// Of a machine that is [`Frozen::Ending`].
pub(super) fn ending() -> SnapshotError {
    SnapshotError::Busy("the guest is about to end, or to begin anew".to_owned())
}

fn being_saved() -> Failure {
    SnapshotError::Busy("the machine is being saved, or migrates".to_owned()).into()
}

/// What writes a snapshot, on a thread of its own.
struct Writer {
    draft: Draft,
    records: Records,
    /// Where the next difference is to this one.
    changes: Option<Changes>,
    diff: bool,
    images: DiskImages,
    ram: Vec<Arc<Region>>,
    config: Config,
    progress: Arc<Progress>,
    wanted: Arc<Wanted>,
    done: Arc<AtomicBool>,
    begin: Instant,
    quit: bool,
    requests: Arc<Requests>,
}

/// Tells that all is over, however that came.
struct Ended(Arc<Event>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.happen();
    }
}

/// Lets the guest go on however writing ends.
struct Told(Option<Arc<Requests>>);

impl Told {
    fn tell(&mut self) {
        if let Some(requests) = self.0.take() {
            requests.send(Request::Written);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Writer {
    fn run(self, reply: Reply) {
        let mut told = Told(Some(self.requests.clone()));
        let (requests, quit, done) = (self.requests.clone(), self.quit, self.done.clone());
        let outcome = self.write(&mut told);
        if quit && outcome.is_ok() {
            requests.send(Request::Stop(StopReason::Control));
        }
        drop(told);
        done.store(true, Ordering::Release);
        reply.send(outcome.map(Answer::Saved).map_err(Failure::from));
    }

    fn write(self, told: &mut Told) -> Result<Saved, SnapshotError> {
        let Self { draft, mut records, changes, diff, images, ram, config, progress, wanted, begin, quit, .. } = self;
        let disks = images.flush_while(&wanted)?;
        records.records.push(NamedRecord::new(DISKS, Record::of(&disks)));
        let bytes = records.bytes();
        draft.write(RECORDS, &bytes)?;
        let file = draft.create(MEMORY)?;
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::Interrupted => {
                wanted.check().map_or_else(SnapshotError::from, |()| SnapshotError::Ended)
            }
            _ => SnapshotError::Host { what: "write", path: draft.path(MEMORY), source },
        };
        let differs = changes.as_ref().filter(|_| diff).and_then(|changes| changes.difference(&ram));
        let runs = differs.as_ref().map(|(_, runs)| runs.as_slice());
        let memory = memory::write(&ram, runs, &file, &progress, || wanted.check().is_ok()).map_err(failed)?;
        DiskImages::outlast(&disks);
        let standstill = begin.elapsed();
        // Those of the host that a guest is to go on with are let go of.
        drop((ram, images));
        if !quit {
            told.tell();
        }
        let base = differs.as_ref().map(|(origin, runs)| draft.base(origin, runs)).transpose()?;
        let header = Header {
            magic: MAGIC.to_owned(),
            container: CONTAINER,
            skep: env!("CARGO_PKG_VERSION").to_owned(),
            machine: config.machine.to_string(),
            architecture: config.arch().to_string(),
            saved: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            requires: base.iter().map(|_| REQUIRES_BASE.to_owned()).collect(),
            base,
            records: RecordsFile::of(&bytes),
            memory,
        };
        // Somebody may have removed it meanwhile; a machine that was to end goes on then.
        differs.map_or(Ok(()), |(origin, _)| origin.check(&header.memory.ram))?;
        let finished = draft.finish(&header, &wanted)?;
        if let Some(changes) = changes {
            changes.saved(finished);
        }
        let (memory, data) = (header.memory.size, header.memory.data);
        tracing::info!("saved: {data} bytes of {memory}, with the guest at a standstill for {standstill:?}");
        let elapsed_us = microseconds(begin.elapsed());
        Ok(Saved { memory, data, standstill_us: microseconds(standstill), elapsed_us })
    }
}
