use super::*;

fn text(errno: i32, host: Virtualization) -> String {
    unavailable(Path::new(PATH), io::Error::from_raw_os_error(errno), host, None).to_string()
}

#[test]
fn each_refusal_names_its_mend() {
    assert!(text(libc::ENOENT, Virtualization::Vmx).contains("try: sudo modprobe kvm_intel"));
    assert!(text(libc::ENOENT, Virtualization::Svm).contains("try: sudo modprobe kvm_amd"));
    let absent = text(libc::ENOENT, Virtualization::Absent);
    assert!(absent.contains("cargo xtask lab") && absent.contains("nested virtualization"), "{absent}");
    assert!(text(libc::EMFILE, Virtualization::Vmx).contains("ulimit -n"));
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let error = Kvm::open(Path::new("/nowhere/kvm")).err().expect("there is nothing at this path");
    assert!(error.to_string().starts_with("can't open /nowhere/kvm: No such file"), "{error}");
}

#[test]
fn a_file_that_is_no_kvm_is_refused() {
    let error = Kvm::open(Path::new("/dev/null")).err().expect("it has no API version");
    assert!(matches!(error, HypervisorError::Missing { .. }), "{error}");
}
