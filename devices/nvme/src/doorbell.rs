//! Doorbells (Base 3.1.3.18) and their shadows in guest memory (Base 5.8, annex B.5).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use skep_memory::RamView;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// By this a worker is woken: by an eventfd, and only while it sleeps.
pub(crate) struct Wake {
    asleep: AtomicBool,
    event: Arc<EventFd>,
    /// Held by the worker in each of its rounds.
    round: Mutex<()>,
}

impl Wake {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Arc::new(Self { asleep: AtomicBool::new(false), event, round: Mutex::new(()) }))
    }

    /// Wakes the worker if it sleeps. What it is to find is there before this is called.
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.force();
        }
    }

    /// Wakes the worker whether it sleeps or not.
    pub(crate) fn force(&self) {
        // A full counter has woken it already.
        let _ = self.event.write(1);
    }

    /// A round of the worker: it looks at what is shared after it has begun. No round waits for a disk.
    pub(crate) fn round(&self) -> MutexGuard<'_, ()> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker is about to sleep, and looks once more after this.
    pub(crate) fn will_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// The worker is up.
    pub(crate) fn is_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    pub(crate) fn event(&self) -> &Arc<EventFd> {
        &self.event
    }
}

/// No interrupt.
const SILENT: u32 = u32::MAX;

/// Why a doorbell's write is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadDoorbell {
    /// There is no such queue.
    NoQueue,
    /// The value is no index of the queue.
    Value,
}

/// One doorbell, and what a vCPU needs to know of its queue.
#[derive(Default)]
pub(crate) struct Doorbell {
    /// What was last written.
    value: AtomicU32,
    /// The queue's size, 0 while there is none.
    entries: AtomicU32,
    /// Of a completion queue: its tail, and the vector by which it interrupts.
    tail: AtomicU32,
    vector: AtomicU32,
    wake: ArcSwapOption<Wake>,
}

impl Doorbell {
    /// Opens a submission queue's.
    pub(crate) fn open(&self, entries: u32, value: u32, wake: &Arc<Wake>) {
        self.value.store(value, Ordering::SeqCst);
        self.wake.store(Some(wake.clone()));
        self.entries.store(entries, Ordering::SeqCst);
    }

    /// Opens a completion queue's.
    pub(crate) fn open_completion(&self, entries: u32, head: u32, tail: u32, vector: Option<u16>, wake: &Arc<Wake>) {
        self.tail.store(tail, Ordering::SeqCst);
        self.vector.store(vector.map_or(SILENT, u32::from), Ordering::SeqCst);
        self.open(entries, head, wake);
    }

    /// The queue has gone.
    pub(crate) fn close(&self) {
        self.entries.store(0, Ordering::SeqCst);
        self.wake.store(None);
    }

    /// A guest's write.
    pub(crate) fn ring(&self, value: u32) -> Result<(), BadDoorbell> {
        match self.entries.load(Ordering::SeqCst) {
            0 => Err(BadDoorbell::NoQueue),
            entries if value >= entries => Err(BadDoorbell::Value),
            _ => {
                self.value.store(value, Ordering::SeqCst);
                if let Some(wake) = &*self.wake.load() {
                    wake.wake();
                }
                Ok(())
            }
        }
    }

    /// What was last written.
    pub(crate) fn value(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    /// What the guest has written to the shadow in its place.
    pub(crate) fn set_value(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
    }

    /// The completion queue's tail has moved.
    pub(crate) fn set_tail(&self, tail: u32) {
        self.tail.store(tail, Ordering::SeqCst);
    }

    /// The eventfd that a write to it signals, while there is a queue.
    pub(crate) fn event(&self) -> Option<Arc<EventFd>> {
        self.wake.load().as_ref().map(|wake| wake.event().clone())
    }

    /// The vector of a completion queue that has entries which the host has not taken, and that interrupts.
    pub(crate) fn interrupts(&self) -> Option<u32> {
        let vector = self.vector.load(Ordering::SeqCst);
        let live = self.entries.load(Ordering::SeqCst) != 0 && vector != SILENT;
        (live && self.tail.load(Ordering::SeqCst) != self.value()).then_some(vector)
    }
}

/// The doorbells of all queues.
pub(crate) struct Doorbells {
    submission: Vec<Arc<Doorbell>>,
    completion: Vec<Arc<Doorbell>>,
}

impl Doorbells {
    /// For queues 0 to `last`.
    pub(crate) fn new(last: u16) -> Self {
        let make = || (0..=last).map(|_| Arc::default()).collect();
        Self { submission: make(), completion: make() }
    }

    pub(crate) fn submission(&self, id: u16) -> Option<&Arc<Doorbell>> {
        self.submission.get(usize::from(id))
    }

    pub(crate) fn completion(&self, id: u16) -> Option<&Arc<Doorbell>> {
        self.completion.get(usize::from(id))
    }

    /// The doorbell at an index from the first register on, and whether it is a completion queue's.
    pub(crate) fn at(&self, index: u64) -> Option<(&Arc<Doorbell>, bool)> {
        let (id, completion) = (u16::try_from(index / 2).ok()?, index % 2 == 1);
        let doorbell = if completion { self.completion(id) } else { self.submission(id) };
        Some((doorbell?, completion))
    }

    pub(crate) fn all_completion(&self) -> impl Iterator<Item = &Arc<Doorbell>> {
        self.completion.iter()
    }

    /// Waits until each worker that is in a round has ended it, and wakes them all: what was changed before is known to every round from
    /// now on.
    pub(crate) fn pass_rounds(&self) {
        for doorbell in &self.completion {
            let wake = doorbell.wake.load_full();
            if let Some(wake) = wake {
                drop(wake.round());
                wake.force();
            }
        }
    }

    /// All I/O queues' doorbells that exist: index and eventfd.
    pub(crate) fn events(&self) -> Vec<(u64, Arc<EventFd>)> {
        let of = |table: &[Arc<Doorbell>], odd: u64| {
            let live = |(id, doorbell): (usize, &Arc<Doorbell>)| Some((id as u64 * 2 + odd, doorbell.event()?));
            table.iter().enumerate().skip(1).filter_map(live).collect::<Vec<_>>()
        };
        let mut events = of(&self.submission, 0);
        events.extend(of(&self.completion, 1));
        events
    }
}

/// Where shadow doorbells and event indexes are: two pages of guest memory, in which each doorbell has the index that it has among the
/// registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shadow {
    pub(crate) doorbells: u64,
    pub(crate) events: u64,
}

impl Shadow {
    /// What the guest has written; `None` where there is no RAM.
    pub(crate) fn load(&self, ram: &RamView, index: u64) -> Option<u32> {
        ram.load(GuestAddress(self.doorbells + 4 * index), Ordering::SeqCst).ok().map(u32::from_le)
    }

    /// Writes what the register holds.
    pub(crate) fn set(&self, ram: &RamView, index: u64, value: u32) {
        // Of pages that are no RAM the guest sees nothing.
        let _ = ram.store(value.to_le(), GuestAddress(self.doorbells + 4 * index), Ordering::SeqCst);
    }

    /// Asks for a write to the register when the doorbell next moves on from `value`.
    pub(crate) fn ask(&self, ram: &RamView, index: u64, value: u32) {
        let _ = ram.store(value.to_le(), GuestAddress(self.events + 4 * index), Ordering::SeqCst);
    }
}
