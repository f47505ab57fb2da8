//! vCPUs: kicks, many of them, limits, the clock.

use std::sync::Arc;
use std::sync::mpsc::channel;

use skep_guest_protocol::{Operation, Width};

use super::bus::Space;
use super::rig::{Rig, Stop, builder};
use super::{Subject, Target};
use crate::{Exit, HypervisorError, Powers, VmRequest};

use Operation::{ReadCounter, ReadMemory, SpinUntil, StartCpu, WaitIrq, WriteMemory};

/// How often vCPUs are kicked at random moments.
const KICKS: usize = 200;

/// Kicks before a run make one return of it, and no more.
pub fn kicks_before_a_run_are_one<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let list = rig.list(&[WriteMemory { address: A::DEVICE, value: 1, width: Width::Four }]);
    rig.boot(0, list);
    let kicker = rig.vcpu(0).kicker();
    for _ in 0..3 {
        kicker.kick();
    }
    let running = rig.enter(0);
    assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
    // A kick too many would end this run before the write that ends it.
    let running = rig.enter(0);
    assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
    let writes: Vec<_> = rig.bus.log().iter().map(|access| access.address).collect();
    assert_eq!(writes.len(), 2, "{writes:x?}: the list has ended");
    assert_eq!(rig.vcpu(0).exits().kicks, 2);
    rig.results(list);
}

/// Each kick from another thread, at whatever moment of a run, ends a run.
pub fn no_kick_is_lost<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let word = rig.allocate(8, 8);
    let list = rig.list(&[
        WriteMemory { address: A::DEVICE, value: 1, width: Width::Four },
        SpinUntil { address: word, value: 1, width: Width::Eight },
    ]);
    rig.boot(0, list);
    let kicker = rig.vcpu(0).kicker();
    let (sender, tokens) = channel();
    let kicking = std::thread::spawn(move || tokens.iter().for_each(|()| kicker.kick()));
    let running = rig.spawn(0, move |vcpu, recorder| {
        for kick in 0..KICKS {
            // The other thread now kicks: before the run, at its beginning, or later.
            sender.send(()).map_err(|e| e.to_string())?;
            let exit = vcpu.run(A::io(recorder)).map_err(|e| e.to_string())?;
            assert_eq!(exit, Exit::Kicked, "kick {kick}");
        }
        Ok(Stop::Exit(Exit::Kicked))
    });
    rig.join(running);
    kicking.join().expect("the other thread only kicks");
    // And one more, after the guest has run: the list has called back.
    let running = rig.enter(0);
    rig.bus.wait(A::DEVICE, 1);
    running.kicker.kick();
    assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
    rig.write_word(word, 1);
    assert_eq!(rig.run(0), Stop::End);
    rig.results(list);
}

/// A kick while the vCPU calls back ends the run, and the access has its effect once.
pub fn a_kick_during_a_callback_lets_the_access_end<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let kicker = rig.vcpu(0).kicker();
    rig.bus.on(Space::Memory, A::DEVICE, move |_| {
        kicker.kick();
        let other = Arc::clone(&kicker);
        std::thread::spawn(move || other.kick()).join().expect("the other thread only kicks");
        0x1234_5678
    });
    let list = rig.list(&[ReadMemory { address: A::DEVICE, width: Width::Four }]);
    rig.boot(0, list);
    let running = rig.enter(0);
    assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(rig.results(list), [0x1234_5678]);
    assert_eq!(rig.bus.at(A::DEVICE).len(), 1);
}

/// A kick ends a wait, for an interrupt or for being started, and the wait goes on at the next run.
pub fn a_kick_ends_a_wait<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 2);
    let waiting = rig.enter(1);
    waiting.kicker.kick();
    assert_eq!(rig.join(waiting), Stop::Exit(Exit::Kicked), "it waits to be started");

    let table = rig.table();
    let source = A::messages(&mut rig, 0, 1);
    let (message, irq) = source.messages[0];
    let mut operations = vec![A::init_interrupts(&rig, table)];
    operations.extend(source.setup);
    operations.push(WriteMemory { address: A::DEVICE, value: 1, width: Width::Four });
    operations.push(WaitIrq { irq, count: 1 });
    let list = rig.list(&operations);
    rig.boot(0, list);
    let waiting = rig.enter(0);
    rig.bus.wait(A::DEVICE, 1);
    waiting.kicker.kick();
    assert_eq!(rig.join(waiting), Stop::Exit(Exit::Kicked), "it waits for an interrupt");
    source.target.signal(message, source.requester).expect("the message is delivered");
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(rig.results(list).last(), Some(&1));
}

/// The guest starts a second CPU.
pub fn two_cpus<A: Target>(subject: &Subject<A>) {
    start_cpus(subject, 2);
}

/// The guest starts 15 further CPUs.
pub fn sixteen_cpus<A: Target>(subject: &Subject<A>) {
    start_cpus(subject, 16);
}

/// The guest starts 63 further CPUs, or as many as there can be.
pub fn many_cpus<A: Target>(subject: &Subject<A>) {
    start_cpus(subject, 64);
}

