//! Debian's own system on a disk: it boots to a login, and its tools find the devices to be what they should be.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use support::{Builder, Machine, debian_disk};

fn logged_in(machine: Builder) -> Machine {
    let mut machine = machine.start();
    machine.log_in();
    machine
}

/// Ends it as a user does, and looks at what its kernel had to say.
fn power_off(mut machine: Machine) {
    let complaints = machine.sh("dmesg --level emerg,alert,crit,err");
    assert_eq!(complaints, "", "the kernel's log");
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "", "units that failed");
    machine.send("poweroff\n");
    machine.finish().expect_code(0);
}

fn empty(path: PathBuf, size: u64) -> PathBuf {
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn flag(path: &Path, more: &str) -> String {
    format!("{},format=raw,{more}", path.display())
}

/// Random writes at a depth that keeps the queues full, each block read back and compared.
fn fio(machine: &mut Machine, node: &str) {
    let job = "--rw=randwrite --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --size=4M";
    let verify = "--verify=crc32c --verify_fatal=1 --do_verify=1";
    let said = machine.sh(&format!("fio --name=verify --filename=/dev/{node} {job} {verify} --output-format=terse"));
    assert!(said.contains(";verify;"), "{said}");
    // More than one block size, and trims in between.
    let mixed = "--rw=randtrimwrite --bsrange=4k-64k --iodepth=8 --ioengine=libaio --direct=1 --size=4M";
    machine.sh(&format!("fio --name=mixed --filename=/dev/{node} {mixed} --output-format=terse"));
}

/// One boot for as much as can be seen in one: minutes pass before a whole system is up in a lab.
#[test]
fn debian_on_nvme() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("vsock");
    let data = empty(scratch.path().join("nvme.img"), 16 << 20);
    let virtio = empty(scratch.path().join("virtio.img"), 16 << 20);
    let machine = Builder::debian_system(&debian_disk(scratch.path()), "nvme");
    // Behind a root port, since what is on bus 0 has no link that `lspci` could show.
    let machine = machine.args(&["--pci-ports", "1", "--disk", &flag(&data, "serial=SKEP-DATA,place=port:0")]);
    let machine = machine.args(&["--disk", &flag(&virtio, "device=virtio-blk")]);
    let machine =
        machine.args(&["--net", &format!("tap=skep1,mac={ON_TAP}"), "--net", &format!("user,mac={ON_PASST}")]);
    let machine = machine.args(&["--device", &format!("vsock={},cid=7", socket.display())]);
    let mut machine = logged_in(machine);
    assert_eq!(machine.sh("findmnt -no SOURCE,FSTYPE /"), "/dev/nvme0n1 ext4");
    assert_eq!(machine.sh("cat /sys/class/nvme/nvme1/serial"), "SKEP-DATA");

    fio(&mut machine, "nvme1n1");
    fio(&mut machine, "vda");
    nvme_cli(&mut machine);
    let functions = machine.sh("lspci -vv | grep -E '^[0-9]|LnkSta:'");
    println!("{functions}");
    assert!(
        functions.contains("Non-Volatile memory controller") && functions.contains("LnkSta:\tSpeed "),
        "{functions}"
    );
    over_tap(&mut machine);
    over_passt(&mut machine);
    over_vsock(&mut machine, &socket);
    power_off(machine);
}

#[test]
fn debian_on_virtio_blk() {
    let scratch = tempfile::tempdir().unwrap();
    let mut machine = logged_in(Builder::debian_system(&debian_disk(scratch.path()), "virtio-blk"));
    assert_eq!(machine.sh("findmnt -no SOURCE,FSTYPE /"), "/dev/vda ext4");
    power_off(machine);
}

