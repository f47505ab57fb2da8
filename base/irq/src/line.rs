//! Interrupt lines.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use crate::IrqError;

#[cfg(test)]
#[path = "line_test.rs"]
mod test;

/// Edge or level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The rising edge is the interrupt.
    Edge,
    /// The level is the interrupt.
    Level,
}

/// What an asserted line looks like on the wire. Lines here are logical: asserted is asserted, whichever the polarity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polarity {
    /// Asserted is high.
    High,
    /// Asserted is low.
    Low,
}

/// How a line is called in the machine's tables (ACPI, FDT). No device reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineDescription {
    /// The GSI on x86_64, the INTID on aarch64.
    pub number: u32,
    /// Edge or level.
    pub trigger: Trigger,
    /// High or low.
    pub polarity: Polarity,
}

/// Called at the end of each interrupt of a level line.
pub type EoiListener = Arc<dyn Fn() + Send + Sync>;

/// Keeps an [`EoiListener`] subscribed; dropping it ends that.
pub type EoiSubscription = Box<dyn Send + Sync>;

/// What is behind a line. It is called with the line's own lock held, so it must not call back into that line, or one that leads to it.
pub trait LineTarget: Send + Sync {
    /// The line's level has changed.
    fn set_level(&self, line: u32, asserted: bool);

    /// A restored machine has this level on the line. A controller has it in its own state; what has no state notes it, and what passes levels on
    /// to other lines restores those ([`IrqLine::restore`]).
    fn restore_level(&self, _line: u32, _asserted: bool) {}

    /// Calls `listener` at each end of interrupt of `line`, if this target can.
    fn on_eoi(&self, _line: u32, _listener: EoiListener) -> Option<EoiSubscription> {
        None
    }

    /// An eventfd, each signal of which is an edge on `line`, if this target can.
    fn eventfd(&self, _line: u32) -> Option<EventFd> {
        None
    }
}

struct Wire {
    target: Option<Arc<dyn LineTarget>>,
    description: LineDescription,
    /// How many handles assert it.
    asserted: Mutex<usize>,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.asserted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device's handle to an interrupt line.
pub struct IrqLine {
    wire: Arc<Wire>,
    mine: AtomicBool,
}

impl IrqLine {
    fn on(wire: Arc<Wire>) -> Self {
        Self { wire, mine: AtomicBool::new(false) }
    }

    /// A line with nothing behind it: for a device whose interrupt is not connected.
    #[must_use]
    pub fn detached() -> Self {
        let description = LineDescription { number: 0, trigger: Trigger::Level, polarity: Polarity::High };
        Self::on(Arc::new(Wire { target: None, description, asserted: Mutex::new(0) }))
    }

    /// A line of its own to `target`, outside any table: between two devices, or in a test.
    pub fn to(target: Arc<dyn LineTarget>, description: LineDescription) -> Self {
        Self::on(Arc::new(Wire { target: Some(target), description, asserted: Mutex::new(0) }))
    }

    /// A further handle to the same wire, not asserting it.
    #[must_use]
    pub fn share(&self) -> Self {
        Self::on(self.wire.clone())
    }

    /// Asserts the line. Without effect if this handle does already.
    pub fn assert(&self) {
        self.set(true);
    }

    /// Takes this handle's assertion back. The line stays high while another handle asserts it.
    pub fn deassert(&self) {
        self.set(false);
    }

    /// Asserts or deasserts.
    pub fn set(&self, asserted: bool) {
        // The common case, a device that recomputes its line at each access, takes no lock.
        if self.mine.load(Ordering::Acquire) == asserted {
            return;
        }
        let mut count = self.wire.lock();
        let before = *count > 0;
        self.change(&mut count, asserted);
        if let (Some(target), true) = (&self.wire.target, before != (*count > 0)) {
            target.set_level(self.wire.description.number, asserted);
        }
    }

