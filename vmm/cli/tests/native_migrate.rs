//! Machines that go from one process to another while their guests run, with the guests that are built in: on any /dev/kvm of either architecture.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use skep_vmm::migrate::wire::Kind;
use support::proxy::{Fault, Part, Proxy};
use support::rig::{Rig, SIZE, interrupted, load};
use support::{Builder, Finished, Machine, in_lab};

impl Rig {
    fn ctl(&self, socket: &str, words: &[&str]) -> Finished {
        self.ctl_at(socket, words)
    }

    /// A guest that echoes what it is sent.
    fn echo(&self, socket: &str) -> Machine {
        let words = ["hello", "echo", "--cpus", "2", "--memory", "64M", "--log", "info", "--control"];
        let mut machine = Builder::command(&[&words[..], &[&self.text(socket)]].concat()).start();
        machine.wait_for("echo: ready");
        machine
    }

    /// A process that waits for a machine at `name`, which has its control socket at `socket` then.
    fn receive(&self, name: &str, socket: &str, words: &[&str]) -> Machine {
        let (at, control) = (format!("unix:{}", self.text(name)), self.text(socket));
        let fixed = ["receive", &at, "--log", "info", "--control", &control];
        let mut machine = Builder::command(&[&fixed[..], words].concat()).start();
        machine.wait_for_log("waiting for a machine at unix:");
        machine
    }

    fn migrate(&self, socket: &str, name: &str) -> Finished {
        self.ctl(socket, &["migrate", &format!("unix:{}", self.text(name))])
    }
}

fn echoes(machine: &mut Machine, text: &str) {
    machine.send(&format!("{text}\r"));
    machine.wait_for(&format!("echo: {text}"));
}

#[test]
fn a_guest_goes_there_and_back() {
    let rig = Rig::new();
    let mut here = rig.echo("a");
    rig.ctl("a", &["migrate", "unix:/nowhere"]).expect_code(1).expect_log("try: `skep receive` there first");
    rig.ctl("a", &["migrate-cancel"]).expect_code(1).expect_log("does not migrate");
    // What keeps it from being there is told here.
    let there = rig.receive("to-nobody", "a", &[]);
    rig.migrate("a", "to-nobody").expect_code(1).expect_log("is another process's socket");
    there.finish().expect_code(1);
    echoes(&mut here, "one");
    for (from, to) in [("a", "b"), ("b", "c")] {
        let mut there = rig.receive(&format!("to-{to}"), to, &[]);
        // All of its memory may go while it stands still.
        let address = format!("unix:{}", rig.text(&format!("to-{to}")));
        rig.ctl(from, &["migrate", &address, "--downtime", "600000"])
            .expect_code(0)
            .expect_console("gone: ")
            .expect_console(" in 1 rounds, ")
            .expect_console("the guest stood still for ");
        here.finish().expect_code(15);
        echoes(&mut there, to);
        rig.ctl(to, &["status"]).expect_code(0).expect_console("running");
        here = there;
    }
    // One that is paused is paused there; by TCP as well.
    rig.ctl("c", &["pause"]).expect_code(0);
    let control = rig.text("d");
    let mut there = Builder::command(&["receive", "tcp:127.0.0.1:0", "--control", &control]).start();
    let line = there.wait_for_log("waiting for a machine at tcp:127.0.0.1:");
    rig.ctl("c", &["migrate", line.rsplit_once(' ').unwrap().1, "--downtime", "0"]).expect_code(0);
    here.finish().expect_code(15);
    while !rig.path("d").exists() {
        std::thread::yield_now();
    }
    rig.ctl("d", &["status"]).expect_code(0).expect_console("paused");
    rig.ctl("d", &["resume"]).expect_code(0);
    echoes(&mut there, "four");
    there.send("bye\r");
    there.finish().expect_code(0).expect_console("problems: 0");
}

#[test]
fn what_a_guest_does_with_its_disks_is_the_same_when_it_goes_meanwhile() {
    let words = format!("shadow=1 {}{}", load("nvme"), load("virtio-blk"));
    // On an emulated host the threads that a qcow2 image takes would take minutes.
    let format = if in_lab() { "raw" } else { "qcow2" };
    // Each process has names of its own.
    let place = Cell::new(0);
    let start = |rig: &Rig| {
        let image = rig.text("virtio");
        let create = ["image", "create", &image, "--format", format, "--size", "16M", "--force"];
        Builder::command(&create).finish().expect_code(0);
        rig.drive(&place.get().to_string(), format, &words)
    };
    let go = |rig: &Rig, machine: Machine| {
        let from = place.replace(place.get() + 1).to_string();
        let (to, target) = (place.get().to_string(), format!("to-{}", place.get()));
        let next = rig.receive(&target, &to, &[]);
        let gone = rig.migrate(&from, &target);
        let end = machine.finish();
        if gone.code != Some(0) && end.code == Some(0) {
            return Err(end);
        }
        // What has ended otherwise says why.
        end.expect_code(15);
        gone.expect_code(0);
        Ok(next.after(&end.console))
    };
    let look = |rig: &Rig| {
        if format == "qcow2" {
            // Whoever had the image before has not written to it since.
            Builder::command(&["image", "check", &rig.text("virtio"), "--format", format]).finish().expect_code(0);
        }
    };
    interrupted(start, go, look);
}

