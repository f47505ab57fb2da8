use std::sync::Arc;

use skep_clock::Clock;

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses, requests};

fn rig() -> Rig<ResetControl> {
    let log = Log::default();
    let device = Arc::new(ResetControl::new(requests(&log)));
    Rig { device, clock: Clock::manual(0), log, regions: &[(0, 4), (0, 2)], poke: Box::new(|_| ()) }
}

device_properties!("chipset-reset-control", rig);

#[test]
fn a_rising_bit_resets() {
    let rig = rig();
    rig.write(0, 1, 0xf2);
    assert_eq!((rig.read(0, 1), rig.log.take().len()), (0x02, 0));
    rig.write(0, 1, 0x06);
    rig.write(0, 1, 0x0e);
    assert_eq!((rig.read(0, 1), rig.log.take()), (0x0e, vec!["Reset".to_owned()]));
    rig.device.reset();
    assert_eq!(rig.read(0, 1), 0);
    rig.write(0, 1, 0x04);
    assert_eq!(rig.log.take(), ["Reset"]);
}

#[test]
fn pci_configuration_addresses_reset_nothing() {
    let rig = rig();
    rig.write32(0, 0x8000_ff00);
    rig.write(0, 0, 0xff);
    rig.write(0, 3, 0xff);
    assert_eq!((rig.log.take().len(), rig.read32(0), rig.read(0, 1)), (0, 0xffff_ffff, 0));
    refuses(&rig.device.save(), "value", |s| s.value = 1);
}
