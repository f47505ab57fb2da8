//! Gives places to everything, as firmware does: for a machine that boots a kernel without one.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::bar::{self, Bar, BarKind, Bars, Space};
use crate::config_space::{command, header};
use crate::node::ConfigFunction;
use crate::root_port::{RootPort, bridge};
use crate::{Endpoint, PciError, PciPlace, RootComplex};

#[cfg(test)]
#[path = "placer_test.rs"]
mod test;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Windows of a bridge come in these units.
const IO_UNIT: u64 = 4 * KIB;
const MEMORY_UNIT: u64 = MIB;
/// Room behind each root port for what is plugged in later: below 4 GiB, and the most above.
const ROOM: u64 = 2 * MIB;
const PREFETCHABLE_ROOM: u64 = GIB;

/// Addresses that BARs may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first address.
    pub base: u64,
    /// How many bytes.
    pub size: u64,
}

/// What a machine has for BARs, in PCI's address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// I/O.
    pub io: Window,
    /// Memory below 4 GiB.
    pub memory32: Window,
    /// Memory above, for what is 64-bit and prefetchable.
    pub memory64: Window,
}

/// The pools that windows become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    Io,
    Memory,
    Prefetchable,
}

impl Pool {
    fn of(bar: &Bar) -> Self {
        match (bar.space(), bar.kind) {
            (Space::Io, _) => Self::Io,
            (_, BarKind::Memory64 { prefetchable: true }) => Self::Prefetchable,
            _ => Self::Memory,
        }
    }
}

/// Who wants addresses.
enum Owner {
    Bar(Arc<Endpoint>, u8),
    Port(Arc<RootPort>),
}

struct Wish {
    owner: Owner,
    size: u64,
    alignment: u64,
}

/// A function's BARs of a pool, the largest first: laid one behind the other, each is aligned.
fn bars_of(bars: &Bars, pool: Pool) -> Vec<(u8, u64)> {
    let mut found: Vec<_> = (0u8..)
        .zip(bars)
        .filter_map(|(number, bar)| bar.filter(|bar| Pool::of(bar) == pool).map(|bar| (number, bar.size)))
        .collect();
    found.sort_unstable_by_key(|(number, size)| (Reverse(*size), *number));
    found
}

/// Writes bytes of configuration space.
fn write(function: &dyn ConfigFunction, offset: u16, bytes: u32, value: u32) {
    let shift = 8 * u32::from(offset & 3);
    let lanes = (u32::MAX >> (32 - 8 * bytes)) << shift;
    // The caller has everything mapped anew at the end.
    let _ = function.config_write(offset & !3, lanes, value << shift);
}

fn place_bar(endpoint: &Endpoint, number: u8, base: u64) {
    write(endpoint, bar::register(number), 4, base as u32);
    let bar = endpoint.bars().get(usize::from(number)).copied().flatten();
    if bar.is_some_and(|bar| bar.is_64_bit()) {
        write(endpoint, bar::register(number + 1), 4, (base >> 32) as u32);
    }
}

fn place_window(port: &RootPort, pool: Pool, base: u64, size: u64) {
    let last = base + (size - 1);
    // Bits 31:20 of both ends, as bits 15:4 of each half.
    let ends = (base >> 16 & 0xfff0) as u32 | (last & 0xfff0_0000) as u32;
    match pool {
        Pool::Io => write(port, bridge::IO, 2, (base >> 8 & 0xf0) as u32 | (last & 0xf000) as u32),
        Pool::Memory => write(port, bridge::MEMORY, 4, ends),
        Pool::Prefetchable => {
            write(port, bridge::PREFETCHABLE, 4, ends);
            write(port, bridge::PREFETCHABLE_BASE_UPPER, 4, (base >> 32) as u32);
            write(port, bridge::PREFETCHABLE_LIMIT_UPPER, 4, (last >> 32) as u32);
        }
    }
}

/// A window that forwards nothing: it ends before it begins.
fn close_window(port: &RootPort, pool: Pool) {
    match pool {
        Pool::Io => write(port, bridge::IO, 2, 0x00f0),
        Pool::Memory => write(port, bridge::MEMORY, 4, 0x0000_fff0),
        Pool::Prefetchable => {
            write(port, bridge::PREFETCHABLE, 4, 0x0000_fff0);
            write(port, bridge::PREFETCHABLE_BASE_UPPER, 4, 0);
            write(port, bridge::PREFETCHABLE_LIMIT_UPPER, 4, 0);
        }
    }
}

