//! State: saved, restored into a fresh VM, and reset.

use std::hash::{BuildHasher, RandomState};

use skep_guest_protocol::{HOLD_AREA_SIZE, Operation, RegisterSet, Status, Width, held_value};

use super::bus::Space;
use super::rig::{Rig, Stop};
use super::target::Register;
use super::{Lacks, Subject, Target};
use crate::{Exit, VcpuError};

use Operation::{HoldRegisters, ReadMemory, SpinUntil, StartCpu, WriteMemory};

const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// The guest's general registers are in the saved state, and in the guest again after a restore into a fresh VM.
pub fn general_registers_survive<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let [write, read] = A::system_register(PATTERN >> 20);
    let area = rig.allocate(HOLD_AREA_SIZE, 0x1000);
    let hold = HoldRegisters { set: RegisterSet::General, pattern: PATTERN, doorbell: Rig::<A>::hold_doorbell(), area };
    let list = rig.list(&[write, hold, read]);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::Held);
    let saved = rig.save();
    for (number, found) in A::general(&saved.vcpus[0]) {
        assert_eq!(found, held_value(PATTERN, number), "register {number} in the saved state");
    }
    let mut rig = rig.successor(subject);
    rig.restore(&saved);
    rig.write_word(area, 1);
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(rig.results(list), [0, 0, PATTERN >> 20], "registers that changed, and a system register");
}

/// SIMD registers that a state holds are in the next state that is saved.
pub fn simd_registers_survive<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let pause = rig.pause();
    let list = rig.list(&pause);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let mut state = rig.save_vcpu(0);
    let bytes: Vec<_> = (0..A::SIMD_SIZE as u64 / 8).flat_map(|word| held_value(PATTERN, word).to_le_bytes()).collect();
    A::set_simd(&mut state, &bytes);
    let mut rig = rig.successor(subject);
    rig.vcpu(0).restore(&state).expect("the backend restores SIMD registers");
    let mut again = rig.save_vcpu(0);
    A::still(&mut state);
    A::still(&mut again);
    assert_eq!(again, state);
    assert_eq!(rig.run(0), Stop::End);
}

/// SIMD and extended registers that the guest itself holds are the same after a restore into a fresh VM.
pub fn what_the_guest_holds_survives<A: Target>(subject: &Subject<A>) {
    for (set, lack) in [(RegisterSet::Simd, Lacks::GUEST_SIMD), (RegisterSet::Extended, Lacks::GUEST_XSAVE)] {
        if subject.lacks.contains(lack) {
            // What can be shown without the guest's help is another case.
            continue;
        }
        let mut rig = Rig::new(subject, 1);
        let area = rig.allocate(HOLD_AREA_SIZE, 0x1000);
        let list = rig.list(&[HoldRegisters { set, pattern: PATTERN, doorbell: Rig::<A>::hold_doorbell(), area }]);
        rig.boot(0, list);
        let stop = rig.run(0);
        if set == RegisterSet::Extended && stop == Stop::End {
            assert_eq!(rig.op(list, 0).outcome(), Some(Status::Unsupported), "the CPU has no such registers");
            continue;
        }
        assert_eq!(stop, Stop::Held, "{set:?} registers");
        let saved = rig.save();
        let mut rig = rig.successor(subject);
        rig.restore(&saved);
        rig.write_word(area, 1);
        assert_eq!(rig.run(0), Stop::End);
        assert_eq!(rig.results(list), [0], "{set:?} registers that changed");
    }
}

/// Two saves are equal, so are a save and that of the VM restored from it, and the counter never goes back.
pub fn saving_changes_nothing<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 2);
    let table = rig.table();
    let [write, _] = A::system_register(PATTERN >> 20);
    let pause = rig.pause();
    let list = rig.list(&[&[A::init_interrupts(&rig, table), write][..], &pause].concat());
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let mut first = rig.save();
    let mut second = rig.save();
    let controllers = [first.controller.take(), second.controller.take()];
    assert_eq!(controllers[0], controllers[1], "the interrupt controller's state, saved twice");
    first.controller = controllers.into_iter().next().flatten();
    let mut rig = rig.successor(subject);
    rig.restore(&first);
    let mut third = rig.save();
    assert_eq!(third.controller, first.controller, "the interrupt controller's state, restored and saved");
    for cpu in 0..2 {
        let counters = [&mut first, &mut second, &mut third].map(|saved| A::still(&mut saved.vcpus[cpu]));
        let [begin, later @ ..] = counters;
        assert!(later.iter().all(|counter| *counter >= begin), "vCPU {cpu}'s counter goes on: {counters:?}");
        assert_eq!(first.vcpus[cpu], second.vcpus[cpu], "vCPU {cpu}, saved twice");
        assert_eq!(first.vcpus[cpu], third.vcpus[cpu], "vCPU {cpu}, restored and saved");
    }
    assert_eq!(rig.run(0), Stop::End);
}

/// So many seeds that are the same each time, and as many others, or `SKEP_SEEDS`, that are not. A case that fails has printed its own, which `SKEP_SEED` chooses.
pub(super) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let number =
        |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed, or how many, is a number"));
    let (only, others) = (number("SKEP_SEED"), number("SKEP_SEEDS").unwrap_or(count));
    let count = if only.is_some() { 0 } else { count };
    let others = if only.is_some() { 0 } else { others };
    // Hashers of the standard library have random keys, and a xorshift can't begin with 0.
    let other = |_| RandomState::new().hash_one(0) | 1;
    (1..=count).chain((0..others).map(other)).chain(only).inspect(|seed| println!("seed {seed}"))
}

