use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use skep_memory::{Backing, MemoryMap, RamOptions};
use vmm_sys_util::eventfd::EventFd;

use super::message::{
    CONFIG_CHANGED, HEADER, Header, MOST, PROTOCOL_FEATURES, REPLY, Request, VERSION, of_words, protocol,
};
use super::testing::{Behaviour, Fault, Pace, TestBackend};
use super::*;
use crate::testing::{Piece, RAM, Rig, Told};
use crate::{QueueConfig, QueueState};

/// For backends that are to be given up soon.
const SHORT: Duration = Duration::from_millis(20);
/// For those that are not.
const LONG: Duration = Duration::from_secs(60);

fn config(backend: &TestBackend, patience: Duration) -> VhostUserConfig {
    let kind = VhostUserKind::Fs { tag: "host".to_owned() };
    VhostUserConfig { name: "fs".to_owned(), socket: backend.socket(), kind, queues: 1, patience }
}

/// A device before `backend`, in a rig whose driver is not ready yet.
fn idle(backend: &TestBackend, patience: Duration) -> Rig<VhostUser> {
    let config = config(backend, patience);
    // A machine that is busy with something else may need more patience than a test has.
    let device = std::iter::repeat_with(|| VhostUser::new(&config)).find_map(Result::ok).unwrap();
    let rig = Rig::idle(device, false);
    rig.guest.map.listen(rig.device.listener()).unwrap();
    rig
}

fn rig(backend: &TestBackend) -> Rig<VhostUser> {
    let mut rig = idle(backend, LONG);
    rig.start_all(&[]);
    rig
}

fn echo(rig: &mut Rig<VhostUser>, queue: u16, text: &[u8]) {
    assert_eq!(rig.call(queue, &[Piece::Read(text), Piece::Write(64)]).data, text);
}

#[test]
fn a_backend_works_the_queues() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    for round in 0..5 {
        echo(&mut rig, 1, format!("round {round}").as_bytes());
    }
    echo(&mut rig, 0, b"first");
    assert_eq!(rig.stop_all(), [QueueState { next: 1, broken: false }, QueueState { next: 5, broken: false }]);
    let handshake = [1, 15, 16, 17, 3];
    let queue = [8, 10, 9, 13, 12, 18];
    let expected = [&handshake[..], &[2, 5], &queue, &queue, &[18, 11, 18, 11]].concat();
    assert_eq!(backend.log(), expected);
}

#[test]
fn it_goes_on_where_it_stopped() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"before");
    let states = rig.stop_all();
    // Rung for, and nobody there.
    rig.send(1, &[Piece::Read(b"meanwhile"), Piece::Write(64)]);
    assert_eq!(rig.rings[1].used_index(), 1, "a stopped queue takes nothing");
    rig.start_all(&states);
    assert_eq!(rig.wait_used(1).data, b"meanwhile");
    echo(&mut rig, 1, b"after");
    rig.stop_all();
    // A reset is told where the backend knows of it, in its turn.
    rig.device.reset();
    rig.begin_stop(0).recv().unwrap();
    assert_eq!(backend.log().last(), Some(&(Request::ResetDevice as u32)));
}

#[test]
fn only_what_the_backend_can_do_is_offered() {
    let backend = TestBackend::start(Behaviour::default());
    let device = VhostUser::new(&config(&backend, LONG)).unwrap();
    let offered = device.features() | device.transport_features();
    assert_eq!(offered, feature::VERSION_1 | feature::INDIRECT | feature::RING_RESET);
    assert_eq!(device.queue_sizes(), [1024, 1024]);
    let mut space = [0xff; 44];
    device.read_config(0, &mut space);
    assert_eq!(space[..5], *b"host\0");
    assert_eq!(space[36..40], [1, 0, 0, 0]);
}

