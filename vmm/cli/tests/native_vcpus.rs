//! Many vCPUs, counted in by the guest that is built in, and what they are shown of the CPU: on any /dev/kvm of either architecture.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use skep_guests::HELLO_X86_64;
use support::{Builder, is_x86_64};

/// Whether the host's GIC is a GICv2, which has 8 CPUs.
fn is_gicv2() -> bool {
    std::env::var("SKEP_LAB").is_ok_and(|board| board == "aarch64-gicv2")
}

fn count_in(cpus: u32) {
    let machine = Builder::command(&["hello", "cpus", "--memory", "128M", "--cpus", &cpus.to_string()]);
    machine.finish().expect_code(0).expect_console(&format!("cpus: {cpus} of {cpus}"));
}

#[test]
fn every_vcpu_is_counted_in() {
    [1, 2, 8].into_iter().for_each(count_in);
}

#[test]
fn there_is_no_built_in_limit() {
    if is_gicv2() {
        let end = Builder::command(&["hello", "cpus", "--cpus", "9"]).finish();
        end.expect_code(1).expect_log("9").expect_log("8");
    } else if is_x86_64() {
        // Ids beyond 255: x2APIC entries, and interrupts to all of them.
        count_in(300);
    } else {
        // More redistributors than the first region holds.
        count_in(130);
    }
}

#[test]
fn vcpus_beyond_the_hosts_limit_are_refused_by_number() {
    let end = Builder::command(&["hello", "cpus", "--cpus", "100000"]).finish();
    end.expect_code(1).expect_log("100000");
}

/// What a host tells of its CPU, and what several have in common; a guest is shown no more, and a host that has less is refused by name.
#[test]
fn a_guest_is_shown_the_cpu_that_is_asked_for() {
    let list = Builder::command(&["doctor", "--cpu-features"]).finish();
    if !is_x86_64() {
        list.expect_code(1).expect_log("lists of CPU features are for x86_64");
        return;
    }
    list.expect_code(0).expect_console("vendor=").expect_console(" phys-bits=").expect_console(" x2apic ");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let kernel = write("hello", HELLO_X86_64);
    let poorer = list.console.replace(" clflush ", " ");
    assert_ne!(poorer, list.console);
    let [all, poor, other] = [list.console.clone(), poorer.clone(), format!("{} fma4", list.console)]
        .iter()
        .zip(["all", "poor", "other"])
        .map(|(text, name)| write(name, text.as_bytes()))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let common = Builder::command(&["doctor", "--cpu-features", &all, &poor]).finish();
    assert_eq!(common.console, poorer);
    let run = |cpu: &str| Builder::command(&["run", "--kernel", &kernel, "--cpu", cpu, "--cpus", "2"]).finish();
    for cpu in ["x86-64-v1", &all, &poor] {
        run(cpu).expect_code(0).expect_console("problems: 0");
    }
    run(&other).expect_code(1).expect_log("fma4: KVM on this host has none");
    // What is in IA32_ARCH_CAPABILITIES is told where CPUID shows it.
    let told = list.console.split_whitespace().find_map(|word| word.strip_prefix("arch-capabilities-msr=0x"));
    assert_eq!(told.is_some(), list.console.contains(" arch-capabilities "));
    if let Some(told) = told {
        let value = u64::from_str_radix(told, 16).unwrap();
        let with = |value: u64| write("value", list.console.replace(told, &format!("{value:x}")).as_bytes());
        // PSCHANGE_MC_NO, which KVM says of each host.
        assert_eq!(value >> 6 & 1, 1);
        run(&with(value & !(1 << 6))).expect_code(0).expect_console("problems: 0");
        run(&with(value | 1 << 63)).expect_code(1).expect_log("arch-capabilities.63: KVM on this host has none");
    }
    run("x86-64-v9").expect_code(1).expect_log("names no level");
}
