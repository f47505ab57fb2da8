use super::{Need, is_for};
use crate::arch::Arch;

#[test]
fn a_files_name_says_what_it_needs() {
    assert_eq!(Need::of("skep", "cli"), Need::Nothing);
    assert_eq!(Need::of("skep", "native_hello"), Need::AnyKvm);
    assert_eq!(Need::of("skep", "boot"), Need::Hardware);
    assert_eq!(Need::of("skep-kvm", "conformance"), Need::AnyKvm);
}

#[test]
fn a_files_name_says_whose_it_is() {
    assert!(is_for(Arch::Aarch64, "aarch64_backend"));
    assert!(!is_for(Arch::X86_64, "aarch64_backend"));
    assert!(is_for(Arch::X86_64, "boot"));
}
