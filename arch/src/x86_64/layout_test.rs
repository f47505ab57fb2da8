use super::*;
use crate::layout::{MIN_ADDRESS_BITS, RAM_GRANULE};

const TIB: u64 = 1024 * GIB;

fn total(layout: &Layout) -> u64 {
    layout.ram.iter().map(|part| part.size).sum()
}

/// What holds for every layout.
fn check_sound(layout: &Layout, ram: u64, address_bits: u8) {
    assert_eq!(total(layout), ram);
    for part in layout.ram.iter().chain([&layout.pci_mmio64]) {
        assert_eq!(part.base % RAM_GRANULE, 0, "{layout:x?}");
        assert!(part.end() <= 1 << address_bits.min(52), "{layout:x?}");
        assert!(!part.overlaps(&HYPERTRANSPORT), "{layout:x?}");
    }
    let window = layout.pci_mmio64;
    assert!(window.size.is_power_of_two() && window.base.is_multiple_of(window.size));
    assert!(window.base >= layout.high_ram_end().unwrap_or(HIGH_RAM_BASE));
    assert!(layout.low_ram().end() < ECAM.base || ram < LOW_RAM_MAX && layout.low_ram().end() <= ECAM.base);
    let rows = layout.describe();
    for pair in rows.windows(2) {
        let inside = pair[0].region.encloses(&pair[1].region);
        assert!(pair[0].region.end() <= pair[1].region.base || inside, "{pair:x?}");
    }
}

#[test]
fn low_ram_follows_the_firmwares_rule() {
    let ram = |size| Layout::new(size, 40).unwrap().ram;
    assert_eq!(ram(256 * MIB), [AddressRange::new(0, 256 * MIB)]);
    assert_eq!(ram(0xb000_0000 - RAM_GRANULE), [AddressRange::new(0, 0xb000_0000 - RAM_GRANULE)]);
    assert_eq!(ram(0xb000_0000), [AddressRange::new(0, 2 * GIB), AddressRange::new(4 * GIB, 0x3000_0000)]);
    assert_eq!(ram(8 * GIB), [AddressRange::new(0, 2 * GIB), AddressRange::new(4 * GIB, 6 * GIB)]);
}

#[test]
fn ram_goes_around_hypertransport() {
    let layout = Layout::new(16 * TIB, 46).unwrap();
    assert_eq!(
        layout.ram,
        [
            AddressRange::new(0, 2 * GIB),
            AddressRange::between(4 * GIB, 0xfd_0000_0000),
            AddressRange::new(TIB, 16 * TIB - 2 * GIB - (0xfd_0000_0000 - 4 * GIB)),
        ]
    );
    assert_eq!(layout.pci_mmio64, AddressRange::new(16 * TIB + 256 * GIB, 256 * GIB));
    check_sound(&layout, 16 * TIB, 46);
}

#[test]
fn the_window_lies_above_ram_within_the_address_bits() {
    let window = |ram, bits| Layout::new(ram, bits).unwrap().pci_mmio64;
    assert_eq!(window(GIB, 36), AddressRange::new(32 * GIB, 32 * GIB));
    assert_eq!(window(GIB, 39), AddressRange::new(256 * GIB, 256 * GIB));
    assert_eq!(window(GIB, 48), AddressRange::new(256 * GIB, 256 * GIB));
    assert_eq!(window(600 * GIB, 40), AddressRange::new(640 * GIB, 128 * GIB));
    assert_eq!(window(600 * GIB, 46), AddressRange::new(TIB, 256 * GIB));
    assert_eq!(window(61 * GIB, 36), AddressRange::new(63 * GIB, GIB));
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let error = Layout::new(64 * GIB, 36).unwrap_err();
    assert_eq!(error, LayoutError::RamTooLarge { ram: 64 * GIB, address_bits: 36, max_ram: 61 * GIB });
    assert_eq!(
        error.to_string(),
        "65536M of memory do not fit into this host's 36 guest address bits; at most 62464M do"
    );
    assert_eq!(
        Layout::new(u64::MAX - RAM_GRANULE + 1, 52).unwrap_err(),
        LayoutError::RamTooLarge { ram: u64::MAX - RAM_GRANULE + 1, address_bits: 52, max_ram: max_ram(52) }
    );
}

