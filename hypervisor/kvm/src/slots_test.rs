use skep_memory::{Backing, RamOptions};

use super::*;

const SIZE: u64 = 1 << 20;

/// Slots of a VM of its own.
fn slots(limit: u32) -> Slots {
    let vm = kvm_ioctls::Kvm::new().expect("this test needs /dev/kvm").create_vm().unwrap();
    Slots::new(Arc::new(vm), limit, 36)
}

fn region(kind: RegionKind, gpa: u64) -> Arc<Region> {
    let backing = Arc::new(Backing::new(SIZE, &RamOptions::default()).unwrap());
    Arc::new(Region::new("a region", kind, gpa, SIZE, backing, 0).unwrap())
}

#[test]
fn a_region_is_cut_to_what_slots_take() {
    assert_eq!(pieces(SIZE).collect::<Vec<_>>(), [(0, SIZE)]);
    assert_eq!(pieces(SLOT_BYTES).collect::<Vec<_>>(), [(0, SLOT_BYTES)]);
    let large: Vec<_> = pieces(2 * SLOT_BYTES + SIZE).collect();
    assert_eq!(large, [(0, SLOT_BYTES), (SLOT_BYTES, SLOT_BYTES), (2 * SLOT_BYTES, SIZE)]);
    const { assert!(SLOT_BYTES / PAGE_SIZE < 1 << 31, "KVM's limit") };
}

#[test]
fn a_dirty_page_of_the_host_is_as_many_of_ours() {
    let mut into = vec![1, 0, 0];
    spread(&[1 << 1 | 1 << 63, 1], 1, &mut into);
    assert_eq!(into, [1 | 1 << 1 | 1 << 63, 1, 0]);
    // 16 KiB, and a log longer than the memory that is looked at.
    let mut into = vec![0; 5];
    spread(&[1 << 1 | 1 << 63, 1 << 1 | 1 << 40], 4, &mut into);
    assert_eq!(into, [0xf0, 0, 0, 0xf << 60, 0xf0]);
    // 64 KiB.
    let mut into = vec![0; 2];
    spread(&[1 << 5], 16, &mut into);
    assert_eq!(into, [0, 0xffff << 16]);
}

#[test]
fn slots_are_finite_and_used_again() {
    let slots = slots(2);
    let regions = [0, 2, 4].map(|n| region(RegionKind::Ram, n * SIZE));
    slots.added(&regions[0]).unwrap();
    slots.added(&regions[1]).unwrap();
    let full = slots.added(&regions[2]).unwrap_err();
    assert!(full.contains("its 2 memory slots are all taken"), "{full}");
    slots.removed(&regions[0]).unwrap();
    slots.added(&regions[2]).unwrap();
    assert!(slots.removed(&regions[0]).is_err(), "it has gone");
}

#[test]
fn a_region_beyond_the_address_bits_is_refused() {
    let slots = slots(8);
    slots.added(&region(RegionKind::Ram, (1 << 36) - SIZE)).unwrap();
    let beyond = slots.added(&region(RegionKind::Ram, (1 << 36) - SIZE + 0x1000)).unwrap_err();
    assert_eq!(beyond, "it ends beyond the guest's 36 physical address bits");
}

#[test]
fn memory_stays_while_the_guest_can_reach_it() {
    let slots = slots(8);
    let ram = region(RegionKind::Ram, 0);
    slots.added(&ram).unwrap();
    assert_eq!(Arc::strong_count(&ram), 2);
    slots.removed(&ram).unwrap();
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn only_ram_is_logged_and_what_comes_later_is_as_well() {
    let slots = slots(8);
    let (ram, rom, late) =
        (region(RegionKind::Ram, 0), region(RegionKind::ReadOnly, SIZE), region(RegionKind::Ram, 2 * SIZE));
    slots.added(&ram).unwrap();
    slots.added(&rom).unwrap();
    let mut bits = vec![0; 4];
    assert!(slots.take(&ram, &mut bits).is_err(), "logging is off");
    slots.set_logging(true).unwrap();
    slots.added(&late).unwrap();
    slots.take(&ram, &mut bits).unwrap();
    slots.take(&late, &mut bits).unwrap();
    assert_eq!(bits, [0; 4], "nothing ran");
    assert!(slots.take(&rom, &mut bits).is_err());
    slots.set_logging(false).unwrap();
    assert!(slots.take(&ram, &mut bits).is_err());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_would_exhaust_the_host_is_refused() {
    assert_eq!(affordable(1 << 40, Some(24 << 30)), Ok(()));
    assert_eq!(affordable(15 << 40, None), Ok(()));
    let refusal = affordable(15 << 40, Some(24 << 30)).unwrap_err();
    assert!(refusal.contains("about 46080 MiB") && refusal.contains("has 24576 MiB available"), "{refusal}");
}
