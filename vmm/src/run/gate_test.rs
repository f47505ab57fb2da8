use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;

/// A "vCPU" that stays inside until it is kicked.
#[derive(Default)]
struct Runner {
    kicked: Mutex<bool>,
    changed: Condvar,
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
        self.runs.fetch_add(1, Ordering::Relaxed);
        let mut kicked = self.kicked.lock().unwrap();
        while !*kicked {
            kicked = self.changed.wait(kicked).unwrap();
        }
        *kicked = false;
    }
}

#[test]
fn closing_empties_the_gate_and_ending_ends_the_threads() {
    let gate = Arc::new(Gate::default());
    let runners: Vec<_> = (0..16).map(|_| Arc::new(Runner::default())).collect();
    gate.set_kickers(runners.iter().map(|r| r.clone() as Arc<dyn Kick>).collect());
    let threads: Vec<_> = runners
        .iter()
        .map(|runner| {
            let (gate, runner) = (gate.clone(), runner.clone());
            thread::spawn(move || {
                while gate.enter() {
                    while gate.is_open() {
                        runner.run();
                    }
                    gate.leave();
                }
            })
        })
        .collect();
    for _ in 0..100 {
        gate.open();
        gate.close_and_wait();
        assert_eq!(gate.lock().inside, 0);
    }
    gate.open();
    gate.end();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_closed_gate_lets_nobody_in() {
    let gate = Gate::default();
    gate.end();
    assert!(!gate.enter());
    assert!(!gate.is_open());
}
