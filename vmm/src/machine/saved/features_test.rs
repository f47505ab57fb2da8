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
    assert_eq!(lacks, "the guest was shown what it does not have: cpuid 0x1.0:ecx bit 2, aes, avx");
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
    let mut names: Vec<_> = WORDS.iter().flat_map(|word| word.names).map(|(_, name)| *name).collect();
    assert!(WORDS.iter().flat_map(|word| word.names).all(|(bit, _)| *bit < 32));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
