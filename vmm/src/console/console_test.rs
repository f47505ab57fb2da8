use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberOps};

use super::*;
use crate::run::Gate;

/// A 16550 as its console sees it: a FIFO that a guest reads when the test says so.
#[derive(Default)]
struct Port {
    fifo: Mutex<Fifo>,
}

#[derive(Default)]
struct Fifo {
    room: usize,
    held: Vec<u8>,
    read: Vec<u8>,
    owes_call: bool,
    breaks: usize,
    listener: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Fifo> {
        self.fifo.lock().unwrap()
    }

    /// The guest reads all that the FIFO holds, and how much it has read so far.
    fn guest_reads(&self) -> usize {
        let mut fifo = self.lock();
        let held = std::mem::take(&mut fifo.held);
        fifo.read.extend(held);
        let count = fifo.read.len();
        let listener = std::mem::take(&mut fifo.owes_call).then(|| fifo.listener.clone()).flatten();
        drop(fifo);
        if let Some(listener) = listener {
            listener();
        }
        count
    }
}

impl SerialPort for Port {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut fifo = self.lock();
        let count = bytes.len().min(fifo.room - fifo.held.len());
        fifo.held.extend(&bytes[..count]);
        fifo.owes_call |= count < bytes.len();
        count
    }

    fn on_space(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.lock().listener = Some(listener.into());
    }

    fn receive_break(&self) {
        self.lock().breaks += 1;
    }
}

/// A console on a control loop.
struct Bench {
    manager: EventManager<Subscriber>,
    port: Arc<Port>,
    output: Box<dyn SerialOut>,
    requests: Arc<Requests>,
}

impl Bench {
    fn new(serial: &Serial) -> Self {
        Self::attach(Console::open(serial).unwrap())
    }

    fn attach(console: Console) -> Self {
        let port = Arc::new(Port::default());
        port.lock().room = 16;
        let output = console.output();
        let requests = Arc::new(Requests::new(Arc::new(Gate::default())).unwrap());
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(console.attach(port.clone(), requests.clone()).unwrap());
        Bench { manager, port, output, requests }
    }

    /// Lets the control loop handle what there is. Where there is nothing, the test has failed.
    fn turn(&mut self) {
        assert!(self.manager.run_with_timeout(10_000).unwrap() > 0, "the console waits for nothing");
    }

    fn input(&mut self, count: usize) -> Vec<u8> {
        while self.port.guest_reads() < count {
            self.turn();
        }
        std::mem::take(&mut self.port.lock().read)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn read(mut from: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    (folder, path)
}

fn refused(serial: &Serial) -> String {
    Console::open(serial).err().unwrap().to_string()
}

#[test]
fn what_is_pasted_into_a_socket_arrives_whole() {
    let (_folder, path) = folder();
    let mut bench = Bench::new(&Serial::Socket(path.clone()));
    let mut client = UnixStream::connect(&path).unwrap();
    let sent = pattern(100_000);
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || {
            client.write_all(&sent).unwrap();
            client
        }
    });
    assert!(bench.input(sent.len()) == sent);
    writing.join().unwrap();
}

#[test]
fn a_guest_that_reads_nothing_stops_the_sender_and_loses_nothing() {
    let (_folder, path) = folder();
    let mut bench = Bench::new(&Serial::Socket(path.clone()));
    bench.port.lock().room = 0;
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    let sent = pattern(2 * PENDING_LIMIT);
    let mut done = 0;
    // Until the console no longer reads and the socket is full.
    while let Ok(count) = client.write(&sent[done..]) {
        done += count;
        while bench.manager.run_with_timeout(0).unwrap() > 0 {}
    }
    assert!(done > PENDING_LIMIT && done < sent.len(), "{done}");
    bench.port.lock().room = 1 << 20;
    bench.port.guest_reads();
    client.set_nonblocking(false).unwrap();
    let rest = sent[done..].to_vec();
    let writing = std::thread::spawn(move || {
        client.write_all(&rest).unwrap();
        client
    });
    assert!(bench.input(sent.len()) == sent);
    writing.join().unwrap();
}

#[test]
fn clients_of_a_socket_come_one_after_the_other() {
    let (_folder, path) = folder();
    let mut bench = Bench::new(&Serial::Socket(path.clone()));
    bench.output.write(b"boot\n");
    let mut first = UnixStream::connect(&path).unwrap();
    let second = UnixStream::connect(&path).unwrap();
    bench.turn();
    assert_eq!(read(&first, 5), b"boot\n", "what came before the first client was kept for it");
    bench.output.write(b"one");
    assert_eq!(read(&first, 3), b"one");
    first.write_all(b"a").unwrap();
    assert_eq!(bench.input(1), b"a");
    drop(first);
    bench.output.write(b"two");
    // The first goes, and the second, which was waiting all the time, comes.
    while bench.manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(read(&second, 3), b"two");
}

#[test]
fn a_client_that_has_sent_everything_still_listens() {
    let (_folder, path) = folder();
    let mut bench = Bench::new(&Serial::Socket(path.clone()));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"run\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.input(4), b"run\n");
    // The end of its input.
    while bench.manager.run_with_timeout(0).unwrap() > 0 {}
    bench.output.write(b"result\n");
    assert_eq!(read(&client, 7), b"result\n");
    drop(client);
    let next = UnixStream::connect(&path).unwrap();
    while bench.manager.run_with_timeout(0).unwrap() > 0 {}
    bench.output.write(b"again\n");
    assert_eq!(read(&next, 6), b"again\n");
}

