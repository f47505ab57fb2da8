use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::super::{Gate, StopReason};
use super::*;

fn control(clock: &Clock) -> (Control, Arc<Requests>) {
    let requests = Arc::new(Requests::new(Arc::new(Gate::default())).unwrap());
    (Control::new(clock, requests.clone()).unwrap(), requests)
}

#[test]
fn requests_come_in_their_order() {
    let (mut control, requests) = control(&Clock::host());
    requests.send(Request::PowerOff);
    let other = requests.clone();
    let thread = thread::spawn(move || other.send(Request::TripleFault { vcpu: 3 }));
    assert!(matches!(control.next_request(), Ok(Request::PowerOff)));
    assert!(matches!(control.next_request(), Ok(Request::TripleFault { vcpu: 3 })));
    thread.join().unwrap();
}

#[test]
fn timers_run_on_the_loop() {
    let clock = Clock::host();
    let (mut control, requests) = control(&clock);
    let ran = Arc::new(AtomicUsize::new(0));
    let timer = clock.timer({
        let (ran, requests) = (ran.clone(), requests.clone());
        move || {
            ran.fetch_add(1, Ordering::Relaxed);
            requests.send(Request::Reset);
        }
    });
    for round in 1..=3 {
        // Armed while time stands, run once it goes on.
        timer.arm(clock.now() + 1000);
        clock.resume();
        assert!(matches!(control.next_request(), Ok(Request::Reset)));
        clock.pause();
        assert_eq!(ran.load(Ordering::Relaxed), round);
    }
}

#[test]
fn a_timer_that_moves_as_it_fires_does_not_block_the_loop() {
    let clock = Clock::host();
    let (mut control, requests) = control(&clock);
    let timers = [(); 3].map(|()| {
        let requests = requests.clone();
        clock.timer(move || requests.send(Request::Reset))
    });
    clock.resume();
    let deadline = clock.now() + 2_000_000;
    timers[0].arm(deadline);
    timers[1].arm(clock.now());
    assert!(matches!(control.next_request(), Ok(Request::Reset)));
    // The loop is told of an earlier timer first, and of its own timer's end second, both before it looks.
    timers[2].arm(clock.now());
    while clock.now() < deadline + 2_000_000 {
        std::hint::spin_loop();
    }
    for _ in 0..2 {
        assert!(matches!(control.next_request(), Ok(Request::Reset)));
    }
    // One more round, in which a loop that reads what is no longer there would stay.
    timers[1].arm(clock.now());
    assert!(matches!(control.next_request(), Ok(Request::Reset)));
}

#[test]
#[allow(unsafe_code)]
fn a_signal_is_a_request_to_stop() {
    let (mut control, _requests) = control(&Clock::host());
    control.hear_signals().unwrap();
    // SAFETY: the signal is blocked in this thread and only makes its signalfd readable.
    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
    assert!(matches!(control.next_request(), Ok(Request::Stop(StopReason::Signal(libc::SIGTERM)))));
}
