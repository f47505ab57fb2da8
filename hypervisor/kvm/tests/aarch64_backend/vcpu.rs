//! What only KVM's vCPUs have: its names for registers, what a state is refused for, accesses that it can't decode.

use skep_guest_protocol::Operation;
use skep_hypervisor::aarch64::{BootState, PowerState, SystemRegister, VcpuState, registers};
use skep_hypervisor::{Exit, VcpuError};

use crate::machine::{DEVICE, Device, Machine, PAUSE, Plan, RAM, Random};

const ID_AA64ISAR0_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 6, 0);
const CNTVCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 2);

fn read(register: SystemRegister) -> Operation {
    Operation::ReadSystemRegister { register: register.0 }
}

fn write(register: SystemRegister, value: u64) -> Operation {
    Operation::WriteSystemRegister { register: register.0, value }
}

/// Whether two states are of the same registers, but for the counter, which runs.
fn same(a: &VcpuState, b: &VcpuState) -> bool {
    VcpuState { counter: 0, ..a.clone() } == VcpuState { counter: 0, ..b.clone() }
}

#[test]
fn the_timer_is_saved_by_its_architectural_names() {
    let value = 0x1234_5678_9abc_def0;
    let mut machine = Plan::new(1).machine();
    let setup = [write(registers::CNTV_CVAL_EL0, value), write(registers::CNTV_CTL_EL0, 3)];
    machine.boot(&[&setup[..], &[PAUSE, read(registers::CNTV_CVAL_EL0)]].concat());
    machine.run();
    let state = machine.save_vcpu(0);
    assert_eq!(state.register(registers::CNTV_CVAL_EL0), Some(value));
    assert_eq!(state.register(registers::CNTV_CTL_EL0).map(|ctl| ctl & 3), Some(3));
    assert_eq!(state.register(CNTVCT_EL0), None, "the counter is no register of the vCPU's alone");
    let mut successor = machine.successor();
    successor.parts.vcpus[0].restore(&state).unwrap();
    assert!(same(&successor.save_vcpu(0), &state));
    successor.run();
    assert_eq!(successor.result(3), value);
}

#[test]
fn the_counter_goes_on_where_it_was() {
    let mut machine = Plan::new(1).machine();
    let hour = 3600 * u64::from(machine.save_vcpu(0).counter_hz);
    machine.parts.vm.clock().set(100 * hour).unwrap();
    let now = machine.parts.vm.clock().get().unwrap();
    let [guest] = machine.results(&[Operation::ReadCounter])[..] else { panic!("one result") };
    assert!((100 * hour..101 * hour).contains(&now), "{now}");
    assert!((now..101 * hour).contains(&guest), "{guest}");
    let state = machine.save_vcpu(0);
    assert!((guest..101 * hour).contains(&state.counter));
    let mut successor = machine.successor();
    successor.parts.vcpus[0].restore(&state).unwrap();
    assert!((state.counter..101 * hour).contains(&successor.save_vcpu(0).counter));
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    type Spoil = fn(&mut VcpuState);
    fn change(state: &mut VcpuState, register: SystemRegister) {
        let (_, value) = state.registers.iter_mut().find(|(r, _)| *r == register).unwrap();
        *value ^= 1 << 20;
    }
    let cases: [(&str, Spoil); 8] = [
        ("ID_AA64ISAR0_EL1: it is", |state| change(state, ID_AA64ISAR0_EL1)),
        ("MIDR_EL1: it is", |state| change(state, registers::MIDR_EL1)),
        ("MPIDR_EL1: it is", |state| change(state, registers::MPIDR_EL1)),
        ("S3_7_C15_C15_7: this vCPU has no such register", |state| state.registers.push((SystemRegister(0xffff), 1))),
        ("counter_hz: it is 1,", |state| state.counter_hz = 1),
        ("simd.sve_bits: SVE vectors: 128 bits", |state| state.simd.sve_bits = Some(128)),
        ("trusted-boot: this vCPU has no such value", |state| state.firmware.push(("trusted-boot".to_owned(), 1))),
        ("psci: it is 0x99990000", |state| {
            state.firmware.iter_mut().filter(|(name, _)| name == "psci").for_each(|(_, value)| *value = 0x9999_0000);
        }),
    ];
    let mut machine = Plan::new(1).machine();
    let before = machine.save_vcpu(0);
    for (text, spoil) in cases {
        let mut state = VcpuState { pc: RAM, x: [7; 31], counter: u64::MAX / 2, ..before.clone() };
        spoil(&mut state);
        let vcpu = &mut machine.parts.vcpus[0];
        let refusal = vcpu.restore(&state).expect_err(text).to_string();
        assert!(refusal.contains(text), "{refusal}");
        // Before its state is there, too, but for the counter, which is no vCPU's alone.
        let refusal = vcpu.adopt(&state.identity()).err().map(|error| error.to_string());
        assert!(text.starts_with("counter_hz") || refusal.is_some_and(|refusal| refusal.contains(text)), "{text}");
        let after = machine.save_vcpu(0);
        assert!(same(&after, &before), "{text}");
        assert!(after.counter < u64::MAX / 2);
    }
}

