//! A virtual machine in one line, for the integration tests: starts the `skep` command as a user would, waits for what its console or its log says, and
//! types into it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses a part.

pub mod calls;
pub mod disk;
pub mod network;
pub mod proxy;
pub mod rig;
pub mod talk;
pub mod variables;
pub mod warnings;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A whole test may take this long, or whatever comes next of a command in a system that somebody is logged in to: an emulated host on a busy machine is slow. It is less than
/// a program of several such tests may take, which could tell nothing any more when it is ended.
const PATIENCE: Duration = Duration::from_secs(300);

/// A machine that says nothing for so long may stand still. The lab gives an idle host up somewhat later, and its tests can then tell nothing any more.
const SILENCE: Duration = Duration::from_secs(60);

/// The `skep` that is under test.
pub fn skep() -> PathBuf {
    std::env::var_os("SKEP_BIN").map_or_else(|| env!("CARGO_BIN_EXE_skep").into(), PathBuf::from)
}

/// A guest's kernel or initramfs, by its name.
pub fn image(name: &str) -> PathBuf {
    let images = std::env::var_os("SKEP_IMAGES").expect("SKEP_IMAGES names the guests' images: run `cargo xtask test`");
    let path = Path::new(&images).join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask images`", path.display());
    path
}

/// A file of Debian's firmware packages, by its name; `newer/NAME` for one of a newer release. For test files whose name has `firmware` in it.
pub fn firmware(name: &str) -> PathBuf {
    let firmware =
        std::env::var_os("SKEP_FIRMWARE").expect("SKEP_FIRMWARE names Debian's firmware: run `cargo xtask test`");
    let path = Path::new(&firmware).join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask images`", path.display());
    path
}

/// The same by its name on this architecture.
pub fn either(x86_64: &str, aarch64: &str) -> PathBuf {
    firmware(if is_x86_64() { x86_64 } else { aarch64 })
}

/// A path as a word of a command.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A disk with Debian's root file system, which a guest may change: the lab's own, else a copy in `scratch`.
pub fn debian_disk(scratch: &Path) -> PathBuf {
    let disk = std::env::var_os("SKEP_DEBIAN").expect("SKEP_DEBIAN names Debian's disk: run `cargo xtask test`");
    if std::env::var_os("SKEP_LAB").is_some() {
        return disk.into();
    }
    let copy = scratch.join("debian.ext4");
    std::fs::copy(&disk, &copy).unwrap_or_else(|e| panic!("can't copy {}: {e}", disk.display()));
    copy
}

/// Whether this runs on an emulated host, where all takes longer.
pub fn in_lab() -> bool {
    std::env::var_os("SKEP_LAB").is_some()
}

/// How often a machine is put away, or goes, while it uses each of two disks: as often as `cargo xtask soak` says, or enough to see that it works.
pub fn rounds() -> u32 {
    let soak = std::env::var("SKEP_ROUNDS").ok().and_then(|rounds| rounds.parse::<u32>().ok());
    soak.map_or(if in_lab() { 2 } else { 3 }, |rounds| rounds.div_ceil(2))
}

/// Accesses of a disk that last for so many rounds.
pub fn accesses() -> u32 {
    rounds() * if in_lab() { 6_000 } else { 20_000 }
}

/// Whether the guest is an x86_64 one: guests are of the host's architecture.
pub fn is_x86_64() -> bool {
    std::env::consts::ARCH == "x86_64"
}

/// Tells the host's network something.
pub fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().unwrap();
    assert!(status.success(), "ip {words:?}");
}

/// Waits at an address of the host for a guest that sends `length` bytes of lines `0123456789abcde`, and is then sent as many of `edcba9876543210`.
pub fn trade(address: &str, length: usize) -> thread::JoinHandle<()> {
    let listener = std::net::TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; length];
        stream.read_exact(&mut got).unwrap();
        let pattern = |text: &[u8]| text.iter().copied().cycle().take(length).collect::<Vec<u8>>();
        assert!(got == pattern(b"0123456789abcde\n"), "what the guest has sent");
        stream.write_all(&pattern(b"edcba9876543210\n")).unwrap();
    })
}

/// The kernel that most tests boot.
pub fn usual_kernel() -> &'static str {
    if is_x86_64() { "vmlinuz" } else { "Image" }
}

