//! The controller's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use crate::admin::{EVENT_MASK, Event};
use crate::config::ControllerConfig;
use crate::namespace;
use crate::spec::register::{Configuration, MAX_ADMIN_ENTRIES, MAX_ENTRIES};

/// A submission queue.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SubmissionQueueState {
    /// Its number.
    #[n(0)]
    pub id: u16,
    /// Its completion queue's number.
    #[n(1)]
    pub completion: u16,
    /// Where it is in guest memory.
    #[n(2)]
    pub base: u64,
    /// How many entries it has.
    #[n(3)]
    pub entries: u32,
    /// The next command to take.
    #[n(4)]
    pub head: u32,
    /// What the guest has last written to its doorbell.
    #[n(5)]
    pub tail: u32,
}

/// A completion queue.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CompletionQueueState {
    /// Its number.
    #[n(0)]
    pub id: u16,
    /// Where it is in guest memory.
    #[n(1)]
    pub base: u64,
    /// How many entries it has.
    #[n(2)]
    pub entries: u32,
    /// The first entry that the guest has not taken.
    #[n(3)]
    pub head: u32,
    /// The next entry to post.
    #[n(4)]
    pub tail: u32,
    /// The phase tag of the next entry.
    #[n(5)]
    pub phase: bool,
    /// Its interrupt vector, if it interrupts.
    #[n(6)]
    pub vector: Option<u16>,
}

/// A completion queue with its submission queues: nothing is in flight.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct UnitState {
    /// The completion queue.
    #[n(0)]
    pub completion: CompletionQueueState,
    /// Its submission queues.
    #[n(1)]
    pub submission: Vec<SubmissionQueueState>,
}

/// Features that the guest has set.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FeaturesState {
    /// Arbitration. Any value.
    #[n(0)]
    pub arbitration: u32,
    /// The power state that was asked for.
    #[n(1)]
    pub power_state: u8,
    /// The last operational power state that was asked for.
    #[n(2)]
    pub operational: u8,
    /// Over temperature threshold in kelvins. Any value.
    #[n(3)]
    pub over_temperature: u16,
    /// Under temperature threshold in kelvins. Any value.
    #[n(4)]
    pub under_temperature: u16,
    /// Error recovery.
    #[n(5)]
    pub error_recovery: u32,
    /// The volatile write cache is on.
    #[n(6)]
    pub write_cache: bool,
    /// Interrupt coalescing.
    #[n(7)]
    pub coalescing: u32,
    /// The vectors for which coalescing is off.
    #[n(8)]
    pub uncoalesced: Vec<u16>,
    /// Write atomicity.
    #[n(9)]
    pub write_atomicity: u32,
    /// Asynchronous event configuration.
    #[n(10)]
    pub events: u32,
    /// Keep alive timeout in milliseconds; 0 for none. Any value.
    #[n(11)]
    pub keep_alive: u32,
    /// The timestamp less guest time, in milliseconds.
    #[n(12)]
    pub timestamp: i64,
    /// The guest has set the timestamp.
    #[n(13)]
    pub timestamp_set: bool,
    /// Power states are left by themselves.
    #[n(14)]
    #[cbor(default)]
    pub autonomous: bool,
    /// Which follows each power state, and when: the entries' first dwords, or nothing for none.
    #[n(15)]
    #[cbor(default)]
    pub transitions: Vec<u32>,
}

/// Counters of the SMART log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct HealthState {
    /// Sectors of 512 bytes read.
    #[n(0)]
    pub sectors_read: u64,
    /// Sectors of 512 bytes written.
    #[n(1)]
    pub sectors_written: u64,
    /// Read commands (with compare and verify).
    #[n(2)]
    pub reads: u64,
    /// Write commands.
    #[n(3)]
    pub writes: u64,
    /// Nanoseconds in which commands were in flight.
    #[n(4)]
    pub busy: u64,
    /// Times that it was powered on.
    #[n(5)]
    pub power_cycles: u64,
    /// Times that it was reset without a shutdown.
    #[n(6)]
    pub unsafe_shutdowns: u64,
    /// Errors of the medium.
    #[n(7)]
    pub media_errors: u64,
    /// Entries that the error log has ever had.
    #[n(8)]
    pub errors: u64,
    /// Nanoseconds of power that ended with the state that this one was restored from.
    #[n(9)]
    pub powered: u64,
}

