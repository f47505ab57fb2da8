//! The functions of the chipset itself: host bridges, and the LPC bridge of ICH9. They hold registers; what those do is the machine's.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_bus::Action;
use skep_state::{Persist, StateError};

use crate::config_space::{Bits, ConfigSpace, command, header};
use crate::endpoint::Identity;
use crate::node::ConfigFunction;
use crate::pirq::{PIRQS, PirqRouter};
use crate::state::{CHIPSET_ID, ChipsetState};

#[cfg(test)]
#[path = "chipset_test.rs"]
mod test;

/// QEMU's subsystem ids, which some firmware and guests look for.
const QEMU: (u16, u16) = (0x1af4, 0x1100);
const HOST_BRIDGE: u32 = 0x06_0000;
const ISA_BRIDGE: u32 = 0x06_0100;

/// Registers, some of which move something when they are written.
#[derive(Debug)]
struct Registers {
    space: Mutex<ConfigSpace>,
    /// Offsets of the doublewords that move something.
    moving: &'static [u16],
}

/// The header of a function of the chipset. It answers always, whatever is written to its command register.
fn header_of(vendor: u16, device: u16, class: u32, revision: u8) -> ConfigSpace {
    let mut space = ConfigSpace::new();
    let (subsystem_vendor, subsystem) = QEMU;
    Identity { vendor, device, subsystem_vendor, subsystem, class, revision }.define(&mut space);
    space.define(header::SUBSYSTEM, Bits::fixed(u32::from(subsystem_vendor) | u32::from(subsystem) << 16));
    let enabled = command::IO | command::MEMORY | command::BUS_MASTER;
    space.define(header::COMMAND, Bits::fixed(enabled).writable(command::PARITY | command::SERR));
    space
}

impl Registers {
    fn new(space: ConfigSpace, moving: &'static [u16]) -> Self {
        Self { space: Mutex::new(space), moving }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, offset: u16, lanes: u32, value: u32, correct: impl FnOnce(&mut ConfigSpace, u32)) -> Action {
        let mut space = self.lock();
        let before = space.write(offset, lanes, value).before;
        correct(&mut space, before);
        let moved = self.moving.contains(&offset) && before != space.register(offset);
        if moved { Action::Relocate } else { Action::None }
    }
}

/// Why registers are what they are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A write or a reset.
    Change,
    /// A restored state: what follows from it is restored as well.
    Restored,
}

/// Implements what all of them share over their field `registers`: `$correct` has the last word on what is written, `$look` sees it, `$follow` is
/// called with registers that may have changed, under their lock.
macro_rules! chipset_function {
    ($name:ident, $correct:expr) => {
        chipset_function!($name, $correct, |_: &Self, _: u16, _: u32| {});
    };
    ($name:ident, $correct:expr, $look:expr) => {
        chipset_function!($name, $correct, $look, |_: &Self, _: &ConfigSpace, _: Cause| {});
    };
    ($name:ident, $correct:expr, $look:expr, $follow:expr) => {
        impl $name {
            /// What follows from the registers.
            const FOLLOW: fn(&Self, &ConfigSpace, Cause) = $follow;
        }

        impl ConfigFunction for $name {
            fn config_read(&self, offset: u16) -> u32 {
                self.registers.lock().register(offset)
            }

            fn config_write(&self, offset: u16, lanes: u32, value: u32) -> Action {
                let look: fn(&Self, u16, u32) = $look;
                look(self, offset, value & lanes);
                let correct: fn(u16, &mut ConfigSpace, u32) = $correct;
                self.registers.write(offset, lanes, value, |space, before| {
                    correct(offset, space, before);
                    Self::FOLLOW(self, space, Cause::Change);
                })
            }

            fn bus_reset(&self) {
                self.reset();
            }
        }

        impl Persist for $name {
            type State = ChipsetState;

            fn save(&self) -> ChipsetState {
                ChipsetState { config: self.registers.lock().save() }
            }

            fn restore(&self, state: &ChipsetState) -> Result<(), StateError> {
                let mut space = self.registers.lock();
                space.restore(&state.config, CHIPSET_ID)?;
                Self::FOLLOW(self, &space, Cause::Restored);
                Ok(())
            }

            fn reset(&self) {
                let mut space = self.registers.lock();
                space.reset(0..0);
                Self::FOLLOW(self, &space, Cause::Change);
            }
        }
    };
}

