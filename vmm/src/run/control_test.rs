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
#[allow(unsafe_code)]
fn a_signal_is_a_request_to_stop() {
    let (mut control, _requests) = control(&Clock::host());
    // SAFETY: the signal is blocked in this thread and only makes its signalfd readable.
    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
    assert!(matches!(control.next_request(), Ok(Request::Stop(StopReason::Signal(libc::SIGTERM)))));
}
