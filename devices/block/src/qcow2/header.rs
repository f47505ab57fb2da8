//! The header: what an image says it is.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::entry::{Geometry, MOST_OFFSET};
use crate::IoError;
use crate::storage::Storage;

#[cfg(test)]
#[path = "header_test.rs"]
mod test;

const MAGIC: u32 = 0x5146_49fb;
/// Version 2 ends here.
const SHORT: usize = 72;
/// The fields of version 3 that every image has.
const LONG: usize = 104;
/// With the compression type, and padded.
const OURS: usize = 112;

/// Features that a reader must know.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
/// The names of the first ones.
const FEATURES: [&str; 5] =
    ["dirty refcounts", "corrupt", "external data file", "compression type", "extended level 2 entries"];
const LAZY_REFCOUNTS: u64 = 1 << 0;
const BITMAPS: u64 = 1 << 0;

/// Header extensions.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME: usize = 48;

/// Where fields are that change while an image is open.
const TABLE_FIELD: u64 = 48;
const INCOMPATIBLE_FIELD: u64 = 72;
const AUTOCLEAR_FIELD: u64 = 88;

/// Bytes of tables that QEMU takes at most, and so do we.
const MOST_L1: u64 = 32 << 20;
const MOST_TABLE: u64 = 8 << 20;
const MOST_SNAPSHOTS: u32 = 65536;
const MOST_NAME: usize = 1023;

/// How a backing file's content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Byte by byte.
    Raw,
    /// QEMU's copy on write format, version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    /// The name that images and the command line use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The image that another one is a change of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// As the header names it: relative to the image's folder, if it is relative.
    pub file: PathBuf,
    /// As the header names it; nothing where it does not.
    pub format: Option<String>,
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) geometry: Geometry,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) backing: Option<Backing>,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    /// The table of reference count blocks.
    pub(super) table_offset: u64,
    pub(super) table_clusters: u64,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    /// Reference counts may be too small.
    pub(super) dirty: bool,
    /// Somebody has found that the image contradicts itself.
    pub(super) corrupt: bool,
    /// Reference counts may be brought up to date later, if the image is marked dirty.
    pub(super) lazy_refcounts: bool,
    /// Which say what has changed; they use clusters that nothing else does.
    pub(super) bitmaps: bool,
    autoclear: u64,
}

/// Big-endian numbers at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

impl Header {
    /// Reads the header of the image in `storage`.
    ///
    /// # Errors
    /// Why it can't be used, and what would mend it.
    pub(super) fn read(storage: &dyn Storage) -> Result<Self, String> {
        let unreadable = |error| format!("its header can't be read: {error}");
        let start = storage.bytes(0, LONG).map_err(unreadable)?;
        let bits = Fields(&start).u32(20);
        if Fields(&start).u32(0) != MAGIC {
            return Err("it is no qcow2 image: is its format raw?".to_owned());
        }
        if !(9..=21).contains(&bits) {
            return Err(format!("its clusters of 2^{bits} bytes are not of 512 bytes to 2 MiB"));
        }
        if 1_u64 << bits < storage.alignment().into() {
            let (size, block) = (1 << bits, storage.alignment());
            return Err(format!(
                "its clusters of {size} bytes are less than the {block} of the host's direct I/O: leave `direct` out"
            ));
        }
        Self::parse(&storage.bytes(0, 1 << bits).map_err(unreadable)?)
    }