/// A machine to be started.
pub struct Builder {
    args: Vec<OsString>,
    cmdline: Option<String>,
    memory: Option<String>,
}

impl Builder {
    /// `skep` with these words.
    pub fn command(words: &[&str]) -> Self {
        Self { args: words.iter().map(OsString::from).collect(), cmdline: None, memory: None }
    }

    /// Debian's usual kernel with the guests' initramfs, 256 MiB, one vCPU, which powers off after its greeting.
    pub fn debian() -> Self {
        Self::kernel(usual_kernel())
    }

    /// The same with another kernel file and another initramfs.
    pub fn kernel_with(name: &str, initramfs: &str) -> Self {
        Self::boot(name, initramfs)
    }

    /// The same with another kernel file.
    pub fn kernel(name: &str) -> Self {
        Self::boot(name, "initramfs.cpio.gz")
    }

    /// The usual one with the kernel's modules for virtio devices, loaded.
    pub fn debian_with_virtio() -> Self {
        Self::boot(usual_kernel(), "initramfs-virtio.cpio.gz")
    }

    /// Debian's system on an NVMe disk, which the kernel mounts itself, or on a virtio one, whose driver an initramfs loads first. It boots to
    /// a login.
    pub fn debian_system(disk: &Path, device: &str) -> Self {
        let mut builder = Self::boot(usual_kernel(), "initramfs-virtio.cpio.gz").memory("512M");
        let root = if device == "nvme" {
            builder.args.drain(3..);
            "root=/dev/nvme0n1 rw"
        } else {
            "skep.root=/dev/vda"
        };
        // In the lab, a library that each process has at another address is translated anew for each; and an emulated host that stands still for
        // a while is no fault of its guest's.
        let patient = "norandmaps rcupdate.rcu_cpu_stall_suppress=1 nowatchdog";
        let lab = if std::env::var_os("SKEP_LAB").is_some() { patient } else { "" };
        builder.cmdline(root).cmdline(lab).args(&["--disk", &format!("{},format=raw,device={device}", disk.display())])
    }

    fn boot(name: &str, initramfs: &str) -> Self {
        let mut builder = Self::command(&["run", "--kernel"]);
        builder.memory = Some("256M".to_owned());
        builder.args.push(image(name).into());
        builder.args.push("--initrd".into());
        builder.args.push(image(initramfs).into());
        let console = if is_x86_64() { "ttyS0" } else { "ttyAMA0" };
        builder.cmdline = Some(format!("console={console} quiet panic=-1"));
        builder
    }

    /// More words for the command.
    pub fn args(mut self, words: &[&str]) -> Self {
        self.args.extend(words.iter().map(OsString::from));
        self
    }

    /// Other memory than the usual.
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = Some(size.to_owned());
        self
    }

    /// More words for the kernel's command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        let cmdline = self.cmdline.get_or_insert_default();
        cmdline.push(' ');
        cmdline.push_str(words);
        self
    }

    /// A shell script that the guest runs before it ends; it says `skep: script 0` when nothing in it has failed.
    pub fn script(self, text: &str) -> Self {
        self.cmdline(&format!("skep.script={}", base64(text)))
    }

    /// Starts it.
    pub fn start(mut self) -> Machine {
        if let Some(size) = self.memory.take() {
            self.args.extend(["--memory".into(), size.into()]);
        }
        if let Some(cmdline) = self.cmdline.take() {
            self.args.extend(["--cmdline".into(), cmdline.into()]);
        }
        let mut command = Command::new(skep());
        command.args(&self.args);
        Self::spawn(command)
    }

    /// Starts a command that is not made of words alone.
    pub fn spawn(mut command: Command) -> Machine {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("can't start {}: {e}", skep().display()));
        let (to_stdout, stdout) = channel();
        let (to_stderr, stderr) = channel();
        follow(child.stdout.take().unwrap(), to_stdout);
        follow(child.stderr.take().unwrap(), to_stderr);
        Machine {
            stdin: child.stdin.take(),
            stdout: Stream { source: stdout, text: String::new(), read: 0, pid: child.id() },
            stderr: Stream { source: stderr, text: String::new(), read: 0, pid: child.id() },
            child,
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// Starts it and waits for its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }
}

