use skep_arch::topology::Topology;
use skep_arch::x86_64::cpuid::{Identity, Options};
use skep_hypervisor::x86_64::Capabilities;

use super::*;

fn cpu(features: u32) -> Cpuid {
    let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
    let leaf = |leaf, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry { leaf, eax, ebx, ecx, edx, ..CpuidEntry::default() };
    Cpuid(vec![leaf(0, [0xd, ebx, ecx, edx]), leaf(1, [0x906ea, 0, features, 0])])
}

fn vcpu(cpuid: &Cpuid, arch_capabilities: Option<u64>) -> VcpuConfig {
    VcpuConfig { apic_id: 0, cpuid: cpuid.clone(), arch_capabilities }
}

fn list_of(cpuid: &Cpuid) -> List {
    List::of(&vcpu(cpuid, None))
}

#[test]
fn what_a_host_lacks_is_named() {
    let (old, new) = (cpu(1 | 1 << 20), cpu(1 | 1 << 20 | 1 << 25 | 1 << 28 | 1 << 2));
    compare(&old, &new).unwrap();
    let lacks = compare(&new, &old).unwrap_err();
    assert_eq!(lacks, "the guest was shown what it does not have: 0x1.0.ecx.2, aes, avx");
    let mut other = new.clone();
    other.get_mut(0, 0).unwrap().edx = u32::from_le_bytes(*b"oine");
    let text = compare(&new, &other).unwrap_err();
    assert_eq!(text, "the guest was shown one of `GenuineIntel`, and this is one of `Genuoinentel`");
    // A leaf that is not there at all has nothing.
    other = new.clone();
    other.remove(1);
    assert!(compare(&new, &other).unwrap_err().ends_with("sse4.2, aes, avx"));
}

#[test]
fn each_bit_has_one_name() {
    let mut all = names(&[u32::MAX; WORDS.len()]);
    assert!(WORDS.iter().all(|(.., names)| names.split(' ').count() <= 32));
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), count), (count, 32 * WORDS.len()));
}

/// The CPU with another value in a register.
fn set(cpuid: &mut Cpuid, leaf: u32, subleaf: u32, at: usize, value: u32) {
    let indexed = [7, 0xd, 0x1d, 0x1e, 0x24].contains(&leaf);
    if cpuid.get(leaf, subleaf).is_none() {
        cpuid.set(CpuidEntry { leaf, subleaf, indexed, ..CpuidEntry::default() });
    }
    *register(cpuid.get_mut(leaf, subleaf).unwrap(), at) = value;
}

/// A CPU with all features, and state components of 0x100 bytes each from 0x240 on.
fn rich() -> Cpuid {
    let mut cpuid = cpu(0);
    for (leaf, subleaf, register, _) in WORDS {
        set(&mut cpuid, leaf, subleaf, register, u32::MAX);
    }
    set(&mut cpuid, 0x8000_0008, 0, 0, 0x39_34);
    set(&mut cpuid, 0x24, 0, 1, 0x7_0002);
    set(&mut cpuid, 0x1d, 1, 0, 0x400);
    set(&mut cpuid, 0x1e, 0, 1, 0x40);
    cpuid.get_mut(0xd, 0).unwrap().eax = 0x2e7;
    cpuid.get_mut(0xd, 1).unwrap().ecx = 0x1800;
    (cpuid.get_mut(0xd, 0).unwrap().edx, cpuid.get_mut(0xd, 1).unwrap().edx) = (0, 0);
    for subleaf in [2, 5, 6, 7, 9, 11, 12] {
        let ebx = if subleaf < 10 { 0x140 + 0x100 * subleaf } else { 0 };
        cpuid.set(CpuidEntry { leaf: 0xd, subleaf, indexed: true, eax: 0x100, ebx, ..CpuidEntry::default() });
    }
    cpuid
}

