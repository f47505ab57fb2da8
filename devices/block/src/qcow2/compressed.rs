//! Compressed clusters.

use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress};

use crate::IoError;
use crate::storage::Storage;

/// The cluster that was read last, which whoever reads on wants again. Nothing is compressed into an image in use, so that it stays what it is.
#[derive(Default)]
pub(super) struct Compressed(Mutex<Option<(u64, Arc<Vec<u8>>)>>);

impl Compressed {
    /// The content of the cluster of `size` bytes that is compressed into at most `len` bytes at `offset`.
    pub(super) fn get(&self, storage: &dyn Storage, offset: u64, len: u64, size: u64) -> Result<Arc<Vec<u8>>, IoError> {
        let last = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = last().as_ref().filter(|(of, _)| *of == offset) {
            return Ok(known.clone());
        }
        // An entry has no room for more than two clusters' worth.
        let content = Arc::new(inflate(&storage.bytes(offset, len as usize)?, size as usize)?);
        *last() = Some((offset, content.clone()));
        Ok(content)
    }
}

/// `size` bytes of what is compressed (RFC 1951), which may be followed by anything.
fn inflate(bytes: &[u8], size: usize) -> Result<Vec<u8>, IoError> {
    let mut content = vec![0; size];
    let mut stream = Decompress::new(false);
    stream.decompress(bytes, &mut content, FlushDecompress::Finish).map_err(|_| IoError::Damaged)?;
    if stream.total_out() == size as u64 { Ok(content) } else { Err(IoError::Damaged) }
}
