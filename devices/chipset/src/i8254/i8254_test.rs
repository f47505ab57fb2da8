use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

const CONTROL: u64 = 3;

/// That many ticks in nanoseconds, rounded up.
const fn ticks(count: u64) -> u64 {
    count * 1_000_000_000 / FREQUENCY_HZ + 1
}

fn rig() -> Rig<I8254> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = I8254::new(I8254Config { irq: log.line("irq"), clock: clock.clone() });
    Rig { device, clock, log, regions: &[(COUNTERS, 4), (SPEAKER, 1)], poke: Box::new(|_| ()) }
}

device_properties!("chipset-i8254", rig);

/// Programs a counter: low byte, then high byte.
fn program(rig: &Rig<I8254>, counter: u8, mode: u8, count: u16) {
    rig.write(COUNTERS, CONTROL, counter << 6 | 0x30 | mode << 1);
    rig.write(COUNTERS, u64::from(counter), count as u8);
    rig.write(COUNTERS, u64::from(counter), (count >> 8) as u8);
}

fn count(rig: &Rig<I8254>, counter: u8) -> u16 {
    rig.write(COUNTERS, CONTROL, counter << 6);
    let port = u64::from(counter);
    u16::from_le_bytes([rig.read(COUNTERS, port), rig.read(COUNTERS, port)])
}

fn edges(rig: &Rig<I8254>) -> usize {
    rig.log.take().iter().filter(|event| *event == "irq+").count()
}

#[test]
fn a_rate_generator_interrupts_without_drift() {
    let rig = rig();
    // 100 Hz as old systems set it.
    program(&rig, 0, 2, 11932);
    rig.log.take();
    for second in 1..=10 {
        rig.clock.advance(1_000_000_000);
        let made = edges(&rig) as u64;
        // 1193182 / 11932 is a little less than 100.
        let expected = second * FREQUENCY_HZ / 11932 - (second - 1) * FREQUENCY_HZ / 11932;
        assert_eq!(made, expected);
    }
}

#[test]
fn a_square_wave_is_high_for_half_its_period() {
    let rig = rig();
    program(&rig, 0, 3, 1000);
    rig.clock.advance(ticks(499));
    assert_eq!(rig.log.take().last().map(String::as_str), Some("irq+"));
    rig.clock.advance(ticks(2));
    assert_eq!(rig.log.take(), ["irq-"]);
    rig.clock.advance(ticks(501));
    assert_eq!(rig.log.take(), ["irq+"]);
}

#[test]
fn the_terminal_count_interrupts_once() {
    let rig = rig();
    program(&rig, 0, 0, 100);
    rig.clock.advance(ticks(50));
    assert_eq!(count(&rig, 0), 50);
    assert!(rig.log.take().is_empty());
    rig.clock.advance(1_000_000);
    assert_eq!(rig.log.take(), ["irq+"]);
    // It goes on counting, round and round.
    assert!(count(&rig, 0) > 0xf000);
}

#[test]
fn strobes_pulse_once() {
    let rig = rig();
    program(&rig, 0, 4, 100);
    rig.log.take();
    rig.clock.advance(10_000_000);
    assert_eq!(rig.log.take(), ["irq-", "irq+"]);
}

#[test]
fn the_speaker_port_gates_and_shows_counter_two() {
    let rig = rig();
    // As Linux and firmware calibrate: gate low (as at power-on), mode 0, gate high, wait for the output.
    program(&rig, 2, 0, 1000);
    rig.clock.advance(ticks(10_000));
    assert_eq!(rig.read(SPEAKER, 0) & 0x21, 0, "a low gate holds it");
    rig.write(SPEAKER, 0, 1);
    rig.clock.advance(ticks(999));
    assert_eq!(rig.read(SPEAKER, 0) & 0x21, 1);
    rig.clock.advance(ticks(2));
    assert_eq!(rig.read(SPEAKER, 0) & 0x21, 0x21);
    // The refresh toggle moves by itself.
    let before = rig.read(SPEAKER, 0) & 0x10;
    rig.clock.advance(REFRESH_NANOS);
    assert_ne!(rig.read(SPEAKER, 0) & 0x10, before);
}

#[test]
fn a_one_shot_waits_for_its_gate_and_can_be_triggered_again() {
    let rig = rig();
    rig.write(SPEAKER, 0, 0);
    program(&rig, 2, 1, 100);
    rig.clock.advance(ticks(1000));
    assert_eq!(rig.read(SPEAKER, 0) & 0x20, 0x20);
    for _ in 0..2 {
        rig.write(SPEAKER, 0, 0);
        rig.write(SPEAKER, 0, 1);
        rig.clock.advance(ticks(50));
        assert_eq!(rig.read(SPEAKER, 0) & 0x20, 0);
    }
    rig.clock.advance(ticks(51));
    assert_eq!(rig.read(SPEAKER, 0) & 0x20, 0x20);
}

#[test]
fn counts_and_status_can_be_latched() {
    let rig = rig();
    program(&rig, 0, 2, 1000);
    rig.clock.advance(ticks(100));
    rig.write(COUNTERS, CONTROL, 0xc2); // read-back: count and status of counter 0
    rig.clock.advance(ticks(100));
    assert_eq!(rig.read(COUNTERS, 0), 0x80 | 0x30 | 2 << 1);
    assert_eq!(u16::from_le_bytes([rig.read(COUNTERS, 0), rig.read(COUNTERS, 0)]), 900);
    // A second latch does not disturb one that waits.
    assert_eq!(count(&rig, 0), 800);
    // A count written meanwhile is loaded when the period ends.
    rig.write(COUNTERS, 0, 0xd0);
    rig.write(COUNTERS, 0, 0x07);
    rig.write(COUNTERS, CONTROL, 0xe2);
    assert_eq!(rig.read(COUNTERS, 0) & 0x40, 0x40);
    rig.clock.advance(ticks(900));
    assert_eq!(count(&rig, 0), 1900);
}

#[test]
fn bcd_counts_in_decimals() {
    let rig = rig();
    rig.write(COUNTERS, CONTROL, 0x30 | 2 << 1 | 1);
    rig.write(COUNTERS, 0, 0x00);
    rig.write(COUNTERS, 0, 0x10);
    rig.clock.advance(ticks(1));
    assert_eq!(count(&rig, 0), 0x0999);
    rig.write(COUNTERS, CONTROL, 0x30 | 2 << 1 | 1);
    rig.write(COUNTERS, 0, 0);
    rig.write(COUNTERS, 0, 0);
    rig.clock.advance(ticks(1));
    assert_eq!(count(&rig, 0), 0x9999);
}

#[test]
fn a_guest_cannot_keep_the_clock_busy() {
    let rig = rig();
    program(&rig, 0, 2, 2);
    rig.log.take();
    rig.clock.advance(10_000_000);
    assert_eq!(edges(&rig), 49, "10 ms hold 49 times 240 ticks");
}

#[test]
fn bad_state_is_refused_by_name() {
    let rig = rig();
    let state = rig.device.save();
    refuses(&state, "counters", |s| s.counters.truncate(2));
    refuses(&state, "counters.mode", |s| s.counters[1].mode = 6);
    refuses(&state, "counters.access", |s| s.counters[1].access = 0);
    refuses(&state, "counters.running", |s| s.counters[0].running = Some(u64::MAX));
    refuses(&state, "counters.held", |s| s.counters[0].held = Some(u64::MAX));
    refuses(&state, "speaker", |s| s.speaker = 0x10);
    refuses(&state, "refresh", |s| s.refresh = 2 * REFRESH_NANOS);
}