/// What a storage engineer looks at: each command, feature and log page that the controller says it has, and two that it says it has not.
fn nvme_cli(machine: &mut Machine) {
    assert!(machine.sh("nvme list").contains("SKEP-DATA"));
    let controller = machine.sh("nvme id-ctrl /dev/nvme1");
    assert!(controller.contains("ver       : 0x20000") && controller.contains("npss      : 4"), "{controller}");
    assert!(machine.sh("nvme id-ns /dev/nvme1n1").contains("nsze    : 0x8000"));
    assert!(machine.sh("nvme list-ns /dev/nvme1").contains("0x1"));
    assert!(machine.sh("nvme ns-descs /dev/nvme1n1").contains("uuid    : "));
    machine.sh("for id in 1 2 4 5 6 7 8 9 0xa 0xb 0xe 0xf; do nvme get-feature /dev/nvme1 -f $id -H >/dev/null || exit 1; done");
    for log in ["error", "smart", "fw", "changed-ns-list", "effects"] {
        machine.sh(&format!("nvme {log}-log /dev/nvme1 >/tmp/log && test -s /tmp/log"));
    }
    // Each that the first one, the list of them, says there is: supported logs, errors, SMART, firmware, changed namespaces, effects, features.
    let logs = "nvme get-log /dev/nvme1 -i 0 -l 1024 -b | od -An -v -tu4 -w4 | awk '$1 % 2 { print NR - 1 }'";
    let logs = machine.sh(logs);
    assert_eq!(logs.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5", "18"]);
    machine.sh("for id in 1 2 3 4 5 18; do nvme get-log /dev/nvme1 -i $id -l 512 >/dev/null || exit 1; done");
    assert!(machine.sh("nvme smart-log /dev/nvme1").contains("critical_warning\t\t\t: 0"));

    // Power states: the driver's transitions are kept.
    machine.sh("nvme set-feature /dev/nvme1 -f 2 -v 1");
    assert!(machine.sh("nvme get-feature /dev/nvme1 -f 2").contains("0x00000001"));
    machine.sh("nvme set-feature /dev/nvme1 -f 2 -v 0");

    machine.sh("nvme format /dev/nvme1n1 --ses=1 --force");
    assert_eq!(machine.sh("head -c 16M /dev/zero | cmp - /dev/nvme1n1 && echo all zeroes"), "all zeroes");
    for command in ["write-zeroes", "verify"] {
        machine.sh(&format!("nvme {command} /dev/nvme1n1 -s 0 -c 7"));
    }
    machine.sh("nvme flush /dev/nvme1n1 && nvme dsm /dev/nvme1n1 -s 0 -b 8 -d");
    let refused =
        machine.sh("nvme create-ns /dev/nvme1 -s 100 -c 100 --flbas=0 2>&1; nvme sanitize /dev/nvme1 -a 2 2>&1; true");
    assert_eq!(refused.matches("Invalid Command Opcode").count(), 2, "{refused}");
    machine.sh("nvme reset /dev/nvme1");
    assert!(machine.sh("nvme id-ns /dev/nvme1n1").contains("nsze    : 0x8000"));
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().unwrap();
    assert!(status.success(), "ip {words:?}");
}

/// A program of the host's side, whose words are not the test's.
fn quiet(program: &str, words: &[&str]) -> Child {
    Command::new(program).args(words).stdout(Stdio::null()).spawn().unwrap()
}

/// By what they are told apart in the guest.
const ON_TAP: &str = "52:54:00:00:00:01";
const ON_PASST: &str = "52:54:00:00:00:02";

/// The name of the card with this address.
fn card(machine: &mut Machine, address: &str) -> String {
    machine.sh(&format!("ip -br link | grep {address} | cut -d' ' -f1"))
}

/// A TCP transfer each way, and at last several at a time.
fn iperf(machine: &mut Machine, server: &str, port: u16) {
    let mut host = quiet("iperf3", &["-s", "-p", &port.to_string()]);
    let client = format!("iperf3 -c {server} -p {port} -n 4M");
    // It may be some time before the server listens.
    let said = machine.sh(&format!("until {client}; do :; done; {client} -R && {client} -P 4"));
    assert_eq!(said.matches("iperf Done.").count(), 3, "{said}");
    host.kill().unwrap();
    host.wait().unwrap();
}

fn over_tap(machine: &mut Machine) {
    ip(&["addr", "add", "192.168.78.1/24", "dev", "skep1"]);
    ip(&["link", "set", "skep1", "up"]);
    let card = card(machine, ON_TAP);
    machine.sh(&format!("ip addr add 192.168.78.2/24 dev {card}; ip link set {card} up; ping -c 3 -W 20 192.168.78.1"));
    iperf(machine, "192.168.78.1", 5201);
}

/// The address comes by DHCP; the gateway's is the host's own.
fn over_passt(machine: &mut Machine) {
    let card = card(machine, ON_PASST);
    machine.sh("until ip -4 route show default | grep -q .; do sleep 1; done");
    let gateway = machine.sh(&format!("ip -4 route show default dev {card} | cut -d' ' -f3"));
    // passt takes what is for the gateway to the host, but for pings: these go to an address of the host's.
    machine.sh("ping -c 2 -W 20 198.51.100.1");
    iperf(machine, &gateway, 5301);
}

/// A megabyte each way and back, from either side.
fn over_vsock(machine: &mut Machine, socket: &Path) {
    let mut path = socket.as_os_str().to_owned();
    path.push("_7000");
    let listener = UnixListener::bind(path).unwrap();
    let host = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        io::copy(&mut &stream, &mut &stream).unwrap()
    });
    machine.sh("yes 0123456789abcde | head -c 1048576 >/tmp/data");
    let said = machine.sh("socat -t 60 - VSOCK-CONNECT:2:7000 </tmp/data | cmp - /tmp/data && echo the same");
    assert_eq!(said, "the same");
    assert_eq!(host.join().unwrap(), 1 << 20);

    machine.sh("socat VSOCK-LISTEN:7001 EXEC:cat & until ss --vsock -ln | grep -q 7001; do sleep 0.2; done");
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"CONNECT 7001\n").unwrap();
    let mut answer = Vec::new();
    // Not a byte more than the line: what follows is the stream.
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK "), "{answer:?}");
    let data: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let (mut writer, expected) = (stream.try_clone().unwrap(), data.clone());
    let sender = thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == expected, "{} of {} bytes came back as they were sent", got.len(), expected.len());
}
