use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{Log, Rig, device_properties, out, refuses};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCRATCH: u64 = 7;
/// Four characters of 10 bits at 115200 bits per second.
const TIMEOUT: u64 = 347_220;

fn rig() -> Rig<Uart16550> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = Uart16550::new(Uart16550Config { irq: log.line("irq"), clock: clock.clone(), out: out(&log) });
    let poked = device.clone();
    let poke = Box::new(move |value: u64| match value % 32 {
        31 => poked.receive_break(),
        count => drop(poked.receive(&value.to_le_bytes().repeat(4)[..count as usize])),
    });
    Rig { device, clock, log, regions: &[(0, PORT_COUNT)], poke }
}

/// As Linux sets it up: FIFO on with trigger 8, 115200n8, OUT2.
fn set_up(interrupts: u8) -> Rig<Uart16550> {
    let rig = rig();
    rig.write(0, LCR, 0x83);
    rig.write(0, DATA, 1);
    rig.write(0, IER, 0);
    rig.write(0, LCR, 0x03);
    rig.write(0, FCR, 0x81);
    rig.write(0, MCR, 0x0b);
    rig.write(0, IER, interrupts);
    rig.log.take();
    rig
}

device_properties!("chipset-uart16550", rig);

#[test]
fn registers_answer_as_after_power_on() {
    let rig = rig();
    let all: Vec<_> = (0..8).map(|port| rig.read(0, port)).collect();
    assert_eq!(all, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0]);
    for value in [0x5a, 0xff] {
        rig.write(0, SCRATCH, value);
        assert_eq!(rig.read(0, SCRATCH), value);
    }
    rig.write(0, LCR, 0x80);
    assert_eq!((rig.read(0, DATA), rig.read(0, IER)), (12, 0));
    rig.write(0, DATA, 0x34);
    rig.write(0, IER, 0x12);
    assert_eq!((rig.read(0, DATA), rig.read(0, IER)), (0x34, 0x12));
    rig.write(0, LCR, 0);
    rig.write(0, IER, 0xff);
    assert_eq!(rig.read(0, IER), 0x0f);
    rig.write(0, MCR, 0xff);
    assert_eq!(rig.read(0, MCR), 0x1f);
    rig.write(0, FCR, 0x01);
    assert_eq!(rig.read(0, IIR) & 0xc0, 0xc0, "a 16550A shows that its FIFO works");
}

#[test]
fn output_is_out_at_once() {
    let rig = set_up(0);
    for byte in b"skep" {
        rig.write(0, DATA, *byte);
        assert_eq!(rig.read(0, LSR), 0x60);
    }
    assert_eq!(rig.log.take().concat(), "skep");
}

#[test]
fn the_transmitter_interrupt_is_taken_by_reading_iir() {
    let rig = set_up(0);
    rig.write(0, IER, 0x02);
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!(rig.read(0, IIR), 0xc2);
    assert_eq!(rig.log.take(), ["irq-"]);
    assert_eq!(rig.read(0, IIR), 0xc1);
    rig.write(0, IER, 0x02);
    assert_eq!(rig.read(0, IIR), 0xc1, "it was enabled already");
    rig.write(0, DATA, b'x');
    assert_eq!(rig.log.take(), ["x", "irq+"]);
    rig.write(0, IER, 0);
    rig.write(0, IER, 0x02);
    assert_eq!(rig.log.take(), ["irq-", "irq+"], "enabling it while the transmitter is empty raises it");
}

#[test]
fn priorities_are_kept_and_only_the_highest_is_taken() {
    let rig = set_up(0x0f);
    rig.write(0, MCR, 0x18);
    rig.write(0, MCR, 0x0b);
    for _ in 0..17 {
        rig.device.receive_break();
    }
    rig.write(0, DATA, b'x');
    assert_eq!(rig.read(0, IIR), 0xc6);
    assert_eq!(rig.read(0, LSR), 0x60 | 0x80 | 0x1b, "break, framing, overrun; more errors in the FIFO");
    assert_eq!(rig.read(0, IIR), 0xc4);
    rig.write(0, FCR, 0x83);
    assert_eq!(rig.read(0, IIR), 0xc2);
    assert_eq!(rig.read(0, IIR), 0xc0);
    assert_ne!(rig.read(0, MSR) & 0x0f, 0);
    assert_eq!(rig.read(0, IIR), 0xc1);
}