#[test]
fn what_is_missing_is_named() {
    let refusal = |change: &dyn Fn(&mut Behaviour)| {
        let mut behaviour = Behaviour::default();
        change(&mut behaviour);
        let backend = TestBackend::start(behaviour);
        let error = VhostUser::new(&config(&backend, LONG)).err().unwrap().to_string();
        error.replace(backend.socket().to_str().unwrap(), "SOCKET")
    };
    let lacks =
        |what| format!("the vhost-user backend at `SOCKET` lacks {what}\n  try: another program, or a newer one");
    assert_eq!(refusal(&|backend| backend.features &= !feature::VERSION_1), lacks("VIRTIO_F_VERSION_1"));
    assert_eq!(refusal(&|backend| backend.features &= !PROTOCOL_FEATURES), lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
    assert_eq!(
        refusal(&|backend| backend.queues = 1),
        "the vhost-user backend at `SOCKET` has 1 queues, and 2 are needed\n  try: fewer `queues`, or a backend started with more"
    );
    let backend = TestBackend::start(Behaviour::default());
    let mut form = config(&backend, LONG);
    form.socket.set_extension("none");
    let error = VhostUser::new(&form).err().unwrap().to_string();
    assert!(error.ends_with("\n  try: start the backend first, with this path"), "{error}");
    let left = form.socket.with_extension("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    form.socket = left;
    let error = VhostUser::new(&form).err().unwrap().to_string();
    assert!(error.ends_with("the socket is there, and nobody listens"), "{error}");
}

#[test]
fn private_memory_is_refused() {
    let backend = TestBackend::start(Behaviour::default());
    let device = VhostUser::new(&config(&backend, LONG)).unwrap();
    let map = MemoryMap::new();
    let private = Arc::new(Backing::new(0x10_0000, &RamOptions::default()).unwrap());
    map.add(Region::new("RAM", RegionKind::Ram, 0, 0x10_0000, private, 0).unwrap()).unwrap();
    let error = map.listen(device.listener()).err().unwrap().to_string();
    assert_eq!(
        error,
        "vhost-user refuses guest memory `RAM` at 0x0: other processes can't map it\n  try: --memory SIZE,shared"
    );
}

#[test]
fn what_is_in_flight_ends_before_a_queue_has_stopped() {
    for pace in [Pace::AtStop, Pace::AfterStop] {
        let backend = TestBackend::start(Behaviour { pace, ..Behaviour::default() });
        let mut rig = rig(&backend);
        rig.send(1, &[Piece::Read(b"slow"), Piece::Write(64)]);
        // Which the backend has taken when it has seen what was sent after it, in the same thread.
        let stopped = loop {
            let state = rig.stop_all()[1];
            if state.next == 1 {
                break state;
            }
            rig.start_all(&[QueueState::default(), state]);
        };
        assert_eq!((stopped.broken, rig.rings[1].used_index()), (false, 1), "{pace:?}");
    }
}

#[test]
fn a_backend_that_never_ends_a_request_is_given_up() {
    let backend = TestBackend::start(Behaviour { pace: Pace::Never, ..Behaviour::default() });
    let mut rig = idle(&backend, SHORT);
    rig.start_all(&[]);
    rig.send(1, &[Piece::Read(b"lost"), Piece::Write(64)]);
    loop {
        let state = rig.stop_all()[1];
        if state.broken {
            assert_eq!(state.next, 0, "it has used nothing");
            break;
        }
        rig.start_all(&[QueueState::default(), state]);
    }
    rig.wait_told(Told::NeedsReset);
}

/// The requests in which a device that runs and stops takes part.
const HANDSHAKE: [Request; 5] = [
    Request::GetFeatures,
    Request::GetProtocolFeatures,
    Request::GetQueueNum,
    Request::SetOwner,
    Request::SetProtocolFeatures,
];
/// A disk before `backend`.
fn disk(backend: &TestBackend, queues: u16, patience: Duration) -> Result<Arc<VhostUser>, VhostUserError> {
    VhostUser::new(&VhostUserConfig { kind: VhostUserKind::Blk, queues, ..config(backend, patience) })
}

#[test]
fn a_disks_configuration_is_the_backends() {
    let backend = TestBackend::start(Behaviour {
        features: Behaviour::default().features | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 33,
        config: (0..60).collect(),
        ..Behaviour::default()
    });
    let device = disk(&backend, 3, LONG).unwrap();
    assert_eq!(device.queue_sizes(), [256; 3]);
    assert_eq!(device.features(), 1 << 9 | 1 << 11 | 1 << 12, "what came later is not passed on");
    let mut rig = Rig::idle(device, false);
    rig.guest.map.listen(rig.device.listener()).unwrap();
    rig.start_all(&[]);
    echo(&mut rig, 2, b"sector");
    let mut space = [0; 64];
    rig.device.read_config(0, &mut space);
    assert_eq!((space[33], space[34], space[35], space[59], space[60]), (33, 3, 0, 59, 0));
    // The guest sets what it may, and the backend hears of it; a reset takes it back.
    rig.device.write_config(0, &[9]);
    rig.device.write_config(32, &[1]);
    assert_eq!(rig.device.save().writeback, Some(1));
    rig.device.restore(&VhostUserState { device: 2, writeback: Some(0) }).unwrap();
    rig.stop_all();
    rig.device.reset();
    assert_eq!(rig.device.save().writeback, None);
    rig.begin_stop(0).recv().unwrap();
    let told = backend.log().iter().filter(|request| **request == Request::SetConfig as u32).count();
    assert_eq!(told, 3);
    rig.device.read_config(32, &mut space[..1]);
    assert_eq!(space[0], 32);
}

#[test]
fn a_change_of_the_configuration_is_passed_on() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = Rig::idle(disk(&backend, 1, LONG).unwrap(), false);
    rig.guest.map.listen(rig.device.listener()).unwrap();
    rig.start_all(&[]);
    assert_eq!(backend.change_config(vec![7; 60]), 0);
    rig.wait_told(Told::Config);
    let mut size = [0; 8];
    rig.device.read_config(0, &mut size);
    assert_eq!(size, [7; 8]);
    echo(&mut rig, 0, b"it goes on");
    // Another configuration than a whole one, and words that are none.
    backend.behave(|behaviour| behaviour.config.truncate(59));
    backend.say(true, &Header { request: CONFIG_CHANGED, flags: VERSION, size: 0 }.bytes());
    rig.wait_told(Told::NeedsReset);
    backend.behave(|behaviour| behaviour.config.push(0));
    let states: Vec<_> = rig.stop_all().iter().map(|state| QueueState { broken: false, ..*state }).collect();
    rig.start_all(&states);
    // The new connection is there when this has been answered.
    rig.begin_stop(0).recv().unwrap();
    backend.say(true, &Header { request: 9, flags: VERSION, size: u32::MAX }.bytes());
    rig.wait_told(Told::NeedsReset);
}

#[test]
fn a_disk_needs_a_configuration() {
    let without = Behaviour { protocol: protocol::MQ, ..Behaviour::default() };
    let error = disk(&TestBackend::start(without), 1, LONG).err().unwrap().to_string();
    assert!(error.contains("lacks VHOST_USER_PROTOCOL_F_CONFIG"), "{error}");
    for request in [Request::GetConfig, Request::SetBackendReqFd] {
        for fault in nonsense(request) {
            let what = format!("{request:?}: {fault:?}");
            let backend = TestBackend::start(Behaviour { fault: Some((request, fault)), ..Behaviour::default() });
            assert!(disk(&backend, 1, SHORT).is_err(), "{what}");
        }
    }
}

const LIFE: [Request; 9] = [
    Request::SetFeatures,
    Request::SetMemTable,
    Request::SetVringNum,
    Request::SetVringBase,
    Request::SetVringAddr,
    Request::SetVringCall,
    Request::SetVringKick,
    Request::SetVringEnable,
    Request::GetVringBase,
];

fn reply(request: u32, flags: u32, body: &[u8]) -> Fault {
    Fault::Answer([Header { request, flags, size: body.len() as u32 }.bytes(), body.to_vec()].concat())
}

/// Answers that no backend in its right mind gives.
fn nonsense(request: Request) -> Vec<Fault> {
    let (number, fine) = (request as u32, VERSION | REPLY);
    let mut faults = vec![
        Fault::Close,
        Fault::Hang,
        reply(number + 1, fine, &[0; 8]),
        reply(number, VERSION, &[0; 8]),
        reply(number, REPLY, &[0; 8]),
        reply(number, fine, &[0; 3]),
        reply(number, fine, &[]),
        Fault::Answer(Header { request: number, flags: fine, size: MOST as u32 + 1 }.bytes()),
        Fault::Answer(Header { request: number, flags: fine, size: u32::MAX }.bytes()),
        Fault::Answer(vec![0; HEADER - 1]),
    ];
    if request == Request::GetVringBase {
        faults.extend([[9, 0], [0, 0x1_0000]].map(|words| reply(number, fine, &of_words(&words))));
    } else if LIFE.contains(&request) {
        faults.push(reply(number, fine, &1u64.to_le_bytes()));
    }
    faults
}

#[test]
fn whatever_a_backend_does_at_first_there_is_no_device() {
    for request in HANDSHAKE {
        let mut faults = nonsense(request);
        if request == Request::SetProtocolFeatures {
            // It has no answer yet, so that what comes is none of the next request's.
            faults.truncate(4);
        }
        for fault in faults {
            let what = format!("{request:?}: {fault:?}");
            let backend = TestBackend::start(Behaviour { fault: Some((request, fault)), ..Behaviour::default() });
            assert!(VhostUser::new(&config(&backend, SHORT)).is_err(), "{what}");
            // It is as good as any afterwards, where the first try has come as far as to that request.
            backend.behave(|behaviour| behaviour.fault = None);
            VhostUser::new(&config(&backend, LONG)).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn whatever_a_backend_does_later_the_device_asks_to_be_reset_and_stops() {
    for request in LIFE {
        for fault in nonsense(request) {
            let what = format!("{request:?}: {fault:?}");
            let backend = TestBackend::start(Behaviour::default());
            let mut rig = idle(&backend, SHORT);
            backend.behave(|behaviour| behaviour.fault = Some((request, fault)));
            rig.start_all(&[]);
            let states = rig.stop_all();
            assert!(states.iter().any(|state| state.broken), "{what}: {states:?}");
            rig.wait_told(Told::NeedsReset);
        }
    }
}

#[test]
fn another_backend_is_found_after_a_reset() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"before");
    backend.close();
    rig.wait_told(Told::NeedsReset);
    let states = rig.stop_all();
    assert_eq!(states[1], QueueState { next: 1, broken: true });
    // It stands still until it is reset.
    rig.start_all(&states);
    assert_eq!(rig.stop_all(), states);
    rig.device.reset();
    let fresh = |state: QueueState| QueueState { broken: false, ..state };
    rig.start_all(&[fresh(states[0]), fresh(states[1])]);
    echo(&mut rig, 1, b"after");
    // One that can do less is none.
    backend.behave(|behaviour| behaviour.features &= !feature::INDIRECT);
    backend.close();
    rig.wait_told(Told::NeedsReset);
    rig.stop_all();
    rig.start_all(&[]);
    rig.wait_told(Told::NeedsReset);
    assert!(rig.stop_all()[1].broken);
}

#[test]
fn a_backend_that_speaks_unasked_is_given_up() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"all is well");
    backend.say(false, b"?");
    rig.wait_told(Told::NeedsReset);
    let states = rig.stop_all();
    assert!(states.iter().all(|state| state.broken), "{states:?} {:?}", backend.log());
}

