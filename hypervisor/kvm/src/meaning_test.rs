use super::*;

#[test]
fn a_kvm_without_hardware_is_named_with_the_lab_as_the_way_out() {
    let host = Virtualization::Absent;
    for text in [emulation(host), entry_failed(host, 0x8000_0021), internal(host, 3).1] {
        assert!(text.contains("without hardware virtualization") && text.contains("cargo xtask lab"), "{text}");
    }
}

#[test]
fn a_failed_entry_says_whose_rules_it_breaks() {
    assert!(entry_failed(Virtualization::Vmx, 0x8000_0021).contains("registers"));
    assert!(entry_failed(Virtualization::Vmx, 7).contains("control field"));
    assert!(entry_failed(Virtualization::Svm, u64::MAX).contains("VMCB"));
}
