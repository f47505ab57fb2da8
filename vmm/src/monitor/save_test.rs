use std::thread;

use skep_clock::Clock;
use skep_config::{ArchKind, Size};
use skep_hypervisor::X86_64;
use skep_hypervisor::fake::Fake;
use skep_memory::MemoryMap;

use super::*;
use crate::machine::Services;

fn machine(gate: &Arc<Gate>) -> Machine<X86_64> {
    let mut config = Config::new(ArchKind::X86_64);
    config.memory.size = Size(64 << 20);
    let services = Services {
        clock: Clock::host(),
        requests: skep_chipset::Requests::new(|_| ()),
        serial: Box::new(()),
        memory: MemoryMap::new(),
        firmware: None,
    };
    Machine::new(&config, &Fake::<X86_64>::default(), gate.clone(), services).unwrap()
}

/// The counters that the backend keeps go by the host's time: a clock that has gone on by more would be ahead of them, more with each pause.
#[test]
fn a_pause_does_not_put_the_clock_ahead_of_the_hosts_however_long_a_vcpu_takes_to_stop() {
    const LATE: u64 = 20_000_000;
    let gate = Arc::<Gate>::default();
    let requests = Arc::new(Requests::new(gate.clone()).unwrap());
    let mut machine = machine(&gate);
    let clock = machine.clock().clone();
    let mut control = Control::new(&clock, requests.clone()).unwrap();
    gate.open();
    assert!(gate.enter());
    let begin = Instant::now();
    clock.resume();
    let mut standing = Standing::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            while gate.is_open() {
                thread::yield_now();
            }
            let closed = clock.now();
            while clock.now() < closed + LATE {
                thread::yield_now();
            }
            gate.leave();
        });
        let mut parts = Parts { machine: &mut machine, control: &mut control, requests: &requests, gate: &gate };
        assert!(matches!(standing.freeze(&mut parts, Purpose::Pause).unwrap(), Frozen::Still));
    });
    let stood = clock.now();
    assert_eq!(clock.now(), stood);
    standing.thaw(&machine);
    assert!(!standing.is_still());
    let (passed, most) = (clock.now(), nanos(begin.elapsed()));
    assert!(stood >= LATE && (stood..=most).contains(&passed), "{passed} ns have passed in {most}");
}

#[test]
fn a_machine_that_stands_catches_up_by_what_has_passed_since() {
    let machine = machine(&Arc::default());
    let mut standing = Standing::paused();
    for _ in 0..3 {
        let (before, clocks) = (standing.since.unwrap(), (machine.clock().now(), machine.clock().wall()));
        let since = standing.catch_up(&machine);
        let passed = nanos(since - before);
        assert_eq!(standing.since, Some(since));
        assert_eq!(machine.clock().now(), clocks.0 + passed);
        assert_eq!(machine.clock().wall(), clocks.1 + i128::from(passed));
    }
}

#[test]
fn a_guest_that_has_asked_for_its_end_is_heard_before_it_is_paused() {
    let gate = Arc::<Gate>::default();
    let requests = Arc::new(Requests::new(gate.clone()).unwrap());
    let mut machine = machine(&gate);
    let mut control = Control::new(&machine.clock().clone(), requests.clone()).unwrap();
    let mut standing = Standing::default();
    let mut pause = |control: &mut Control| {
        let mut parts = Parts { machine: &mut machine, control, requests: &requests, gate: &gate };
        assert!(standing.pause(&mut parts, Reply::to_nobody()).unwrap().is_none());
        standing.is_still()
    };

    requests.send(Request::PowerOff);
    assert!(!pause(&mut control));
    assert!(matches!(control.next_request().unwrap(), Request::PowerOff));
    assert!(pause(&mut control));
}