/// An entry of the error log (Base 5.16.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ErrorState {
    /// Its number, from 1 on.
    #[n(0)]
    pub number: u64,
    /// The submission queue.
    #[n(1)]
    pub queue: u16,
    /// The command. Any value.
    #[n(2)]
    pub command: u16,
    /// The status, without phase tag.
    #[n(3)]
    pub status: u16,
    /// The logical block. Any value.
    #[n(4)]
    pub block: u64,
    /// The namespace. Any value.
    #[n(5)]
    pub namespace: u32,
}

/// Where shadow doorbells are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ShadowState {
    /// The page of doorbells.
    #[n(0)]
    pub doorbells: u64,
    /// The page of event indexes.
    #[n(1)]
    pub events: u64,
}

/// A controller, while nothing is in flight.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ControllerState {
    /// Controller Configuration.
    #[n(0)]
    pub configuration: u32,
    /// Controller Status.
    #[n(1)]
    pub status: u32,
    /// Admin Queue Attributes. Any value.
    #[n(2)]
    pub admin_attributes: u32,
    /// Admin Submission Queue Base Address, looked at when the controller is enabled. Any value.
    #[n(3)]
    pub admin_submission_base: u64,
    /// Admin Completion Queue Base Address, looked at when the controller is enabled. Any value.
    #[n(4)]
    pub admin_completion_base: u64,
    /// Interrupt mask. Any value.
    #[n(5)]
    pub interrupt_mask: u32,
    /// The admin queues, while the controller is enabled.
    #[n(6)]
    pub admin: Option<UnitState>,
    /// The I/O queues.
    #[n(7)]
    pub units: Vec<UnitState>,
    /// Shadow doorbells, if the guest uses them.
    #[n(8)]
    pub shadow: Option<ShadowState>,
    /// Features.
    #[n(9)]
    pub features: FeaturesState,
    /// Asynchronous event requests that wait, by their command ids.
    #[n(10)]
    pub event_requests: Vec<u16>,
    /// Events that wait for a request, as their completion's dword 0.
    #[n(11)]
    pub events: Vec<u32>,
    /// Event types that wait for their log to be read, one bit each. Any value.
    #[n(12)]
    pub events_masked: u8,
    /// Namespaces that have changed since the guest last asked.
    #[n(13)]
    pub changed: Vec<u32>,
    /// SMART counters.
    #[n(14)]
    pub health: HealthState,
    /// The error log, the newest entry first.
    #[n(15)]
    pub errors: Vec<ErrorState>,
    /// Nanoseconds until the keep alive timeout. Absent where there is none, and in states of before it was saved: it begins anew then.
    #[n(16)]
    pub alive: Option<u64>,
}

/// The last timestamp, in milliseconds.
pub(crate) const LAST_TIMESTAMP: i64 = (1 << 50) - 1;
/// Entries of the error log.
pub(crate) const ERRORS: usize = 64;
/// Asynchronous event requests that wait at most.
pub(crate) const EVENT_REQUESTS: usize = 4;
/// Events that wait at most; there are fewer kinds.
pub(crate) const EVENTS: usize = 16;

/// The rule of a queue's base.
fn is_base(base: u64) -> bool {
    base & 0xfff == 0 && base < 1 << 63
}

fn check_submission(queue: &SubmissionQueueState, most: u32) -> Result<(), StateError> {
    const ID: &str = ControllerState::ID;
    let (id, entries, head, tail, base) = (queue.id, queue.entries, queue.head, queue.tail, queue.base);
    ensure(id <= ControllerConfig::MOST_QUEUES, ID, "submission.id", id, "there are no more queues")?;
    let sized = (2..=most).contains(&entries);
    ensure(sized, ID, "submission.entries", entries, "a queue has two at least, and no more than its register says")?;
    ensure(head < entries, ID, "submission.head", head, "it is an index of the queue")?;
    ensure(tail < entries, ID, "submission.tail", tail, "it is an index of the queue")?;
    ensure(is_base(base), ID, "submission.base", base, "a queue begins at a page and does not wrap around")
}

