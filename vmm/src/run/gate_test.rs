use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle};

use super::*;

/// A "vCPU" that stays inside until it is kicked.
#[derive(Default)]
struct Runner {
    kicked: Mutex<bool>,
    changed: Condvar,
    is_inside: AtomicBool,
    runs: AtomicUsize,
}

impl Kick for Runner {
    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Runner {
    fn run(&self) {
        let mut kicked = self.kicked.lock().unwrap();
        while !*kicked {
            kicked = self.changed.wait(kicked).unwrap();
        }
        *kicked = false;
    }
}

const RUNNERS: usize = 16;

/// Runners at a gate that is closed, and their threads. Each does `first` whenever it has gone in.
fn runners(first: fn(&Gate)) -> (Arc<Gate>, Vec<Arc<Runner>>, Vec<JoinHandle<()>>) {
    let gate = Arc::new(Gate::default());
    let runners: Vec<_> = (0..RUNNERS).map(|_| Arc::new(Runner::default())).collect();
    gate.set_kickers(runners.iter().map(|r| r.clone() as Arc<dyn Kick>).collect());
    let start = |runner: &Arc<Runner>| {
        let (gate, runner) = (gate.clone(), runner.clone());
        thread::spawn(move || {
            while gate.enter() {
                runner.is_inside.store(true, Ordering::Relaxed);
                runner.runs.fetch_add(1, Ordering::Relaxed);
                first(&gate);
                while gate.is_open() {
                    runner.run();
                }
                runner.is_inside.store(false, Ordering::Relaxed);
                gate.leave();
            }
        })
    };
    let threads = runners.iter().map(start).collect();
    (gate, runners, threads)
}

fn count_inside(runners: &[Arc<Runner>]) -> usize {
    runners.iter().filter(|runner| runner.is_inside.load(Ordering::Relaxed)).count()
}

#[test]
fn closing_empties_the_gate_and_ending_ends_the_threads() {
    let (gate, runners, threads) = runners(|_| {});
    for round in 0..1000 {
        gate.open();
        if round % 2 == 0 {
            // Some are inside, and the others on their way.
            while count_inside(&runners) < RUNNERS / 2 {
                thread::yield_now();
            }
        }
        gate.close_and_wait();
        assert_eq!((gate.inside.load(Ordering::SeqCst), count_inside(&runners)), (0, 0));
    }
    gate.open();
    gate.end();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(count_inside(&runners), 0);
}

#[test]
fn opening_wakes_all_that_wait() {
    let (gate, runners, threads) = runners(|_| {});
    for round in 1..=100 {
        gate.open();
        while count_inside(&runners) < RUNNERS {
            thread::yield_now();
        }
        gate.close_and_wait();
        assert!(runners.iter().all(|runner| runner.runs.load(Ordering::Relaxed) == round));
    }
    // They all wait at a closed gate now, or are about to.
    gate.end();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn who_is_inside_may_close_the_gate_and_does_not_wait() {
    let (gate, runners, threads) = runners(Gate::close);
    for round in 1..=100 {
        let runs = || runners.iter().map(|runner| runner.runs.load(Ordering::Relaxed)).sum::<usize>();
        let before = runs();
        gate.open();
        while gate.is_open() {
            thread::yield_now();
        }
        gate.close_and_wait();
        assert_eq!(count_inside(&runners), 0);
        assert!(runs() > before, "round {round}: one went in and closed it");
    }
    gate.end();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_closed_gate_lets_nobody_in() {
    let gate = Gate::default();
    gate.end();
    assert!(!gate.enter());
    assert!(!gate.is_open());
    gate.open();
    assert!(!gate.is_open(), "its end is for good");
    assert!(!gate.enter());
    gate.close_and_wait();
}
