//! Many vCPUs, counted in by the guest that is built in: on any /dev/kvm of either architecture.

mod support;

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