#[test]
fn a_queue_that_is_none_is_kept_from_the_backend() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = idle(&backend, LONG);
    let fine = rig.rings[1].config;
    for config in [
        QueueConfig { size: 3, ..fine },
        QueueConfig { size: 2048, ..fine },
        QueueConfig { descriptors: 8, ..fine },
        QueueConfig { used: u64::MAX - 3, ..fine },
    ] {
        rig.rings[1].config = config;
        rig.start_all(&[]);
        rig.wait_told(Told::NeedsReset);
        let states = rig.stop_all();
        assert_eq!((states[0].broken, states[1].broken), (false, true));
    }
    rig.guest.master.set(false);
    rig.rings[1].config = fine;
    rig.start_all(&[]);
    rig.wait_told(Told::NeedsReset);
    assert!(rig.stop_all()[1].broken);
    let started = backend.log().iter().filter(|request| **request == Request::SetVringKick as u32).count();
    assert_eq!(started, 4, "the first queue, while it may reach memory");
}

#[test]
fn memory_that_comes_is_told() {
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"before");
    let shared = RamOptions { shared: true, ..RamOptions::default() };
    let more = Arc::new(Backing::new(0x1_0000, &shared).unwrap());
    let gpa = 0x8000_0000;
    rig.guest.map.add(Region::new("more", RegionKind::Ram, gpa, 0x1_0000, more, 0).unwrap()).unwrap();
    rig.guest.write(gpa, b"elsewhere");
    // The thread takes its commands in their order: the backend knows of the memory before the queue goes on.
    let states = rig.stop_all();
    rig.start_all(&states);
    let used = rig.call(1, &[Piece::At { gpa, len: 9, write: false }, Piece::Write(64)]);
    assert_eq!(used.data, b"elsewhere");
    rig.guest.map.remove(gpa).unwrap();
    rig.stop_all();
    let tables = backend.log().iter().filter(|request| **request == Request::SetMemTable as u32).count();
    assert_eq!(tables, 4);
}