    /// An edge, unless the line is asserted. Edges of several threads at once are each an edge.
    pub fn pulse(&self) {
        let count = self.wire.lock();
        if let (Some(target), 0) = (&self.wire.target, *count) {
            target.set_level(self.wire.description.number, true);
            target.set_level(self.wire.description.number, false);
        }
    }

    /// Sets what this handle asserts without an edge at the controller, which restores what it had latched itself.
    pub fn restore(&self, asserted: bool) {
        let mut count = self.wire.lock();
        let before = *count > 0;
        self.change(&mut count, asserted);
        if let (Some(target), true) = (&self.wire.target, before != (*count > 0)) {
            target.restore_level(self.wire.description.number, asserted);
        }
    }

    fn change(&self, count: &mut usize, asserted: bool) {
        if self.mine.swap(asserted, Ordering::AcqRel) != asserted {
            *count = if asserted { *count + 1 } else { *count - 1 };
        }
    }

    /// Whether this handle asserts the line.
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        self.mine.load(Ordering::Acquire)
    }

    /// How the machine's tables call the line.
    #[must_use]
    pub fn description(&self) -> LineDescription {
        self.wire.description
    }

    /// Calls `listener` at each end of interrupt (resample), where the controller offers it. The listener may deassert the line, and
    /// assert it again.
    pub fn on_eoi(&self, listener: EoiListener) -> Option<EoiSubscription> {
        self.wire.target.as_ref()?.on_eoi(self.wire.description.number, listener)
    }

    /// An eventfd, each signal of which is an edge, where the controller offers it.
    #[must_use]
    pub fn eventfd(&self) -> Option<EventFd> {
        self.wire.target.as_ref()?.eventfd(self.wire.description.number)
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.deassert();
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine")
            .field("number", &self.wire.description.number)
            .field("asserted", &self.is_asserted())
            .finish_non_exhaustive()
    }
}

/// The lines of one controller: each number is one wire, shared by all who ask for it.
pub struct LineTable {
    target: Arc<dyn LineTarget>,
    numbers: RangeInclusive<u32>,
    wires: Mutex<BTreeMap<u32, Weak<Wire>>>,
}

impl LineTable {
    /// A table of the lines `numbers` of `target`.
    pub fn new(target: Arc<dyn LineTarget>, numbers: RangeInclusive<u32>) -> Self {
        Self { target, numbers, wires: Mutex::new(BTreeMap::new()) }
    }

    /// A handle to line `number`. Where the line is in use already, the handle shares it, and its description stays the first one's.
    ///
    /// # Errors
    /// [`IrqError::NoSuchLine`].
    pub fn line(&self, number: u32, trigger: Trigger, polarity: Polarity) -> Result<IrqLine, IrqError> {
        if !self.numbers.contains(&number) {
            let (first, last) = (*self.numbers.start(), *self.numbers.end());
            return Err(IrqError::NoSuchLine { line: number, first, last });
        }
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wire) = wires.get(&number).and_then(Weak::upgrade) {
            return Ok(IrqLine::on(wire));
        }
        let line = IrqLine::to(self.target.clone(), LineDescription { number, trigger, polarity });
        wires.insert(number, Arc::downgrade(&line.wire));
        Ok(line)
    }

    /// A handle to the first line of `among` that nobody holds.
    ///
    /// # Errors
    /// [`IrqError::NoLineLeft`], or [`IrqError::NoSuchLine`] where `among` leaves the controller's range.
    pub fn allocate(
        &self,
        among: RangeInclusive<u32>,
        trigger: Trigger,
        polarity: Polarity,
    ) -> Result<IrqLine, IrqError> {
        let free = {
            let wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
            among.clone().find(|n| wires.get(n).is_none_or(|wire| wire.strong_count() == 0))
        };
        let count = u32::try_from(among.clone().count()).unwrap_or(u32::MAX);
        let number = free.ok_or(IrqError::NoLineLeft { first: *among.start(), count })?;
        self.line(number, trigger, polarity)
    }
}