    /// Takes the first cluster of an image apart.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fields = Fields(bytes);
        let version = fields.u32(4);
        let (incompatible, compatible, autoclear, order, length) = match version {
            2 => (0, 0, 0, 4, SHORT),
            3 => (fields.u64(72), fields.u64(80), fields.u64(88), fields.u32(96), fields.u32(100) as usize),
            other => return Err(format!("it is of version {other}: versions 2 and 3 are known")),
        };
        if length < SHORT || version == 3 && length < LONG || length > bytes.len() {
            return Err(format!("its header of {length} bytes is not one of version {version}"));
        }
        // The name of the backing file ends them.
        let end = Some(fields.u64(8) as usize).filter(|end| (length..bytes.len()).contains(end)).unwrap_or(bytes.len());
        let extensions = Extensions::parse(&bytes[..end], length)?;
        extensions.refuse_unknown(incompatible, bytes.get(LONG).copied().filter(|_| length > LONG).unwrap_or(0))?;
        match fields.u32(32) {
            0 => {}
            method => {
                let name = ["", "AES", "LUKS"].get(method as usize).copied().unwrap_or("an unknown method");
                return Err(format!("it is encrypted ({name}): decrypt it by `qemu-img convert`"));
            }
        }
        if order > 6 {
            return Err(format!("its reference counts of 2^{order} bits are not of 1 to 64 bits"));
        }
        let geometry = Geometry { cluster_bits: fields.u32(20), refcount_order: order, version };
        let header = Self {
            geometry,
            size: fields.u64(24),
            backing: extensions.backing(bytes, fields.u64(8), fields.u32(16) as usize)?,
            l1_offset: fields.u64(40),
            l1_entries: fields.u32(36).into(),
            table_offset: fields.u64(TABLE_FIELD as usize),
            table_clusters: fields.u32(56).into(),
            snapshots: fields.u32(60),
            snapshots_offset: fields.u64(64),
            dirty: incompatible & DIRTY != 0,
            corrupt: incompatible & CORRUPT != 0,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
            bitmaps: autoclear & BITMAPS != 0,
            autoclear,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        let geometry = &self.geometry;
        if self.size > MOST_OFFSET {
            return Err(format!("its size of {} bytes is beyond all files", self.size));
        }
        let needed = geometry.l1_entries(self.size);
        let lists = [
            ("level 1 table", self.l1_offset, self.l1_entries * 8, needed * 8, MOST_L1),
            ("table of reference counts", self.table_offset, self.table_bytes(), 8, MOST_TABLE),
        ];
        for (what, offset, len, least, most) in lists {
            if len < least {
                return Err(format!("its {what} of {len} bytes is too small: it needs {least}"));
            }
            if len > most {
                return Err(format!("its {what} of {len} bytes is larger than {most}"));
            }
            if len > 0 && (offset == 0 || offset > MOST_OFFSET || geometry.within(offset) != 0) {
                return Err(format!("its {what} is at {offset:#x}, which is no place of a cluster"));
            }
        }
        if self.snapshots > MOST_SNAPSHOTS {
            return Err(format!("its {} snapshots are more than {MOST_SNAPSHOTS}", self.snapshots));
        }
        let at = self.snapshots_offset;
        if self.snapshots > 0 && (at == 0 || at > MOST_OFFSET || geometry.within(at) != 0) {
            return Err(format!("its snapshots are at {at:#x}, which is no place of a cluster"));
        }
        Ok(())
    }

    /// Bytes of the table of reference count blocks.
    pub(super) fn table_bytes(&self) -> u64 {
        self.table_clusters << self.geometry.cluster_bits
    }

    /// The first cluster of a new image.
    ///
    /// # Errors
    /// Why there can be no such image.
    pub(super) fn write(&self) -> Result<Vec<u8>, String> {
        let geometry = &self.geometry;
        let size = geometry.cluster_size() as usize;
        let mut bytes = Vec::with_capacity(size);
        let mut put = |number: u64, width: usize| bytes.extend_from_slice(&number.to_be_bytes()[8 - width..]);
        let name = self.backing.as_ref().map_or(&[][..], |backing| backing.file.as_os_str().as_bytes());
        let format = self.backing.as_ref().and_then(|backing| backing.format.as_deref()).unwrap_or_default();
        let format_space = if format.is_empty() { 0 } else { 8 + format.len().next_multiple_of(8) };
        let name_offset = OURS + format_space + 8;
        for (number, width) in [
            (MAGIC.into(), 4),
            (geometry.version.into(), 4),
            (if name.is_empty() { 0 } else { name_offset as u64 }, 8),
            (name.len() as u64, 4),
            (geometry.cluster_bits.into(), 4),
            (self.size, 8),
            // No encryption.
            (0, 4),
            (self.l1_entries, 4),
            (self.l1_offset, 8),
            (self.table_offset, 8),
            (self.table_clusters, 4),
            (self.snapshots.into(), 4),
            (self.snapshots_offset, 8),
            (if self.dirty { DIRTY } else { 0 }, 8),
            (if self.lazy_refcounts { LAZY_REFCOUNTS } else { 0 }, 8),
            (self.autoclear, 8),
            (geometry.refcount_order.into(), 4),
            (OURS as u64, 4),
            // Deflate, and padding.
            (0, 8),
        ] {
            put(number, width);
        }
        if !format.is_empty() {
            put(BACKING_FORMAT.into(), 4);
            put(format.len() as u64, 4);
            bytes.extend_from_slice(format.as_bytes());
        }
        bytes.resize(name_offset, 0);
        bytes.extend_from_slice(name);
        if bytes.len() > size || name.len() > MOST_NAME {
            return Err(format!(
                "the name of its backing file does not fit into a header of {size} bytes: a shorter one, or larger clusters"
            ));
        }
        bytes.resize(size, 0);
        Ok(bytes)
    }

