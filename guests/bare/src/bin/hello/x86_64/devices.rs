//! Interrupt controllers and devices.

use bare::arch::acpi::{Acpi, Controller};
use bare::arch::cpu::{inb, outb};
use bare::arch::serial;
use bare::arch::user::privileged;
use bare::arch::{apic, memory};
use bare::{problem, say};

use super::cpus;

/// An I/O APIC (Intel 82093AA).
#[derive(Clone, Copy)]
pub struct IoApic {
    /// Where it lies.
    pub address: u64,
    /// The GSI of its first input.
    pub gsi: u32,
}

impl IoApic {
    /// Offset of the register through which the one is accessed whose index is written to offset 0.
    pub const DATA: u64 = 0x10;
    const ID: u32 = 0;
    const VERSION: u32 = 1;
    const REDIRECTION: u32 = 0x10;
    const MASKED: u32 = 1 << 16;

    /// All I/O APICs.
    pub fn all(acpi: &Acpi) -> impl Iterator<Item = Self> {
        acpi.controllers().filter_map(|controller| match controller {
            Controller::IoApic { address, gsi, .. } => Some(Self { address, gsi }),
            _ => None,
        })
    }

    /// The one that has `gsi`.
    pub fn of(acpi: &Acpi, gsi: u32) -> Option<Self> {
        Self::all(acpi).find(|io_apic| gsi.checked_sub(io_apic.gsi).is_some_and(|input| input < io_apic.inputs()))
    }

    fn read(&self, register: u32) -> u32 {
        // SAFETY: the I/O APIC's index and data registers.
        unsafe {
            memory::write32(self.address, register);
            memory::read32(self.address + Self::DATA)
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            memory::write32(self.address, register);
            memory::write32(self.address + Self::DATA, value);
        }
    }

    fn inputs(&self) -> u32 {
        (self.read(Self::VERSION) >> 16 & 0xff) + 1
    }

    /// Let `gsi` raise `vector` on the CPU with APIC id `cpu`, by an edge; a vector of 0 masks it.
    pub fn route(&self, gsi: u32, vector: u8, cpu: u64) {
        let register = Self::REDIRECTION + (gsi - self.gsi) * 2;
        self.write(register, Self::MASKED);
        if vector != 0 {
            self.write(register + 1, (cpu << 24) as u32);
            self.write(register, vector.into());
        }
    }
}

/// The GSI of an ISA interrupt.
pub fn gsi_of(acpi: &Acpi, interrupt: u8) -> u32 {
    let overridden = acpi.controllers().find_map(|controller| match controller {
        Controller::Override { isa, gsi, .. } if isa == interrupt => Some(gsi),
        _ => None,
    });
    overridden.unwrap_or(interrupt.into())
}

/// Say which interrupt controllers there are.
pub fn describe_interrupt_controllers(acpi: &Acpi) {
    cpus::init_local_apic(acpi);
    let (id, version, x2apic) = privileged(|| (apic::id(), apic::version(), apic::in_x2apic_mode()));
    let mode = if x2apic { "x2APIC" } else { "xAPIC" };
    say!("interrupt controller: local APIC {id}, version {:#x}, {mode} mode", version & 0xff);
    for controller in acpi.controllers() {
        match controller {
            Controller::IoApic { id, address, gsi } => {
                let io_apic = IoApic { address, gsi };
                let (own, version) = (io_apic.read(IoApic::ID) >> 24, io_apic.read(IoApic::VERSION) & 0xff);
                let inputs = io_apic.inputs();
                say!(
                    "interrupt controller: I/O APIC {id} at {address:#x}, version {version:#x}, {inputs} inputs from GSI {gsi}"
                );
                if own != u32::from(id) {
                    problem!("the I/O APIC has id {own}, the MADT says {id}");
                }
            }
            Controller::Override { isa, gsi, flags } => {
                say!("interrupt override: ISA {isa} is GSI {gsi}, flags {flags:#x}")
            }
            _ => {}
        }
    }
    match pic_masks() {
        true => say!("interrupt controller: PIC at ports 0x20 and 0xa0"),
        false => say!("interrupt controller: no PIC"),
    }
}

