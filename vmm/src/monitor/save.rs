//! Pausing, saving, and going on: what makes a machine stand still and lets it move again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_clock::nanos;
use skep_config::Config;
use skep_memory::Region;
use skep_state::Record;

use super::command::microseconds;
use super::migrate::Leaving;
use super::stop;
use crate::Error;
use crate::ctl::Reply;
use crate::ctl::protocol::{Activity, Answer, Failure, Nothing, Save, Saved, Status};
use crate::leftover::Leftover;
use crate::machine::{DiskImages, Machine, Saved as SavedMachine};
use crate::migrate::{MigrateError, Settling};
use crate::run::{Control, Gate, Request, Requests, StopReason};
use crate::state::changes::Changes;
use crate::state::records::DISKS;
use crate::state::{
    CONTAINER, Draft, Header, MAGIC, MEMORY, NamedRecord, Progress, RECORDS, REQUIRES_BASE, Records, RecordsFile,
    SnapshotError, memory,
};

/// A save that is being written.
pub(super) struct Job {
    progress: Arc<Progress>,
    /// The machine ends: nobody wants it any more.
    unwanted: Arc<AtomicBool>,
    /// Memory is still being read: nothing may change.
    reads_memory: bool,
    thread: JoinHandle<()>,
}

/// Whether and why a machine stands still.
#[derive(Default)]
pub(super) struct Standing {
    /// When it began to stand.
    pub(super) since: Option<Instant>,
    /// Somebody has paused it.
    pub(super) paused: bool,
    pub(super) job: Option<Job>,
    /// It migrates to another process.
    pub(super) leaving: Option<Leaving>,
    /// It comes from another process, which has not given it away yet.
    pub(super) arriving: Option<(Settling, Option<Leftover>)>,
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
        let saving = self.job.as_ref().is_some_and(|job| job.reads_memory);
        saving || self.arriving.is_some() || self.leaving.as_ref().is_some_and(Leaving::is_handed)
    }

    pub(super) fn status(&self) -> Status {
        let activity = match (&self.leaving, self.is_saving(), self.paused) {
            (Some(_), _, _) => Activity::Migrating,
            (None, true, _) => Activity::Saving,
            (None, false, true) => Activity::Paused,
            (None, false, false) => Activity::Running,
        };
        let job = self.job.as_ref().map(|job| &*job.progress);
        let progress = self.leaving.as_ref().map(Leaving::progress).or(job);
        let get = |read: fn(&Progress) -> u64| progress.map_or(0, read);
        Status {
            activity,
            done: get(|progress| progress.done.load(Ordering::Relaxed)),
            of: get(|progress| progress.of.load(Ordering::Relaxed)),
            migration: self.leaving.as_ref().map(Leaving::status),
        }
    }

    /// Stops everything. Answers who ended the machine meanwhile.
    pub(super) fn freeze<A: SavedMachine>(&mut self, parts: &mut Parts<'_, A>) -> Result<Option<StopReason>, Error> {
        if self.since.is_some() {
            return Ok(None);
        }
        let begin = Instant::now();
        parts.gate.close_and_wait();
        parts.machine.clock().pause();
        if let Some(reason) = stop(parts.machine, parts.control, parts.requests)? {
            return Ok(Some(reason));
        }
        self.since = Some(begin);
        Ok(None)
    }

    /// Lets everything go on, unless somebody wants it to stand. The guest's clocks have gone on, as on a host that stood still.
    pub(super) fn thaw<A: SavedMachine>(&mut self, machine: &Machine<A>) -> Duration {
        if self.paused || self.is_saving() {
            return Duration::ZERO;
        }
        let Some(since) = self.since.take() else { return Duration::ZERO };
        let stood = since.elapsed();
        machine.pass_time(nanos(stood));
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
        let ended = self.freeze(parts)?;
        if ended.is_none() {
            self.paused = true;
            reply.send(Ok(Answer::Nothing(Nothing {})));
        }
        Ok(ended)
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
        let busy = self.job.as_ref().is_some_and(|job| job.reads_memory || !job.thread.is_finished());
        if busy || self.leaving.is_some() {
            reply.send(Err(being_saved()));
            return Ok(None);
        }
        self.job = None;
        let draft = match Draft::begin(&save.folder) {
            Ok(draft) => draft,
            Err(error) => {
                reply.send(Err(error.into()));
                return Ok(None);
            }
        };
        let begin = Instant::now();
        parts.gate.close_and_wait();
        if parts.requests.is_ending() {
            let text = "the guest is about to end, or to begin anew".to_owned();
            reply.send(Err(SnapshotError::Busy(text).into()));
            return Ok(None);
        }
        if let Some(reason) = self.freeze(parts)? {
            return Ok(Some(reason));
        }
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
                unwanted: Arc::default(),
                begin,
                quit: save.quit,
                requests: parts.requests.clone(),
            };
            let (progress, unwanted) = (writer.progress.clone(), writer.unwanted.clone());
            let thread = Builder::new().name("save".to_owned());
            let (told, refused) = (reply.clone(), save.folder.clone());
            let thread = thread.spawn(move || writer.run(told)).map_err(|source| {
                let what = "start a thread for";
                SnapshotError::Host { what, path: refused, source }
            })?;
            Ok(Job { progress, unwanted, reads_memory: true, thread })
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

    /// The machine ends: a save that has not read all of its memory is given up, one that has is waited for.
    pub(super) fn end(&mut self) {
        self.refuse_arrival();
        if let Some(leaving) = &self.leaving {
            leaving.give_up();
        }
        let Some(job) = self.job.take() else { return };
        job.unwanted.store(true, Ordering::Relaxed);
        // A panic there has been reported.
        let _ = job.thread.join();
    }
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
    unwanted: Arc<AtomicBool>,
    begin: Instant,
    quit: bool,
    requests: Arc<Requests>,
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
        let (requests, quit) = (self.requests.clone(), self.quit);
        let outcome = self.write(&mut told);
        if quit && outcome.is_ok() {
            requests.send(Request::Stop(StopReason::Control));
        }
        drop(told);
        reply.send(outcome.map(Answer::Saved).map_err(Failure::from));
    }

    fn write(self, told: &mut Told) -> Result<Saved, SnapshotError> {
        let Self { draft, mut records, changes, diff, images, ram, config, progress, unwanted, begin, quit, .. } = self;
        let disks = images.flush()?;
        records.records.push(NamedRecord::new(DISKS, Record::of(&disks)));
        let bytes = records.bytes();
        draft.write(RECORDS, &bytes)?;
        let file = draft.create(MEMORY)?;
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::Interrupted => SnapshotError::Ended,
            _ => SnapshotError::Host { what: "write", path: draft.path(MEMORY), source },
        };
        let wanted = || !unwanted.load(Ordering::Relaxed);
        let differs = changes.as_ref().filter(|_| diff).and_then(|changes| changes.difference(&ram));
        let runs = differs.as_ref().map(|(_, runs)| runs.as_slice());
        let memory = memory::write(&ram, runs, &file, &progress, wanted).map_err(failed)?;
        let standstill = begin.elapsed();
        // Those of the host that a guest is to go on with are let go of.
        drop((ram, images));
        if !quit {
            told.tell();
        }
        let base = differs.map(|(origin, runs)| draft.base(&origin, &runs)).transpose()?;
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
        let finished = draft.finish(&header)?;
        if let Some(changes) = changes {
            changes.saved(finished);
        }
        let (memory, data) = (header.memory.size, header.memory.data);
        tracing::info!("saved: {data} bytes of {memory}, with the guest at a standstill for {standstill:?}");
        let elapsed_us = microseconds(begin.elapsed());
        Ok(Saved { memory, data, standstill_us: microseconds(standstill), elapsed_us })
    }
}
