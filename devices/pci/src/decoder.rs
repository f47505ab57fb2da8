//! Keeps address spaces as the guest's BARs and bridges say.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use skep_bus::{AddressSpace, Device};
use skep_hypervisor::{Doorbell, DoorbellSpace, Doorbells};
use tracing::debug;

use crate::bar::{Decoded, Space};
use crate::{Endpoint, FunctionDoorbell, rom};

#[cfg(test)]
#[path = "decoder_test.rs"]
mod test;

/// A range of an address space that a device is to answer.
#[derive(Clone)]
pub struct Mapping {
    /// The device in messages.
    pub name: String,
    /// Which address space: PCI's, of which I/O begins at 0.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// How many bytes.
    pub size: u64,
    /// The region's number for the device.
    pub region: u32,
    /// Who answers.
    pub device: Arc<dyn Device>,
    /// Writes in the range that signal an eventfd; the BAR's number is not looked at.
    pub doorbells: Vec<FunctionDoorbell>,
}

impl Mapping {
    /// What a BAR decodes.
    pub(crate) fn of(endpoint: &Arc<Endpoint>, range: Decoded, doorbells: &[FunctionDoorbell]) -> Self {
        let Decoded { bar, space, base, size } = range;
        let in_bar = |doorbell: &&FunctionDoorbell| doorbell.bar == bar && doorbell.offset < size;
        Self {
            name: if bar == rom::BAR {
                format!("{} ROM", endpoint.place())
            } else {
                format!("{} BAR {bar}", endpoint.place())
            },
            space,
            base,
            size,
            region: bar.into(),
            device: endpoint.clone(),
            doorbells: doorbells.iter().filter(in_bar).cloned().collect(),
        }
    }

    fn last(&self) -> u64 {
        self.base.saturating_add(self.size.saturating_sub(1))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space && self.base <= other.last() && other.base <= self.last()
    }

    /// The same range of the same device.
    fn is(&self, other: &Self) -> bool {
        let same = |mapping: &Self| (mapping.space, mapping.base, mapping.size, mapping.region);
        same(self) == same(other) && Arc::ptr_eq(&self.device, &other.device)
    }
}

/// Where PCI's I/O space is.
#[derive(Debug, Clone, Copy)]
pub enum IoSpace<'a> {
    /// x86's ports.
    Ports(&'a AddressSpace),
    /// A window in memory: port 0 is at its first address.
    Window {
        /// The first address.
        base: u64,
        /// How many bytes.
        size: u64,
    },
}

/// The address spaces of a machine.
#[derive(Clone, Copy)]
pub struct Spaces<'a> {
    /// Memory.
    pub memory: &'a AddressSpace,
    /// I/O.
    pub io: IoSpace<'a>,
    /// The backend's power to signal eventfds, if it has it.
    pub doorbells: Option<&'a dyn Doorbells>,
}

impl<'a> Spaces<'a> {
    /// The address space of a range, and where it begins there.
    fn place(&self, space: Space, base: u64, size: u64) -> Option<(&'a AddressSpace, u64)> {
        match (space, self.io) {
            (Space::Memory, _) => Some((self.memory, base)),
            (Space::Io, IoSpace::Ports(ports)) => Some((ports, base)),
            (Space::Io, IoSpace::Window { base: window, size: room }) => {
                let fits = base.checked_add(size).is_some_and(|end| end <= room);
                fits.then(|| (self.memory, window + base))
            }
        }
    }

    fn doorbell(&self, mapping: &Mapping, doorbell: &FunctionDoorbell) -> Option<Doorbell> {
        let (_, base) = self.place(mapping.space, mapping.base, mapping.size)?;
        let is_port = mapping.space == Space::Io && matches!(self.io, IoSpace::Ports(_));
        let space = if is_port { DoorbellSpace::Port } else { DoorbellSpace::Memory };
        let (width, value) = (doorbell.width, doorbell.value);
        Some(Doorbell { space, address: base + doorbell.offset, width, value })
    }