    /// Marks the image in `storage`, of version 3, as one that contradicts itself.
    pub(super) fn set_damaged(storage: &dyn Storage) -> Result<(), IoError> {
        let features = Fields(&storage.bytes(INCOMPATIBLE_FIELD, 8)?).u64(0);
        storage.put(INCOMPATIBLE_FIELD, &(features | CORRUPT).to_be_bytes())
    }

    /// Says that the image in `storage`, of version 3, has been mended.
    pub(super) fn set_mended(storage: &dyn Storage) -> Result<(), IoError> {
        let features = Fields(&storage.bytes(INCOMPATIBLE_FIELD, 8)?).u64(0);
        storage.put(INCOMPATIBLE_FIELD, &(features & !(CORRUPT | DIRTY)).to_be_bytes())
    }

    /// Before the image is changed: clears what says that others have kept up with all changes.
    pub(super) fn clear_automatic(&mut self, storage: &dyn Storage) -> Result<(), IoError> {
        if std::mem::take(&mut self.autoclear) == 0 {
            return Ok(());
        }
        self.bitmaps = false;
        storage.put(AUTOCLEAR_FIELD, &[0; 8])?;
        storage.sync()
    }

    /// Says where the table of reference count blocks is from now on: both fields are in one sector.
    pub(super) fn set_table(storage: &dyn Storage, offset: u64, clusters: u64) -> Result<(), IoError> {
        let clusters = u32::try_from(clusters).map_err(|_| IoError::NoSpace)?;
        let mut bytes = offset.to_be_bytes().to_vec();
        bytes.extend_from_slice(&clusters.to_be_bytes());
        storage.put(TABLE_FIELD, &bytes)
    }

    /// The same with the table of reference count blocks where it is now.
    pub(super) fn with_table(&self, storage: &dyn Storage) -> Result<Self, IoError> {
        let bytes = storage.bytes(TABLE_FIELD, 12)?;
        let fields = Fields(&bytes);
        Ok(Self { table_offset: fields.u64(0), table_clusters: fields.u32(8).into(), ..self.clone() })
    }

    /// A header for a new image of version 3, without tables.
    pub(super) fn new(geometry: Geometry, size: u64, backing: Option<Backing>) -> Self {
        Self {
            geometry,
            size,
            backing,
            l1_offset: 0,
            l1_entries: geometry.l1_entries(size),
            table_offset: 0,
            table_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            dirty: false,
            corrupt: false,
            lazy_refcounts: false,
            bitmaps: false,
            autoclear: 0,
        }
    }
}

/// What stands between the header and the end of the first cluster.
struct Extensions {
    format: Option<String>,
    /// Names of incompatible features that the image brings along.
    names: Vec<(u32, String)>,
}

