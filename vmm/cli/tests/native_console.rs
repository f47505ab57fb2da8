//! The console and the ways to end, with the guest that is built in: on any /dev/kvm.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};
use support::{Builder, Machine, is_x86_64, skep};

/// What the guest says when it takes input.
const READY: &str = "echo: ready";

/// The guest, to echo what is typed into `serial` until `bye`.
fn echo(serial: &str) -> Machine {
    Builder::command(&["hello", "echo", "--serial", serial]).start()
}

/// 8 KiB in lines, each with its number.
fn lines() -> Vec<String> {
    (0..128).map(|n| format!("{n:04} {}", "abcdefghijklmno".repeat(4))).collect()
}

/// Types all at once, and reads the echo of all of it, in order.
fn paste(console: &mut (impl Read + Write)) {
    let lines = lines();
    console.write_all((lines.join("\r") + "\r").as_bytes()).unwrap();
    for line in lines {
        read_to(console, &format!("echo: {line}"));
    }
}

/// Reads up to `text`, byte by byte, for what follows is another's.
fn read_to(console: &mut impl Read, text: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(text) {
        console.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} before `{text}`:\n{seen}"));
        seen.push(byte[0].into());
    }
    seen
}

#[test]
fn each_way_to_end_has_its_exit_code() {
    let end = |words: &[&str]| Builder::command(&[&["hello", "first"], words].concat()).finish();
    end(&["end=poweroff"]).expect_code(0).expect_console("skep hello: up");
    end(&["end=reset"]).expect_code(10).expect_log("the guest asked for a reset");
    end(&["end=panic"]).expect_code(11).expect_log("the guest's kernel panicked");
    if is_x86_64() {
        // aarch64 has no triple fault.
        end(&["end=triple"]).expect_code(12).expect_log("vCPU 0 shut down after a triple fault");
    }
}

#[test]
fn what_ended_starts_again_where_the_policy_says_so() {
    let words = ["hello", "first", "end=poweroff", "--on-power-off", "restart", "--log", "info"];
    let mut machine = Builder::command(&words).start();
    for _ in 0..3 {
        machine.wait_for("skep hello: up");
        machine.wait_for_log("restarting it");
    }
}

#[test]
fn statistics_come_at_the_end() {
    let end = Builder::command(&["hello", "first", "--stats"]).finish();
    end.expect_code(0)
        .expect_log("skep: first instruction: ")
        .expect_log("skep: restarts: 0")
        .expect_log("skep: exits: ");
}

/// Connects once skep has said where.
fn connect(machine: &mut Machine, socket: &Path) -> UnixStream {
    machine.wait_for_log("the guest's console is the socket");
    UnixStream::connect(socket).unwrap()
}

#[test]
fn a_signal_ends_the_machine_in_order() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("console");
        let mut machine = echo(&format!("socket={}", socket.display()));
        let mut client = connect(&mut machine, &socket);
        read_to(&mut client, READY);
        kill_process(Pid::from_raw(machine.pid()).unwrap(), signal).unwrap();
        machine.finish().expect_code(code).expect_log(&format!("ended by signal {}", code - 128));
        assert!(!socket.exists(), "nothing is left behind");
    }
}

#[test]
fn what_is_pasted_into_a_socket_is_echoed_whole() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("console");
    let mut machine = echo(&format!("socket={}", socket.display()));
    let mut client = connect(&mut machine, &socket);
    read_to(&mut client, READY);
    paste(&mut client);
    client.write_all(b"bye\r").unwrap();
    machine.finish().expect_code(0);
    assert!(!socket.exists());
}

#[test]
fn what_is_pasted_into_a_pty_is_echoed_whole() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("console");
    let mut machine = echo(&format!("pty,link={}", link.display()));
    machine.wait_for_log("the guest's console is /dev/pts/");
    let mut client = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&link).unwrap();
    read_to(&mut client, READY);
    paste(&mut client);
    client.write_all(b"bye\r").unwrap();
    machine.finish().expect_code(0);
    assert!(fs::symlink_metadata(&link).is_err(), "the link goes with the machine");
}

