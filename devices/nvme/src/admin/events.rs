//! Asynchronous events (Base 5.2).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use super::{Admin, Outcome};
use crate::spec::Status;
use crate::state::{EVENT_REQUESTS, EVENTS};

/// Logs, by their numbers (Base 5.16).
pub(super) mod log {
    pub(crate) const ERRORS: u8 = 0x01;
    pub(crate) const HEALTH: u8 = 0x02;
    pub(crate) const CHANGED: u8 = 0x04;
}

/// An event: its type, what it is, and the log that tells more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event(u32);

impl Event {
    const fn new(kind: u32, information: u32, log: u8) -> Self {
        Self(kind | information << 8 | (log as u32) << 16)
    }

    /// A doorbell of a queue that does not exist was written.
    pub(super) const NO_QUEUE: Self = Self::new(0, 0, log::ERRORS);
    /// A doorbell was written with a value that is no index.
    pub(super) const BAD_VALUE: Self = Self::new(0, 1, log::ERRORS);
    /// A temperature threshold was crossed.
    pub(super) const TEMPERATURE: Self = Self::new(1, 1, log::HEALTH);
    /// A namespace has come, gone, or changed.
    pub(super) const NAMESPACE: Self = Self::new(2, 0, log::CHANGED);

    /// Whether it is the number of one of them.
    pub(crate) fn is_known(number: u32) -> bool {
        [Self::NO_QUEUE, Self::BAD_VALUE, Self::TEMPERATURE, Self::NAMESPACE].contains(&Self(number))
    }
}

/// What waits for what.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Commands that wait for an event.
    pub(crate) requests: Vec<u16>,
    /// Events that wait for a command.
    pub(crate) queue: VecDeque<u32>,
    /// Types of which no more are told until their log is read, one bit each.
    pub(crate) masked: u8,
    /// Namespaces that have changed since the log was read.
    pub(crate) changed: BTreeSet<u32>,
}

impl Events {
    pub(super) fn raise(&mut self, event: Event) {
        if self.queue.len() < EVENTS && !self.queue.contains(&event.0) {
            self.queue.push_back(event.0);
        }
    }

    /// The next event of which its type may be told.
    fn next(&mut self) -> Option<u32> {
        let place = self.queue.iter().position(|event| self.masked & 1 << (event & 7) == 0)?;
        let event = self.queue.remove(place)?;
        self.masked |= 1 << (event & 7);
        Some(event)
    }

    /// A log has been read: events of its type are told again.
    pub(super) fn log_read(&mut self, log: u8) {
        match log {
            log::ERRORS => self.masked &= !1,
            log::HEALTH => self.masked &= !2,
            log::CHANGED => self.masked &= !4,
            _ => {}
        }
    }
}

impl Admin {
    pub(super) fn request_event(&mut self, command: u16) -> Outcome {
        if self.events.requests.len() >= EVENT_REQUESTS {
            return Outcome::Done(Status::EVENT_LIMIT, 0);
        }
        self.events.requests.push(command);
        Outcome::Later
    }

    /// Tells events to those who wait, as far as there is room.
    pub(super) fn deliver_events(&mut self) {
        let Some(ram) = self.ram() else { return };
        while !self.events.requests.is_empty() {
            let (Some(submission), Some(completion)) = (&self.submission, &mut self.completion) else { return };
            let reserved = submission.in_flight - self.events.requests.len() as u32;
            if !completion.has_room(reserved, &ram) {
                return;
            }
            let Some(event) = self.events.next() else { return };
            let command = self.events.requests.remove(0);
            self.complete(command, Status::SUCCESS, event);
        }
    }

    /// Takes what has happened on other threads.
    pub(super) fn notice(&mut self) {
        for namespace in self.shared.happened.resized() {
            self.namespace_changed(namespace);
        }
        let happened = &self.shared.happened;
        if happened.no_queue.swap(false, Ordering::SeqCst) {
            self.events.raise(Event::NO_QUEUE);
        }
        if happened.bad_value.swap(false, Ordering::SeqCst) {
            self.events.raise(Event::BAD_VALUE);
        }
        if happened.keep_alive.swap(false, Ordering::SeqCst) && self.features.keep_alive > 0 {
            self.shared.fail("the host has not kept it alive");
        }
    }

    pub(super) fn namespace_changed(&mut self, namespace: u32) {
        // Before the controller is enabled nobody has seen it otherwise.
        if self.submission.is_none() {
            return;
        }
        self.events.changed.insert(namespace);
        if self.features.events & 1 << 8 != 0 {
            self.events.raise(Event::NAMESPACE);
        }
    }
}
