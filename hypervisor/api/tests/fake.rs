//! The fake backend as a machine's tests use it: programs, lists outside of guest memory, failures, limits.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;
use std::sync::mpsc::channel;

use skep_guest_protocol::{Operation, Status, Width};
use skep_hypervisor::aarch64::{self, GicConfig};
use skep_hypervisor::fake::Fake;
use skep_hypervisor::x86_64::{self, VcpuConfig, VmConfig};
use skep_hypervisor::{
    Aarch64, Exit, Hypervisor, HypervisorError, MemoryIo, Parts, Powers, VcpuError, VmRequest, X86_64,
};
use skep_irq::MsiMessage;
use skep_memory::{Backing, MemoryError, MemoryMap, RamOptions, Region, RegionKind};

/// Writes accesses down as text; reads give their address.
#[derive(Default)]
struct Log(Vec<String>);

impl MemoryIo for Log {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.0.push(format!("read {gpa:#x}"));
        data.copy_from_slice(&gpa.to_le_bytes()[..data.len()]);
    }
    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        self.0.push(format!("write {gpa:#x} {data:02x?}"));
    }
}

impl x86_64::Io for Log {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.0.push(format!("in {port:#x}"));
        data.fill(0x5a);
    }
    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.0.push(format!("out {port:#x} {data:02x?}"));
    }
    fn end_of_interrupt(&mut self, vector: u8) {
        self.0.push(format!("end {vector:#x}"));
    }
    fn external_interrupt(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
}

impl aarch64::Io for Log {}

const REQUEST: VmRequest = VmRequest { max_vcpus: 2, highest_gpa: (1 << 32) - 1, powers: Powers::all() };

fn build(fake: &Fake<X86_64>, vcpus: u32) -> Parts<X86_64> {
    let builder = fake.builder(&REQUEST).unwrap();
    let cpuid = builder.capabilities().arch.cpuid.clone();
    let configs: Vec<_> =
        (0..vcpus).map(|apic_id| VcpuConfig { apic_id, cpuid: cpuid.clone(), arch_capabilities: None }).collect();
    builder.build(&VmConfig { ioapic_pins: 24 }, &configs).unwrap()
}

fn page(name: &str, gpa: u64) -> Region {
    let backing = Backing::new(0x1000, &RamOptions::default()).unwrap();
    Region::new(name, RegionKind::Ram, gpa, 0x1000, Arc::new(backing), 0).unwrap()
}

#[test]
fn a_list_needs_no_guest_memory() {
    let fake = Fake::new();
    let list = fake.operations(
        0,
        &[
            Operation::WritePort { port: 0x3f8, value: 0x41, width: Width::One },
            Operation::ReadPort { port: 0x3fd, width: Width::One },
            Operation::ReadSystemRegister { register: 0 },
            Operation::ReadMemory { address: 0xd000_0010, width: Width::Four },
            Operation::TripleFault,
        ],
    );
    let mut parts = build(&fake, 1);
    let mut log = Log::default();
    assert_eq!(parts.vcpus[0].run(&mut log).unwrap(), Exit::TripleFault);
    assert_eq!(log.0, ["out 0x3f8 [41]", "in 0x3fd", "read 0xd0000010"]);
    let list = list.lock().unwrap();
    let went: Vec<_> = list.iter().map(|op| (op.outcome().unwrap(), op.result)).collect();
    let done = |result| (Status::Done, result);
    assert_eq!(went, [done(0), done(0x5a), (Status::Unsupported, 0), done(0xd000_0010), done(0)]);
    assert_eq!(parts.vcpus[0].exits().port_writes, 1);
}

