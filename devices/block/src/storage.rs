//! What an image is stored in: bytes of the host, moved by calls that wait.

use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::buffer::IoVecs;
use crate::file::{HostFile, host, open};
use crate::{BlockError, Buffer, FileOptions, IoError};

#[cfg(test)]
#[path = "storage_test.rs"]
mod test;

/// What the kernel takes in one call (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;
/// Direct I/O of memory that is not aligned goes through this much at once.
const BOUNCE: usize = 256 << 10;

/// Bytes that an image is stored in. Offsets and lengths are multiples of [`Storage::alignment`].
pub(crate) trait Storage: Send + Sync {
    /// Where it ends, in bytes.
    fn end(&self) -> Result<u64, IoError>;

    /// What offsets and lengths are multiples of; a power of two.
    fn alignment(&self) -> u32;

    /// Fills `len` bytes of `buffer` from `at` on. What is behind the end is zeroes.
    fn read(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError>;

    /// The same if it can be done without waiting; says whether it was. What was not done may have been begun.
    fn read_now(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> bool;

    /// Writes `len` bytes of `buffer` from `at` on.
    fn write(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError>;

    /// Returns when the medium has all that was written.
    fn sync(&self) -> Result<(), IoError>;

    /// Gives the space of a range back, if that can be done: it may then read as zeroes, or as before.
    fn punch(&self, offset: u64, len: u64);

    /// How many bytes from `offset` on are known to be zeroes without reading them, up to `most`.
    fn hole(&self, offset: u64, most: u64) -> u64;

    /// Takes its lock, or gives it away ([`crate::ImageDisk::hold`]).
    fn hold(&self, held: bool) -> Result<(), BlockError>;
}

impl dyn Storage + '_ {
    /// The `len` bytes from `offset` on, neither of which need be aligned. The caller bounds `len`.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let alignment = u64::from(self.alignment());
        let skip = (offset & (alignment - 1)) as usize;
        let buffer = Buffer::zeroed((skip + len).next_multiple_of(alignment as usize));
        self.read(offset - skip as u64, &buffer, 0, buffer.len())?;
        let mut bytes = vec![0; len];
        buffer.copy_out(skip, &mut bytes);
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`, neither of which need be aligned; nobody else writes beside them meanwhile.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let alignment = u64::from(self.alignment());
        let skip = (offset & (alignment - 1)) as usize;
        let len = (skip + bytes.len()).next_multiple_of(alignment as usize);
        let buffer = Buffer::zeroed(len);
        if skip != 0 || len != bytes.len() {
            self.read(offset - skip as u64, &buffer, 0, len)?;
        }
        buffer.copy_in(skip, bytes);
        self.write(offset - skip as u64, &buffer, 0, len)
    }
}

/// A file or a block device.
pub(crate) struct FileStorage {
    file: HostFile,
    direct: bool,
    alignment: u32,
    memory_alignment: usize,
    no_punch: AtomicBool,
}

/// A file as the host knows it, by whichever path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

impl FileStorage {
    /// Opens what is at `path`, as `options` say.
    pub(crate) fn open(path: &Path, options: &FileOptions) -> Result<(Self, Identity), BlockError> {
        // What is no file may wait for somebody to open its other end.
        let (file, metadata, geometry) = open(path, options, libc::O_NONBLOCK)?;
        let storage = Self {
            file,
            direct: options.direct,
            // The page cache takes any offset, of a device too.
            alignment: if options.direct { geometry.block_size } else { 1 },
            memory_alignment: geometry.memory_alignment,
            no_punch: AtomicBool::new(!geometry.discard),
        };
        let identity = if metadata.is_file() {
            Identity(metadata.dev(), metadata.ino())
        } else {
            Identity(u64::MAX, metadata.rdev())
        };
        Ok((storage, identity))
    }

    /// Moves by `call`, which is given pieces and where they go, and says how much it moved. It stops where `call` moves nothing.
    fn each(
        buffer: &Buffer,
        at: usize,
        len: usize,
        mut call: impl FnMut(&[libc::iovec], u64) -> i64,
    ) -> Result<usize, IoError> {
        let mut iovecs = IoVecs::default();
        let mut done = 0;
        while done < len {
            buffer.iovecs(at + done, &mut iovecs, MOST_PIECES);
            limit(&mut iovecs, len - done);
            match call(&iovecs.0, done as u64) {
                0 => break,
                moved @ 1.. => done += moved as usize,
                error if error == -i64::from(libc::EINTR) || error == -i64::from(libc::EAGAIN) => {}
                error => return Err(IoError::from_errno(i32::try_from(-error).unwrap_or(libc::EIO))),
            }
        }
        Ok(done)
    }

    /// Whether direct I/O takes the buffer's memory as it is.
    fn takes(&self, buffer: &Buffer, at: usize) -> bool {
        buffer.is_aligned(self.memory_alignment) && at & (self.memory_alignment - 1) == 0
    }

    fn write_pieces(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let done = Self::each(buffer, at, len, |pieces, done| host::pwritev2(&self.file, pieces, offset + done, 0))?;
        if done == len { Ok(()) } else { Err(IoError::NoSpace) }
    }

    fn read_pieces(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let done = Self::each(buffer, at, len, |pieces, done| host::preadv2(&self.file, pieces, offset + done, 0))?;
        buffer.clear_part(at + done, len - done);
        Ok(())
    }
}

/// Cuts the pieces off behind `left` bytes.
fn limit(IoVecs(pieces): &mut IoVecs, mut left: usize) {
    for piece in pieces.iter_mut() {
        piece.iov_len = piece.iov_len.min(left);
        left -= piece.iov_len;
    }
    pieces.retain(|piece| piece.iov_len > 0);
}

impl Storage for FileStorage {
    fn end(&self) -> Result<u64, IoError> {
        Ok((&*self.file).seek(SeekFrom::End(0))?)
    }

    fn alignment(&self) -> u32 {
        self.alignment
    }

    fn read(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        if self.takes(buffer, at) {
            return self.read_pieces(offset, buffer, at, len);
        }
        let own = Buffer::zeroed(len.min(BOUNCE));
        let mut bytes = vec![0; own.len()];
        for done in (0..len).step_by(BOUNCE) {
            let part = (len - done).min(BOUNCE);
            self.read_pieces(offset + done as u64, &own, 0, part)?;
            own.copy_out(0, &mut bytes[..part]);
            buffer.copy_in(at + done, &bytes[..part]);
        }
        Ok(())
    }

    fn read_now(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> bool {
        // The end, a refusal and a wait are all for a thread to find out.
        let call = |pieces: &[libc::iovec], done| host::read_now(&self.file, pieces, offset + done).max(0);
        !self.direct && Self::each(buffer, at, len, call).is_ok_and(|done| done == len)
    }

    fn write(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        if self.takes(buffer, at) {
            return self.write_pieces(offset, buffer, at, len);
        }
        let own = Buffer::zeroed(len.min(BOUNCE));
        let mut bytes = vec![0; own.len()];
        for done in (0..len).step_by(BOUNCE) {
            let part = (len - done).min(BOUNCE);
            buffer.copy_out(at + done, &mut bytes[..part]);
            own.copy_in(0, &bytes[..part]);
            self.write_pieces(offset + done as u64, &own, 0, part)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        Ok(self.file.sync_data()?)
    }

    fn punch(&self, offset: u64, len: u64) {
        if !self.no_punch.load(Ordering::Relaxed)
            && rustix::fs::fallocate(&*self.file, host::punch(), offset, len).is_err()
        {
            self.no_punch.store(true, Ordering::Relaxed);
        }
    }

    fn hold(&self, held: bool) -> Result<(), BlockError> {
        self.file.hold(held)
    }

    fn hole(&self, offset: u64, most: u64) -> u64 {
        match rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset).min(most),
            Err(rustix::io::Errno::NXIO) => most,
            Err(_) => 0,
        }
    }
}
