//! The memory that a request moves.
#![allow(unsafe_code)] // Pieces of guest memory are held by their host addresses while the host reads or writes them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use skep_memory::RamView;
use skep_memory::vm_memory::bitmap::Bitmap;
use skep_memory::vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice};

#[cfg(test)]
#[path = "buffer_test.rs"]
mod test;

/// A piece of a buffer is not RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {gpa:#x} are not RAM")]
pub struct NotRam {
    /// The guest physical address.
    pub gpa: u64,
    /// How many bytes.
    pub len: usize,
}

/// What every direct I/O of a Linux host is content with, in memory.
const ALIGNMENT: usize = 4096;

/// Host memory of skep's own, aligned for direct I/O.
struct Owned {
    start: NonNull<u8>,
    layout: Layout,
}

impl Owned {
    fn new(len: usize) -> Self {
        let layout =
            Layout::from_size_align(len.max(1), ALIGNMENT).expect("a buffer is far smaller than the address space");
        // SAFETY: the layout has at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Self { start: start.unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// What keeps the pieces mapped.
enum Keeper {
    Nothing,
    Guest(Arc<RamView>),
    Own(#[expect(dead_code, reason = "what keeps the memory is kept")] Owned),
}

/// A list of pieces for the kernel. It points into buffers that its owner keeps.
#[derive(Default)]
pub(crate) struct IoVecs(pub(crate) Vec<libc::iovec>);

// SAFETY: the addresses are for the kernel; nobody else goes where they point.
unsafe impl Send for IoVecs {}

/// Bytes that lie together in the host.
#[derive(Clone, Copy)]
struct Piece {
    host: *mut u8,
    len: usize,
    gpa: u64,
}

fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.host.wrapping_add(last.len) == piece.host && last.gpa + last.len as u64 == piece.gpa => {
            last.len += piece.len;
        }
        _ => pieces.push(piece),
    }
}

/// Memory that a request reads into or writes from: pieces of guest RAM, or memory of skep's own. It keeps what it points to mapped.
///
/// The guest may change its memory at any time, so that what a buffer holds is never looked at in place: [`Buffer::copy_out`] and
/// [`Buffer::copy_in`] copy.
pub struct Buffer {
    keeper: Keeper,
    pieces: Vec<Piece>,
    len: usize,
}

// SAFETY: the pieces point into memory that `keeper` keeps mapped whichever thread has the buffer, and all access to it is by volatile
// copies or by the kernel, as for memory that a guest shares.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access offers nothing but such copies.
unsafe impl Sync for Buffer {}

impl Default for Buffer {
    fn default() -> Self {
        Self::empty()
    }
}

impl Buffer {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { keeper: Keeper::Nothing, pieces: Vec::new(), len: 0 }
    }

    /// A buffer of guest memory, to which [`Buffer::push`] adds pieces.
    #[must_use]
    pub fn guest(ram: Arc<RamView>) -> Self {
        Self { keeper: Keeper::Guest(ram), ..Self::empty() }
    }

    /// The same as [`Buffer::guest`], with what `self` had allocated for its list.
    #[must_use]
    pub fn reuse(mut self, ram: Arc<RamView>) -> Self {
        self.pieces.clear();
        Self { keeper: Keeper::Guest(ram), pieces: self.pieces, len: 0 }
    }

