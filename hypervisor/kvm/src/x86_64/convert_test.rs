use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn segments_go_to_kvm_and_back(selector: u16, base: u64, limit: u32, attributes: u16, unusable: bool) {
        // Bits 8 to 11 are the upper limit's in a descriptor, and no attributes.
        let attributes = attributes & 0xf0ff;
        let before = Segment { selector, base, limit, attributes, unusable };
        prop_assert_eq!(segment(&to_segment(&before)), before);
    }
}

#[test]
fn registers_go_to_kvm_and_back() {
    let general_before = GeneralRegisters { rax: 1, r15: 2, rip: 3, rflags: 2, ..Default::default() };
    assert_eq!(general(&to_regs(&general_before)), general_before);
    let cs = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xa09b, unusable: false };
    let gdt = DescriptorTable { base: 0x1000, limit: 0x1f };
    let before = SystemRegisters { cs, gdt, cr0: 0x8000_0011, cr4: 0x20, cr8: 3, efer: 0x500, ..Default::default() };
    let sregs = to_sregs(&before, 0xfee0_0900);
    assert_eq!(system(&sregs), before);
    assert_eq!((sregs.apic_base, sregs.cs.l, sregs.cs.g, sregs.cs.db), (0xfee0_0900, 1, 1, 0));
}

#[test]
fn a_dump_names_every_register() {
    let text = dump(&GeneralRegisters { rip: 0xfff0, ..Default::default() }, &SystemRegisters::default());
    for name in ["rax", "r15", "rip 000000000000fff0", "cr3", "efer", "ldt", "idt"] {
        assert!(text.contains(name), "{name} in {text}");
    }
}