/// The host bridge of a generic ECAM host (1b36:0008): it does nothing but be there.
#[derive(Debug)]
pub struct GenericHostBridge {
    registers: Registers,
}

impl Default for GenericHostBridge {
    fn default() -> Self {
        Self { registers: Registers::new(header_of(0x1b36, 0x0008, HOST_BRIDGE, 0), &[]) }
    }
}

chipset_function!(GenericHostBridge, |_, _, _| {});

/// Registers of the MCH (Intel 316966, section 5.1).
mod mch {
    pub(super) const PCIEXBAR: u16 = 0x60;
    pub(super) const PAM: u16 = 0x90;
    /// The size of extended TSEG, which is QEMU's: writing all ones asks for it. Nothing answers here.
    pub(super) const EXTENDED_TSEG: u16 = 0x50;
    /// The doubleword of PAM4 to PAM6 ends with it; SMRAM and ESMRAMC follow PAM.
    pub(super) const SMRAM: u16 = 0x9d;
    pub(super) const ESMRAMC: u16 = 0x9e;
    /// PCIEXBAR: enable; length in bits 2:1; base in bits 35:26.
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const BASE: u64 = 0xf_fc00_0000;
    /// SMRAM: closed for access outside SMM, and locked so.
    pub(super) const SMRAM_OPEN: u32 = 1 << 6;
    pub(super) const SMRAM_LOCK: u32 = 1 << 4;
    /// PAM: reads, and writes, go to memory.
    pub(super) const READ: u8 = 1 << 0;
    pub(super) const WRITE: u8 = 1 << 1;
}

/// A piece of the addresses below 1 MiB, where ROMs are shadowed by memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowSegment {
    /// The first address.
    pub base: u64,
    /// How many bytes.
    pub size: u64,
    /// Reads are answered by memory; else by PCI, or by the firmware's ROM.
    pub read: bool,
    /// Writes go to memory; else they go to PCI.
    pub write: bool,
}

/// The memory controller hub of Q35 (8086:29c0): PCIEXBAR says where ECAM is, PAM what is shadowed by memory, SMRAM whether there is memory behind
/// the VGA window. There is no system management mode, and ESMRAMC says so as QEMU's machine without it does: it reads 0.
#[derive(Debug)]
pub struct Mch {
    registers: Registers,
    wants_smm: Hook,
}

