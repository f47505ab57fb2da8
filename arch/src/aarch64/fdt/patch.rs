//! Handing over a command line and an initramfs by a device tree that somebody else has made: the tree is read once
//! and written anew, with other values in `/chosen`.

use vm_fdt::{FdtReserveEntry, FdtWriter};

use super::{BOOTARGS, Chosen, FdtError, INITRD, KASLR_SEED, RNG_SEED, STDOUT_PATH, chosen, chosen_properties};

const MAGIC: u32 = 0xd00d_feed;
/// The oldest version with sizes of both blocks, and the one that is written.
const VERSION: u32 = 17;
const COMPATIBLE_VERSION: u32 = 16;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Why a device tree can't be taken over.
#[derive(Debug, thiserror::Error)]
pub enum BrokenFdt {
    /// It does not begin with the magic number.
    #[error("the file is no flattened device tree; compile it by dtc")]
    NoFdt,
    /// It is of a format that is not known.
    #[error("the device tree is of version {0}, and {VERSION} is known; compile it by a newer dtc")]
    Version(u32),
    /// It ends early.
    #[error("the device tree is truncated: it has {has} bytes and needs {needs}; copy or compile it again")]
    Truncated {
        /// Bytes needed.
        needs: usize,
        /// Bytes there are.
        has: usize,
    },
    /// It contradicts itself.
    #[error("the device tree is malformed: {0}; compile it again")]
    Malformed(&'static str),
    /// What is in it can't be written again.
    #[error(transparent)]
    Write(#[from] FdtError),
}

impl From<vm_fdt::Error> for BrokenFdt {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Write(error.into())
    }
}

/// `fdt` with what `values` has set in `/chosen`; everything else stays.
///
/// # Errors
/// [`BrokenFdt`] if it is not a sound tree.
pub fn replace_chosen(fdt: &[u8], values: &Chosen<'_>) -> Result<Vec<u8>, BrokenFdt> {
    let tree = Tree::parse(fdt)?;
    let mut out = FdtWriter::new_with_mem_reserv(&tree.reservations()?)?;
    out.set_boot_cpuid_phys(tree.boot_cpu);
    tree.copy(&mut out, values)?;
    Ok(out.finish()?)
}

/// Whether `values` takes the place of property `name`.
fn replaces(values: &Chosen<'_>, name: &str) -> bool {
    match name {
        BOOTARGS => values.bootargs.is_some(),
        STDOUT_PATH => values.stdout_path.is_some(),
        RNG_SEED => values.rng_seed.is_some(),
        KASLR_SEED => values.kaslr_seed.is_some(),
        name => INITRD.contains(&name) && values.initrd.is_some(),
    }
}

struct Tree<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    reserved: &'a [u8],
    boot_cpu: u32,
}

/// Big-endian words from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BrokenFdt> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(BrokenFdt::Malformed("a block ends early"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u32, BrokenFdt> {
        Ok(self.bytes(4)?.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)))
    }

    /// Bytes that are padded to words.
    fn padded(&mut self, count: usize) -> Result<&'a [u8], BrokenFdt> {
        let bytes = self.bytes(count)?;
        self.bytes(count.next_multiple_of(4) - count)?;
        Ok(bytes)
    }

    /// A text that ends by zero, padded to words.
    fn text(&mut self) -> Result<&'a str, BrokenFdt> {
        let text = text(self.0)?;
        self.padded(text.len() + 1)?;
        Ok(text)
    }
}

fn text(bytes: &[u8]) -> Result<&str, BrokenFdt> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(BrokenFdt::Malformed("a text without an end"))?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| BrokenFdt::Malformed("a name that is no text"))
}

impl<'a> Tree<'a> {
    fn parse(fdt: &'a [u8]) -> Result<Self, BrokenFdt> {
        let mut header = Reader(fdt);
        if header.word().map_err(|_| BrokenFdt::NoFdt)? != MAGIC {
            return Err(BrokenFdt::NoFdt);
        }
        let mut word = || header.word().map(|word| word as usize);
        let (total, structure, strings, reserved) = (word()?, word()?, word()?, word()?);
        let (version, compatible, boot_cpu) = (word()?, word()?, word()?);
        let (strings_size, structure_size) = (word()?, word()?);
        if version < VERSION as usize || compatible > VERSION as usize || compatible < COMPATIBLE_VERSION as usize {
            return Err(BrokenFdt::Version(version as u32));
        }
        let fdt = fdt.get(..total).ok_or(BrokenFdt::Truncated { needs: total, has: fdt.len() })?;
        let block = |base: usize, size: usize| {
            let end = base.checked_add(size).ok_or(BrokenFdt::Malformed("a block beyond the end"))?;
            fdt.get(base..end).ok_or(BrokenFdt::Malformed("a block beyond the end"))
        };
        Ok(Self {
            structure: block(structure, structure_size)?,
            strings: block(strings, strings_size)?,
            reserved: block(reserved, total.saturating_sub(reserved))?,
            boot_cpu: boot_cpu as u32,
        })
    }

    /// The memory reservations, which end by one of no size.
    fn reservations(&self) -> Result<Vec<FdtReserveEntry>, BrokenFdt> {
        let mut reader = Reader(self.reserved);
        let mut entries = Vec::new();
        loop {
            let mut double = || Ok::<_, BrokenFdt>(u64::from(reader.word()?) << 32 | u64::from(reader.word()?));
            match (double()?, double()?) {
                (_, 0) => return Ok(entries),
                (address, size) => entries.push(FdtReserveEntry::new(address, size)?),
            }
        }
    }

    fn copy(&self, out: &mut FdtWriter, values: &Chosen<'_>) -> Result<(), BrokenFdt> {
        let mut reader = Reader(self.structure);
        let mut open = Vec::new();
        let mut in_chosen = false;
        let mut seen = false;
        loop {
            match reader.word()? {
                BEGIN_NODE => {
                    let name = reader.text()?;
                    open.push(out.begin_node(name)?);
                    in_chosen = open.len() == 2 && name == "chosen";
                    if in_chosen && !std::mem::replace(&mut seen, true) {
                        chosen_properties(out, values)?;
                    }
                }
                PROPERTY => {
                    let (size, name) = (reader.word()? as usize, reader.word()? as usize);
                    let name = text(self.strings.get(name..).unwrap_or_default())?;
                    let value = reader.padded(size)?;
                    if !(in_chosen && replaces(values, name)) {
                        out.property(name, value)?;
                    }
                }
                END_NODE => {
                    let node = open.pop().ok_or(BrokenFdt::Malformed("a node ends that has not begun"))?;
                    if open.is_empty() && !seen {
                        chosen(out, values)?;
                    }
                    out.end_node(node)?;
                    in_chosen = false;
                    if open.is_empty() {
                        return Ok(());
                    }
                }
                NOP => {}
                END => return Err(BrokenFdt::Malformed("the tree ends within a node")),
                _ => return Err(BrokenFdt::Malformed("an unknown token")),
            }
        }
    }
}
