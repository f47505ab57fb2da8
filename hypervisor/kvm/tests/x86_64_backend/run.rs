//! Running guest code: accesses, kicks, ends.

use std::sync::mpsc;
use std::thread;

use skep_hypervisor::x86_64::GeneralRegisters;
use skep_hypervisor::{Exit, VcpuError};

use crate::guest;
use crate::machine::{Access, DEVICE, Device, Machine, has_hardware};

#[test]
fn port_accesses_of_every_width_and_strings() {
    let mut machine = Machine::new();
    machine.write(0x8000, &[1, 2, 3, 4, 5, 6]);
    let registers = GeneralRegisters { rax: 0x4433_2211, rsi: 0x8000, rdi: 0x9000, ..Default::default() };
    let mut device = machine.boot(guest::ports(), registers);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let expected = [
        Access::Out(0x200, 1, 0x11),
        Access::Out(0x200, 2, 0x2211),
        Access::Out(0x200, 4, 0x4433_2211),
        Access::In(0x210, 1),
        Access::In(0x210, 2),
        Access::In(0x210, 4),
        Access::Out(0x220, 2, 0x0201),
        Access::Out(0x220, 2, 0x0403),
        Access::Out(0x220, 2, 0x0605),
        Access::In(0x230, 1),
        Access::In(0x230, 1),
        Access::In(0x230, 1),
        Access::In(0x230, 1),
    ];
    assert_eq!(device.accesses, expected);
    assert_eq!(machine.read(0x9000, 5), [0x81, 0x81, 0x81, 0x81, 0]);
    let general = machine.save().general;
    assert_eq!((general.rbx, general.rbp, general.rcx), (0x8100, 0x8483_8281, 0));
    assert_eq!((general.rsi, general.rdi), (0x8006, 0x9004));
    let exits = machine.vcpu().exits();
    assert_eq!(exits.total() - exits.kicks, exits.port_reads + exits.port_writes);
}

#[test]
fn memory_accesses_of_every_width() {
    let mut machine = Machine::new();
    let registers = GeneralRegisters { rax: 0x4433_2211, rdi: DEVICE, ..Default::default() };
    let mut device = machine.boot(guest::memory(), registers);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let expected = [
        Access::Write(DEVICE, 1, 0x11),
        Access::Write(DEVICE, 2, 0x2211),
        Access::Write(DEVICE, 4, 0x4433_2211),
        Access::Read(DEVICE, 1),
        Access::Read(DEVICE, 2),
        Access::Read(DEVICE, 4),
    ];
    assert_eq!(device.accesses, expected);
    let general = machine.save().general;
    assert_eq!((general.rbx, general.rcx, general.rdx), (0x81, 0x8281, 0x8483_8281));
    let exits = machine.vcpu().exits();
    assert_eq!((exits.memory_reads, exits.memory_writes, exits.port_writes, exits.kicks), (3, 3, 1, 1));
}

#[test]
fn an_msr_that_kvm_does_not_know_is_asked_of_the_machine() {
    let mut machine = Machine::new();
    let registers = GeneralRegisters { rcx: 0x1234_5678, ..Default::default() };
    let mut device = machine.boot(guest::msr(), registers);
    device.msr = Some(0x8877_6655_4433_2211);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let expected = [Access::ReadMsr(0x1234_5678), Access::WriteMsr(0x1234_5678, 0x8877_6655_4433_2212)];
    assert_eq!(device.accesses, expected);
    assert_eq!(machine.vcpu().exits().register_accesses, 2);
}

#[test]
fn an_msr_that_the_machine_refuses_faults() {
    let mut machine = Machine::new();
    let registers = GeneralRegisters { rcx: 0x1234_5678, ..Default::default() };
    let mut device = machine.boot(guest::msr(), registers);
    // There is no IDT: the fault has nowhere to go.
    assert_eq!(machine.run(&mut device), Exit::TripleFault);
    assert_eq!(device.accesses, [Access::ReadMsr(0x1234_5678)]);
}

#[test]
fn a_kick_before_a_run_ends_it_before_guest_code() {
    let mut machine = Machine::new();
    let mut device = machine.boot(guest::memory(), GeneralRegisters { rdi: DEVICE, ..Default::default() });
    let before = machine.save();
    device.kicker.kick();
    device.kicker.kick();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!((device.accesses.len(), machine.save().general), (0, before.general));
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(device.accesses.len(), 6, "two kicks were one");
}

#[test]
fn a_kick_from_another_thread_ends_a_run() {
    for code in [guest::spin(), guest::halt()] {
        let mut machine = Machine::new();
        let mut device = machine.boot(code, GeneralRegisters::default());
        let kicker = device.kicker.clone();
        let (sender, turns) = mpsc::channel();
        let runner = thread::spawn(move || {
            let mut exits = Vec::new();
            for turn in 0..100 {
                sender.send(turn).unwrap();
                exits.push(machine.run(&mut device));
            }
            exits
        });
        // Some of these come before the run that they end, some during it: none is lost.
        for _ in turns {
            kicker.kick();
        }
        assert_eq!(runner.join().unwrap(), [Exit::Kicked; 100]);
    }
}

#[test]
fn vcpus_that_wait_to_be_started_are_kicked_as_well() {
    let mut machine = Machine::with(skep_hypervisor::Powers::all(), &[0, 1]);
    let mut other = machine.parts.vcpus.remove(1);
    let kicker = other.kicker();
    let mut device = Device::of(&*other);
    let runner = thread::spawn(move || other.run(&mut device).unwrap());
    kicker.kick();
    assert_eq!(runner.join().unwrap(), Exit::Kicked);
}

#[test]
fn a_triple_fault_is_told() {
    let mut machine = Machine::new();
    let mut device = machine.boot(guest::triple_fault(), GeneralRegisters { rdi: 0x8000, ..Default::default() });
    assert_eq!(machine.run(&mut device), Exit::TripleFault);
    assert_eq!(machine.vcpu().exits().others, 1);
}

#[test]
fn code_that_is_no_memory_can_not_be_emulated() {
    let mut machine = Machine::new();
    let mut device = machine.boot(guest::jump(), GeneralRegisters { rdi: DEVICE, ..Default::default() });
    let error = machine.vcpu().run(&mut device).unwrap_err();
    let VcpuError::Emulation { vcpu: 0, rip, meaning, registers, .. } = &error else { panic!("{error}") };
    assert_eq!(*rip, DEVICE, "{error}");
    assert!(registers.contains("rip 00000000d0000000"), "{registers}");
    assert_eq!(meaning.contains("without hardware virtualization"), !has_hardware(), "{meaning}");
    assert_eq!(meaning.contains("cargo xtask lab"), !has_hardware(), "{meaning}");
}

#[test]
fn a_dump_shows_the_registers() {
    let mut machine = Machine::new();
    machine.boot(guest::halt(), GeneralRegisters { rbx: 0xabcd, ..Default::default() });
    let text = machine.vcpu().dump();
    assert!(text.contains("rbx 000000000000abcd") && text.contains("cs  0008"), "{text}");
}
