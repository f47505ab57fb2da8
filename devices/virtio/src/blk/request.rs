//! Requests as drivers write them (section 5.2.6).

use std::ops::Range;

use skep_block::Operation;
use skep_memory::RamView;

use crate::{Chain, QueueError};

/// Bytes of a sector, the unit of all addresses and lengths.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a request's header, and of a segment to be discarded or zeroed.
const HEADER: u64 = 16;
/// The most sectors that one request discards or zeroes.
pub(super) const MAX_RANGE: u32 = 1 << 22;
/// Bytes of the device's id.
pub(super) const ID_LEN: usize = 20;

/// `type`.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Something that the disk does. The bytes that it moves are `data` of the chain's readable or writable part.
    Disk { operation: Operation, data: Range<u64> },
    /// The id goes into the writable part.
    Id,
}

/// Reads a chain's request, whose writes wait for the medium if they go `through`. What breaks a request's own rules is an error of that
/// request; a chain without header or room for the status is an error of the driver.
pub(super) fn parse(memory: &RamView, chain: &Chain, through: bool) -> Result<Result<Request, Status>, QueueError> {
    let (readable, writable) = (chain.readable(), chain.writable());
    let Some(header) = readable.read_array::<{ HEADER as usize }>(memory, 0)? else {
        return Err(QueueError::Request("header of 16 bytes"));
    };
    if writable.is_empty() {
        return Err(QueueError::Request("room for its status"));
    }
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
    let (given, room) = (readable.len() - HEADER, writable.len() - 1);
    let transfer = |operation: Option<Operation>, data: Range<u64>| {
        let whole = (data.end - data.start).is_multiple_of(SECTOR);
        operation.filter(|_| whole).map(|operation| Request::Disk { operation, data }).ok_or(Status::IoError)
    };
    Ok(match kind {
        kind::IN => transfer(offset.map(|offset| Operation::Read { offset }), 0..room),
        kind::OUT => transfer(offset.map(|offset| Operation::Write { offset, fua: through }), HEADER..HEADER + given),
        kind::FLUSH => Ok(Request::Disk { operation: Operation::Flush, data: 0..0 }),
        kind::GET_ID => Ok(Request::Id),
        // One segment each, as the configuration says.
        kind::DISCARD | kind::WRITE_ZEROES if given != HEADER => Err(Status::Unsupported),
        kind::DISCARD | kind::WRITE_ZEROES => {
            let segment = readable.read_array::<16>(memory, HEADER)?.unwrap_or_default();
            let operation = range(kind == kind::DISCARD, segment, through);
            operation.map(|operation| Request::Disk { operation, data: 0..0 })
        }
        _ => Err(Status::Unsupported),
    })
}

/// A segment of `virtio_blk_discard_write_zeroes`.
fn range(discard: bool, segment: [u8; 16], through: bool) -> Result<Operation, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let unmap = flags & 1 != 0;
    if flags & !1 != 0 || (discard && unmap) {
        return Err(Status::Unsupported);
    }
    let offset = sector.checked_mul(SECTOR).filter(|_| sectors <= MAX_RANGE).ok_or(Status::IoError)?;
    let len = u64::from(sectors) * SECTOR;
    Ok(if discard {
        Operation::Discard { offset, len }
    } else {
        Operation::WriteZeroes { offset, len, may_discard: unmap, fua: through }
    })
}