impl RootComplex {
    /// Numbers the buses, places windows and BARs, and enables what is placed; each root port gets room for a device that is plugged in later. It writes configuration
    /// space as firmware would, with the machine in its power-on state; the machine then maps what is decoded.
    ///
    /// # Errors
    /// [`PciError::NoRoom`].
    pub fn place(&self, windows: &Windows) -> Result<(), PciError> {
        let ports = self.ports();
        for (bus, port) in (1u8..).zip(&ports) {
            // The bus behind it is the only one.
            let bus = u32::from(bus);
            write(&**port, bridge::BUSES, 3, bus << 8 | bus << 16);
        }
        let endpoints = self.endpoints();
        self.place_pool(Pool::Io, windows.io, &ports, &endpoints)?;
        self.place_pool(Pool::Memory, windows.memory32, &ports, &endpoints)?;
        self.place_pool(Pool::Prefetchable, windows.memory64, &ports, &endpoints)?;
        for port in &ports {
            write(&**port, header::COMMAND, 2, command::IO | command::MEMORY | command::BUS_MASTER);
        }
        for endpoint in &endpoints {
            // The driver lets it master the bus.
            write(&**endpoint, header::COMMAND, 2, command::IO | command::MEMORY);
        }
        Ok(())
    }

    fn place_pool(
        &self,
        pool: Pool,
        window: Window,
        ports: &[Arc<RootPort>],
        endpoints: &[Arc<Endpoint>],
    ) -> Result<(), PciError> {
        let mut wishes = Vec::new();
        for endpoint in endpoints.iter().filter(|endpoint| matches!(endpoint.place(), PciPlace::Root(_))) {
            for (number, size) in bars_of(endpoint.bars(), pool) {
                // A page at the least, so that a guest can map one without another.
                let alignment = if pool == Pool::Io { size } else { size.max(IO_UNIT) };
                wishes.push(Wish { owner: Owner::Bar(endpoint.clone(), number), size, alignment });
            }
        }
        // A quarter of the window is for what is plugged in later.
        let share = window.size / 4 / (ports.len() as u64).max(1);
        let room = match pool {
            Pool::Io => 0,
            Pool::Memory => ROOM,
            Pool::Prefetchable => (1 << share.max(1).ilog2()).clamp(MEMORY_UNIT, PREFETCHABLE_ROOM),
        };
        for port in ports {
            let bars = port.child().map_or_else(Vec::new, |child| bars_of(child.bars(), pool));
            let unit = if pool == Pool::Io { IO_UNIT } else { MEMORY_UNIT };
            let wanted: u64 = bars.iter().map(|(_, size)| size).sum();
            let size = wanted.max(room).next_multiple_of(unit);
            if size == 0 {
                close_window(port, pool);
                continue;
            }
            let alignment = bars.first().map_or(unit, |(_, size)| (*size).max(unit));
            wishes.push(Wish { owner: Owner::Port(port.clone()), size, alignment });
        }
        wishes.sort_by_key(|wish| Reverse(wish.alignment));
        let no_room = |wish: &Wish| {
            let place = match &wish.owner {
                Owner::Bar(endpoint, _) => endpoint.place(),
                Owner::Port(port) => PciPlace::Port(port.number()),
            };
            PciError::NoRoom { place, size: wish.size, window: window.size }
        };
        let (mut next, end) = (window.base, window.base.saturating_add(window.size));
        for wish in wishes {
            let base = next.checked_next_multiple_of(wish.alignment);
            let placed = base.and_then(|base| Some((base, base.checked_add(wish.size)?)));
            let (base, after) = placed.filter(|(_, after)| *after <= end).ok_or_else(|| no_room(&wish))?;
            next = after;
            match &wish.owner {
                Owner::Bar(endpoint, number) => place_bar(endpoint, *number, base),
                Owner::Port(port) => {
                    place_window(port, pool, base, wish.size);
                    let Some(child) = port.child() else { continue };
                    let mut at = base;
                    for (number, size) in bars_of(child.bars(), pool) {
                        place_bar(&child, number, at);
                        at += size;
                    }
                }
            }
        }
        Ok(())
    }
}
