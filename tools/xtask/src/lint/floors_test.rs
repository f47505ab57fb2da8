use super::{ALL, FLOORS, check_one};
use std::path::Path;

fn found(name: &str, used: &[&str]) -> usize {
    check_one(Path::new("Cargo.toml"), name, used.iter().copied()).len()
}

#[test]
fn nothing_uses_what_stands_above() {
    assert_eq!(found("skep-chipset", &["skep-irq", "skep-bus"]), 0);
    assert_eq!(found("skep-chipset", &["skep-hypervisor", "skep-kvm"]), 2);
    assert_eq!(found("skep-vmm", &["skep-kvm"]), 1);
    assert_eq!(found("skep", &["skep-kvm", "skep-vmm"]), 0);
}

#[test]
fn a_new_crate_is_given_a_floor() {
    assert_eq!(found("skep-new", &[]), 1);
}

#[test]
fn the_table_stands_on_itself() {
    for (at, (name, may_use)) in FLOORS.iter().enumerate() {
        for other in *may_use {
            let below = FLOORS[..at].iter().any(|(one, _)| one == other);
            assert!(below, "{name} may use {other}, which is not below it");
        }
    }
    assert!(ALL.iter().all(|name| FLOORS.iter().any(|(one, _)| one == name)));
}
