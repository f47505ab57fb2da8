use super::*;
use crate::layout::{MIN_ADDRESS_BITS, RAM_GRANULE};

const TIB: u64 = 1024 * GIB;

fn v3(ram: u64, address_bits: u8, cpus: u32) -> Layout {
    Layout::new(ram, address_bits, GicVersion::V3, cpus).unwrap()
}

/// What holds for every layout.
fn check_sound(layout: &Layout, ram: u64) {
    let top = 1u64 << layout.address_bits.min(52);
    assert_eq!(layout.ram, [AddressRange::new(RAM_BASE, ram)]);
    for region in layout.redistributors.iter().chain([&layout.ecam, &layout.pci_mmio64]) {
        assert!(region.end() <= top, "{layout:x?}");
        assert!(!region.overlaps(&layout.ram[0]));
    }
    assert!(layout.ecam.base.is_multiple_of(ECAM_SIZE));
    let window = layout.pci_mmio64;
    assert!(window.size.is_power_of_two() && window.base.is_multiple_of(window.size));
    let rows = layout.describe();
    for pair in rows.windows(2) {
        assert!(pair[0].region.end() <= pair[1].region.base, "{pair:x?}");
    }
}

#[test]
fn a_common_host_gets_the_well_known_places() {
    let layout = v3(GIB, 40, 4);
    assert_eq!(layout.ecam, AddressRange::new(0x40_1000_0000, 256 * MIB));
    assert_eq!(layout.pci_mmio64, AddressRange::new(512 * GIB, 512 * GIB));
    assert_eq!(layout.redistributors, [AddressRange::new(0x080a_0000, 4 * 0x2_0000)]);
    assert_eq!(v3(GIB, 48, 4), Layout { address_bits: 48, ..layout });
}

#[test]
fn redistributors_continue_above_ram() {
    let layout = v3(GIB, 40, 124);
    assert_eq!(layout.redistributors, [GIC_REDISTRIBUTORS, AddressRange::new(256 * GIB, REDISTRIBUTOR_SIZE)]);
    let layout = v3(GIB, 40, 1000);
    assert_eq!(layout.redistributors[1], AddressRange::new(256 * GIB, 877 * REDISTRIBUTOR_SIZE));
    assert_eq!(layout.ecam.base, 256 * GIB + 256 * MIB);
    assert_eq!(v3(GIB, 40, 123).redistributors, [GIC_REDISTRIBUTORS]);
    let GicConfig::V3 { redistributors, .. } = layout.gic_config(true) else { panic!("{layout:x?}") };
    assert_eq!(redistributors.iter().map(|part| part.count).collect::<Vec<_>>(), [123, 877]);
}

#[test]
fn everything_moves_up_with_ram() {
    let layout = v3(16 * TIB, 52, 1);
    assert_eq!(layout.ecam, AddressRange::new(16 * TIB + GIB + 256 * MIB, 256 * MIB));
    assert_eq!(layout.pci_mmio64, AddressRange::new(16 * TIB + 512 * GIB, 512 * GIB));
    check_sound(&layout, 16 * TIB);
}

#[test]
fn hosts_with_few_address_bits_get_smaller_windows() {
    assert_eq!(v3(GIB, 39, 1).pci_mmio64, AddressRange::new(384 * GIB, 128 * GIB));
    let layout = v3(16 * GIB, 36, 1);
    assert_eq!(layout.ecam, AddressRange::new(17 * GIB + 256 * MIB, 256 * MIB));
    assert_eq!(layout.pci_mmio64, AddressRange::new(32 * GIB, 32 * GIB));
    assert_eq!(v3(600 * GIB, 40, 1).pci_mmio64, AddressRange::new(768 * GIB, 256 * GIB));
}

#[test]
fn gicv2_has_no_redistributors_and_eight_cpus() {
    let layout = Layout::new(GIB, 40, GicVersion::V2, 8).unwrap();
    assert_eq!(layout.redistributors, []);
    check_sound(&layout, GIB);
    let error = Layout::new(GIB, 40, GicVersion::V2, 9).unwrap_err().to_string();
    assert_eq!(error, "GICv2 serves 8 vCPUs at most, and 9 are asked for; take fewer, or GICv3 where the host has it");
    assert!(matches!(
        Layout::new(GIB, 40, GicVersion::V3, u32::MAX),
        Err(LayoutError::TooManyCpus { limit: 65659, .. })
    ));
    Layout::new(GIB, 40, GicVersion::V3, 65659).unwrap();
}

#[test]
fn the_most_ram_that_is_named_fits_and_no_more() {
    assert_eq!(max_ram(MIN_ADDRESS_BITS - 1, GicVersion::V3, 1), 0);
    assert_eq!(max_ram(40, GicVersion::V2, 9), 0);
    assert_eq!(max_ram(40, GicVersion::V3, 1), 1022 * GIB);
    for bits in MIN_ADDRESS_BITS..=60 {
        for cpus in [1, 124, 3000, 65659] {
            let most = max_ram(bits, GicVersion::V3, cpus);
            check_sound(&v3(most, bits, cpus), most);
            let error = Layout::new(most + RAM_GRANULE, bits, GicVersion::V3, cpus).unwrap_err();
            assert!(matches!(error, LayoutError::RamTooLarge { max_ram, .. } if max_ram == most), "{error:?}");
        }
    }
}

#[test]
fn every_size_is_sound() {
    let mut seen = 0;
    for bits in MIN_ADDRESS_BITS..=52 {
        for shift in 21..=44 {
            for ram in [1u64 << shift, 3 << shift, (1 << shift) - RAM_GRANULE, (1 << shift) + RAM_GRANULE] {
                for (gic, cpus) in [(GicVersion::V2, 8), (GicVersion::V3, 1), (GicVersion::V3, 500)] {
                    if ram > 0 && ram <= max_ram(bits, gic, cpus) {
                        check_sound(&Layout::new(ram, bits, gic, cpus).unwrap(), ram);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert!(seen > 3000, "{seen}");
}

#[test]
fn interrupt_numbers_do_not_overlap() {
    let single = [spi::UART, spi::RTC, spi::GPIO, spi::GED_POWER];
    let pci = spi::PCI_FIRST..spi::PCI_FIRST + 4;
    for (i, one) in single.iter().enumerate() {
        assert!(!pci.contains(one) && !spi::GICV2M.contains(one) && !single[i + 1..].contains(one));
    }
    const { assert!(spi::GICV2M.end <= spi::count(GicVersion::V2)) };
    for gic in [GicVersion::V2, GicVersion::V3] {
        for number in [spi::UART, spi::RTC, spi::PCI_FIRST + 3, spi::GPIO, spi::GED_POWER] {
            assert!(number < spi::count(gic));
        }
        // KVM takes 32 at least, and whole words of bits.
        assert!(spi::count(gic) >= 32 && spi::count(gic).is_multiple_of(32));
    }
}
