//! The GIC's state: a rich one comes back the same, and what does not fit is refused by name.

use skep_guest_protocol::{Operation, Trigger};
use skep_hypervisor::aarch64::{GicState, GicVersion, ItsState, SystemRegister};
use skep_irq::{MsiMessage, RequesterId};

use crate::machine::{DEVICE, ITS, ITS_TABLES, Machine, PAUSE, Plan, Random};

const EDGE: u32 = 40;
const LEVEL: u32 = 70;
const DISABLED: u32 = 90;
const LPI: u64 = 8200;
const DEVICE_ID: u32 = 0x18;

/// A guest that has set its GIC up and masks interrupts, with one of each kind pending.
fn busy() -> Machine {
    let mut machine = Plan::new(2).machine();
    let on = |irq, trigger| Operation::EnableIntid { irq, trigger };
    let mut operations = vec![
        machine.init_gic(),
        on(EDGE.into(), Trigger::Edge),
        on(LEVEL.into(), Trigger::Level),
        on(5, Trigger::Edge),
        Operation::OnIrqWrite { irq: LEVEL.into(), address: DEVICE, value: 0 },
        Operation::SendIpi { cpu: 0, irq: 5 },
    ];
    if machine.parts.interrupts.its.is_some() {
        operations.push(Operation::InitIts { base: ITS, tables: ITS_TABLES });
        operations.push(Operation::MapMsi { device: DEVICE_ID, event: 3, irq: LPI });
        operations.push(Operation::MapMsi { device: DEVICE_ID, event: 4, irq: LPI + 1 });
    }
    let waits = waits(&machine);
    operations.push(PAUSE);
    operations.extend(waits);
    machine.boot(&operations);
    machine.run();
    let lines = &machine.parts.interrupts.lines;
    for (line, levels) in [(EDGE, &[true, false][..]), (DISABLED, &[true, false]), (LEVEL, &[true])] {
        levels.iter().for_each(|level| lines.set_level(line, *level));
    }
    if let Some(its) = &machine.parts.interrupts.its {
        let message = MsiMessage { address: ITS + 0x1_0040, data: 3 };
        its.signal(message, Some(RequesterId(DEVICE_ID))).unwrap();
    }
    machine
}

fn waits(machine: &Machine) -> Vec<Operation> {
    let lpi = machine.parts.interrupts.its.is_some().then_some(LPI);
    let irqs = [5, EDGE.into(), LEVEL.into()].into_iter().chain(lpi);
    irqs.map(|irq| Operation::WaitIrq { irq, count: 1 }).collect()
}

fn word(registers: &[(u32, u32)], offset: u32) -> u32 {
    registers.iter().find(|(o, _)| *o == offset).map(|(_, value)| *value).unwrap()
}

#[test]
fn a_busy_gic_comes_back_the_same_and_its_interrupts_are_taken() {
    let mut machine = busy();
    let vcpus = [machine.save_vcpu(0), machine.save_vcpu(1)];
    let state = machine.parts.interrupts.gic.save().unwrap();
    // Pending: GICD_ISPENDR1 and 2. A GICv2 shows a level-triggered interrupt as pending while its line is high.
    assert_eq!(word(&state.distributor, 0x204), 1 << (EDGE - 32));
    let level = u32::from(state.version == 2) << (LEVEL - 64);
    assert_eq!(word(&state.distributor, 0x208), 1 << (DISABLED - 64) | level);
    assert_eq!(state.levels, [0, 1 << (LEVEL - 64)]);

    let mut successor = machine.successor();
    drop(machine);
    for (vcpu, state) in successor.parts.vcpus.iter_mut().zip(&vcpus) {
        vcpu.restore(state).unwrap();
    }
    successor.parts.interrupts.gic.restore(&state).unwrap();
    assert_eq!(successor.parts.interrupts.gic.save().unwrap(), state);
    // The handler of the level interrupt writes to the device, which lowers the line.
    successor.run();
    successor.parts.interrupts.lines.set_level(LEVEL, false);
    successor.run();
    for irq in [5, EDGE.into(), LEVEL.into()] {
        assert_eq!(successor.taken(irq), 1, "{irq}");
    }
    assert_eq!(successor.taken(DISABLED.into()), 0);
    if successor.parts.interrupts.its.is_some() {
        assert_eq!((successor.taken(LPI), successor.taken(LPI + 1)), (1, 0));
    }
}

