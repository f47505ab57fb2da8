use super::*;

#[test]
fn regions_compare_by_addresses() {
    let a = AddressRange::new(0x1000, 0x1000);
    assert_eq!(a.end(), 0x2000);
    assert!(a.contains(0x1000) && a.contains(0x1fff) && !a.contains(0x2000) && !a.contains(0xfff));
    assert!(a.overlaps(&AddressRange::new(0x1fff, 1)) && !a.overlaps(&AddressRange::new(0x2000, 1)));
    assert!(!a.overlaps(&AddressRange::new(0x1800, 0)));
    assert!(a.encloses(&AddressRange::between(0x1800, 0x2000)) && !a.encloses(&AddressRange::between(0x1800, 0x2001)));
    assert_eq!(a.to_string(), "000000001000-000000001fff");
}

#[test]
fn windows_are_aligned_to_their_size() {
    let free = AddressRange::between(5 * GIB, 64 * GIB);
    assert_eq!(largest_window(free, GIB, 256 * GIB), Some(AddressRange::new(32 * GIB, 32 * GIB)));
    assert_eq!(largest_window(AddressRange::new(GIB + 1, GIB), GIB, GIB), None);
    assert_eq!(largest_window(AddressRange::between(u64::MAX - GIB, u64::MAX), GIB, 4 * GIB), None);
}

#[test]
fn errors_say_what_would_do() {
    assert_eq!(check(0, 40), Err(LayoutError::RamGranule(0)));
    assert_eq!(check(3 * MIB, 40), Err(LayoutError::RamGranule(3 * MIB)));
    assert_eq!(check(4 * MIB, 35), Err(LayoutError::AddressBits(35)));
    assert_eq!(check(4 * MIB, 255), Ok(1 << 52));
    let text = LayoutError::RamGranule(255 * MIB).to_string();
    assert!(text.ends_with("the nearest that is: 256M"), "{text}");
    assert!(LayoutError::RamGranule(0).to_string().ends_with(": 2M"));
    assert!(LayoutError::RamGranule(u64::MAX).to_string().contains("17592186044416M"));
}
