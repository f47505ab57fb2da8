//! What a serial port and the host's console know of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_clock::{Clock, GuestNanos, Timer};
use skep_irq::IrqLine;

use crate::alarm::Alarm;

/// Where a serial port's output goes.
///
/// It is called under the port's lock, once for each byte that the guest writes, on the vCPU's thread: it must not block, and must not call
/// back into the port. What can't be taken (a terminal that is closed, a pipe that is full) is the sink's own affair: a serial port has no
/// way to lose a byte and tell.
pub trait SerialOut: Send {
    /// Takes `bytes`.
    fn write(&mut self, bytes: &[u8]);
}

/// Output that nobody wants.
impl SerialOut for () {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A serial port as the host's console sees it. All of it may be called on any thread.
pub trait SerialPort: Send + Sync {
    /// Hands input to the guest, as much as its receive FIFO has room for, and says how many bytes that was. After an answer smaller than
    /// `bytes`, the listener of [`SerialPort::on_space`] is called once the guest has made room, so that no input is lost.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// Sets who is told that there is room again. The listener is called without any lock of the port held, on the vCPU's thread as a rule,
    /// and may call [`SerialPort::receive`] at once; better it wakes the thread that reads the console.
    fn on_space(&self, listener: Box<dyn Fn() + Send + Sync>);

    /// A break on the line: Linux takes it, with the next character, for a SysRq key. A port without that has no effect.
    fn receive_break(&self) {}
}

/// What a serial port has for itself: its registers, and how they work.
pub(crate) trait Registers {
    /// Lets a timeout that is due by `now` have come.
    fn settle(&mut self, now: GuestNanos);

    /// How many characters the host may hand in.
    fn room(&self) -> usize;

    /// Whether the guest has read all that came in.
    fn is_drained(&self) -> bool;

    /// Takes a character, with its errors in bits 10:8.
    fn take(&mut self, entry: u16, now: GuestNanos);

    /// Whether it interrupts.
    fn interrupts(&self) -> bool;

    /// When it will interrupt for what the guest has left unread, if nothing else happens.
    fn deadline(&self) -> Option<GuestNanos>;
}

/// What all serial ports have: the way out, the way in, the interrupt and the receive timeout.
pub(crate) struct Port<R> {
    irq: IrqLine,
    pub(crate) clock: Clock,
    space: Mutex<Option<SpaceListener>>,
    inner: Mutex<Inner<R>>,
}

type SpaceListener = Arc<dyn Fn() + Send + Sync>;

/// What is under the port's lock.
pub(crate) struct Inner<R> {
    pub(crate) registers: R,
    pub(crate) out: Box<dyn SerialOut>,
    alarm: Alarm,
    /// The host has input that did not fit.
    starved: bool,
}

impl<R: Registers> Inner<R> {
    /// Whether the host is to be told, now, that there is room for what it kept: once all is read, so that it comes by whole FIFOs.
    fn relieves(&mut self) -> bool {
        let room = self.starved && self.registers.is_drained() && self.registers.room() > 0;
        self.starved &= !room;
        room
    }
}

impl<R: Registers> Port<R> {
    /// A port whose `timer` calls [`Port::fired`].
    pub(crate) fn new(irq: IrqLine, clock: Clock, out: Box<dyn SerialOut>, timer: Timer, registers: R) -> Self {
        let inner = Inner { registers, out, alarm: Alarm::new(timer), starved: false };
        Self { irq, clock, space: Mutex::default(), inner: Mutex::new(inner) }
    }

    /// The registers as they are now.
    pub(crate) fn settled(&self) -> MutexGuard<'_, Inner<R>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.registers.settle(self.clock.now());
        inner
    }

    /// Does something with the registers, and all that follows from it: the line, the timer, and the host's being told of room.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Inner<R>) -> T) -> T {
        let mut inner = self.settled();
        let result = act(&mut inner);
        self.irq.set(inner.registers.interrupts());
        self.follow(inner);
        result
    }

    /// Takes the registers of a saved port, whose interrupt controller restores what it had latched itself.
    pub(crate) fn restore(&self, registers: R) {
        let mut inner = self.settled();
        inner.registers = registers;
        self.irq.restore(inner.registers.interrupts());
        self.follow(inner);
    }

    fn follow(&self, mut inner: MutexGuard<'_, Inner<R>>) {
        let deadline = inner.registers.deadline();
        inner.alarm.want(deadline);
        let relieves = inner.relieves();
        drop(inner);
        if relieves {
            let listener = self.space.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(listener) = listener {
                listener();
            }
        }
    }

    /// The timer has fired.
    pub(crate) fn fired(&self) {
        self.with(|inner| inner.alarm.fired());
    }

    /// [`SerialPort::receive`].
    pub(crate) fn receive(&self, bytes: &[u8]) -> usize {
        let now = self.clock.now();
        self.with(|inner| {
            let taken = bytes.len().min(inner.registers.room());
            for byte in bytes.iter().take(taken) {
                inner.registers.take(u16::from(*byte), now);
            }
            inner.starved = taken < bytes.len();
            taken
        })
    }

    /// [`SerialPort::on_space`].
    pub(crate) fn on_space(&self, listener: Box<dyn Fn() + Send + Sync>) {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener.into());
    }
}
