//! Debian's own system on a disk: it boots to a login, and its tools find the devices to be what they should be.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{Builder, Finished, Machine, debian_disk};

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

/// Random writes at a depth that keeps the queues full, of one size and of several, each block read back and compared; and trims between writes.
fn fio(machine: &mut Machine) {
    let common = "--ioengine=libaio --direct=1 --size=4M --output-format=terse";
    let verify = "--verify=crc32c --verify_fatal=1 --do_verify=1";
    let jobs = [
        ("fixed", format!("--rw=randwrite --bs=4k --iodepth=32 {verify}")),
        ("mixed", format!("--rw=randwrite --bsrange=512-64k --iodepth=8 --offset=4M {verify}")),
        ("trims", "--rw=randtrimwrite --bsrange=4k-64k --iodepth=8 --offset=8M".to_owned()),
    ];
    let mut words = String::new();
    for (kind, job) in jobs {
        for node in ["nvme1n1", "vda"] {
            words.push_str(&format!(" --name={kind}-{node} --filename=/dev/{node} {common} {job}"));
        }
    }
    // All at once, in one process: to load its libraries takes an emulated processor longer than all that it does.
    let said = machine.sh(&format!("fio{words} --thread"));
    let good = |line: &&str| line.split(';').nth(4) == Some("0");
    assert_eq!(said.lines().filter(good).count(), 6, "{said}");
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

    fio(&mut machine);
    // udev looks at what has been written to, and is not to disturb what rests.
    machine.sh("udevadm settle");
    nvme_cli(&mut machine);
    let functions = machine.sh("lspci -vv | grep -E '^[0-9]|LnkSta:'");
    println!("{functions}");
    assert!(
        functions.contains("Non-Volatile memory controller") && functions.contains("LnkSta:\tSpeed "),
        "{functions}"
    );
    machine.sh(&format!("seq 1000000 | head -c {DATA} >/tmp/data"));
    over_tap(&mut machine);
    over_passt(&mut machine);
    over_vsock(&mut machine, &socket);
    power_off(machine);
}

#[test]
fn debian_on_virtio_blk() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let disks = [empty(path("nvme.img"), 16 << 20), empty(path("virtio.img"), 16 << 20)];
    let machine = Builder::debian_system(&debian_disk(scratch.path()), "virtio-blk");
    let machine = machine.args(&["--disk", &flag(&disks[0], "id=one"), "--net", &format!("tap=skep2,mac={ON_TAP}")]);
    let machine = machine.args(&["--disk", &flag(&disks[1], "device=virtio-blk,id=two")]);
    let machine = machine.args(&["--control", &path("0").display().to_string()]);
    let mut machine = logged_in(machine);
    assert_eq!(machine.sh("findmnt -no SOURCE,FSTYPE /"), "/dev/vda ext4");
    // Its root and what it works with go along.
    machine = goes_there_and_back(machine, scratch.path());
    power_off(machine);
}

