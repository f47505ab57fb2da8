//! Interrupts: by message, by line, between CPUs. Each case runs with every interrupt controller that the backend offers.

use std::sync::{Arc, Mutex, PoisonError};

use skep_guest_protocol::{IrqSlot, Operation, Width, irq_slot};
use skep_irq::{IrqLine, Msi, MsiTarget, Polarity, Trigger};
use skep_memory::vm_memory::{Bytes, GuestAddress};

use super::bus::Space;
use super::rig::{List, Rig, Stop};
use super::state::seeds;
use super::target::{Level, Messages};
use super::{Subject, Target};

use Operation::{OnIrqWrite, SendIpi, SetInterrupts, SpinUntil, StartCpu, WaitIrq, WriteMemory};

/// From [`Target::DEVICE`]: where the guest says that it is ready, and where its handler writes.
pub(super) const READY: u64 = 0x2000;
pub(super) const HANDLED: u64 = 0x2008;
const MEANWHILE: u64 = 0x2010;

pub(super) fn ready<A: Target>() -> Operation {
    WriteMemory { address: A::DEVICE + READY, value: 1, width: Width::Four }
}

pub(super) fn on_irq<A: Target>(irq: u64) -> Operation {
    OnIrqWrite { irq, address: A::DEVICE + HANDLED, value: irq }
}

/// Operations that take interrupts until `irq` was counted `count` times, without a halt: a signal that comes between the guest's look at the
/// count and its HLT would need an interrupt shadow that survives exits, and an emulated host's does not.
pub(super) fn take(table: u64, irq: u64, count: u64) -> [Operation; 3] {
    let slot = irq_slot(irq).expect("the table has room for it");
    let address = table + slot * size_of::<IrqSlot>() as u64;
    let spin = SpinUntil { address, value: count, width: Width::Eight };
    [SetInterrupts { on: true }, spin, SetInterrupts { on: false }]
}

/// Lets a CPU set up its interrupt controller, then do `setup`, say that it is ready, and take `irq` until it was counted `count` times.
pub(super) fn take_after<A: Target>(
    rig: &Rig<A>,
    table: u64,
    setup: &[Operation],
    irq: u64,
    count: u64,
) -> Vec<Operation> {
    let first = A::init_interrupts(rig, table);
    [&[first], setup, &[on_irq::<A>(irq), ready::<A>()], &take(table, irq, count)].concat()
}

/// Each message that is signalled is one interrupt.
pub fn messages_are_counted<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let Messages { target, requester, setup, messages } = A::messages(&mut rig, 0, 2);
        let [(message, irq), (other, other_irq)] = messages[..] else { panic!("two messages were asked for") };
        let mut operations = take_after(&rig, table, &setup, irq, 5);
        operations.extend(take(table, other_irq, 1));
        let list = rig.list(&operations);
        rig.boot(0, list);
        let running = rig.start(0);
        rig.bus.wait(A::DEVICE + READY, 1);
        for count in 1..=5 {
            target.signal(message, requester).expect("the message is delivered");
            rig.bus.wait(A::DEVICE + HANDLED, count);
        }
        target.signal(other, requester).expect("the message is delivered");
        assert_eq!(rig.join(running), Stop::End);
        rig.results(list);
        assert_eq!(rig.slot(table, irq), (5, A::cpu_id(0)));
        assert_eq!(rig.slot(table, other_irq), (1, A::cpu_id(0)));
    });
}

/// A message for the second CPU is taken by the second CPU.
pub fn a_message_finds_its_cpu<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 2, |mut rig| {
        let (table, stack) = (rig.table(), rig.stack());
        let Messages { target, requester, setup, messages } = A::messages(&mut rig, 1, 1);
        let (message, irq) = messages[0];
        let other = rig.list(&take_after(&rig, table, &setup, irq, 1));
        let list = rig.list(&[A::init_interrupts(&rig, table), StartCpu { cpu: A::cpu_id(1), list: other.gpa, stack }]);
        rig.boot(0, list);
        let running = [rig.start(0), rig.start(1)];
        rig.bus.wait(A::DEVICE + READY, 1);
        target.signal(message, requester).expect("the message is delivered");
        for running in running {
            assert_eq!(rig.join(running), Stop::End);
        }
        rig.results(list);
        rig.results(other);
        assert_eq!(rig.slot(table, irq), (1, A::cpu_id(1)));
    });
}