#[test]
fn a_level_is_the_same_on_every_cpu_that_has_it() {
    let limited = |level: &str, cpuid: &Cpuid| {
        let mut cpuid = cpuid.clone();
        List::level(level).unwrap().limit_cpuid(&mut cpuid).map(|()| cpuid)
    };
    let two = limited("x86-64-v2", &rich()).unwrap();
    let text = list_of(&two).text();
    for (feature, is_there) in
        [("sse4.2", true), ("x2apic", true), ("ht", true), ("avx", false), ("xsave", false), ("spec-ctrl", false)]
    {
        assert_eq!(text.split_whitespace().any(|word| word == feature), is_there, "{feature}");
    }
    assert!(two.get(0xd, 0).is_none() && two.get(0xd, 2).is_none());
    for (level, components, size) in [("x86-64-v3", 0b111, 0x440), ("x86-64-v4", 0xe7, 0x940)] {
        let cpuid = limited(level, &rich()).unwrap();
        let of_xsave = cpuid.0.iter().filter(|entry| entry.leaf == 0xd).map(|entry| entry.subleaf).collect::<Vec<_>>();
        assert_eq!(of_xsave, if components == 7 { vec![0, 1, 2] } else { vec![0, 1, 2, 5, 6, 7] });
        assert_eq!((cpuid.get(0xd, 0).unwrap().eax, cpuid.get(0xd, 0).unwrap().ecx), (components, size));
        assert_eq!(cpuid.get(0xd, 1).unwrap().ecx, 0);
        assert!([0x1d, 0x1e, 0x24].iter().all(|leaf| cpuid.get(*leaf, 0).is_none()));
        assert_eq!(cpuid.get(0x8000_0008, 0).unwrap().eax, 0x30_34, "four levels of page tables");
        for (leaf, subleaf, register) in [(7, 1, 1), (7, 1, 3), (7, 2, 3), (0x8000_0007, 0, 3), (0x8000_0021, 0, 0)] {
            assert_eq!(registers(cpuid.get(leaf, subleaf))[register], 0, "{leaf:#x}.{subleaf}");
        }
        // Once more changes nothing.
        assert_eq!(limited(level, &cpuid).unwrap(), cpuid);
        assert_eq!(limited("x86-64-v2", &cpuid).unwrap(), two);
    }
    assert_eq!(limited("x86-64-v3", &two).unwrap_err().split(", ").next(), Some("fma"));
    assert!(List::level("x86-64-v5").is_none());
}

#[test]
fn what_hosts_have_in_common_is_a_list_for_both() {
    let [one, two] = [cpu(1 | 1 << 20 | 1 << 25 | 1 << 2), cpu(1 | 1 << 28 | 1 << 20 | 1 << 2)];
    let text = list_of(&one).common(&List::parse(&list_of(&two).text()).unwrap()).unwrap().text();
    assert_eq!(text, "vendor=GenuineIntel\nsse3 0x1.0.ecx.2 sse4.2\n");
    for host in [&one, &two] {
        let mut shown = host.clone();
        List::parse(&text).unwrap().limit_cpuid(&mut shown).unwrap();
        assert_eq!(shown.get(1, 0).unwrap().ecx, 1 | 1 << 20 | 1 << 2);
    }
    assert_eq!(List::parse(&text).unwrap().limit_cpuid(&mut cpu(1 << 20)).unwrap_err(), "sse3, 0x1.0.ecx.2");
    let mut other = one.clone();
    other.get_mut(0, 0).unwrap().edx = 0;
    assert!(list_of(&one).common(&list_of(&other)).is_err());
    assert!(List::parse(&text).unwrap().limit_cpuid(&mut other).unwrap_err().contains("GenuineIntel"));
    for wrong in ["sse3 warp", "0x1.0.ecx.32", "-", "?"] {
        assert!(List::parse(wrong).is_err(), "{wrong}");
    }
}