    /// `len` zeroes of skep's own, aligned for direct I/O. The caller bounds `len`.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let own = Owned::new(len);
        let piece = Piece { host: own.start.as_ptr(), len, gpa: 0 };
        Self { keeper: Keeper::Own(own), pieces: if len == 0 { Vec::new() } else { vec![piece] }, len }
    }

    /// Adds `len` bytes of guest memory at `gpa`.
    ///
    /// # Errors
    /// [`NotRam`], and the buffer is what it was. A buffer that is not of guest memory takes no more pieces.
    pub fn push(&mut self, gpa: u64, len: usize) -> Result<(), NotRam> {
        let refused = NotRam { gpa, len };
        let Keeper::Guest(ram) = &self.keeper else { return Err(refused) };
        let (pieces, last) = (self.pieces.len(), self.pieces.last().copied());
        let (mut at, mut left) = (gpa, len);
        while left > 0 {
            let found = ram.to_region_addr(GuestAddress(at)).and_then(|(region, offset)| {
                let here = usize::try_from(region.len() - offset.0).map_or(left, |room| room.min(left));
                Some((region.get_host_address(offset).ok()?, here))
            });
            let Some((host, here)) = found else {
                self.pieces.truncate(pieces);
                if let (Some(kept), Some(last)) = (self.pieces.last_mut(), last) {
                    *kept = last;
                }
                return Err(refused);
            };
            append(&mut self.pieces, Piece { host, len: here, gpa: at });
            // The end of the address space is the end of a region, so that what is left is then 0.
            at = at.wrapping_add(here as u64);
            left -= here;
        }
        self.len += len;
        Ok(())
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces: what a host's scatter list has of it.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Whether each piece begins and ends at a multiple of `alignment`, a power of two.
    pub(crate) fn is_aligned(&self, alignment: usize) -> bool {
        self.pieces.iter().all(|piece| (piece.host as usize | piece.len) & (alignment - 1) == 0)
    }

    /// The pieces from `skip` bytes on, as far as they fit into `into`; says how many bytes they are.
    pub(crate) fn iovecs(&self, mut skip: usize, IoVecs(into): &mut IoVecs, most: usize) -> usize {
        into.clear();
        let mut bytes = 0;
        for piece in &self.pieces {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            if into.len() == most {
                break;
            }
            let len = piece.len - skip;
            into.push(libc::iovec { iov_base: piece.host.wrapping_add(skip).cast(), iov_len: len });
            bytes += len;
            skip = 0;
        }
        bytes
    }

    fn each(&self, mut skip: usize, mut left: usize, mut act: impl FnMut(VolatileSlice<'_>, usize)) -> usize {
        let mut done = 0;
        for piece in &self.pieces {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let len = left.min(piece.len - skip);
            if len == 0 {
                break;
            }
            // SAFETY: the piece lies in memory that `keeper` keeps mapped, and `skip + len` inside it.
            act(unsafe { VolatileSlice::new(piece.host.wrapping_add(skip), len) }, done);
            (done, left, skip) = (done + len, left - len, 0);
        }
        done
    }

    /// Copies bytes from `offset` on out of the buffer; says how many there were.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> usize {
        self.each(offset, into.len(), |slice, at| {
            slice.copy_to(&mut into[at..]);
        })
    }

    /// Copies bytes into the buffer from `offset` on; says how many there was room for. Guest memory is not marked dirty by this.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        self.each(offset, from.len(), |slice, at| slice.copy_from(&from[at..at + slice.len()]))
    }

    /// Fills the buffer from `offset` on with zeroes. Guest memory is not marked dirty by this.
    pub fn clear(&self, offset: usize) {
        self.clear_part(offset, usize::MAX);
    }

    /// Fills `len` bytes from `offset` on with zeroes, as far as the buffer goes. Guest memory is not marked dirty by this.
    pub(crate) fn clear_part(&self, offset: usize, len: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < len {
            let moved = self.copy_in(offset + done, &ZEROES[..ZEROES.len().min(len - done)]);
            if moved == 0 {
                return;
            }
            done += moved;
        }
    }

    /// Marks guest memory dirty: done by whoever completes a read, once the data is there, so that no reader of the dirty log comes between.
    pub fn mark_dirty(&self) {
        let Keeper::Guest(ram) = &self.keeper else { return };
        for piece in &self.pieces {
            let (mut at, mut left) = (piece.gpa, piece.len);
            // A piece may span regions that lie together both in the guest and in the host.
            while left > 0 {
                let Some((region, MemoryRegionAddress(offset))) = ram.to_region_addr(GuestAddress(at)) else { break };
                let here = usize::try_from(region.len() - offset).map_or(left, |room| room.min(left));
                region.bitmap().mark_dirty(offset as usize, here);
                at = at.wrapping_add(here as u64);
                left -= here;
            }
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("pieces", &self.pieces.len()).finish()
    }
}
