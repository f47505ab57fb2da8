//! Lines and messages: KVM has one routing table for the eventfds of both, and loses no level.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use skep_guest_protocol::{Operation, Trigger};
use skep_hypervisor::aarch64::Io;
use skep_hypervisor::{Exit, Kick, MemoryIo};
use skep_irq::{LineTarget, Msi, MsiMessage, RequesterId};

use crate::machine::{DEVICE, ITS, ITS_TABLES, PAUSE, Plan};

const FIRST: u32 = 40;
const SECOND: u32 = 95;
const LEVEL: u32 = 41;
/// Where the level interrupt's handler writes.
const HANDLER: u64 = DEVICE + 16;
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

/// Lowers its line in the interrupt's handler, and lets another thread raise it again.
struct Source {
    lines: Arc<dyn LineTarget>,
    lowered: Sender<()>,
    stop: Arc<dyn Kick>,
    /// Whether the list has ended.
    ended: bool,
}

impl MemoryIo for Source {
    fn memory_read(&mut self, gpa: u64, _data: &mut [u8]) {
        panic!("the guest reads {gpa:#x}, where nothing is");
    }

    fn memory_write(&mut self, gpa: u64, _data: &[u8]) {
        if gpa == HANDLER {
            self.lines.set_level(LEVEL, false);
            // After the last one nobody listens.
            let _ = self.lowered.send(());
        } else {
            self.ended = true;
            self.stop.kick();
        }
    }
}

impl Io for Source {}

#[test]
fn a_level_that_rises_again_at_any_moment_is_never_lost() {
    const ROUNDS: u64 = 3000;
    let mut machine = Plan::new(1).machine();
    let irq = LEVEL.into();
    machine.boot(&[
        machine.init_gic(),
        Operation::EnableIntid { irq, trigger: Trigger::Level },
        Operation::OnIrqWrite { irq, address: HANDLER, value: 0 },
        PAUSE,
        Operation::WaitIrq { irq, count: ROUNDS },
    ]);
    machine.run();
    let vcpu = &mut machine.parts.vcpus[0];
    let lines = machine.parts.interrupts.lines.clone();
    let (lowered, is_lowered) = mpsc::channel();
    let mut source = Source { lines: lines.clone(), lowered, stop: vcpu.kicker(), ended: false };
    let watchdog = vcpu.kicker();
    thread::scope(|scope| {
        scope.spawn(move || {
            lines.set_level(LEVEL, true);
            for _ in 1..ROUNDS {
                // The end of a run that has gone wrong, as well.
                match is_lowered.recv_timeout(Duration::from_secs(60)) {
                    Ok(()) => lines.set_level(LEVEL, true),
                    Err(_) => return watchdog.kick(),
                }
            }
        });
        assert_eq!(vcpu.run(&mut source).unwrap(), Exit::Kicked);
    });
    assert!(source.ended, "the guest waits for an interrupt that was lost after {}", machine.taken(irq));
    assert_eq!(machine.taken(irq), ROUNDS);
}