fn check_unit(unit: &UnitState, most: u32) -> Result<(), StateError> {
    const ID: &str = ControllerState::ID;
    let CompletionQueueState { id, base, entries, head, tail, phase: _, vector } = unit.completion;
    ensure(id <= ControllerConfig::MOST_QUEUES, ID, "completion.id", id, "there are no more queues")?;
    let sized = (2..=most).contains(&entries);
    ensure(sized, ID, "completion.entries", entries, "a queue has two at least, and no more than its register says")?;
    ensure(head < entries, ID, "completion.head", head, "it is an index of the queue")?;
    ensure(tail < entries, ID, "completion.tail", tail, "it is an index of the queue")?;
    ensure(is_base(base), ID, "completion.base", base, "a queue begins at a page and does not wrap around")?;
    let known = vector.is_none_or(|vector| vector <= ControllerConfig::MOST_QUEUES);
    ensure(known, ID, "completion.vector", vector, "there is one for each queue")?;
    for queue in &unit.submission {
        check_submission(queue, most)?;
        let own = queue.completion;
        ensure(own == id, ID, "submission.completion", own, "it is the queue of its unit")?;
    }
    Ok(())
}

impl FeaturesState {
    fn check(&self) -> Result<(), StateError> {
        const ID: &str = ControllerState::ID;
        let asked = self.power_state;
        ensure(asked < 32, ID, "features.power_state", asked, "there are 32 at most")?;
        let asked = self.operational;
        ensure(asked < 32, ID, "features.operational", asked, "there are 32 at most")?;
        let value = self.error_recovery;
        ensure(value & 1 << 16 == 0, ID, "features.error_recovery", value, "deallocated blocks never fail to be read")?;
        ensure(self.coalescing <= 0xffff, ID, "features.coalescing", self.coalescing, "it has 16 bits")?;
        let vectors = &self.uncoalesced;
        ensure(
            vectors.iter().enumerate().all(|(at, vector)| {
                *vector <= ControllerConfig::MOST_QUEUES && !vectors.iter().take(at).any(|other| other == vector)
            }),
            ID,
            "features.uncoalesced",
            vectors.len(),
            "each vector stands there once",
        )?;
        ensure(self.write_atomicity <= 1, ID, "features.write_atomicity", self.write_atomicity, "it has one bit")?;
        ensure(self.events & !EVENT_MASK == 0, ID, "features.events", self.events, "there are no other events")?;
        let time = self.timestamp;
        ensure(
            (0..=LAST_TIMESTAMP).contains(&time),
            ID,
            "features.timestamp",
            time,
            "it has 48 bits, and goes on from there for less than 30,000 years",
        )?;
        let count = self.transitions.len();
        ensure(matches!(count, 0 | 32), ID, "features.transitions", count, "there is one for each power state")?;
        let reserved = self.transitions.iter().find(|entry| *entry & 7 != 0);
        ensure(reserved.is_none(), ID, "features.transitions", reserved, "bits 2:0 of an entry are not kept")
    }
}

impl HealthState {
    /// What a counter reaches, and stays at: ten commands in each nanosecond for years.
    pub(crate) const MOST: u64 = 1 << 62;

    /// Each counter where it stays.
    pub(crate) fn bounded(mut self) -> Self {
        let Self { sectors_read, sectors_written, reads, writes, busy, .. } = &mut self;
        [sectors_read, sectors_written, reads, writes, busy].into_iter().for_each(|one| *one = (*one).min(Self::MOST));
        let Self { power_cycles, unsafe_shutdowns, media_errors, errors, powered, .. } = &mut self;
        let more = [power_cycles, unsafe_shutdowns, media_errors, errors, powered];
        more.into_iter().for_each(|one| *one = (*one).min(Self::MOST));
        self
    }

    fn check(&self) -> Result<(), StateError> {
        const ID: &str = ControllerState::ID;
        const MOST: u64 = HealthState::MOST;
        let value = self.sectors_read;
        ensure(value <= MOST, ID, "health.sectors_read", value, "no controller has read so much")?;
        let value = self.sectors_written;
        ensure(value <= MOST, ID, "health.sectors_written", value, "no controller has written so much")?;
        ensure(self.reads <= MOST, ID, "health.reads", self.reads, "no controller has done so many")?;
        ensure(self.writes <= MOST, ID, "health.writes", self.writes, "no controller has done so many")?;
        ensure(self.busy <= MOST, ID, "health.busy", self.busy, "nothing runs for centuries")?;
        let value = self.power_cycles;
        ensure(value <= MOST, ID, "health.power_cycles", value, "nothing is powered on so often")?;
        let value = self.unsafe_shutdowns;
        ensure(value <= MOST, ID, "health.unsafe_shutdowns", value, "nothing is reset so often")?;
        ensure(self.media_errors <= MOST, ID, "health.media_errors", self.media_errors, "nothing fails so often")?;
        ensure(self.errors <= MOST, ID, "health.errors", self.errors, "nothing fails so often")?;
        ensure(self.powered <= MOST, ID, "health.powered", self.powered, "nothing runs for centuries")
    }
}

