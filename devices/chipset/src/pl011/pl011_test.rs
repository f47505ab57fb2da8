use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{Log, Rig, device_properties, out, refuses};

/// 32 bits at 115200 bits per second, with a little more.
const TIMEOUT: u64 = 280_000;

fn rig() -> Rig<Pl011> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = Pl011::new(Pl011Config { irq: log.line("irq"), clock: clock.clone(), out: out(&log) });
    let poked = device.clone();
    let poke = Box::new(move |value: u64| match value % 64 {
        63 => poked.receive_break(),
        count => drop(poked.receive(&value.to_le_bytes().repeat(8)[..count as usize])),
    });
    Rig { device, clock, log, regions: &[(0, SIZE)], poke }
}

/// As Linux sets it up: FIFO on, 115200n8, enabled.
fn set_up(interrupts: u16) -> Rig<Pl011> {
    let rig = rig();
    rig.write32(register::IBRD, 13);
    rig.write32(register::FBRD, 1);
    rig.write32(register::LCR_H, 0x70);
    rig.write32(register::CR, 0x301);
    rig.write32(register::ICR, 0x7ff);
    rig.write32(register::IMSC, interrupts.into());
    rig.log.take();
    rig
}

device_properties!("chipset-pl011", rig);

#[test]
fn registers_answer_as_after_power_on() {
    let rig = rig();
    assert_eq!(rig.read32(register::CR), 0x300);
    assert_eq!(rig.read32(register::IFLS), 0x12);
    assert_eq!(rig.read32(register::FR), 0x97, "both FIFOs are empty, the modem is ready");
    let id: Vec<_> = (0..8).map(|n| rig.read32(register::IDENTIFICATION + 4 * n)).collect();
    assert_eq!(id, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn output_is_out_at_once_even_before_it_is_enabled() {
    let rig = rig();
    for byte in b"skep" {
        rig.write32(register::DR, u32::from(*byte));
    }
    assert_eq!(rig.log.take().concat(), "skep");
    assert_eq!(rig.read32(register::RIS), u32::from(int::TRANSMIT));
    rig.write32(register::IMSC, u32::from(int::TRANSMIT));
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.write32(register::ICR, u32::from(int::TRANSMIT));
    assert_eq!(rig.log.take(), ["irq-"]);
}

#[test]
fn input_waits_until_the_port_is_enabled() {
    let rig = rig();
    assert_eq!(rig.device.receive(b"abc"), 0);
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    rig.device.on_space(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    rig.write32(register::CR, 0x301);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(rig.device.receive(b"abc"), 1, "one character without the FIFO");
    rig.write32(register::LCR_H, 0x10);
    assert_eq!(rig.device.receive(&[b'x'; 40]), 32);
    assert_eq!(rig.read32(register::FR) & (fr::RX_FULL | fr::RX_EMPTY), fr::RX_FULL);
    for left in (0..32).rev() {
        assert_eq!(told.load(Ordering::Relaxed), 2, "{left}: told once, when all is read");
        assert_eq!(rig.read32(register::DR), u32::from(b'x'));
    }
    assert_eq!(told.load(Ordering::Relaxed), 3);
}

#[test]
fn the_trigger_level_raises_the_receive_interrupt() {
    let rig = set_up(int::RECEIVE);
    rig.device.receive(&[1; 15]);
    assert!(rig.log.take().is_empty());
    rig.device.receive(&[1]);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.read32(register::DR);
    assert_eq!(rig.log.take(), ["irq-"]);
}

#[test]
fn switching_the_fifo_flushes_it_and_its_interrupts() {
    let rig = set_up(int::RECEIVE | int::RECEIVE_TIMEOUT);
    rig.device.receive(&[1; 20]);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.write32(register::LCR_H, 0x60);
    assert_eq!(rig.log.take(), ["irq-"], "nothing is left that the guest could read");
    rig.clock.advance(TIMEOUT);
    assert!(rig.log.take().is_empty());
}

#[test]
fn fewer_characters_come_by_the_timeout() {
    let rig = set_up(int::RECEIVE | int::RECEIVE_TIMEOUT);
    rig.device.receive(b"ab");
    assert!(rig.log.take().is_empty());
    rig.clock.advance(TIMEOUT);
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!(rig.read32(register::MIS), u32::from(int::RECEIVE_TIMEOUT));
    rig.read32(register::DR);
    assert!(rig.log.take().is_empty());
    rig.read32(register::DR);
    assert_eq!(rig.log.take(), ["irq-"], "cleared when all is read");
}

#[test]
fn a_break_is_an_error_of_its_character() {
    let rig = set_up(int::BREAK);
    rig.device.receive_break();
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!(rig.read32(register::DR), 0x500);
    assert_eq!(rig.read32(register::RSR_ECR), 5);
    rig.write32(register::RSR_ECR, 0);
    assert_eq!(rig.read32(register::RSR_ECR), 0);
}

#[test]
fn loopback_hears_itself_and_overruns() {
    let rig = set_up(0);
    rig.write32(register::CR, (0x301 | cr::LOOPBACK | cr::RTS).into());
    assert_eq!(rig.read32(register::FR) & (fr::CTS | fr::DSR), fr::CTS);
    assert_eq!(rig.device.receive(b"x"), 0);
    for byte in 0..33 {
        rig.write32(register::DR, byte);
    }
    assert!(rig.log.take().is_empty());
    assert_eq!(rig.read32(register::RIS) as u16 & int::OVERRUN, int::OVERRUN);
    let heard: Vec<_> = (0..32).map(|_| rig.read32(register::DR) & 0xff).collect();
    assert_eq!(heard, (0..32).collect::<Vec<_>>());
}

#[test]
fn bad_state_is_refused_by_name() {
    let rig = set_up(0);
    rig.device.receive(b"x");
    let state = rig.device.save();
    refuses(&state, "errors", |s| s.errors = 0x10);
    refuses(&state, "fbrd", |s| s.fbrd = 0x40);
    refuses(&state, "cr", |s| s.cr = 8);
    refuses(&state, "ifls", |s| s.ifls = 0x40);
    refuses(&state, "imsc", |s| s.imsc = 0x800);
    refuses(&state, "ris", |s| s.ris = 0x800);
    refuses(&state, "dmacr", |s| s.dmacr = 8);
    refuses(&state, "received", |s| s.received = vec![0; 33]);
    refuses(&state, "received", |s| s.received = vec![0x800]);
    refuses(&state, "timeout", |s| s.received.clear());
    refuses(&state, "timeout", |s| s.timeout = Some(u64::MAX));
}
