//! ACPI tables of the x86_64 machine: not hardware-reduced, since Q35's contract has a PM block.

use acpi_tables::AmlSink;
use acpi_tables::fadt::Flags;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use skep_irq::{Polarity, Trigger};

use super::layout::{IOAPIC, LOCAL_APIC, gsi, port};
use crate::acpi::{
    Dsdt, Ecam, FADT_X_DSDT, PointerSize, SerialConsole, Table, devices, finish_fadt, mcfg, new_fadt, spcr,
};

/// One processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its APIC id. Ids from 255 on are x2APIC ids.
    pub apic_id: u32,
    /// Whether it is there from the start; else it can be plugged in.
    pub present: bool,
}

/// How the operating system takes ACPI over from firmware. A machine without it is in ACPI mode always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmiCommand {
    /// Port to write to.
    pub port: u8,
    /// What turns ACPI mode on.
    pub enable: u8,
    /// What turns it off.
    pub disable: u8,
}

/// The ICH9's PM block and reset register.
#[derive(Clone, Copy, Debug)]
pub struct PowerManagement {
    /// PMBASE, where firmware or the machine has put it.
    pub base: u16,
    /// The system control interrupt.
    pub sci: u16,
    /// How ACPI mode is turned on, if it is not always.
    pub smi_command: Option<SmiCommand>,
    /// Whether the timer counts 32 bits; else 24.
    pub timer_32_bit: bool,
    /// SLP_TYP of power-off.
    pub power_off_type: u8,
}

impl Default for PowerManagement {
    /// The machine without firmware.
    fn default() -> Self {
        let base = port::PM.base as u16;
        Self { base, sci: gsi::SCI as u16, smi_command: None, timer_32_bit: false, power_off_type: 0 }
    }
}

/// What a kernel need not look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Legacy {
    /// There is a keyboard or a mouse on the i8042.
    pub i8042: bool,
    /// There is a VGA.
    pub vga: bool,
    /// There is a CMOS RTC.
    pub cmos_rtc: bool,
    /// PCI devices may use active state power management.
    pub aspm: bool,
}

/// An ISA interrupt that does not arrive at the GSI of its number as an edge.
#[derive(Clone, Copy, Debug)]
pub struct Override {
    /// ISA interrupt.
    pub isa: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// How.
    pub trigger: Trigger,
    /// How.
    pub polarity: Polarity,
}

/// Those of the PC: the timer at GSI 2, the SCI level-triggered.
pub const OVERRIDES: [Override; 2] = [
    Override { isa: 0, gsi: gsi::TIMER, trigger: Trigger::Edge, polarity: Polarity::High },
    Override { isa: gsi::SCI as u8, gsi: gsi::SCI, trigger: Trigger::Level, polarity: Polarity::High },
];

/// What the tables tell of the machine.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// Processors; their unique ids are their indices.
    pub cpus: &'a [Cpu],
    /// Id of the I/O APIC.
    pub ioapic_id: u8,
    /// Interrupts that arrive elsewhere.
    pub overrides: &'a [Override],
    /// The PM block.
    pub power: PowerManagement,
    /// What a kernel need not look for.
    pub legacy: Legacy,
    /// The console, if it is serial.
    pub console: Option<SerialConsole>,
    /// PCI segments.
    pub ecam: &'a [Ecam],
}

/// The machine's tables. `dsdt` holds the devices; the processors and the sleep states are added here.
pub fn tables(platform: &Platform<'_>, mut dsdt: Dsdt) -> Vec<Table> {
    dsdt.root(&devices::SleepState { state: 5, sleep_type: platform.power.power_off_type });
    dsdt.device(&devices::Processors { count: platform.cpus.len() as u32 });
    let mut tables = vec![Table::facs(), dsdt.table(), fadt(platform), madt(platform)];
    tables.extend(platform.console.as_ref().map(spcr));
    if !platform.ecam.is_empty() {
        tables.push(mcfg(platform.ecam));
    }
    tables
}

