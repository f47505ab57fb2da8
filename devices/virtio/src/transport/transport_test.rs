use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;
use skep_state::{Component, Record, State};

use super::*;
use crate::testing::{Guest, Log, Puppet, RAM, Wires};

struct Rig {
    device: Arc<Puppet>,
    transport: Arc<Transport>,
    wires: Arc<Wires>,
    log: Log,
}

fn rig(messages: bool) -> Rig {
    let log = Log::default();
    let device = Puppet::new(log.clone());
    let wires = Wires::new(log.clone(), messages);
    let transport = Transport::new(device.clone(), Guest::new().dma(), wires.clone(), 3).unwrap();
    Rig { device, transport, wires, log }
}

impl Rig {
    fn read(&self, offset: u64, width: usize) -> u64 {
        let mut data = [0xff; 8];
        self.transport.read(offset, &mut data[..width]);
        data[width..].fill(0);
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u64, width: usize, value: u64) {
        self.transport.write(offset, &value.to_le_bytes()[..width]);
    }

    fn status(&self) -> u8 {
        self.read(field::STATUS, 1) as u8
    }

    fn features(&self, features: u64) {
        for half in 0..2 {
            self.write(field::DRIVER_FEATURE_SELECT, 4, half);
            self.write(field::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }

    fn enable(&self, queue: u64, size: u64) {
        self.write(field::QUEUE_SELECT, 2, queue);
        self.write(field::QUEUE_SIZE, 2, size);
        self.write(field::QUEUE_VECTOR, 2, queue + 1);
        let ring = RAM + queue * 0x4000;
        self.write(field::DESCRIPTORS, 8, ring);
        self.write(field::AVAILABLE, 4, (ring + 0x2000) & 0xffff_ffff);
        self.write(field::AVAILABLE + 4, 4, (ring + 0x2000) >> 32);
        self.write(field::USED, 8, ring + 0x3000);
        self.write(field::QUEUE_ENABLE, 2, 1);
    }

    /// A driver that sets up both queues and is ready.
    fn drive(&self) {
        let all = feature::TRANSPORT | 0x41;
        self.write(field::STATUS, 1, 3);
        self.features(all);
        self.write(field::STATUS, 1, 0xb);
        assert_eq!(self.status(), 0xb);
        self.write(field::CONFIG_VECTOR, 2, 0);
        self.enable(0, 128);
        self.enable(1, 64);
        self.write(field::STATUS, 1, 0xf);
        let activate = format!("activate {all:#x}");
        assert_eq!(self.log.take(), [&activate, "start 0 of 128 at 0", "start 1 of 64 at 0"]);
    }
}

#[test]
fn power_on_values() {
    let rig = rig(true);
    assert_eq!(rig.read(18, 2), 2, "two queues");
    assert_eq!((rig.status(), rig.read(21, 1)), (0, 0));
    assert_eq!(rig.read(field::CONFIG_VECTOR, 2), 0xffff);
    for (queue, size) in [(0, 256), (1, 64), (2, 0), (0xffff, 0)] {
        rig.write(field::QUEUE_SELECT, 2, queue);
        assert_eq!(rig.read(field::QUEUE_SELECT, 2), queue);
        assert_eq!(rig.read(field::QUEUE_SIZE, 2), size);
        let (vector, notify) = if size > 0 { (0xffff, queue) } else { (0, 0) };
        assert_eq!((rig.read(field::QUEUE_VECTOR, 2), rig.read(30, 2)), (vector, notify));
    }
    let offered = [0, 1, 2].map(|half| {
        rig.write(field::DEVICE_FEATURE_SELECT, 4, half);
        rig.read(4, 4)
    });
    assert_eq!(offered, [0x3000_0041, 0x101, 0]);
    assert_eq!(rig.read(layout::DEVICE, 8), u64::from_le_bytes(*b"configur"));
    assert_eq!(rig.read(layout::DEVICE + 6, 4), u64::from(u16::from_le_bytes(*b"ur")), "zeroes beyond the end");
}

#[test]
fn features_are_negotiated() {
    for (features, accepted) in [
        (feature::VERSION_1, true),
        (feature::VERSION_1 | 0x40, true),
        (0x40, false),
        (feature::VERSION_1 | 0x2, false),
        (feature::VERSION_1 | 1 << 63, false),
    ] {
        let rig = rig(true);
        rig.write(field::STATUS, 1, 3);
        rig.features(features);
        rig.write(field::STATUS, 1, 0xb);
        assert_eq!(rig.status(), if accepted { 0xb } else { 3 }, "{features:#x}");
        rig.write(field::STATUS, 1, 0xf);
        assert_eq!(rig.status(), if accepted { 0xf } else { 3 }, "not ready before features are");
        let expected = accepted.then(|| format!("activate {features:#x}"));
        assert_eq!(rig.log.take(), Vec::from_iter(expected));
        rig.features(0);
        rig.write(field::DRIVER_FEATURE_SELECT, 4, 1);
        let kept = if accepted { features >> 32 } else { 0 };
        assert_eq!(rig.read(field::DRIVER_FEATURE, 4), kept, "what was accepted stays");
    }
}

/// CVE-2026-5747: the size of a queue that ran was changed, and the host walked beyond the ring that it had checked.
#[test]
fn nothing_written_to_a_queue_that_runs_takes_effect() {
    let rig = rig(true);
    rig.drive();
    let before = rig.transport.save();
    for queue in 0..2 {
        rig.write(field::QUEUE_SELECT, 2, queue);
        for value in [0, 1, 0x4000, 0x7fff_ffff_ffff_ffff] {
            for (offset, width) in [(24, 2), (26, 2), (28, 2), (32, 4), (32, 8), (36, 4), (40, 8), (48, 8), (52, 4)] {
                rig.write(offset, width, value);
            }
        }
    }
    rig.features(feature::VERSION_1);
    rig.write(field::DRIVER_FEATURE_SELECT, 4, before.driver_feature_select.into());
    assert_eq!(rig.transport.save(), before);
    assert_eq!(rig.device.running.lock().unwrap()[&0].config.size, 128);
    assert_eq!(rig.log.take(), Vec::<String>::new());

    // A queue that the driver left alone is closed as well, once the driver is ready.
    let rig = self::rig(true);
    rig.write(field::STATUS, 1, 3);
    rig.features(feature::VERSION_1);
    rig.write(field::STATUS, 1, 0xf);
    rig.log.take();
    rig.enable(0, 16);
    assert_eq!(rig.read(field::QUEUE_ENABLE, 2), 0);
    assert_eq!(rig.log.take(), Vec::<String>::new());
}

#[test]
fn a_device_reset_is_complete_when_the_last_queue_has_stopped() {
    let rig = rig(true);
    rig.drive();
    rig.write(field::STATUS, 1, 0);
    assert_eq!(rig.log.take(), ["stop 0", "stop 1"]);
    assert_eq!(rig.status(), 0xf);
    rig.write(field::STATUS, 1, 0);
    rig.write(field::STATUS, 1, 3);
    rig.device.let_stop(1, 7);
    assert_eq!(rig.status(), 0xf, "a queue still has something in flight");
    assert_eq!(rig.log.take(), Vec::<String>::new());
    rig.device.let_stop(0, 9);
    assert_eq!((rig.status(), rig.log.take()), (0, vec!["reset".to_owned()]));
    assert_eq!(rig.transport.save(), self::rig(true).transport.save());
    rig.drive();
    // Function-level reset, without the driver's waiting.
    skep_pci::Function::reset(&*rig.transport);
    assert_eq!(rig.log.take(), ["stop 0", "stop 1"]);
    assert!(rig.device.let_stop(0, 0) && rig.device.let_stop(1, 0));
    assert_eq!(rig.status(), 0);
}

#[test]
fn a_queue_is_reset_alone() {
    let rig = rig(true);
    rig.drive();
    rig.write(field::QUEUE_SELECT, 2, 0);
    rig.write(field::QUEUE_RESET, 2, 1);
    assert_eq!((rig.read(field::QUEUE_RESET, 2), rig.read(field::QUEUE_ENABLE, 2)), (1, 1));
    rig.write(field::QUEUE_RESET, 2, 1);
    rig.device.let_stop(0, 77);
    assert_eq!((rig.read(field::QUEUE_RESET, 2), rig.read(field::QUEUE_ENABLE, 2)), (0, 0));
    assert_eq!((rig.read(field::QUEUE_SIZE, 2), rig.read(field::QUEUE_VECTOR, 2)), (256, 0xffff));
    assert_eq!(rig.log.take(), ["stop 0"]);
    rig.write(field::STATUS, 1, 0xf);
    rig.enable(0, 32);
    assert_eq!(rig.log.take(), ["start 0 of 32 at 0"]);
    assert_eq!(rig.read(field::QUEUE_VECTOR, 2), 1);
    // One that was never enabled is not reset, and the other one runs on.
    rig.write(field::QUEUE_SELECT, 2, 5);
    rig.write(field::QUEUE_RESET, 2, 1);
    assert_eq!(rig.read(field::QUEUE_RESET, 2), 0);
    assert_eq!(rig.log.take(), Vec::<String>::new());
    // The device's reset is complete with what the queue's began.
    rig.write(field::QUEUE_SELECT, 2, 1);
    rig.write(field::QUEUE_RESET, 2, 1);
    rig.write(field::STATUS, 1, 0);
    assert_eq!(rig.log.take(), ["stop 1", "stop 0"]);
    rig.device.let_stop(0, 0);
    rig.device.let_stop(1, 0);
    assert_eq!((rig.status(), rig.log.take()), (0, vec!["reset".to_owned()]));
}

#[test]
fn a_pause_waits_for_all_queues_and_they_go_on_where_they_stopped() {
    let rig = rig(true);
    rig.drive();
    let paused = Arc::new(AtomicBool::new(false));
    let tell = paused.clone();
    rig.transport.begin_stop(move || tell.store(true, Ordering::SeqCst));
    rig.device.let_stop(0, 5);
    assert!(!paused.load(Ordering::SeqCst));
    rig.device.let_stop(1, 6);
    assert!(paused.load(Ordering::SeqCst));
    rig.log.take();
    rig.transport.resume();
    assert_eq!(rig.log.take(), ["start 0 of 128 at 5", "start 1 of 64 at 6"]);
}

/// Whichever comes first, the end of the stop or the word that it is called off: the queue runs if it is wanted, and stops once if it is not.
#[test]
fn a_pause_that_is_taken_back_calls_off_what_has_not_stopped() {
    let rig = rig(true);
    rig.drive();
    rig.log.take();
    let paused = Arc::new(AtomicUsize::new(0));
    let pause = || {
        let tell = paused.clone();
        rig.transport.begin_stop(move || {
            tell.fetch_add(1, Ordering::SeqCst);
        });
    };
    pause();
    rig.transport.resume();
    rig.transport.resume();
    assert_eq!(rig.log.take(), ["stop 0", "stop 1", "call off 0", "call off 1"]);
    assert!(rig.device.let_stop(0, 8) && rig.device.let_run_on(1));
    assert_eq!(rig.log.take(), ["start 0 of 128 at 8"]);
    // It is paused again before either has come.
    pause();
    rig.transport.resume();
    pause();
    assert_eq!(rig.log.take(), ["stop 0", "stop 1", "call off 0", "call off 1"]);
    assert!(rig.device.let_stop(0, 9) && rig.device.let_run_on(1));
    assert_eq!((rig.log.take(), paused.load(Ordering::SeqCst)), (vec!["stop 1".to_owned()], 0));
    assert!(rig.device.let_stop(1, 3));
    assert_eq!(paused.load(Ordering::SeqCst), 3);
    rig.transport.resume();
    assert_eq!(rig.log.take(), ["start 0 of 128 at 9", "start 1 of 64 at 3"]);
    // A queue that its driver resets meanwhile.
    pause();
    rig.transport.resume();
    rig.write(field::QUEUE_SELECT, 2, 1);
    rig.write(field::QUEUE_RESET, 2, 1);
    assert_eq!(rig.log.take(), ["stop 0", "stop 1", "call off 0", "call off 1"]);
    assert!(rig.device.let_run_on(0) && rig.device.let_run_on(1));
    assert_eq!(rig.log.take(), ["stop 1"]);
    assert!(rig.device.let_stop(1, 4));
    assert_eq!(rig.read(field::QUEUE_RESET, 2), 0);
}

#[test]
fn messages_go_to_the_vectors_that_the_driver_chose() {
    let rig = rig(true);
    rig.drive();
    let notifier = rig.device.notifier();
    notifier.used(1);
    notifier.used(0);
    notifier.config_changed();
    assert_eq!(rig.log.take(), ["msi 2", "msi 1", "msi 0"]);
    assert_eq!((rig.read(layout::ISR, 1), rig.read(21, 1)), (0, 1));
    rig.write(field::CONFIG_VECTOR, 2, 3);
    assert_eq!(rig.read(field::CONFIG_VECTOR, 2), 0xffff, "the function has three vectors");
    notifier.config_changed();
    assert_eq!(rig.log.take(), Vec::<String>::new());
    notifier.needs_reset();
    notifier.needs_reset();
    assert_eq!(rig.status(), 0x4f);
}

#[test]
fn without_messages_the_pin_follows_the_isr_status() {
    let rig = rig(false);
    rig.device.notifier().config_changed();
    assert_eq!(rig.log.take(), Vec::<String>::new(), "nobody listens yet");
    rig.drive();
    let notifier = rig.device.notifier();
    notifier.used(0);
    notifier.used(1);
    assert_eq!(rig.log.take(), ["pin+"]);
    assert_eq!(rig.read(layout::ISR, 1), 1);
    assert_eq!((rig.read(layout::ISR, 1), rig.log.take()), (0, vec!["pin-".to_owned()]));
    notifier.needs_reset();
    assert_eq!((rig.read(layout::ISR, 1), rig.status()), (2, 0x4f));
    rig.write(field::STATUS, 1, 0);
    rig.device.let_stop(0, 0);
    rig.device.let_stop(1, 0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn doorbells_ring_by_a_write_or_by_their_eventfd() {
    let rig = rig(true);
    rig.write(layout::NOTIFY, 2, 0);
    rig.write(layout::NOTIFY + 4, 2, 1);
    rig.write(layout::NOTIFY + 4, 4, 1);
    rig.write(layout::NOTIFY + 8, 2, 2);
    let rung: Vec<_> = rig.transport.doorbells().iter().map(|bell| bell.read().unwrap()).collect();
    assert_eq!(rung, [1, 2]);
    let doorbells = skep_pci::Function::doorbells(&*rig.transport);
    let places: Vec<_> = doorbells.iter().map(|bell| (bell.bar, bell.offset, bell.width)).collect();
    assert_eq!(places, [(0, 0x3000, Some(2)), (0, 0x3004, Some(2))]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let rig = rig(true);
    rig.drive();
    rig.transport.begin_stop(|| ());
    rig.device.let_stop(0, 3);
    rig.device.let_stop(1, 4);
    let state = rig.transport.save();
    let refused = |change: fn(&mut TransportState), field: &str| {
        let other = self::rig(true);
        other.transport.begin_stop(|| ());
        let mut state = state.clone();
        change(&mut state);
        let error = state.check().and_then(|()| other.transport.restore(&state)).unwrap_err();
        let StateError::Invalid { field: named, .. } = error else { panic!("{error}") };
        assert_eq!(named, field);
    };
    refused(|s| s.status = 0x4f, "status");
    refused(|s| s.status = 4, "status");
    refused(|s| s.driver_features = 0x41, "driver_features");
    refused(|s| s.driver_features |= 2, "driver_features");
    refused(|s| s.isr = 4, "isr");
    refused(|s| s.queues.truncate(1), "queues");
    refused(|s| s.queues[0].open = true, "queues.open");
    refused(|s| s.queues[0].enabled = false, "queues.queue");
    let running = self::rig(true);
    assert!(running.transport.restore(&state).is_err(), "it has not been stopped");
}

/// A step of a driver, of the device's other side, or of the machine.
#[derive(Debug, Clone, Copy)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u64),
    LetStop(u16, u16),
    Used(u16),
    Config,
    NeedsReset,
    Messages(bool),
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![
        6 => (0u64..60).prop_map(|offset| offset & !1),
        2 => prop::sample::select(vec![0u64, 8, 12, 16, 20, 22, 24, 26, 28, 32, 36, 40, 48, 58]),
        1 => 0u64..0x4000,
        1 => prop::sample::select(vec![layout::ISR, layout::DEVICE, layout::NOTIFY, layout::NOTIFY + 4]),
    ];
    let width = prop::sample::select(vec![1usize, 2, 4, 8]);
    let value = prop_oneof![0u64..20, any::<u64>(), Just(feature::TRANSPORT), Just(0x101), Just(0x3000_0041)];
    let step = prop_oneof![
        2 => (offset.clone(), width.clone()).prop_map(|(offset, width)| Step::Read(offset, width)),
        8 => (offset, width, value).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        4 => prop::sample::select(vec![(field::STATUS, 1, 0u64), (field::STATUS, 1, 3), (field::STATUS, 1, 0xb),
            (field::STATUS, 1, 0xf), (field::DRIVER_FEATURE_SELECT, 4, 0), (field::DRIVER_FEATURE_SELECT, 4, 1),
            (field::DRIVER_FEATURE, 4, 0x101), (field::DRIVER_FEATURE, 4, 0x41), (field::QUEUE_SELECT, 2, 0),
            (field::QUEUE_SELECT, 2, 1), (field::QUEUE_ENABLE, 2, 1), (field::QUEUE_RESET, 2, 1)])
            .prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        3 => (0u16..2, any::<u16>()).prop_map(|(queue, next)| Step::LetStop(queue, next)),
        1 => (0u16..4).prop_map(Step::Used),
        1 => Just(Step::Config),
        1 => Just(Step::NeedsReset),
        1 => any::<bool>().prop_map(Step::Messages),
    ];
    proptest::collection::vec(step, 0..count)
}

impl Rig {
    fn step(&self, step: Step) -> (u64, Vec<String>) {
        let mut value = 0;
        match step {
            Step::Read(offset, width) => value = self.read(offset, width),
            Step::Write(offset, width, value) => self.write(offset, width, value),
            Step::LetStop(queue, next) => value = self.device.let_stop(queue, next).into(),
            Step::Used(queue) => self.device.notifier().used(queue),
            Step::Config => self.device.notifier().config_changed(),
            Step::NeedsReset => self.device.notifier().needs_reset(),
            Step::Messages(on) => self.wires.messages.store(on, Ordering::Release),
        }
        (value, self.log.take())
    }

    fn stop(&self) {
        self.transport.begin_stop(|| ());
        for queue in 0..2 {
            self.device.let_stop(queue, 100 + queue);
        }
        self.log.take();
    }
}

proptest! {
    #[test]
    fn saved_and_restored_behaves_the_same(before in steps(150), other in steps(60), after in steps(150)) {
        let (one, two) = (rig(true), rig(true));
        before.iter().for_each(|step| drop(one.step(*step)));
        other.iter().for_each(|step| drop(two.step(*step)));
        one.stop();
        two.stop();
        let config = {
            let mut data = [0; 8];
            one.device.read_config(0, &mut data);
            data
        };
        two.device.write_config(0, &config);
        let record = one.transport.save_record();
        two.transport.restore_record(&record).unwrap();
        prop_assert_eq!(two.transport.save_record(), record);
        two.wires.messages.store(one.wires.messages.load(Ordering::Acquire), Ordering::Release);
        // The pin is the endpoint's to save.
        for rig in [&one, &two] {
            rig.wires.set_pin(one.transport.save().isr != 0);
            rig.transport.resume();
        }
        // A restored device is told that the driver is ready.
        let told = |rig: &Rig| rig.log.take().into_iter().filter(|event| event.starts_with("start")).collect::<Vec<_>>();
        prop_assert_eq!(told(&one), told(&two));
        for step in after {
            prop_assert_eq!(one.step(step), two.step(step), "{:?}", step);
        }
    }
}

skep_fuzzing::targets! {
    "virtio-state": fn fuzz_state(before in steps(100), body in any::<Vec<u8>>(), place in any::<usize>(), value in any::<u8>(), after in steps(50)) {
        let one = rig(true);
        before.iter().for_each(|step| drop(one.step(*step)));
        one.stop();
        let good = one.transport.save_record();
        let mut changed = good.clone();
        let place = place % changed.body.len();
        changed.body[place] = value;
        for record in [changed, Record { body, ..good }] {
            let two = rig(true);
            two.transport.begin_stop(|| ());
            if two.transport.restore_record(&record).is_ok() {
                two.transport.resume();
                after.iter().for_each(|step| drop(two.step(*step)));
            }
        }
    }
}

skep_fuzzing::targets! {
    /// The device is never told what contradicts what it was told before, whatever is written: the puppet looks.
    "virtio-registers": fn fuzz_registers(steps in steps(400)) {
        let rig = rig(true);
        for step in steps {
            rig.step(step);
        }
    }
}
