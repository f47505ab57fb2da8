//! The side that the machine leaves: a thread that sends it, while the control thread goes on.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use skep_clock::nanos;
use skep_memory::{DirtyLog, PAGE_SIZE, Region};
use skep_state::Record;

use super::link::{ASKING, Address, Link, PATIENCE};
use super::wire::{self, Hello, Kind, State};
use super::{MigrateError, memory};
use crate::machine::{DiskImages, WeakImage};
use crate::state::changes::{self, Bits};
use crate::state::records::DISKS;
use crate::state::{NamedRecord, Progress, Records, SnapshotError, Wanted, Why};

#[cfg(test)]
#[path = "source_test.rs"]
mod test;

/// How long a source waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// What a connection is thought to carry in a second before anything is known, in bytes.
const FIRST_GUESS: u64 = 100 << 20;
/// Pages that are sent without asking how long it takes.
const FEW: u64 = 256;

/// What so many bytes in such a time are in a second.
fn per_second(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// A machine that has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of RAM.
    pub memory: u64,
    /// Bytes of RAM that were sent.
    pub sent: u64,
    /// How often RAM was gone through while the guest ran.
    pub rounds: u32,
    /// How long the guest stood still.
    pub standstill: Duration,
    /// How long all of it took.
    pub elapsed: Duration,
}

/// What is to be sent, and how.
pub(crate) struct Plan {
    pub(crate) to: Address,
    pub(crate) downtime: Duration,
    pub(crate) hello: Hello,
    pub(crate) images: Vec<WeakImage>,
    pub(crate) ram: Vec<Arc<Region>>,
    pub(crate) log: Arc<DirtyLog>,
}

/// A machine that stands still for the sake of this.
pub(crate) struct Handed {
    pub(crate) records: Records,
    pub(crate) images: DiskImages,
    /// Since when the guest stands still.
    pub(crate) begin: Instant,
    /// Since when its clocks do, as its records have them.
    pub(crate) since: Instant,
    pub(crate) paused: bool,
}

/// Whose the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// The source's.
    Sending,
    /// The source's: nothing more is sent.
    Cancelled,
    /// The target has been told that it is the target's.
    Committed,
    /// The same, and nobody answers.
    Asking,
    /// The source's: the target has said so.
    Kept,
    /// The source's: the user has decided so.
    TakenBack,
    /// Nobody's any more here: the process ends.
    GivenUp,
    /// The target's.
    Gone,
}

/// What the sending thread shares with the control thread.
#[derive(Default)]
pub(crate) struct Shared {
    stage: AtomicU8,
    pub(crate) progress: Progress,
    pub(crate) rounds: AtomicU32,
    /// Bytes of RAM that were sent.
    pub(crate) sent: AtomicU64,
    /// When sending began.
    since: OnceLock<Instant>,
    link: OnceLock<Link>,
    /// Given up where the source keeps its machine.
    wanted: Wanted,
    /// Whose locks were given away.
    images: Mutex<Option<DiskImages>>,
}

impl Shared {
    fn move_on(&self, from: Stage, to: Stage) -> bool {
        self.stage.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether somebody has given it up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.is(Stage::Cancelled)
    }

    fn is(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) == stage as u8
    }

    fn images(&self) -> MutexGuard<'_, Option<DiskImages>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of RAM that have been sent in a second, so far.
    pub(crate) fn rate(&self) -> u64 {
        self.since.get().map_or(0, |since| per_second(self.sent.load(Ordering::Relaxed), since.elapsed()))
    }

    /// Takes the locks of the images again.
    fn hold(&self) -> Result<(), MigrateError> {
        self.images().as_ref().map_or(Ok(()), DiskImages::take).map_err(MigrateError::Stranded)
    }

    /// The process ends: nothing is sent any more, and no image kept.
    pub(crate) fn give_up(&self) {
        if !self.cancel()
            && (self.move_on(Stage::Committed, Stage::GivenUp) || self.move_on(Stage::Asking, Stage::GivenUp))
        {
            *self.images() = None;
        }
    }

    /// Ends it, as long as the machine is the source's. Says whether it is.
    pub(crate) fn cancel(&self) -> bool {
        let cancelled = self.move_on(Stage::Sending, Stage::Cancelled);
        if cancelled {
            // The guest stands still for the images' sake, perhaps, or nobody answers.
            self.wanted.give_up(Why::Cancelled);
            self.link.get().into_iter().for_each(Link::hang_up);
        }
        cancelled || self.is(Stage::Cancelled)
    }

    /// The target has been told to go, and nobody says whether it does.
    pub(crate) fn is_unknown(&self) -> bool {
        self.is(Stage::Asking)
    }

    /// Takes a machine back of which nobody says whose it is, where its disks are not another's.
    ///
    /// # Errors
    /// [`MigrateError::Stranded`] where somebody else has an image; [`MigrateError::Lost`] where an answer has come at this moment: the other thread goes by that.
    pub(crate) fn take_back(&self) -> Result<(), MigrateError> {
        self.hold()?;
        if self.move_on(Stage::Asking, Stage::TakenBack) {
            return Ok(());
        }
        let text = "the other side has answered at this moment, whose machine it is\n  try: `skep ctl SOCKET status`";
        Err(MigrateError::Lost(io::Error::other(text)))
    }
}