#[test]
fn data_interrupts_at_the_trigger_level_and_clears_below_it() {
    for (fcr, trigger) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let rig = set_up(0x01);
        rig.write(0, FCR, fcr);
        assert_eq!(rig.device.receive(&vec![b'a'; trigger - 1]), trigger - 1);
        assert_eq!(rig.read(0, IIR), 0xc1);
        assert_eq!(rig.device.receive(b"b"), 1);
        assert_eq!(rig.read(0, IIR), 0xc4);
        assert_eq!(rig.log.take(), ["irq+"]);
        assert_eq!(rig.read(0, DATA), if trigger == 1 { b'b' } else { b'a' });
        assert_eq!(rig.read(0, IIR), 0xc1);
        assert_eq!(rig.log.take(), ["irq-"]);
    }
}

#[test]
fn what_stays_below_the_trigger_level_times_out() {
    let rig = set_up(0x01);
    rig.device.receive(b"ab");
    rig.clock.advance(TIMEOUT - 1);
    assert_eq!((rig.read(0, IIR), rig.log.take().len()), (0xc1, 0));
    rig.clock.advance(1);
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!(rig.read(0, IIR), 0xcc);
    assert_eq!(rig.read(0, DATA), b'a');
    assert_eq!(rig.log.take(), ["irq-"], "reading a character begins a new timeout");
    rig.clock.advance(TIMEOUT);
    assert_eq!(rig.read(0, IIR), 0xcc);
    rig.device.receive(b"c");
    assert_eq!(rig.read(0, IIR), 0xc1, "so does a further character");
    assert_eq!([rig.read(0, DATA), rig.read(0, DATA), rig.read(0, LSR)], [b'b', b'c', 0x60]);
    rig.clock.advance(10 * TIMEOUT);
    assert_eq!(rig.read(0, IIR), 0xc1);
}

#[test]
fn a_burst_costs_one_wake_up() {
    let rig = set_up(0x01);
    let woken = Arc::new(AtomicUsize::new(0));
    rig.clock.set_waker(Box::new({
        let woken = woken.clone();
        move || {
            woken.fetch_add(1, Ordering::Relaxed);
        }
    }));
    rig.device.receive(&[0; 16]);
    for _ in 0..16 {
        rig.read(0, DATA);
    }
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    rig.write(0, IER, 0);
    rig.clock.advance(TIMEOUT);
    rig.device.receive(b"x");
    assert_eq!(woken.load(Ordering::Relaxed), 1, "nobody listens");
}

#[test]
fn without_fifo_there_is_one_register() {
    let rig = set_up(0x01);
    rig.write(0, FCR, 0);
    assert_eq!(rig.device.receive(b"ab"), 1);
    assert_eq!(rig.read(0, IIR), 0x04);
    assert_eq!((rig.read(0, DATA), rig.read(0, LSR)), (b'a', 0x60));
}

#[test]
fn input_that_does_not_fit_waits_until_all_is_read() {
    let rig = set_up(0);
    let called = Arc::new(AtomicUsize::new(0));
    let (device, count) = (rig.device.clone(), called.clone());
    rig.device.on_space(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        assert_eq!(device.receive(b"tail"), 4, "the listener may call back");
    }));
    assert_eq!(rig.device.receive(&[b'.'; 20]), 16);
    for _ in 0..15 {
        rig.read(0, DATA);
    }
    assert_eq!(called.load(Ordering::Relaxed), 0);
    rig.read(0, DATA);
    assert_eq!(called.load(Ordering::Relaxed), 1);
    let tail: Vec<_> = (0..4).map(|_| rig.read(0, DATA)).collect();
    assert_eq!((tail.as_slice(), rig.read(0, LSR)), (b"tail".as_slice(), 0x60));
    assert_eq!(called.load(Ordering::Relaxed), 1, "all of it fitted");
}

