use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use skep_irq::{LineTable, LineTarget, Polarity, Trigger};

use super::*;

const BASE: u64 = 0x0802_0000;

#[derive(Default)]
struct Gic(Mutex<Vec<u32>>);

impl LineTarget for Gic {
    fn set_level(&self, line: u32, asserted: bool) {
        if asserted {
            self.0.lock().unwrap().push(line);
        }
    }
}

fn frame() -> (Arc<Gic>, V2m) {
    let gic = Arc::new(Gic::default());
    let table = LineTable::new(gic.clone(), 32..=287);
    let lines = (160..168).map(|n| table.line(n, Trigger::Edge, Polarity::High).unwrap()).collect();
    (gic, V2m::new(V2mConfig { base: BASE, lines }))
}

fn read(frame: &V2m, offset: u64) -> u32 {
    let mut data = [0; 4];
    frame.read(0, offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn it_says_what_it_hands_out() {
    let (_, frame) = frame();
    assert_eq!(read(&frame, 0x008), 160 << 16 | 8);
    assert_eq!(read(&frame, 0xfcc), 0x43b);
    assert_eq!(frame.interrupts(), (160, 8));
}

#[test]
fn a_message_is_an_edge_each_time() {
    let (gic, frame) = frame();
    let message = |data| MsiMessage { address: BASE + 0x40, data };
    frame.signal(message(161), None).unwrap();
    frame.signal(message(161), Some(RequesterId(8))).unwrap();
    let _ = frame.write(0, 0x40, &167_u32.to_le_bytes());
    assert_eq!(*gic.0.lock().unwrap(), [161, 161, 167]);
}

#[test]
fn what_it_does_not_have_is_refused() {
    let (gic, frame) = frame();
    for (address, data) in [(BASE + 0x40, 159), (BASE + 0x40, 168), (BASE + 0x44, 160), (0xfee0_0000, 160)] {
        let error = frame.signal(MsiMessage { address, data }, None).unwrap_err();
        assert!(matches!(error, IrqError::NoMsiTarget { .. }), "{error}");
        let _ = frame.write(0, 0x40, &data.wrapping_add(1000).to_le_bytes());
    }
    assert!(gic.0.lock().unwrap().is_empty());
}

skep_fuzzing::targets! {
    "chipset-v2m": fn fuzz_random_accesses(accesses in proptest::collection::vec((0u64..SIZE - 8, any::<u64>(), 1usize..9), 0..64)) {
        let (_, frame) = frame();
        for (offset, value, width) in accesses {
            let mut data = value.to_le_bytes();
            frame.read(0, offset, &mut data[..width]);
            let _ = frame.write(0, offset, &value.to_le_bytes()[..width]);
        }
    }
}