/// Called when something is asked for.
#[derive(Default)]
struct Hook(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

impl Default for Mch {
    fn default() -> Self {
        let mut space = header_of(0x8086, 0x29c0, HOST_BRIDGE, 2);
        let writable = mch::ENABLE | 0b11 << 1 | mch::BASE;
        space.define(mch::PCIEXBAR, Bits::fixed(0xb000_0000).writable(writable as u32));
        space.define(mch::PCIEXBAR + 4, Bits::fixed(0).writable((writable >> 32) as u32));
        // PAM0 has its upper half only: what is below is ordinary memory.
        space.define(mch::PAM, Bits::fixed(0).writable(0x3333_3330));
        space.define(mch::PAM + 4, Bits::fixed(0).writable(0x0033_3333));
        space.define(mch::SMRAM, Bits::fixed(0x02).writable(0x78));
        space.define(mch::ESMRAMC, Bits::fixed(0));
        let moving = &[mch::PCIEXBAR, mch::PCIEXBAR + 4, mch::PAM, mch::PAM + 4, mch::SMRAM & !3];
        Self { registers: Registers::new(space, moving), wants_smm: Hook::default() }
    }
}

impl Mch {
    /// Where ECAM is: its first address and its size, if it is enabled.
    #[must_use]
    pub fn ecam(&self) -> Option<(u64, u64)> {
        let space = self.registers.lock();
        let value = u64::from(space.register(mch::PCIEXBAR + 4)) << 32 | u64::from(space.register(mch::PCIEXBAR));
        // 256, 128 or 64 MiB: for as many buses.
        let size = match value >> 1 & 0b11 {
            0 => 256 << 20,
            1 => 128 << 20,
            2 => 64 << 20,
            _ => return None,
        };
        (value & mch::ENABLE != 0).then_some((value & mch::BASE & !(size - 1), size))
    }

    /// Puts ECAM, for 256 buses, where a machine without firmware wants it: at a multiple of 256 MiB below 64 GiB.
    pub fn set_ecam(&self, base: u64) {
        let mut space = self.registers.lock();
        let value = base & mch::BASE | mch::ENABLE;
        space.set(mch::PCIEXBAR, u32::MAX, value as u32);
        space.set(mch::PCIEXBAR + 4, u32::MAX, (value >> 32) as u32);
    }

    /// What the PAM registers say of each of their 13 segments, ascending.
    #[must_use]
    pub fn shadow(&self) -> Vec<ShadowSegment> {
        let space = self.registers.lock();
        let registers = u64::from(space.register(mch::PAM + 4)) << 32 | u64::from(space.register(mch::PAM));
        let nibble = |number: u64| (registers >> (4 * number)) as u8;
        let segment = |base, size, bits: u8| {
            let (read, write) = (bits & mch::READ != 0, bits & mch::WRITE != 0);
            ShadowSegment { base, size, read, write }
        };
        // PAM1 to PAM6 have 16 KiB in each half, from 0xc0000 on; PAM0 has the last 64 KiB in its upper half.
        let pieces = (0..12).map(|number| segment(0xc_0000 + 0x4000 * number, 0x4000, nibble(2 + number)));
        pieces.chain([segment(0xf_0000, 0x1_0000, nibble(1))]).collect()
    }

    /// Whether the memory behind the VGA window can be reached.
    #[must_use]
    pub fn smram_is_open(&self) -> bool {
        let smram = self.registers.lock().register(mch::SMRAM & !3) >> (8 * u32::from(mch::SMRAM & 3));
        smram & mch::SMRAM_OPEN != 0
    }

    /// Calls `told` when firmware asks how large TSEG is: only firmware that can't do without system management mode does. It is called on the
    /// vCPU's thread.
    pub fn on_smm_wanted(&self, told: impl Fn() + Send + Sync + 'static) {
        // A machine has one for its whole life.
        let _ = self.wants_smm.0.set(Box::new(told));
    }

    /// Once SMRAM is locked, nothing of it changes until the machine is reset.
    fn correct(offset: u16, space: &mut ConfigSpace, before: u32) {
        let shift = 8 * u32::from(mch::SMRAM & 3);
        let both = 0xffff << shift;
        if offset != mch::SMRAM & !3 {
            return;
        }
        if before & mch::SMRAM_LOCK << shift != 0 {
            space.set(offset, both, before);
        } else if space.register(offset) & mch::SMRAM_LOCK << shift != 0 {
            space.set(offset, mch::SMRAM_OPEN << shift, 0);
        }
    }
}

chipset_function!(Mch, Mch::correct, |mch, offset, value| {
    if let (mch::EXTENDED_TSEG, 0xffff, Some(told)) = (offset, value, mch.wants_smm.0.get()) {
        told();
    }
});

/// Registers of the LPC bridge (Intel 316972, section 13.1).
mod lpc {
    pub(super) const PMBASE: u16 = 0x40;
    pub(super) const ACPI_CNTL: u16 = 0x44;
    pub(super) const PIRQ_A_TO_D: u16 = 0x60;
    pub(super) const SERIAL_IRQ: u16 = 0x64;
    pub(super) const PIRQ_E_TO_H: u16 = 0x68;
    pub(super) const DECODE: u16 = 0x80;
    pub(super) const GENERIC_DECODE: u16 = 0x84;
    pub(super) const GEN_PMCON: u16 = 0xa0;
    pub(super) const RCBA: u16 = 0xf0;
    /// ACPI_CNTL: the PM block is decoded.
    pub(super) const ACPI_ENABLE: u32 = 1 << 7;
    /// PIRQs that go to no interrupt of the PIC.
    pub(super) const NOT_ROUTED: u32 = 0x8080_8080;
}

/// The LPC bridge of ICH9 (8086:2918): PMBASE says where the power management block is, PIRQA_ROUT to PIRQH_ROUT which interrupts of the PIC those of
/// PCI are; the others hold what firmware writes.
#[derive(Debug)]
pub struct LpcBridge {
    registers: Registers,
    router: Arc<PirqRouter>,
}

impl LpcBridge {
    /// `pm_base` is where the power management block is at power-on, in a machine without firmware. `router` is its own, and does as its registers
    /// say.
    #[must_use]
    pub fn new(pm_base: Option<u16>, router: Arc<PirqRouter>) -> Self {
        let mut space = header_of(0x8086, 0x2918, ISA_BRIDGE, 2);
        let base = u32::from(pm_base.unwrap_or(0) & 0xff80);
        space.define(lpc::PMBASE, Bits::fixed(base | 1).writable(0xff80));
        let enabled = if pm_base.is_some() { lpc::ACPI_ENABLE } else { 0 };
        space.define(lpc::ACPI_CNTL, Bits::fixed(enabled).writable(0x87));
        space.define(lpc::PIRQ_A_TO_D, Bits::fixed(lpc::NOT_ROUTED).writable(0x8f8f_8f8f));
        space.define(lpc::SERIAL_IRQ, Bits::fixed(0x10).writable(0xff));
        space.define(lpc::PIRQ_E_TO_H, Bits::fixed(lpc::NOT_ROUTED).writable(0x8f8f_8f8f));
        space.define(lpc::DECODE, Bits::fixed(0).writable(0x3fff_0377));
        for decode in 0..3 {
            space.define(lpc::GENERIC_DECODE + 4 * decode, Bits::fixed(0).writable(0x00fc_fffd));
        }
        space.define(lpc::GEN_PMCON, Bits::fixed(0).writable(0x1f00_ffff));
        space.define(lpc::RCBA, Bits::fixed(0).writable(0xffff_c001));
        Self { registers: Registers::new(space, &[lpc::PMBASE, lpc::ACPI_CNTL]), router }
    }

    /// PIRQA_ROUT to PIRQH_ROUT.
    fn routes(space: &ConfigSpace) -> [u8; PIRQS] {
        let (low, high) = (space.register(lpc::PIRQ_A_TO_D), space.register(lpc::PIRQ_E_TO_H));
        (u64::from(high) << 32 | u64::from(low)).to_le_bytes()
    }

    /// Where the power management block is, if it is decoded.
    #[must_use]
    pub fn pm_base(&self) -> Option<u16> {
        let space = self.registers.lock();
        let base = space.word(lpc::PMBASE) & 0xff80;
        let decoded = space.register(lpc::ACPI_CNTL) & lpc::ACPI_ENABLE != 0;
        (decoded && base != 0).then_some(base)
    }
}

chipset_function!(LpcBridge, |_, _, _| {}, |_, _, _| {}, |lpc, space, cause| {
    let routes = LpcBridge::routes(space);
    match cause {
        Cause::Change => lpc.router.route(routes),
        Cause::Restored => lpc.router.restore_routes(routes),
    }
});