/// Numbers of 32 bits, by xorshift.
pub(super) fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as u32
    }
}

/// A guest that does this, and is saved where it pauses, sees the same after a restore into a fresh VM as without one.
pub(super) fn expect_the_same<A: Target>(mut rig: Rig<A>, subject: &Subject<A>, operations: &[Operation], seed: u64) {
    let list = rig.list(operations);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let (saved, ram) = (rig.save(), rig.used());
    assert_eq!(rig.run(0), Stop::End);
    let seen = rig.results(list);
    let mut rig = rig.successor(subject);
    rig.rewind(&ram);
    rig.restore(&saved);
    assert_eq!(rig.run(0), Stop::End);
    for (index, (found, seen)) in rig.results(list).into_iter().zip(seen).enumerate() {
        assert_eq!(found, seen, "seed {seed}: {:x?}", operations[index]);
    }
}

/// Whatever a guest has written to the interrupt controllers of its backend, it reads the same after a restore into a fresh VM as without one.
pub fn any_state_of_a_controller_survives<A: Target>(subject: &Subject<A>) {
    for seed in seeds(3) {
        Rig::for_each(subject, 1, |mut rig| {
            let registers = A::controller_registers(&rig.config);
            let mut next = random(seed);
            let writes = (0..80).map(|number| {
                // The first one holds interrupts back.
                let register = registers[if number == 0 { 0 } else { next() as usize % registers.len() }];
                let value = u64::from(next() & register.free | register.set);
                WriteMemory { address: register.address, value, width: Width::Four }
            });
            let mut operations: Vec<_> = writes.collect();
            operations.extend(rig.pause());
            let read = |register: &Register| ReadMemory { address: register.address, width: Width::Four };
            operations.extend(registers.iter().map(read));
            expect_the_same(rig, subject, &operations, seed);
        });
    }
}

/// A read that has called back, and whose run a kick has ended, reaches the guest's register before the state is taken: it calls back once.
pub fn an_access_under_way_is_finished_by_save<A: Target>(subject: &Subject<A>) {
    for width in Width::ALL {
        let mut rig = Rig::new(subject, 1);
        let kicker = rig.vcpu(0).kicker();
        rig.bus.on(Space::Memory, A::DEVICE, move |_| {
            kicker.kick();
            PATTERN
        });
        let write = WriteMemory { address: A::DEVICE, value: 3, width };
        let list = rig.list(&[ReadMemory { address: A::DEVICE, width }, write]);
        rig.boot(0, list);
        for accesses in 1..3 {
            let running = rig.enter(0);
            assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
            let saved = rig.save();
            rig = rig.successor(subject);
            rig.restore(&saved);
            assert_eq!(rig.bus.at(A::DEVICE).len(), accesses);
            // The kicks go to the vCPU that is there now.
            let kicker = rig.vcpu(0).kicker();
            rig.bus.on(Space::Memory, A::DEVICE, move |_| {
                kicker.kick();
                0
            });
        }
        assert_eq!(rig.run(0), Stop::End);
        assert_eq!(rig.results(list), [width.truncate(PATTERN), 0]);
        assert_eq!(rig.bus.at(A::DEVICE).len(), 2, "each access has called back once");
    }
}

/// A state that this vCPU can't have is refused as a state, and the vCPU goes on as it was.
pub fn what_does_not_fit_is_refused<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let pause = rig.pause();
    let list = rig.list(&pause);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let mut state = rig.save_vcpu(0);
    A::spoil(&mut state);
    match rig.vcpu(0).restore(&state) {
        Err(VcpuError::State { vcpu: 0, source }) => assert!(!source.to_string().is_empty()),
        other => panic!("a state of another CPU: {other:?}"),
    }
    assert_eq!(rig.run(0), Stop::End);
}

/// A reset gives the power-on state in place: the same as a fresh VM's, and it boots again, with all its CPUs.
pub fn reset_is_the_power_on_state<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 2);
    let mut fresh = rig.save();
    let table = rig.table();
    for round in 0..2 {
        let cell = rig.allocate(8, 8);
        let stack = rig.stack();
        let [write, read] = A::system_register(PATTERN >> 20);
        let other = rig.list(&[write, WriteMemory { address: cell, value: 1, width: Width::Eight }]);
        let list = rig.list(&[
            // The power-on value is none of the pattern.
            read,
            A::init_interrupts(&rig, table),
            write,
            StartCpu { cpu: A::cpu_id(1), list: other.gpa, stack },
            SpinUntil { address: cell, value: 1, width: Width::Eight },
        ]);
        rig.boot(0, list);
        let running = [rig.start(1), rig.start(0)];
        for running in running {
            assert_eq!(rig.join(running), Stop::End, "round {round}");
        }
        assert_ne!(rig.results(list)[0], PATTERN >> 20, "round {round}");
        rig.results(other);

        for cpu in 0..2 {
            rig.vcpu(cpu).reset().expect("the backend resets a vCPU");
        }
        A::reset_controller(&rig.interrupts);
        rig.load_probe(subject);
        let mut reset = rig.save();
        assert_eq!(reset.controller, fresh.controller, "round {round}: the interrupt controller");
        for cpu in 0..2 {
            A::still(&mut reset.vcpus[cpu]);
            A::still(&mut fresh.vcpus[cpu]);
            assert_eq!(reset.vcpus[cpu], fresh.vcpus[cpu], "round {round}: vCPU {cpu}");
        }
    }
}