impl Extensions {
    fn parse(bytes: &[u8], mut at: usize) -> Result<Self, String> {
        let mut found = Self { format: None, names: Vec::new() };
        let fields = Fields(bytes);
        while at + 8 <= bytes.len() {
            let (kind, len) = (fields.u32(at), fields.u32(at + 4) as usize);
            if kind == END {
                break;
            }
            let data = bytes.get(at + 8..).and_then(|rest| rest.get(..len));
            let data = data.ok_or_else(|| format!("its header's extension {kind:#010x} leaves the first cluster"))?;
            match kind {
                BACKING_FORMAT => found.format = Some(text(data)),
                FEATURE_NAMES => {
                    let of_ours = data.chunks_exact(FEATURE_NAME).filter(|name| name[0] == 0);
                    found.names = of_ours.map(|name| (name[1].into(), text(&name[2..]))).collect();
                }
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(found)
    }

    /// Refuses features that nothing is known of, by their names.
    fn refuse_unknown(&self, features: u64, compression: u8) -> Result<(), String> {
        const COMPRESSION: u64 = 1 << 3;
        let unknown = features & !(DIRTY | CORRUPT | COMPRESSION);
        if features & COMPRESSION != 0 && compression != 0 {
            let name = if compression == 1 { "zstd" } else { "an unknown method" };
            return Err(format!(
                "its clusters are compressed by {name}: convert it by `qemu-img convert -O qcow2 -o compression_type=zlib`"
            ));
        }
        if unknown == 0 {
            return Ok(());
        }
        let name = |bit: u32| {
            let known = FEATURES.get(bit as usize).map(|name| (*name).to_owned());
            let told = || self.names.iter().find(|(other, _)| *other == bit).map(|(_, name)| name.clone());
            known.or_else(told).unwrap_or_else(|| format!("number {bit}"))
        };
        let names: Vec<_> = (0..64).filter(|bit| unknown & 1 << bit != 0).map(name).collect();
        let names = names.join(", ");
        Err(format!("it needs what skep does not have: {names}; `qemu-img convert` makes an image without"))
    }

    fn backing(&self, bytes: &[u8], offset: u64, len: usize) -> Result<Option<Backing>, String> {
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        let name = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).and_then(|rest| rest.get(..len));
        let name = name.filter(|name| name.len() <= MOST_NAME);
        let name = name.ok_or("the name of its backing file is not in its first cluster")?;
        if name.contains(&0) {
            return Err("the name of its backing file holds a zero byte".to_owned());
        }
        let file = PathBuf::from(OsString::from_vec(name.to_vec()));
        Ok(Some(Backing { file, format: self.format.clone().filter(|format| !format.is_empty()) }))
    }
}

/// A name of the image's, fit to be printed.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()).min(64);
    String::from_utf8_lossy(&bytes[..end]).chars().filter(|c| !c.is_control()).collect()
}

impl Backing {
    /// The format of the backing file, which must be named.
    ///
    /// # Errors
    /// Why it can't be used, and what would mend it.
    pub(crate) fn named_format(&self, image: &Path) -> Result<ImageFormat, String> {
        let (file, image) = (self.file.display(), image.display());
        match self.format.as_deref() {
            Some("raw" | "host_device") => Ok(ImageFormat::Raw),
            Some("qcow2") => Ok(ImageFormat::Qcow2),
            Some(other) => {
                Err(format!("its backing file `{file}` is of the format `{other}`: raw and qcow2 are known"))
            }
            None => Err(format!(
                "it does not name the format of its backing file `{file}`, which is never guessed: `qemu-img rebase -u -b {file} -F FORMAT {image}` names it"
            )),
        }
    }

    /// Where the backing file is, for the image at `image`.
    ///
    /// # Errors
    /// Why it can't be used, and what would mend it.
    pub(crate) fn path(&self, image: &Path) -> Result<PathBuf, String> {
        let name = self.file.as_os_str().as_bytes();
        let colon = name.iter().position(|byte| *byte == b':');
        if colon.is_some_and(|colon| !name[..colon].contains(&b'/')) {
            let file = self.file.display();
            return Err(format!(
                "its backing file `{file}` is not named as a file of the host: one with a colon begins with `./`"
            ));
        }
        Ok(image.parent().unwrap_or(Path::new("")).join(&self.file))
    }
}
