//! The legacy devices of both machines.
//!
//! | device | module | follows |
//! |---|---|---|
//! | serial port of a PC | [`uart16550`] | National Semiconductor PC16550D |
//! | serial port | [`pl011`] | ARM DDI 0183G |
//! | real-time clock of a PC | [`rtc`] | Motorola MC146818, Intel ICH9 |
//! | real-time clock | [`pl031`] | ARM DDI 0224C |
//! | interrupt controllers of a PC | [`i8259`], [`ioapic`] | Intel 8259A, 82093AA, ICH9 |
//! | MSIs of a GICv2 | [`v2m`] | ARM's GICv2m frame (SBSA) |
//! | timer and speaker port of a PC | [`i8254`] | Intel 82C54, ICH9 |
//! | keyboard controller, system control port | [`i8042`], [`port92`] | IBM PS/2, ICH9 |
//! | power management, reset control | [`pm`], [`reset_control`] | ICH9, ACPI 6.5 chapter 4 |
//! | GPIO with a power button | [`gpio`] | ARM DDI 0190B |
//! | panic notifier | [`pvpanic`] | QEMU's pvpanic |
//! | firmware's debug port | [`debugcon`] | QEMU's isa-debugcon |
//! | what firmware is told | [`fw_cfg`] | QEMU's fw_cfg |
//! | firmware's flash | [`flash`] | Intel's command set, CFI (JESD68.01), Micron P30 |
//!
//! A device is made from a configuration that holds all it needs: its [`skep_irq::IrqLine`]s, the machine's [`skep_clock::Clock`], the
//! [`Requests`] by which it asks for power-off or reset. It answers accesses as a [`skep_bus::Device`], and is saved, restored and reset as a
//! [`skep_state::Component`]. Where a PC has its ports is said by constants of [`PortRange`]s; the addresses of an aarch64 machine are its own.
//!
//! # Locks
//!
//! A device has one lock. Under it, it calls lines, timers, [`Requests`] and [`SerialOut`], none of which may call back into a device. The
//! listeners of [`SerialPort::on_space`] and [`skep_irq::IrqLine::on_eoi`] are called with no lock held.
//!
//! # Time
//!
//! A device derives what it shows from the clock when it is looked at, and arms a timer only for an interrupt that somebody waits for. In its
//! saved state, time is relative to the moment of saving, so that a restored machine's clock may stand anywhere; clocks are restored first.
//!
//! What it does not do: the devices' descriptions in ACPI and FDT, PCI functions, the content of fw_cfg.

#![forbid(unsafe_code)]

mod access;
mod alarm;
pub mod debugcon;
mod eoi;
mod fifo;
pub mod flash;
pub mod fw_cfg;
pub mod gpio;
mod gsi;
pub mod i8042;
pub mod i8254;
pub mod i8259;
pub mod ioapic;
mod oscillator;
pub mod pl011;
pub mod pl031;
pub mod pm;
pub mod port92;
mod ports;
pub mod pvpanic;
mod request;
pub mod reset_control;
pub mod rtc;
mod serial;
pub mod uart16550;
pub mod v2m;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
mod testing;

pub use debugcon::DebugCon;
pub use flash::{Flash, FlashConfig};
pub use fw_cfg::{FwCfg, FwCfgConfig};
pub use gpio::{Pl061, Pl061Config};
pub use gsi::GsiLines;
pub use i8042::{I8042, I8042Config, Ps2Port};
pub use i8254::{I8254, I8254Config};
pub use i8259::{I8259, I8259Config};
pub use ioapic::{IoApic, IoApicConfig};
pub use pl011::{Pl011, Pl011Config};
pub use pl031::{Pl031, Pl031Config};
pub use pm::{Pm, PmConfig};
pub use port92::Port92;
pub use ports::PortRange;
pub use pvpanic::PvPanic;
pub use request::{MachineRequest, PanicEvent, Requests};
pub use reset_control::ResetControl;
pub use rtc::{Rtc, RtcConfig};
pub use serial::{SerialOut, SerialPort};
pub use uart16550::{Uart16550, Uart16550Config};
pub use v2m::{V2m, V2mConfig};

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::flash::flash_test::on_a_pc::fuzz_random_accesses as chipset_flash_pc;
    pub use crate::flash::flash_test::on_aarch64::fuzz_random_accesses as chipset_flash_virt;
    pub use crate::flash::model_test::fuzz_the_file_is_what_the_bank_held as chipset_flash_file;
    pub use crate::fw_cfg::fw_cfg_test::fuzz_random_accesses as chipset_fw_cfg;
    pub use crate::gpio::gpio_test::fuzz_random_accesses as chipset_gpio;
    pub use crate::i8042::i8042_test::fuzz_random_accesses as chipset_i8042;
    pub use crate::i8254::test::fuzz_random_accesses as chipset_i8254;
    pub use crate::i8259::i8259_test::fuzz_random_accesses as chipset_i8259;
    pub use crate::ioapic::ioapic_test::fuzz_random_accesses as chipset_ioapic;
    pub use crate::pl011::test::fuzz_random_accesses as chipset_pl011;
    pub use crate::pl031::test::fuzz_random_accesses as chipset_pl031;
    pub use crate::pm::pm_test::fuzz_random_accesses as chipset_pm;
    pub use crate::port92::test::fuzz_random_accesses as chipset_port92;
    pub use crate::reset_control::test::fuzz_random_accesses as chipset_reset_control;
    pub use crate::rtc::rtc_test::fuzz_random_accesses as chipset_rtc;
    pub use crate::uart16550::uart16550_test::fuzz_random_accesses as chipset_uart16550;
    pub use crate::v2m::test::fuzz_random_accesses as chipset_v2m;
}
