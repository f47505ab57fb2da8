//! What the devices' tests share: properties that every device must have.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use skep_bus::Device;
use skep_clock::Clock;
pub(crate) use skep_irq::testing::Log;
use skep_state::Component;
use skep_state::testing::spoilt;

use crate::{Requests, SerialOut};

/// Requests, noted as they are written in Rust.
pub(crate) fn requests(log: &Log) -> Requests {
    let log = log.clone();
    Requests::new(move |request| log.note(format!("{request:?}")))
}

/// Output, noted as text.
pub(crate) fn out(log: &Log) -> Box<dyn SerialOut> {
    Box::new(Out(log.clone()))
}

struct Out(Log);

impl SerialOut for Out {
    fn write(&mut self, bytes: &[u8]) {
        self.0.note(String::from_utf8_lossy(bytes));
    }
}

/// Something that the host does to the device, by a number.
pub(crate) type Poke = Box<dyn Fn(u64)>;

/// A device with all around it.
pub(crate) struct Rig<D> {
    pub(crate) device: Arc<D>,
    pub(crate) clock: Clock,
    pub(crate) log: Log,
    /// Region numbers and sizes.
    pub(crate) regions: &'static [(u32, u64)],
    pub(crate) poke: Poke,
}

impl<D: Device> Rig<D> {
    pub(crate) fn read(&self, region: u32, offset: u64) -> u8 {
        let mut data = [0xff];
        self.device.read(region, offset, &mut data);
        data[0]
    }

    pub(crate) fn write(&self, region: u32, offset: u64, value: u8) {
        let _ = self.device.write(region, offset, &[value]);
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.device.read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        let _ = self.device.write(0, offset, &value.to_le_bytes());
    }

    /// Does a step, and says all that it showed.
    pub(crate) fn step(&self, step: Step) -> (Vec<u8>, Vec<String>) {
        let mut data = vec![0xff; 1 << (step.width % 3)];
        let (region, size) = self.regions[step.region as usize % self.regions.len()];
        let offset = step.offset % (size - (data.len() as u64 - 1).min(size - 1));
        data.truncate((size - offset) as usize);
        match step.kind % 8 {
            0..=2 => self.device.read(region, offset, &mut data),
            3..=5 => {
                for (byte, value) in data.iter_mut().zip(step.value.to_le_bytes()) {
                    *byte = value;
                }
                let _ = self.device.write(region, offset, &data);
            }
            6 => (self.poke)(step.value),
            // Nanoseconds, as many small as large ones, up to four seconds.
            _ => self.clock.advance((step.value | 1 << 63) >> (32 + step.offset % 32)),
        }
        (data, self.log.take())
    }
}

/// A step of a random life: its fields are taken by what the device offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    kind: u8,
    region: u8,
    width: u8,
    offset: u64,
    value: u64,
}

pub(crate) fn steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![any::<u64>(), (0u64..256), (0u32..64).prop_map(|bit| 1 << bit)];
    let step = (any::<(u8, u8, u8, u64)>(), value).prop_map(|((kind, region, width, offset), value)| Step {
        kind,
        region,
        width,
        offset,
        value,
    });
    proptest::collection::vec(step, count)
}

/// A device that is saved and restored behaves as one that was not. The other one has had a life before, and its clock stands elsewhere.
pub(crate) fn twins<D: Device + Component>(
    build: impl Fn() -> Rig<D>,
    before: &[Step],
    other: &[Step],
    after: &[Step],
) {
    for elsewhere in [7, 1 << 50] {
        let (one, two) = (build(), build());
        before.iter().for_each(|step| drop(one.step(*step)));
        other.iter().for_each(|step| drop(two.step(*step)));
        let record = one.device.save_record();
        two.clock.set(elsewhere);
        two.clock.set_wall(one.clock.wall());
        two.device.restore_record(&record).unwrap();
        assert_eq!(two.device.save_record(), record, "what is restored is what is saved");
        one.log.take();
        two.log.take();
        for step in after {
            assert_eq!(one.step(*step), two.step(*step), "{step:?}");
        }
        assert_eq!(one.device.save_record(), two.device.save_record());
    }
}

/// A device that has caught up with a clock that stands shows nothing when it is saved, and has left its timers nothing.
pub(crate) fn catches_up<D: Device + Component>(build: impl Fn() -> Rig<D>, before: &[Step], nanos: u64) {
    let rig = build();
    before.iter().for_each(|step| drop(rig.step(*step)));
    rig.clock.set(rig.clock.now() + nanos);
    rig.clock.set_wall(rig.clock.wall() + i128::from(nanos));
    rig.device.catch_up_component();
    rig.log.take();
    let record = rig.device.save_record();
    rig.clock.run_due();
    assert_eq!(rig.device.save_record(), record);
    assert_eq!(rig.log.take(), Vec::<String>::new());
}

/// Each field of the saved state, set to whatever may hurt: it is refused, or the device lives on, and what it then saves is in order.
pub(crate) fn hostile<D: Device + Component>(build: impl Fn() -> Rig<D>, before: &[Step], after: &[Step]) {
    let rig = build();
    before.iter().for_each(|step| drop(rig.step(*step)));
    let record = rig.device.save_record();
    for spoilt in spoilt(&record) {
        let rig = build();
        if rig.device.restore_record(&spoilt).is_ok() {
            after.iter().for_each(|step| drop(rig.step(*step)));
            let saved = rig.device.save_record();
            build().device.restore_record(&saved).unwrap();
        }
    }
}

/// The properties that every device must have, over the rigs that `$rig` builds; the first is a fuzz target of this name.
macro_rules! device_properties {
    ($target:literal, $rig:path) => {
        skep_fuzzing::targets! {
            $target: fn fuzz_random_accesses(steps in $crate::testing::steps(0..400)) {
                let rig = $rig();
                for step in steps {
                    rig.step(step);
                }
            }
        }

        proptest::proptest! {
            #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

            #[test]
            fn saved_and_restored_behaves_the_same(
                before in $crate::testing::steps(0..120),
                other in $crate::testing::steps(0..60),
                after in $crate::testing::steps(1..120),
            ) {
                $crate::testing::twins($rig, &before, &other, &after);
            }

            #[test]
            fn what_has_caught_up_stands(
                before in $crate::testing::steps(0..120),
                nanos in 0_u64..4_000_000_000,
            ) {
                $crate::testing::catches_up($rig, &before, nanos);
            }
        }

        proptest::proptest! {
            #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2))]

            #[test]
            fn hostile_state_is_refused_or_harmless(
                before in $crate::testing::steps(0..120),
                after in $crate::testing::steps(8..32),
            ) {
                $crate::testing::hostile($rig, &before, &after);
            }
        }
    };
}
pub(crate) use device_properties;

/// Asserts that a changed state is refused by the name of the field.
pub(crate) fn refuses<S: skep_state::State>(state: &S, field: &str, change: impl FnOnce(&mut S)) {
    state.check().unwrap();
    let mut state = state.clone();
    change(&mut state);
    match state.check() {
        Err(skep_state::StateError::Invalid { field: named, .. }) => assert_eq!(named, field),
        other => panic!("`{field}` should have been refused: {other:?}"),
    }
}
