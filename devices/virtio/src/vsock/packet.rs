//! Packets (section 5.10.6).

/// Bytes of a packet's header.
pub(super) const HEADER: usize = 44;
/// `type` of a stream.
const STREAM: u16 = 1;
/// The host's context id.
pub(super) const HOST_CID: u64 = 2;

/// `op`.
pub(super) mod op {
    pub(in crate::vsock) const REQUEST: u16 = 1;
    pub(in crate::vsock) const RESPONSE: u16 = 2;
    pub(in crate::vsock) const RST: u16 = 3;
    pub(in crate::vsock) const SHUTDOWN: u16 = 4;
    pub(in crate::vsock) const RW: u16 = 5;
    pub(in crate::vsock) const CREDIT_UPDATE: u16 = 6;
    pub(in crate::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of a shutdown: the sender receives, or sends, no more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A header, as far as it is not the same in every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) ports: Ports,
    pub(super) len: u32,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes.iter().skip(at).take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn long(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from(word(bytes, at + 4)) << 32 | u64::from(word(bytes, at))
}

impl Packet {
    /// Reads what guest `cid` has sent, and says whether it is a stream's packet from that guest to the host.
    pub(super) fn parse(bytes: &[u8; HEADER], cid: u64) -> (Self, bool) {
        let (kind, op) = (word(bytes, 28) as u16, (word(bytes, 28) >> 16) as u16);
        let packet = Self {
            ports: Ports { guest: word(bytes, 16), host: word(bytes, 20) },
            len: word(bytes, 24),
            op,
            flags: word(bytes, 32),
            buf_alloc: word(bytes, 36),
            fwd_cnt: word(bytes, 40),
        };
        (packet, long(bytes, 0) == cid && long(bytes, 8) == HOST_CID && kind == STREAM)
    }

    /// The header of a packet to guest `cid`.
    pub(super) fn to_guest(self, cid: u64) -> [u8; HEADER] {
        let fields = [
            &HOST_CID.to_le_bytes()[..],
            &cid.to_le_bytes(),
            &self.ports.host.to_le_bytes(),
            &self.ports.guest.to_le_bytes(),
            &self.len.to_le_bytes(),
            &STREAM.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        for (place, byte) in bytes.iter_mut().zip(fields.concat()) {
            *place = byte;
        }
        bytes
    }
}
