//! A device's timer, moved lazily.

use skep_clock::{GuestNanos, Timer};

/// A timer of a device, which lives under the device's lock.
///
/// To move a timer costs a system call where the clock's driver must be woken, so a deadline that moves later, or is given up, moves
/// nothing: the timer fires at its old time, the device finds nothing due, and arms it anew if it still wants to.
pub(crate) struct Alarm {
    timer: Timer,
    armed: Option<GuestNanos>,
}

impl Alarm {
    pub(crate) fn new(timer: Timer) -> Self {
        Self { timer, armed: None }
    }

    /// The timer has fired: first thing that its callback says.
    pub(crate) fn fired(&mut self) {
        self.armed = None;
    }

    /// Sees to it that the timer fires at `deadline`, or earlier.
    pub(crate) fn want(&mut self, deadline: Option<GuestNanos>) {
        if let Some(deadline) = deadline
            && self.armed.is_none_or(|armed| armed > deadline)
        {
            self.timer.arm(deadline);
            self.armed = Some(deadline);
        }
    }
}