/// Lets a machine go by a connection with these faults, and says whether it went. It runs on one side, whichever it is.
fn go(faults: Vec<Fault>) -> (bool, Vec<u32>) {
    let rig = Rig::new();
    let mut here = rig.echo("a");
    let mut there = rig.receive("target", "b", &[]);
    // One that has not heard who it is waits on.
    let unheard = faults.iter().any(|fault| matches!(fault, Fault::Before(Kind::Hello) | Fault::Within(Kind::Hello)));
    let plain = faults.is_empty();
    let proxy = Proxy::start(&rig.path("proxy"), rig.path("target"), faults);
    let gone = rig.migrate("a", "proxy").code == Some(0);
    if !gone {
        rig.ctl("a", &["status"]).expect_code(0).expect_console("running");
        echoes(&mut here, "here");
        // Nothing is left of it that would be in the way of the next.
        if !unheard {
            there.finish().expect_code(1);
            there = rig.receive("again", "b", &[]);
        }
        rig.migrate("a", if unheard { "target" } else { "again" }).expect_code(0);
    }
    here.finish().expect_code(15);
    echoes(&mut there, "there");
    // What is heard last is said so; the proxy may see it later than the one who says it.
    while plain && proxy.seen().last() != Some(&(Kind::Accept as u32)) {
        std::thread::yield_now();
    }
    assert!(proxy.is_done());
    (gone, proxy.seen())
}

#[test]
fn wherever_the_connection_breaks_the_machine_runs_on_one_side() {
    let (gone, seen) = go(vec![]);
    assert!(gone);
    let usual = [Kind::Hello, Kind::Accept, Kind::Pages, Kind::State, Kind::Ready, Kind::Go, Kind::Running];
    let is_usual = |kind: &u32| usual.iter().any(|one| *one as u32 == *kind);
    let mut seen: Vec<_> = seen.into_iter().filter(is_usual).collect();
    seen.dedup();
    let last = [Kind::Accept as u32];
    assert_eq!(seen, usual.iter().map(|kind| *kind as u32).chain(last).collect::<Vec<_>>());
    // Each takes a while on an emulated host: there those that decide.
    let cut = if in_lab() { &[Kind::Pages, Kind::Go, Kind::Running][..] } else { &usual };
    for &kind in cut {
        let told = matches!(kind, Kind::Running);
        for (fault, gone) in
            [(Fault::Before(kind), told), (Fault::Within(kind), told), (Fault::After(kind), told || kind == Kind::Go)]
        {
            let (went, _) = go(vec![fault]);
            assert_eq!(went, gone, "{kind:?}");
        }
    }
}

/// Each frame of either side in turn, until one is beyond the last.
#[test]
fn cut_at_each_frame_the_machine_runs_on_one_side() {
    let rig = Rig::new();
    let (mut here, mut from) = (rig.echo("source"), "source".to_owned());
    let number = |seen: &[u32], kind: Kind| seen.iter().position(|seen| *seen == kind as u32);
    let mut cut = BTreeSet::new();
    for part in [Part::None, Part::Half, Part::Whole] {
        // Each takes a while on an emulated host.
        for frame in (0..).step_by(if in_lab() { 8 } else { 1 }) {
            let [to, target, proxy] = ["to", "target", "proxy"].map(|name| format!("{name}-{part:?}-{frame}"));
            let there = rig.receive(&target, &to, &[]);
            let connection = Proxy::start(&rig.path(&proxy), rig.path(&target), vec![Fault::Cut(frame, part)]);
            let gone = rig.migrate(&from, &proxy).code == Some(0);
            here.be_patient();
            // The last word, that it was heard, may pass when all is over.
            let last = [Kind::Running as u32, Kind::Accept as u32];
            while gone && !connection.is_done() && !connection.seen().ends_with(&last) {
                std::thread::yield_now();
            }
            let (seen, happened) = (connection.seen(), connection.is_done());
            let go = number(&seen, Kind::Go);
            let given = !happened || go.is_some_and(|go| frame > go || frame == go && part == Part::Whole);
            assert_eq!(gone, given, "{part:?} of frame {frame} of {seen:?}");
            if gone {
                here.finish().expect_code(15);
                (here, from) = (there, to);
            } else {
                rig.ctl(&from, &["status"]).expect_code(0).expect_console("running");
                // One that has not heard who it is waits on.
                if frame > 0 || part == Part::Whole {
                    there.finish().expect_code(1);
                }
            }
            echoes(&mut here, &format!("{part:?} {frame}"));
            if !happened {
                break;
            }
            cut.insert(seen[frame]);
        }
    }
    let each = [Kind::Hello, Kind::Accept, Kind::Pages, Kind::State, Kind::Ready, Kind::Go, Kind::Running];
    let each: BTreeSet<_> = each.iter().map(|kind| *kind as u32).collect();
    assert!(in_lab() || cut.is_superset(&each), "{cut:?}");
}

