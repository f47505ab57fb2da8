//! The side that the machine comes to.

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use skep_clock::nanos;
use skep_config::{ArchKind, Config};
use skep_memory::Backing;

use super::MigrateError;
use super::link::{ASKING, Heard, Link, Listener, PATIENCE};
use super::memory::Incoming;
use super::wire::{self, Hello, Kind, Session, State};
use crate::Error;
use crate::ctl::protocol::{ErrorKind, Failure};
use crate::firmware::make_of;
use crate::leftover::Leftover;
use crate::machine::{self, check_disks};
use crate::state::records::{DISKS, MACHINE};
use crate::state::{MachineState, RamRange, Records, SnapshotError};

#[cfg(test)]
#[path = "target_test.rs"]
mod test;

/// How long a target that was ready answers whether the machine runs here, after it has lost its source.
const ANSWERS_FOR: Duration = Duration::from_secs(60);

/// A machine that has come, and whose source waits for it to be ready.
pub struct Arrival {
    /// Its config, as this host has it.
    pub config: Config,
    /// Somebody had paused it.
    pub paused: bool,
    pub(crate) memory: (Arc<Backing>, Vec<RamRange>),
    pub(crate) records: Records,
    /// How long it had stood still, and when that was so.
    stood: (u64, Instant),
    link: Link,
    listener: Listener,
    session: Session,
}

/// Lets the config of a machine that comes have what this host has: files, taps, sockets.
type Adjust<'a> = &'a dyn Fn(&mut Config) -> Result<Vec<String>, Error>;
/// Whether this host could run a machine, by its config, what the guest was shown of its CPUs, and the pieces of its RAM.
type Fits<'a> = &'a dyn Fn(&Config, &skep_state::Record, &[RamRange]) -> Result<(), Error>;

