//! When a block that is held reaches the file: it is whole, its driver has left it alone, or its machine ends.

use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};

use super::held::Held;
use super::store::Store;
use super::{Flash, Inner};

impl Flash {
    /// Waits for the rest of a block that is written anew as far as `end`.
    pub(super) fn hold(&self, inner: &mut Inner, end: u64) {
        let Some(held) = &mut inner.held else { return };
        if end == self.block_range(held.block).end {
            return self.let_go(inner);
        }
        held.end = end;
        held.wait(self.clock.now());
        inner.alarm.want(Some(held.until));
    }

    /// Writes a block that was held to the file.
    pub(super) fn let_go(&self, inner: &mut Inner) {
        let Some(held) = inner.held.take() else { return };
        let range = self.block_range(held.block);
        let bytes = self.content_of(range.clone());
        if bytes != held.old {
            inner.keep(|store| store.write_block(range.start, &bytes));
        }
    }

    /// The block's driver has left it alone.
    pub(super) fn wait_no_longer(&self) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.alarm.fired();
        // It is armed anew when the machine goes on.
        if self.is_saved() {
            return;
        }
        match &inner.held {
            Some(held) if held.until > self.clock.now() => inner.alarm.want(Some(held.until)),
            _ => self.let_go(inner),
        }
    }

    pub(super) fn is_saved(&self) -> bool {
        self.saved.load(Ordering::Acquire)
    }

    pub(super) fn set_saved(&self, saved: bool) {
        self.saved.store(saved, Ordering::Release);
    }

    /// The machine goes on, from where it stood still, was saved or was restored, and has its file to itself. The guest could not go on meanwhile, however
    /// far its clock has moved: a block that is held has all of its time again.
    pub fn resumed(&self) {
        let mut guard = match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if self.is_saved() => self.lock(),
            // Somebody writes what was held, and may wait for the disk.
            Err(TryLockError::WouldBlock) => return,
        };
        let inner = &mut *guard;
        self.set_saved(false);
        if let Some(held) = &mut inner.held {
            held.wait(self.clock.now());
            inner.alarm.want(Some(held.until));
        }
    }

    /// Has the file hold what the guest has set, on stable storage, at the machine's end, and calls `done`, on any thread. The guest stands. Where it has ended
    /// its machine itself (`by_guest`), a block that was erased is what it is; else it may be half of what it is to be, and the file keeps what was there.
    pub fn settle(self: &Arc<Self>, by_guest: bool, done: impl Fn() + Clone + Send + 'static) {
        self.apart(move |flash| {
            let mut guard = flash.lock();
            let inner = &mut *guard;
            // Another process may have the file of one that was saved.
            if !flash.is_saved() {
                flash.write_out(inner);
                if by_guest || inner.held.as_ref().is_some_and(Held::is_as_long_as_it_was) {
                    flash.let_go(inner);
                }
            }
            inner.keep(Store::sync);
            drop(guard);
            done();
        });
    }
}