/// Where one side is killed, the other goes on if the machine is its own by then.
#[test]
fn a_side_that_is_killed_leaves_the_machine_to_the_other() {
    let kinds = [Kind::Accept, Kind::Pages, Kind::State, Kind::Ready, Kind::Go, Kind::Running];
    for kind in &kinds[if in_lab() { 3 } else { 0 }..] {
        for source in [true, false] {
            // A source that has said to go, and is told nothing, can't know: the user decides, which is a test of its own.
            if !source && matches!(kind, Kind::Ready | Kind::Go) {
                continue;
            }
            let rig = Rig::new();
            let mut here = rig.echo("a");
            let mut there = rig.receive("target", "b", &[]);
            let pid = rustix::process::Pid::from_raw(if source { here.pid() } else { there.pid() }).unwrap();
            let kill = move || rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            let fault = Fault::Call(*kind, Arc::new(kill));
            let proxy = Proxy::start(&rig.path("proxy"), rig.path("target"), vec![fault]);
            let told = rig.migrate("a", "proxy").code;
            assert!(proxy.is_done());
            let given = matches!(kind, Kind::Go | Kind::Running);
            match (source, given) {
                (true, true) => {
                    here.finish();
                    echoes(&mut there, "there");
                    rig.ctl("b", &["status"]).expect_code(0).expect_console("running");
                }
                (true, false) => {
                    here.finish();
                    if matches!(kind, Kind::State | Kind::Ready) {
                        // It waits for a question, which would have to be answered.
                        while !rig.path("b").exists() {
                            std::thread::yield_now();
                        }
                        let status = rig.ctl("b", &["status"]);
                        assert!(!status.expect_code(0).console.contains("running"), "{}", status.console);
                        rig.ctl("b", &["quit"]).expect_code(0);
                        there.finish().expect_code(14);
                    } else {
                        there.finish().expect_code(1);
                    }
                }
                // It had said that it runs.
                (false, true) => {
                    assert_eq!(told, Some(0));
                    here.finish().expect_code(15);
                    there.finish();
                }
                (false, false) => {
                    assert_eq!(told, Some(1));
                    there.finish();
                    echoes(&mut here, "here");
                    rig.ctl("a", &["status"]).expect_code(0).expect_console("running");
                }
            }
        }
    }
}

/// One that ends in its own way says so, and nobody has to decide: unless the machine has just come, and ends there.
#[test]
fn a_target_that_is_ended_leaves_the_machine_to_its_source() {
    for kind in [Kind::Accept, Kind::State, Kind::Ready, Kind::Go] {
        let rig = Rig::new();
        let mut here = rig.echo("a");
        let there = rig.receive("target", "b", &[]);
        let pid = rustix::process::Pid::from_raw(there.pid()).unwrap();
        let end = move || rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let proxy = Proxy::start(&rig.path("proxy"), rig.path("target"), vec![Fault::Call(kind, Arc::new(end))]);
        let told = rig.migrate("a", "proxy");
        assert!(proxy.is_done());
        let end = there.finish();
        // Until the machine is there, the signal ends it as it does any process.
        assert!(matches!(end.code, None | Some(143)), "{kind:?}: {}", end.log);
        if told.code == Some(0) {
            assert!(matches!(kind, Kind::Ready | Kind::Go) && end.code.is_some(), "{kind:?}");
            here.finish().expect_code(15);
        } else {
            told.expect_code(1);
            echoes(&mut here, "here");
            rig.ctl("a", &["status"]).expect_code(0).expect_console("running");
        }
    }
}

/// The question whose the machine is may be lost as well, and its answer.
#[test]
fn a_source_that_is_not_answered_asks_again() {
    for (first, gone) in [(Fault::Before(Kind::Go), false), (Fault::After(Kind::Go), true)] {
        for second in [Kind::Ask, Kind::Answer, Kind::Accept] {
            let lost =
                if second == Kind::Accept { vec![first.clone()] } else { vec![first.clone(), Fault::Before(second)] };
            let (went, seen) = go(lost);
            assert_eq!(went, gone);
            assert_eq!(
                seen.iter().filter(|kind| **kind == Kind::Ask as u32).count(),
                if second == Kind::Accept { 1 } else { 2 }
            );
        }
    }
}

