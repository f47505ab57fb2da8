//! The flattened device tree (Devicetree Specification 0.4, chapter 5).
//!
//! Addresses and sizes have two cells each, as on every `virt` machine. What the tree says beyond its own size is not read.

use core::slice;

const MAGIC: u32 = 0xd00d_feed;
const MAX_SIZE: u32 = 2 << 20;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// The tree.
#[derive(Clone, Copy)]
pub struct Fdt {
    bytes: &'static [u8],
}

/// One node.
#[derive(Clone, Copy)]
pub struct Node {
    fdt: Fdt,
    /// Its name, with the unit address.
    pub name: &'static str,
    /// How deep it lies; the root is 0.
    pub depth: u32,
    properties: usize,
}

/// An interrupt of a node, as the GIC's binding has it.
#[derive(Clone, Copy)]
pub struct Interrupt {
    /// Its INTID.
    pub intid: u64,
    /// Whether it is triggered by a level.
    pub level: bool,
}

/// The big-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset.checked_add(4)?)?.try_into().map(u32::from_be_bytes).ok()
}

/// The text at `offset` that a zero ends.
fn text(bytes: &'static [u8], offset: usize) -> Option<&'static str> {
    let rest = bytes.get(offset..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    str::from_utf8(rest.get(..end)?).ok()
}

impl Fdt {
    /// The tree at `address`; an empty one if there is none.
    pub fn at(address: u64) -> Self {
        let bytes = |size: u32| -> &'static [u8] {
            // SAFETY: the loader puts the tree into memory, and nothing writes to it.
            unsafe { slice::from_raw_parts(address as *const u8, size as usize) }
        };
        let absent = Self { bytes: &[] };
        if address == 0 || !address.is_multiple_of(8) || word(bytes(8), 0) != Some(MAGIC) {
            return absent;
        }
        word(bytes(8), 4).filter(|&size| size <= MAX_SIZE).map_or(absent, |size| Self { bytes: bytes(size) })
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The format's version.
    pub fn version(&self) -> u32 {
        word(self.bytes, 20).unwrap_or(0)
    }

    fn structure(&self) -> usize {
        word(self.bytes, 8).unwrap_or(u32::MAX) as usize
    }

    fn strings(&self) -> usize {
        word(self.bytes, 12).unwrap_or(u32::MAX) as usize
    }

    /// The property at `offset`, and where the next token is.
    fn property_at(&self, offset: usize) -> Option<(&'static str, &'static [u8], usize)> {
        let (length, name) = (word(self.bytes, offset + 4)? as usize, word(self.bytes, offset + 8)? as usize);
        let begin = offset + 12;
        let end = begin.checked_add(length)?;
        Some((
            text(self.bytes, self.strings().checked_add(name)?)?,
            self.bytes.get(begin..end)?,
            end.next_multiple_of(4),
        ))
    }

    /// All nodes, each before those in it.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        let fdt = *self;
        let (mut offset, mut depth) = (self.structure(), 0);
        core::iter::from_fn(move || {
            loop {
                match word(fdt.bytes, offset)? {
                    BEGIN_NODE => {
                        let name = text(fdt.bytes, offset + 4)?;
                        offset = (offset + 4 + name.len() + 1).next_multiple_of(4);
                        depth += 1;
                        return Some(Node { fdt, name, depth: depth - 1, properties: offset });
                    }
                    END_NODE => {
                        depth = depth.checked_sub(1)?;
                        offset += 4;
                    }
                    PROPERTY => offset = fdt.property_at(offset)?.2,
                    NOP => offset += 4,
                    _ => return None,
                }
            }
        })
    }

    /// The first node with this name, with or without a unit address.
    pub fn node_named(&self, name: &str) -> Option<Node> {
        self.nodes().find(|node| node.name == name || node.name.split('@').next() == Some(name))
    }

    /// The first node that is compatible with `what`.
    pub fn compatible(&self, what: &str) -> Option<Node> {
        self.nodes().find(|node| node.is_compatible(what))
    }

    /// The node at this path, which may begin with an alias.
    pub fn node_at(&self, path: &str) -> Option<Node> {
        let path = match path.strip_prefix('/') {
            Some(path) => path,
            None => self.node_named("aliases")?.text(path)?.strip_prefix('/')?,
        };
        let mut parts = path.split('/');
        let mut wanted = parts.next()?;
        let mut depth = 1;
        for node in self.nodes() {
            if node.depth == depth && node.name == wanted {
                match parts.next() {
                    None => return Some(node),
                    Some(next) => (wanted, depth) = (next, depth + 1),
                }
            }
        }
        None
    }
}

impl Node {
    /// The bytes of a property.
    pub fn property(&self, name: &str) -> Option<&'static [u8]> {
        let mut offset = self.properties;
        loop {
            match word(self.fdt.bytes, offset)? {
                PROPERTY => {
                    let (found, value, next) = self.fdt.property_at(offset)?;
                    if found == name {
                        return Some(value);
                    }
                    offset = next;
                }
                NOP => offset += 4,
                _ => return None,
            }
        }
    }

    /// A property that is a text.
    pub fn text(&self, name: &str) -> Option<&'static str> {
        text(self.property(name)?, 0)
    }

    /// A cell of a property.
    pub fn cell(&self, name: &str, index: usize) -> Option<u32> {
        word(self.property(name)?, index * 4)
    }

    /// Whether `what` is among the things that this node is compatible with.
    pub fn is_compatible(&self, what: &str) -> bool {
        self.property("compatible").is_some_and(|list| list.split(|&byte| byte == 0).any(|one| one == what.as_bytes()))
    }

    /// An address and a size of `reg`.
    pub fn range(&self, index: usize) -> Option<(u64, u64)> {
        let pair = |at: usize| Some(u64::from(self.cell("reg", at)?) << 32 | u64::from(self.cell("reg", at + 1)?));
        Some((pair(index * 4)?, pair(index * 4 + 2)?))
    }

    /// The first interrupt.
    pub fn interrupt(&self) -> Option<Interrupt> {
        const SPI: u32 = 0;
        const EDGE: u32 = 3;
        let base = if self.cell("interrupts", 0)? == SPI { 32 } else { 16 };
        Some(Interrupt {
            intid: base + u64::from(self.cell("interrupts", 1)?),
            level: self.cell("interrupts", 2)? & EDGE == 0,
        })
    }
}
