use proptest::prelude::*;
use skep_net::testing::TestLink;
use skep_net::{HEADER, LinkInfo, Offloads};
use skep_worker::{Limit, Limits};

use skep_state::State as _;

use super::*;
use crate::feature::VERSION_1;
use crate::testing::{BUFFERS, Piece, RAM, RAM_SIZE, Rig, Told};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn link(queues: u16, offloads: Offloads) -> Arc<TestLink> {
    TestLink::new(LinkInfo { queues, offloads, mtu: Some(1500) })
}

fn net(link: &Arc<TestLink>) -> Arc<Net> {
    limited(link, None, None)
}

fn limited(link: &Arc<TestLink>, receive: Option<Arc<Limiter>>, send: Option<Arc<Limiter>>) -> Arc<Net> {
    let config = NetConfig { name: "net".into(), link: link.clone(), mac: MAC, poll: Duration::ZERO, receive, send };
    Net::new(&config).unwrap()
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len).map(|at| seed.wrapping_add(at as u8));
    [0; HEADER].into_iter().chain(payload).collect()
}

/// What the guest sees of a frame that took so many buffers.
fn counted(mut frame: Vec<u8>, buffers: u8) -> Vec<u8> {
    frame[10] = buffers;
    frame
}

impl Rig<Net> {
    fn command(&mut self, queue: u16, bytes: &[u8]) -> u8 {
        let used = self.call(queue, &[Piece::Read(bytes), Piece::Write(1)]);
        assert_eq!(used.len, 1);
        used.data[0]
    }

    /// Without some of the features.
    fn without(device: Arc<Net>, features: u64) -> Self {
        let mut rig = Self::idle(device, true);
        rig.device.activate(rig.device.features() & !features | VERSION_1);
        for index in 0..rig.rings.len() {
            rig.start(index as u16, Default::default());
        }
        rig
    }
}

#[test]
fn frames_go_both_ways() {
    let link = link(1, Offloads::empty());
    let mut rig = Rig::new(net(&link));
    let sent = frame(60, 1);
    let used = rig.call(1, &[Piece::Read(&sent[..5]), Piece::Read(&sent[5..HEADER]), Piece::Read(&sent[HEADER..])]);
    assert_eq!(used.len, 0);
    assert_eq!(link.take(0), [sent]);
    for seed in 0..3 {
        rig.send(0, &[Piece::Write(1600)]);
        let came = frame(100, seed);
        link.send(0, &came);
        let used = rig.wait_used(0);
        assert_eq!((used.len, used.data), (112, counted(came, 1)));
    }
}

#[test]
fn a_large_frame_is_spread_over_buffers() {
    let link = link(1, Offloads::all());
    let mut rig = Rig::new(net(&link));
    let first: Vec<_> = (0..8).map(|_| rig.send(0, &[Piece::Write(1000)])).collect();
    let large = frame(4500, 7);
    link.send(0, &large);
    let used: Vec<_> = (0..5).map(|_| rig.wait_used(0)).collect();
    assert_eq!(used.iter().map(|used| used.head).collect::<Vec<_>>(), first[..5]);
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [1000, 1000, 1000, 1000, 512]);
    assert_eq!(used.into_iter().flat_map(|used| used.data).collect::<Vec<_>>(), counted(large, 5));
    // Those that are left wait for the next one.
    link.send(0, &frame(10, 0));
    assert_eq!(rig.wait_used(0).head, first[5]);
    // One that has no room at all is lost, and the next one is not.
    link.send(0, &frame(2500, 0));
    link.send(0, &frame(20, 0));
    assert_eq!(rig.wait_used(0).len, 32);
    let states = rig.stop_all();
    assert_eq!(states[0].next, 7, "a buffer that only waited goes back");
}

#[test]
fn without_merging_each_frame_has_one_buffer() {
    let link = link(1, Offloads::empty());
    let mut rig = Rig::without(net(&link), feature::MRG_RXBUF);
    for _ in 0..3 {
        rig.send(0, &[Piece::Write(12), Piece::Write(1514)]);
    }
    link.send(0, &frame(1514, 1));
    link.send(0, &frame(1515, 2));
    link.send(0, &frame(1, 3));
    let used = [rig.wait_used(0), rig.wait_used(0)];
    assert_eq!(used.each_ref().map(|used| used.len), [1526, 13]);
    assert_eq!(used[1].data, counted(frame(1, 3), 1));
}

