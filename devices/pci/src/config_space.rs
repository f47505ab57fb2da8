//! The registers of a function's configuration space: which bits a guest may write, and which it may clear.

use std::ops::Range;

use skep_state::{StateError, ensure};

use crate::state::{ConfigState, RegisterState};

/// Offsets of the header (PCI Local Bus 3.0 section 6.1, PCI-to-PCI Bridge Architecture 1.2 section 3.2).
pub(crate) mod header {
    pub(crate) const VENDOR: u16 = 0x00;
    pub(crate) const DEVICE: u16 = 0x02;
    pub(crate) const COMMAND: u16 = 0x04;
    pub(crate) const REVISION: u16 = 0x08;
    pub(crate) const CACHE_LINE: u16 = 0x0c;
    pub(crate) const HEADER_TYPE: u16 = 0x0e;
    pub(crate) const BAR: u16 = 0x10;
    pub(crate) const SUBSYSTEM: u16 = 0x2c;
    pub(crate) const CAPABILITIES: u16 = 0x34;
    pub(crate) const INTERRUPT_LINE: u16 = 0x3c;
    pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
}

/// The command register.
pub(crate) mod command {
    pub(crate) const IO: u32 = 1 << 0;
    pub(crate) const MEMORY: u32 = 1 << 1;
    pub(crate) const BUS_MASTER: u32 = 1 << 2;
    pub(crate) const PARITY: u32 = 1 << 6;
    pub(crate) const SERR: u32 = 1 << 8;
    pub(crate) const PIN_DISABLED: u32 = 1 << 10;
}

/// The status register, as the upper half of the command register's doubleword.
pub(crate) mod status {
    pub(crate) const INTERRUPT: u32 = 1 << 19;
    pub(crate) const CAPABILITIES: u32 = 1 << 20;
}

/// Registers of conventional configuration space. Extended space holds no capability, and reads 0.
const REGISTERS: usize = 64;
/// Where capabilities begin: the end of the header.
const FIRST_CAPABILITY: u16 = 0x40;

/// Some bits of a register.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bits {
    /// At power-on.
    value: u32,
    /// Those that the guest writes.
    writable: u32,
    /// Those that the guest clears by writing 1.
    clears: u32,
    /// Those that only the function changes.
    changing: u32,
}

impl Bits {
    pub(crate) const fn fixed(value: u32) -> Self {
        Self { value, writable: 0, clears: 0, changing: 0 }
    }

    pub(crate) const fn writable(self, writable: u32) -> Self {
        Self { writable, ..self }
    }

    pub(crate) const fn clears(self, clears: u32) -> Self {
        Self { clears, ..self }
    }

    pub(crate) const fn changing(self, changing: u32) -> Self {
        Self { changing, ..self }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Register {
    value: u32,
    bits: Bits,
}

impl Register {
    /// What is part of the saved state.
    fn alive(&self) -> u32 {
        self.bits.writable | self.bits.clears | self.bits.changing
    }
}

/// What a write has done to a register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) before: u32,
    pub(crate) after: u32,
    /// The bits written as 1.
    pub(crate) ones: u32,
}

/// The registers.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpace {
    registers: Box<[Register; REGISTERS]>,
    /// Where the next capability's offset is to be written.
    link: u16,
    free: u16,
}

fn index(offset: u16) -> usize {
    usize::from(offset / 4)
}

fn shift(offset: u16) -> u32 {
    u32::from(offset & 3) * 8
}

impl ConfigSpace {
    pub(crate) fn new() -> Self {
        let registers = Box::new([Register::default(); REGISTERS]);
        Self { registers, link: header::CAPABILITIES, free: FIRST_CAPABILITY }
    }

    /// Defines bits from the byte at `offset` on, within its doubleword.
    ///
    /// # Panics
    /// If they leave it, or were defined before: registers are laid out by this crate and by devices' authors.
    pub(crate) fn define(&mut self, offset: u16, bits: Bits) {
        let place = |value: u32| {
            let placed = u64::from(value) << shift(offset);
            u32::try_from(placed).expect("a register's bits are within its doubleword")
        };
        let register = self.registers.get_mut(index(offset)).expect("a register is within configuration space");
        let new = Bits {
            value: place(bits.value),
            writable: place(bits.writable),
            clears: place(bits.clears),
            changing: place(bits.changing),
        };
        let old = register.bits;
        let taken = old.value | old.writable | old.clears | old.changing;
        assert_eq!(taken & (new.value | new.writable | new.clears), 0, "the register at {offset:#x} is defined twice");
        register.bits = Bits {
            value: old.value | new.value,
            writable: old.writable | new.writable,
            clears: old.clears | new.clears,
            changing: old.changing | new.changing,
        };
        register.value = register.bits.value;
    }

