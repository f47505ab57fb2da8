use std::sync::Arc;

use skep_clock::Clock;

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses, requests};

fn rig() -> Rig<Port92> {
    let log = Log::default();
    let device = Arc::new(Port92::new(requests(&log)));
    Rig { device, clock: Clock::manual(0), log, regions: &[(0, 1)], poke: Box::new(|_| ()) }
}

device_properties!("chipset-port92", rig);

#[test]
fn a_rising_bit_resets_and_a20_is_kept() {
    let rig = rig();
    assert_eq!(rig.read(0, 0), 2);
    rig.write(0, 0, 0xfc);
    assert_eq!((rig.read(0, 0), rig.log.take().len()), (0, 0));
    rig.write(0, 0, 3);
    rig.write(0, 0, 1);
    assert_eq!((rig.read(0, 0), rig.log.take()), (1, vec!["Reset".to_owned()]));
    rig.device.reset();
    refuses(&rig.device.save(), "value", |s| s.value = 4);
}
