//! Many vCPUs, their ids, their limits.

use skep_hypervisor::x86_64::VmConfig;
use skep_hypervisor::{Hypervisor, HypervisorError, Powers, VmRequest, X86_64};

use crate::machine::{Device, Machine, PINS, kvm, vcpu_config};

fn request(max_vcpus: u32, highest_gpa: u64) -> VmRequest {
    VmRequest { max_vcpus, highest_gpa, powers: Powers::all() }
}

#[test]
fn three_hundred_vcpus_have_their_apic_ids() {
    let ids: Vec<u32> = (0..300).map(|n| n * 2).collect();
    let mut machine = Machine::with(Powers::all(), &ids);
    assert_eq!(machine.parts.vcpus.len(), 300);
    for (vcpu, id) in machine.parts.vcpus.iter_mut().zip(ids) {
        let mut device = Device::of(&**vcpu);
        let mut state = vcpu.save(&mut device).unwrap();
        // In x2APIC mode the id register has all 32 bits.
        state.apic.base |= 1 << 10;
        state.apic.registers[2] = id;
        vcpu.restore(&state).unwrap();
        let state = vcpu.save(&mut device).unwrap();
        assert_eq!((state.apic.registers[2], state.apic.base >> 8 & 0xf), (id, 0xc | u64::from(id == 0)));
    }
}

#[test]
fn a_vcpu_can_be_added() {
    let machine = Machine::with(Powers::all(), &[0, 4]);
    let kvm = kvm();
    let builder = Hypervisor::<X86_64>::builder(&kvm, &request(1, 0xffff_ffff)).unwrap();
    let added = machine.parts.vm.add_vcpu(&vcpu_config(builder.capabilities(), 7)).unwrap().expect("KVM takes more");
    assert_eq!(added.index(), 2);
    let taken = machine.parts.vm.add_vcpu(&vcpu_config(builder.capabilities(), 4)).err().expect("the id is taken");
    assert!(taken.to_string().contains("make vCPU 3 (KVM's id 4)"), "{taken}");
}

#[test]
fn limits_are_errors_by_name() {
    let kvm = kvm();
    let limit = |request: &VmRequest| match Hypervisor::<X86_64>::builder(&kvm, request).err() {
        Some(HypervisorError::Limit { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(&request(1 << 20, 0)), "vCPUs");
    assert_eq!(limit(&request(1, u64::MAX)), "guest physical address bits");

    let builder = || Hypervisor::<X86_64>::builder(&kvm, &request(2, 0xffff_ffff)).unwrap();
    let build = |ids: [u32; 2]| {
        let builder = builder();
        let configs = ids.map(|id| vcpu_config(builder.capabilities(), id));
        builder.build(&VmConfig { ioapic_pins: PINS }, &configs).err().expect("it is refused").to_string()
    };
    assert!(build([0, 1 << 20]).contains("the highest APIC id"));
    assert!(build([3, 3]).contains("APIC id 3: no two vCPUs have the same"));
}

#[test]
fn capabilities_tell_what_the_backend_adds() {
    let kvm = kvm();
    let builder = Hypervisor::<X86_64>::builder(&kvm, &request(1, 0xffff_ffff)).unwrap();
    let capabilities = builder.capabilities();
    assert!(capabilities.max_vcpus >= 288 && capabilities.memory_slots >= 509 && capabilities.address_bits >= 36);
    assert!(capabilities.arch.apic_ids > 300 && capabilities.arch.extended_msi_destinations);
    assert!(capabilities.arch.cpuid.get(0x4000_0001, 0).unwrap().eax & 1 << 15 != 0);
    assert!(capabilities.arch.cpuid.get(1, 0).unwrap().ecx & 1 << 24 != 0, "TSC deadlines");
}

#[test]
fn the_report_speaks_of_this_host() {
    let findings = skep_kvm::report();
    for topic in ["KVM", "virtualization", "vCPUs", "memory regions", "powers", "APIC ids", "addresses", "TSC"] {
        assert_eq!(findings.iter().filter(|finding| finding.topic == topic).count(), 1, "{topic}");
    }
    assert!(
        findings.iter().all(|finding| finding.verdict < skep_hypervisor::report::Verdict::Missing),
        "{findings:#?}"
    );
}
