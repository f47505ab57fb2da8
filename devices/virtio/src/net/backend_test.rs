use proptest::prelude::*;
use skep_state::{Component, Record};

use super::card::feature;
use super::*;
use crate::feature::{INDIRECT, RING_RESET, VERSION_1};
use crate::testing::{Piece, Rig, Told};
use crate::vhost_user::message::{PROTOCOL_FEATURES, Request, protocol};
use crate::vhost_user::testing::{Behaviour, Pace, TestBackend};
use crate::{QueueState, VhostUserConfig, VhostUserKind};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// What such a backend offers of a card's features: of frames, and others that are the front end's business.
const OF_FRAMES: u64 =
    feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO6 | feature::MRG_RXBUF;
const OF_CARDS: u64 = feature::CTRL_GUEST_OFFLOADS | feature::MTU | feature::CTRL_VQ | feature::GUEST_ANNOUNCE;

fn backend(change: impl FnOnce(&mut Behaviour)) -> TestBackend {
    let mut behaviour = Behaviour { pace: Pace::Loop, ..Behaviour::default() };
    behaviour.features |= OF_FRAMES | OF_CARDS | feature::MQ;
    change(&mut behaviour);
    TestBackend::start(behaviour)
}

fn config(backend: &TestBackend, pairs: u16) -> VhostUserConfig {
    let patience = Duration::from_secs(60);
    let (name, kind) = ("net".to_owned(), VhostUserKind::Net);
    VhostUserConfig { name, socket: backend.socket(), kind, queues: pairs, patience }
}

fn card(backend: &TestBackend, pairs: u16) -> Arc<VhostUserNet> {
    VhostUserNet::new(&config(backend, pairs), MAC).unwrap()
}

/// A card whose driver leaves out `without`.
fn rig(backend: &TestBackend, pairs: u16, without: u64) -> Rig<VhostUserNet> {
    let mut rig = Rig::idle(card(backend, pairs), false);
    rig.guest.map.listen(rig.device.backend().listener()).unwrap();
    rig.device.activate(rig.device.features() & !without | VERSION_1 | INDIRECT);
    start(&mut rig, &[]);
    rig
}

fn start(rig: &mut Rig<VhostUserNet>, states: &[QueueState]) {
    for index in 0..rig.rings.len() {
        rig.start(index as u16, states.get(index).copied().unwrap_or_default());
    }
}

fn status(rig: &Rig<VhostUserNet>) -> u8 {
    let mut data = [0; 12];
    rig.device.read_config(0, &mut data);
    assert_eq!((&data[..6], data[7], data[8], &data[9..]), (&MAC[..], 0, rig.rings.len() as u8 / 2, &[0; 3][..]));
    data[6]
}

fn command(rig: &mut Rig<VhostUserNet>, queue: u16, bytes: &[u8]) -> u8 {
    let used = rig.call(queue, &[Piece::Read(bytes), Piece::Write(1)]);
    assert_eq!(used.len, 1);
    used.data[0]
}

/// Lets a frame go out by a pair, and come back by it.
fn loop_back(rig: &mut Rig<VhostUserNet>, pair: u16, frame: &[u8]) {
    rig.send(2 * pair, &[Piece::Write(2000)]);
    assert_eq!(rig.call(2 * pair + 1, &[Piece::Read(&[0; 12]), Piece::Read(frame)]).len, 0);
    let came = rig.wait_used(2 * pair);
    assert_eq!((came.len as usize, &came.data[12..]), (12 + frame.len(), frame));
}

fn count(backend: &TestBackend, request: Request) -> usize {
    backend.log().iter().filter(|other| **other == request as u32).count()
}

