//! Signals, limits of the host, and what they leave behind, with the guest that is built in: on any /dev/kvm.
#![allow(unsafe_code)] // Signals without a name of their own, and limits that are set in a child.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use support::variables::volume;
use support::{Builder, Machine, is_x86_64, skep};

/// What the guest says when it takes input.
const READY: &str = "echo: ready";

fn kill(machine: &Machine, signal: i32) {
    // SAFETY: it touches no memory, and the process has not been waited for.
    assert_eq!(unsafe { libc::kill(machine.pid(), signal) }, 0);
}

/// The guest, to echo what its socket's client sends; the socket, and a client once the guest is ready.
fn echo() -> (Machine, tempfile::TempDir, PathBuf, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("console");
    let serial = format!("socket={}", socket.display());
    let mut machine = Builder::command(&["hello", "echo", "--serial", &serial]).start();
    let mut client = connect(&mut machine, &socket);
    read_to(&mut client, READY);
    (machine, folder, socket, client)
}

/// Connects once skep has said where.
fn connect(machine: &mut Machine, socket: &Path) -> UnixStream {
    machine.wait_for_log("the guest's console is the socket");
    UnixStream::connect(socket).unwrap()
}

fn read_to(from: &mut impl Read, text: &str) {
    let (mut seen, mut byte) = (String::new(), [0]);
    while !seen.contains(text) {
        from.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} before `{text}`:\n{seen}"));
        seen.push(byte[0].into());
    }
}

/// Firmware that sets a byte of its variables, by the last thing that it does with its flash, says `!`, and resets the machine or waits. Its code, its variables, and
/// where the byte is, which is then [`SET`].
fn setting_firmware(resets: bool) -> (Vec<u8>, Vec<u8>, usize) {
    let (code, size, at) = if is_x86_64() {
        let mut code = vec![0xff; 0x8000];
        let mut put = |at: usize, bytes: &[u8]| code[at - 0x8000..at - 0x8000 + bytes.len()].copy_from_slice(bytes);
        // JMP 0x9000; LGDT; CR0.PE; a far JMP to 32-bit code, with DS for all of memory.
        put(0xfff0, &[0xe9, 0x0d, 0x90]);
        put(0x9000, &[0x2e, 0x66, 0x0f, 0x01, 0x16, 0xa0, 0x90, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0]);
        put(0x900f, &[0x66, 0xea, 0x40, 0x90, 0xff, 0xff, 0x08, 0x00]);
        put(0x9040, &[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8]);
        // A byte is programmed: the flash can't know that no other follows.
        put(0x9046, &[0xc6, 0x05, 0x00, 0x00, 0xff, 0xff, 0x40, 0xc6, 0x05, 0x00, 0x10, 0xff, 0xff, SET]);
        // COM1; the reset control register; HLT for ever.
        put(0x9054, &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee]);
        put(0x905b, &[0x66, 0xba, 0xf9, 0x0c, 0xb0, if resets { 6 } else { 0 }, 0xee, 0xf4, 0xeb, 0xfd]);
        put(0x9088, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
        put(0x9090, &0x00cf_9300_0000_ffffu64.to_le_bytes());
        put(0x90a0, &[23, 0, 0x80, 0x90, 0xff, 0xff]);
        (code, 0x8000, 0x1000)
    } else {
        let write = |value: u32, store: u32| {
            let (low, high) = (value & 0xffff, value >> 16);
            // MOVZ W0, low; MOVK W0, high, LSL 16; STR W0.
            [0x5280_0000 | low << 5, 0x72a0_0000 | high << 5, store]
        };
        let twice = |byte: u8| u32::from(byte) << 16 | u32::from(byte);
        // MOVZ X1, 0x400, LSL 16: the bank with the variables, whose first block is erased, and has one word programmed, behind all that it had.
        let mut words = vec![0xd2a0_8001];
        words.extend([0x20, 0xd0].map(|byte| write(twice(byte), 0xb900_0020)).concat());
        words.extend([0xe8, 0, SET, 0xd0, 0xff].map(|byte| write(twice(byte), 0xb900_3020)).concat());
        // MOVZ X2, 0x900, LSL 16: PL011's control and data.
        words.push(0xd2a1_2002);
        words.extend(write(0x301, 0xb900_3040));
        words.extend(write(b'!'.into(), 0xb900_0040));
        // PSCI's SYSTEM_RESET by HVC; a branch to itself.
        let reset = [0x5280_0120, 0x72b0_8000, 0xd400_0002];
        words.extend(reset.iter().filter(|_| resets));
        words.push(0x1400_0000);
        let mut code = vec![0; 0x1000];
        // B 0x100.
        code[..4].copy_from_slice(&0x1400_0040u32.to_le_bytes());
        code[0x100..0x100 + words.len() * 4]
            .copy_from_slice(&words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect::<Vec<_>>());
        (code, 64 << 20, 0x30)
    };
    (code, volume(size), at)
}

/// What [`setting_firmware`] sets.
const SET: u8 = 5;

#[test]
fn what_firmware_has_set_last_is_in_its_file_when_the_machine_ends_in_order() {
    for resets in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let [code, vars] = ["code.fd", "vars.fd"].map(|name| folder.path().join(name));
        let (program, volume, at) = setting_firmware(resets);
        fs::write(&code, program).unwrap();
        fs::write(&vars, volume).unwrap();
        let words = ["run", "--memory", "64M", "--on-reset", "exit", "--firmware", code.to_str().unwrap()];
        let mut machine = Builder::command(&words).args(&["--firmware-vars", vars.to_str().unwrap()]).start();
        machine.wait_for("!");
        if !resets {
            kill(&machine, libc::SIGTERM);
        }
        machine.finish().expect_code(if resets { 10 } else { 128 + libc::SIGTERM });
        assert_eq!(fs::read(&vars).unwrap()[at], SET, "it resets: {resets}");
    }
}

