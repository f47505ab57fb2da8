//! The aarch64 machine, as a Linux `Image` sees it.

use core::arch::global_asm;
use core::cell::Cell;

use bare::arch::fdt::{Fdt, Node};
use bare::arch::memory::{read32, write32};
use bare::arch::{cpu, psci, serial};
use bare::read_register;

// The header of a Linux Image (Documentation/arch/arm64/booting.rst): anywhere in memory, 4 KiB pages.
global_asm!(
    r#"
    .section .boot.header, "a", @progbits
    b start
    .long 0
    .quad 0                     // offset from the 2 MiB boundary
    .quad image_size
    .quad 0xa
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0
    .text
    "#
);

#[unsafe(no_mangle)]
extern "C" fn guest_main(fdt: u64) -> ! {
    let fdt = Fdt::at(fdt);
    serial::init(&fdt);
    let host = fdt.compatible("pci-host-ecam-generic");
    let (next, end) = host.and_then(window).unwrap_or_default();
    let ecam = host.and_then(|host| host.range(0)).map(|(base, _)| base);
    crate::work(&Machine { fdt, ecam, next: Cell::new(next), end })
}

/// The addresses of a host bridge for BARs in 32-bit memory, whose addresses on the bus are the same.
fn window(host: Node) -> Option<(u64, u64)> {
    const CELLS: usize = 7;
    const SPACE: u32 = 3 << 24;
    const MEMORY_32: u32 = 2 << 24;
    let ranges = (0..).step_by(CELLS).map_while(|at| host.cell("ranges", at).map(|kind| (at, kind)));
    let (at, _) = ranges.into_iter().find(|(_, kind)| kind & SPACE == MEMORY_32)?;
    let pair = |at| Some(u64::from(host.cell("ranges", at)?) << 32 | u64::from(host.cell("ranges", at + 1)?));
    let (base, size) = (pair(at + 3)?, pair(at + 5)?);
    Some((base, base + size))
}

/// Nothing: the boot code's map has all that is used here.
pub fn map(_address: u64, _length: u64) {}

/// What was found so far.
pub struct Machine {
    fdt: Fdt,
    ecam: Option<u64>,
    next: Cell<u64>,
    end: u64,
}

impl Machine {
    /// Addresses below are mapped.
    pub const REACH: u64 = 1 << 39;

    /// The command line.
    pub fn command_line(&self) -> &str {
        self.fdt.node_named("chosen").and_then(|chosen| chosen.text("bootargs")).unwrap_or("")
    }

    /// How fast [`cpu::counter`] goes.
    pub fn ticks_per_second(&self) -> u64 {
        read_register!("cntfrq_el0").max(1)
    }

    /// Reads a doubleword of the configuration space of a device on bus 0.
    pub fn read_config(&self, device: u8, offset: u16) -> u32 {
        let place = |base| base + (u64::from(device) << 15) + u64::from(offset & 0xffc);
        // SAFETY: the device tree says that it is there.
        self.ecam.map_or(u32::MAX, |base| unsafe { read32(place(base)) })
    }

    /// Writes one.
    pub fn write_config(&self, device: u8, offset: u16, value: u32) {
        if let Some(base) = self.ecam {
            // SAFETY: as above.
            unsafe { write32(base + (u64::from(device) << 15) + u64::from(offset & 0xffc), value) };
        }
    }

    /// A free place for a BAR.
    pub fn place(&self, size: u64) -> Option<u64> {
        let place = self.next.get().next_multiple_of(size.max(0x1000));
        let end = place.checked_add(size).filter(|&end| end <= self.end)?;
        self.next.set(end);
        Some(place)
    }

    /// Turns the machine off.
    pub fn power_off(&self) {
        psci::system_off();
    }

    /// Waits for ever.
    pub fn halt(&self) -> ! {
        cpu::park()
    }
}