#[test]
fn who_decides_when_the_other_side_is_gone_is_the_user() {
    let rig = Rig::new();
    let mut here = rig.echo("a");
    let there = rig.receive("target", "b", &[]);
    let pid = rustix::process::Pid::from_raw(there.pid()).unwrap();
    let kill = move || rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let _proxy = Proxy::start(&rig.path("proxy"), rig.path("target"), vec![Fault::Call(Kind::Go, Arc::new(kill))]);
    let migrate = Builder::command(&["ctl", &rig.text("a"), "migrate", &format!("unix:{}", rig.text("proxy"))]).start();
    while !rig.ctl("a", &["status"]).expect_code(0).console.contains("nobody says whether it runs there") {
        std::thread::yield_now();
    }
    rig.ctl("a", &["migrate-cancel"]).expect_code(1).expect_log("it is too late");
    rig.ctl("a", &["pause"]).expect_code(1).expect_log("or migrates");
    rig.ctl("a", &["resume"]).expect_code(0);
    migrate.finish().expect_code(1).expect_log("it was taken back");
    echoes(&mut here, "mine again");
    there.finish();
}

#[test]
fn what_can_not_go_stays_and_says_why() {
    let rig = Rig::new();
    // Cancelled while memory is sent.
    let mut here = rig.echo("a");
    let there = rig.receive("one", "b", &[]);
    let proxy = Proxy::start(&rig.path("proxy"), rig.path("one"), vec![Fault::Stall(Kind::Pages)]);
    let migrate = Builder::command(&["ctl", &rig.text("a"), "migrate", &format!("unix:{}", rig.text("proxy"))]).start();
    while !proxy.is_done() {
        std::thread::yield_now();
    }
    rig.ctl("a", &["status"]).expect_code(0).expect_console("migrating: ").expect_console(" MiB/s: ");
    rig.ctl("a", &["migrate", "unix:other"]).expect_code(1).expect_log("migrates already");
    rig.ctl("a", &["save", &rig.text("snapshot")]).expect_code(1).expect_log("or migrates");
    rig.ctl("a", &["migrate-cancel"]).expect_code(0);
    migrate.finish().expect_code(1).expect_log("it was cancelled");
    there.finish().expect_code(1).expect_log("the other side has hung up");
    echoes(&mut here, "still here");
    // Killed, a source leaves a target that ends.
    let there = rig.receive("two", "b", &[]);
    let pid = rustix::process::Pid::from_raw(here.pid()).unwrap();
    let kill = move || rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let _proxy = Proxy::start(&rig.path("proxy2"), rig.path("two"), vec![Fault::Call(Kind::Hello, Arc::new(kill))]);
    assert_ne!(rig.migrate("a", "proxy2").code, Some(0));
    here.finish();
    there.finish().expect_code(1).expect_log("the connection is lost");
    // What is no skep is sent away, and the next one served.
    let mut there = rig.receive("three", "b", &[]);
    let stranger = std::os::unix::net::UnixStream::connect(rig.path("three")).unwrap();
    std::io::Write::write_all(&mut &stranger, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    there.wait_for_log("a connection that is no machine's");
    let (kernel, nvme, socket) = (rig.text("io"), format!("{},format=raw", rig.text("nvme")), rig.text("c"));
    let load = "device=nvme ms=600000 bs=4096 op=write count=1 run op=randwrite count=1000000000 run";
    let words = ["run", "--kernel", &kernel, "--memory", "64M", "--disk", &nvme, "--control", &socket];
    let mut here = Builder::command(&[&words[..], &["--cmdline", load]].concat()).start();
    here.wait_for("op=write");
    // A disk of another size is not the same; nor is one that is not there.
    let small = rig.path("small");
    fs::File::create(&small).unwrap().set_len(SIZE / 2).unwrap();
    let refused = rig.receive("four", "d", &["--disk", &format!("disk0={}", small.display())]);
    rig.migrate("c", "four").expect_code(1).expect_log("the other side refuses: disk `disk0`");
    refused.finish().expect_code(1).expect_log("bytes, and had");
    let refused = rig.receive("five", "d", &["--disk", "disk0=/nowhere"]);
    rig.migrate("c", "five").expect_code(1).expect_log("the other side refuses").expect_log("/nowhere");
    refused.finish().expect_code(1);
    // Its image is its own, here and there.
    let take = || Builder::command(&["run", "--kernel", &kernel, "--disk", &nvme]).finish();
    take().expect_code(1).expect_log("is in use by");
    rig.migrate("c", "three").expect_code(0);
    here.finish().expect_code(15);
    take().expect_code(1).expect_log("is in use by");
    rig.ctl("b", &["quit"]).expect_code(0);
    there.finish().expect_code(14);
}
