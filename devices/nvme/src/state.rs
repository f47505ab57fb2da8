//! The controller's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

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
    /// Arbitration.
    #[n(0)]
    pub arbitration: u32,
    /// The power state that was asked for.
    #[n(1)]
    pub power_state: u8,
    /// The last operational power state that was asked for.
    #[n(2)]
    pub operational: u8,
    /// Over temperature threshold in kelvins.
    #[n(3)]
    pub over_temperature: u16,
    /// Under temperature threshold in kelvins.
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
    /// Keep alive timeout in milliseconds; 0 for none.
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
    /// The command.
    #[n(2)]
    pub command: u16,
    /// The status, without phase tag.
    #[n(3)]
    pub status: u16,
    /// The logical block.
    #[n(4)]
    pub block: u64,
    /// The namespace.
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
    /// Admin Queue Attributes.
    #[n(2)]
    pub admin_attributes: u32,
    /// Admin Submission Queue Base Address.
    #[n(3)]
    pub admin_submission_base: u64,
    /// Admin Completion Queue Base Address.
    #[n(4)]
    pub admin_completion_base: u64,
    /// Interrupt mask.
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
    /// Event types that wait for their log to be read, one bit each.
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
}

/// Entries of the error log.
pub(crate) const ERRORS: usize = 64;
/// Asynchronous event requests that wait at most.
pub(crate) const EVENT_REQUESTS: usize = 4;
/// Events that wait at most; there are fewer kinds.
pub(crate) const EVENTS: usize = 16;

fn check_submission(queue: &SubmissionQueueState, most: u32) -> Result<(), StateError> {
    const ID: &str = ControllerState::ID;
    let entries = queue.entries;
    ensure(
        (2..=most).contains(&entries),
        ID,
        "entries",
        entries,
        "a queue has two at least, and no more than its register says",
    )?;
    ensure(queue.head < entries, ID, "head", queue.head, "it is an index of the queue")?;
    ensure(queue.tail < entries, ID, "tail", queue.tail, "it is an index of the queue")?;
    check_base(queue.base)
}

fn check_base(base: u64) -> Result<(), StateError> {
    let rule = "a queue begins at a page and does not wrap around";
    ensure(base & 0xfff == 0 && base < 1 << 63, ControllerState::ID, "base", base, rule)
}

fn check_unit(unit: &UnitState, most: u32) -> Result<(), StateError> {
    const ID: &str = ControllerState::ID;
    let completion = &unit.completion;
    let entries = completion.entries;
    ensure(
        (2..=most).contains(&entries),
        ID,
        "entries",
        entries,
        "a queue has two at least, and no more than its register says",
    )?;
    ensure(completion.head < entries, ID, "head", completion.head, "it is an index of the queue")?;
    ensure(completion.tail < entries, ID, "tail", completion.tail, "it is an index of the queue")?;
    check_base(completion.base)?;
    for queue in &unit.submission {
        check_submission(queue, most)?;
        ensure(queue.completion == completion.id, ID, "completion", queue.completion, "it is the queue of its unit")?;
    }
    Ok(())
}

impl State for ControllerState {
    const ID: &'static str = "nvme";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        const ID: &str = ControllerState::ID;
        let configuration = Configuration(self.configuration);
        ensure(
            self.configuration & !Configuration::MASK == 0,
            ID,
            "configuration",
            self.configuration,
            "other bits are reserved",
        )?;
        ensure(self.status & !0xf == 0, ID, "status", self.status, "other bits are never set")?;
        let enabled = self.admin.is_some();
        ensure(
            !enabled || configuration.is_valid(),
            ID,
            "configuration",
            self.configuration,
            "an enabled controller has one that is valid",
        )?;
        ensure(
            enabled || self.units.is_empty(),
            ID,
            "units",
            self.units.len(),
            "only an enabled controller has queues",
        )?;
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
        let rule = "only an enabled controller has some";
        ensure(enabled || self.shadow.is_none(), ID, "shadow", self.shadow, rule)?;
        ensure(enabled || self.event_requests.is_empty(), ID, "event_requests", &self.event_requests, rule)?;
        if let Some(shadow) = &self.shadow {
            check_base(shadow.doorbells)?;
            check_base(shadow.events)?;
        }
        ensure(
            self.event_requests.len() <= EVENT_REQUESTS,
            ID,
            "event_requests",
            self.event_requests.len(),
            "no more can wait",
        )?;
        ensure(self.events.len() <= EVENTS, ID, "events", self.events.len(), "no more can wait")?;
        ensure(self.errors.len() <= ERRORS, ID, "errors", self.errors.len(), "the log has no more entries")?;
        let known = |id: &u32| (1..=namespace::MOST).contains(id);
        ensure(
            self.changed.len() <= 256 && self.changed.iter().all(known),
            ID,
            "changed",
            &self.changed,
            "they are namespaces",
        )?;
        ensure(
            self.features.power_state < 32 && self.features.operational < 32,
            ID,
            "power_state",
            self.features.power_state,
            "there are 32 at most",
        )?;
        let transitions = &self.features.transitions;
        ensure(
            transitions.is_empty() || transitions.len() == 32,
            ID,
            "transitions",
            transitions.len(),
            "there is one for each power state",
        )?;
        let vectors = &self.features.uncoalesced;
        ensure(
            vectors.len() <= usize::from(ControllerConfig::MOST_QUEUES) + 1,
            ID,
            "uncoalesced",
            vectors.len(),
            "each vector stands there once",
        )
    }
}