    /// Adds a capability of `length` bytes with its header, and answers where it is.
    pub(crate) fn add_capability(&mut self, id: u8, length: u16) -> u16 {
        let offset = self.free;
        self.free = (offset + length).next_multiple_of(4);
        assert!(usize::from(self.free) <= REGISTERS * 4, "capabilities fit into configuration space");
        self.define(self.link, Bits::fixed(offset.into()));
        self.define(offset, Bits::fixed(id.into()));
        if self.link == header::CAPABILITIES {
            self.define(header::COMMAND, Bits::fixed(status::CAPABILITIES));
        }
        self.link = offset + 1;
        offset
    }

    /// The doubleword that `offset` is in; 0 beyond the registers.
    pub(crate) fn register(&self, offset: u16) -> u32 {
        self.registers.get(index(offset)).map_or(0, |register| register.value)
    }

    /// The 16 bits at `offset`, which is even.
    pub(crate) fn word(&self, offset: u16) -> u16 {
        (self.register(offset) >> shift(offset)) as u16
    }

    /// The byte at `offset`.
    pub(crate) fn byte(&self, offset: u16) -> u8 {
        (self.register(offset) >> shift(offset)) as u8
    }

    /// Sets bits at `offset`, as the function itself does.
    pub(crate) fn set(&mut self, offset: u16, mask: u32, value: u32) {
        if let Some(register) = self.registers.get_mut(index(offset)) {
            let (mask, value) = (mask << shift(offset), value << shift(offset));
            register.value = register.value & !mask | value & mask;
        }
    }

    /// A guest's write to the lanes `lanes` of the doubleword at `offset`.
    pub(crate) fn write(&mut self, offset: u16, lanes: u32, value: u32) -> Change {
        let ones = value & lanes;
        let Some(register) = self.registers.get_mut(index(offset)) else {
            return Change { before: 0, after: 0, ones };
        };
        let before = register.value;
        let writable = register.bits.writable & lanes;
        register.value = (before & !writable | value & writable) & !(ones & register.bits.clears);
        Change { before, after: register.value, ones }
    }

    /// Power-on values, but for the doublewords of `kept`.
    pub(crate) fn reset(&mut self, kept: Range<u16>) {
        for (offset, register) in (0u16..).step_by(4).zip(self.registers.iter_mut()) {
            if !kept.contains(&offset) {
                register.value = register.bits.value;
            }
        }
    }

    pub(crate) fn save(&self) -> ConfigState {
        let registers = (0u16..).step_by(4).zip(self.registers.iter());
        let alive = registers.filter(|(_, register)| register.alive() != 0);
        let saved =
            |(offset, register): (u16, &Register)| RegisterState { offset, value: register.value & register.alive() };
        ConfigState { registers: alive.map(saved).collect() }
    }

    /// Takes on saved registers. What a snapshot does not name keeps its power-on value.
    pub(crate) fn restore(&mut self, state: &ConfigState, id: &'static str) -> Result<(), StateError> {
        let mut restored = self.clone();
        restored.reset(0..0);
        for RegisterState { offset, value } in &state.registers {
            let register = restored.registers.get_mut(index(*offset)).filter(|_| offset.is_multiple_of(4));
            let alive = register.as_ref().map_or(0, |register| register.alive());
            let rule = "this function's configuration space holds those bits fixed";
            ensure(value & !alive == 0, id, "registers", (*offset, *value), rule)?;
            if let Some(register) = register {
                register.value = register.bits.value & !alive | value;
            }
        }
        *self = restored;
        Ok(())
    }
}

/// The parts of an access of any width and alignment, doubleword by doubleword: offset, lanes and what the access has there.
pub(crate) fn parts(offset: u16, data: &[u8]) -> impl Iterator<Item = Part> + '_ {
    let mut at = usize::from(offset);
    let mut rest = data;
    std::iter::from_fn(move || {
        let lane = at % 4;
        let take = rest.len().min(4 - lane);
        let (now, later) = rest.split_at(take);
        if now.is_empty() {
            return None;
        }
        let part = Part { offset: (at - lane) as u16, lane, length: take, value: 0 };
        let part = now.iter().enumerate().fold(part, |part, (byte, value)| Part {
            value: part.value | u32::from(*value) << (8 * (lane + byte)),
            ..part
        });
        (at, rest) = (at + take, later);
        Some(part)
    })
}

/// The part of an access that is in one doubleword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// The doubleword's offset.
    pub(crate) offset: u16,
    /// The first byte in it.
    pub(crate) lane: usize,
    /// How many bytes.
    pub(crate) length: usize,
    /// Their value, in its lanes.
    pub(crate) value: u32,
}

impl Part {
    /// The bits of the lanes.
    pub(crate) fn lanes(self) -> u32 {
        let bits = u64::MAX >> (64 - 8 * self.length.clamp(1, 4)) << (8 * self.lane);
        bits as u32
    }
}

#[cfg(test)]
#[path = "config_space_test.rs"]
mod test;
