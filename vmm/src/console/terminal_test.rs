use std::env;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::LocalModes;

use super::*;

/// How the child is to end; its presence says that this process is the child.
const ENDING: &str = "SKEP_TEST_ENDING";

/// A terminal: its two ends. While one of them is open its modes last.
struct Pty {
    controller: OwnedFd,
    terminal: File,
}

impl Pty {
    fn new() -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        Pty { controller, terminal }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal)
            .unwrap()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// This test again, as a process with this terminal, up to where the terminal is raw.
    fn child(&self, test: &str, ending: &str) -> Child {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &format!("console::terminal::test::{test}"), "--nocapture"]).env(ENDING, ending);
        command.stdin(self.terminal.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let ready = line(&mut child).contains("child: raw");
        if !ready {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("the child did not come up:\n{text}");
        }
        child
    }
}

/// What the child does once its terminal is raw.
fn be_the_child(ending: &str) {
    // No core files in the source tree.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let mut terminal = File::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let raw = RawTerminal::enter(&terminal).unwrap();
    assert!(is_raw(&io::stdin()));
    println!("child: raw");
    // The parent types when it has looked.
    let mut wait = || terminal.read_exact(&mut [0]).unwrap();
    match ending {
        "drop" => drop(raw),
        "exit" => std::process::exit(3),
        "panic" => panic!("as asked"),
        "a thread's panic" => {
            std::thread::spawn(|| panic!("as asked")).join().unwrap_err();
        }
        "abort" => std::process::abort(),
        "stack overflow" => assert!(deeper(0) > 0),
        "suspend" => {
            suspend();
            assert!(!is_raw(&io::stdin()));
            println!("child: suspended");
            wait();
            resume();
            println!("child: resumed");
            wait();
        }
        _ => wait(),
    }
}

/// Recurses until the stack is full: a fault, which the runtime's own handler of it turns into an abort.
#[allow(unconditional_recursion)]
fn deeper(depth: u64) -> u64 {
    std::hint::black_box(deeper(std::hint::black_box(depth + 1)) + depth)
}

/// The child's next line that is meant for us.
fn line(child: &mut Child) -> String {
    // Unbuffered: the next caller wants the next line.
    let mut line = String::new();
    let mut byte = [0];
    let stdout = child.stdout.as_mut().unwrap();
    while stdout.read_exact(&mut byte).is_ok() {
        match byte[0] {
            b'\n' if line.contains("child: ") => return line,
            b'\n' => line.clear(),
            letter => line.push(letter.into()),
        }
    }
    line
}

#[test]
fn raw_mode_ends_with_the_process_however_that_ends() {
    if let Ok(ending) = env::var(ENDING) {
        return be_the_child(&ending);
    }
    let test = "raw_mode_ends_with_the_process_however_that_ends";
    let by_itself = [
        ("drop", Some(0)),
        ("exit", Some(3)),
        ("panic", Some(101)),
        ("a thread's panic", Some(0)),
        ("abort", None),
        ("stack overflow", None),
    ];
    for (ending, code) in by_itself {
        let pty = Pty::new();
        assert!(!pty.is_raw());
        let mut child = pty.child(test, ending);
        let status = child.wait().unwrap();
        assert!(!pty.is_raw(), "{ending}");
        assert_eq!(status.code(), code, "{ending}");
        assert!(code.is_some() || status.signal() == Some(libc::SIGABRT));
    }
    let ending =
        [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];
    let limits = [libc::SIGVTALRM, libc::SIGPROF, libc::SIGXCPU, libc::SIGIO, libc::SIGPWR, libc::SIGSTKFLT];
    let faults = [libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGBUS, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];
    let real_time = [libc::SIGRTMIN() + 1, libc::SIGRTMAX()];
    for signal in [&ending[..], &limits, &faults, &real_time].concat() {
        let pty = Pty::new();
        let mut child = pty.child(test, "signal");
        assert!(pty.is_raw());
        kill(&child, signal);
        let status = child.wait().unwrap();
        assert!(!pty.is_raw(), "{signal}");
        assert_eq!(status.signal(), Some(signal), "the signal does what it would have done");
    }
}

#[allow(unsafe_code)]
fn kill(child: &Child, signal: i32) {
    // SAFETY: it touches no memory, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
}

#[test]
fn a_stopped_process_hands_the_terminal_back_meanwhile() {
    if let Ok(ending) = env::var(ENDING) {
        return be_the_child(&ending);
    }
    let pty = Pty::new();
    let mut child = pty.child("a_stopped_process_hands_the_terminal_back_meanwhile", "suspend");
    assert!(line(&mut child).contains("suspended"));
    assert!(!pty.is_raw());
    rustix::io::write(&pty.controller, b"\n").unwrap();
    assert!(line(&mut child).contains("resumed"));
    assert!(pty.is_raw());
    rustix::io::write(&pty.controller, b"x").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!pty.is_raw());
}

#[test]
fn what_is_no_terminal_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(RawTerminal::enter(&file).is_err());
}
