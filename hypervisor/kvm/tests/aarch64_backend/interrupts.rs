//! Eventfds: KVM has one routing table for lines and messages.

use skep_guest_protocol::{Operation, Trigger};
use skep_irq::{Msi, MsiMessage, RequesterId};

use crate::machine::{ITS, ITS_TABLES, PAUSE, Plan};

const FIRST: u32 = 40;
const SECOND: u32 = 95;
const LPI: u64 = 8192;
const DEVICE_ID: u32 = 0x18;

#[test]
fn eventfds_of_lines_and_messages_live_together() {
    let mut machine = Plan::new(1).machine();
    let on = |irq: u32| Operation::EnableIntid { irq: irq.into(), trigger: Trigger::Edge };
    let mut operations = vec![machine.init_gic(), on(FIRST), on(SECOND)];
    let its = machine.parts.interrupts.its.clone();
    if its.is_some() {
        operations.push(Operation::InitIts { base: ITS, tables: ITS_TABLES });
        operations.push(Operation::MapMsi { device: DEVICE_ID, event: 1, irq: LPI });
    }
    let irqs: Vec<u64> = [FIRST.into(), SECOND.into()].into_iter().chain(its.is_some().then_some(LPI)).collect();
    for count in 1..=3 {
        operations.push(PAUSE);
        operations.extend(irqs.iter().map(|&irq| Operation::WaitIrq { irq, count }));
    }
    machine.boot(&operations);
    machine.run();

    let lines = machine.parts.interrupts.lines.clone();
    let first = lines.eventfd(FIRST).unwrap();
    let msi = its.map(|its| Msi::new(its, Some(RequesterId(DEVICE_ID))));
    let message = msi.as_ref().map(|msi| msi.eventfd().unwrap().expect("KVM has eventfds for messages"));
    if let Some(msi) = &msi {
        // It loads the table, in which the first line's pin must stay.
        msi.configure(MsiMessage { address: ITS + 0x1_0040, data: 1 }, false).unwrap();
    }
    let second = lines.eventfd(SECOND).unwrap();
    for count in 1..=3 {
        for fd in [Some(&first), Some(&second), message.as_ref()].into_iter().flatten() {
            fd.write(1).unwrap();
        }
        machine.run();
        for irq in &irqs {
            assert_eq!(machine.taken(*irq), count, "{irq}");
        }
    }
}
