use std::sync::mpsc;
use std::thread;

use super::*;

#[test]
fn a_kick_before_the_run_is_seen_by_it() {
    let (kicker, flag) = (Arc::new(Kicker::default()), AtomicU8::new(0));
    kicker.kick();
    kicker.kick();
    assert_eq!(flag.load(Ordering::SeqCst), 0, "nobody runs");
    // SAFETY: the flag lives as long as the test.
    let running = unsafe { kicker.running(&raw const flag) };
    assert_eq!(flag.load(Ordering::SeqCst), 1);
    assert!(kicker.take());
    assert!(!kicker.take(), "several kicks are one");
    drop(running);
}

#[test]
fn a_kick_during_the_run_interrupts_a_system_call() {
    install_handler().unwrap();
    let kicker = Arc::new(Kicker::default());
    let (ready, is_ready) = mpsc::channel();
    let runner = {
        let kicker = kicker.clone();
        thread::spawn(move || {
            let flag = AtomicU8::new(0);
            // SAFETY: the flag outlives the guard.
            let _running = unsafe { kicker.running(&raw const flag) };
            ready.send(()).unwrap();
            // Waits for any signal; one that has come already set the flag, as `immediate_exit` does for KVM_RUN.
            while flag.load(Ordering::SeqCst) == 0 {
                // SAFETY: no arguments but a time-out, which only bounds the wait for a signal that came between the test and the call.
                unsafe { libc::poll(ptr::null_mut(), 0, 10) };
            }
            kicker.take()
        })
    };
    is_ready.recv().unwrap();
    kicker.kick();
    assert!(runner.join().unwrap());
}

#[test]
fn a_kick_after_the_run_reaches_no_thread() {
    let (kicker, flag) = (Arc::new(Kicker::default()), AtomicU8::new(0));
    // SAFETY: the flag lives as long as the test.
    drop(unsafe { kicker.running(&raw const flag) });
    kicker.kick();
    assert_eq!(flag.load(Ordering::SeqCst), 0);
    assert!(kicker.take(), "it is kept for the next run");
}
