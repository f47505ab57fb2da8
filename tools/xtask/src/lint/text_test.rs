use super::super::source::Source;
use super::{LONGEST, check};

fn findings(path: &str, text: &str) -> Vec<(Option<usize>, String)> {
    let file = Source { path: path.into(), text: text.to_owned() };
    check(&file).into_iter().map(|finding| (finding.line, finding.message)).collect()
}

fn lines(path: &str, text: &str) -> Vec<Option<usize>> {
    findings(path, text).into_iter().map(|(line, _)| line).collect()
}

#[test]
fn the_hosts_names_stay_in_the_backend() {
    let text = "fn a() {}\n#[cfg(target_arch = \"x86_64\")]\nuse kvm_bindings::kvm_regs;\n// kvm_regs in words\nuse skep_kvm::Vm;\n";
    assert_eq!(lines("vmm/src/lib.rs", text), [Some(2), Some(3)]);
    assert_eq!(lines("hypervisor/kvm/src/lib.rs", text), []);
    assert_eq!(lines("guests/bare/src/lib.rs", text), []);
    assert_eq!(lines("guests/src/lib.rs", text), [Some(2), Some(3)]);
}

#[test]
fn manifests_are_read_as_well() {
    let text =
        "[dependencies]\nkvm-bindings.workspace = true # why\n[target.'cfg(target_arch = \"x86_64\")'.dependencies]\n";
    assert_eq!(lines("arch/Cargo.toml", text), [Some(2), Some(3)]);
    assert_eq!(lines("Cargo.toml", "kvm-bindings = \"1\"\n"), []);
}

#[test]
fn long_files_are_found_but_not_long_tests() {
    let text = "fn a() {}\n".repeat(LONGEST + 1);
    assert_eq!(lines("vmm/src/a.rs", &text), [None]);
    assert_eq!(lines("vmm/src/a_test.rs", &text), []);
    assert_eq!(lines("vmm/tests/a.rs", &text), []);
    assert_eq!(lines("vmm/src/b.rs", &"fn a() {}\n".repeat(LONGEST)), []);
}

#[test]
fn unsafe_code_has_a_reason() {
    assert_eq!(lines("vmm/src/a.rs", "//! Page.\n#![allow(unsafe_code)]\n\nuse a;\n"), [Some(2)]);
    assert_eq!(lines("vmm/src/a.rs", "#![allow(unsafe_code)] // Maps files.\n"), []);
    assert_eq!(lines("vmm/src/a.rs", "// Maps files.\n#[allow(unsafe_code)]\nmod map;\n"), []);
    assert_eq!(lines("vmm/src/a.rs", "#![allow(unsafe_code)]\n// Maps files.\n"), []);
    assert_eq!(lines("vmm/src/a.rs", "#![allow(unsafe_code, reason = \"maps files\")]\n"), []);
}

#[test]
fn tests_neither_sleep_nor_are_ignored() {
    let text = "#[test]\n#[ignore]\nfn a() {\n    std::thread::sleep(SECOND);\n}\n";
    assert_eq!(lines("vmm/tests/a.rs", text), [Some(2), Some(4)]);
    assert_eq!(lines("vmm/src/a.rs", "fn a() { std::thread::sleep(SECOND); }\n"), []);
}