#[test]
fn a_file_gets_all_output() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("console");
    let serial = format!("file={}", file.display());
    Builder::command(&["hello", "--serial", &serial]).finish().expect_code(0);
    let text = fs::read_to_string(file).unwrap();
    assert!(
        text.starts_with("skep hello: up") && text.contains("problems: 0") && text.contains("end: poweroff"),
        "{text}"
    );
}

#[test]
fn output_that_nobody_reads_stops_no_guest() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("console");
    let serial = format!("socket={}", socket.display());
    Builder::command(&["hello", "--serial", &serial]).finish().expect_code(0);
    Builder::command(&["hello", "--serial", "none"]).finish().expect_code(0);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run =
        |stdout: Stdio| Command::new(skep()).args(["hello"]).stdin(Stdio::null()).stdout(stdout).output().unwrap();
    let closed = run(writer.into());
    let stderr = String::from_utf8_lossy(&closed.stderr);
    assert_eq!(closed.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr.matches("output is lost").count(), 1, "{stderr}");
    let full = run(File::options().write(true).open("/dev/full").unwrap().into());
    assert_eq!(full.status.code(), Some(0), "{}", String::from_utf8_lossy(&full.stderr));
}

/// The guest on a terminal of its own, and the terminal's other end.
struct Terminal {
    skep: Child,
    terminal: File,
    user: File,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        let end = || OwnedFd::from(terminal.try_clone().unwrap());
        let mut skep = Command::new(skep());
        let skep = skep.args(["hello", "echo"]).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut here = Terminal { skep, terminal, user: File::from(user) };
        here.wait_for("Ctrl-] h shows more");
        here.wait_for(READY);
        assert!(here.is_raw());
        here
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap();
        !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !modes.output_modes.contains(OutputModes::OPOST)
    }

    fn wait_for(&mut self, text: &str) -> String {
        read_to(&mut self.user, text)
    }

    fn send(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).unwrap();
    }

    /// Its exit code; the terminal is as it was then.
    fn end(&mut self) -> Option<i32> {
        let status = self.skep.wait().unwrap();
        assert!(!self.is_raw());
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already, as a rule.
        let _ = self.skep.kill();
        let _ = self.skep.wait();
    }
}

#[test]
fn the_escape_key_ends_the_machine_and_explains_itself() {
    let mut terminal = Terminal::new();
    terminal.send("control \x03 \x1a \x1d\x1d\r");
    terminal.wait_for("echo: control \x03 \x1a \x1d\r\n");
    terminal.send("\x1dh");
    terminal.wait_for("end the machine at once");
    terminal.send("\x1dq");
    assert_eq!(terminal.end(), Some(14));
}

#[test]
fn what_is_pasted_into_the_terminal_is_echoed_whole() {
    let mut terminal = Terminal::new();
    paste(&mut terminal.user);
    terminal.send("bye\r");
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn the_terminal_is_handed_back_after_a_signal() {
    for (signal, code) in [(Signal::TERM, Some(143)), (Signal::HUP, Some(129)), (Signal::ABORT, None)] {
        let mut terminal = Terminal::new();
        kill_process(Pid::from_child(&terminal.skep), signal).unwrap();
        assert_eq!(terminal.end(), code);
    }
}

#[test]
fn a_terminal_that_goes_away_ends_nothing_by_itself() {
    let mut terminal = Terminal::new();
    drop(std::mem::replace(&mut terminal.user, File::open("/dev/null").unwrap()));
    // Its shell sends the hang-up as a rule; where there is none, the guest runs on until somebody ends it.
    kill_process(Pid::from_child(&terminal.skep), Signal::TERM).unwrap();
    assert_eq!(terminal.skep.wait().unwrap().code(), Some(143));
}