impl Arrival {
    /// Waits for a source at `listener`, and takes its machine's memory and state. `adjust` answers the disks that it has given other images.
    ///
    /// # Errors
    /// What this host can't do, which the source has been told; what the source ends with.
    pub(crate) fn receive(listener: Listener, adjust: Adjust<'_>, fits: Fits<'_>) -> Result<Self, Error> {
        let (link, hello) = first(&listener)?;
        match Self::take(&link, &hello, adjust, fits) {
            Ok((config, memory, state, came)) => {
                tracing::info!("the machine has come, and stands still");
                Ok(Self {
                    config,
                    paused: state.paused,
                    memory,
                    records: state.records,
                    stood: (state.stood_nanos, came),
                    link,
                    listener,
                    session: hello.session,
                })
            }
            Err(error) => {
                refuse(&link, &error);
                Err(error)
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "the parts of an Arrival")]
    fn take(
        link: &Link,
        hello: &Hello,
        adjust: Adjust<'_>,
        fits: Fits<'_>,
    ) -> Result<(Config, (Arc<Backing>, Vec<RamRange>), State, Instant), Error> {
        let ours = |text: &str| {
            let mut config = config(text, &hello.architecture)?;
            let replaced = adjust(&mut config)?;
            config.finish()?;
            Ok::<_, Error>((config, replaced))
        };
        let (early, replaced) = ours(&hello.config)?;
        check_disks(&early, &hello.disks, &replaced, true)?;
        let ram = hello.ram();
        fits(&early, &hello.cpus, &ram)?;
        let backing = Arc::new(machine::take_ram(&early)?);
        let incoming = Incoming::new(backing, &ram)?;
        tracing::info!("a machine of {} comes, from skep {}", early.memory.size, hello.skep);
        wire::send(link, Kind::Accept, &[])?;
        let mut payload = Vec::new();
        loop {
            let (kind, length) = wire::head(link)?;
            if matches!(kind, Kind::Pages | Kind::Zeroes) {
                incoming.take(kind, length, &mut &*link)?;
                continue;
            }
            wire::body(link, length, &mut payload)?;
            match kind {
                Kind::State => break,
                Kind::Refused => return Err(wire::refused(&payload).into()),
                kind => return Err(wire::unexpected(kind).into()),
            }
        }
        let came = Instant::now();
        let state = State::open(&payload)?;
        state.records.are_apart()?;
        let own: MachineState = state.records.open(MACHINE)?;
        // What was plugged in meanwhile has come, too.
        let (config, replaced) = ours(&own.config)?;
        check_disks(&config, &state.records.open(DISKS)?, &replaced, true)?;
        Ok((config, (incoming.backing, ram), state, came))
    }

    /// How long the machine has stood still, in nanoseconds.
    pub(crate) fn stood(&self) -> u64 {
        let (before, came) = self.stood;
        before.saturating_add(nanos(came.elapsed()))
    }

    /// Makes the file of the firmware's variables, with what they are, where it is not there.
    pub(crate) fn make_variables(&self) -> Result<Option<Leftover>, Error> {
        match &self.config.boot.firmware_vars {
            Some(vars) if !vars.file.exists() => make_of(&vars.file, &self.records).map(Some),
            _ => Ok(None),
        }
    }

    /// Tells the source why the machine can't be made here.
    pub(crate) fn refuse(&self, error: &Error) {
        refuse(&self.link, error);
    }

    /// Tells the source that the machine is ready, by a thread that calls `tell` when the source has said to go (`true`), or when it never will.
    pub(crate) fn settle(self, tell: impl FnOnce(bool) + Send + 'static) -> Result<Settling, Error> {
        let Self { link, listener, session, .. } = self;
        Settling::begin(link, listener, session, tell)
            .map_err(|source| Error::Thread { what: "a thread that talks with the source", source })
    }
}

/// Tells the source why the machine can't come, as the control socket would.
fn refuse(link: &Link, error: &Error) {
    wire::refuse(link, &Failure::of(ErrorKind::Failed, error).to_string());
}

fn config(text: &str, architecture: &str) -> Result<Config, Error> {
    let reason = |reason: String| SnapshotError::Records { reason };
    let arch = architecture.parse::<ArchKind>().map_err(reason)?;
    let read = Config::from_toml(text, std::path::Path::new("the source's config"), arch);
    Ok(read.map_err(|error| reason(format!("its config: {error}")))?)
}

/// The first source that comes. Who is none is sent away.
fn first(listener: &Listener) -> Result<(Link, Hello), Error> {
    let host = |source| MigrateError::Host { what: "listen at", address: "its socket".to_owned(), source };
    loop {
        listener.wait(None, None).map_err(host)?;
        let Some(link) = listener.accept().map_err(host)? else { continue };
        let hello = hello(link.until(Instant::now() + ASKING));
        match hello.and_then(|hello| link.be_patient(Some(PATIENCE)).map(|()| hello)) {
            Ok(hello) => return Ok((link, hello)),
            Err(error) => {
                tracing::warn!("a connection that is no machine's: {error}");
                wire::refuse(&link, &error.to_string());
            }
        }
    }
}

/// What every version's hello has.
#[derive(minicbor::Decode)]
#[cbor(map)]
struct Front {
    #[n(0)]
    protocol: u32,
    #[n(1)]
    skep: String,
    #[n(2)]
    requires: Vec<String>,
}

fn hello(link: impl Read) -> Result<Hello, MigrateError> {
    let mut payload = Vec::new();
    wire::expect(link, Kind::Hello, &mut payload)?;
    let Front { protocol, skep, requires } = wire::decode(&payload)?;
    if protocol > wire::VERSION {
        return Err(MigrateError::Version { found: protocol, newest: wire::VERSION, skep });
    }
    if let Some(name) = requires.into_iter().next() {
        return Err(MigrateError::Requires { name, skep });
    }
    wire::decode(&payload)
}

/// How long a process that ends waits for a source that asks whose the machine is: one that lives does so several times a second.
const LINGERS: Duration = Duration::from_secs(2);
/// How long one that asks may take to do so. Less: a stranger does not take all of that time.
const QUESTION: Duration = Duration::from_secs(1);

/// The last word between a target that is ready and its source.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// There was none.
    #[default]
    None,
    /// The source has given the machine away.
    Given,
    /// The source is lost.
    Lost,
    /// The source is told that the machine can't come: what it says meanwhile is of no use.
    Refused,
}

/// Who has it first, the thread or the control thread.
#[derive(Default)]
struct Word(Mutex<Last>);

impl Word {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says `last`, unless the source was refused: answers whether that is so.
    fn says(&self, last: Last) -> bool {
        let mut word = self.lock();
        if *word == Last::None {
            *word = last;
        }
        *word == last
    }
}

/// The control thread's end of a thread that talks with the source. Dropped before anything is decided, it refuses.
pub(crate) struct Settling {
    decide: Sender<Result<(), String>>,
    word: Arc<Word>,
    link: Link,
    /// Nothing comes; it ends with the thread. Taken once it is decided.
    ended: Option<Receiver<()>>,
}

impl Settling {
    fn begin(
        link: Link,
        listener: Listener,
        session: Session,
        tell: impl FnOnce(bool) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (decide, decided) = channel();
        let (end, ended) = channel();
        let (word, other) = (Arc::<Word>::default(), link.try_clone()?);
        let settle = Settle { link, listener, session, decided, word: word.clone() };
        let run = move || {
            let _end = end;
            settle.run(tell);
        };
        thread::Builder::new().name("migrate".to_owned()).spawn(run)?;
        Ok(Self { decide, word, link: other, ended: Some(ended) })
    }

    /// The machine runs from here on.
    pub(crate) fn accept(mut self) -> Settled {
        // The thread waits for it.
        let _ = self.decide.send(Ok(()));
        Settled(self.ended.take())
    }

