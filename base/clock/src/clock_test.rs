use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn timers_run_in_order_at_their_own_time() {
    let clock = Clock::manual(0);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let (clock, seen) = (clock.clone(), seen.clone());
        move || seen.lock().unwrap().push((name, clock.now()))
    };
    let (late, early, never) = (clock.timer(note("late")), clock.timer(note("early")), clock.timer(note("never")));
    late.arm(200);
    early.arm(100);
    never.arm(150);
    never.disarm();
    clock.advance(99);
    assert!(seen.lock().unwrap().is_empty());
    clock.advance(1000);
    assert_eq!(*seen.lock().unwrap(), [("early", 100), ("late", 200)]);
    assert_eq!(clock.now(), 1099);
}

#[test]
fn a_callback_may_arm_its_own_timer() {
    let clock = Clock::manual(0);
    let count = Arc::new(AtomicUsize::new(0));
    let slot: Arc<Mutex<Option<Timer>>> = Arc::default();
    let timer = clock.timer({
        let (clock, count, slot) = (clock.clone(), count.clone(), slot.clone());
        move || {
            count.fetch_add(1, Ordering::Relaxed);
            if let Some(timer) = &*slot.lock().unwrap() {
                timer.arm(clock.now() + 10);
            }
        }
    });
    timer.arm(10);
    *slot.lock().unwrap() = Some(timer);
    clock.advance(55);
    assert_eq!(count.load(Ordering::Relaxed), 5);
    slot.lock().unwrap().take();
    clock.advance(100);
    assert_eq!(count.load(Ordering::Relaxed), 5, "a dropped timer is disarmed");
}

#[test]
fn a_paused_host_clock_stands_and_runs_no_timer() {
    let clock = Clock::host();
    let before = clock.now();
    let ran = Arc::new(AtomicUsize::new(0));
    let timer = clock.timer({
        let ran = ran.clone();
        move || {
            ran.fetch_add(1, Ordering::Relaxed);
        }
    });
    timer.arm(0);
    assert_eq!((clock.now(), clock.until_next(), clock.run_due()), (before, None, 0));
    clock.resume();
    assert_eq!(clock.run_due(), 1);
    clock.pause();
    clock.set(1 << 40);
    assert_eq!(clock.now(), 1 << 40);
}

#[test]
fn the_wall_clock_follows_guest_time_from_where_it_was_set() {
    let clock = Clock::manual(1000);
    clock.advance(5_000_000_000);
    assert_eq!(clock.wall(), 1_005_000_000_000);
    clock.set_wall(7);
    clock.advance(3);
    assert_eq!(clock.wall(), 10);
    clock.set(0);
    assert_eq!(clock.wall(), 10, "setting guest time leaves the wall clock alone");
}

#[test]
fn the_waker_hears_of_a_changed_earliest_deadline_only() {
    let clock = Clock::manual(0);
    let woken = Arc::new(AtomicUsize::new(0));
    clock.set_waker(Box::new({
        let woken = woken.clone();
        move || {
            woken.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let (first, second) = (clock.timer(|| ()), clock.timer(|| ()));
    first.arm(10);
    second.arm(20);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    second.arm(5);
    assert_eq!(woken.load(Ordering::Relaxed), 2);
    assert_eq!(clock.until_next(), Some(Duration::from_nanos(5)));
}