    fn attach(&self, mapping: &Mapping, doorbell: &FunctionDoorbell) -> bool {
        let (Some(doorbells), Some(place)) = (self.doorbells, self.doorbell(mapping, doorbell)) else { return false };
        let attached = doorbells.attach(place, &doorbell.fd);
        if let Err(error) = &attached {
            debug!(%error, name = mapping.name, "a doorbell takes the long way");
        }
        attached.is_ok()
    }

    fn detach(&self, mapping: &Mapping, doorbell: &FunctionDoorbell) {
        let (Some(doorbells), Some(place)) = (self.doorbells, self.doorbell(mapping, doorbell)) else { return };
        if let Err(error) = doorbells.detach(place, &doorbell.fd) {
            debug!(%error, name = mapping.name, "a doorbell can't be detached");
        }
    }
}

fn same_doorbell(a: &FunctionDoorbell, b: &FunctionDoorbell) -> bool {
    let key = |doorbell: &FunctionDoorbell| (doorbell.offset, doorbell.width, doorbell.value);
    key(a) == key(b) && Arc::ptr_eq(&a.fd, &b.fd)
}

/// Maps what is decoded, and remembers it. What a guest lays over something else is not mapped: of two BARs the one of the lower place
/// has the addresses, and what the machine itself has mapped stays. So the outcome depends on the registers alone, not on how they
/// came about.
#[derive(Default)]
pub struct Decoder {
    mapped: Mutex<Vec<Mapping>>,
}

impl Decoder {
    /// Nothing mapped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries an [`skep_bus::Action::Relocate`] out: maps what `wanted` answers, in the order of its right to addresses, and unmaps what was mapped before and
    /// is not wanted any more. Doorbells follow. `wanted` is called when no other update runs.
    pub fn update(&self, spaces: &Spaces<'_>, wanted: impl FnOnce() -> Vec<Mapping>) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let mut accepted: Vec<Mapping> = Vec::new();
        for mapping in wanted() {
            match accepted.iter().find(|other| other.overlaps(&mapping)) {
                Some(other) => debug!(name = mapping.name, other = other.name, "a range is laid over another one"),
                None => accepted.push(mapping),
            }
        }
        mapped.retain(|old| {
            let stays = accepted.iter().any(|new| new.is(old));
            if !stays {
                old.doorbells.iter().for_each(|doorbell| spaces.detach(old, doorbell));
                if let Some((space, base)) = spaces.place(old.space, old.base, old.size)
                    && let Err(error) = space.unmap(base)
                {
                    debug!(%error, name = old.name, "a range can't be unmapped");
                }
            }
            stays
        });
        for mut new in accepted {
            if let Some(old) = mapped.iter_mut().find(|old| new.is(old)) {
                update_doorbells(spaces, old, new.doorbells);
                continue;
            }
            let Some((space, base)) = spaces.place(new.space, new.base, new.size) else { continue };
            if let Err(error) = space.map(&new.name, base, new.size, new.region, new.device.clone()) {
                debug!(%error, "a range is laid over something of the machine");
                continue;
            }
            let doorbells = std::mem::take(&mut new.doorbells);
            update_doorbells(spaces, &mut new, doorbells);
            mapped.push(new);
        }
    }

    /// What is mapped now.
    #[must_use]
    pub fn mapped(&self) -> Vec<Mapping> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Brings the doorbells of a mapping, which are those that are attached, to `wanted`.
fn update_doorbells(spaces: &Spaces<'_>, mapping: &mut Mapping, wanted: Vec<FunctionDoorbell>) {
    let has =
        |list: &[FunctionDoorbell], doorbell: &FunctionDoorbell| list.iter().any(|it| same_doorbell(it, doorbell));
    let (mut attached, gone): (Vec<_>, Vec<_>) =
        std::mem::take(&mut mapping.doorbells).into_iter().partition(|old| has(&wanted, old));
    gone.iter().for_each(|doorbell| spaces.detach(mapping, doorbell));
    for doorbell in wanted {
        if !has(&attached, &doorbell) && spaces.attach(mapping, &doorbell) {
            attached.push(doorbell);
        }
    }
    mapping.doorbells = attached;
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:#x}+{:#x}", self.name, self.space, self.base, self.size)
    }
}