/// Each register of CPUID that a guest is shown is compared, or not about features.
#[test]
fn all_that_a_guest_is_shown_is_compared() {
    // A CPU with more than anybody knows.
    let mut cpuid = rich();
    for first in [0, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
        for leaf in first..first + 0x40 {
            let subleaves = match leaf {
                7 => 5,
                0xd => 32,
                0x1d | 0x1e | 0x24 => 3,
                _ => 1,
            };
            let values = if leaf == 0 { registers(cpuid.get(0, 0)) } else { [u32::MAX; 4] };
            for subleaf in 0..subleaves {
                values.iter().enumerate().for_each(|(at, value)| set(&mut cpuid, leaf, subleaf, at, *value));
            }
        }
    }
    let options = Options { topology: Topology::new(1, 2, 1).unwrap(), pmu: false, machine_check: false };
    let host = Capabilities {
        cpuid,
        arch_capabilities: 0,
        apic_ids: 4096,
        extended_msi_destinations: true,
        tsc_khz: Some(2_500_000),
        tsc_scaling: false,
    };
    let shown = Identity::new(&host, &options).unwrap().vcpu(0).cpuid;
    compare(&shown, &shown).unwrap();
    let (mut compared, mut told) = (0, 0);
    for entry in &shown.0 {
        for (at, known) in leaves::registers(entry).unwrap().into_iter().enumerate() {
            let value = registers(Some(entry))[at];
            for bit in (0..32).filter(|bit| value >> bit & 1 == 1) {
                let mut other = shown.clone();
                set(&mut other, entry.leaf, entry.subleaf, at, value & !(1 << bit));
                let differs = compare(&shown, &other).is_err();
                let place = format!("{}.{bit}", place(entry.leaf, entry.subleaf, at));
                let is_vendor = entry.leaf == 0 && at > 0;
                // Of leaf 0x80000008, EAX has 24 bits of figures.
                let is_figure = entry.leaf == 0x8000_0008 && at == 0 && bit >= 24;
                assert_eq!(differs, known != Register::Told && !is_figure || is_vendor, "{place}");
                *if differs { &mut compared } else { &mut told } += 1;
            }
        }
        let mut other = shown.clone();
        other.0.retain(|one| (one.leaf, one.subleaf) != (entry.leaf, entry.subleaf));
        let about_features = |known: &Register| matches!(known, Register::Features | Register::Same);
        let is_about_features = leaves::registers(entry).unwrap().iter().any(about_features);
        assert!(!is_about_features || compare(&shown, &other).is_err(), "{:#x}.{}", entry.leaf, entry.subleaf);
    }
    assert!(compared > 1000 && told > 500, "{compared} {told}");

    // And no list lets more through than it names.
    let mut none = shown.clone();
    List::default().limit_cpuid(&mut none).unwrap();
    assert_eq!((bits(&none)[HT.0], names(&bits(&none))), (HT.1, vec!["ht".to_owned()]));
    for entry in &none.0 {
        let values = registers(Some(entry)).into_iter().zip(leaves::registers(entry).unwrap()).enumerate();
        for (at, (_, known)) in values.filter(|(_, (value, _))| *value != 0) {
            let fixed = entry.leaf == 1 || entry.leaf == 0x8000_0008 && at == 0;
            assert!(known == Register::Told || fixed, "{}", place(entry.leaf, entry.subleaf, at));
        }
    }
}