    /// It can't: the source hears of it before this returns, also if its word that the machine is given away is still on its way.
    pub(crate) fn refuse(mut self, reason: String) {
        self.refuse_once(reason);
    }

    fn refuse_once(&mut self, reason: String) {
        let Some(ended) = self.ended.take() else { return };
        let mut word = self.word.lock();
        match *word {
            Last::None => {
                *word = Last::Refused;
                wire::refuse(&self.link, &reason);
                drop(word);
            }
            Last::Given => {
                drop(word);
                let _ = self.decide.send(Err(reason));
            }
            Last::Lost | Last::Refused => drop(word),
        }
        // A source that lives asks, where it has not heard it.
        let _ = ended.recv_timeout(LINGERS);
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.refuse_once("the process that it was to come to fails".to_owned());
    }
}

/// A machine that runs here, of which its source may not have heard yet. As the process ends, whatever ends it, this waits for a while until it has.
pub(crate) struct Settled(Option<Receiver<()>>);

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(ended) = &self.0 {
            let _ = ended.recv_timeout(LINGERS);
        }
    }
}

struct Settle {
    link: Link,
    listener: Listener,
    session: Session,
    decided: Receiver<Result<(), String>>,
    word: Arc<Word>,
}

impl Settle {
    fn run(self, tell: impl FnOnce(bool)) {
        let mut payload = Vec::new();
        let ready = wire::send(&self.link, Kind::Ready, &[]);
        let go = if ready.is_ok() { self.hears_go(&mut payload) } else { Heard::Nobody };
        match go {
            Heard::Link => {}
            // The source knows.
            Heard::Newcomer => return tell(false),
            // It may have told us to go, and not know that we have not heard it.
            Heard::Nobody => {
                self.word.says(Last::Lost);
                self.link.hang_up();
                self.answer(false, &mut payload);
                return tell(false);
            }
        }
        if !self.word.says(Last::Given) {
            // The two words have crossed: a source that has not heard ours asks, and one that has says so in the same way.
            return self.answer(false, &mut payload);
        }
        tell(true);
        match self.decided.recv() {
            Ok(Ok(())) => {
                let told = wire::send(&self.link, Kind::Running, &[]);
                match told.and_then(|()| wire::expect(&self.link, Kind::Accept, &mut payload)) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::debug!("the source may not have heard that the machine runs: {error}");
                        self.link.hang_up();
                        self.answer(true, &mut payload);
                    }
                }
            }
            refused => {
                let reason = refused.unwrap_or_else(|_| Err("the process ends".to_owned()));
                wire::refuse(&self.link, &reason.err().unwrap_or_default());
                self.answer(false, &mut payload);
            }
        }
    }

    /// Waits for the source to say that the machine is ours ([`Heard::Link`]). One that asks anew has lost this connection, and is told that it is not
    /// ([`Heard::Newcomer`]).
    fn hears_go(&self, payload: &mut Vec<u8>) -> Heard {
        loop {
            match self.listener.wait(Some(&self.link), Some(Instant::now() + ANSWERS_FOR)) {
                Ok(Heard::Link) => {
                    return match wire::expect(&self.link, Kind::Go, payload) {
                        Ok(()) => Heard::Link,
                        Err(error) => {
                            tracing::error!("the source is lost, which has not given the machine away: {error}");
                            Heard::Nobody
                        }
                    };
                }
                Ok(Heard::Newcomer) => {
                    if let Some(heard) = self.reply(false, payload) {
                        self.link.hang_up();
                        return if heard { Heard::Newcomer } else { Heard::Nobody };
                    }
                }
                Ok(Heard::Nobody) | Err(_) => return Heard::Nobody,
            }
        }
    }

    /// Answers a newcomer that is the source, and says whether it has heard. Nobody else is answered.
    fn reply(&self, runs: bool, payload: &mut Vec<u8>) -> Option<bool> {
        let link = self.listener.accept().ok().flatten()?;
        // Who sends a byte now and then does not keep the source from being heard.
        let end = Instant::now() + QUESTION;
        let asked =
            wire::expect(link.until(end), Kind::Ask, payload).is_ok() && payload.as_slice() == self.session.as_slice();
        let mut answer = || {
            wire::send(&link, Kind::Answer, &[&[u8::from(runs)]])?;
            wire::expect(link.until(end), Kind::Accept, payload)
        };
        asked.then(|| answer().is_ok())
    }

    /// Answers the source that asks: for a while, or as long as the machine runs.
    fn answer(&self, runs: bool, payload: &mut Vec<u8>) {
        let end = (!runs).then(|| Instant::now() + ANSWERS_FOR);
        while let Ok(Heard::Newcomer) = self.listener.wait(None, end) {
            if self.reply(runs, payload) == Some(true) {
                return;
            }
        }
    }
}
