//! Live migration: a machine goes to another skep while its guest runs.
//!
//! # The way of the data
//!
//! The source connects, by a Unix socket or TCP, to a skep that was started with `skep receive`. Each side writes frames: 16 bytes of header (the
//! letters `SKPM`, the frame's kind, the payload's length; little-endian) and a payload.
//!
//! ```text
//! source: Hello    what the machine is: protocol, config, RAM, what the guest was shown of its CPUs, disks
//! target: Accept   this host could run it, and has taken memory for it
//! source: Pages, Zeroes ...  while the guest runs: all of RAM, then what was written meanwhile (dirty log), again and again, until the rest
//!                            takes no longer than the downtime that was asked for
//!         the guest stops, images are flushed
//! source: Pages, Zeroes ..., State   the rest, and the machine's records, as in a snapshot
//! target: Ready    the machine is made and holds the state; it waits
//!         the source gives its images' locks away
//! source: Go
//!         the target takes the locks
//! target: Running
//! source: Accept   it was heard: there is nothing to be asked
//! ```
//!
//! Either side says `Refused`, with a reason, where it can't go on. Payloads are CBOR of numbered fields ([`wire`]): what is added later is optional, or
//! named in `requires`, or raises the protocol's version.
//!
//! # One machine runs
//!
//! Until `Go` is sent the source owns the machine: whatever breaks, it goes on. The target runs nothing before it has read `Go`. A source that has
//! sent `Go` and hears nothing can't know whether it was read: it stands still, connects anew and asks, by the session's number, as long as it
//! takes. A target that lost its source before `Go` answers "no" and never runs then; one that has read it answers "yes". Where nobody answers,
//! because the target's host is gone, the user decides: `skep ctl resume` takes the machine back, if its disks are not another's by then.
//!
//! What it does not do: encryption (use a tunnel), several connections, throttling of a guest that writes faster than the connection takes, and
//! post-copy. Disks are not sent: both sides reach the same images, or the user has put copies in place.

mod error;
mod link;
mod memory;
mod source;
mod target;
pub mod wire;

pub use error::MigrateError;
pub use link::{Address, Listener};
pub use source::Moved;
pub(crate) use source::{Handed, Outgoing, Plan as OutgoingPlan};
pub use target::Arrival;
pub(crate) use target::{Settled, Settling};