#[test]
fn the_most_ram_that_is_named_fits_and_no_more() {
    assert_eq!(max_ram(MIN_ADDRESS_BITS - 1), 0);
    for bits in MIN_ADDRESS_BITS..=60 {
        let most = max_ram(bits);
        check_sound(&Layout::new(most, bits).unwrap(), most, bits);
        Layout::new(most + RAM_GRANULE, bits).unwrap_err();
    }
}

#[test]
fn every_size_is_sound() {
    let mut seen = 0;
    for bits in MIN_ADDRESS_BITS..=52 {
        for shift in 21..=44 {
            for ram in [1u64 << shift, 3 << shift, (1 << shift) - RAM_GRANULE, (1 << shift) + RAM_GRANULE] {
                if ram > 0 && ram <= max_ram(bits) {
                    check_sound(&Layout::new(ram, bits).unwrap(), ram, bits);
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 1000, "{seen}");
}

#[test]
fn tables_move_up_when_they_grow() {
    let layout = Layout::new(256 * MIB, 40).unwrap();
    assert_eq!(layout.acpi_tables(60 * KIB), Some(AddressRange::between(0xe_1000, 0xf_0000)));
    assert_eq!(layout.acpi_tables(60 * KIB + 1), Some(AddressRange::between(256 * MIB - 64 * KIB, 256 * MIB)));
    assert_eq!(layout.acpi_tables(256 * MIB), None);
    assert_eq!(layout.acpi_tables(u64::MAX), None);
}

#[test]
fn boot_data_does_not_overlap() {
    let areas = [boot::GDT, boot::PVH, boot::ZERO_PAGE, boot::SETUP_DATA, boot::PAGE_TABLES, boot::CMDLINE];
    for (i, a) in areas.iter().enumerate() {
        assert!(CONVENTIONAL.encloses(a));
        assert!(areas[i + 1..].iter().all(|b| !a.overlaps(b)), "{a:?}");
    }
}

#[test]
fn what_lies_between_ram_and_the_io_apic_is_pcis() {
    const HOLE: AddressRange = AddressRange::between(0x8000_0000, 0xfec0_0000);
    let around = |base, size| pci_mmio32_around(AddressRange::new(0, 0x8000_0000), AddressRange::new(base, size));
    let both = |ecam: AddressRange| {
        [AddressRange::between(HOLE.base, ecam.base), AddressRange::between(ecam.end(), HOLE.end())]
    };
    for ecam in [ECAM, AddressRange::new(0xe000_0000, 256 * MIB), AddressRange::new(0xa000_0000, 64 * MIB)] {
        assert_eq!(around(ecam.base, ecam.size), both(ecam));
    }
    // At its ends, beyond them, and where no firmware would have it.
    assert_eq!(around(0x8000_0000, 256 * MIB), [AddressRange::between(0x9000_0000, HOLE.end())]);
    assert_eq!(around(0xf000_0000, 256 * MIB), [AddressRange::between(HOLE.base, 0xf000_0000)]);
    for elsewhere in [0, 0x7000_0000, 4 * GIB, 0xf_f000_0000] {
        assert_eq!(around(elsewhere, 256 * MIB), [HOLE]);
    }
    let odd = pci_mmio32_around(AddressRange::new(0, 100 * MIB + 4 * KIB), ECAM);
    assert_eq!(odd[0], AddressRange::between(101 * MIB, ECAM.base));
}

#[test]
fn a_guest_that_is_told_of_fewer_address_bits_has_the_layout_of_a_host_that_has_them() {
    for (ram, bits) in [(GIB, 36), (8 * GIB, 39), (8 * GIB, 40), (2048 * GIB, 44)] {
        for host in bits..=52 {
            assert_eq!(Layout::new(ram, host).unwrap().within(bits).unwrap(), Layout::new(ram, bits).unwrap());
        }
        assert_eq!(Layout::new(ram, bits).unwrap().within(52).unwrap(), Layout::new(ram, bits).unwrap());
    }
    Layout::new(64 * GIB, 40).unwrap().within(36).unwrap_err();
}