#[test]
fn the_firmware_that_the_guest_saw_is_what_it_sees() {
    const PSCI_VERSION: u64 = 0x8400_0000;
    let arguments = RAM + 0x1000;
    let version = [Operation::FirmwareCall { address: arguments }];
    let ask = |machine: &mut Machine| {
        machine.write(arguments, &PSCI_VERSION.to_le_bytes());
        machine.results(&version)[0]
    };
    let mut machine = Plan::new(1).machine();
    let mut state = machine.save_vcpu(0);
    let psci = state.firmware.iter_mut().find(|(name, _)| name == "psci").expect("it is named");
    let newest = std::mem::replace(&mut psci.1, 0x1_0000);
    assert!(newest > 0x1_0000, "KVM has a later PSCI than 1.0: {newest:#x}");
    assert_eq!(ask(&mut machine), newest);
    let mut older = Plan::new(1).machine();
    older.parts.vcpus[0].restore(&state).unwrap();
    assert_eq!(ask(&mut older), 0x1_0000);
}

#[test]
fn a_pending_serror_survives() {
    let mut machine = Plan::new(1).machine();
    let mut state = machine.save_vcpu(0);
    assert_eq!(state.serror, None);
    state.serror = Some(0x11);
    machine.parts.vcpus[0].restore(&state).unwrap();
    // A CPU without RAS has no syndrome.
    let ras = state.register(SystemRegister::new(3, 0, 0, 4, 0)).unwrap() >> 28 & 0xf != 0;
    assert_eq!(machine.save_vcpu(0).serror, Some(if ras { 0x11 } else { 0 }));
    state.serror = None;
    machine.parts.vcpus[0].restore(&state).unwrap();
    assert_eq!(machine.save_vcpu(0).serror, None, "a state without one takes it away");
}

#[test]
fn all_but_the_first_wait_powered_off() {
    let mut machine = Plan::new(2).machine();
    let power = |machine: &mut Machine| [0, 1].map(|n| machine.save_vcpu(n).power);
    assert_eq!(power(&mut machine), [PowerState::On, PowerState::Off]);
    let (list, stack) = (RAM + 0x1_0000, RAM + 0x2_0000);
    let end = Operation::End { doorbell: DEVICE };
    machine.write(list, &end.encode().to_bytes());
    assert_eq!(machine.results(&[Operation::StartCpu { cpu: 1, list, stack }]), [0]);
    assert_eq!(power(&mut machine), [PowerState::On, PowerState::On]);
    let state = machine.save_vcpu(1);
    let mut successor = machine.successor();
    successor.parts.vcpus[1].restore(&state).unwrap();
    assert!(same(&successor.save_vcpu(1), &state));
    // It goes on from where PSCI lets it begin.
    let mut device = Device(successor.parts.vcpus[1].kicker());
    assert_eq!(successor.parts.vcpus[1].run(&mut device).unwrap(), Exit::Kicked);
    machine.parts.vcpus[1].reset().unwrap();
    assert_eq!(power(&mut machine), [PowerState::On, PowerState::Off]);
}

#[test]
fn an_access_that_the_cpu_does_not_describe_is_named() {
    let mut machine = Plan::new(1).machine();
    // ldp x1, x2, [x0]
    machine.write(RAM, &0xa940_0801u32.to_le_bytes());
    machine.parts.vcpus[0].boot(&BootState { pc: RAM, x: [DEVICE, 0, 0, 0] }).unwrap();
    let mut device = Device(machine.parts.vcpus[0].kicker());
    let error = machine.parts.vcpus[0].run(&mut device).expect_err("KVM does not decode it");
    assert!(matches!(error, VcpuError::Emulation { vcpu: 0, rip: RAM, .. }), "{error}");
    assert!(error.to_string().contains("accesses 0xa000000, where no RAM is"), "{error}");
    assert!(error.registers().is_some_and(|text| text.contains("X0 000000000a000000")), "{error:?}");
}

#[test]
fn hostile_values_are_refused_or_mended_by_a_good_state() {
    let mut machine = Plan::new(1).machine();
    let good = machine.save_vcpu(0);
    let mut random = Random(0x8765_4321);
    let mut refused = 0;
    for _ in 0..100 {
        let mut state = good.clone();
        state.x = std::array::from_fn(|_| random.next());
        state.spsr = std::array::from_fn(|_| random.next());
        for _ in 0..4 {
            let value = random.next();
            match random.below(6) {
                0 => state.pstate = value,
                1 => state.firmware[0].1 = value,
                2 => state.serror = Some(value),
                3 => (state.simd.fpcr, state.simd.fpsr) = (value as u32, value as u32),
                _ => random.pick(&mut state.registers).1 ^= value,
            }
        }
        refused += u32::from(machine.parts.vcpus[0].restore(&state).is_err());
        machine.parts.vcpus[0].restore(&good).unwrap();
        assert!(same(&machine.save_vcpu(0), &good));
    }
    assert!(refused > 0, "identity among others can't be any value");
}
