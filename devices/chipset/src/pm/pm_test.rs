use super::*;
use crate::testing::{Log, Rig, device_properties, refuses, requests};

/// A machine with firmware, which has placed the block.
fn rig() -> Rig<Pm> {
    let rig = power_on(None);
    rig.device.place(Some(0x600));
    rig
}

fn power_on(base: Option<u16>) -> Rig<Pm> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = Pm::new(PmConfig { sci: log.line("sci"), clock: clock.clone(), requests: requests(&log), base });
    let poked = device.clone();
    let poke = Box::new(move |value: u64| match value % 3 {
        0 => {
            poked.press_power_button();
        }
        1 => poked.raise_gpe((value >> 8) as u8),
        _ => poked.place(Some((value >> 8) as u16)),
    });
    Rig { device, clock, log, regions: &[(BLOCK, 0x10), (APM, 2), (BLOCK, 0x80)], poke }
}

fn write16(rig: &Rig<Pm>, offset: u64, value: u16) {
    let _ = rig.device.write(BLOCK, offset, &value.to_le_bytes());
}

fn read16(rig: &Rig<Pm>, offset: u64) -> u16 {
    let mut data = [0; 2];
    rig.device.read(BLOCK, offset, &mut data);
    u16::from_le_bytes(data)
}

/// Nanoseconds after which the timer's highest bit changes: 2^23 ticks.
const HALF: u64 = 2_343_484_438;

device_properties!("chipset-pm", rig);

#[test]
fn without_firmware_it_is_placed_and_in_acpi_mode() {
    let rig = power_on(Some(0x600));
    for _ in 0..2 {
        assert_eq!((rig.device.range().map(|range| range.base), read16(&rig, 4)), (Some(0x600), 1));
        rig.write(APM, 0, ACPI_DISABLE);
        rig.device.place(None);
        rig.device.reset();
    }
}

#[test]
fn acpi_mode_is_asked_for_at_the_apm_port() {
    let rig = rig();
    assert_eq!(read16(&rig, 4), 0);
    rig.write(APM, 0, ACPI_ENABLE);
    assert_eq!(read16(&rig, 4), 1);
    rig.write(APM, 1, 0x5a);
    assert_eq!((rig.read(APM, 0), rig.read(APM, 1)), (ACPI_ENABLE, 0x5a));
    rig.write(APM, 0, ACPI_DISABLE);
    assert_eq!(read16(&rig, 4), 0);
    assert_eq!(rig.read32(0x30), 0x20, "there is no SMM to install");
}

#[test]
fn the_power_button_interrupts_who_listens() {
    let rig = rig();
    assert!(!rig.device.press_power_button());
    assert_eq!(read16(&rig, 0), 0x100);
    write16(&rig, 0, 0x100);
    write16(&rig, 2, 0xffff);
    assert_eq!(read16(&rig, 2), 0x0521);
    assert!(!rig.device.press_power_button());
    assert!(rig.log.take().is_empty(), "not in ACPI mode");
    rig.write(APM, 0, ACPI_ENABLE);
    assert!(rig.device.press_power_button());
    assert_eq!(rig.log.take(), ["sci+"]);
    write16(&rig, 0, 0x00ff);
    assert!(rig.log.take().is_empty());
    write16(&rig, 0, 0x0100);
    assert_eq!((rig.log.take(), read16(&rig, 0)), (vec!["sci-".to_owned()], 0));
}

#[test]
fn the_timer_counts_and_its_overflow_interrupts() {
    let rig = rig();
    rig.clock.advance(1_000_000_000);
    assert_eq!(rig.read32(8), 3_579_545);
    assert_eq!(
        [rig.read(BLOCK, 8), rig.read(BLOCK, 9), rig.read(BLOCK, 10), rig.read(BLOCK, 11)],
        [0x99, 0x9e, 0x36, 0]
    );
    rig.clock.advance(HALF - 1_000_000_000);
    assert_eq!((rig.read32(8), read16(&rig, 0)), (0x80_0000, 1));
    write16(&rig, 0, 1);
    assert!(rig.clock.until_next().is_none(), "nobody waits");
    write16(&rig, 2, 1);
    write16(&rig, 4, 1);
    rig.clock.advance(HALF - 2);
    assert!(rig.log.take().is_empty());
    rig.clock.advance(2);
    assert_eq!((rig.log.take(), rig.read32(8)), (vec!["sci+".to_owned()], 0));
    assert!(rig.clock.until_next().is_none(), "one at a time");
    write16(&rig, 0, 1);
    rig.clock.advance(HALF);
    assert_eq!(rig.log.take(), ["sci-", "sci+"]);
}

#[test]
fn general_purpose_events() {
    let rig = rig();
    write16(&rig, 4, 1);
    rig.device.raise_gpe(9);
    rig.device.raise_gpe(64);
    assert_eq!((rig.read(BLOCK, 0x20), rig.read(BLOCK, 0x21)), (0, 2));
    rig.write(BLOCK, 0x29, 2);
    assert_eq!(rig.log.take(), ["sci+"]);
    rig.write(BLOCK, 0x21, 2);
    assert_eq!(rig.log.take(), ["sci-"]);
}

#[test]
fn sleeping_powers_off_or_is_refused() {
    for kind in 0..8u16 {
        let rig = rig();
        write16(&rig, 4, kind << 10 | 1);
        assert!(rig.log.take().is_empty());
        write16(&rig, 4, kind << 10 | 1 | 1 << 13);
        assert_eq!(read16(&rig, 4), kind << 10 | 1, "SLP_EN reads 0");
        let (off, awake) = (!rig.log.take().is_empty(), read16(&rig, 0) == 0x8000);
        assert_eq!((off, awake), if [0, 2, 6, 7].contains(&kind) { (true, false) } else { (false, true) });
    }
    // By bytes, as some firmware does it.
    let rig = rig();
    rig.write(BLOCK, 5, 0x20);
    assert_eq!(rig.log.take(), ["PowerOff"]);
}

#[test]
fn the_block_moves() {
    let rig = rig();
    assert_eq!(rig.device.range(), Some(PortRange { base: 0x600, size: 0x80, region: 0 }));
    rig.device.place(Some(0xb01f));
    assert_eq!(rig.device.range().unwrap().base, 0xb000);
    rig.device.reset();
    assert_eq!(rig.device.range(), None, "firmware places it anew");
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let state = rig().device.save();
    refuses(&state, "base", |s| s.base = Some(0x601));
    refuses(&state, "status", |s| s.status = 2);
    refuses(&state, "enable", |s| s.enable = 2);
    refuses(&state, "control", |s| s.control = 1 << 13);
}
