//! Address spaces and their dispatch to devices.
//!
//! An [`AddressSpace`] (memory-mapped registers, or x86 ports) maps ranges to [`Device`]s. A look-up takes no lock and holds none across the
//! call into the device; changing the layout publishes a new table, and an access that has begun ends on the old one.
//!
//! A device never changes the layout from inside a handler. What an access asks of the machine (a BAR moved, a window opened) is returned
//! as an [`Action`] and done by whoever dispatched the access.
//!
//! What it does not do: RAM (the memory map owns it, and a backend maps it), or split an access that straddles two ranges; such an access
//! goes by bytes, as a PCI bridge would do it.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

#[cfg(test)]
#[path = "bus_test.rs"]
mod test;

/// What the machine must do after an access, outside the device.
#[must_use = "the machine carries an action out; dropping it loses what the guest asked for"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Action {
    /// Nothing.
    #[default]
    None,
    /// Memory that the guest reaches without the bus has come or gone (flash that is read as memory, or is not): its owners are asked again.
    Remap,
    /// The device's place in an address space has changed: it is asked for its ranges again. It includes [`Action::Remap`].
    Relocate,
}

/// What answers accesses to one or more ranges of an address space.
///
/// `region` is the number that the range was mapped with, `offset` the distance of the access from the range's start. An access has 1, 2, 4
/// or 8 bytes in little-endian order, lies inside the range, and need not be aligned.
pub trait Device: Send + Sync {
    /// Fills `data`. What a device does not answer stays all ones, as on a bus that nobody drives.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action;
}

/// Why a range can't be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Empty, or beyond the end of the address space.
    #[error("`{name}`: {size:#x} bytes at {base:#x} are no range of the {space}")]
    BadRange {
        /// Whose range.
        name: String,
        /// Which address space.
        space: &'static str,
        /// The first address.
        base: u64,
        /// The size in bytes.
        size: u64,
    },
    /// Two ranges would share addresses.
    #[error("`{name}` at {base:#x} of the {space} overlaps `{other}`")]
    Overlap {
        /// Whose range.
        name: String,
        /// Which address space.
        space: &'static str,
        /// The first address.
        base: u64,
        /// Who is there.
        other: String,
    },
    /// Nothing is mapped there.
    #[error("nothing is mapped at {base:#x} of the {space}")]
    NotMapped {
        /// Which address space.
        space: &'static str,
        /// The address.
        base: u64,
    },
}

#[derive(Clone)]
struct Entry {
    base: u64,
    last: u64,
    region: u32,
    name: Arc<str>,
    device: Arc<dyn Device>,
}

/// One row of an address space's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub base: u64,
    /// The last address.
    pub last: u64,
    /// Who is there.
    pub name: String,
}

/// One access's way to a device.
struct Found<'a> {
    entry: &'a Entry,
    offset: u64,
}

/// An address space.
pub struct AddressSpace {
    name: &'static str,
    last: u64,
    table: ArcSwap<Vec<Entry>>,
    writer: Mutex<()>,
}

impl AddressSpace {
    /// The space of guest physical addresses.
    #[must_use]
    pub fn memory() -> Self {
        Self::new("memory space", u64::MAX)
    }

    /// The 64 KiB of x86 ports.
    #[must_use]
    pub fn ports() -> Self {
        Self::new("port space", 0xffff)
    }

    fn new(name: &'static str, last: u64) -> Self {
        Self { name, last, table: ArcSwap::default(), writer: Mutex::new(()) }
    }

    /// Maps `size` addresses from `base` on to `device`, which sees them as `region`.
    ///
    /// # Errors
    /// [`BusError::BadRange`] and [`BusError::Overlap`].
    pub fn map(
        &self,
        name: impl AsRef<str>,
        base: u64,
        size: u64,
        region: u32,
        device: Arc<dyn Device>,
    ) -> Result<(), BusError> {
        let name = name.as_ref();
        let last = size.checked_sub(1).and_then(|s| base.checked_add(s)).filter(|last| *last <= self.last);
        let Some(last) = last else {
            return Err(BusError::BadRange { name: name.to_owned(), space: self.name, base, size });
        };
        self.change(|table| {
            let place = table.partition_point(|e| e.base < base);
            if let Some(other) =
                table.iter().skip(place.saturating_sub(1)).take(2).find(|e| e.base <= last && base <= e.last)
            {
                let other = other.name.to_string();
                return Err(BusError::Overlap { name: name.to_owned(), space: self.name, base, other });
            }
            table.insert(place, Entry { base, last, region, name: name.into(), device });
            Ok(())
        })
    }

    /// Unmaps the range that begins at `base`.
    ///
    /// # Errors
    /// [`BusError::NotMapped`].
    pub fn unmap(&self, base: u64) -> Result<(), BusError> {
        self.change(|table| {
            let place = table.iter().position(|e| e.base == base);
            let place = place.ok_or(BusError::NotMapped { space: self.name, base })?;
            table.remove(place);
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<(), BusError>) -> Result<(), BusError> {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Vec::clone(&self.table.load());
        change(&mut table)?;
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// What is mapped where, by address.
    #[must_use]
    pub fn mappings(&self) -> Vec<Mapping> {
        let row = |e: &Entry| Mapping { base: e.base, last: e.last, name: e.name.to_string() };
        self.table.load().iter().map(row).collect()
    }

    /// Reads at `address`; what nobody answers is all ones. Says whether somebody was there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let table = self.table.load();
        if let Some(Found { entry, offset }) = find(&table, address, data.len()) {
            entry.device.read(entry.region, offset, data);
            return true;
        }
        let mut answered = false;
        for (byte, address) in data.iter_mut().zip(address..=u64::MAX) {
            if let Some(Found { entry, offset }) = find(&table, address, 1) {
                entry.device.read(entry.region, offset, std::slice::from_mut(byte));
                answered = true;
            }
        }
        answered
    }

    /// Writes at `address`. `None` when nobody was there.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Action> {
        let table = self.table.load();
        if let Some(Found { entry, offset }) = find(&table, address, data.len()) {
            return Some(entry.device.write(entry.region, offset, data));
        }
        let mut result = None;
        for (byte, address) in data.iter().zip(address..=u64::MAX) {
            if let Some(Found { entry, offset }) = find(&table, address, 1) {
                let action = entry.device.write(entry.region, offset, std::slice::from_ref(byte));
                result = result.max(Some(action));
            }
        }
        result
    }
}

fn find(table: &[Entry], address: u64, len: usize) -> Option<Found<'_>> {
    let place = table.partition_point(|e| e.base <= address).checked_sub(1)?;
    let entry = table.get(place)?;
    let end = address.checked_add((len as u64).checked_sub(1)?)?;
    (end <= entry.last).then(|| Found { entry, offset: address - entry.base })
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("name", &self.name).field("mappings", &self.mappings()).finish()
    }
}

/// The value of an access of up to eight bytes, little-endian.
#[must_use]
pub fn value_of(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Fills an access with `value`, little-endian; bytes beyond the eighth become 0.
pub fn fill(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get(index).copied().unwrap_or(0);
    }
}
