use super::*;

fn leaf(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, eax, ebx, ecx, edx, ..Default::default() }
}

#[test]
fn what_is_not_saved_is_not_shown() {
    let all = [u32::MAX; 4];
    let mut cpuid = Cpuid(vec![leaf(1, all), leaf(7, all), leaf(0x8000_0001, all), leaf(0x4000_0001, [0; 4])]);
    complete(&mut cpuid);
    assert_eq!(cpuid.get(1, 0).unwrap().ecx, !(1 << 5));
    assert_eq!(cpuid.get(7, 0).unwrap().ecx, !(1 << 7));
    assert_eq!(cpuid.get(0x8000_0001, 0).unwrap().ecx, !(1 << 2));
    assert_eq!(cpuid.get(0x4000_0001, 0).unwrap().eax, 1 << 15, "extended MSI destinations");
}

#[test]
fn amds_processors_have_no_ia32_arch_capabilities() {
    let of = |vendor: [u32; 3]| {
        let [ebx, edx, ecx] = vendor;
        let mut cpuid = Cpuid(vec![leaf(0, [7, ebx, ecx, edx]), leaf(7, [0, 0, 0, 1 << 29])]);
        complete(&mut cpuid);
        cpuid.shows_arch_capabilities()
    };
    assert!(!of([0x6874_7541, 0x6974_6e65, 0x444d_4163]));
    assert!(of([0x756e_6547, 0x4965_6e69, 0x6c65_746e]));
}

#[test]
fn leaves_go_to_kvm_and_back() {
    let indexed = CpuidEntry { leaf: 0xd, subleaf: 2, indexed: true, eax: 1, ebx: 2, ecx: 3, edx: 4 };
    let cpuid = Cpuid(vec![leaf(0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]), indexed]);
    let kvm = to_kvm(&cpuid).unwrap();
    assert_eq!(Cpuid(kvm.as_slice().iter().map(from_kvm).collect()), cpuid);
    assert!(is_amd(&cpuid));
    assert_eq!(address_bits(&cpuid), 36);
}