impl ControllerState {
    fn check_errors(&self) -> Result<(), StateError> {
        const ID: &str = ControllerState::ID;
        let count = self.errors.len();
        ensure(count <= ERRORS, ID, "errors", count, "the log has no more entries")?;
        let mut last = self.health.errors;
        for entry in &self.errors {
            let number = entry.number;
            let falls = (1..=last).contains(&number);
            ensure(falls, ID, "errors.number", number, "numbers go down from how many there have been")?;
            last = number;
            let queue = entry.queue;
            let known = queue <= ControllerConfig::MOST_QUEUES;
            ensure(known, ID, "errors.queue", queue, "there are no more queues")?;
            let status = entry.status;
            ensure(
                status & !0x7fff == 0 && status != 0,
                ID,
                "errors.status",
                status,
                "it has 15 bits, and is an error",
            )?;
        }
        Ok(())
    }
}

impl State for ControllerState {
    const ID: &'static str = "nvme";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        const ID: &str = ControllerState::ID;
        let (value, configuration) = (self.configuration, Configuration(self.configuration));
        ensure(value & !Configuration::MASK == 0, ID, "configuration", value, "other bits are reserved")?;
        ensure(self.status & !0xf == 0, ID, "status", self.status, "other bits are never set")?;
        let enabled = self.admin.is_some();
        let valid = !enabled || configuration.is_valid();
        ensure(valid, ID, "configuration", self.configuration, "an enabled controller has one that is valid")?;
        let count = self.units.len();
        ensure(enabled || count == 0, ID, "units", count, "only an enabled controller has queues")?;
        if let Some(admin) = &self.admin {
            check_unit(admin, MAX_ADMIN_ENTRIES)?;
            let ids: Vec<_> = admin.submission.iter().map(|queue| queue.id).collect();
            ensure(
                ids == [0] && admin.completion.id == 0,
                ID,
                "admin",
                ids,
                "there is one submission queue, and both are number 0",
            )?;
        }
        let (mut completion, mut submission) = (Vec::new(), Vec::new());
        for unit in &self.units {
            check_unit(unit, MAX_ENTRIES)?;
            completion.push(unit.completion.id);
            submission.extend(unit.submission.iter().map(|queue| queue.id));
        }
        for mut ids in [completion, submission] {
            ids.sort_unstable();
            let count = ids.len();
            ids.dedup();
            let in_range = ids.iter().all(|id| (1..=ControllerConfig::MOST_QUEUES).contains(id));
            ensure(
                ids.len() == count && in_range,
                ID,
                "units",
                ids,
                "each I/O queue has a number of its own, from 1 on",
            )?;
        }
        ensure(enabled || self.shadow.is_none(), ID, "shadow", self.shadow, "only an enabled controller has some")?;
        let requests = self.event_requests.len();
        ensure(enabled || requests == 0, ID, "event_requests", requests, "only an enabled controller has some")?;
        ensure(requests <= EVENT_REQUESTS, ID, "event_requests", requests, "no more can wait")?;
        if let Some(ShadowState { doorbells, events }) = self.shadow {
            ensure(is_base(doorbells), ID, "shadow.doorbells", doorbells, "it is a page's address")?;
            ensure(is_base(events), ID, "shadow.events", events, "it is a page's address")?;
        }
        ensure(self.events.len() <= EVENTS, ID, "events", self.events.len(), "no more can wait")?;
        let unknown = self.events.iter().find(|event| !Event::is_known(**event));
        ensure(unknown.is_none(), ID, "events", unknown, "there are no other events")?;
        let known = |id: &u32| (1..=namespace::MOST).contains(id);
        let sound = self.changed.len() <= 256 && self.changed.iter().all(known);
        ensure(sound, ID, "changed", &self.changed, "they are namespaces")?;
        let most = u64::from(self.features.keep_alive) * 1_000_000;
        let within = self.alive.is_none_or(|left| enabled && most > 0 && left <= most);
        ensure(within, ID, "alive", self.alive, "only an enabled controller has it, and no more than its timeout")?;
        self.features.check()?;
        self.health.check()?;
        self.check_errors()
    }
}
