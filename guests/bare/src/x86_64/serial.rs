//! The first serial port: a 16550 (Texas Instruments' PC16550D) at port 0x3f8.

use super::cpu::{self, inb, outb};
use super::user::privileged;
use crate::{problem, say};

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = 0x3f9;
const IDENTIFICATION: u16 = 0x3fa;
const LINE_CONTROL: u16 = 0x3fb;
const MODEM_CONTROL: u16 = 0x3fc;
const LINE_STATUS: u16 = 0x3fd;
const SCRATCH: u16 = 0x3ff;

const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// `INTERRUPT_ENABLE`: data received, transmitter empty.
const RECEIVED: u8 = 1;
const TRANSMITTED: u8 = 2;
/// What the transmitter's FIFO takes once it is empty.
const FIFO: usize = 16;

/// 8 bits, no parity, one stop bit; DTR, RTS and OUT2, which lets interrupts through.
pub fn init() {
    privileged(|| {
        outb(LINE_CONTROL, 0x03);
        outb(MODEM_CONTROL, 0x0b);
    });
}

/// Write bytes.
pub fn write(bytes: &[u8]) {
    privileged(|| {
        for chunk in bytes.chunks(FIFO) {
            while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                cpu::relax();
            }
            cpu::write_string(DATA, chunk);
        }
    });
}

/// Wait for a byte: for an interrupt, or by looking again and again.
pub fn read(halt: bool) -> u8 {
    privileged(|| {
        while inb(LINE_STATUS) & DATA_READY == 0 {
            if halt { cpu::wait_for_interrupt() } else { cpu::relax() }
        }
        inb(DATA)
    })
}

/// Interrupt when data is received.
pub fn interrupt_on_data() {
    privileged(|| outb(INTERRUPT_ENABLE, RECEIVED));
}

/// Interrupt when the transmitter is empty, which it is.
pub fn interrupt_when_empty() {
    privileged(|| outb(INTERRUPT_ENABLE, TRANSMITTED));
}

/// No more interrupts. What was the last one's identification?
pub fn stop_interrupts() -> u8 {
    privileged(|| {
        let identification = inb(IDENTIFICATION);
        outb(INTERRUPT_ENABLE, 0);
        identification
    })
}

/// Say what kind of port it is.
pub fn describe() {
    const FIFOS: u8 = 0xc0;
    let (identification, scratch) = privileged(|| {
        outb(SCRATCH, 0x5a);
        (inb(IDENTIFICATION), inb(SCRATCH))
    });
    let kind = match (identification & FIFOS, scratch) {
        (FIFOS, 0x5a) => "16550A",
        (0, 0x5a) => "16450",
        _ => "8250",
    };
    say!("device: {kind} serial port at port {DATA:#x}, identification {identification:#04x}");
    if kind != "16550A" {
        problem!("the serial port has no FIFOs");
    }
}