/// What is signalled while a vector is masked is one interrupt once it is unmasked; vectors are configured in one act.
pub fn masked_messages_wait<A: Target>(subject: &Subject<A>) {
    mask_and_unmask(subject, false);
}

/// Signals of an eventfd are messages, where the backend offers that: while the vector is masked they wait.
pub fn eventfds_are_messages<A: Target>(subject: &Subject<A>) {
    mask_and_unmask(subject, true);
}

fn mask_and_unmask<A: Target>(subject: &Subject<A>, by_eventfd: bool) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let Messages { target, requester, setup, messages } = A::messages(&mut rig, 0, 3);
        let vectors: Vec<_> = messages.iter().map(|_| Msi::new(Arc::clone(&target), requester)).collect();
        let fds = vectors.iter().map(|vector| vector.eventfd().expect("the backend gives a route"));
        let fds: Option<Vec<_>> = if by_eventfd { fds.collect() } else { None };
        if by_eventfd && fds.is_none() {
            assert!(target.routes().is_none(), "the backend says that it offers eventfds");
            return;
        }
        let signal = |vector: usize| match &fds {
            Some(fds) => fds[vector].write(1).expect("an eventfd takes a signal"),
            None => vectors[vector].signal().expect("the message is delivered"),
        };
        let mut operations = vec![A::init_interrupts(&rig, table)];
        operations.extend(&setup);
        operations.extend(messages.iter().map(|(_, irq)| on_irq::<A>(*irq)));
        operations.push(ready::<A>());
        let counts = [2, 2, 1];
        operations.extend(messages.iter().zip(counts).flat_map(|((_, irq), count)| take(table, *irq, count)));
        let list = rig.list(&operations);
        rig.boot(0, list);
        let running = rig.start(0);
        rig.bus.wait(A::DEVICE + READY, 1);
        let handled = |rig: &Rig<A>, vector: usize, count: usize| {
            // Writes of the handler of this vector only.
            let (_, irq) = messages[vector];
            rig.bus.wait_for("an interrupt is handled", |log| {
                log.iter().filter(|a| a.address == A::DEVICE + HANDLED && a.value == irq).count() >= count
            });
        };

        // Masked from the start: two signals are one interrupt.
        signal(0);
        signal(0);
        assert!(vectors[0].state().pending);
        let configure = |masks: [bool; 3]| {
            let all: Vec<_> =
                vectors.iter().zip(&messages).zip(masks).map(|((v, (m, _)), mask)| (v, *m, mask)).collect();
            Msi::configure_all(&all).expect("the backend changes its routes");
        };
        configure([false, false, true]);
        handled(&rig, 0, 1);
        assert!(!vectors[0].state().pending);
        signal(1);
        handled(&rig, 1, 1);
        // Masked again: what comes waits, and the one that is not masked goes on.
        signal(2);
        configure([true, false, true]);
        signal(0);
        signal(1);
        handled(&rig, 1, 2);
        assert_eq!(rig.bus.at(A::DEVICE + HANDLED).len(), 3, "masked vectors are silent");
        configure([false, false, false]);
        assert_eq!(rig.join(running), Stop::End);
        rig.results(list);
        let counted: Vec<_> = messages.iter().map(|(_, irq)| rig.slot(table, *irq).0).collect();
        assert_eq!(counted, counts);
        drop(vectors);
        // Its route is given back: another takes its place.
        let again = Msi::new(Arc::clone(&target), requester);
        assert_eq!(again.eventfd().expect("the backend gives a route").is_some(), target.routes().is_some());
    });
}