/// RFC 4648 section 4.
pub fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(bytes.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| if at <= bytes.len() { DIGITS[bits >> (18 - 6 * at) & 0x3f] } else { b'=' };
        [0, 1, 2, 3].map(|at| char::from(digit(at)))
    };
    text.as_bytes().chunks(3).flat_map(group).collect()
}

fn follow(mut from: impl Read + Send + 'static, to: std::sync::mpsc::Sender<Vec<u8>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
}

struct Stream {
    source: Receiver<Vec<u8>>,
    text: String,
    /// Up to where [`Machine::wait_for`] has looked.
    read: usize,
    /// Whose it is.
    pid: u32,
}

impl Stream {
    /// Takes what comes before `deadline`; `false` at its end.
    fn more(&mut self, deadline: Instant) -> bool {
        let mut silence = Some(SILENCE);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.source.recv_timeout(silence.map_or(left, |silence| silence.min(left))) {
                Ok(bytes) => {
                    self.text.push_str(&String::from_utf8_lossy(&bytes));
                    return true;
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) if silence.is_some_and(|silence| silence < left) => {
                    silence = None;
                    self.tell_what_stands_still();
                }
                Err(RecvTimeoutError::Timeout) => {
                    // The words by which `cargo xtask test` knows it. With silence left, it has just said something.
                    let silent = silence.is_none();
                    let how = if silent && runs_on(self.pid) { ": its guest runs on and says nothing" } else { "" };
                    panic!("no end within {PATIENCE:?}{how}; so far:\n{}", self.text)
                }
            }
        }
    }

    /// Not in the test's own output, which is shown once it has failed: this one's host may be given up before.
    fn tell_what_stands_still(&self) {
        let last = self.text.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
        let text = format!(
            "\nnothing for {SILENCE:?} from process {}, which said last:\n{}\nits threads (name, state, ticks that it ran outside the kernel, in it, and of the first ones in the guest; where it is in the kernel):\n{}\n",
            self.pid,
            &self.text[last..],
            threads(self.pid)
        );
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// What a process's threads do, each on a line (proc(5): `comm`, `stat`, `wchan`).
fn threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: std::fs::DirEntry| {
        let [name, stat, place] = ["comm", "stat", "wchan"]
            .map(|file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned());
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let [state, user, system, guest] = [0, 11, 12, 40].map(|field| *fields.get(field).unwrap_or(&"?"));
        format!("{name:16} {state} {user} {system} {guest} {place}")
    };
    tasks.map(line).collect::<Vec<_>>().join("\n")
}

/// Whether one of a machine's vCPUs has something to do at this moment.
fn runs_on(pid: u32) -> bool {
    threads(pid).lines().any(|line| line.starts_with("vcpu") && line.split_whitespace().nth(1) == Some("R"))
}

/// A machine that runs. Dropping it kills it.
pub struct Machine {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    deadline: Instant,
}

/// How a machine ended.
pub struct Finished {
    /// The command's exit code.
    pub code: Option<i32>,
    /// All that the console said.
    pub console: String,
    /// All that the log said.
    pub log: String,
}

impl Machine {
    /// Waits until the console says `text`, after what was waited for before, and gives the line it is in back.
    pub fn wait_for(&mut self, text: &str) -> String {
        wait_for(&mut self.stdout, text, self.deadline)
    }

