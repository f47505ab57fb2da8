//! Disks for tests: in memory, and failing as told.

mod fault;
mod memory;

pub use fault::{Fault, FaultDisk};
pub use memory::{Counts, MemoryDisk};

use rustix::event::{PollFd, PollFlags, poll};

use crate::{Completion, DiskQueue};

/// Starts what was submitted, and waits until nothing is in flight.
///
/// # Panics
/// Where the host can't wait for the queue's event.
pub fn finish(queue: &mut dyn DiskQueue) -> Vec<Completion> {
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    while queue.in_flight() > 0 {
        poll(&mut [PollFd::from_borrowed_fd(queue.event(), PollFlags::IN)], None).expect("an event can be waited for");
        queue.reap(&mut done);
    }
    done
}

#[cfg(test)]
#[path = "testing_test.rs"]
mod test;