fn start_cpus<A: Target>(subject: &Subject<A>, wanted: u32) {
    let one = builder(subject, 1);
    let most = wanted.min(one.capabilities().max_vcpus);
    let count = (2..=most).rev().find(|count| !A::configs(one.capabilities(), *count).is_empty());
    let count = count.expect("a backend runs two vCPUs");
    drop(one);
    let mut rig = Rig::new(subject, count);
    let cells = rig.allocate(8 * u64::from(count), 64);
    let table = rig.table();
    // INIT and SIPI go by the local APIC.
    let mut operations = vec![A::init_interrupts(&rig, table)];
    let mut lists = Vec::new();
    for cpu in 1..count {
        let cell = cells + 8 * u64::from(cpu);
        let list = rig.list(&[WriteMemory { address: cell, value: A::cpu_id(cpu) + 1, width: Width::Eight }]);
        let stack = rig.stack();
        operations.push(StartCpu { cpu: A::cpu_id(cpu), list: list.gpa, stack });
        lists.push(list);
    }
    for cpu in 1..count {
        let cell = cells + 8 * u64::from(cpu);
        operations.push(SpinUntil { address: cell, value: A::cpu_id(cpu) + 1, width: Width::Eight });
    }
    let list = rig.list(&operations);
    rig.boot(0, list);
    let running: Vec<_> = (0..count).map(|cpu| rig.start(cpu)).collect();
    for running in running {
        assert_eq!(rig.join(running), Stop::End);
    }
    rig.results(list);
    for list in lists {
        rig.results(list);
    }
    let mut ends: Vec<_> = rig.bus.log().iter().map(|access| access.cpu).collect();
    ends.sort_unstable();
    assert_eq!(ends, (0..count).collect::<Vec<_>>(), "each CPU has ended its list once");
}

/// A vCPU that is made later, where the backend takes one, waits until the guest starts it.
pub fn a_vcpu_added_later_is_started_by_the_guest<A: Target>(subject: &Subject<A>) {
    let builder = builder(subject, 2);
    let config = A::configs(builder.capabilities(), 2).into_iter().next().expect("a backend runs two vCPUs");
    let mut rig = Rig::build(subject, builder, config, &[A::cpu_id(0)]);
    let further = A::vcpu_config(&rig.capabilities, A::cpu_id(1));
    let Some(vcpu) = rig.vm.add_vcpu(&further).expect("the backend makes a vCPU or says that it can't") else { return };
    assert_eq!(vcpu.index(), 1);
    rig.vcpus.push(Some(vcpu));
    let (table, stack, cell) = (rig.table(), rig.stack(), rig.allocate(8, 8));
    let other = rig.list(&[WriteMemory { address: cell, value: 7, width: Width::Eight }]);
    let list = rig.list(&[
        A::init_interrupts(&rig, table),
        StartCpu { cpu: A::cpu_id(1), list: other.gpa, stack },
        SpinUntil { address: cell, value: 7, width: Width::Eight },
    ]);
    rig.boot(0, list);
    let running = [rig.start(1), rig.start(0)];
    for running in running {
        assert_eq!(rig.join(running), Stop::End);
    }
    rig.results(list);
}

/// What is beyond a limit is refused as [`HypervisorError::Limit`], with both figures.
pub fn limits_are_told_by_name<A: Target>(subject: &Subject<A>) {
    let capabilities = builder(subject, 1).capabilities().clone();
    let most = capabilities.max_vcpus;
    let request = |max_vcpus, highest_gpa| {
        let request = VmRequest { max_vcpus, highest_gpa, powers: Powers::all() };
        subject.hypervisor.builder(&request).map(|_| ())
    };
    assert!(request(most, 1 << 32).is_ok());
    match request(most + 1, 1 << 32) {
        Err(HypervisorError::Limit { wanted, limit, .. }) => {
            assert_eq!((wanted, limit), (u64::from(most) + 1, u64::from(most)));
        }
        other => panic!("{} vCPUs: {other:?}", most + 1),
    }
    match request(1, 1 << 60) {
        Err(HypervisorError::Limit { wanted, limit, .. }) => assert!(wanted > limit, "{wanted:#x} of {limit:#x}"),
        other => panic!("an address of 61 bits: {other:?}"),
    }
}

/// The clock goes on from where it is set.
pub fn the_clock_is_set<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let pause = rig.pause();
    let list = rig.list(&[&[ReadCounter][..], &pause, &[ReadCounter, ReadCounter]].concat());
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let clock = rig.vm.clock();
    let get = || clock.get().expect("the backend reads the clock");
    let (first, second) = (get(), get());
    assert!(first <= second, "{first} then {second}");
    // Further on than any test runs, in nanoseconds or in ticks.
    let later = second + (1 << 50);
    clock.set(later).expect("the backend sets the clock");
    let now = get();
    assert!((later..later + (1 << 49)).contains(&now), "{now} after it was set to {later}");
    clock.set(second).expect("the backend sets the clock back");
    let now = get();
    assert!((second..later).contains(&now), "{now} after it was set back to {second}");
    assert_eq!(rig.run(0), Stop::End);
    let results = rig.results(list);
    assert!(results[3] <= results[4], "the guest's counter goes on: {results:?}");
}
