//! The control socket of a machine that runs, with the guest that is built in: on any /dev/kvm.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use support::{Builder, Finished, Machine};

/// A machine that echoes lines until `bye`, and its socket.
struct Controlled {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Controlled {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let words = ["hello", "echo", "--control", socket.to_str().unwrap()];
        let mut machine = Builder::command(&words).start();
        machine.wait_for("echo: ready");
        Self { machine, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        ctl(&self.path("vm.sock"), words)
    }

    /// The guest is as well as before.
    fn echoes(&mut self, text: &str) {
        self.machine.send(&format!("{text}\r"));
        self.machine.wait_for(&format!("echo: {text}"));
    }
}

fn ctl(socket: &Path, words: &[&str]) -> Finished {
    Builder::command(&[&["ctl", socket.to_str().unwrap()], words].concat()).finish()
}

#[test]
fn a_machine_tells_of_itself_and_ends_when_it_is_told() {
    let mut it = Controlled::start();
    let mode = fs::symlink_metadata(it.path("vm.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let list = it.ctl(&["device", "list"]);
    list.expect_code(0);
    assert_eq!(list.console, "ID  KIND  PLACE  STATE  SIZE\n", "the built-in guest has no device on PCI");
    it.ctl(&["stats"]).expect_code(0).expect_console("first instruction: ").expect_console("exits: ");
    let json = it.ctl(&["--json", "stats"]);
    json.expect_code(0).expect_console("{\"elapsed-us\":").expect_console("\"restarts\":0");
    it.echoes("after the figures");
    let none = it.ctl(&["balloon", "64M"]);
    none.expect_code(1).expect_log("this machine has no balloon\n  try: one when it starts, by --device balloon\n");
    it.ctl(&["console", "resize", "80", "25"]).expect_code(1).expect_log("this machine has no console\n");
    it.ctl(&["quit"]).expect_code(0);
    let socket = it.path("vm.sock");
    it.machine.finish().expect_code(14);
    assert!(!socket.exists(), "the socket goes with the machine");
    let end = ctl(&socket, &["device", "list"]);
    end.expect_code(1)
        .expect_log("can't reach a machine at")
        .expect_log("try: the socket of a machine that was started with --control");
}

#[test]
fn a_reset_is_as_the_guest_would_ask_for_it() {
    let it = Controlled::start();
    it.ctl(&["reset"]).expect_code(0);
    it.machine.finish().expect_code(10).expect_log("the guest asked for a reset");
}

#[test]
fn what_cant_be_done_is_refused_with_its_mend() {
    let mut it = Controlled::start();
    let disk = it.path("a.img");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let flag = format!("{},format=raw", disk.display());
    it.ctl(&["disk", "add", &flag]).expect_code(1).expect_log(
        "error: no root port is free: this machine has none\n  try: start it with some, by --pci-ports N\n",
    );
    it.ctl(&["net", "add", "user"]).expect_code(1).expect_log("no root port is free");
    it.ctl(&["disk", "add", disk.to_str().unwrap()]).expect_code(2).expect_log("the format is never guessed");
    it.ctl(&["device", "remove", "data"]).expect_code(1).expect_log("there is no device `data`");
    it.ctl(&["disk", "resize", "data"]).expect_code(1).expect_log("there is no device `data`");
    it.ctl(&["device", "remove", "data", "--timeout", "0"]).expect_code(2);
    it.ctl(&["dance"]).expect_code(2);
    it.echoes("still there");
}

#[test]
fn one_socket_has_one_machine_and_a_dead_one_is_replaced() {
    let it = Controlled::start();
    let socket = it.path("vm.sock");
    let words = ["hello", "first", "--control", socket.to_str().unwrap()];
    Builder::command(&words)
        .finish()
        .expect_code(1)
        .expect_log("control socket: ")
        .expect_log("is another process's socket\n  try: ");
    let pid = rustix::process::Pid::from_raw(it.machine.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let folder = it.folder;
    it.machine.finish();
    assert!(socket.exists());
    ctl(&socket, &["stats"]).expect_code(1).expect_log("the one that had this socket is dead");
    Builder::command(&words).finish().expect_code(0);
    assert!(!socket.exists());
    drop(folder);
}

#[test]
fn hostile_clients_harm_nobody() {
    let mut it = Controlled::start();
    let connect = || UnixStream::connect(it.path("vm.sock")).unwrap();
    // Many who say nothing, half of something, too much, nonsense; and one who asks and never reads.
    let silent: Vec<_> = (0..100).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"{\"id\":1,\"comm").unwrap();
    let mut endless = connect();
    // It is let go before it has said all.
    let _ = endless.write_all(&vec![b'['; 1 << 20]);
    let mut garbage = connect();
    garbage.write_all(&[0xff, 0, b'\n', b'{', b'\n']).unwrap();
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(b"{\"command\":\"device-list\"}\n").is_ok() {}
    let mut answers = BufReader::new(garbage).lines();
    answers.next().unwrap().unwrap();
    for _ in 0..2 {
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains("\"kind\":\"bad-request\""), "{answer}");
    }
    it.ctl(&["stats"]).expect_code(0);
    it.echoes("unharmed");
    drop((silent, half, endless, deaf));
    it.ctl(&["quit"]).expect_code(0);
    it.machine.finish().expect_code(14);
}

#[test]
fn a_stranger_is_known_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let host = std::thread::spawn(move || {
        for greeting in
            ["SSH-2.0\n", "{\"protocol\":2,\"skep\":\"9.9\"}\n", "{\"protocol\":1,\"skep\":\"0.1.0\"}\nnonsense\n"]
        {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            // Until it goes.
            let _ = stream.read_to_end(&mut Vec::new());
        }
        drop(listener.accept().unwrap());
    });
    for _ in 0..3 {
        ctl(&path, &["stats"]).expect_code(1).expect_log("is no skep, or one of a version that this one can't talk to");
    }
    ctl(&path, &["stats"]).expect_code(1).expect_log("the machine has ended before it answered");
    host.join().unwrap();
}

/// The protocol has texts only.
#[test]
fn a_path_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let it = Controlled::start();
    let mut command = std::process::Command::new(support::skep());
    command.arg("ctl").arg(it.path("vm.sock")).arg("save").arg(std::ffi::OsStr::from_bytes(b"n\xff"));
    Builder::spawn(command).finish().expect_code(1).expect_log("a name that is no UTF-8 text");
    it.ctl(&["status"]).expect_code(0).expect_console("running\n");
    ctl(it.folder.path(), &["status"]).expect_code(1).expect_log("that is no socket");
}
