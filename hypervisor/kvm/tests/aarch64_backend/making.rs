//! Making VMs: limits, addresses, affinities, each refused by name where this host can't.

use skep_guest_protocol::{Operation, Width};
use skep_hypervisor::aarch64::{GicConfig, GicVersion, VmConfig, registers};

use crate::machine::{CPU_INTERFACE, DISTRIBUTOR, FIRST_REGION, MORE_REDISTRIBUTORS, Plan, RAM, builder, gics};

/// The plan for this GIC, or nothing on a board that has none: then it is refused by name.
fn plan(gic: GicVersion, cpus: u32) -> Option<Plan> {
    let plan = Plan { gic, ..Plan::new(cpus) };
    if gics().iter().any(|support| support.version == gic) {
        return Some(plan);
    }
    let refusal = Plan { gic, ..Plan::new(1) }.build().err().expect("the board has no such GIC").to_string();
    let (lacks, has) = if gic == GicVersion::V2 { ("GICv2", "GICv3") } else { ("GICv3", "GICv2") };
    assert!(refusal.contains(&format!("lacks {lacks}: choose {has}")), "{refusal}");
    None
}

#[test]
fn a_gicv2_has_8_cpus() {
    let Some(plan) = plan(GicVersion::V2, 8) else { return };
    assert_eq!(plan.build().unwrap().vcpus.len(), 8);
    let refusal = Plan { gic: GicVersion::V2, ..Plan::new(9) }.build().err().expect("9 are too many").to_string();
    assert!(refusal.contains("vCPUs: 9 is more than the 8"), "{refusal}");
}

#[test]
fn redistributors_go_on_in_a_second_region() {
    let Some(plan) = plan(GicVersion::V3, FIRST_REGION + 7) else { return };
    let mut machine = plan.machine();
    // GICR_TYPER: the affinity in bits 63:32, the processor's number in 23:8, the last of a region in bit 4.
    let typer = |base| Operation::ReadMemory { address: base + 8, width: Width::Eight };
    let last = MORE_REDISTRIBUTORS + 6 * 0x2_0000;
    let results = machine.results(&[typer(MORE_REDISTRIBUTORS), typer(last)]);
    let numbers: Vec<_> = results.iter().map(|typer| (typer >> 32, typer >> 8 & 0xffff, typer >> 4 & 1)).collect();
    assert_eq!(numbers, [(0x70b, 123, 0), (0x801, 129, 1)]);
}

#[test]
fn more_vcpus_than_the_host_takes_are_refused_by_name() {
    let most = builder(1, RAM).unwrap().capabilities().max_vcpus;
    let refusal = builder(most + 1, RAM).err().expect("one too many").to_string();
    assert!(refusal.contains(&format!("vCPUs: {} is more than the {most}", most + 1)), "{refusal}");
}

#[test]
fn addresses_end_where_the_host_says() {
    let bits = builder(1, RAM).unwrap().capabilities().address_bits;
    assert!((32..=52).contains(&bits));
    if std::env::var("SKEP_LAB").is_ok_and(|board| board == "aarch64-40bit") {
        assert_eq!(bits, 40);
    }
    assert!(builder(1, (1 << bits) - 1).is_ok());
    let refusal = builder(1, 1 << bits).err().expect("beyond the last address").to_string();
    assert!(
        refusal.contains(&format!("guest physical address bits: {} is more than the {bits}", bits + 1)),
        "{refusal}"
    );
}

#[test]
fn a_vm_has_no_more_address_bits_than_it_needs() {
    // The distributor beyond them is what KVM refuses.
    let distributor = 1 << 36;
    let gic = match gics()[0].version {
        GicVersion::V2 => GicConfig::V2 { distributor, cpu_interface: CPU_INTERFACE },
        GicVersion::V3 => GicConfig::V3 { distributor, redistributors: Vec::new(), its: None },
    };
    let refusal = Plan::new(1).build_with(&VmConfig { gic, spis: 32 }).err();
    // A host of 40 bits is asked for no fewer.
    match (refusal, builder(1, RAM).unwrap().capabilities().address_bits) {
        (Some(error), bits) if bits > 40 => {
            assert!(error.to_string().contains("distributor at 0x1000000000"), "{error}");
        }
        (error, 40) => assert!(error.is_none_or(|error| !error.to_string().contains("distributor at"))),
        (None, bits) => panic!("a VM of {bits} bits"),
        (Some(error), bits) => panic!("{error} on a host of {bits} bits"),
    }
}

#[test]
fn bad_numbers_of_spis_are_refused_by_name() {
    for (spis, text) in [(0, "a GIC of 0 SPIs"), (33, "a GIC of 33 SPIs"), (992, "992 is more than the 960")] {
        let config = VmConfig { gic: GicConfig::V2 { distributor: DISTRIBUTOR, cpu_interface: CPU_INTERFACE }, spis };
        let config = match gics()[0].version {
            GicVersion::V2 => config,
            GicVersion::V3 => VmConfig {
                gic: GicConfig::V3 { distributor: DISTRIBUTOR, redistributors: Vec::new(), its: None },
                ..config
            },
        };
        let refusal = Plan::new(1).build_with(&config).err().expect("KVM has no such GIC").to_string();
        assert!(refusal.contains(text), "{refusal}");
    }
}

#[test]
fn affinities_can_be_chosen() {
    // One CPU in each cluster.
    let plan = Plan { mpidrs: vec![0x0, 0x100, 0x200], ..Plan::new(3) };
    let mut machine = plan.machine();
    for (n, affinity) in [0u64, 0x100, 0x200].into_iter().enumerate() {
        assert_eq!(machine.save_vcpu(n).register(registers::MPIDR_EL1), Some(1 << 31 | affinity));
        machine.parts.vcpus[n].reset().unwrap();
        assert_eq!(machine.save_vcpu(n).register(registers::MPIDR_EL1), Some(1 << 31 | affinity), "after a reset");
    }
    // The GIC knows the CPU by it.
    let state = machine.parts.interrupts.gic.save().unwrap();
    assert_eq!(state.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 0x100, 0x200]);
}

#[test]
fn the_report_tells_what_the_board_is() {
    let findings = skep_kvm::report();
    let text = |topic: &str| {
        let finding = findings.iter().find(|finding| finding.topic == topic);
        finding.unwrap_or_else(|| panic!("nothing is said of {topic}: {findings:?}")).text.clone()
    };
    for support in gics() {
        let name = if support.version == GicVersion::V2 { "GICv2" } else { "GICv3" };
        assert!(text("GIC").contains(&format!("{name} for up to {} vCPUs", support.max_vcpus)), "{}", text("GIC"));
    }
    let bits = builder(1, RAM).unwrap().capabilities().address_bits;
    assert_eq!(text("addresses"), format!("{bits} guest physical address bits"));
    match std::env::var("SKEP_LAB").as_deref() {
        Ok("aarch64-gicv2") => assert!(text("exits").contains("(no VHE)"), "{}", text("exits")),
        Ok("aarch64") => assert!(text("exits").contains("(VHE)"), "{}", text("exits")),
        _ => assert!(!text("exits").is_empty()),
    }
}