/// A driver to whom interrupts come by an eventfd.
struct Wired(EventFd, std::sync::Mutex<std::sync::mpsc::Sender<u16>>);

impl Notifier for Wired {
    fn used(&self, queue: u16) {
        self.1.lock().unwrap().send(queue).unwrap();
    }

    fn used_eventfd(&self, _queue: u16) -> Option<EventFd> {
        self.0.try_clone().ok()
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {}
}

#[test]
fn interrupts_go_past_the_thread_where_they_can() {
    let backend = TestBackend::start(Behaviour::default());
    let device = VhostUser::new(&config(&backend, LONG)).unwrap();
    let (sender, passed_on) = channel();
    let event = EventFd::new(0).unwrap();
    device.attach(Arc::new(Wired(event.try_clone().unwrap(), std::sync::Mutex::new(sender))));
    let mut rig = Rig::idle(device, false);
    rig.guest.map.listen(rig.device.listener()).unwrap();
    rig.start_all(&[]);
    rig.send(1, &[Piece::Read(b"x"), Piece::Write(1)]);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(rig.rings[1].take_used().unwrap().data, b"x");
    rig.stop_all();
    assert!(passed_on.try_recv().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A backend answers one request with anything at all.
    #[test]
    fn fuzz_answers(at in 0usize..14, answer in proptest::collection::vec(any::<u8>(), 0..64), framed: bool) {
        let request = HANDSHAKE.iter().chain(&LIFE).copied().nth(at).unwrap();
        let fault = if framed { reply(request as u32, VERSION | REPLY, &answer) } else { Fault::Answer(answer) };
        let backend = TestBackend::start(Behaviour { fault: Some((request, fault)), ..Behaviour::default() });
        if let Ok(device) = VhostUser::new(&config(&backend, SHORT)) {
            let mut rig = Rig::idle(device, false);
            rig.guest.map.listen(rig.device.listener()).unwrap();
            rig.start_all(&[]);
            rig.stop_all();
        }
    }

    /// A driver starts queues wherever it likes, and stops them.
    #[test]
    fn fuzz_queues(size: u16, places: [u64; 3], offset in 0u64..0x1_0000, near: bool, next: u16) {
        let backend = TestBackend::start(Behaviour { pace: Pace::Never, ..Behaviour::default() });
        let mut rig = idle(&backend, LONG);
        let place = |gpa: u64| if near { RAM + (gpa % 0x1_0000 + offset) / 16 * 16 } else { gpa };
        let [descriptors, available, used] = places.map(place);
        let size = if near { 1 << (size % 11) } else { size };
        rig.rings[1].config = QueueConfig { size, descriptors, available, used, event_index: false, indirect: false };
        rig.start_all(&[QueueState::default(), QueueState { next, broken: false }]);
        rig.begin_stop(0).recv().unwrap();
        drop(rig.begin_stop(1));
    }
}

#[test]
fn protocol_features_are_asked_for_only_where_they_are_used() {
    let backend = TestBackend::start(Behaviour { protocol: protocol::CONFIG, ..Behaviour::default() });
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"no answers to what has none");
    assert_eq!(rig.stop_all()[1].next, 1);
    assert!(!backend.log().contains(&(Request::GetQueueNum as u32)));
}

#[test]
fn a_state_is_taken_or_refused() {
    use skep_state::{Component, Record};
    let backend = TestBackend::start(Behaviour::default());
    let mut rig = rig(&backend);
    echo(&mut rig, 1, b"a life");
    let states = rig.stop_all();
    let good = rig.device.save_record();
    let mut twin = idle(&backend, LONG);
    twin.device.restore_record(&good).unwrap();
    assert_eq!(twin.device.save_record(), good);
    // Guest memory is saved as well: here it is another, whose rings are new.
    twin.start_all(&[]);
    echo(&mut twin, 1, b"another");
    assert_eq!(twin.stop_all()[1].next, states[1].next);
    for place in 0..good.body.len() {
        for value in [0, 1, 2, 0x1b, 0x7f, 0xff] {
            let mut body = good.body.clone();
            body[place] = value;
            if twin.device.restore_record(&Record { body, ..good.clone() }).is_ok() {
                twin.device.restore_record(&twin.device.save_record()).unwrap();
            }
        }
    }
    let other = VhostUserState { device: DeviceType::BLOCK.id, writeback: None };
    let error = twin.device.restore(&other).unwrap_err().to_string();
    assert!(error.contains("this is a device of another type"), "{error}");
}
