//! The aarch64 machine, as a Linux `Image` sees it.

mod clock;
mod cpus;
mod devices;
mod ticks;
use core::arch::global_asm;

use bare::arch::fdt::Fdt;
use bare::arch::memory::write32;
use bare::arch::{cpu, psci, serial};
use bare::{problem, say};

use crate::command::{Echo, End};

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
    say!("skep hello: up");
    crate::report(&Machine { fdt })
}

/// What was found so far.
pub struct Machine {
    fdt: Fdt,
}

impl Machine {
    /// The command line.
    pub fn command_line(&self) -> &str {
        self.fdt.node_named("chosen").and_then(|chosen| chosen.text("bootargs")).unwrap_or("")
    }

    /// Say what there is, but for what takes other words.
    pub fn describe(&self) {
        say!("architecture: aarch64");
        say!("boot protocol: Linux Image, FDT version {}, {} bytes", self.fdt.version(), self.fdt.size());
        if self.fdt.size() == 0 {
            problem!("there is no device tree");
        }
        self.describe_memory();
        cpus::describe(&self.fdt);
        devices::describe_interrupt_controllers(&self.fdt);
        clock::describe();
        devices::describe(&self.fdt);
    }

    fn describe_memory(&self) {
        let ranges = || {
            let memory = self.fdt.nodes().filter(|node| node.text("device_type") == Some("memory"));
            memory.flat_map(|node| (0..).map_while(move |index| node.range(index)))
        };
        say!("memory: {} KiB in {} ranges", ranges().map(|(_, size)| size).sum::<u64>() >> 10, ranges().count());
        for (address, size) in ranges() {
            say!("memory range: {address:#012x} to {:#012x}, RAM", address + size);
        }
        if ranges().count() == 0 {
            problem!("there is no memory node");
        }
    }

    /// Start all CPUs and count them.
    pub fn count_cpus(&self) {
        cpus::count(&self.fdt);
    }

    /// Say what an exit to the host costs.
    pub fn measure_exits(&self) {
        clock::measure_exits(&self.fdt);
    }

    /// Take interrupts from every source.
    pub fn tick(&self, slow: bool) {
        ticks::run(&self.fdt, slow);
    }

    /// Say what the clocks show.
    pub fn tell_clocks(&self) {
        say!("clocks: {} s of the day, {} ticks", devices::seconds(&self.fdt), cpu::counter());
    }

    /// Make [`Machine::read_byte`] possible.
    pub fn prepare_input(&self, echo: Echo) {
        if echo == Echo::Interrupt {
            ticks::prepare_input(&self.fdt);
        }
    }

    /// Wait for a byte from the serial port.
    pub fn read_byte(&self, echo: Echo) -> u8 {
        serial::read(echo == Echo::Interrupt)
    }

    /// End as asked. What can't be done halts.
    pub fn end(&self, end: End) -> ! {
        const PANICKED: u32 = 1;
        match end {
            End::PowerOff => psci::system_off(),
            End::Reset => psci::system_reset(),
            End::Panic => match self.fdt.compatible("qemu,pvpanic-mmio").and_then(|node| node.range(0)) {
                // SAFETY: the device says that it is there.
                Some((address, _)) => unsafe { write32(address, PANICKED) },
                None => problem!("there is no pvpanic"),
            },
            End::Triple | End::I8042 => problem!("aarch64 has no such end"),
            End::Halt => {}
            End::Spin => loop {
                cpu::relax();
            },
        }
        cpu::park()
    }
}