#[test]
fn it_can_be_restored_in_place_again_and_again() {
    let machine = busy();
    let state = machine.parts.interrupts.gic.save().unwrap();
    for _ in 0..2 {
        machine.parts.interrupts.gic.reset().unwrap();
        machine.parts.interrupts.gic.restore(&state).unwrap();
        assert_eq!(machine.parts.interrupts.gic.save().unwrap(), state);
        machine.parts.interrupts.gic.restore(&state).unwrap();
        assert_eq!(machine.parts.interrupts.gic.save().unwrap(), state);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    type Spoil = fn(&mut GicState);
    let both: [(&str, Spoil); 8] = [
        ("(distributor): the register at 0x8 is 0x0, and", |state| {
            state.distributor.iter_mut().filter(|(offset, _)| *offset == 8).for_each(|(_, value)| *value = 0);
        }),
        ("(version): it is of a GICv", |state| state.version ^= 1),
        ("(spis): it has 32 SPIs, and this GIC 64", |state| state.spis = 32),
        ("(cpus): its 1 CPUs are not the 2 of this GIC", |state| state.cpus.truncate(1)),
        ("(cpus): its 2 CPUs are not the 2 of this GIC", |state| state.cpus[1].mpidr = 0x100),
        ("(distributor): the register at 0x104 is missing", |state| state.distributor.retain(|(o, _)| *o != 0x104)),
        ("(distributor): KVM's GIC has no state in a register at 0xfc", |state| state.distributor.push((0xfc, 1))),
        ("(distributor): a register is there twice", |state| state.distributor.push((0x104, 1))),
    ];
    let v2: [(&str, Spoil); 3] = [
        ("(CPU 0x1): the register at 0x100 is missing", |state| {
            state.cpus[1].redistributor.registers.pop();
        }),
        ("(CPU 0x0): the register at 0x0 is missing", |state| state.cpus[0].memory_interface.clear()),
        ("(its): it has an ITS, and this GIC has none", |state| state.its = Some(ItsState::default())),
    ];
    let v3: [(&str, Spoil); 7] = [
        ("(CPU 0x1): the register at 0x0 is missing", |state| {
            state.cpus[1].redistributor.registers.pop();
        }),
        ("(CPU 0x0): its interface has other registers", |state| {
            state.cpus[0].interface.pop();
        }),
        ("(CPU 0x1): its ICC_CTLR_EL1 is ", |state| {
            // One priority bit fewer in ICC_CTLR_EL1.
            let ctlr = SystemRegister::new(3, 0, 12, 12, 4);
            let interface = &mut state.cpus[1].interface;
            interface.iter_mut().filter(|(register, _)| *register == ctlr).for_each(|(_, value)| *value -= 1 << 8);
        }),
        ("(its): it has no ITS, and this GIC has one", |state| state.its = None),
        ("(ITS): its tables in guest RAM have the form `other-1`", |state| {
            state.its.as_mut().unwrap().tables = "other-1".to_owned();
        }),
        ("(ITS): the register at 0x80 is missing", |state| {
            state.its.as_mut().unwrap().registers.retain(|(offset, _)| *offset != 0x80);
        }),
        ("(ITS): the register at 0x8 is 0x0, and", |state| {
            let registers = &mut state.its.as_mut().unwrap().registers;
            registers.iter_mut().filter(|(offset, _)| *offset == 8).for_each(|(_, value)| *value = 0);
        }),
    ];
    let machine = busy();
    let gic = &machine.parts.interrupts.gic;
    let good = gic.save().unwrap();
    let own = if good.gic_version() == GicVersion::V2 { &v2[..] } else { &v3[..] };
    for (text, spoil) in both.iter().chain(own) {
        let mut state = good.clone();
        spoil(&mut state);
        let refusal = gic.restore(&state).expect_err(text).to_string();
        assert!(refusal.contains(text), "{text}: {refusal}");
        assert_eq!(gic.save().unwrap(), good, "{text}");
    }
}

#[test]
fn hostile_values_are_refused_or_mended_by_a_good_state() {
    let machine = busy();
    let gic = &machine.parts.interrupts.gic;
    let good = gic.save().unwrap();
    let mut random = Random(0x1234_5678);
    let mut refused = 0;
    for _ in 0..100 {
        let mut state = good.clone();
        for _ in 0..4 {
            let cpu = &mut state.cpus[random.below(2)];
            let value = random.next();
            match random.below(5) {
                0 => random.pick(&mut state.distributor).1 ^= value as u32,
                1 => random.pick(&mut cpu.redistributor.registers).1 ^= value as u32,
                2 if !cpu.interface.is_empty() => random.pick(&mut cpu.interface).1 ^= value,
                3 if !cpu.memory_interface.is_empty() => random.pick(&mut cpu.memory_interface).1 ^= value as u32,
                _ => match &mut state.its {
                    Some(its) => random.pick(&mut its.registers).1 ^= value,
                    None => *random.pick(&mut state.levels) ^= value as u32,
                },
            }
        }
        refused += u32::from(gic.restore(&state).is_err());
        gic.restore(&good).unwrap();
        assert_eq!(gic.save().unwrap(), good);
    }
    assert!(refused > 0, "GICD_IIDR among others can't be any value");
}
