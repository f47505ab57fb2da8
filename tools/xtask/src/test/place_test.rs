use super::Kvm;
use crate::arch::Arch;

#[test]
fn hardware_is_told_by_the_flags() {
    let x86 = |flags: &str| Kvm::of(Some(Arch::X86_64), &format!("model name\t: x\nflags\t\t: fpu {flags} sse\n"));
    assert_eq!(x86("vmx"), Kvm::Hardware);
    assert_eq!(x86("svm"), Kvm::Hardware);
    assert_eq!(x86("vmxon svm_lock"), Kvm::WithoutHardware);
    assert_eq!(Kvm::of(Some(Arch::Aarch64), "Features : fp"), Kvm::Hardware);
    assert_eq!(Kvm::of(None, ""), Kvm::None);
}
