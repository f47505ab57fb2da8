use std::collections::BTreeSet;

use super::*;

#[test]
fn each_is_listed_once() {
    let numbers: BTreeSet<_> = MSRS.iter().map(|(index, _)| *index).collect();
    assert_eq!(numbers.len(), MSRS.len());
    for own_field in [TSC, TSC_DEADLINE, 0x1b, 0xc000_0080, 0xc000_0100, 0xc000_0101] {
        assert!(!numbers.contains(&own_field), "{own_field:#x} has a field of its own");
    }
}

#[test]
fn names_are_found() {
    assert_eq!(name(0x277), "MSR 0x277 (IA32_PAT)");
    assert_eq!(name(0x405), "MSR 0x405 (machine check bank 1)");
    assert_eq!(name(0x281), "MSR 0x281 (IA32_MC1_CTL2)");
    assert_eq!(name(0x20f), "MSR 0x20f (variable-range MTRR)");
    assert_eq!(name(0x9999), "MSR 0x9999 (unknown)");
}