#[test]
fn every_signal_that_ends_a_process_ends_the_machine_in_order() {
    let named = [libc::SIGUSR1, libc::SIGALRM, libc::SIGVTALRM, libc::SIGXCPU, libc::SIGIO, libc::SIGPWR];
    for signal in [&named[..], &[libc::SIGRTMAX() - 1, libc::SIGRTMAX()]].concat() {
        let (machine, _folder, socket, _client) = echo();
        kill(&machine, signal);
        machine.finish().expect_code(128 + signal).expect_log(&format!("ended by signal {signal}"));
        assert!(!socket.exists(), "signal {signal} leaves nothing behind");
    }
}

#[test]
fn a_fault_leaves_nothing_behind() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGTRAP] {
        let (machine, _folder, socket, _client) = echo();
        kill(&machine, signal);
        assert_eq!(machine.finish().code, None, "signal {signal} does what it does");
        assert!(!socket.exists(), "signal {signal}");
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("console");
    let mut command = Command::new(skep());
    command.args(["hello", "echo", "--serial", &format!("socket={}", socket.display())]);
    // SAFETY: as `nohup` does, one system call.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut machine = Builder::spawn(command);
    let mut client = connect(&mut machine, &socket);
    read_to(&mut client, READY);
    kill(&machine, libc::SIGHUP);
    client.write_all(b"still here\r").unwrap();
    read_to(&mut client, "echo: still here");
    kill(&machine, libc::SIGTERM);
    machine.finish().expect_code(143);
}

#[test]
fn a_limit_of_file_sizes_costs_output_and_not_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("console");
    let mut command = Command::new(skep());
    command.args(["hello", "--serial", &format!("file={}", file.display())]);
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| {
            setrlimit(Resource::Fsize, Rlimit { current: Some(100), maximum: Some(100) })?;
            Ok(())
        });
    }
    let end = Builder::spawn(command).finish();
    end.expect_code(0).expect_log("output is lost: File too large");
    assert_eq!(fs::metadata(&file).unwrap().len(), 100);
}

#[test]
fn a_client_waits_while_the_host_has_no_descriptor_for_it() {
    // The machine runs, and its first client has gone.
    let (mut machine, _folder, socket, first) = echo();
    drop(first);
    let pid = Pid::from_raw(machine.pid());
    // It has as many as this test, and then fewer than it has open.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    let mut client = UnixStream::connect(&socket).unwrap();
    machine.wait_for_log("a client can't be accepted yet");
    prlimit(pid, Resource::Nofile, before).unwrap();
    client.write_all(b"again\r").unwrap();
    read_to(&mut client, "echo: again");
    client.write_all(b"bye\r").unwrap();
    let end = machine.finish();
    end.expect_code(0).expect_log("ulimit -n");
    assert_eq!(end.log.matches("can't be accepted").count(), 1, "it is told once: {}", end.log);
}

#[test]
fn a_machine_that_comes_to_nothing_leaves_its_console_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("console");
    fs::write(&file, "precious").unwrap();
    let serial = format!("file={}", file.display());
    Builder::command(&["hello", "--cpus", "100000", "--serial", &serial]).finish().expect_code(1);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    Builder::command(&["hello", "first", "--serial", &serial]).finish().expect_code(0);
    assert!(fs::read_to_string(&file).unwrap().starts_with("skep hello: up"));
}

#[test]
fn too_few_descriptors_are_named_with_their_mend() {
    let run = |limit: u64| {
        let mut command = Command::new(skep());
        command.args(["hello", "first"]);
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(move || {
                setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
                Ok(())
            });
        }
        Builder::spawn(command).finish()
    };
    // Whichever is the first that the host refuses.
    let refused: Vec<_> = (3..).map(run).take_while(|end| end.code != Some(0)).collect();
    assert!(refused.len() > 3, "{}", refused.len());
    for end in refused {
        end.expect_code(1).expect_log("\n  try: ulimit -n");
    }
}

#[test]
fn a_long_boot_without_hardware_virtualization_is_warned_of() {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let absent = is_x86_64() && !info.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let warned = |words: &[&str]| {
        let end = Builder::command(words).finish();
        end.log.contains("works without hardware virtualization")
    };
    assert!(!warned(&["hello", "first"]), "the guest that is built in runs anywhere");
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, smallest_kernel()).unwrap();
    // It is told before the machine is made, which has more CPUs than any host gives.
    assert_eq!(warned(&["run", "--cpus", "100000", "--kernel", kernel.to_str().unwrap()]), absent);
}

/// Headers of a kernel and nothing behind them: a bzImage, or an Image.
fn smallest_kernel() -> Vec<u8> {
    let mut file = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    if is_x86_64() {
        bzimage(&mut put);
    } else {
        put(16, &4096_u64.to_le_bytes());
        put(56, b"ARM\x64");
    }
    file
}

/// The setup header of a bzImage with two setup sectors (Documentation/arch/x86/boot.rst).
fn bzimage(put: &mut impl FnMut(usize, &[u8])) {
    put(0x1f1, &[2]);
    put(0x1f4, &(2560_u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &0x3f_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &(16_u64 << 20).to_le_bytes());
    put(0x260, &(8_u32 << 20).to_le_bytes());
}
