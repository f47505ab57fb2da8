//! The serial port that the device tree names: a PL011 (Arm DDI 0183), or a 16550 in memory.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cpu;
use super::fdt::{Fdt, Node};
use super::memory::{read8, read32, write8, write32};

/// The PL011's registers.
const DATA: u64 = 0x0;
const FLAGS: u64 = 0x18;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const INTERRUPT_MASK: u64 = 0x38;
const INTERRUPT_CLEAR: u64 = 0x44;

const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_EMPTY: u32 = 1 << 7;
const RECEIVED: u32 = 1 << 4;
const TIMED_OUT: u32 = 1 << 6;
const TRANSMITTED: u32 = 1 << 5;
/// What the transmitter's FIFO takes once it is empty, of either kind.
const FIFO: usize = 16;

/// The PL011's address; 0 if there is none.
static PL011: AtomicU64 = AtomicU64::new(0);
/// The 16550's address; 0 if there is none.
static NS16550: AtomicU64 = AtomicU64::new(0);

/// The node that the console is on: the one that `stdout-path` names, else the first serial port.
pub fn node(fdt: &Fdt) -> Option<Node> {
    let chosen = fdt.node_named("chosen").and_then(|chosen| chosen.text("stdout-path"));
    let named = chosen.and_then(|path| path.split(':').next()).and_then(|path| fdt.node_at(path));
    named.or_else(|| fdt.compatible("arm,pl011")).or_else(|| fdt.compatible("ns16550a"))
}

/// Find the port and make it ready to send.
pub fn init(fdt: &Fdt) {
    let Some((node, address)) = node(fdt).and_then(|node| Some((node, node.range(0)?.0))) else { return };
    if node.is_compatible("arm,pl011") {
        const EIGHT_BITS_WITH_FIFO: u32 = 0x70;
        const ENABLED: u32 = 0x301;
        PL011.store(address, Ordering::Relaxed);
        // SAFETY: the device tree says that the port is there.
        unsafe {
            write32(address + LINE_CONTROL, EIGHT_BITS_WITH_FIFO);
            write32(address + CONTROL, ENABLED);
        }
    } else {
        const FIFO_CONTROL: u64 = 2;
        NS16550.store(address, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { write8(address + FIFO_CONTROL, 1) };
    }
}

/// Write bytes.
pub fn write(bytes: &[u8]) {
    const LINE_STATUS: u64 = 5;
    const EMPTY: u8 = 1 << 5;
    let (pl011, ns16550) = (PL011.load(Ordering::Relaxed), NS16550.load(Ordering::Relaxed));
    for chunk in bytes.chunks(FIFO) {
        // SAFETY: `init` found the port there.
        unsafe {
            if pl011 != 0 {
                while read32(pl011 + FLAGS) & TRANSMIT_EMPTY == 0 {
                    cpu::relax();
                }
                chunk.iter().for_each(|&byte| write32(pl011 + DATA, byte.into()));
            } else if ns16550 != 0 {
                while read8(ns16550 + LINE_STATUS) & EMPTY == 0 {
                    cpu::relax();
                }
                chunk.iter().for_each(|&byte| write8(ns16550, byte));
            }
        }
    }
}

/// Wait for a byte: for an interrupt, or by looking again and again. Only a PL011 is read from.
pub fn read(halt: bool) -> u8 {
    let pl011 = PL011.load(Ordering::Relaxed);
    if pl011 == 0 {
        cpu::park();
    }
    // SAFETY: `init` found the port there.
    unsafe {
        while read32(pl011 + FLAGS) & RECEIVE_EMPTY != 0 {
            if halt {
                // The handler has masked it.
                write32(pl011 + INTERRUPT_MASK, RECEIVED | TIMED_OUT);
                cpu::wait_for_interrupt();
            } else {
                cpu::relax();
            }
        }
        read32(pl011 + DATA) as u8
    }
}

/// Interrupt when the transmitter has sent, which it has.
pub fn interrupt_when_sent() {
    // SAFETY: `init` found the port there.
    unsafe { write32(PL011.load(Ordering::Relaxed) + INTERRUPT_MASK, TRANSMITTED) };
}

/// Clear all interrupts.
pub fn clear_interrupts() {
    const ALL: u32 = 0x7ff;
    // SAFETY: `init` found the port there.
    unsafe { write32(PL011.load(Ordering::Relaxed) + INTERRUPT_CLEAR, ALL) };
}

/// Where the PL011's interrupts are masked by writing 0; `None` if the console is on another port.
pub fn mask_register() -> Option<u64> {
    Some(PL011.load(Ordering::Relaxed)).filter(|&address| address != 0).map(|address| address + INTERRUPT_MASK)
}