/// Two CPUs interrupt each other.
pub fn cpus_interrupt_each_other<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 2, |mut rig| {
        let (table, stack) = (rig.table(), rig.stack());
        let (irq, setup) = A::ipi();
        let enable = [&[A::init_interrupts(&rig, table)], &setup[..]].concat();
        let word = rig.allocate(8, 8);
        let tell = WriteMemory { address: word, value: 1, width: Width::Eight };
        // The table counts for both CPUs: 1 is the other's, 2 the first's.
        let answer = SendIpi { cpu: A::cpu_id(0), irq };
        let other = rig.list(&[&enable[..], &[tell], &take(table, irq, 1), &[answer]].concat());
        let first = [
            StartCpu { cpu: A::cpu_id(1), list: other.gpa, stack },
            SpinUntil { address: word, value: 1, width: Width::Eight },
            SendIpi { cpu: A::cpu_id(1), irq },
        ];
        let list = rig.list(&[&enable[..], &first, &take(table, irq, 2)].concat());
        rig.boot(0, list);
        let running = [rig.start(0), rig.start(1)];
        for running in running {
            assert_eq!(rig.join(running), Stop::End);
        }
        rig.results(list);
        rig.results(other);
        assert_eq!(rig.slot(table, irq), (2, A::cpu_id(0)));
    });
}

/// A message ends the wait of a CPU that has halted.
pub fn a_message_ends_a_halt<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 2, |mut rig| {
        let (table, stack) = (rig.table(), rig.stack());
        let Messages { target, requester, setup, messages } = A::messages(&mut rig, 0, 1);
        let (message, irq) = messages[0];
        let meanwhile = Meanwhile::new(&mut rig);
        let other = meanwhile.list;
        let first = [A::init_interrupts(&rig, table), StartCpu { cpu: A::cpu_id(1), list: other.gpa, stack }];
        let list = rig.list(&[&first[..], &setup, &[ready::<A>(), WaitIrq { irq, count: 1 }]].concat());
        rig.boot(0, list);
        let running = [rig.start(0), rig.start(1)];
        rig.bus.wait(A::DEVICE + READY, 1);
        meanwhile.pass(&rig);
        target.signal(message, requester).expect("the message is delivered");
        for running in running {
            assert_eq!(rig.join(running), Stop::End);
        }
        rig.results(list);
        assert_eq!(rig.slot(table, irq), (1, A::cpu_id(0)));
    });
}

/// The second CPU passes the time in which the first comes to its halt: no event tells of that.
pub(super) struct Meanwhile {
    pub list: List,
    word: u64,
}

impl Meanwhile {
    const WRITES: u64 = 200;

    pub(super) fn new<A: Target>(rig: &mut Rig<A>) -> Self {
        let word = rig.allocate(8, 8);
        let write = WriteMemory { address: A::DEVICE + MEANWHILE, value: 1, width: Width::Four };
        let repeat = Operation::Repeat { back: 1, times: Self::WRITES - 1 };
        let list = rig.list(&[SpinUntil { address: word, value: 1, width: Width::Eight }, write, repeat]);
        Self { list, word }
    }

    /// Waits until the second CPU has passed the time.
    pub(super) fn pass<A: Target>(&self, rig: &Rig<A>) {
        rig.write_word(self.word, 1);
        rig.bus.wait(A::DEVICE + MEANWHILE, Self::WRITES as usize);
    }
}

/// A level line interrupts again after each end, until it is deasserted.
pub fn level_lines_interrupt_until_deasserted<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let Level { lines, line, irq, setup } = A::level(&rig);
        let line = Arc::new(lines.line(line, Trigger::Level, Polarity::High).expect("the line is there"));
        deassert_at(&rig, 3, [Arc::clone(&line)]);
        let mut operations = take_after(&rig, table, &setup, irq, 3);
        let pause = rig.pause();
        operations.extend(pause);
        operations.extend(take(table, irq, 4));
        let list = rig.list(&operations);
        rig.boot(0, list);
        let running = rig.start(0);
        rig.bus.wait(A::DEVICE + READY, 1);
        line.assert();
        assert_eq!(rig.join(running), Stop::At(0));
        let came = came(&rig, table, irq, 3);
        deassert_at(&rig, 1, [Arc::clone(&line)]);
        let running = rig.start(0);
        line.assert();
        assert_eq!(rig.join(running), Stop::End);
        rig.results(list);
        self::came(&rig, table, irq, came + 1);
        assert!(!line.is_asserted());
    });
}