#[test]
fn loopback_returns_what_is_sent_and_overruns() {
    let rig = set_up(0);
    rig.write(0, MCR, 0x1b);
    assert_eq!(rig.device.receive(b"x"), 0, "the host's input waits");
    for value in 0..17 {
        rig.write(0, DATA, value);
    }
    assert_eq!(rig.read(0, LSR), 0x63);
    assert_eq!(rig.read(0, LSR), 0x61);
    for value in 0..16 {
        assert_eq!(rig.read(0, DATA), value);
    }
    assert_eq!(rig.read(0, LSR), 0x60);
    rig.write(0, LCR, 0x43);
    assert_eq!(rig.read(0, LSR), 0x60 | 0x80 | 0x19);
    assert_eq!((rig.read(0, DATA), rig.read(0, LSR)), (0, 0x60));
    rig.write(0, FCR, 0);
    rig.write(0, DATA, 1);
    rig.write(0, DATA, 2);
    assert_eq!((rig.read(0, LSR), rig.read(0, DATA)), (0x63, 2), "without FIFO the new character stays");
    assert!(rig.log.take().is_empty());
}

#[test]
fn loopback_turns_the_modem_lines_round() {
    let rig = set_up(0x08);
    rig.write(0, MCR, 0x1f);
    assert_eq!(rig.read(0, MSR), 0xf0, "a ring that begins is no change");
    rig.write(0, MCR, 0x18);
    assert_eq!(rig.read(0, IIR), 0xc0);
    assert_eq!(rig.read(0, MSR), 0x80 | 0x07, "CTS, DSR and the end of the ring");
    assert_eq!(rig.read(0, MSR), 0x80);
    rig.write(0, MCR, 0x1a);
    assert_eq!(rig.read(0, MSR), 0x90 | 0x01);
    rig.write(0, MCR, 0x0b);
    assert_eq!(rig.read(0, MSR), 0xb0 | 0x02);
}

#[test]
fn errors_show_with_their_character() {
    let rig = set_up(0);
    rig.device.receive(b"a");
    rig.device.receive_break();
    assert_eq!(rig.read(0, LSR), 0xe1, "one in the FIFO has an error, not the first");
    assert_eq!(rig.read(0, DATA), b'a');
    assert_eq!(rig.read(0, LSR), 0xf9);
    assert_eq!(rig.read(0, LSR), 0x61);
}

#[test]
fn out2_gates_the_interrupt() {
    let rig = set_up(0x01);
    rig.write(0, MCR, 0x03);
    rig.device.receive(&[0; 8]);
    assert_eq!((rig.read(0, IIR), rig.log.take().len()), (0xc4, 0));
    rig.write(0, MCR, 0x0b);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.device.reset();
    assert_eq!(rig.log.take(), ["irq-"]);
    assert_eq!(rig.device.save(), self::rig().device.save());
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let rig = set_up(0x01);
    rig.device.receive(b"a");
    let state = rig.device.save();
    refuses(&state, "ier", |s| s.ier = 0x10);
    refuses(&state, "fcr", |s| s.fcr = 0x03);
    refuses(&state, "fcr", |s| s.fcr = 0x80);
    refuses(&state, "mcr", |s| s.mcr = 0x20);
    refuses(&state, "line_errors", |s| s.line_errors = 0x01);
    refuses(&state, "modem_changes", |s| s.modem_changes = 0x10);
    refuses(&state, "received", |s| s.received = vec![0; 17]);
    refuses(&state, "received", |s| s.received = vec![0x0200]);
    refuses(&state, "timeout", |s| s.received.clear());
    refuses(&state, "timeout", |s| s.timeout = Some(u64::MAX));
}