#[test]
fn a_program_takes_interrupts_and_decides_how_the_run_ends() {
    let fake = Fake::<X86_64>::new();
    let (sender, taken) = channel();
    fake.program(0, move |guest| {
        // The local APIC is enabled by its own register, as a guest does it.
        guest.write(0xfee0_00f0, 0x1ff, Width::Four);
        sender.send(guest.interrupt()?).unwrap();
        guest.io().port_write(0x604, &[0x34]);
        Some(Exit::PowerOff)
    });
    let mut parts = build(&fake, 1);
    let (mut vcpu, apics) = (parts.vcpus.remove(0), parts.interrupts.apics.clone());
    let kicker = vcpu.kicker();
    kicker.kick();
    assert_eq!(vcpu.run(&mut Log::default()).unwrap(), Exit::Kicked);
    let running = std::thread::spawn(move || vcpu.run(&mut Log::default()).unwrap());
    // Delivered as soon as the program has enabled its APIC; before, a message is lost, as on hardware.
    while taken.try_recv() != Ok(0x42) {
        apics.signal(MsiMessage { address: 0xfee0_0000, data: 0x42 }, None).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(running.join().unwrap(), Exit::PowerOff);
}

#[test]
fn a_scripted_failure_comes_once() {
    let fake = Fake::<X86_64>::new();
    fake.program(1, |_| Some(Exit::GuestPanic));
    let mut parts = build(&fake, 2);
    fake.fail_entry(1);
    match parts.vcpus[1].run(&mut Log::default()) {
        Err(VcpuError::EntryFailed { vcpu: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    // The second CPU still waits to be started: its program runs only then.
    parts.vcpus[1].kicker().kick();
    assert_eq!(parts.vcpus[1].run(&mut Log::default()).unwrap(), Exit::Kicked);
}

#[test]
fn a_cpu_without_a_list_says_so() {
    let mut parts = build(&Fake::new(), 1);
    let mut state = x86_64::BootState::default();
    state.general.rbx = 0x1000;
    parts.vcpus[0].boot(&state).unwrap();
    let error = parts.vcpus[0].run(&mut Log::default()).unwrap_err();
    assert!(error.to_string().contains("no operation at 0x1000"), "{error}");
    assert!(error.registers().is_some());
}

#[test]
fn memory_slots_are_finite() {
    let mut fake = Fake::new();
    fake.capabilities.memory_slots = 2;
    let parts = build(&fake, 1);
    let map = MemoryMap::new();
    map.listen(parts.vm.memory()).unwrap();
    map.add(page("first", 0)).unwrap();
    map.add(page("second", 0x1000)).unwrap();
    match map.add(page("third", 0x2000)) {
        Err(MemoryError::Listener { listener: "the fake", region, .. }) => assert_eq!(region, "third"),
        other => panic!("{other:?}"),
    }
    map.remove(0).unwrap();
    map.add(page("third", 0x2000)).unwrap();
}

#[test]
fn capabilities_are_the_tests_to_set() {
    let mut fake = Fake::<X86_64>::new();
    fake.capabilities.max_vcpus = 1;
    assert!(matches!(fake.builder(&REQUEST), Err(HypervisorError::Limit { wanted: 2, limit: 1, .. })));
    fake.capabilities.max_vcpus = 2;
    fake.capabilities.powers = Powers::DIRTY_LOG;
    assert_eq!(fake.builder(&REQUEST).unwrap().capabilities().powers, Powers::DIRTY_LOG);
    fake.capabilities.address_bits = 31;
    let refused = fake.builder(&REQUEST);
    assert!(matches!(refused, Err(HypervisorError::Limit { wanted: 0xffff_ffff, limit: 0x7fff_ffff, .. })));
}

#[test]
fn a_gic_refuses_the_state_of_another() {
    let fake = Fake::<Aarch64>::new();
    let build = |gic| {
        let cpu = aarch64::VcpuConfig { mpidr: 0, features: aarch64::Features::default() };
        let builder = fake.builder(&REQUEST).unwrap();
        builder.build(&aarch64::VmConfig { gic, spis: 32 }, &[cpu]).unwrap().interrupts.gic
    };
    let v2 = build(GicConfig::V2 { distributor: 0x800_0000, cpu_interface: 0x801_0000 });
    let v3 = build(GicConfig::V3 { distributor: 0x800_0000, redistributors: Vec::new(), its: Some(0x808_0000) });
    let state = v2.save().unwrap();
    let error = v3.restore(&state).unwrap_err();
    assert!(error.to_string().contains("version"), "{error}");
    let mut foreign = v3.save().unwrap();
    foreign.its.as_mut().unwrap().tables = "kvm-its-0".to_owned();
    let error = v3.restore(&foreign).unwrap_err();
    assert!(error.to_string().contains("kvm-its-0"), "{error}");
}