/// A line with two handles interrupts until both have deasserted it, or have gone.
pub fn shared_lines_are_high_while_any_is<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let Level { lines, line, irq, setup } = A::level(&rig);
        let handle = || Arc::new(lines.line(line, Trigger::Level, Polarity::High).expect("the line is there"));
        let (first, second) = (handle(), handle());
        let gone = Arc::new(Mutex::new(Some(lines.line(line, Trigger::Level, Polarity::High).expect("as above"))));
        let mut handled = 0;
        let (a, b, c) = (Arc::clone(&first), Arc::clone(&second), Arc::clone(&gone));
        rig.bus.on(Space::Memory, A::DEVICE + HANDLED, move |_| {
            handled += 1;
            match handled {
                1 => a.deassert(),
                2 => drop(c.lock().unwrap_or_else(PoisonError::into_inner).take()),
                _ => b.deassert(),
            }
            0
        });
        let mut operations = [&[A::init_interrupts(&rig, table)], &setup[..], &[on_irq::<A>(irq)]].concat();
        operations.extend(rig.pause());
        operations.extend(take(table, irq, 3));
        let list = rig.list(&operations);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        if let Some(line) = &*gone.lock().unwrap_or_else(PoisonError::into_inner) {
            line.assert();
        }
        second.assert();
        first.assert();
        assert_eq!(rig.run(0), Stop::End);
        rig.results(list);
        came(&rig, table, irq, 3);
    });
}

/// How often a level line's interrupt has come: `least`, or once more. A KVM without hardware virtualization, when its host is busy, tells now
/// and then of an end that was none, and a line that is still high then interrupts once too often, which a level may.
fn came<A: Target>(rig: &Rig<A>, table: u64, irq: u64, least: u64) -> u64 {
    let (count, cpu) = rig.slot(table, irq);
    assert!((least..=least + 1).contains(&count), "it has come {count} times, and {least} were due");
    assert_eq!(cpu, A::cpu_id(0));
    count
}

/// Lets the handler's `count`th write deassert these lines.
pub(super) fn deassert_at<A: Target, const N: usize>(rig: &Rig<A>, count: u64, lines: [Arc<IrqLine>; N]) {
    let mut handled = 0;
    rig.bus.on(Space::Memory, A::DEVICE + HANDLED, move |_| {
        handled += 1;
        if handled == count {
            lines.iter().for_each(|line| line.deassert());
        }
        0
    });
}

/// A message that waits because interrupts are off is in the saved state, and is taken in the VM that is restored.
pub fn pending_interrupts_survive_a_restore<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let Messages { target, requester, setup, messages } = A::messages(&mut rig, 0, 2);
        let [(message, irq), (_, other)] = messages[..] else { panic!("two messages were asked for") };
        let mut operations = [&[A::init_interrupts(&rig, table)], &setup[..]].concat();
        operations.extend(rig.pause());
        operations.push(WaitIrq { irq, count: 1 });
        operations.extend(rig.pause());
        operations.push(WaitIrq { irq: other, count: 1 });
        let list = rig.list(&operations);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        target.signal(message, requester).expect("the message is delivered");
        drop(target);
        let saved = rig.save();
        let mut rig = rig.successor(subject);
        rig.restore(&saved);
        assert_eq!(rig.run(0), Stop::At(1));
        assert_eq!(rig.slot(table, irq), (1, A::cpu_id(0)));
        // The guest's set-up has survived too.
        let Messages { target, requester, messages, .. } = A::messages(&mut rig, 0, 2);
        target.signal(messages[1].0, requester).expect("the message is delivered");
        assert_eq!(rig.run(0), Stop::End);
        rig.results(list);
        assert_eq!(rig.slot(table, other), (1, A::cpu_id(0)));
    });
}

