use proptest::prelude::*;
use skep_state::State;

use super::*;
use crate::testing::*;
use crate::{FunctionState, GenericHostBridge, Mch};
use skep_state::testing::spoilt;

#[test]
fn what_is_not_there_is_all_ones() {
    let rig = rig();
    for address in [Address::new(0, 1), Address { function: 1, ..ONE }, TWO, Address::new(255, 31)] {
        assert_eq!(rig.read(address, 0), u32::MAX, "{address}");
        rig.write(address, 4, 2, 7);
    }
    assert_eq!(rig.read(Address::new(0, 0), 0), 0x29c0_8086);
    assert_eq!(rig.read(Address::new(0, 31), 0), 0x2918_8086);
    assert_eq!(rig.read(PORT, 0), 0x000c_1b36);
    assert_eq!(rig.read(ONE, 0), 0x1042_1af4);
    rig.root.place(&WINDOWS).unwrap();
    assert_eq!(rig.read(TWO, 0), 0x1042_1af4);
    assert_eq!(rig.read(Address::new(1, 1), 0), u32::MAX, "a link has one device");
    assert_eq!(rig.read(Address::new(2, 0), 0), u32::MAX, "an empty slot");
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let rig = placed();
    let mut data = [0; 4];
    Device::read(&*rig.root, ECAM_REGION, 1 << 20, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1042_1af4);
    let _ = Device::write(&*rig.root, PORTS_REGION, 0, &0x8001_0000u32.to_le_bytes());
    Device::read(&*rig.root, PORTS_REGION, 4, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1042_1af4);
    let mut two = [0; 2];
    Device::read(&*rig.root, PORTS_REGION, 6, &mut two);
    assert_eq!(u16::from_le_bytes(two), 0x1042);
    // Reserved bits read 0, and without the enable bit there are no configuration cycles.
    let _ = Device::write(&*rig.root, PORTS_REGION, 0, &0x7f01_0003u32.to_le_bytes());
    Device::read(&*rig.root, PORTS_REGION, 0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x0001_0000);
    Device::read(&*rig.root, PORTS_REGION, 4, &mut data);
    assert_eq!(data, [0xff; 4]);
    // Only a doubleword reaches CONFIG_ADDRESS.
    let _ = Device::write(&*rig.root, PORTS_REGION, 0, &[0xff]);
    Device::read(&*rig.root, PORTS_REGION, 0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x0001_0000);
}