/// CVE-2020-16843: a card whose receive ring had once been full received nothing any more.
#[test]
fn a_flood_stays_in_the_network_and_receiving_goes_on() {
    let link = link(1, Offloads::empty());
    let mut rig = Rig::new(net(&link));
    rig.send(0, &[Piece::Write(1600)]);
    for seed in 0..200 {
        link.send(0, &frame(50, seed));
    }
    assert_eq!(rig.wait_used(0).data, counted(frame(50, 0), 1));
    // The thread has found no buffer, and sleeps; sending works meanwhile.
    rig.call(1, &[Piece::Read(&frame(60, 1))]);
    assert_eq!((rig.rings[0].used_index(), link.waiting(0)), (1, 199));
    for seed in 1..200 {
        rig.send(0, &[Piece::Write(1600)]);
        assert_eq!(rig.wait_used(0).data, counted(frame(50, seed), 1));
    }
    assert_eq!(link.waiting(0), 0);
}

#[test]
fn a_network_that_takes_no_more_holds_the_frame() {
    let link = link(1, Offloads::empty());
    let mut rig = Rig::new(net(&link));
    link.set_full(0, true);
    rig.send(1, &[Piece::Read(&frame(60, 1))]);
    rig.send(1, &[Piece::Read(&frame(60, 2))]);
    // Receiving goes on.
    rig.send(0, &[Piece::Write(1600)]);
    link.send(0, &frame(10, 0));
    rig.wait_used(0);
    assert_eq!(rig.rings[1].used_index(), 0);
    let states = rig.stop_all();
    assert_eq!(states[1].next, 0, "it goes back unsent");
    link.set_full(0, false);
    rig.start_all(&states);
    rig.wait_used(1);
    rig.wait_used(1);
    assert_eq!(link.take(0), [frame(60, 1), frame(60, 2)]);
}

#[test]
fn limits_hold_each_direction_over_all_pairs() {
    let link = link(2, Offloads::empty());
    let frames = Limiter::by_hand(Limits { requests: Some(Limit { per_second: 100, burst: 2 }), bytes: None });
    let bytes = Limiter::by_hand(Limits { requests: None, bytes: Some(Limit { per_second: 600, burst: 60 }) });
    let mut rig = Rig::new(limited(&link, Some(frames.clone()), Some(bytes.clone())));
    for seed in 0..10 {
        rig.send(0, &[Piece::Write(1600)]);
        link.send(0, &frame(60, seed));
    }
    rig.wait_used(0);
    rig.wait_used(0);
    rig.call(1, &[Piece::Read(&frame(60, 1))]);
    // What has been received costs nothing of what may be sent, and the other way round.
    assert_eq!((link.waiting(0), link.take(0).len()), (8, 1));
    for (passed, come) in [(10, 1), (100, 2), (20, 2), (9, 0), (1, 1)] {
        frames.advance(Duration::from_millis(passed));
        for _ in 0..come {
            rig.wait_used(0);
        }
    }
    assert_eq!((link.waiting(0), rig.rings[0].used_index()), (2, 8));
    // The other pair has to wait for what the first has sent.
    rig.send(3, &[Piece::Read(&frame(60, 2))]);
    bytes.advance(Duration::from_millis(1));
    assert_eq!((link.take(1).len(), rig.rings[3].used_index()), (0, 0));
    bytes.advance(Duration::from_millis(1));
    rig.wait_used(3);
    assert_eq!(link.take(1), [frame(60, 2)]);
    // What waits for its time goes back when the queues stop.
    rig.send(1, &[Piece::Read(&frame(60, 3))]);
    assert_eq!(rig.stop_all()[1].next, 1);
}

