//! The x86_64 machine, as a PVH guest sees it.

use core::arch::global_asm;
use core::cell::Cell;

use bare::arch::acpi::Acpi;
use bare::arch::cpu::{inl, outl};
use bare::arch::memory::{read32, write32};
use bare::arch::start::Start;
use bare::arch::user::privileged;
use bare::arch::{clock, cpu, power, serial, user};

pub use bare::arch::memory::map;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start
    .text
    "#
);

#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    user::enter(main, start_info)
}

extern "C" fn main(start_info: u64) -> ! {
    serial::init();
    let start = Start::at(start_info);
    let acpi = Acpi::at(start.rsdp());
    let ticks_per_second = clock::tsc_khz(&acpi) * 1000;
    let config = Config::find(&acpi);
    crate::work(&Machine { start, acpi, ticks_per_second, config, next: Cell::new(WINDOW) })
}

/// Where BARs are placed that nobody has placed: below the I/O APIC, and above where RAM and ECAM may be.
const WINDOW: u64 = 0xc000_0000;
const WINDOW_END: u64 = 0xe000_0000;

/// The way to configuration space.
enum Config {
    /// Ports 0xcf8 and 0xcfc.
    Ports,
    /// In memory.
    Ecam(u64),
}

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLED: u32 = 1 << 31;

impl Config {
    fn find(acpi: &Acpi) -> Self {
        const FIRST_BASE: u64 = 44;
        let ports = privileged(|| {
            outl(ADDRESS, ENABLED);
            inl(ADDRESS) == ENABLED
        });
        let ecam = acpi.find(b"MCFG").and_then(|mcfg| mcfg.get(FIRST_BASE));
        if ports { Self::Ports } else { ecam.map_or(Self::Ports, Self::Ecam) }
    }
}

/// What was found so far.
pub struct Machine {
    start: Start,
    acpi: Acpi,
    ticks_per_second: u64,
    config: Config,
    next: Cell<u64>,
}

impl Machine {
    /// Addresses below can be mapped.
    pub const REACH: u64 = 1 << 47;

    /// The command line.
    pub fn command_line(&self) -> &str {
        self.start.command_line()
    }

    /// How fast [`cpu::counter`] goes.
    pub fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// Reads a doubleword of the configuration space of a device on bus 0.
    pub fn read_config(&self, device: u8, offset: u16) -> u32 {
        match self.config {
            Config::Ports => privileged(|| {
                outl(ADDRESS, ENABLED | u32::from(device) << 11 | u32::from(offset & 0xfc));
                inl(DATA)
            }),
            // SAFETY: ACPI says that it is there.
            Config::Ecam(base) => unsafe { read32(base + (u64::from(device) << 15) + u64::from(offset & 0xffc)) },
        }
    }

    /// Writes one.
    pub fn write_config(&self, device: u8, offset: u16, value: u32) {
        match self.config {
            Config::Ports => privileged(|| {
                outl(ADDRESS, ENABLED | u32::from(device) << 11 | u32::from(offset & 0xfc));
                outl(DATA, value);
            }),
            // SAFETY: ACPI says that it is there.
            Config::Ecam(base) => unsafe {
                write32(base + (u64::from(device) << 15) + u64::from(offset & 0xffc), value);
            },
        }
    }

    /// A free place for a BAR.
    pub fn place(&self, size: u64) -> Option<u64> {
        let place = self.next.get().next_multiple_of(size.max(0x1000));
        let end = place.checked_add(size).filter(|&end| end <= WINDOW_END)?;
        self.next.set(end);
        Some(place)
    }

    /// Turns the machine off, if ACPI says how.
    pub fn power_off(&self) {
        power::power_off(&self.acpi);
    }

    /// Waits for ever.
    pub fn halt(&self) -> ! {
        privileged(|| cpu::park())
    }
}
