use super::*;

#[test]
fn hardware_is_told_by_a_whole_flag() {
    let cpuinfo = |flags: &str| format!("processor\t: 0\nflags\t\t: fpu {flags} lm\nvmx flags\t: x\n");
    assert_eq!(Virtualization::of_cpuinfo(&cpuinfo("vmx")), Virtualization::Vmx);
    assert_eq!(Virtualization::of_cpuinfo(&cpuinfo("svm")), Virtualization::Svm);
    assert_eq!(Virtualization::of_cpuinfo(&cpuinfo("svm_lock vmxoff")), Virtualization::Absent);
    assert_eq!(Virtualization::of_cpuinfo(""), Virtualization::Absent);
}

#[test]
fn a_group_is_found_by_its_number() {
    let text = "root:x:0:\nkvm:x:106:ann,bob\nbroken\n";
    assert_eq!(group_name(text, 106).as_deref(), Some("kvm"));
    assert_eq!(group_name(text, 1), None);
}

#[test]
fn the_mend_names_the_group_only_if_it_has_the_right() {
    let path = Path::new("/dev/kvm");
    let mend = |mode, group: &str| Rights { mode, group: Some(group.to_owned()) }.mend(path);
    assert!(mend(0o20660, "kvm").starts_with("sudo usermod -aG kvm $USER"));
    assert!(mend(0o20600, "kvm").starts_with("sudo setfacl"));
    assert!(mend(0o20660, "root").starts_with("sudo setfacl"));
    assert!(Rights { mode: 0o20660, group: None }.mend(path).starts_with("sudo setfacl"));
}

#[test]
fn available_memory_is_read() {
    assert_eq!(
        available_in("MemTotal:  24683724 kB\nMemAvailable:   23712000 kB\nBuffers: 1 kB\n"),
        Some(23_712_000 << 10)
    );
    for text in ["", "MemAvailable:", "MemAvailable: many kB", "MemAvailable: 18446744073709551615 kB"] {
        assert_eq!(available_in(text), None, "{text:?}");
    }
    assert!(available_memory().is_some_and(|bytes| bytes > 0));
}
