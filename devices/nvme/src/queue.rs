//! Queues in guest memory (Base 3.3.1), as their worker has them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_memory::RamView;
use skep_memory::vm_memory::{Bytes, GuestAddress};

use crate::doorbell::{Doorbell, Shadow, Wake};
use crate::spec::command::{COMPLETION, ENTRY};
use crate::spec::{Command, CompletionEntry};
use crate::state::{CompletionQueueState, SubmissionQueueState};

/// The controller can't reach a queue: it is not RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

/// A submission queue.
pub(crate) struct SubmissionQueue {
    state: SubmissionQueueState,
    doorbell: Arc<Doorbell>,
    shadow: Option<Shadow>,
    /// Commands taken that have not completed.
    pub(crate) in_flight: u32,
    /// It takes no more, and goes once nothing is in flight.
    pub(crate) leaving: bool,
}

impl SubmissionQueue {
    /// Takes on a queue's state, which is one that can be; the doorbell is open from now on.
    pub(crate) fn open(state: &SubmissionQueueState, doorbell: &Arc<Doorbell>, wake: &Arc<Wake>) -> Self {
        doorbell.open(state.entries, state.tail, wake);
        Self { state: state.clone(), doorbell: doorbell.clone(), shadow: None, in_flight: 0, leaving: false }
    }

    pub(crate) fn state(&self) -> SubmissionQueueState {
        SubmissionQueueState { tail: self.doorbell.value(), ..self.state.clone() }
    }

    pub(crate) fn id(&self) -> u16 {
        self.state.id
    }

    pub(crate) fn head(&self) -> u16 {
        self.state.head as u16
    }

    fn index(&self) -> u64 {
        u64::from(self.state.id) * 2
    }

    /// Takes on shadows. Where they are `new`, they are told what the registers hold, or the shadows of before.
    pub(crate) fn set_shadow(&mut self, shadow: Option<Shadow>, new: Option<&RamView>) {
        if let (Some(shadow), Some(ram)) = (&shadow, new) {
            shadow.set(ram, self.index(), self.tail(ram));
        }
        self.shadow = shadow;
    }

    fn tail(&self, ram: &RamView) -> u32 {
        let shadow = self.shadow.and_then(|shadow| shadow.load(ram, self.index()));
        shadow.unwrap_or_else(|| self.doorbell.value())
    }

    /// Whether there is a command to take. A shadow that is no index of the queue is no news.
    pub(crate) fn has_more(&self, ram: &RamView) -> bool {
        let tail = self.tail(ram);
        tail != self.state.head && tail < self.state.entries
    }

    /// Asks the guest to ring the doorbell at its next command.
    pub(crate) fn ask(&self, ram: &RamView) {
        if let Some(shadow) = self.shadow {
            shadow.ask(ram, self.index(), self.tail(ram));
        }
    }

    /// Takes the next command, if there is one.
    pub(crate) fn take(&mut self, ram: &RamView) -> Result<Option<Command>, Unreachable> {
        if !self.has_more(ram) {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY as usize];
        let at = GuestAddress(self.state.base + u64::from(self.state.head) * ENTRY);
        ram.read_slice(&mut bytes, at).map_err(|_| Unreachable)?;
        self.state.head = (self.state.head + 1) % self.state.entries;
        Ok(Some(Command::from_bytes(&bytes)))
    }
}

impl Drop for SubmissionQueue {
    fn drop(&mut self) {
        self.doorbell.close();
    }
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    state: CompletionQueueState,
    doorbell: Arc<Doorbell>,
    shadow: Option<Shadow>,
}

impl CompletionQueue {
    /// Takes on a queue's state, which is one that can be; the doorbell is open from now on.
    pub(crate) fn open(state: &CompletionQueueState, doorbell: &Arc<Doorbell>, wake: &Arc<Wake>) -> Self {
        doorbell.open_completion(state.entries, state.head, state.tail, state.vector, wake);
        Self { state: state.clone(), doorbell: doorbell.clone(), shadow: None }
    }

    pub(crate) fn state(&mut self, ram: Option<&RamView>) -> CompletionQueueState {
        self.update_head(ram);
        self.state.clone()
    }

    pub(crate) fn id(&self) -> u16 {
        self.state.id
    }

    /// Its interrupt vector, if it interrupts.
    pub(crate) fn vector(&self) -> Option<u16> {
        self.state.vector
    }

    fn index(&self) -> u64 {
        u64::from(self.state.id) * 2 + 1
    }

    /// Takes on shadows. Where they are `new`, they are told what the registers hold, or the shadows of before.
    pub(crate) fn set_shadow(&mut self, shadow: Option<Shadow>, new: Option<&RamView>) {
        if let (Some(shadow), Some(ram)) = (&shadow, new) {
            shadow.set(ram, self.index(), self.told(Some(ram)));
        }
        self.shadow = shadow;
    }

    /// The head that the host has told: by the shadow, if it uses one and that can be read.
    fn told(&self, ram: Option<&RamView>) -> u32 {
        let shadow = self.shadow.zip(ram).and_then(|(shadow, ram)| shadow.load(ram, self.index()));
        shadow.unwrap_or_else(|| self.doorbell.value())
    }

    fn used(&self) -> u32 {
        (self.state.tail + self.state.entries - self.state.head) % self.state.entries
    }

    /// Looks at what the host has taken. A head that the host can't have reached is no news.
    pub(crate) fn update_head(&mut self, ram: Option<&RamView>) {
        let (head, entries) = (self.told(ram), self.state.entries);
        if head < entries && (head + entries - self.state.head) % entries <= self.used() {
            self.state.head = head;
            if self.shadow.is_some() {
                self.doorbell.set_value(head);
            }
        }
    }

    /// Whether one more can be posted besides `reserved`. One slot always stays empty.
    pub(crate) fn has_room(&mut self, reserved: u32, ram: &RamView) -> bool {
        if self.used() + reserved + 1 >= self.state.entries {
            self.update_head(Some(ram));
        }
        self.used() + reserved + 1 < self.state.entries
    }

    /// Asks the guest to ring the doorbell when it next takes something.
    pub(crate) fn ask(&self, ram: &RamView) {
        if let Some(shadow) = self.shadow {
            shadow.ask(ram, self.index(), shadow.load(ram, self.index()).unwrap_or(self.state.head));
        }
    }

    /// Posts an entry, for which there is room.
    pub(crate) fn post(&mut self, entry: CompletionEntry, ram: &RamView) -> Result<(), Unreachable> {
        let at = self.state.base + u64::from(self.state.tail) * COMPLETION;
        let (first, last) = entry.to_parts(self.state.phase);
        ram.write_slice(&first, GuestAddress(at)).map_err(|_| Unreachable)?;
        // The phase tag makes the rest the host's, so it is written last, and at once.
        ram.store(last.to_le(), GuestAddress(at + 12), Ordering::Release).map_err(|_| Unreachable)?;
        self.state.tail += 1;
        if self.state.tail == self.state.entries {
            self.state.tail = 0;
            self.state.phase = !self.state.phase;
        }
        self.doorbell.set_tail(self.state.tail);
        Ok(())
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        self.doorbell.close();
    }
}
