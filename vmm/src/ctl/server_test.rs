use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use event_manager::{EventManager, SubscriberOps};

use super::super::protocol::{Answer, Nothing};
use super::*;
use crate::ctl::Command;
use crate::run::Gate;

/// A socket on a control loop, and whoever obeys.
struct Bench {
    manager: EventManager<Subscriber>,
    requests: Arc<Requests>,
    gate: Arc<Gate>,
    calls: VecDeque<Call>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let gate = Arc::new(Gate::default());
        let requests = Arc::new(Requests::new(gate.clone()).unwrap());
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(Server::bind(&path).unwrap().attach(requests.clone()));
        Self { manager, requests, gate, calls: VecDeque::new(), path, _folder: folder }
    }

    /// Lets the control loop handle what there is. Where there is nothing, the test has failed.
    fn turn(&mut self) {
        assert!(self.manager.run_with_timeout(10_000).unwrap() > 0, "the socket waits for nothing");
        while let Some(request) = self.requests.take() {
            let run::Request::Command(call) = request else { panic!("{request:?}") };
            self.calls.push_back(call);
        }
    }

    /// Handles all there is.
    fn settle(&mut self) {
        while self.manager.run_with_timeout(0).unwrap() > 0 {}
    }

    fn call(&mut self) -> Call {
        while self.calls.is_empty() {
            self.turn();
        }
        self.calls.pop_front().unwrap()
    }

    fn connect(&mut self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Client(BufReader::new(stream), String::new())
    }
}

struct Client(BufReader<UnixStream>, String);

impl Client {
    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next line; empty at the end.
    fn hear(&mut self, bench: &mut Bench) -> String {
        loop {
            match self.0.read_line(&mut self.1) {
                Ok(_) => return std::mem::take(&mut self.1),
                Err(_) => bench.turn(),
            }
        }
    }
}

fn done(call: Call) {
    call.reply.send(Ok(Answer::Nothing(Nothing {})));
}

#[test]
fn a_client_is_greeted_and_answered() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let greeting = format!("{{\"protocol\":1,\"skep\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(client.hear(&mut bench), greeting);
    client.say("{\"id\":1,\"command\":\"quit\"}\n{\"id\":2,\"command\":\"stats\"}\n");
    let (first, second) = (bench.call(), bench.call());
    assert_eq!((&first.command, &second.command), (&Command::Quit, &Command::Stats));
    // From any thread, in any order.
    std::thread::spawn(move || done(second)).join().unwrap();
    assert_eq!(client.hear(&mut bench), "{\"id\":2,\"result\":{}}\n");
    drop(first);
    let ended = client.hear(&mut bench);
    assert!(ended.starts_with("{\"id\":1,\"error\":{\"kind\":\"ended\""), "{ended}");
}

#[test]
fn who_has_said_all_still_hears() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.say("{\"command\":\"reset\"}\n");
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    client.hear(&mut bench);
    let call = bench.call();
    bench.settle();
    done(call);
    assert_eq!(client.hear(&mut bench), "{\"id\":null,\"result\":{}}\n");
    assert_eq!(client.hear(&mut bench), "", "and is let go then");
}

#[test]
fn a_client_that_goes_is_forgotten() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.say("{\"command\":\"reset\"}\n{\"comm");
    let call = bench.call();
    drop(client);
    bench.settle();
    done(call);
    bench.settle();
    // What it said before it went is heard.
    let mut other = bench.connect();
    other.say("{\"command\":\"quit\"}\n");
    drop(other);
    assert_eq!(bench.call().command, Command::Quit);
    bench.settle();
}

#[test]
fn nonsense_is_answered_and_changes_nothing() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.hear(&mut bench);
    for text in ["\u{0}\n", "{}\n", "{\"id\":5,\"command\":\"dance\"}\n", "\"quit\"\n"] {
        client.say(text);
        let answer = client.hear(&mut bench);
        assert!(answer.contains("\"error\":{\"kind\":\""), "{answer}");
    }
    client.0.get_mut().write_all(&[0xff, 0xfe, b'\n']).unwrap();
    assert!(client.hear(&mut bench).contains("bad-request"));
    client.say("{\"command\":\"quit\"}\n");
    assert_eq!(bench.call().command, Command::Quit);
    assert!(bench.calls.is_empty());
}

#[test]
fn a_line_without_an_end_is_refused() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.hear(&mut bench);
    let mut left = MOST_LINE + 1;
    while left > 0 {
        match client.0.get_mut().write(&vec![b'['; left]) {
            Ok(count) => left -= count,
            Err(_) => bench.turn(),
        }
    }
    assert!(client.hear(&mut bench).contains("a request has at most 65536 bytes"));
    assert_eq!(client.hear(&mut bench), "");
}

#[test]
fn one_who_asks_and_never_reads_is_heard_no_more() {
    let mut bench = Bench::new();
    let mut deaf = bench.connect();
    let mut said = 0;
    // Until neither side takes any more.
    while bench.manager.run_with_timeout(0).unwrap() > 0 || {
        let more = deaf.0.get_mut().write(b"{\"id\":1,\"command\":\"dance\"}\n").is_ok();
        said += usize::from(more);
        more
    } {}
    assert!(said > 100, "{said}");
    let mut other = bench.connect();
    other.hear(&mut bench);
    other.say("{\"command\":\"quit\"}\n");
    assert_eq!(bench.call().command, Command::Quit);
    // It may begin to read at any time.
    let mut answers = 0;
    let mut chunk = [0; 4096];
    while answers < said {
        match deaf.0.get_mut().read(&mut chunk) {
            Ok(count) => answers += chunk[..count].iter().filter(|byte| **byte == b'\n').count(),
            Err(_) => bench.turn(),
        }
    }
}

#[test]
fn there_is_always_room_for_one_more() {
    let mut bench = Bench::new();
    let mut busy = bench.connect();
    busy.hear(&mut bench);
    busy.say("{\"id\":1,\"command\":\"stats\"}\n");
    let call = bench.call();
    let mut idle: Vec<Client> = (0..3 * MOST_CONNECTIONS)
        .map(|_| {
            let mut client = bench.connect();
            client.hear(&mut bench);
            client
        })
        .collect();
    assert_eq!(idle[0].hear(&mut bench), "", "it was silent longest");
    let last = idle.last_mut().unwrap();
    last.say("{\"command\":\"quit\"}\n");
    assert_eq!(bench.call().command, Command::Quit);
    done(call);
    assert_eq!(busy.hear(&mut bench), "{\"id\":1,\"result\":{}}\n");
}

#[test]
fn what_was_done_last_is_told_at_the_end() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.hear(&mut bench);
    client.say("{\"id\":1,\"command\":\"quit\"}\n");
    let call = bench.call();
    done(call);
    let Bench { manager, path, .. } = bench;
    drop(manager);
    let mut rest = String::new();
    client.0.get_mut().set_nonblocking(false).unwrap();
    client.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "{\"id\":1,\"result\":{}}\n");
    assert!(!path.exists());
}

#[test]
fn a_command_leaves_the_guest_running() {
    let mut bench = Bench::new();
    bench.requests.open_gate();
    let mut client = bench.connect();
    client.say("{\"command\":\"stats\"}\n");
    done(bench.call());
    assert!(bench.gate.is_open());
    // What came meanwhile keeps it standing.
    bench.requests.send(run::Request::Reset);
    bench.requests.open_gate();
    assert!(!bench.gate.is_open());
    assert!(matches!(bench.requests.take(), Some(run::Request::Reset)));
    bench.requests.open_gate();
    assert!(bench.gate.is_open());
}
