//! A network between a card and a test.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::{GuestSlice, Link, LinkInfo, LinkQueue, Offloads};
use crate::{NetError, guest};

#[derive(Default)]
struct Pair {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    /// The host takes no frame.
    full: bool,
    open: bool,
    /// A byte on it wakes the card.
    bell: Option<UnixStream>,
}

/// A network whose other end is a test.
pub struct TestLink {
    info: LinkInfo,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    pairs: Vec<Pair>,
    offloads: Offloads,
    active: u16,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestLink {
    /// A network that offers that.
    #[must_use]
    pub fn new(info: LinkInfo) -> Arc<Self> {
        let pairs = (0..info.queues).map(|_| Pair::default()).collect();
        Arc::new(Self { info, inner: Arc::new(Mutex::new(Inner { pairs, ..Inner::default() })) })
    }

    fn with<R>(&self, queue: u16, act: impl FnOnce(&mut Pair) -> R) -> R {
        let mut inner = lock(&self.inner);
        let pair = inner.pairs.get_mut(usize::from(queue)).expect("a test knows how many pairs it made");
        let result = act(pair);
        if let Some(bell) = &mut pair.bell {
            // A bell that is full has rung.
            let _ = io::Write::write(bell, &[1]);
        }
        result
    }

    /// Sends a frame, its header included, to the guest.
    pub fn send(&self, queue: u16, frame: &[u8]) {
        self.with(queue, |pair| pair.to_guest.push_back(frame.to_vec()));
    }

    /// How many frames wait for the guest.
    #[must_use]
    pub fn waiting(&self, queue: u16) -> usize {
        self.with(queue, |pair| pair.to_guest.len())
    }

    /// Takes what the guest has sent.
    #[must_use]
    pub fn take(&self, queue: u16) -> Vec<Vec<u8>> {
        self.with(queue, |pair| std::mem::take(&mut pair.from_guest))
    }

    /// Lets the host take frames, or not.
    pub fn set_full(&self, queue: u16, full: bool) {
        self.with(queue, |pair| pair.full = full);
    }

    /// What the card has said of its guest: offloads, and how many pairs receive.
    #[must_use]
    pub fn settings(&self) -> (Offloads, u16) {
        let inner = lock(&self.inner);
        (inner.offloads, inner.active)
    }
}

impl Link for TestLink {
    fn info(&self) -> LinkInfo {
        self.info
    }

    fn open_queue(&self, queue: u16) -> Result<Box<dyn LinkQueue>, NetError> {
        let mut inner = lock(&self.inner);
        let count = self.info.queues;
        let pair = inner.pairs.get_mut(usize::from(queue)).filter(|pair| !pair.open);
        let pair = pair.ok_or(NetError::Queue { queue, count })?;
        let refused = |source| NetError::Tap { what: "make a bell for", name: "test".into(), source, mend: "" };
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).map_err(refused)?;
        }
        (pair.open, pair.bell) = (true, Some(ours));
        Ok(Box::new(Queue { inner: self.inner.clone(), queue, bell: theirs }))
    }

    fn set_offloads(&self, offloads: Offloads) -> Result<(), NetError> {
        lock(&self.inner).offloads = offloads;
        Ok(())
    }

    fn set_active_queues(&self, count: u16) -> Result<(), NetError> {
        lock(&self.inner).active = count;
        Ok(())
    }
}

struct Queue {
    inner: Arc<Mutex<Inner>>,
    queue: u16,
    bell: UnixStream,
}

impl Queue {
    fn with<R>(&self, act: impl FnOnce(&mut Pair) -> io::Result<R>) -> io::Result<R> {
        let mut inner = lock(&self.inner);
        inner.pairs.get_mut(usize::from(self.queue)).map_or_else(|| Err(io::ErrorKind::NotFound.into()), act)
    }
}

/// Another card may have it.
impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.with(|pair| {
            (pair.open, pair.bell) = (false, None);
            Ok(())
        });
    }
}

impl LinkQueue for Queue {
    fn send(&mut self, frame: &[GuestSlice<'_>]) -> io::Result<()> {
        self.with(|pair| {
            if pair.full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut bytes = Vec::new();
            guest::copy_out(frame, 0, &mut bytes);
            pair.from_guest.push(bytes);
            Ok(())
        })
    }

    fn receive(&mut self, room: &[GuestSlice<'_>]) -> io::Result<usize> {
        // The bell is emptied, so that it never fills up.
        let _ = io::Read::read(&mut self.bell, &mut [0; 64]);
        self.with(|pair| {
            let frame = pair.to_guest.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            Ok(guest::copy_in(&[&frame], room))
        })
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