#[test]
fn frames_that_are_none_are_lost_and_what_is_no_ram_asks_for_a_reset() {
    let link = link(1, Offloads::all());
    let mut rig = Rig::new(net(&link));
    rig.call(1, &[Piece::Read(&[0; HEADER])]);
    rig.call(1, &[Piece::Read(&[0; 3])]);
    rig.call(1, &[Piece::Write(100)]);
    rig.call(1, &[Piece::At { gpa: BUFFERS, len: skep_net::MAX_FRAME as u32 + 1, write: false }]);
    // Whatever a guest says, no more than a frame is looked at.
    rig.call(1, &[Piece::At { gpa: BUFFERS, len: u32::MAX, write: false }]);
    assert_eq!(link.take(0), Vec::<Vec<u8>>::new());
    rig.call(1, &[Piece::At { gpa: BUFFERS, len: skep_net::MAX_FRAME as u32, write: false }]);
    assert_eq!(link.take(0)[0].len(), skep_net::MAX_FRAME);
    rig.send(1, &[Piece::At { gpa: RAM + RAM_SIZE - 10, len: 60, write: false }]);
    rig.wait_told(Told::NeedsReset);
    rig.send(0, &[Piece::Read(&[0; 100])]);
    rig.wait_told(Told::NeedsReset);
    assert_eq!(rig.stop_all().iter().map(|state| state.broken).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn offloads_are_negotiated_and_set() {
    let link = link(1, Offloads::all());
    let device = net(&link);
    let all = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO6 | feature::HOST_USO;
    assert_eq!(device.features() & all, all);
    let mut rig = Rig::without(device, feature::GUEST_TSO6 | feature::GUEST_USO4 | feature::MQ);
    let negotiated = Offloads::CHECKSUM | Offloads::TSO4 | Offloads::TSO_ECN | Offloads::USO6;
    assert_eq!(link.settings().0, negotiated);
    let set = |offloads: u64| [&[5, 0][..], &offloads.to_le_bytes()].concat();
    assert_eq!(rig.command(2, &set(feature::GUEST_CSUM)), 0);
    assert_eq!(link.settings().0, Offloads::CHECKSUM);
    assert_eq!(rig.command(2, &set(feature::GUEST_TSO6)), 1, "it was not negotiated");
    assert_eq!(rig.command(2, &set(0)), 0);
    assert_eq!(link.settings().0, Offloads::empty());
    rig.device.reset();
    rig.device.activate(feature::GUEST_CSUM);
    assert_eq!(link.settings().0, Offloads::CHECKSUM);
    let poor = net(&self::link(1, Offloads::empty()));
    assert_eq!(poor.features() & (all | feature::CTRL_GUEST_OFFLOADS), 0);
}

#[test]
fn several_pairs_and_their_control_queue() {
    let link = link(3, Offloads::empty());
    let mut rig = Rig::new(net(&link));
    assert_eq!(rig.device.queue_sizes().len(), 7);
    assert_eq!(link.settings().1, 1);
    assert_eq!(rig.command(6, &[4, 0, 3, 0]), 0);
    assert_eq!(link.settings().1, 3);
    for wrong in [&[4, 0, 0, 0][..], &[4, 0, 4, 0], &[4, 0, 1], &[4, 1, 1, 0], &[], &[4], &[9, 9, 9], &[1; 64]] {
        assert_eq!(rig.command(6, wrong), 1, "{wrong:?}");
    }
    for pair in 0..3 {
        rig.call(2 * pair + 1, &[Piece::Read(&frame(60, pair as u8))]);
        assert_eq!(link.take(pair), [frame(60, pair as u8)]);
        rig.send(2 * pair, &[Piece::Write(1600)]);
        link.send(pair, &frame(30, 9));
        assert_eq!(rig.wait_used(2 * pair).len, 42);
    }
    assert_eq!(rig.device.save().pairs, 3);
    rig.stop_all();
    rig.device.reset();
    assert_eq!((link.settings().1, rig.device.save().pairs), (1, 1));
    // A driver that knows of one pair has its control queue behind that.
    let mut rig = Rig::without(net(&self::link(3, Offloads::empty())), feature::MQ);
    assert_eq!(rig.command(2, &[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(rig.device.save().mac, [2, 3, 4, 5, 6, 7]);
}

#[test]
fn the_configuration_and_its_changes() {
    let link = link(2, Offloads::empty());
    let mut rig = Rig::new(net(&link));
    let config = |rig: &Rig<Net>| {
        let mut data = [0; 16];
        rig.device.read_config(0, &mut data);
        data
    };
    let expected = [0x52, 0x54, 0, 1, 2, 3, 1, 0, 2, 0, 0xdc, 5, 0, 0, 0, 0];
    assert_eq!(config(&rig), expected);
    rig.device.set_link(false);
    rig.wait_told(Told::Config);
    assert_eq!(config(&rig)[6], 0);
    rig.device.announce();
    rig.wait_told(Told::Config);
    assert_eq!((config(&rig)[6], rig.device.save().announce), (2, true));
    assert_eq!(rig.command(4, &[3, 0]), 0);
    assert_eq!((config(&rig)[6], rig.command(4, &[3, 0])), (0, 1));
}

#[test]
fn it_goes_on_as_it_was() {
    let link = link(2, Offloads::all());
    let mut rig = Rig::new(net(&link));
    assert_eq!(rig.command(4, &[4, 0, 2, 0]), 0);
    assert_eq!(rig.command(4, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(rig.command(4, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    rig.stop_all();
    let state = rig.device.save();
    let other = self::link(2, Offloads::all());
    let twin = net(&other);
    twin.restore(&state).unwrap();
    twin.activate(twin.features());
    assert_eq!((twin.save(), other.settings()), (state.clone(), (Offloads::CHECKSUM, 2)));
    // The address that its driver knows, and its own when a driver begins anew.
    let mut address = [0; 6];
    twin.read_config(0, &mut address);
    assert_eq!(address, [2, 0, 0, 0, 0, 9]);
    twin.reset();
    twin.read_config(0, &mut address);
    assert_eq!(address, MAC);
    for (field, wrong) in [
        ("pairs", NetState { pairs: 0, ..state.clone() }),
        ("pairs", NetState { pairs: 3, ..state.clone() }),
        ("offloads", NetState { offloads: Some(1), ..state }),
    ] {
        let error = wrong.check().and_then(|()| twin.restore(&wrong)).unwrap_err();
        assert!(matches!(error, StateError::Invalid { field: named, .. } if named == field), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Receive(Vec<u32>),
    Come(usize),
    Send(Vec<u8>),
    Raw { queue: u16, gpa: u64, len: u32, write: bool },
    Command(Vec<u8>),
    Full(bool),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gpa = prop_oneof![BUFFERS..RAM + RAM_SIZE + 64, any::<u64>()];
    let step = prop_oneof![
        4 => proptest::collection::vec(1u32..2000, 1..3).prop_map(Step::Receive),
        4 => (0usize..5000).prop_map(Step::Come),
        3 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Send),
        1 => (0u16..3, gpa, 0u32..70_000, any::<bool>())
            .prop_map(|(queue, gpa, len, write)| Step::Raw { queue, gpa, len, write }),
        1 => (0u8..7, 0u8..3, proptest::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(class, command, data)| Step::Command([&[class, command][..], &data].concat())),
        1 => any::<bool>().prop_map(Step::Full),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..40)
}

skep_fuzzing::targets! {
    /// Whatever comes from either side, all queues stop, and none holds what is the driver's.
    "virtio-net", 64: fn fuzz_frames(steps in steps(), merge in any::<bool>()) {
        let link = link(1, Offloads::all());
        let mut rig = Rig::without(net(&link), if merge { 0 } else { feature::MRG_RXBUF });
        for step in steps {
            let pieces: Vec<Piece<'_>>;
            let queue = match &step {
                Step::Receive(lens) => {
                    pieces = lens.iter().map(|len| Piece::Write(*len)).collect();
                    0
                }
                Step::Come(len) => {
                    link.send(0, &frame(*len, 3));
                    continue;
                }
                Step::Send(bytes) => {
                    pieces = vec![Piece::Read(bytes)];
                    1
                }
                Step::Raw { queue, gpa, len, write } => {
                    pieces = vec![Piece::At { gpa: *gpa, len: *len, write: *write }];
                    *queue
                }
                Step::Command(bytes) => {
                    pieces = vec![Piece::Read(bytes), Piece::Write(1)];
                    2
                }
                Step::Full(full) => {
                    link.set_full(0, *full);
                    continue;
                }
                Step::Restart => {
                    let states = rig.stop_all();
                    for (index, state) in states.into_iter().enumerate() {
                        rig.start(index as u16, state);
                    }
                    continue;
                }
            };
            while rig.rings[usize::from(queue)].take_used().is_some() {}
            if rig.rings[usize::from(queue)].free() >= pieces.len() {
                rig.send(queue, &pieces);
            }
        }
        for (ring, state) in rig.stop_all().into_iter().enumerate() {
            if !state.broken {
                prop_assert_eq!(rig.rings[ring].used_index(), state.next);
            }
        }
    }
}
