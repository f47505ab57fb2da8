//! Which guest clusters requests are busy with.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a request does with guest clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Reads or writes them where they are, beside others that do.
    Shared,
    /// Moves them elsewhere.
    Alone,
}

struct Entry {
    number: u64,
    clusters: Range<u64>,
    how: Use,
}

impl Entry {
    fn hinders(&self, clusters: &Range<u64>, how: Use) -> bool {
        let overlaps = self.clusters.start < clusters.end && clusters.start < self.clusters.end;
        overlaps && (self.how == Use::Alone || how == Use::Alone)
    }
}

#[derive(Default)]
struct List {
    /// In the order of their coming: each waits for those before it.
    entries: Vec<Entry>,
    last: u64,
}

/// Those of one image. There are no more than threads at work, and none of them waits here with clusters of its own.
#[derive(Default)]
pub(super) struct Pins {
    list: Mutex<List>,
    gone: Condvar,
}

/// Clusters that a request may be busy with, until it is dropped.
pub(super) struct Pin<'a> {
    pins: &'a Pins,
    number: u64,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, list: &mut List, clusters: Range<u64>, how: Use) -> Pin<'_> {
        list.last += 1;
        list.entries.push(Entry { number: list.last, clusters, how });
        Pin { pins: self, number: list.last }
    }

    /// Waits until nobody who came before is in the way.
    pub(super) fn pin(&self, clusters: Range<u64>, how: Use) -> Pin<'_> {
        let mut list = self.lock();
        let pin = self.enter(&mut list, clusters.clone(), how);
        let hindered = |list: &mut List| {
            let before = list.entries.iter().take_while(|entry| entry.number != pin.number);
            before.into_iter().any(|entry| entry.hinders(&clusters, how))
        };
        drop(self.gone.wait_while(list, hindered));
        pin
    }

    /// The same where nobody is in the way.
    pub(super) fn try_pin(&self, clusters: Range<u64>, how: Use) -> Option<Pin<'_>> {
        let mut list = self.lock();
        let free = !list.entries.iter().any(|entry| entry.hinders(&clusters, how));
        free.then(|| self.enter(&mut list, clusters, how))
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.pins.lock().entries.retain(|entry| entry.number != self.number);
        self.pins.gone.notify_all();
    }
}
