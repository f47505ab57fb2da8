use super::*;

fn cpu(features: u32) -> Cpuid {
    let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
    let leaf = |leaf, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry { leaf, eax, ebx, ecx, edx, ..CpuidEntry::default() };
    Cpuid(vec![leaf(0, [0xd, ebx, ecx, edx]), leaf(1, [0x906ea, 0, features, 0])])
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

/// A CPU with all features, and state components of 0x100 bytes each from 0x240 on.
fn rich() -> Cpuid {
    let mut cpuid = cpu(0);
    for (leaf, subleaf, register, _) in WORDS {
        let indexed = leaf == 7 || leaf == 0xd;
        if cpuid.get(leaf, subleaf).is_none() {
            cpuid.set(CpuidEntry { leaf, subleaf, indexed, ..CpuidEntry::default() });
        }
        let entry = cpuid.get_mut(leaf, subleaf).unwrap();
        *[&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx][register] = u32::MAX;
    }
    cpuid.get_mut(0xd, 0).unwrap().eax = 0x2e7;
    cpuid.get_mut(0xd, 1).unwrap().ecx = 0x1800;
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
        List::level(level).unwrap().limit(&mut cpuid).map(|()| cpuid)
    };
    let two = limited("x86-64-v2", &rich()).unwrap();
    let text = List::of(&two).text();
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
    let text = List::of(&one).common(&List::parse(&List::of(&two).text()).unwrap()).unwrap().text();
    assert_eq!(text, "vendor=GenuineIntel\nsse3 0x1.0.ecx.2 sse4.2\n");
    for host in [&one, &two] {
        let mut shown = host.clone();
        List::parse(&text).unwrap().limit(&mut shown).unwrap();
        assert_eq!(shown.get(1, 0).unwrap().ecx, 1 | 1 << 20 | 1 << 2);
    }
    assert_eq!(List::parse(&text).unwrap().limit(&mut cpu(1 << 20)).unwrap_err(), "sse3, 0x1.0.ecx.2");
    let mut other = one.clone();
    other.get_mut(0, 0).unwrap().edx = 0;
    assert!(List::of(&one).common(&List::of(&other)).is_err());
    assert!(List::parse(&text).unwrap().limit(&mut other).unwrap_err().contains("GenuineIntel"));
    for wrong in ["sse3 warp", "0x1.0.ecx.32", "-", "?"] {
        assert!(List::parse(wrong).is_err(), "{wrong}");
    }
}
