use super::*;

fn leaf(leaf: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidEntry {
    CpuidEntry { leaf, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn subleaf(number: u32, subleaf: u32, eax: u32) -> CpuidEntry {
    CpuidEntry { indexed: true, subleaf, ..leaf(number, eax, 0, 0, 0) }
}

/// A host that offers every bit of every leaf.
fn everything(vendor: &[u8; 12]) -> Cpuid {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let mut leaves = vec![leaf(0, 0x24, word(0), word(8), word(4))];
    leaves.extend((1..=0x24).filter(|&n| ![4, 7, 0xb, 0xd, 0x1f].contains(&n)).map(|n| leaf(n, !0, !0, !0, !0)));
    // Level 1 data and instruction, level 2, level 3, end.
    for (index, eax) in [0x121, 0x122, 0x143, 0x163, 0].into_iter().enumerate() {
        leaves.push(subleaf(4, index as u32, eax));
        leaves.push(subleaf(0x8000_001d, index as u32, eax));
    }
    leaves.extend([0, 1].map(|index| CpuidEntry { ebx: !0, ecx: !0, edx: !0, ..subleaf(7, index, !0) }));
    leaves.extend([0, 1].map(|index| subleaf(0xd, index, !0)));
    leaves.extend([0, 1, 2, 3].map(|index| subleaf(0x1f, index, !0)));
    leaves.push(leaf(0x4000_0000, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d));
    leaves.push(leaf(0x4000_0001, !0, 0, 0, 0));
    leaves.push(leaf(0x8000_0000, 0x8000_0026, 0, 0, 0));
    leaves.extend((0x8000_0001..=0x8000_0026).filter(|&n| n != 0x8000_001d).map(|n| leaf(n, !0, !0, !0, !0)));
    Cpuid(leaves)
}

fn host(vendor: &[u8; 12]) -> Capabilities {
    Capabilities {
        cpuid: everything(vendor),
        arch_capabilities: 0x2b,
        apic_ids: 4096,
        extended_msi_destinations: true,
        tsc_khz: Some(2_500_000),
        tsc_scaling: false,
    }
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

fn options(sockets: u32, cores: u32, threads: u32) -> Options {
    Options { topology: Topology::new(sockets, cores, threads).unwrap(), pmu: false, machine_check: true }
}

fn guest(vendor: &[u8; 12], sockets: u32, cores: u32, threads: u32, index: u32) -> Cpuid {
    Identity::new(&host(vendor), &options(sockets, cores, threads)).unwrap().vcpu(index).cpuid
}

fn get(cpuid: &Cpuid, leaf: u32, subleaf: u32) -> CpuidEntry {
    *cpuid.get(leaf, subleaf).unwrap_or_else(|| panic!("no leaf {leaf:#x}"))
}

#[test]
fn each_cpu_has_its_own_apic_id() {
    let identity = Identity::new(&host(INTEL), &options(2, 3, 2)).unwrap();
    let config = identity.vcpu(11);
    assert_eq!(config.apic_id, 13);
    assert_eq!(get(&config.cpuid, 1, 0).ebx >> 24, 13);
    for (leaf, index) in [(0xb, 0), (0xb, 1), (0xb, 2), (0x1f, 0), (0x1f, 1)] {
        assert_eq!(get(&config.cpuid, leaf, index).edx, 13);
    }
    let far = Identity::new(&host(INTEL), &options(1, 300, 1)).unwrap().vcpu(299);
    assert_eq!((far.apic_id, get(&far.cpuid, 1, 0).ebx >> 24, get(&far.cpuid, 0xb, 0).edx), (299, 299 & 0xff, 299));
}

#[test]
fn the_topology_is_told_by_levels() {
    let cpuid = guest(INTEL, 2, 3, 2, 0);
    for leaf in [0xb, 0x1f] {
        let threads = get(&cpuid, leaf, 0);
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.indexed), (1, 2, 0x100, true));
        let cores = get(&cpuid, leaf, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        let end = get(&cpuid, leaf, 2);
        assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
        assert_eq!(cpuid.0.iter().filter(|entry| entry.leaf == leaf).count(), 3);
    }
    assert_eq!(get(&cpuid, 1, 0).ebx >> 16 & 0xff, 8);
    assert_eq!(get(&cpuid, 1, 0).edx >> 28 & 1, 1);
    let single = guest(INTEL, 4, 1, 1, 0);
    assert_eq!((get(&single, 1, 0).ebx >> 16 & 0xff, get(&single, 1, 0).edx >> 28 & 1), (1, 0));
    assert_eq!((get(&single, 0xb, 0).eax, get(&single, 0xb, 1).eax), (0, 0));
}

#[test]
fn caches_are_shared_as_the_topology_says() {
    let cpuid = guest(INTEL, 1, 3, 2, 0);
    for (index, sharing) in [(0, 1), (1, 1), (2, 1), (3, 7)] {
        let cache = get(&cpuid, 4, index).eax;
        assert_eq!((cache >> 14 & 0xfff, cache >> 26), (sharing, 3), "{index}");
    }
    assert_eq!(get(&cpuid, 4, 4).eax, 0);
    let amd = guest(AMD, 1, 3, 2, 0);
    let sharing: Vec<_> = (0..4).map(|index| get(&amd, 0x8000_001d, index).eax >> 14 & 0xfff).collect();
    assert_eq!(sharing, [1, 1, 1, 5]);
}

#[test]
fn amd_tells_the_topology_in_its_own_leaves_too() {
    let cpuid = guest(AMD, 2, 3, 2, 9);
    let sizes = get(&cpuid, 0x8000_0008, 0).ecx;
    assert_eq!((sizes & 0xff, sizes >> 12 & 0xf), (5, 3));
    let ids = get(&cpuid, 0x8000_001e, 0);
    assert_eq!((ids.eax, ids.ebx, ids.ecx), (11, 0x101, 1));
    assert_eq!(get(&cpuid, 0x8000_0001, 0).ecx >> 1 & 1, 1);
    assert_eq!(get(&cpuid, 1, 0).ebx >> 16 & 0xff, 6);
    let intel = guest(INTEL, 2, 3, 2, 9);
    assert!(intel.get(0x8000_001e, 0).is_none());
    assert_eq!(get(&intel, 0x8000_0008, 0).ecx & 0xf0ff, 0);
}

#[test]
fn what_skep_does_not_offer_is_hidden() {
    let cpuid = guest(INTEL, 1, 2, 1, 0);
    for hidden in [5, 9, 0xa, 0xf, 0x10, 0x12, 0x14, 0x16, 0x23, 0x8000_000a, 0x8000_001f, 0x8000_0022, 0x8000_0026] {
        assert!(cpuid.get(hidden, 0).is_none(), "{hidden:#x}");
    }
    let features = get(&cpuid, 1, 0);
    for bit in [2, 3, 4, 5, 6, 7, 8, 11, 15, 27] {
        assert_eq!(features.ecx >> bit & 1, 0, "leaf 1 ECX {bit}");
    }
    // x2APIC, TSC deadline, hypervisor; MCE and MCA.
    for (register, bit) in
        [(features.ecx, 21), (features.ecx, 24), (features.ecx, 31), (features.edx, 7), (features.edx, 14)]
    {
        assert_eq!(register >> bit & 1, 1, "leaf 1 {bit}");
    }
    assert_eq!(get(&cpuid, 6, 0), leaf(6, 4, 0, 0, 0));
    assert_eq!(get(&cpuid, 7, 0).ebx & (1 << 2 | 1 << 25), 0);
    assert_eq!((get(&cpuid, 7, 0).eax, get(&cpuid, 7, 1).ebx), (1, !0), "other subleaves stay");
    assert_eq!(get(&cpuid, 0x8000_0001, 0).ecx & (1 << 2), 0);
    assert_eq!(get(&cpuid, 0x8000_0007, 0), leaf(0x8000_0007, 0, 0, 0, 1 << 8));
    assert_eq!(get(&cpuid, 0xd, 1).eax, !0);
}

#[test]
fn options_show_what_they_name() {
    let show = |pmu, machine_check| {
        let options = Options { pmu, machine_check, ..options(1, 1, 1) };
        Identity::new(&host(INTEL), &options).unwrap().vcpu(0).cpuid
    };
    let pmu = show(true, false);
    assert_eq!(get(&pmu, 0xa, 0).eax, !0);
    assert_eq!(get(&pmu, 1, 0).ecx >> 15 & 1, 1);
    assert_eq!(get(&pmu, 1, 0).edx & (1 << 7 | 1 << 14), 0);
    assert_eq!(show(false, true).get(0xa, 0), None);
}

#[test]
fn the_highest_leaves_are_those_that_are_left() {
    let cpuid = guest(INTEL, 1, 1, 1, 0);
    assert_eq!(get(&cpuid, 0, 0).eax, 0x24);
    assert_eq!(get(&cpuid, 0x4000_0000, 0).eax, 0x4000_0010);
    assert_eq!(get(&cpuid, 0x8000_0000, 0).eax, 0x8000_0021);
    assert_eq!(get(&cpuid, 0, 0).ebx, 0x756e_6547, "the vendor stays");
    let bare = Capabilities { cpuid: Cpuid(vec![leaf(0, 1, 0, 0, 0), leaf(1, 0, 0, 0, 0)]), ..host(INTEL) };
    let cpuid = Identity::new(&bare, &options(1, 2, 1)).unwrap().vcpu(1).cpuid;
    assert_eq!((get(&cpuid, 0, 0).eax, get(&cpuid, 0xb, 1).ebx), (0x15, 2));
    assert!(cpuid.get(0x4000_0010, 0).is_none() && cpuid.get(0x1f, 0).is_none());
}

#[test]
fn the_hypervisor_offers_what_the_backend_does() {
    let cpuid = guest(INTEL, 1, 1, 1, 0);
    let features = get(&cpuid, 0x4000_0001, 0).eax;
    assert_eq!(features, !(1 << 16 | 1 << 17));
    let near = Capabilities { extended_msi_destinations: false, ..host(INTEL) };
    let cpuid = Identity::new(&near, &options(1, 1, 1)).unwrap().vcpu(0).cpuid;
    assert_eq!(get(&cpuid, 0x4000_0001, 0).eax >> 15 & 1, 0);
    assert_eq!(get(&cpuid, 0x4000_0010, 0), leaf(0x4000_0010, 2_500_000, 1_000_000, 0, 0));
}

#[test]
fn what_the_cpu_has_against_side_channels_is_told_where_cpuid_says_so() {
    let told = |host: &Capabilities| Identity::new(host, &options(1, 1, 1)).unwrap().vcpu(0).arch_capabilities;
    let mut host = host(INTEL);
    assert_eq!(told(&host), Some(0x2b));
    host.cpuid.get_mut(7, 0).unwrap().edx &= !(1 << 29);
    assert_eq!(told(&host), None);
}

#[test]
fn the_tsc_frequency_is_exact_or_not_told() {
    let told = |tsc_khz| {
        let host = Capabilities { tsc_khz, ..host(INTEL) };
        Identity::new(&host, &options(1, 1, 1)).unwrap().vcpu(0).cpuid.get(0x15, 0).copied()
    };
    assert_eq!(told(Some(2_500_000)), Some(leaf(0x15, 2, 5, 1_000_000_000, 0)));
    assert_eq!(told(Some(2_445_406)), None);
    assert_eq!(told(Some(0)), None);
    assert_eq!(told(None), None);
    for khz in (800_000..4_290_000).step_by(1_000) {
        let entry = told(Some(khz)).unwrap();
        let crystal_khz = entry.ecx / 1000;
        assert_eq!(crystal_khz.checked_mul(entry.ebx).unwrap() / entry.eax, khz);
    }
}

#[test]
fn apic_ids_have_the_backends_limits() {
    let error = |host: &Capabilities, options: &Options| Identity::new(host, options).unwrap_err();
    let host = host(AMD);
    assert_eq!(error(&host, &options(1, 4097, 1)), IdentityError::ApicIds { needed: 4096, allowed: 4096 });
    // Three cores take the room of four.
    assert_eq!(error(&host, &options(1025, 3, 1)), IdentityError::ApicIds { needed: 4098, allowed: 4096 });
    Identity::new(&host, &options(1, 4096, 1)).unwrap();
    let near = Capabilities { extended_msi_destinations: false, ..host };
    Identity::new(&near, &options(1, 255, 1)).unwrap();
    assert_eq!(error(&near, &options(1, 256, 1)), IdentityError::Unreachable(255));
    assert_eq!(
        error(&near, &options((1 << 16) + 1, (1 << 15) + 1, 1)),
        IdentityError::ApicIds { needed: u64::MAX, allowed: 4096 }
    );
}

/// A later CPU's leaves, subleaves and registers are hidden until somebody has looked at them.
#[test]
fn what_nobody_knows_is_not_shown() {
    let mut capabilities = host(AMD);
    let cpuid = &mut capabilities.cpuid;
    for first in [0, HYPERVISOR, 0x8000_0000, 0xc000_0000] {
        let new: Vec<_> = (first..first + 0x40).filter(|n| cpuid.get(*n, 0).is_none()).collect();
        cpuid.0.extend(new.into_iter().map(|n| leaf(n, !0, !0, !0, !0)));
    }
    (3..6).for_each(|index| cpuid.0.push(subleaf(7, index, !0)));
    let shown = Identity::new(&capabilities, &options(1, 2, 1)).unwrap().vcpu(1).cpuid;
    for entry in &shown.0 {
        let known = leaves::registers(entry).unwrap_or_else(|| panic!("{:#x}.{}", entry.leaf, entry.subleaf));
        let values = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        let stray = known.iter().zip(values).any(|(known, value)| *known == Register::Hidden && value != 0);
        assert!(!stray, "{:#x}.{}: {values:x?}", entry.leaf, entry.subleaf);
    }
    assert_eq!(get(&shown, 0x24, 0), leaf(0x24, 0, !0, 0, 0));
    assert_eq!((get(&shown, 0xc000_0000, 0).eax, get(&shown, 0xc000_0001, 0).edx), (!0, !0));
    assert!(shown.get(0xc000_0002, 0).is_none() && shown.get(0x25, 0).is_none() && shown.get(0x4000_0002, 0).is_none());
}