#[test]
fn addresses_go_no_further_than_the_host_has() {
    let with = |eax| {
        let mut cpuid = cpu(1);
        set(&mut cpuid, 0x8000_0008, 0, 0, eax);
        cpuid
    };
    compare(&with(0x30_2e), &with(0x39_34)).unwrap();
    compare(&with(0x30_2e), &with(0x30_3034)).unwrap();
    for (was, is, text) in [
        (0x30_34, 0x30_2e, "the guest was shown 52 bits of physical addresses, and it has 46"),
        (0x39_2e, 0x30_2e, "the guest was shown 57 bits of linear addresses, and it has 48"),
        (0x34, 0x30_0034, "the guest was shown 52 bits of physical addresses that can be mapped, and it has 48"),
    ] {
        assert_eq!(compare(&with(was), &with(is)).unwrap_err(), text);
    }
    // A list of both hosts has the lesser figures, and shows them on either.
    let (one, two) = (with(0x39_34), with(0x30_2e));
    let list = list_of(&one).common(&list_of(&two)).unwrap().text();
    assert_eq!(list, "vendor=GenuineIntel phys-bits=46 linear-bits=48 guest-phys-bits=46\nsse3\n");
    for mut host in [one, two] {
        List::parse(&list).unwrap().limit_cpuid(&mut host).unwrap();
        assert_eq!((figures(&host)[..3].to_vec(), address_bits(&host)), (vec![46, 48, 46], Some(46)));
    }
    let lacking = List::parse(&list).unwrap().limit_cpuid(&mut with(0x30_27)).unwrap_err();
    assert!(lacking.starts_with("46 bits of physical addresses (it has 39), "), "{lacking}");
    for wrong in ["phys-bits=256", "phys-bits=", "bits=4"] {
        assert!(List::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(
        (List::parse("avx").unwrap().needed, address_bits(&cpu(1))),
        (List::parse("0x1.0.ecx.28").unwrap().needed, None)
    );
}

/// What a guest's memory has the shape of.
#[test]
fn sizes_and_places_of_state_are_the_same() {
    let (one, mut other) = (rich(), rich());
    set(&mut other, 0xd, 9, 1, 832);
    let text = compare(&one, &other).unwrap_err();
    assert_eq!(text, "the guest was shown 0xa40 in CPUID 0xd.9.ebx, and it has 0x340");
    let mut later = rich();
    set(&mut later, 0x33, 0, 2, 4);
    let text = compare(&later, &one).unwrap_err();
    assert_eq!(text, "the guest was shown what it does not have: 0x33.0.ecx");
}

/// What a list's guest reads in IA32_ARCH_CAPABILITIES goes by its value, not by CPUID's bit alone.
#[test]
fn a_list_tells_what_is_in_arch_capabilities() {
    assert_eq!(
        names(&std::array::from_fn(|at| if at == ARCH_CAPABILITIES.0 { ARCH_CAPABILITIES.1 } else { 0 })),
        ["arch-capabilities"]
    );
    let (rdcl_no, rsba, mds_no) = (1 << 0, 1 << 2, 1 << 5);
    let mut cpuid = cpu(1);
    set(&mut cpuid, 7, 0, 3, 1 << 29 | 1 << 4);
    let host = |capabilities| vcpu(&cpuid, Some(capabilities));
    let one = List::of(&host(rdcl_no | mds_no));
    let told = "vendor=GenuineIntel arch-capabilities-msr=0x21\nsse3 fsrm arch-capabilities\n";
    assert_eq!(one.text(), told);
    let common = |list: &str| List::of(&host(rdcl_no | mds_no)).common(&List::parse(list).unwrap()).unwrap().text();
    assert_eq!(common(told), told);
    let list = common(&List::of(&host(mds_no | rsba)).text());
    assert_eq!(list, "vendor=GenuineIntel arch-capabilities-msr=0x24\nsse3 fsrm arch-capabilities\n");
    // One that does not say what is in it, as an older version's, takes it out.
    let silent = "vendor=GenuineIntel\nsse3 fsrm arch-capabilities\n";
    assert_eq!(common(silent), "vendor=GenuineIntel\nsse3 fsrm\n");

    assert_eq!(common("vendor=GenuineIntel sse3 arch-capabilities-msr=0x21"), "vendor=GenuineIntel\nsse3\n");

    let limited = |list: &str, host: &VcpuConfig| {
        let mut host = host.clone();
        List::parse(list)
            .unwrap()
            .limit(&mut host)
            .map(|()| (host.cpuid.shows_arch_capabilities(), host.arch_capabilities))
    };
    for capabilities in [rdcl_no | mds_no, mds_no | rsba] {
        assert_eq!(limited(&list, &host(capabilities)), Ok((true, Some(mds_no | rsba))), "{capabilities:#x}");
        assert_eq!(limited(silent, &host(capabilities)), Ok((false, None)));
        assert_eq!(limited("sse3 arch-capabilities-msr=0x20", &host(capabilities)), Ok((false, None)));
    }
    assert_eq!(limited(&list, &host(rdcl_no | rsba)), Err("arch-capabilities.mds-no".to_owned()));
    assert_eq!(limited(told, &host(rdcl_no | mds_no | rsba)), Err("a CPU without arch-capabilities.rsba".to_owned()));
    let mut bare = vcpu(&cpuid, None);
    set(&mut bare.cpuid, 7, 0, 3, 1 << 4);
    assert_eq!(limited(&list, &bare), Err("arch-capabilities".to_owned()));
    assert_eq!(limited("?arch-capabilities arch-capabilities-msr=0x0", &bare), Ok((false, None)));
    let mut level = host(rdcl_no);
    List { needed: Bits::default(), ..List::level("x86-64-v1").unwrap() }.limit(&mut level).unwrap();
    assert_eq!((level.cpuid.shows_arch_capabilities(), level.arch_capabilities), (false, None));
    for wrong in ["arch-capabilities-msr=", "arch-capabilities-msr=12", "arch-capabilities-msr=0x10000000000000000"] {
        assert!(List::parse(wrong).err().unwrap().contains("0x"), "{wrong}");
    }
}
