//! Stock Debian kernels with what else there is: a balloon, by which they give memory back, and a console with a further port.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use support::{Builder, Machine};

const MIB: u64 = 1 << 20;

fn ctl(socket: &Path, words: &[&str]) -> String {
    let end = Builder::command(&[&["ctl", socket.to_str().unwrap()], words].concat()).finish();
    end.expect_code(0);
    end.console
}

/// Bytes of the process that are in the host's memory: the guest's, but for a few.
fn resident(machine: &Machine) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Asks for the balloon, as often as the guest ticks, until it says that: the guest takes its time.
fn until_balloon(machine: &mut Machine, socket: &Path, says: impl Fn(&str) -> bool) -> String {
    loop {
        let said = ctl(socket, &["balloon"]);
        if says(&said) {
            return said;
        }
        machine.wait_for("tick");
    }
}

fn actual(said: &str) -> &str {
    said.lines().find_map(|line| line.strip_prefix("actual: ")).unwrap()
}

#[test]
fn a_guest_gives_memory_back_and_takes_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let [control, console] = ["vm.sock", "console"].map(|name| folder.path().join(name));
    let flag = format!("console={},ports=pipe:log", console.display());
    let words = ["--control", control.to_str().unwrap(), "--device", "balloon,deflate-on-oom", "--device", &flag];
    let mut machine = Builder::debian_with_virtio().args(&words);
    machine = machine.script(
        "for port in /sys/class/virtio-ports/*; do
            case $(cat $port/name) in
                pipe) cat <>/dev/${port##*/} >&0 & ;;
                log) echo a line for the log >/dev/${port##*/} ;;
            esac
        done
        exec 4<>/dev/hvc0; echo the ports are there
        until [ \"$(stty size <&4)\" = '60 60' ]; do sleep 0.1; done
        echo the terminal has its size
        read word <&4; echo it was $word >&4

        mkdir /mnt; mount -t tmpfs -o size=95% none /mnt
        fill() { dd if=/dev/zero of=/mnt/$1 bs=1M count=$2 2>/dev/null && echo filled $1; }
        while sleep 0.3; do echo tick; done &
        read go; fill first 96
        read go; rm /mnt/first
        read go; fill second 96
        read go; fill third 80
        read go; kill $!",
    );
    let mut machine = machine.start();

    // The console's ports: a terminal that has a size, a pipe both ways, and one that was written before anybody read it.
    machine.wait_for("the ports are there");
    // Kernels before 6.15 take lines for columns, so that there are as many.
    assert_eq!(ctl(&control, &["console", "resize", "60", "60"]), "");
    machine.wait_for("the terminal has its size");
    let mut terminal = UnixStream::connect(&console).unwrap();
    terminal.write_all(b"hello\n").unwrap();
    let lines = BufReader::new(terminal).lines().map(Result::unwrap);
    assert!(lines.take(20).any(|line| line.trim() == "it was hello"));
    let mut line = String::new();
    BufReader::new(UnixStream::connect(folder.path().join("console_log")).unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "a line for the log\n");
    let mut pipe = UnixStream::connect(folder.path().join("console_pipe")).unwrap();
    let data: Vec<u8> = (0..1u32 << 14).flat_map(u32::to_le_bytes).collect();
    let (mut writer, sent) = (pipe.try_clone().unwrap(), data.clone());
    let sender = thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut got = vec![0; data.len()];
    pipe.read_exact(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == data, "what comes back is what was sent");

    // What the guest uses no longer it reports, where 2 MiB in a row are free, and the host has it back; what it needs again it has.
    machine.send("go\n");
    machine.wait_for("filled first");
    let full = resident(&machine);
    machine.send("go\n");
    while resident(&machine) + 48 * MIB > full {
        machine.wait_for("tick");
    }
    let less = resident(&machine);
    machine.send("go\n");
    machine.wait_for("filled second");
    assert!(resident(&machine) > less + 32 * MIB);

    // What it is asked for it gives; and takes it out again before it runs out of memory.
    let said = ctl(&control, &["balloon", "64M"]);
    assert!(said.starts_with("target: 64M\n"), "{said}");
    let said = until_balloon(&mut machine, &control, |said| actual(said) == "64M" && said.contains("  total "));
    assert!(said.contains("  free ") && said.contains("  major-faults "), "{said}");
    machine.send("go\n");
    machine.wait_for("filled third");
    let said = ctl(&control, &["balloon"]);
    assert!(said.starts_with("target: 64M\n") && actual(&said) != "64M", "{said}");
    ctl(&control, &["balloon", "0B"]);
    until_balloon(&mut machine, &control, |said| actual(said) == "0B");
    machine.send("go\n");
    machine.finish().expect_code(0).expect_console("skep: script 0");
}
