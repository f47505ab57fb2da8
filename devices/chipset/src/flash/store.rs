//! The file that a bank's content lasts in, and what becomes of that where the host refuses.
//!
//! Firmware may not ask how a write has ended: OVMF programs a variable's data, and then the state by which the variable counts, whatever became of the data. So after
//! one failure nothing is written any more: the file stays what it was at that moment, and each later operation fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tracing::error;

use super::held;

/// What the content is kept on: a file, or a test's.
pub(super) trait Media: Send {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Returns once what was written is on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Has it end there.
    fn cut(&self, size: u64) -> io::Result<()>;
}

impl Media for File {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }
}

/// The file of a bank.
pub(super) struct Store {
    media: Box<dyn Media>,
    flash: &'static str,
    /// Bytes of the bank.
    size: u64,
    /// Written, and not yet known to be on stable storage.
    unsynced: bool,
    /// A write or a sync has failed.
    failed: bool,
    /// A sync has failed. Another one would succeed, and say nothing of what is lost.
    lost: bool,
}

impl Store {
    pub(super) fn new(media: Box<dyn Media>, flash: &'static str, size: u64) -> Self {
        Self { media, flash, size, unsynced: false, failed: false, lost: false }
    }

    /// Whether the host has refused anything: nothing is written any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Writes bytes, and says whether they are there.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        self.attempt(|media, _| media.write(bytes, at))
    }

    /// Writes a block that is there as a whole, or as it was; says whether it is there.
    pub(super) fn write_block(&mut self, at: u64, block: &[u8]) -> bool {
        self.attempt(|media, size| held::write(media, size, at, block))
    }

    fn attempt(&mut self, write: impl FnOnce(&dyn Media, u64) -> io::Result<()>) -> bool {
        if self.failed {
            return false;
        }
        self.unsynced = true;
        let result = write(&*self.media, self.size);
        self.hear(result)
    }

    /// Returns once what was written is on stable storage; says once where it is not: OVMF knows flash by a status that stays clear.
    pub(super) fn sync(&mut self) -> bool {
        if !self.unsynced || self.lost {
            return true;
        }
        let result = self.media.sync();
        (self.unsynced, self.lost) = (result.is_err(), result.is_err());
        self.hear(result)
    }

    fn hear(&mut self, result: io::Result<()>) -> bool {
        let Err(error) = result else { return true };
        if !std::mem::replace(&mut self.failed, true) {
            error!(
                %error,
                flash = self.flash,
                "the host does not keep what the guest writes to its flash, whose file stays as it is from now on; once there is room for it, or its disk is well, \
                 start the machine again"
            );
        }
        false
    }
}