#[test]
fn a_socket_client_that_does_not_read_holds_up_nobody() {
    let (_folder, path) = folder();
    let mut bench = Bench::new(&Serial::Socket(path.clone()));
    let client = UnixStream::connect(&path).unwrap();
    bench.turn();
    // Less than the client's socket and the console keep together.
    let sent = pattern(400 << 10);
    for part in sent.chunks(4096) {
        bench.output.write(part);
    }
    let reading = std::thread::spawn(move || read(&client, 400 << 10));
    while !reading.is_finished() {
        bench.manager.run_with_timeout(1).unwrap();
    }
    assert!(reading.join().unwrap() == sent);
}

#[test]
fn a_socket_goes_with_its_console_and_a_dead_one_is_replaced() {
    let (_folder, path) = folder();
    let bench = Bench::new(&Serial::Socket(path.clone()));
    assert!(path.exists());
    assert!(refused(&Serial::Socket(path.clone())).contains("is another process's socket\n  try: "));
    drop(bench);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "as a killed process leaves it");
    Bench::new(&Serial::Socket(path.clone()));
    fs::write(&path, "precious").unwrap();
    assert!(refused(&Serial::Socket(path.clone())).contains("exists, and is no socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let long = Path::new("/tmp").join("x".repeat(200));
    let long = refused(&Serial::Socket(long));
    assert!(long.contains("is too long for a socket\n  try: a path of at most 107 bytes"), "{long}");
    let longest = path.with_file_name("x".repeat(106 - path.parent().unwrap().as_os_str().len()));
    assert_eq!(longest.as_os_str().len(), 107);
    Bench::new(&Serial::Socket(longest));
}

/// The path that a pty's console announces.
fn announced(console: &Console) -> PathBuf {
    let text = console.announcement.clone().unwrap();
    text.split([' ', ',']).find(|word| word.starts_with("/dev/pts/")).unwrap().into()
}

#[test]
fn a_pty_carries_both_ways_and_echoes_nothing() {
    let console = Console::open(&Serial::Pty { link: None }).unwrap();
    let path = announced(&console);
    let mut bench = Bench::attach(console);
    bench.output.write(b"before\n");
    let mut client = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
    assert_eq!(read(&client, 7), b"before\n");
    client.write_all(b"typed\r").unwrap();
    assert_eq!(bench.input(6), b"typed\r");
    drop(client);
    // Nobody has it now: nothing is lost, and nothing spins.
    bench.output.write(b"after\n");
    assert_eq!(bench.manager.run_with_timeout(0).unwrap(), 0);
    let client = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
    assert_eq!(read(&client, 6), b"after\n");
}

#[test]
fn a_link_to_a_pty_comes_and_goes() {
    let (_folder, link) = folder();
    std::os::unix::fs::symlink("/dev/pts/of-a-killed-process", &link).unwrap();
    let serial = Serial::Pty { link: Some(link.clone()) };
    let console = Console::open(&serial).unwrap();
    let name = announced(&console);
    assert_eq!(fs::read_link(&link).unwrap(), name);
    assert!(refused(&serial).contains("is a link already, and not one to a pty that has gone\n  try: "));
    drop(console);
    assert!(fs::symlink_metadata(&link).is_err());
    for target in ["/nowhere", "/etc/hosts"] {
        std::os::unix::fs::symlink(target, &link).unwrap();
        assert!(refused(&serial).contains("is a link already"));
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target), "it is the user's own");
        fs::remove_file(&link).unwrap();
    }
    fs::write(&link, "precious").unwrap();
    assert!(refused(&serial).contains("exists, and is no symbolic link"));
    assert_eq!(fs::read(&link).unwrap(), b"precious");
}

#[test]
fn a_file_is_emptied_and_written() {
    let (_folder, path) = folder();
    fs::write(&path, "what was there before").unwrap();
    let console = Console::open(&Serial::File(path.clone())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"what was there before", "the machine may come to nothing yet");
    let mut bench = Bench::attach(console);
    bench.output.write(b"new");
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(refused(&Serial::File("/proc/nowhere/file".into())).starts_with("console: file /proc/nowhere/file: "));
    assert!(refused(&Serial::File("/".into())).contains("directory"));
}

#[test]
fn a_file_that_the_machine_is_made_from_is_no_place_for_output() {
    let (_folder, kernel) = folder();
    fs::write(&kernel, "precious").unwrap();
    let other_name = kernel.with_file_name("other");
    fs::hard_link(&kernel, &other_name).unwrap();
    let inputs = [("initramfs", Path::new("/nowhere")), ("kernel", &kernel)];
    for path in [&kernel, &other_name] {
        let error = refuse_inputs(&Serial::File(path.clone()), inputs).unwrap_err().to_string();
        assert!(error.contains("is the kernel too, which the guest's output would overwrite\n  try: "), "{error}");
    }
    refuse_inputs(&Serial::File(kernel.with_file_name("new")), inputs).unwrap();
    refuse_inputs(&Serial::Stdio, inputs).unwrap();
}

#[test]
fn a_fifo_that_nobody_reads_is_refused_at_once() {
    let (_folder, path) = folder();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    assert!(refused(&Serial::File(path)).contains("console: file "));
}

#[test]
fn nowhere_takes_everything() {
    let mut bench = Bench::new(&Serial::None);
    bench.output.write(&pattern(1 << 20));
    assert_eq!(bench.manager.run_with_timeout(0).unwrap(), 0);
    assert!(bench.requests.take().is_none());
}

#[test]
fn input_that_is_a_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    let sent = pattern(10_000);
    file.write_all(&sent).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut console = Console::open(&Serial::None).unwrap();
    console.source = Some(Source { file, watch: Watch::Parked });
    let mut bench = Bench::attach(console);
    assert!(bench.input(sent.len()) == sent);
    while bench.manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(bench.port.guest_reads(), 0);
}
