//! CPU features that are there only if asked for: given and kept where the host has them, refused by name where it lacks them.

use skep_hypervisor::aarch64::{Capabilities, Features, SystemRegister};

use crate::machine::{Plan, RAM, builder};

const ID_AA64PFR0_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 4, 0);
const ID_AA64DFR0_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 5, 0);
const ID_AA64ISAR1_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 6, 1);

/// A feature: how to ask for it, whether the host has it, its name, and the register and field that show it.
struct Case {
    features: Features,
    offered: fn(&Capabilities) -> bool,
    name: &'static str,
    shown: (SystemRegister, u64),
}

fn cases() -> [Case; 3] {
    let none = Features::default();
    [
        Case {
            features: Features { sve: true, ..none },
            offered: |host| host.sve,
            name: "SVE",
            shown: (ID_AA64PFR0_EL1, 0xf << 32),
        },
        Case {
            features: Features { pointer_authentication: true, ..none },
            offered: |host| host.pointer_authentication,
            name: "pointer authentication",
            // APA, API, GPA, GPI.
            shown: (ID_AA64ISAR1_EL1, 0xff00_0ff0),
        },
        Case {
            features: Features { pmu: true, ..none },
            offered: |host| host.pmu,
            name: "a performance monitor (PMUv3)",
            shown: (ID_AA64DFR0_EL1, 0xf << 8),
        },
    ]
}

fn host() -> Capabilities {
    builder(1, RAM).unwrap().capabilities().arch.clone()
}

#[test]
fn features_are_given_or_refused_by_name() {
    let host = host();
    for case in cases() {
        let plan = Plan { features: case.features, ..Plan::new(2) };
        if !(case.offered)(&host) {
            let refusal = plan.build().err().expect("the host lacks it").to_string();
            assert!(refusal.contains(&format!("lacks {}: leave the CPU feature out", case.name)), "{refusal}");
            continue;
        }
        let (register, field) = case.shown;
        for (plan, on) in [(plan, true), (Plan::new(1), false)] {
            let value = plan.machine().save_vcpu(0).register(register).unwrap();
            assert_eq!(value & field != 0, on, "{}: {value:#x}", case.name);
        }
    }
}

#[test]
fn a_vcpu_with_all_features_of_the_host_survives() {
    let host = host();
    let features = Features { sve: host.sve, pointer_authentication: host.pointer_authentication, pmu: host.pmu };
    let plan = Plan { features, ..Plan::new(1) };
    let mut machine = plan.machine();
    let mut state = machine.save_vcpu(0);
    assert_eq!(state.simd.sve.is_some(), host.sve);
    // Everything that a register can hold: predicates and vectors of other bytes each.
    let bytes = |length: usize| (0..length).map(|n| (n * 7 + n / 256) as u8).collect::<Vec<_>>();
    match (&mut state.simd.sve, state.simd.sve_bits) {
        (Some(sve), Some(bits)) => {
            *sve = bytes(sve.len());
            let vectors = sve.chunks_exact(usize::from(bits) / 8).take(32);
            state.simd.v = vectors.flat_map(|vector| vector[..16].to_vec()).collect();
        }
        _ => state.simd.v = bytes(512),
    }
    state.counter = 0;
    let mut other = plan.machine();
    other.parts.vcpus[0].restore(&state).unwrap();
    let restored = other.save_vcpu(0);
    assert_eq!(skep_hypervisor::aarch64::VcpuState { counter: 0, ..restored }, state);
}

#[test]
fn a_state_with_sve_needs_a_vcpu_with_it() {
    let mut state = Plan::new(1).machine().save_vcpu(0);
    state.simd.sve_bits = Some(512);
    state.simd.sve = Some(vec![0; 32 * 64 + 17 * 8]);
    let refusal = Plan::new(1).machine().parts.vcpus[0].restore(&state).expect_err("this vCPU has none").to_string();
    assert!(refusal.contains("SVE vectors: 512 bits in the state, none here"), "{refusal}");
}