/// Whether both halves of the PIC hold a mask. All its inputs are masked afterwards.
fn pic_masks() -> bool {
    privileged(|| {
        [0x21, 0xa1].into_iter().all(|port| {
            outb(port, 0x5a);
            let held = inb(port) == 0x5a;
            outb(port, 0xff);
            held
        })
    })
}

/// Say which devices there are.
pub fn describe(_acpi: &Acpi) {
    serial::describe();
    describe_rtc();
    describe_pit();
    let status = privileged(|| inb(0x64));
    match status {
        0xff => say!("device: no i8042"),
        _ => say!("device: i8042 at port 0x60, status {status:#04x}"),
    }
    let events = privileged(|| inb(0x505));
    match events {
        0xff => say!("device: no pvpanic"),
        _ => say!("device: pvpanic at port 0x505, events {events:#x}"),
    }
}

/// Read a register of the RTC (Motorola MC146818).
pub fn cmos(register: u8) -> u8 {
    privileged(|| {
        outb(0x70, register);
        inb(0x71)
    })
}

/// Write a register of the RTC.
pub fn set_cmos(register: u8, value: u8) {
    privileged(|| {
        outb(0x70, register);
        outb(0x71, value);
    });
}

/// What the RTC shows: century, year, month, day, hour, minute, second.
fn rtc_time() -> [u8; 7] {
    const STATUS_A: u8 = 0xa;
    const UPDATING: u8 = 0x80;
    const STATUS_B: u8 = 0xb;
    const BINARY: u8 = 4;
    const CENTURY: u8 = 0x32;
    let binary = cmos(STATUS_B) & BINARY != 0;
    let read = || {
        [CENTURY, 9, 8, 7, 4, 2, 0]
            .map(|register| if binary { cmos(register) } else { (cmos(register) >> 4) * 10 + (cmos(register) & 15) })
    };
    // A second may pass while it is being read.
    let mut time = read();
    for _ in 0..100 {
        let again = read();
        if again == time && cmos(STATUS_A) & UPDATING == 0 {
            break;
        }
        time = again;
    }
    time
}

/// Seconds of the day, by the RTC.
pub fn seconds() -> u32 {
    let [.., hour, minute, second] = rtc_time().map(u32::from);
    (hour * 60 + minute) * 60 + second
}

fn describe_rtc() {
    const STATUS_D: u8 = 0xd;
    const POWERED: u8 = 0x80;
    if cmos(STATUS_D) != POWERED {
        say!("device: no RTC");
        return;
    }
    let [century, year, month, day, hour, minute, second] = rtc_time();
    say!("device: RTC at port 0x70, {century:02}{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        problem!("the RTC's time is none");
    }
}

/// Let channel 0 of the PIT (Intel 8254) count from `count` again and again; 0 stops it.
pub fn set_pit(count: u16) {
    const RATE: u8 = 0x34;
    const STOP: u8 = 0x30;
    privileged(|| {
        if count == 0 {
            outb(0x43, STOP);
            return;
        }
        outb(0x43, RATE);
        outb(0x40, count as u8);
        outb(0x40, (count >> 8) as u8);
    });
}

fn describe_pit() {
    const LATCH: u8 = 0;
    set_pit(0xffff);
    let read = || {
        privileged(|| {
            outb(0x43, LATCH);
            u16::from_le_bytes([inb(0x40), inb(0x40)])
        })
    };
    let first = read();
    let ticks = (0..100).any(|_| read() != first);
    set_pit(0);
    say!("device: PIT at port 0x40, {}", if ticks { "ticks" } else { "stands still" });
    if !ticks {
        problem!("the PIT stands still");
    }
}
