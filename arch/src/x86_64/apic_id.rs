//! APIC ids, in which each level of the topology has a field of whole bits.

use crate::topology::Topology;

/// The highest APIC id that is not an x2APIC id; 255 means every processor.
pub const LAST_XAPIC_ID: u32 = 254;

/// How APIC ids are made of a topology (SDM volume 3A, "Hierarchical Mapping of Shared Resources").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicIds {
    topology: Topology,
    thread_bits: u32,
    core_bits: u32,
}

/// Bits that tell `count` things apart.
fn bits(count: u32) -> u32 {
    u32::BITS - (count - 1).leading_zeros()
}

impl ApicIds {
    /// The ids of a machine's CPUs.
    pub fn new(topology: Topology) -> Self {
        Self { topology, thread_bits: bits(topology.threads), core_bits: bits(topology.cores) }
    }

    /// The id of CPU `index`.
    pub fn id(&self, index: u32) -> u32 {
        let place = self.topology.place(index);
        let socket = place.socket.checked_shl(self.socket_shift()).unwrap_or(0);
        socket | place.core << self.thread_bits | place.thread
    }

    /// One more than the highest id of the topology; `None` if ids have more than 32 bits.
    pub fn count(&self) -> Option<u32> {
        let last = u64::from(self.topology.sockets - 1) << self.socket_shift()
            | u64::from(self.topology.cores - 1) << self.thread_bits
            | u64::from(self.topology.threads - 1);
        u32::try_from(last + 1).ok()
    }

    /// Bits of an id that tell the threads of a core apart.
    pub fn thread_bits(&self) -> u32 {
        self.thread_bits
    }

    /// Bits of an id below the socket's.
    pub fn socket_shift(&self) -> u32 {
        self.thread_bits + self.core_bits
    }

    /// Bits of an id that tell the cores of a socket apart.
    pub fn core_bits(&self) -> u32 {
        self.core_bits
    }

    /// The topology that the ids are of.
    pub fn topology(&self) -> Topology {
        self.topology
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn ids(sockets: u32, cores: u32, threads: u32) -> ApicIds {
        ApicIds::new(Topology::new(sockets, cores, threads).unwrap())
    }

    #[test]
    fn fields_are_whole_bits() {
        let ids = ids(2, 3, 2);
        assert_eq!((ids.thread_bits(), ids.socket_shift()), (1, 3));
        let all: Vec<_> = (0..12).map(|index| ids.id(index)).collect();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(ids.count(), Some(14));
    }

    #[test]
    fn one_socket_has_ids_without_gaps() {
        let ids = ids(1, 300, 1);
        assert!((0..300).all(|index| ids.id(index) == index));
        assert_eq!(ids.count(), Some(300));
    }

    #[test]
    fn ids_that_are_too_wide_are_noticed() {
        assert_eq!(ids((1 << 16) + 1, (1 << 15) + 1, 1).count(), None);
        assert_eq!(ids(1, u32::MAX, 1).count(), Some(u32::MAX));
        assert_eq!(ids(1, u32::MAX, 1).id(5), 5);
    }
}
