use std::sync::atomic::{AtomicUsize, Ordering};

use skep_bus::Device;
use skep_irq::{ApicBus, IrqError, IrqLine, LineTable, MsiMessage, MsiTarget, Polarity, RequesterId, Trigger};

use super::*;
use crate::testing::Log;
use crate::{I8259Config, IoApicConfig};

struct Apics(Log);

impl MsiTarget for Apics {
    fn signal(&self, message: MsiMessage, _requester: Option<RequesterId>) -> Result<(), IrqError> {
        self.0.note(format!("{:x}", message.data));
        Ok(())
    }
}

impl ApicBus for Apics {
    fn set_pin_routes(&self, _pins: &[Option<MsiMessage>]) -> Result<(), IrqError> {
        Ok(())
    }
}

fn line(table: &LineTable, gsi: u32) -> IrqLine {
    table.line(gsi, Trigger::Edge, Polarity::High).unwrap()
}

#[test]
fn isa_lines_reach_both_controllers() {
    let log = Log::default();
    let pic = Arc::new(I8259::new(I8259Config { intr: log.line("intr") }));
    let ioapic = Arc::new(IoApic::new(IoApicConfig { apics: Arc::new(Apics(log.clone())), pins: 24, id: 0 }));
    let table = LineTable::new(Arc::new(GsiLines::new(pic.clone(), ioapic.clone())), 0..=23);
    let write = |device: &dyn Device, region, offset, value: u8| {
        let _ = device.write(region, offset, &[value]);
    };
    for (region, vectors, cascade) in [(0, 0x30, 4), (1, 0x38, 2)] {
        for (port, value) in [(0, 0x11), (1, vectors), (1, cascade), (1, 3)] {
            write(&*pic, region, port, value);
        }
    }
    for (pin, vector) in [(0, 0x50), (2, 0x52), (8, 0x58), (20, 0x64)] {
        write(&*ioapic, 0, 0x00, 0x10 + 2 * pin);
        write(&*ioapic, 0, 0x10, vector);
    }
    for (gsi, seen, vector) in [
        (2, &["intr+", "52"] as &[&str], Some(0x30)),
        (8, &["intr+", "58"], Some(0x38)),
        (1, &["intr+"], Some(0x31)),
        (0, &["50"], None),
        (20, &["64"], None),
    ] {
        line(&table, gsi).pulse();
        assert_eq!(log.take(), seen, "{gsi}");
        if let Some(vector) = vector {
            assert_eq!(pic.acknowledge(), vector);
            assert_eq!(log.take(), ["intr-"]);
        }
    }
}

#[test]
fn the_end_of_an_interrupt_is_heard_from_either() {
    let log = Log::default();
    let pic = Arc::new(I8259::new(I8259Config { intr: IrqLine::detached() }));
    let ioapic = Arc::new(IoApic::new(IoApicConfig { apics: Arc::new(Apics(log)), pins: 24, id: 0 }));
    let table = LineTable::new(Arc::new(GsiLines::new(pic.clone(), ioapic.clone())), 0..=23);
    for (port, value) in [(0, 0x11), (1, 0x30), (1, 4), (1, 1)] {
        let _ = pic.write(0, port, &[value]);
    }
    let _ = ioapic.write(0, 0x00, &[0x10 + 2 * 5]);
    let _ = ioapic.write(0, 0x10, &0x8055u32.to_le_bytes());
    let line = line(&table, 5);
    let heard = Arc::new(AtomicUsize::new(0));
    let subscription = line.on_eoi(Arc::new({
        let heard = heard.clone();
        move || {
            heard.fetch_add(1, Ordering::Relaxed);
        }
    }));
    line.assert();
    ioapic.end_of_interrupt(0x55);
    assert_eq!(heard.load(Ordering::Relaxed), 1);
    pic.acknowledge();
    let _ = pic.write(0, 0, &[0x20]);
    assert_eq!(heard.load(Ordering::Relaxed), 2);
    drop(subscription);
    ioapic.end_of_interrupt(0x55);
    assert_eq!(heard.load(Ordering::Relaxed), 2);
}
