//! Several descriptors as one, for queues that are made around other queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

/// A descriptor that is readable while one of those it gathers is.
pub(crate) struct Gathered(OwnedFd);

impl Gathered {
    /// Gathers `descriptors`, which stay open for as long as the result is used.
    pub(crate) fn new(descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let gathered = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, descriptor) in descriptors.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&gathered, descriptor, data, epoll::EventFlags::IN)?;
        }
        Ok(Self(gathered))
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
