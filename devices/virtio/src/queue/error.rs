//! What a driver can do wrong with a ring.

/// A driver broke the rules of the split virtqueue (section 2.7). The queue stands still, and the device asks to be reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Sizes are powers of two up to the device's own (section 2.7).
    #[error("the queue's size is {size}: it must be a power of two up to {max}")]
    Size {
        /// The driver's choice.
        size: u16,
        /// The device's limit.
        max: u16,
    },
    /// A part of the queue is not aligned as section 2.7 says.
    #[error("the {part} at {gpa:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Its guest physical address.
        gpa: u64,
        /// What it must be aligned to.
        alignment: u64,
    },
    /// A part of the queue, an indirect table or a buffer is not RAM, or only in part.
    #[error("the {part} at {gpa:#x} of {len} bytes is not RAM")]
    NotRam {
        /// Which part.
        part: &'static str,
        /// Its guest physical address.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// More chains are available than the ring has room for.
    #[error("the available ring's index is {ahead} ahead: the queue's size is {size}")]
    Available {
        /// How far the index is from the last one taken.
        ahead: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor's number is not in its table.
    #[error("descriptor {index} is not in a table of {size}")]
    Index {
        /// The number.
        index: u16,
        /// The table's size.
        size: u32,
    },
    /// A chain is longer than the queue, which a loop is, too (section 2.7.5.2).
    #[error("a descriptor chain is longer than the queue's {size} descriptors")]
    Long {
        /// The queue's size.
        size: u16,
    },
    /// A chain has more than 2^32 bytes (section 2.7.5.2).
    #[error("a descriptor chain is longer than 2^32 bytes")]
    Bytes,
    /// A device-readable buffer follows a device-writable one (section 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table breaks section 2.7.5.3.
    #[error("an indirect descriptor {0}")]
    Indirect(&'static str),
    /// A request lacks what the device type says that each has.
    #[error("a request has no {0}")]
    Request(&'static str),
    /// The host has no resources left to work the queue.
    #[error("the host can't work the queue: {0}")]
    Host(String),
}
