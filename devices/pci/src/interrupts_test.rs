use skep_irq::RequesterId;

use super::*;
use crate::testing::{Log, Sink, line};

const ON: Control = Control { pin_disabled: false, bus_master: true, messages: Messages::Msix { masked: false } };

fn interrupts(vectors: u16) -> (Sink, Log, Interrupts) {
    let sink = Sink::default();
    let log = sink.log.clone();
    let target: Arc<dyn MsiTarget> = Arc::new(sink.clone());
    let interrupts = Interrupts::new(vectors, &target, &RequesterId(8).into(), line(&log, 3));
    (sink, log, interrupts)
}

/// Writes a table entry: address 0xfee00000 + vector * 0x1000, data 0x40 + vector.
fn set(interrupts: &Interrupts, vector: u64, masked: bool) {
    let entry = vector * TABLE_ENTRY;
    interrupts.write_table(entry, &(0xfee0_0000 + vector * 0x1000).to_le_bytes());
    interrupts.write_table(entry + 8, &(0x40 + vector as u32).to_le_bytes());
    interrupts.write_table(entry + 12, &u32::from(masked).to_le_bytes());
}

fn pending(interrupts: &Interrupts) -> u64 {
    let mut data = [0; 8];
    interrupts.read_pending(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn nothing_is_signalled_while_messages_are_off() {
    let (_, log, interrupts) = interrupts(2);
    set(&interrupts, 0, false);
    interrupts.signal(0);
    interrupts.control(ON);
    assert!(log.take().is_empty());
    interrupts.signal(0);
    interrupts.signal(1);
    interrupts.signal(2);
    assert_eq!(log.take(), ["MSI 0008 fee00000 40"]);
    assert_eq!(pending(&interrupts), 0b10, "vector 1 is masked, and 2 does not exist");
    interrupts.control(Control::default());
    assert_eq!(pending(&interrupts), 0, "what was for one driver is not for the next");
}

#[test]
fn what_is_masked_stays_pending() {
    let (_, log, interrupts) = interrupts(40);
    for vector in [0, 33] {
        set(&interrupts, vector, false);
    }
    interrupts.control(Control { messages: Messages::Msix { masked: true }, ..ON });
    interrupts.signal(33);
    interrupts.signal(33);
    assert_eq!(pending(&interrupts), 1 << 33);
    interrupts.control(ON);
    assert_eq!(log.take(), ["MSI 0008 fee21000 61"]);
    assert_eq!(pending(&interrupts), 0);
    // Without bus mastering a message can't be written.
    interrupts.control(Control { bus_master: false, ..ON });
    interrupts.signal(0);
    assert_eq!((log.take().len(), pending(&interrupts)), (0, 1));
    interrupts.clear_pending(0);
    interrupts.control(ON);
    assert!(log.take().is_empty());
}

#[test]
fn routes_change_in_one_batch() {
    let (_, log, interrupts) = interrupts(64);
    let fds: Vec<_> = (0..64).map(|vector| interrupts.eventfd(vector).unwrap().unwrap()).collect();
    assert!(interrupts.eventfd(64).unwrap().is_none());
    interrupts.control(Control { messages: Messages::Msix { masked: true }, ..ON });
    (0..64).for_each(|vector| set(&interrupts, vector, vector == 63));
    log.take();
    interrupts.control(ON);
    assert_eq!(log.take(), ["routes 63/63"], "the one that stays masked is left alone");
    interrupts.control(ON);
    assert!(log.take().is_empty());
    set(&interrupts, 5, false);
    assert!(log.take().is_empty(), "the same again");
    interrupts.write_table(5 * TABLE_ENTRY + 8, &7u32.to_le_bytes());
    assert_eq!(log.take(), ["routes 1/1"]);
    interrupts.control(Control::default());
    assert_eq!(log.take(), ["routes 0/63"]);
    drop(fds);
}

#[test]
fn a_signalled_eventfd_is_pending_while_masked() {
    let (_, log, interrupts) = interrupts(1);
    let fd = interrupts.eventfd(0).unwrap().unwrap();
    set(&interrupts, 0, true);
    interrupts.control(ON);
    log.take();
    fd.write(1).unwrap();
    assert_eq!(pending(&interrupts), 1);
    set(&interrupts, 0, false);
    assert_eq!(log.take(), ["routes 1/1", "MSI 0008 fee00000 40"]);
}

#[test]
fn vectors_of_msi_share_what_is_allocated() {
    let (_, log, interrupts) = interrupts(8);
    let message = MsiMessage { address: 0xfee0_0000, data: 0x4f };
    let msi = |masked| Control { messages: Messages::Msi { message, count: 4, masked }, ..ON };
    interrupts.control(msi(0));
    for vector in [0, 3, 5] {
        interrupts.signal(vector);
    }
    assert_eq!(log.take(), ["MSI 0008 fee00000 4c", "MSI 0008 fee00000 4f", "MSI 0008 fee00000 4d"]);
    interrupts.control(msi(0b0010));
    interrupts.signal(1);
    interrupts.signal(2);
    assert_eq!(log.take(), ["MSI 0008 fee00000 4e"]);
    assert_eq!(interrupts.pending_bits(0), 0b10);
}

#[test]
fn the_pin_is_seen_only_while_messages_are_off() {
    let (_, log, interrupts) = interrupts(1);
    interrupts.set_pin(true);
    interrupts.control(ON);
    assert_eq!(log.take(), ["INTx 3+", "INTx 3-"]);
    assert!(interrupts.pin() && interrupts.messages_enabled());
    interrupts.control(Control { pin_disabled: true, ..Control::default() });
    assert!(log.take().is_empty());
    interrupts.control(Control::default());
    assert_eq!(log.take(), ["INTx 3+"]);
    interrupts.reset();
    assert_eq!(log.take(), ["INTx 3-"]);
}

#[test]
fn the_table_takes_doublewords_and_quadwords() {
    let (_, _, interrupts) = interrupts(2);
    interrupts.write_table(0, &0x1234_5678_9abc_def3u64.to_le_bytes());
    interrupts.write_table(8, &[0xff; 2]);
    interrupts.write_table(9, &[0xff; 4]);
    interrupts.write_table(8, &0xffff_fffe_0000_0042u64.to_le_bytes());
    interrupts.write_table(2 * TABLE_ENTRY, &[0xff; 8]);
    let mut data = [0xee; 16];
    interrupts.read_table(0, &mut data);
    assert_eq!(data, 0x0000_0000_0000_0042_1234_5678_9abc_def0u128.to_le_bytes());
    let mut byte = [0];
    interrupts.read_table(7, &mut byte);
    assert_eq!(byte, [0x12]);
    interrupts.read_table(2 * TABLE_ENTRY, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn restoring_makes_no_edge_and_keeps_what_is_pending() {
    let (_, _, one) = interrupts(3);
    set(&one, 0, false);
    set(&one, 1, true);
    one.set_pin(true);
    one.control(ON);
    one.signal(1);
    let (_, log, two) = interrupts(3);
    two.check(&one.save(), "x").unwrap();
    two.restore(&one.save(), ON);
    assert!(log.take().is_empty());
    assert_eq!((two.save(), pending(&two)), (one.save(), 0b10));
    two.control(Control::default());
    assert_eq!(log.take(), ["INTx 3+"], "the pin was high behind the messages");
    let (_, _, fewer) = interrupts(2);
    fewer.check(&one.save(), "x").unwrap_err();
}