/// A migration under way, for the control thread.
pub(crate) struct Outgoing {
    pub(crate) shared: Arc<Shared>,
    hand: Sender<Result<Handed, SnapshotError>>,
    outcome: Receiver<Result<Moved, MigrateError>>,
}

impl Outgoing {
    /// Begins. `stop` asks the control thread for the machine at a standstill ([`Outgoing::hand`]), `ended` tells it to look at [`Outgoing::outcome`].
    pub(crate) fn begin(
        plan: Plan,
        stop: impl FnOnce() + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self, MigrateError> {
        let shared = Arc::<Shared>::default();
        let (hand, handed) = channel();
        let (tell, outcome) = channel();
        let worker =
            Worker { shared: shared.clone(), plan, handed, begin: Instant::now(), buffer: Vec::new(), waits: false };
        let thread = thread::Builder::new().name("migrate".to_owned());
        let run = move || {
            let mut worker = worker;
            let outcome = worker.run(stop);
            let stays = outcome.is_err();
            // The control thread may have given it up.
            let _ = tell.send(outcome);
            ended();
            if stays && worker.waits {
                worker.relieve();
            }
        };
        let what = "start a thread for the migration to";
        thread.spawn(run).map_err(MigrateError::host(what, &"another skep"))?;
        Ok(Self { shared, hand, outcome })
    }

    /// Hands the machine over, or says why it can't be.
    pub(crate) fn hand(&self, handed: Result<Handed, SnapshotError>) {
        // A thread that has ended has said why.
        let _ = self.hand.send(handed);
    }

    /// What has come of it.
    pub(crate) fn outcome(&self) -> Result<Moved, MigrateError> {
        self.outcome.recv().unwrap_or(Err(MigrateError::Ended))
    }
}

struct Worker {
    shared: Arc<Shared>,
    plan: Plan,
    handed: Receiver<Result<Handed, SnapshotError>>,
    begin: Instant,
    buffer: Vec<u8>,
    /// The target may wait for a word of what has become of the machine.
    waits: bool,
}

impl Worker {
    fn run(&mut self, stop: impl FnOnce()) -> Result<Moved, MigrateError> {
        // What breaks because of that is told as that.
        self.go(stop).map_err(|error| if self.shared.is(Stage::Cancelled) { MigrateError::Cancelled } else { error })
    }

    fn go(&mut self, stop: impl FnOnce()) -> Result<Moved, MigrateError> {
        let log = self.plan.log.clone();
        let link = Link::connect(&self.plan.to)?;
        if let Ok(other) = link.try_clone() {
            let _ = self.shared.link.set(other);
        }
        if self.shared.is(Stage::Cancelled) {
            link.hang_up();
            return Err(MigrateError::Cancelled);
        }
        wire::send(&link, Kind::Hello, &[&wire::encode(&self.plan.hello)])?;
        // It takes its memory first, which may be long; who waits can cancel it.
        link.be_patient(None)?;
        self.expect(&link, Kind::Accept)?;
        link.be_patient(Some(PATIENCE))?;
        let consumer = log.subscribe("migration").map_err(SnapshotError::DirtyLog)?;
        let mut take = || log.take(consumer).map_err(|error| SnapshotError::DirtyLog(error).into());
        let outcome = self.send(&link, &mut take, stop);
        if let Err(error) = log.unsubscribe(consumer) {
            tracing::warn!("{error}");
        }
        link.hang_up();
        outcome
    }

    fn expect(&mut self, link: &Link, kind: Kind) -> Result<(), MigrateError> {
        wire::expect(link, kind, &mut self.buffer)
    }

    /// All of it, from the first page to the answer that the machine runs there.
    fn send(
        &mut self,
        link: &Link,
        take: &mut dyn FnMut() -> Result<Vec<(u64, Vec<u64>)>, MigrateError>,
        stop: impl FnOnce(),
    ) -> Result<Moved, MigrateError> {
        let ram = self.plan.ram.clone();
        let mut changed = self.send_while_it_runs(link, take, &ram)?;
        if self.shared.is(Stage::Cancelled) {
            return Err(MigrateError::Cancelled);
        }
        // What has to reach the medium while the guest stands still is little then.
        DiskImages::flush_early(std::mem::take(&mut self.plan.images), &self.shared.wanted)?;
        stop();
        let Handed { mut records, images, begin, since, paused } =
            self.handed.recv().unwrap_or(Err(SnapshotError::Ended))?;
        changes::merge(&mut changed, take()?);
        let disks = images.flush_while(&self.shared.wanted)?;
        records.records.push(NamedRecord::new(DISKS, Record::of(&disks)));
        self.pages(link, &ram, Some(changes::runs(&changed, &ram)))?;
        let stood_nanos = nanos(since.elapsed());
        self.waits = true;
        wire::send(link, Kind::State, &[&wire::encode(&State { records, stood_nanos, paused })])?;
        self.expect(link, Kind::Ready)?;
        self.commit(link, images)?;
        Ok(Moved {
            memory: ram.iter().map(|region| region.size()).sum(),
            sent: self.shared.sent.load(Ordering::Relaxed),
            rounds: self.shared.rounds.load(Ordering::Relaxed),
            standstill: begin.elapsed(),
            elapsed: self.begin.elapsed(),
        })
    }

