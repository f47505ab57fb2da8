use std::sync::mpsc;

use super::*;

/// Reports what happens to it, and has work for as many rounds as it was told.
struct Reporter {
    bell: EventFd,
    rounds: u32,
    armed: Arc<Mutex<u32>>,
    out: mpsc::Sender<String>,
}

impl Job for Reporter {
    type Command = u32;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(&self.bell, 7, EventSet::IN)
    }

    fn command(&mut self, rounds: u32) {
        self.rounds += rounds;
    }

    fn ready(&mut self, token: u64, _events: EventSet) {
        self.out.send(format!("bell {token}")).unwrap();
    }

    fn work(&mut self) -> bool {
        if self.rounds == 0 {
            return false;
        }
        self.rounds -= 1;
        self.out.send(format!("round, {} left", self.rounds)).unwrap();
        true
    }

    fn peek(&mut self) -> bool {
        self.rounds > 0
    }

    fn arm(&mut self) -> bool {
        *self.armed.lock().unwrap() += 1;
        false
    }
}

type Rig = (Worker<u32>, EventFd, mpsc::Receiver<String>, Arc<Mutex<u32>>);

fn worker(poll: Duration) -> Rig {
    let rig = waiting(poll);
    rig.0.begin();
    rig
}

fn waiting(poll: Duration) -> Rig {
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let (out, events) = mpsc::channel();
    let armed = Arc::new(Mutex::new(0));
    let job = Reporter { bell: bell.try_clone().unwrap(), rounds: 0, armed: armed.clone(), out };
    (Worker::wait("reporter", poll, job).unwrap(), bell, events, armed)
}

#[test]
fn commands_and_bells_wake_it_and_dropping_ends_it() {
    for poll in [Duration::ZERO, Duration::from_micros(50)] {
        let (worker, bell, events, _) = worker(poll);
        worker.send(2);
        assert_eq!(events.recv().unwrap(), "round, 1 left");
        assert_eq!(events.recv().unwrap(), "round, 0 left");
        for _ in 0..3 {
            bell.write(1).unwrap();
            assert_eq!(events.recv().unwrap(), "bell 7", "an edge each, though nobody reads the counter");
        }
        drop(worker);
        assert!(events.recv().is_err(), "the job has gone with its thread");
    }
}

#[test]
fn one_that_waits_has_no_thread_before_its_first_command() {
    let (worker, bell, events, _) = waiting(Duration::ZERO);
    bell.write(1).unwrap();
    worker.leave(1);
    assert!(locked(&worker.thread).is_none() && events.try_recv().is_err());
    // What was left to it and what came for it meanwhile are not lost.
    worker.send(1);
    let heard: Vec<String> = events.iter().take(3).collect();
    for expected in ["round, 1 left", "round, 0 left", "bell 7"] {
        assert!(heard.iter().any(|event| event == expected), "{heard:?}");
    }
    let name = locked(&worker.thread).as_ref().and_then(|thread| thread.thread().name().map(str::to_owned));
    assert_eq!(name.as_deref(), Some("reporter"));
    drop(worker);

    let (worker, _, events, _) = waiting(Duration::ZERO);
    drop(worker);
    assert!(events.recv().is_err(), "the job has gone, though no thread has done it");
}

#[test]
fn a_bell_is_heard_while_it_is_busy() {
    let (worker, bell, events, armed) = worker(Duration::ZERO);
    bell.write(1).unwrap();
    worker.send(1000);
    drop(worker);
    let heard: Vec<_> = events.iter().filter(|event| event == "bell 7").collect();
    assert!(heard.len() <= 1);
    assert!(*armed.lock().unwrap() <= 2, "it sleeps only when there is nothing to do");
}

#[test]
fn a_job_that_can_not_register_makes_no_thread() {
    struct Refused;
    impl Job for Refused {
        type Command = ();
        fn register(&mut self, _: &Sources) -> io::Result<()> {
            Err(io::Error::other("no"))
        }
        fn command(&mut self, (): ()) {}
        fn ready(&mut self, _: u64, _: EventSet) {}
    }
    assert!(Worker::spawn("refused", Duration::ZERO, Refused).is_err());
}