    /// Waits until the log (standard error) says `text`.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        wait_for(&mut self.stderr, text, self.deadline)
    }

    /// Has it go on with a console that another process of the same machine had: it is looked through, and part of what it has said at its end.
    pub fn after(mut self, console: &str) -> Self {
        self.stdout.text.insert_str(0, console);
        self
    }

    /// Whether the console has said `text` by now.
    pub fn has_said(&self, text: &str) -> bool {
        self.stdout.text.contains(text)
    }

    /// Has it be waited for longer: it boots more than once.
    pub fn be_patient(&mut self) {
        self.deadline += PATIENCE;
    }

    /// Waits as long again for what comes now.
    fn begin_anew(&mut self) {
        self.deadline = self.deadline.max(Instant::now() + PATIENCE);
    }

    /// Logs in as root at a console that asks who is there.
    pub fn log_in(&mut self) {
        self.begin_anew();
        // A whole system takes longer than a kernel.
        self.be_patient();
        self.wait_for("skep login:");
        self.send("root\n");
        self.wait_for("root@skep:~#");
        // No echo, no line that is wrapped, and a prompt that nothing else prints.
        self.send("stty -echo; bind 'set enable-bracketed-paste off'; PS1='<ready>'; PS2=\n");
        self.wait_for("<ready>");
        self.wait_for("<ready>");
        // What the kernel has to say is looked at in its log, not amid what a command prints.
        self.sh("dmesg -n 1");
    }

    /// Goes on in the shell of a machine that came from another process, in which [`Self::log_in`] was done.
    pub fn resume_log_in(&mut self) {
        self.begin_anew();
        self.send("\n");
        self.wait_for("<ready>");
    }

    /// Runs a command in a shell that [`Self::log_in`] has left, and gives back what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&mut self, command: &str) -> String {
        let (start, end) = (self.stdout.read, Instant::now() + 4 * PATIENCE);
        self.send(&format!("{command}\necho \"<code $?>\"\n"));
        // As long as it goes on: an emulated host's guest with busy disks takes milliseconds for each character.
        while !self.stdout.text[start..].contains("<code ") {
            assert!(Instant::now() < end, "`{command}` goes on and on:\n{}", self.stdout.text);
            self.begin_anew();
            assert!(self.stdout.more(self.deadline), "it ended amid `{command}`:\n{}", self.stdout.text);
        }
        self.wait_for("<code ");
        let text = self.stdout.text[start..self.stdout.read].replace("<ready>", "").replace('\r', "");
        let code = self.wait_for(">");
        self.wait_for("<ready>");
        assert!(code.contains("<code 0>"), "`{command}` failed: {text}{code}");
        text.trim_end_matches("<code ").trim().to_owned()
    }

    /// Types into the console.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("the console's input is open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("skep reads its console");
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        while self.stdout.more(self.deadline) {}
        while self.stderr.more(self.deadline) {}
        let status = self.child.wait().expect("the child is ours");
        let (console, log) = (std::mem::take(&mut self.stdout.text), std::mem::take(&mut self.stderr.text));
        Finished { code: status.code(), console, log }
    }
}

fn wait_for(stream: &mut Stream, text: &str, deadline: Instant) -> String {
    loop {
        if let Some(at) = stream.text[stream.read..].find(text) {
            let start = stream.read + at;
            stream.read = start + text.len();
            let line_start = stream.text[..start].rfind('\n').map_or(0, |n| n + 1);
            let line_end = stream.text[start..].find('\n').map_or(stream.text.len(), |n| start + n);
            return stream.text[line_start..line_end].trim_end().to_owned();
        }
        assert!(stream.more(deadline), "it ended without `{text}`:\n{}", stream.text);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// That it ended with `code`; the transcript otherwise.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "console:\n{}\nlog:\n{}", self.console, self.log);
        self
    }

    /// That the console said `text`.
    #[track_caller]
    pub fn expect_console(&self, text: &str) -> &Self {
        assert!(self.console.contains(text), "`{text}` is not in the console:\n{}\nlog:\n{}", self.console, self.log);
        self
    }

    /// The memory that the guest's init has found, in KiB.
    pub fn memory_kib(&self) -> u64 {
        let line = self.console.lines().find(|l| l.contains("skep: memory ")).expect("the guest tells its memory");
        line.split_whitespace().rev().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB")
    }

    /// That the log said `text`.
    #[track_caller]
    pub fn expect_log(&self, text: &str) -> &Self {
        assert!(self.log.contains(text), "`{text}` is not in the log:\n{}\nconsole:\n{}", self.log, self.console);
        self
    }
}

/// Puts a machine away that listens at `vm.sock` in `folder`, and lets it go on with these words more. Answers what it has said until then as well.
pub fn again(machine: Machine, folder: &Path, words: &[&str]) -> (Finished, Machine) {
    let (snapshot, socket) = (folder.join("snapshot"), folder.join("vm.sock"));
    Builder::command(&["ctl", socket.to_str().unwrap(), "save", snapshot.to_str().unwrap(), "--quit"])
        .finish()
        .expect_code(0);
    let end = machine.finish();
    end.expect_code(14);
    let fixed = ["restore", snapshot.to_str().unwrap(), "--control", socket.to_str().unwrap(), "--log", "info"];
    let mut next = Builder::command(&[&fixed[..], words].concat()).start();
    next.wait_for_log("restored from");
    (end, next)
}