#[test]
fn an_access_may_be_wide_or_astride() {
    let rig = placed();
    let mut data = [0; 8];
    rig.root.config_read(ONE, 0, &mut data);
    assert_eq!(data[..4], 0x1042_1af4u32.to_le_bytes());
    let mut data = [0; 4];
    rig.root.config_read(ONE, 2, &mut data);
    assert_eq!(data, [0x42, 0x10, 0x03, 0x00]);
    let _ = rig.root.config_write(ONE, 0x3b, &[0x55, 0x66]);
    assert_eq!(rig.read(ONE, 0x3c) & 0xff, 0x66);
    // Past the end of a function's space is nothing.
    rig.root.config_read(ONE, 0xffe, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
    let _ = rig.root.config_write(ONE, 0xffe, &[0xff; 8]);
}

#[test]
fn buses_are_where_the_guest_puts_them() {
    let rig = placed();
    rig.write(PORT, 0x18, 4, 0x0050_4000);
    assert_eq!(rig.read(Address::new(0x40, 0), 0), 0x1042_1af4);
    assert_eq!(rig.read(TWO, 0), u32::MAX);
    assert_eq!(rig.read(Address::new(0x41, 0), 0), u32::MAX);
    assert_eq!(rig.probes[1].attachment.dma.requester().0, 0x4000);
    // The first of two ports that claim a bus has it.
    rig.write(Address::new(0, FIRST_PORT + 1), 0x18, 4, 0x0040_4000);
    assert_eq!(rig.read(Address::new(0x40, 0), 0), 0x1042_1af4);
    rig.write(PORT, 0x18, 4, 0x003f_4000);
    assert_eq!(rig.read(Address::new(0x40, 0), 0), u32::MAX, "the last bus is before the first");
}

#[test]
fn places_are_taken_once() {
    let rig = rig();
    let taken = |place| rig.root.socket(place).err().unwrap().to_string();
    assert!(taken(PciPlace::Root(0)).contains("place root:0 is taken"));
    assert!(taken(PciPlace::Port(0)).contains("place port:0 is taken"));
    assert!(taken(PciPlace::Port(3)).contains("no place port:3"));
    assert!(taken(PciPlace::Root(32)).contains("no place root:32"));
    assert!(rig.root.add_port(0, 20).is_err());
    assert!(rig.root.add_port(9, FIRST_PORT).is_err());
    let (again, _) = probe(&socket(&rig.sink, PciPlace::Port(0)), &rig.log, "again", &config());
    assert!(matches!(rig.root.insert(again.clone()), Err(PciError::PlaceTaken(_))));
    assert!(matches!(rig.root.plug(again), Err(PciError::PlaceTaken(_))));
    let (again, _) = probe(&socket(&rig.sink, PciPlace::Root(5)), &rig.log, "again", &config());
    assert!(matches!(rig.root.plug(again), Err(PciError::NotPluggable(_))));
    assert!(matches!(rig.root.unplug(PciPlace::Port(1)), Err(PciError::PlaceEmpty(_))));
    assert!(matches!(rig.root.unplug(PciPlace::Root(INTEGRATED)), Err(PciError::NotPluggable(_))));
}

#[test]
fn pins_are_swizzled_to_the_lines() {
    let rig = placed();
    // Pin B: device 4 on bus 0 is on line 5, the device behind the port at 8 on line 1.
    rig.probes[0].attachment.interrupts.set_pin(true);
    rig.probes[1].attachment.interrupts.set_pin(true);
    assert_eq!(rig.log.take(), ["INTx 5+", "INTx 1+"]);
    assert_eq!(rig.read(ONE, 4) >> 19 & 1, 1, "interrupt status");
    rig.write(ONE, 4, 2, 0x0407);
    assert_eq!(rig.log.take(), ["INTx 5-"]);
    assert_eq!(rig.read(ONE, 4) >> 19 & 1, 1, "which the disable bit leaves alone");
    assert_eq!(RootComplex::line_index(3, Pin::D, 4), 2);
}

#[test]
fn a_snapshot_of_another_hierarchy_is_refused() {
    let rig = placed();
    let state = rig.root.save();
    let mut fewer = state.clone();
    fewer.functions.pop();
    assert!(rig.root.restore(&fewer).unwrap_err().to_string().contains("is in the snapshot"));
    let mut more = state.clone();
    let last = more.functions.last().unwrap().clone();
    more.functions.push(FunctionState { device: 30, ..last.clone() });
    assert!(rig.root.restore(&more).unwrap_err().to_string().contains("no function there"));
    let mut twice = state.clone();
    twice.functions.push(last);
    twice.check().unwrap_err();
    rig.root.restore(&state).unwrap();
    assert_eq!(rig.root.save(), state);
}

#[test]
fn reset_is_the_power_on_state() {
    let rig = placed();
    let fresh = self::rig().root.save();
    rig.write(ONE, 4, 2, 7);
    rig.probes[0].attachment.interrupts.set_pin(true);
    rig.root.reset();
    assert_eq!(rig.root.save(), fresh);
    rig.update();
    assert!(rig.mapped().is_empty());
    let log = rig.log.take();
    assert!(log.contains(&"one reset".to_owned()) && log.contains(&"two reset".to_owned()), "{log:?}");
}

skep_fuzzing::targets! {
    "pci-hierarchy": fn fuzz_a_hierarchy(steps in steps(0..400)) {
        let rig = placed();
        for step in &steps {
            rig.step(step);
        }
        rig.root.reset();
        rig.update();
        prop_assert!(rig.mapped().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn saved_and_restored_behaves_the_same(
        before in steps(0..150),
        other in steps(0..80),
        after in steps(1..150),
        generic: bool,
    ) {
        let rig = || {
            let bridge: Arc<dyn ChipsetFunction> = if generic { Arc::new(GenericHostBridge::default()) } else { Arc::new(Mch::default()) };
            rig_with(bridge, &[0]).placed()
        };
        let (one, two) = (rig(), rig());
        before.iter().for_each(|step| drop(one.step(step)));
        other.iter().for_each(|step| drop(two.step(step)));
        let record = one.root.save_record();
        two.root.restore_record(&record).unwrap();
        two.update();
        prop_assert_eq!(&two.root.save_record(), &record, "what is restored is what is saved");
        prop_assert_eq!(two.mapped(), one.mapped());
        one.log.take();
        two.log.take();
        for step in &after {
            prop_assert_eq!(one.step(step), two.step(step), "{:?}", step);
        }
        prop_assert_eq!(one.root.save_record(), two.root.save_record());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn hostile_state_is_refused_or_harmless(before in steps(0..100), after in steps(8..32)) {
        let rig = placed();
        before.iter().for_each(|step| drop(rig.step(step)));
        let saved = rig.root.save();
        for (index, function) in saved.functions.iter().enumerate() {
            for spoilt in spoilt(&function.record) {
                let mut state = saved.clone();
                state.functions[index].record = spoilt;
                let victim = self::rig();
                if victim.root.restore(&state).is_ok() {
                    victim.update();
                    after.iter().for_each(|step| drop(victim.step(step)));
                    // A guest that has switched a slot off has no device there: another machine than this one's.
                    if victim.root.save().functions.len() == saved.functions.len() {
                        self::rig().root.restore_record(&victim.root.save_record()).unwrap();
                    }
                }
            }
        }
    }
}
