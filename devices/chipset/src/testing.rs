//! What the devices' tests share: a wire that notes what happens on it, and properties that every device must have.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use skep_bus::Device;
use skep_clock::Clock;
use skep_irq::{IrqLine, LineDescription, LineTarget, Polarity, Trigger};
use skep_state::{Component, Record};

use crate::{Requests, SerialOut};

/// Everything a device does to the outside, in its order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn note(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    /// What has happened since it was last asked.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// A line whose changes are noted as `NAME+` and `NAME-`.
    pub(crate) fn line(&self, name: &'static str) -> IrqLine {
        let description = LineDescription { number: 0, trigger: Trigger::Level, polarity: Polarity::High };
        IrqLine::to(Arc::new(Wire { name, log: self.clone() }), description)
    }

    /// Requests, noted as they are written in Rust.
    pub(crate) fn requests(&self) -> Requests {
        let log = self.clone();
        Requests::new(move |request| log.note(format!("{request:?}")))
    }

    /// Output, noted as text.
    pub(crate) fn out(&self) -> Box<dyn SerialOut> {
        Box::new(Out(self.clone()))
    }
}

struct Wire {
    name: &'static str,
    log: Log,
}

impl LineTarget for Wire {
    fn set_level(&self, _line: u32, asserted: bool) {
        self.log.note(format!("{}{}", self.name, if asserted { '+' } else { '-' }));
    }
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

/// Each field of the saved state, set to whatever may hurt: it is refused, or the device lives on, and what it then saves is in order.
pub(crate) fn hostile<D: Device + Component>(build: impl Fn() -> Rig<D>, before: &[Step], after: &[Step]) {
    let rig = build();
    before.iter().for_each(|step| drop(rig.step(*step)));
    let record = rig.device.save_record();
    let leaves = leaves(&record.body);
    assert!(!leaves.is_empty());
    for leaf in leaves {
        for value in HOSTILE {
            let mut body = record.body.clone();
            body.splice(leaf.clone(), value.iter().copied());
            let rig = build();
            if rig.device.restore_record(&Record { body, ..record.clone() }).is_ok() {
                after.iter().for_each(|step| drop(rig.step(*step)));
                let saved = rig.device.save_record();
                build().device.restore_record(&saved).unwrap();
            }
        }
    }
}

/// CBOR of 0, 1, 2, 7, 0x10, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 2^63 - 1, 2^64 - 1, -1, false, true, null.
const HOSTILE: &[&[u8]] = &[
    &[0x00],
    &[0x01],
    &[0x02],
    &[0x07],
    &[0x10],
    &[0x18, 0x7f],
    &[0x18, 0x80],
    &[0x18, 0xff],
    &[0x19, 0x01, 0x00],
    &[0x19, 0x7f, 0xff],
    &[0x19, 0xff, 0xff],
    &[0x1a, 0x7f, 0xff, 0xff, 0xff],
    &[0x1a, 0xff, 0xff, 0xff, 0xff],
    &[0x1b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x20],
    &[0xf4],
    &[0xf5],
    &[0xf6],
];

/// Where the values (not the field numbers) of a CBOR item stand (RFC 8949 section 3).
fn leaves(body: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let end = walk(body, 0, &mut found);
    assert_eq!(end, body.len());
    found
}

fn walk(body: &[u8], at: usize, found: &mut Vec<Range<usize>>) -> usize {
    let extra = match body[at] & 0x1f {
        0..=23 => 0,
        short @ 24..=27 => 1usize << (short - 24),
        other => panic!("indefinite length {other}"),
    };
    let head = at + 1 + extra;
    let argument = if extra == 0 {
        usize::from(body[at] & 0x1f)
    } else {
        body[at + 1..head].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    match body[at] >> 5 {
        0 | 1 | 7 => {
            found.push(at..head);
            head
        }
        2 | 3 => {
            found.push(at..head + argument);
            head + argument
        }
        4 => (0..argument).fold(head, |at, _| walk(body, at, found)),
        5 => (0..argument).fold(head, |at, _| {
            let value = walk(body, at, &mut Vec::new());
            walk(body, value, found)
        }),
        _ => panic!("a tag"),
    }
}

/// The properties that every device must have, over the rigs that `$rig` builds.
macro_rules! device_properties {
    ($rig:path) => {
        proptest::proptest! {
            #[test]
            fn fuzz_random_accesses(steps in $crate::testing::steps(0..400)) {
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