fn fadt(platform: &Platform<'_>) -> Table {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const I8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    const NO_CMOS_RTC: u16 = 1 << 5;
    /// Latencies that say that there is no C2, no C3.
    const NO_C2: u16 = 0xfff;
    const NO_C3: u16 = 0xfff;
    const CMOS_CENTURY: u8 = 0x32;
    /// A hard reset of the reset control register.
    const RESET: u8 = 0x06;

    let power = &platform.power;
    let block = |offset: u16, bytes: u8, access| {
        let address = power.base + offset;
        (u32::from(address), GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, address.into()))
    };
    let (event, x_event) = block(0x00, 4, AccessSize::WordAccess);
    let (control, x_control) = block(0x04, 2, AccessSize::WordAccess);
    let (timer, x_timer) = block(0x08, 4, AccessSize::DwordAccess);
    let (gpe0, x_gpe0) = block(0x20, 16, AccessSize::ByteAccess);
    let reset = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port::RESET_CONTROL.into());
    let smi = power.smi_command.unwrap_or(SmiCommand { port: 0, enable: 0, disable: 0 });
    let legacy = platform.legacy;
    let flag = |there: bool, flag: u16| if there { flag } else { 0 };
    let boot = LEGACY_DEVICES
        | flag(legacy.i8042, I8042)
        | flag(!legacy.vga, NO_VGA)
        | flag(!legacy.aspm, NO_ASPM)
        | flag(!legacy.cmos_rtc, NO_CMOS_RTC);

    let mut fadt = new_fadt();
    fadt.sci_int = power.sci.into();
    fadt.smi_cmd = u32::from(smi.port).into();
    fadt.acpi_enable = smi.enable;
    fadt.acpi_disable = smi.disable;
    fadt.pm1a_evt_blk = event.into();
    fadt.pm1a_cnt_blk = control.into();
    fadt.pm_tmr_blk = timer.into();
    fadt.gpe0_blk = gpe0.into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.gpe0_blk_len = 16;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = if legacy.cmos_rtc { CMOS_CENTURY } else { 0 };
    fadt.iapc_boot_arch = boot.into();
    fadt.reset_reg = reset;
    fadt.reset_value = RESET;
    fadt.x_pm1a_evt_blk = x_event;
    fadt.x_pm1a_cnt_blk = x_control;
    fadt.x_pm_tmr_blk = x_timer;
    fadt.x_gpe0_blk = x_gpe0;
    // A fixed power button, no sleep button, no RTC wake-up status.
    for flag in [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::FixRtc, Flags::ResetRegSup] {
        fadt = fadt.flag(flag);
    }
    if power.timer_32_bit {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    finish_fadt(fadt)
        .with_pointer(FADT_FIRMWARE_CTRL, PointerSize::Four, *b"FACS")
        .with_pointer(FADT_DSDT, PointerSize::Four, *b"DSDT")
        .with_pointer(FADT_X_DSDT, PointerSize::Eight, *b"DSDT")
}

const FADT_FIRMWARE_CTRL: usize = 36;
const FADT_DSDT: usize = 40;

fn madt(platform: &Platform<'_>) -> Table {
    const LOCAL_APIC_ENTRY: u8 = 0;
    const IOAPIC_ENTRY: u8 = 1;
    const OVERRIDE: u8 = 2;
    const LOCAL_APIC_NMI: u8 = 4;
    const X2APIC: u8 = 9;
    const X2APIC_NMI: u8 = 10;
    /// There is a PIC as well.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1 << 0;
    const ONLINE_CAPABLE: u32 = 1 << 1;
    /// NMI arrives here.
    const LINT1: u8 = 1;

    let mut body = Vec::new();
    body.dword(LOCAL_APIC.base as u32);
    body.dword(PCAT_COMPAT);
    let mut extended = false;
    for (uid, cpu) in platform.cpus.iter().enumerate() {
        let flags = if cpu.present { ENABLED } else { ONLINE_CAPABLE };
        match (u8::try_from(cpu.apic_id), u8::try_from(uid)) {
            // All ones means every processor.
            (Ok(apic_id), Ok(uid)) if apic_id < u8::MAX && uid < u8::MAX => {
                body.vec(&[LOCAL_APIC_ENTRY, 8, uid, apic_id]);
                body.dword(flags);
            }
            _ => {
                extended = true;
                body.vec(&[X2APIC, 16, 0, 0]);
                body.dword(cpu.apic_id);
                body.dword(flags);
                body.dword(uid as u32);
            }
        }
    }
    body.vec(&[IOAPIC_ENTRY, 12, platform.ioapic_id, 0]);
    body.dword(IOAPIC.base as u32);
    body.dword(0);
    for entry in platform.overrides {
        body.vec(&[OVERRIDE, 10, 0, entry.isa]);
        body.dword(entry.gsi);
        body.word(inti_flags(entry.trigger, entry.polarity));
    }
    body.vec(&[LOCAL_APIC_NMI, 6, u8::MAX, 0, 0, LINT1]);
    if extended {
        body.vec(&[X2APIC_NMI, 12, 0, 0]);
        body.dword(u32::MAX);
        body.vec(&[LINT1, 0, 0, 0]);
    }
    Table::new(*b"APIC", 5, &body)
}

/// MPS INTI flags: zero is what the ISA bus does.
fn inti_flags(trigger: Trigger, polarity: Polarity) -> u16 {
    match (trigger, polarity) {
        (Trigger::Edge, Polarity::High) => 0,
        (trigger, polarity) => {
            let polarity = if polarity == Polarity::Low { 0b11 } else { 0b01 };
            let trigger = if trigger == Trigger::Level { 0b11 } else { 0b01 };
            trigger << 2 | polarity
        }
    }
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod test;
