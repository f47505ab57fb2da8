//! Places of PCI devices: named by the user, or given out in the order of the config.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

use crate::error::Conflict;
use crate::machine::MachineVersion;

/// Device number on bus 0 of the first root port; the others follow it.
pub const FIRST_PORT: u8 = 0x10;
/// Root ports that a machine can have: the last device number is a chipset's on one of them.
pub const MOST_PORTS: u8 = 15;
const LAST_DEVICE: u8 = 31;

/// Where a PCI device is, written `root:DEVICE` or `port:NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A device number on bus 0: a device that is there for good.
    Root(u8),
    /// Behind the root port of that number, from 0 on, where a device can leave.
    Port(u8),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(device) => write!(f, "root:{device}"),
            Self::Port(number) => write!(f, "port:{number}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.split_once(':').and_then(|(kind, number)| {
            let number = number.parse().ok()?;
            match kind {
                "root" => Some(Place::Root(number)),
                "port" => Some(Place::Port(number)),
                _ => None,
            }
        });
        place.ok_or_else(|| format!("`{text}` is no place: write root:DEVICE or port:NUMBER"))
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The places of a machine, while they are given out.
pub(crate) struct Places {
    machine: MachineVersion,
    ports: u8,
    taken: BTreeMap<Place, String>,
}

impl Places {
    /// Those of a machine with `ports` root ports.
    pub(crate) fn new(machine: MachineVersion, ports: u8) -> Result<Self, Conflict> {
        if ports > MOST_PORTS {
            return Err(Conflict::Ports { ports, most: MOST_PORTS });
        }
        Ok(Self { machine, ports, taken: BTreeMap::new() })
    }

    fn exists(&self, place: Place) -> bool {
        match place {
            Place::Root(device) => {
                let is_port = device.checked_sub(FIRST_PORT).is_some_and(|number| number < self.ports);
                device <= LAST_DEVICE && !is_port && !self.machine.chipset_devices().contains(&device)
            }
            Place::Port(number) => number < self.ports,
        }
    }

    /// Gives the place that the config names to `id`.
    pub(crate) fn take(&mut self, place: Place, id: &str) -> Result<(), Conflict> {
        if !self.exists(place) {
            return Err(Conflict::NoPlace { id: id.to_owned(), place, machine: self.machine, ports: self.ports });
        }
        match self.taken.insert(place, id.to_owned()) {
            Some(first) => Err(Conflict::PlaceTaken { place, first, second: id.to_owned() }),
            None => Ok(()),
        }
    }

    /// Gives the next free device number on bus 0 to `id`.
    pub(crate) fn next(&mut self, id: &str) -> Result<Place, Conflict> {
        let free = |place: &Place| self.exists(*place) && !self.taken.contains_key(place);
        let next = (1..=LAST_DEVICE).map(Place::Root).find(free);
        let place = next.ok_or_else(|| Conflict::NoPlaceLeft { id: id.to_owned() })?;
        self.taken.insert(place, id.to_owned());
        Ok(place)
    }
}

#[cfg(test)]
#[path = "place_test.rs"]
mod test;
