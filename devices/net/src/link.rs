//! The contract between a network and the card before it.

use std::io;
use std::os::fd::BorrowedFd;

use skep_memory::DirtySlice;
use skep_memory::vm_memory::VolatileSlice;

use crate::NetError;

/// A piece of guest memory. What is written to it is marked dirty.
pub type GuestSlice<'a> = VolatileSlice<'a, DirtySlice<'a>>;

/// Bytes of the header before each frame: `virtio_net_hdr` of virtio 1.2 section 5.1.6, with `num_buffers`.
pub const HEADER: usize = 12;
/// The longest frame with its header: a segmentation offload's 64 KiB, an Ethernet header and a VLAN tag.
pub const MAX_FRAME: usize = HEADER + 65_535 + 18;

bitflags::bitflags! {
    /// What may be left to do in a frame that is handed over: what its header then asks for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: u32 {
        /// A checksum to be filled in.
        const CHECKSUM = 1;
        /// A TCP segment over IPv4 to be cut.
        const TSO4 = 2;
        /// A TCP segment over IPv6 to be cut.
        const TSO6 = 4;
        /// A TCP segment with congestion notification to be cut.
        const TSO_ECN = 8;
        /// A UDP datagram over IPv4 to be cut.
        const USO4 = 0x20;
        /// A UDP datagram over IPv6 to be cut.
        const USO6 = 0x40;
    }
}

/// What a network offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// How many queue pairs can be opened.
    pub queues: u16,
    /// What it can take from the guest, and, as [`Link::set_offloads`] allows, give to it.
    pub offloads: Offloads,
    /// The largest packet, without its Ethernet header, if the network says so.
    pub mtu: Option<u16>,
}

/// A network: what all queue pairs of a card share.
pub trait Link: Send + Sync {
    /// What it offers.
    fn info(&self) -> LinkInfo;

    /// Opens queue pair `queue`, once each.
    ///
    /// # Errors
    /// Where the host refuses.
    fn open_queue(&self, queue: u16) -> Result<Box<dyn LinkQueue>, NetError>;

    /// Says what may be left to do in the frames that the guest receives.
    ///
    /// # Errors
    /// Where the host refuses.
    fn set_offloads(&self, offloads: Offloads) -> Result<(), NetError>;

    /// Says how many queue pairs, from the first on, receive.
    ///
    /// # Errors
    /// Where the host refuses.
    fn set_active_queues(&self, count: u16) -> Result<(), NetError>;

    /// Tells the network that a card of this address is here now, where it was elsewhere before. One that learns it otherwise does nothing.
    fn announce(&self, _mac: [u8; 6]) {}
}

/// Bytes of the shortest Ethernet frame, without its checksum.
const SHORTEST: usize = 60;

/// What a card says of itself that has come from elsewhere, so that switches learn where it is: a broadcast request of RARP (RFC 903), which asks for
/// nothing that anybody would answer.
pub(crate) fn announcement(mac: [u8; 6]) -> [u8; HEADER + SHORTEST] {
    let mut frame = [0; HEADER + SHORTEST];
    let parts: [&[u8]; 7] = [
        &[0xff; 6],
        &mac,
        // RARP; Ethernet addresses of 6 bytes for IPv4's of 4; a request.
        &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
    ];
    frame[HEADER..].iter_mut().zip(parts.concat()).for_each(|(to, byte)| *to = byte);
    frame
}

/// One queue pair's way to a network. No method waits.
///
/// A frame begins with its header of [`HEADER`] bytes, little-endian.
pub trait LinkQueue: Send {
    /// Sends a frame.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while the host takes no more: the descriptor tells when it does. Of any other error the frame is lost,
    /// as frames may be.
    fn send(&mut self, frame: &[GuestSlice<'_>]) -> io::Result<()>;

    /// Goes on with a frame that the host has taken in part.
    ///
    /// # Errors
    /// As [`LinkQueue::send`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Receives a frame into `room`, and says its length. Of a frame that has no room there, the rest is lost, and the length is more than
    /// the room, but not always how much more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while there is none.
    fn receive(&mut self, room: &[GuestSlice<'_>]) -> io::Result<usize>;

    /// Ready to be read when there may be a frame, to be written when there is room again. Watched edge-triggered.
    fn event(&self) -> BorrowedFd<'_>;
}