    /// Sends RAM, and what is written meanwhile, until the rest is small. Answers the rest.
    fn send_while_it_runs(
        &mut self,
        link: &Link,
        take: &mut dyn FnMut() -> Result<Vec<(u64, Vec<u64>)>, MigrateError>,
        ram: &[Arc<Region>],
    ) -> Result<Bits, MigrateError> {
        let mut runs = None;
        let mut rate = FIRST_GUESS;
        let _ = self.shared.since.set(Instant::now());
        loop {
            let begin = Instant::now();
            let sent = self.pages(link, ram, runs)?;
            self.shared.rounds.fetch_add(1, Ordering::Relaxed);
            // What is little is in the socket's buffer at once, and says nothing.
            if sent >= FEW * PAGE_SIZE {
                rate = per_second(sent, begin.elapsed()).max(1);
            }
            let mut changed = Bits::new();
            changes::merge(&mut changed, take()?);
            let next = changes::runs(&changed, ram);
            let pages: u64 = next.iter().map(|run| run.end - run.start).sum();
            let nanos = u128::from(pages) * u128::from(PAGE_SIZE) * 1_000_000_000 / u128::from(rate);
            if pages <= FEW || nanos <= self.plan.downtime.as_nanos() {
                return Ok(changed);
            }
            runs = Some(next);
        }
    }

    fn pages(&self, link: &Link, ram: &[Arc<Region>], runs: Option<changes::Runs>) -> Result<u64, MigrateError> {
        memory::send(ram, runs.as_deref(), &mut &*link, &self.shared.progress, &self.shared.sent)
    }

    /// Gives the machine away. What fails leaves it here, for certain.
    fn commit(&mut self, link: &Link, images: DiskImages) -> Result<(), MigrateError> {
        if !self.shared.move_on(Stage::Sending, Stage::Committed) {
            return Err(MigrateError::Cancelled);
        }
        images.hold(false).map_err(MigrateError::Stranded)?;
        *self.shared.images() = Some(images);
        let answer = wire::send(link, Kind::Go, &[]).and_then(|()| self.expect(link, Kind::Running));
        let refused = match answer {
            Ok(()) => {
                self.waits = false;
                // Who does not hear that it was heard waits for a question, and ends by itself.
                let _ = wire::send(link, Kind::Accept, &[]);
                return Ok(());
            }
            Err(error @ MigrateError::Refused(_)) => error,
            Err(error) => {
                link.hang_up();
                match self.ask(&error) {
                    Answer::Runs => return Ok(()),
                    Answer::Never => error,
                    // Its images are held already.
                    Answer::Decided => return Err(MigrateError::TakenBack),
                }
            }
        };
        self.shared.hold()?;
        Err(refused)
    }

    /// Asks the target whether it runs, until somebody says so.
    fn ask(&mut self, error: &MigrateError) -> Answer {
        tracing::warn!("{error}: asking {} whether the machine runs there", self.plan.to);
        let begin = Instant::now();
        loop {
            if let Ok(answer) = self.ask_once() {
                self.waits = false;
                let stage = if answer == Answer::Runs { Stage::Gone } else { Stage::Kept };
                let known = self.shared.move_on(Stage::Committed, stage) || self.shared.move_on(Stage::Asking, stage);
                // The guest stands still until this has ended: what runs there wins over a word that came too late.
                return if known || answer == Answer::Runs { answer } else { Answer::Decided };
            }
            if begin.elapsed() > ASKING && self.shared.move_on(Stage::Committed, Stage::Asking) {
                tracing::error!(
                    "nobody at {} says whether the machine runs there: it stands still here\n  \
                     try: `skep ctl SOCKET resume` if you know that it does not, or `quit` if it does",
                    self.plan.to
                );
            }
            if self.shared.is(Stage::TakenBack) || self.shared.is(Stage::GivenUp) {
                return Answer::Decided;
            }
            thread::sleep(ASK_AGAIN);
        }
    }

    fn ask_once(&mut self) -> Result<Answer, MigrateError> {
        let link = Link::connect(&self.plan.to)?;
        link.be_patient(Some(ASKING))?;
        wire::send(&link, Kind::Ask, &[&self.plan.hello.session])?;
        self.expect(&link, Kind::Answer)?;
        let runs = self.buffer == [1];
        // Who does not hear that it was heard is asked no more, and ends by itself.
        let _ = wire::send(&link, Kind::Accept, &[]);
        Ok(if runs { Answer::Runs } else { Answer::Never })
    }

    /// Lets a target go that waits to hear whether the machine is its own, which stays here.
    fn relieve(&mut self) {
        if let Err(error) = self.ask_once() {
            tracing::debug!("the target does not hear that the machine stays here: {error}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Runs,
    Never,
    /// The user has answered.
    Decided,
}
