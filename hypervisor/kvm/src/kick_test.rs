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
            let mut signals = MaybeUninit::zeroed();
            // SAFETY: zeroes are an empty set, to which one signal is added; that is blocked in this thread.
            let none = unsafe {
                let none: libc::sigset_t = signals.assume_init();
                libc::sigaddset(signals.as_mut_ptr(), signal());
                libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), ptr::null_mut());
                none
            };
            let flag = AtomicU8::new(0);
            // SAFETY: the flag outlives the guard.
            let _running = unsafe { kicker.running(&raw const flag) };
            ready.send(()).unwrap();
            // SAFETY: no descriptors, no end, and the set lives: it waits for a signal, as KVM_RUN does, and takes one that came before.
            let answer = unsafe { libc::ppoll(ptr::null_mut(), 0, ptr::null(), &raw const none) };
            (answer, flag.load(Ordering::SeqCst), kicker.take())
        })
    };
    is_ready.recv().unwrap();
    kicker.kick();
    assert_eq!(runner.join().unwrap(), (-1, 1, true));
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
