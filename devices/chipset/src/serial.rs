//! What a serial port and the host's console know of each other.

use std::sync::{Arc, Mutex, PoisonError};

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

/// The listener of [`SerialPort::on_space`].
#[derive(Default)]
pub(crate) struct SpaceListener(Mutex<Option<Arc<dyn Fn() + Send + Sync>>>);

impl SpaceListener {
    pub(crate) fn set(&self, listener: Box<dyn Fn() + Send + Sync>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener.into());
    }

    /// Calls it, with no lock held.
    pub(crate) fn call(&self) {
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener();
        }
    }
}