#[test]
fn features_of_frames_are_the_backends_and_the_card_is_ours() {
    let backend = backend(|_| {});
    let own = feature::MAC | feature::STATUS | feature::CTRL_VQ | feature::CTRL_MAC_ADDR;
    let device = card(&backend, 1);
    assert_eq!(device.features(), OF_FRAMES | own);
    assert_eq!(device.transport_features(), VERSION_1 | INDIRECT | RING_RESET);
    assert_eq!(device.queue_sizes(), [256, 256, 16]);
    assert_eq!(card(&backend, 2).features(), OF_FRAMES | own | feature::MQ);
    let mut rig = rig(&backend, 2, feature::GUEST_TSO6);
    assert_eq!(status(&rig), 1);
    loop_back(&mut rig, 0, b"a frame");
    let taken = OF_FRAMES & !feature::GUEST_TSO6 | feature::MQ | VERSION_1 | INDIRECT | PROTOCOL_FEATURES;
    assert_eq!(backend.features(), taken);
    // One that can do nothing has nothing to offer.
    let poor = self::backend(|backend| backend.features &= !OF_FRAMES);
    assert_eq!(card(&poor, 1).features(), own);
}

#[test]
fn pairs_are_worked_when_the_driver_asks_for_them() {
    let backend = backend(|_| {});
    let mut rig = rig(&backend, 2, 0);
    loop_back(&mut rig, 0, b"the first pair");
    rig.send(2, &[Piece::Write(2000)]);
    rig.send(3, &[Piece::Read(&[1; 60])]);
    for wrong in [&[4, 0, 0, 0][..], &[4, 0, 3, 0], &[4, 0, 1], &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], &[9; 64]] {
        assert_eq!(command(&mut rig, 4, wrong), 1, "{wrong:?}");
    }
    assert_eq!(rig.rings[3].used_index(), 0, "it rests");
    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(rig.wait_used(2).data, [1; 60], "what had been waiting");
    rig.wait_used(3);
    loop_back(&mut rig, 1, b"the second pair");
    loop_back(&mut rig, 0, b"and the first");
    assert_eq!(command(&mut rig, 4, &[4, 0, 1, 0]), 0);
    assert_eq!(rig.device.save().pairs, 1);
    let states = rig.stop_all();
    let next = |at: u16| QueueState { next: at, broken: false };
    assert_eq!(states, [next(2), next(2), next(2), next(2), next(8)]);
    // Four when they start, two that come, two that go, and four when they stop.
    assert_eq!(count(&backend, Request::SetVringEnable), 12);
    rig.device.reset();
    assert_eq!(rig.device.save().pairs, 1);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_its_control_queue_behind_that() {
    let backend = backend(|_| {});
    let mut rig = rig(&backend, 3, feature::MQ);
    loop_back(&mut rig, 0, b"a frame");
    assert_eq!(command(&mut rig, 2, &[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(command(&mut rig, 2, &[4, 0, 2, 0]), 1, "it has said that it knows of one");
    assert_eq!(rig.device.save().mac, [2, 3, 4, 5, 6, 7]);
    assert_eq!(backend.features() & feature::MQ, 0);
}

#[test]
fn a_backend_has_as_many_pairs_as_are_asked_for() {
    let refused = |change: fn(&mut Behaviour), pairs| {
        let backend = backend(change);
        let error = VhostUserNet::new(&config(&backend, pairs), MAC).err()?.to_string();
        Some(error.replace(backend.socket().to_str().unwrap(), "SOCKET"))
    };
    let two = "the vhost-user backend at `SOCKET` has 1 queues, and 2 are needed\n  try: fewer `queues`, or a backend started with more";
    assert_eq!(refused(|backend| backend.queues = 1, 2).as_deref(), Some(two));
    assert_eq!(refused(|backend| backend.queues = 1, 1), None, "it counts pairs");
    assert_eq!(refused(|backend| backend.protocol &= !protocol::MQ, 2).as_deref(), Some(two));
    assert_eq!(refused(|backend| backend.protocol &= !protocol::MQ, 1), None);
}

#[test]
fn the_link_is_down_while_there_is_no_backend() {
    let backend = backend(|_| {});
    let mut rig = rig(&backend, 1, 0);
    loop_back(&mut rig, 0, b"before");
    backend.close();
    rig.wait_told(Told::Config);
    assert_eq!(status(&rig), 0);
    rig.wait_told(Told::NeedsReset);
    // The card itself goes on.
    assert_eq!(command(&mut rig, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    let states = rig.stop_all();
    assert_eq!(states.iter().map(|state| state.broken).collect::<Vec<_>>(), [true, true, false]);
    rig.device.reset();
    assert_eq!(rig.device.save().mac, MAC);
    rig.device.activate(rig.device.features() | VERSION_1);
    let fresh: Vec<_> = states.iter().map(|state| QueueState { broken: false, ..*state }).collect();
    start(&mut rig, &fresh);
    rig.wait_told(Told::Config);
    assert_eq!(status(&rig), 1);
    loop_back(&mut rig, 0, b"after");
}

#[test]
fn it_goes_on_as_it_was_and_takes_no_state_that_is_none() {
    let backend = backend(|_| {});
    let mut rig = rig(&backend, 2, 0);
    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(command(&mut rig, 4, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    loop_back(&mut rig, 1, b"before");
    let states = rig.stop_all();
    let good = rig.device.save_record();
    let twin_backend = self::backend(|_| {});
    let twin = card(&twin_backend, 2);
    twin.restore_record(&good).unwrap();
    assert_eq!(twin.save_record(), good);
    let before = count(&backend, Request::SetVringEnable);
    rig.device.reset();
    rig.device.restore_record(&good).unwrap();
    rig.device.activate(rig.device.features() | VERSION_1);
    start(&mut rig, &states);
    loop_back(&mut rig, 1, b"after");
    assert_eq!(count(&backend, Request::SetVringEnable), before + 4, "two pairs from the first on");
    for (place, value) in (0..good.body.len()).flat_map(|place| [0, 1, 2, 3, 0x7f, 0xff].map(|value| (place, value))) {
        let mut body = good.body.clone();
        body[place] = value;
        if twin.restore_record(&Record { body, ..good.clone() }).is_ok() {
            twin.restore_record(&twin.save_record()).unwrap();
        }
    }
    let state = twin.save();
    for (field, wrong) in [
        ("pairs", NetState { pairs: 3, ..state.clone() }),
        ("offloads", NetState { offloads: Some(0), ..state.clone() }),
    ] {
        let error = twin.restore(&wrong).unwrap_err();
        assert!(matches!(error, StateError::Invalid { field: named, .. } if named == field), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(u16, Vec<u8>),
    Room(u16, u32),
    Command(Vec<u8>),
    Lose,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u16..5, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|(queue, bytes)| Step::Send(queue, bytes)),
        4 => (0u16..5, 1u32..2000).prop_map(|(queue, room)| Step::Room(queue, room)),
        3 => (0u8..7, 0u8..3, proptest::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(class, command, data)| Step::Command([&[class, command][..], &data].concat())),
        1 => Just(Step::Lose),
        2 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a driver does, and whenever its backend goes, all queues stop, and the card goes on.
    #[test]
    fn fuzz_pairs(steps in steps()) {
        let backend = backend(|_| {});
        let mut rig = rig(&backend, 2, 0);
        for step in steps {
            let (queue, pieces) = match &step {
                Step::Send(queue, bytes) => (*queue, vec![Piece::Read(bytes)]),
                Step::Room(queue, room) => (*queue, vec![Piece::Write(*room)]),
                Step::Command(bytes) => (4, vec![Piece::Read(bytes), Piece::Write(1)]),
                Step::Lose => {
                    backend.close();
                    continue;
                }
                Step::Restart => {
                    let states = rig.stop_all();
                    rig.device.activate(rig.device.features() | VERSION_1);
                    start(&mut rig, &states);
                    continue;
                }
            };
            while rig.rings[usize::from(queue)].take_used().is_some() {}
            if rig.rings[usize::from(queue)].free() >= pieces.len() {
                rig.send(queue, &pieces);
            }
        }
        let states = rig.stop_all();
        prop_assert!(states[4].broken || rig.rings[4].used_index() == states[4].next);
        rig.device.reset();
        prop_assert_eq!(rig.device.save().pairs, 1);
    }
}
