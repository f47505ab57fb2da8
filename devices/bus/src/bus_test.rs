use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Answers each byte with its offset, and notes what it is given.
#[derive(Default)]
struct Echo(Mutex<Vec<(u32, u64, Vec<u8>)>>);

impl Device for Echo {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            *byte = offset as u8;
        }
    }
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.0.lock().unwrap().push((region, offset, data.to_vec()));
        if data == [0xaa] { Action::Relocate } else { Action::None }
    }
}

#[test]
fn accesses_reach_their_device_and_nobody_else() {
    let space = AddressSpace::ports();
    let (a, b) = (Arc::new(Echo::default()), Arc::new(Echo::default()));
    space.map("a", 0x60, 4, 1, a.clone()).unwrap();
    space.map("b", 0x64, 4, 2, b.clone()).unwrap();
    let mut four = [0; 4];
    assert!(space.read(0x60, &mut four));
    assert_eq!(four, [0, 1, 2, 3]);
    // Straddling goes by bytes, past the end is all ones.
    assert!(space.read(0x62, &mut four));
    assert_eq!(four, [2, 3, 0, 1]);
    assert!(space.read(0x66, &mut four));
    assert_eq!(four, [2, 3, 0xff, 0xff]);
    assert!(!space.read(0x68, &mut four));
    assert_eq!(four, [0xff; 4]);
    assert_eq!(space.write(0x65, &[7, 8]), Some(Action::None));
    assert_eq!(space.write(0x70, &[7]), None);
    assert_eq!(space.write(0x67, &[0xaa]), Some(Action::Relocate));
    assert_eq!(space.write(0x67, &[0xaa, 0]), Some(Action::Relocate));
    assert_eq!(*b.0.lock().unwrap(), [(2, 1, vec![7, 8]), (2, 3, vec![0xaa]), (2, 3, vec![0xaa])]);
    assert!(a.0.lock().unwrap().is_empty());
}

#[test]
fn ranges_are_checked() {
    let space = AddressSpace::ports();
    let device = Arc::new(Echo::default());
    let map = |base, size| space.map("x", base, size, 0, device.clone());
    map(0xfff0, 0x10).unwrap();
    assert!(matches!(map(0xfff8, 0x10), Err(BusError::BadRange { .. })));
    assert!(matches!(map(0, 0), Err(BusError::BadRange { .. })));
    assert!(matches!(map(u64::MAX, 2), Err(BusError::BadRange { .. })));
    assert!(matches!(map(0xffff, 1), Err(BusError::Overlap { .. })));
    assert_eq!(space.unmap(0xfff1), Err(BusError::NotMapped { space: "port space", base: 0xfff1 }));
    space.unmap(0xfff0).unwrap();
    map(0xffff, 1).unwrap();
    assert_eq!(space.mappings(), [Mapping { base: 0xffff, last: 0xffff, name: "x".into() }]);
}

proptest! {
    #[test]
    fn fuzz_accesses(base in any::<u64>(), size in any::<u64>(), address in any::<u64>(), len in 0usize..9) {
        let space = AddressSpace::memory();
        let _ = space.map("x", base, size, 0, Arc::new(Echo::default()));
        for address in [address, base, base.wrapping_add(size), base.wrapping_sub(1), u64::MAX] {
            let mut data = vec![0; len];
            space.read(address, &mut data);
            let _ = space.write(address, &data);
        }
    }

    #[test]
    fn values_are_little_endian(value in any::<u64>(), len in 1usize..9) {
        let mut data = vec![0; len];
        fill(&mut data, value);
        let kept = if len == 8 { value } else { value & ((1 << (len * 8)) - 1) };
        prop_assert_eq!(value_of(&data), kept);
    }
}