/// Reads a clock again and again, in hundredths of a second, and tells how often it went back, and the largest step.
const TIMER: &str = "back=0 count=0 most=0 last=0
until [ -e /tmp/stop ]; do
    read -r now rest </proc/uptime
    now=$((10#${now/./}))
    if [ $now -lt $last ]; then back=$((back + 1)); fi
    if [ $count -gt 0 ] && [ $((now - last)) -gt $most ]; then most=$((now - last)); fi
    count=$((count + 1)) last=$now
    sleep 0.05
done
echo back $back of $count, largest step $most >/tmp/steps
";

/// Waits until both disks that are written and verified again and again have been read three times over: all of one round, at least, was after it began,
/// whoever else has looked at them meanwhile.
const GOES_ON: &str = "goes_on() {
    local disk old now
    for disk in nvme0n1 vdb; do
        read -r _ _ old _ </sys/block/$disk/stat
        now=$old
        until [ $((now - old)) -ge $((3 * ROUND)) ] || [ -e /tmp/ended ]; do
            sleep 0.2
            read -r _ _ now _ </sys/block/$disk/stat
        done
    done
    [ ! -e /tmp/ended ] || { cat /tmp/fio; return 1; }
}";
/// What a round reads of a disk, in sectors of 512 bytes.
const ROUND: u32 = 4096;

/// A guest's clock, beside the host's.
struct Time {
    /// Before the guest's was read, and after.
    outer: Instant,
    inner: Instant,
    guest: f64,
}

fn uptime(machine: &mut Machine) -> f64 {
    let said = machine.sh("cut -d' ' -f1 /proc/uptime");
    said.parse().unwrap_or_else(|_| panic!("no time: `{said}`"))
}

impl Time {
    fn begin(machine: &mut Machine) -> Self {
        let outer = Instant::now();
        let guest = uptime(machine);
        Self { outer, inner: Instant::now(), guest }
    }

    /// That the guest's has gone on with the host's: without what passed while it was away, and without some of what nobody knows of.
    fn expect_passed(&self, machine: &mut Machine, away: Duration, unknown: Duration) {
        let inner = self.inner.elapsed();
        let passed = uptime(machine) - self.guest;
        let outer = self.outer.elapsed();
        println!(
            "the guest's clock went on by {passed} s, the host's by {inner:?} to {outer:?}, away {away:?}, unknown {unknown:?}"
        );
        // Clocks of an emulated host differ a little in their rates.
        let slack = 0.05 + outer.as_secs_f64() / 50.0;
        let least = inner.saturating_sub(away).saturating_sub(unknown).as_secs_f64() - slack;
        let most = (outer - away).as_secs_f64() + slack;
        assert!(passed > least && passed < most, "{passed} s of {inner:?} to {outer:?}, {away:?} away");
    }
}

/// What a guest stood still for, as it is told.
fn stood(end: &Finished) -> Duration {
    let told = end.console.split_once("stood still for ").and_then(|(_, text)| text.split_once(" ms"));
    let milliseconds: f64 = told.unwrap_or_else(|| panic!("no time: {}", end.console)).0.parse().unwrap();
    Duration::from_secs_f64(milliseconds / 1e3)
}

/// It goes to another process and back while an iperf3 stream goes to the host, and is put away and goes on thrice: all while fio writes and verifies on both
/// kinds of disks.
fn goes_there_and_back(mut machine: Machine, folder: &Path) -> Machine {
    let verify = "--rw=randwrite --bs=4k --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1";
    let jobs = "--name=one --filename=/dev/nvme0n1 --name=two --filename=/dev/vdb";
    let size = 512 * ROUND;
    // Once for all: to load it takes an emulated processor longer than a round.
    let common = "--ioengine=libaio --direct=1 --loops=1000000 --thread --exitall_on_error";
    let fio = format!("fio {common} --size={size} {verify} {jobs}");
    let mut server = quiet("iperf3", &["-s", "-p", "5400"]);
    reach("skep2");
    let card = card(&mut machine, ON_TAP);
    machine.sh(&format!("ip addr add 192.168.78.2/24 dev {card}; ip link set {card} up; ping -c 1 -W 20 192.168.78.1"));
    // Of what runs in the background no shell tells, since none waits for it.
    machine.sh(&format!("( ({fio} >/tmp/fio 2>&1 & echo $! >/tmp/writer; wait $!; touch /tmp/ended) & )"));
    machine.sh(&GOES_ON.replace("ROUND", &ROUND.to_string()));
    // At a rate that leaves an emulated processor time for the disks. It may be some time before the server listens; what has begun ends when it is told
    // to, and is not begun anew.
    let client = "iperf3 -c 192.168.78.1 -p 5400 -b 10M -t 86400 --forceflush";
    machine.sh(&format!(
        "( (until {{ {client} >/tmp/stream & echo $! >/tmp/client; wait $!; }} || [ -e /tmp/begun ]; do sleep 0.2; done) & )"
    ));
    let lines = "grep -c sec /tmp/stream";
    machine.sh("goes_on && until [ $(grep -c sec /tmp/stream) -gt 1 ]; do sleep 0.2; done");
    let client = machine.sh("touch /tmp/begun; cat /tmp/client");
    machine.sh(&format!("cat >/tmp/timer <<'END'\n{TIMER}END\n(bash /tmp/timer &)"));
    let text = |name: &str| folder.join(name).display().to_string();
    for (round, tap) in [(1, "skep4"), (2, "skep2")] {
        let [from, to] = [round - 1, round].map(|number| text(&number.to_string()));
        let at = format!("unix:{}", text(&format!("to-{round}")));
        let said: u32 = machine.sh(lines).parse().unwrap();
        let mut next = Builder::command(&["receive", &at, "--control", &to, "--tap", &format!("net0={tap}")]).start();
        next.wait_for_log("waiting for a machine");
        let time = Time::begin(&mut machine);
        let gone = Builder::command(&["ctl", &from, "migrate", &at]).finish();
        let stood = stood(gone.expect_code(0));
        machine.finish().expect_code(15);
        reach(tap);
        machine = next;
        machine.resume_log_in();
        // What it stood is counted, but for the little that is on the way while nobody can measure it.
        time.expect_passed(&mut machine, Duration::ZERO, stood);
        let goes_on_or_is_lost = format!("[ $({lines}) -gt {} ] || [ ! -e /proc/{client} ]", said + 2);
        machine.sh(&format!("until {goes_on_or_is_lost}; do sleep 0.2; done"));
        let lost = machine.sh(&format!("[ -e /proc/{client} ] || cat /tmp/stream"));
        assert_eq!(lost, "", "the stream has ended");
        machine.sh("goes_on");
    }
    // It is still the same stream.
    machine.sh(&format!("kill -INT {client} && while [ -e /proc/{client} ]; do sleep 0.2; done"));
    let stream = machine.sh("grep -E 'sender|unable' /tmp/stream");
    assert!(stream.contains("sender") && !stream.contains("unable"), "{stream}");
    server.kill().unwrap();
    server.wait().unwrap();
    // It is put away three times, one of them for a time that its clock jumps by.
    for (round, clock) in ["continue", "jump", "continue"].into_iter().enumerate() {
        let [socket, snapshot] = ["2", "snapshot"].map(text);
        let time = Time::begin(&mut machine);
        Builder::command(&["ctl", &socket, "save", &snapshot, "--quit"]).finish().expect_code(0);
        machine.finish().expect_code(14);
        let away = Instant::now();
        // Which takes a while.
        Builder::command(&["snapshot", "verify", &snapshot]).finish().expect_code(0);
        let away = if clock == "jump" { Duration::ZERO } else { away.elapsed() };
        machine =
            Builder::command(&["restore", &snapshot, "--control", &socket, "--clock", clock, "--log", "info"]).start();
        machine.wait_for_log("restored from");
        // It has it mapped.
        std::fs::remove_dir_all(&snapshot).unwrap();
        reach("skep2");
        machine.resume_log_in();
        let unknown = if clock == "jump" { Duration::ZERO } else { time.outer.elapsed() };
        println!("put away {}: --clock {clock}", round + 1);
        time.expect_passed(&mut machine, away, unknown);
        machine.sh("goes_on");
    }
    let said = machine
        .sh("touch /tmp/stop; kill $(cat /tmp/writer); until [ -e /tmp/ended ]; do sleep 0.2; done; cat /tmp/fio");
    assert_eq!(said.matches("err= 0").count(), 2, "{said}");
    let steps = machine.sh("until [ -s /tmp/steps ]; do sleep 0.2; done; cat /tmp/steps");
    println!("the guest's timer went {steps}");
    assert!(steps.starts_with("back 0 of "), "{steps}");
    machine
}

/// Gives the host its addresses in the guest's network: as behind a bridge it is the same neighbour wherever the guest is, and need not be looked for.
fn reach(tap: &str) {
    ip(&["link", "set", tap, "address", "02:00:00:00:78:01"]);
    ip(&["addr", "replace", "192.168.78.1/24", "dev", tap]);
    ip(&["link", "set", tap, "up"]);
}

/// What a storage engineer looks at: each command, feature and log page that the controller says it has, and two that it says it has not.
fn nvme_cli(machine: &mut Machine) {
    assert!(machine.sh("nvme list").contains("SKEP-DATA"));
    let controller = machine.sh("nvme id-ctrl /dev/nvme1");
    for line in ["ver       : 0x20000", "npss      : 4", "apsta     : 0x1"] {
        assert!(controller.contains(line), "{controller}");
    }
    assert!(machine.sh("nvme id-ns /dev/nvme1n1").contains("nsze    : 0x8000"));
    assert!(machine.sh("nvme list-ns /dev/nvme1").contains("0x1"));
    assert!(machine.sh("nvme ns-descs /dev/nvme1n1").contains("uuid    : "));
    machine.sh(
        "for id in 1 2 4 5 6 7 8 9 10 11 12 14 15; do nvme get-feature /dev/nvme1 -f $id -H >/dev/null || exit 1; done",
    );
    // Each log page that the first one, the list of them, says there is: itself, errors, SMART, firmware, changed namespaces, effects, features.
    let logs = "nvme get-log /dev/nvme1 -i 0 -l 1024 -b | od -An -v -tu4 -w4 | awk '$1 % 2 { print NR - 1 }'";
    let logs = machine.sh(logs);
    assert_eq!(logs.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5", "18"]);
    machine.sh("for id in 1 2 3 4 5 18; do nvme get-log /dev/nvme1 -i $id -l 512 >/dev/null || exit 1; done");
    for log in ["error", "fw", "changed-ns-list", "effects"] {
        machine.sh(&format!("nvme {log}-log /dev/nvme1 >/dev/null"));
    }
    let smart = machine.sh("nvme smart-log /dev/nvme1");
    assert!(smart.contains("critical_warning\t\t\t: 0") && smart.contains("media_errors\t\t\t\t: 0"), "{smart}");
    power_states(machine);
    set_features(machine);

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

/// The value of a feature.
fn feature(machine: &mut Machine, id: u8) -> u32 {
    let said = machine.sh(&format!("nvme get-feature /dev/nvme1 -f {id}"));
    // Zero has no prefix.
    let word = said.split_once("urrent value:").and_then(|(_, rest)| rest.split_whitespace().next());
    let value = word.and_then(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    value.unwrap_or_else(|| panic!("{said}"))
}

/// What the driver asks for: by itself, that a controller without work goes to states that take little; and no longer, when the latency of these
/// may not be borne.
fn power_states(machine: &mut Machine) {
    let latency = "/sys/class/nvme/nvme1/power/pm_qos_latency_tolerance_us";
    assert_eq!(feature(machine, 12), 1);
    machine.sh("until nvme get-feature /dev/nvme1 -f 2 | grep -q 'value:0x0*[34]$'; do :; done");
    machine.sh(&format!("cat {latency} >/tmp/latency; echo 0 >{latency}"));
    assert_eq!(feature(machine, 12), 0);
    // It was in that state until a command came, and stays out of it now.
    machine.sh("dd if=/dev/nvme1n1 of=/dev/null count=1 iflag=direct 2>/dev/null");
    assert_eq!(feature(machine, 2), 0);
    // Each that there is, as it is asked for; one that is operational stays when commands come.
    for state in [4, 3, 1, 2] {
        machine.sh(&format!("nvme set-feature /dev/nvme1 -f 2 -v {state}"));
        assert_eq!(feature(machine, 2), state);
    }
    machine.sh("dd if=/dev/nvme1n1 of=/dev/null count=1 iflag=direct 2>/dev/null");
    assert_eq!(feature(machine, 2), 2);
    let refused = machine.sh("nvme set-feature /dev/nvme1 -f 2 -v 5 2>&1; true");
    assert!(refused.contains("Invalid Field in Command"), "{refused}");
    machine.sh(&format!("nvme set-feature /dev/nvme1 -f 2 -v 0; cat /tmp/latency >{latency}"));
    assert_eq!(feature(machine, 12), 1);
}

/// What can be set is what it then is.
fn set_features(machine: &mut Machine) {
    for (id, value) in [(1, 3), (4, 350), (5, 100), (6, 0), (8, 0x203), (10, 1)] {
        machine.sh(&format!("nvme set-feature /dev/nvme1 -f {id} -v {value}"));
        assert_eq!(feature(machine, id), value, "feature {id}");
    }
    machine.sh("nvme set-feature /dev/nvme1 -f 6 -v 1");
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().unwrap();
    assert!(status.success(), "ip {words:?}");
}

/// A program of the host's side, whose words are not the test's.
fn quiet(program: &str, words: &[&str]) -> Child {
    Command::new(program).args(words).stdout(Stdio::null()).spawn().unwrap()
}

/// Bytes of the file that the guest sends.
const DATA: u64 = 1 << 20;

/// By what they are told apart in the guest.
const ON_TAP: &str = "52:54:00:00:00:01";
const ON_PASST: &str = "52:54:00:00:00:02";

/// The name of the card with this address.
fn card(machine: &mut Machine, address: &str) -> String {
    machine.sh(&format!("ip -br link | grep {address} | cut -d' ' -f1"))
}

/// Bytes that go to the host over TCP and come back, all the same; then iperf3's transfers each way, and several at a time.
fn tcp(machine: &mut Machine, host: &str, port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let echo = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        io::copy(&mut (&stream).take(DATA), &mut &stream).unwrap()
    });
    // The host's end is closed first: Debian 12's passt keeps half of a connection open that the guest has closed half of.
    let said =
        machine.sh(&format!("socat -t 60 - TCP:{host}:{port},shut-none </tmp/data | cmp - /tmp/data && echo the same"));
    assert_eq!(said, "the same");
    assert_eq!(echo.join().unwrap(), DATA);

    let port = port + 1;
    let mut server = quiet("iperf3", &["-s", "-p", &port.to_string()]);
    let client = format!("iperf3 -c {host} -p {port} -n 4M");
    // It may be some time before the server listens.
    let said = machine.sh(&format!("until {client}; do :; done; {client} -R && {client} -P 4"));
    assert_eq!(said.matches("iperf Done.").count(), 3, "{said}");
    server.kill().unwrap();
    server.wait().unwrap();
}

fn over_tap(machine: &mut Machine) {
    reach("skep1");
    let card = card(machine, ON_TAP);
    machine.sh(&format!(
        "ip addr add 192.168.78.2/24 dev {card}; ip link set {card} up; ping -c 3 -i 0.2 -W 20 192.168.78.1"
    ));
    tcp(machine, "192.168.78.1", 5200);
}

/// The address comes by DHCP; the gateway's is the host's own.
fn over_passt(machine: &mut Machine) {
    let card = card(machine, ON_PASST);
    machine.sh("until ip -4 route show default | grep -q .; do sleep 1; done");
    let gateway = machine.sh(&format!("ip -4 route show default dev {card} | cut -d' ' -f3"));
    // passt takes what is for the gateway to the host, but for pings: these go to an address of the host's.
    machine.sh("ping -c 2 -i 0.2 -W 20 198.51.100.1");
    tcp(machine, &gateway, 5300);
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
    let said = machine.sh("socat -t 60 - VSOCK-CONNECT:2:7000 </tmp/data | cmp - /tmp/data && echo the same");
    assert_eq!(said, "the same");
    assert_eq!(host.join().unwrap(), DATA);

    machine.sh("(socat VSOCK-LISTEN:7001 EXEC:cat &); until ss --vsock -ln | grep -q 7001; do sleep 0.2; done");
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
