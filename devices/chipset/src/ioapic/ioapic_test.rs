use std::sync::atomic::{AtomicUsize, Ordering};

use skep_clock::Clock;
use skep_irq::{IrqError, LineTable, MsiTarget, Polarity, RequesterId, Trigger};

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

/// Local APICs that note what they are told.
struct Apics(Log);

impl MsiTarget for Apics {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        assert_eq!(requester, None);
        self.0.note(format!("{:x}:{:x}", message.address, message.data));
        Ok(())
    }
}

impl ApicBus for Apics {
    fn set_pin_routes(&self, pins: &[Option<MsiMessage>]) -> Result<(), IrqError> {
        let routes: Vec<_> =
            pins.iter().enumerate().filter_map(|(n, m)| Some(format!("{n}={:x}", (*m)?.data))).collect();
        self.0.note(format!("routes {}", routes.join(" ")));
        Ok(())
    }
}

fn rig() -> Rig<IoApic> {
    let log = Log::default();
    let device = Arc::new(IoApic::new(IoApicConfig { apics: Arc::new(Apics(log.clone())), pins: PINS, id: 0 }));
    let poked = device.clone();
    let poke = Box::new(move |value: u64| match value & 1 {
        0 => poked.end_of_interrupt((value >> 8) as u8 & 3),
        _ => poked.set_level((value >> 8) as u32 % 32, value & 2 != 0),
    });
    // Small, so that random accesses meet the registers.
    Rig { device, clock: Clock::manual(0), log, regions: &[(0, 0x14), (0, SIZE)], poke }
}

device_properties!("chipset-ioapic", rig);

fn write_indexed(rig: &Rig<IoApic>, index: u8, value: u32) {
    rig.write32(IOREGSEL, u32::from(index));
    rig.write32(IOWIN, value);
}

fn read_indexed(rig: &Rig<IoApic>, index: u8) -> u32 {
    rig.write32(IOREGSEL, u32::from(index));
    rig.read32(IOWIN)
}

fn set_entry(rig: &Rig<IoApic>, pin: u8, entry: u64) {
    write_indexed(rig, IOREDTBL + 2 * pin + 1, (entry >> 32) as u32);
    write_indexed(rig, IOREDTBL + 2 * pin, entry as u32);
}

const LEVEL: u64 = 0x8000;
const MASKED: u64 = 0x1_0000;

#[test]
fn registers_answer_as_after_power_on() {
    let rig = rig();
    assert_eq!(read_indexed(&rig, IOAPICVER), 0x0017_0020);
    write_indexed(&rig, IOAPICID, 0xff00_0000);
    assert_eq!((read_indexed(&rig, IOAPICID), read_indexed(&rig, IOAPICARB)), (0x0f00_0000, 0x0f00_0000));
    for pin in 0..PINS as u8 {
        assert_eq!((read_indexed(&rig, 0x10 + 2 * pin), read_indexed(&rig, 0x11 + 2 * pin)), (0x1_0000, 0));
    }
    assert_eq!((read_indexed(&rig, 0x40), read_indexed(&rig, 0xff)), (0, 0), "beyond the last pin");
    set_entry(&rig, 23, !MASKED);
    assert_eq!((read_indexed(&rig, 0x3e), read_indexed(&rig, 0x3f)), (0xafff, 0xfffe_0000));
}

#[test]
fn an_entry_becomes_a_message() {
    for (entry, address, data) in [
        (0x0000_0000_0000_0041_u64, 0xfee0_0000_u64, 0x41),
        (0x0300_0000_0000_0041, 0xfee0_3000, 0x41),
        (0xff00_0000_0000_0930, 0xfeef_f004, 0x130),
        // CPU 0x7fff by the extended destination; bit 48 asks for remapping, which isn't there.
        (0xffff_0000_0000_0041, 0xfeef_ffe0, 0x41),
        (0x0100_0000_0000_8041, 0xfee0_1000, 0xc041),
        // NMI, INIT and ExtINT are edges, whatever is said.
        (0x0100_0000_0000_8400, 0xfee0_1000, 0x400),
        (0x0100_0000_0000_8500, 0xfee0_1000, 0x500),
        (0x0100_0000_0000_8700, 0xfee0_1000, 0x700),
    ] {
        let rig = rig();
        set_entry(&rig, 4, entry);
        rig.log.take();
        rig.device.set_level(4, true);
        assert_eq!(rig.log.take(), [format!("{address:x}:{data:x}")], "{entry:x}");
    }
    let rig = rig();
    set_entry(&rig, 4, 0x341);
    rig.device.set_level(4, true);
    assert!(rig.log.take().is_empty(), "a reserved delivery mode");
}

#[test]
fn an_edge_is_sent_once_and_lost_while_masked() {
    let rig = rig();
    set_entry(&rig, 4, 0x41);
    assert_eq!(rig.log.take(), ["routes 4=41"]);
    rig.device.set_level(4, true);
    rig.device.set_level(4, true);
    assert_eq!(rig.log.take(), ["fee00000:41"]);
    rig.device.end_of_interrupt(0x41);
    set_entry(&rig, 4, MASKED | 0x41);
    rig.device.set_level(4, false);
    rig.device.set_level(4, true);
    set_entry(&rig, 4, 0x41);
    assert_eq!(rig.log.take(), ["routes ", "routes 4=41"]);
    rig.device.set_level(4, false);
    rig.device.set_level(4, true);
    assert_eq!(rig.log.take(), ["fee00000:41"]);
}