/// Whatever waits when the state is taken, by message or by a level line, is taken once after a restore as without one; and the controller goes
/// on: the same and other messages come again, and a line that is still high interrupts again.
pub fn whatever_waits_is_taken_once_after_a_restore<A: Target>(subject: &Subject<A>) {
    const MESSAGES: u32 = 6;
    for seed in seeds(4) {
        Rig::for_each(subject, 1, |mut rig| {
            let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let (waits, asserted) = (|message: usize| random >> message & 1 == 1, random >> 8 & 1 == 1);
            let table = rig.table();
            let Messages { target, requester, setup, messages } = A::messages(&mut rig, 0, MESSAGES);
            let Level { lines, line, irq: level, setup: level_setup } = A::level(&rig);
            let irqs: Vec<u64> = messages.iter().map(|(_, irq)| *irq).collect();
            let mut operations = [&[A::init_interrupts(&rig, table)], &setup[..], &level_setup].concat();
            operations.push(on_irq::<A>(level));
            operations.extend(rig.pause());
            let waiting = irqs.iter().enumerate().filter(|(message, _)| waits(*message));
            operations.extend(waiting.flat_map(|(_, irq)| take(table, *irq, 1)));
            // The line may interrupt once too often (see `came`), so that no count is waited for.
            let word = rig.allocate(8, 8);
            if asserted {
                let spin = SpinUntil { address: word, value: 1, width: Width::Eight };
                operations.extend([SetInterrupts { on: true }, spin, SetInterrupts { on: false }]);
            }
            operations.extend(rig.pause());
            let all = irqs.iter().enumerate();
            operations.extend(all.flat_map(|(message, irq)| take(table, *irq, 1 + u64::from(waits(message)))));
            let list = rig.list(&operations);
            rig.boot(0, list);
            assert_eq!(rig.run(0), Stop::At(0));
            for (message, (what, _)) in messages.iter().enumerate().filter(|(message, _)| waits(*message)) {
                // What comes again while it waits is the same interrupt.
                for _ in 0..=(random >> (10 + 2 * message) & 3) {
                    target.signal(*what, requester).expect("the message is delivered");
                }
            }
            let handle = Arc::new(lines.line(line, Trigger::Level, Polarity::High).expect("the line is there"));
            if asserted {
                handle.assert();
            }
            let (saved, ram) = (rig.save(), rig.used());
            // From here on twice: in the VM that was saved, and in the one that is restored.
            let go_on = |rig: &mut Rig<A>, target: &dyn MsiTarget, handle: &Arc<IrqLine>| {
                let (line, ram, mut handled) = (Arc::clone(handle), rig.map.ram(), 0);
                rig.bus.on(Space::Memory, A::DEVICE + HANDLED, move |_| {
                    handled += 1;
                    if handled == 2 {
                        line.deassert();
                        ram.write_slice(&1_u64.to_le_bytes(), GuestAddress(word)).expect("the word is in RAM");
                    }
                    0
                });
                assert_eq!(rig.run(0), Stop::At(1), "seed {seed}");
                for (message, irq) in irqs.iter().enumerate() {
                    let (count, _) = rig.slot(table, *irq);
                    assert_eq!(count, u64::from(waits(message)), "seed {seed}: {irq}");
                }
                if asserted {
                    came(rig, table, level, 2);
                }
                for (what, _) in &messages {
                    target.signal(*what, requester).expect("the message is delivered");
                }
                assert_eq!(rig.run(0), Stop::End, "seed {seed}");
                rig.results(list);
                for (message, irq) in irqs.iter().enumerate() {
                    assert_eq!(
                        rig.slot(table, *irq),
                        (1 + u64::from(waits(message)), A::cpu_id(0)),
                        "seed {seed}: {irq}"
                    );
                }
                assert!(!handle.is_asserted());
            };
            go_on(&mut rig, &*target, &handle);
            drop((target, handle, lines));
            let mut rig = rig.successor(subject);
            rig.rewind(&ram);
            rig.restore(&saved);
            let Level { lines, .. } = A::level(&rig);
            let handle = Arc::new(lines.line(line, Trigger::Level, Polarity::High).expect("the line is there"));
            if asserted {
                A::restore_level(&handle);
            }
            let Messages { target, .. } = A::messages(&mut rig, 0, MESSAGES);
            go_on(&mut rig, &*target, &handle);
        });
    }
}
