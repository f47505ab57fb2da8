use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use skep_clock::Clock;
use skep_config::Serial;

use super::*;
use crate::console::Console;
use crate::run::{Control, Gate, Requests};

/// Where the child makes its names; its presence says that this process is the child.
const FOLDER: &str = "SKEP_TEST_FOLDER";

/// A machine that is being made: it has a console, and nobody looks at requests yet.
fn be_the_child(folder: &Path) {
    // No core files in the source tree.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let requests = Requests::new(Gate::default().into()).unwrap();
    let _control = Control::new(&Clock::host(), requests.into()).unwrap();
    let _socket = Console::open(&Serial::Socket(folder.join("socket"))).unwrap();
    let _pty = Console::open(&Serial::Pty { link: Some(folder.join("link")) }).unwrap();
    println!("child: ready");
    io::stdin().read_exact(&mut [0]).unwrap_err();
    std::process::exit(3);
}

#[test]
fn names_go_with_the_process_however_that_ends() {
    if let Some(folder) = env::var_os(FOLDER) {
        return be_the_child(folder.as_ref());
    }
    let name = "leftover::test::names_go_with_the_process_however_that_ends";
    for signal in [None, Some(Signal::TERM), Some(Signal::INT), Some(Signal::USR1), Some(Signal::ABORT)] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(FOLDER, folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"child: ready") {
            let mut byte = [0];
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            said.extend(byte);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        // To wait for the child would close it, which is one of the ends.
        let stdin = child.stdin.take();
        let _open = stdin.filter(|_| signal.is_some());
        if let Some(signal) = signal {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!((status.signal(), status.code()), (signal.map(Signal::as_raw), signal.is_none().then_some(3)));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{signal:?}");
    }
}

#[test]
fn what_somebody_else_has_put_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (link, socket) = (folder.path().join("link"), folder.path().join("socket"));
    symlink("/dev/pts/ours", &link).unwrap();
    let ours = Leftover::link(&link, Path::new("/dev/pts/ours")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/dev/pts/ours-and-more", &link).unwrap();
    drop(ours);
    assert!(link.is_symlink());
    let listener = UnixListener::bind(&socket).unwrap();
    let ours = Leftover::file(&socket).unwrap();
    fs::rename(&socket, folder.path().join("moved")).unwrap();
    drop((listener, UnixListener::bind(&socket).unwrap()));
    drop(ours);
    assert!(socket.exists());
    let ours = Leftover::file(&socket).unwrap();
    drop(ours);
    assert!(!socket.exists());
}