#[test]
fn a_level_is_sent_again_at_each_end_while_it_lasts() {
    let rig = rig();
    set_entry(&rig, 16, LEVEL | 0x51);
    rig.device.set_level(16, true);
    assert_eq!(rig.log.take(), ["routes 16=c051", "fee00000:c051"]);
    assert_eq!(read_indexed(&rig, 0x30), 0xc051, "remote IRR");
    rig.device.set_level(16, false);
    rig.device.set_level(16, true);
    rig.device.end_of_interrupt(0x50);
    assert!(rig.log.take().is_empty(), "it awaits its own end");
    rig.device.end_of_interrupt(0x51);
    assert_eq!(rig.log.take(), ["fee00000:c051"]);
    rig.device.set_level(16, false);
    rig.write32(EOI, 0x51);
    assert!(rig.log.take().is_empty());
    assert_eq!(read_indexed(&rig, 0x30), 0x8051);
}

#[test]
fn a_masked_level_waits_and_its_route_stays_until_the_end() {
    let rig = rig();
    set_entry(&rig, 9, LEVEL | MASKED | 0x61);
    rig.device.set_level(9, true);
    assert!(rig.log.take().is_empty());
    set_entry(&rig, 9, LEVEL | 0x61);
    assert_eq!(rig.log.take(), ["routes 9=c061", "fee00000:c061"]);
    set_entry(&rig, 9, LEVEL | MASKED | 0x61);
    assert!(rig.log.take().is_empty(), "the end of 0x61 must still be reported");
    rig.device.end_of_interrupt(0x61);
    assert_eq!(rig.log.take(), ["routes "]);
}

#[test]
fn turning_a_level_into_an_edge_ends_it() {
    let rig = rig();
    set_entry(&rig, 9, LEVEL | 0x61);
    rig.device.set_level(9, true);
    rig.log.take();
    write_indexed(&rig, 0x22, 0x1_0061);
    write_indexed(&rig, 0x22, 0x8061);
    assert_eq!(rig.log.take(), ["routes ", "routes 9=c061", "fee00000:c061"]);
}

#[test]
fn routes_are_told_only_when_they_change() {
    let rig = rig();
    for pin in 0..PINS as u8 {
        set_entry(&rig, pin, MASKED | u64::from(pin));
        write_indexed(&rig, 0x11 + 2 * pin, 0x0100_0000);
    }
    assert!(rig.log.take().is_empty());
    set_entry(&rig, 5, 0x0100_0000_0000_0035);
    set_entry(&rig, 5, 0x0100_0000_0000_2035);
    assert_eq!(rig.log.take(), ["routes 5=35"], "polarity makes no difference to the message");
    rig.device.reset();
    assert_eq!(rig.log.take(), ["routes "]);
}

#[test]
fn listeners_hear_of_the_end_before_the_pin_sends_again() {
    let rig = rig();
    let table = LineTable::new(rig.device.clone(), 0..=23);
    let line = Arc::new(table.line(16, Trigger::Level, Polarity::Low).unwrap());
    let (heard, listening) = (Arc::new(AtomicUsize::new(0)), line.clone());
    let subscription = line.on_eoi(Arc::new({
        let heard = heard.clone();
        move || {
            heard.fetch_add(1, Ordering::Relaxed);
            listening.deassert();
        }
    }));
    set_entry(&rig, 16, LEVEL | 0x51);
    line.assert();
    rig.log.take();
    rig.device.end_of_interrupt(0x51);
    assert_eq!((heard.load(Ordering::Relaxed), rig.log.take().len()), (1, 0));
    line.assert();
    drop(subscription);
    rig.device.end_of_interrupt(0x51);
    assert_eq!((heard.load(Ordering::Relaxed), rig.log.take().len()), (1, 2), "nobody listens, nobody deasserts");
}

#[test]
fn as_many_pins_as_the_index_reaches() {
    let log = Log::default();
    for (asked, pins) in [(0, 1), (24, 24), (120, 120), (500, 120)] {
        let device = Arc::new(IoApic::new(IoApicConfig { apics: Arc::new(Apics(log.clone())), pins: asked, id: 2 }));
        let rig = Rig { device, clock: Clock::manual(0), log: log.clone(), regions: &[], poke: Box::new(|_| ()) };
        assert_eq!(read_indexed(&rig, IOAPICVER), 0x20 | (pins - 1) << 16);
        assert_eq!(read_indexed(&rig, 0x10 + 2 * (pins as u8 - 1)), 0x1_0000);
    }
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let rig = rig();
    let state = rig.device.save();
    refuses(&state, "id", |s| s.id = 0x10);
    refuses(&state, "entries", |s| s.entries.clear());
    refuses(&state, "entries", |s| s.entries = vec![0; 121]);
    refuses(&state, "entries", |s| s.entries[3] = 1 << 20);
    refuses(&state, "entries", |s| s.entries[3] = 1 << 14);
    refuses(&state, "asserted", |s| s.asserted.truncate(23));
    let fewer = IoApicState { entries: vec![0; 23], asserted: vec![false; 23], ..state };
    fewer.check().unwrap();
    assert!(rig.device.restore(&fewer).is_err(), "another number of pins");
}
