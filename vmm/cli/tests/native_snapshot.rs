//! Machines that are put away and go on, with the guests that are built in: on any /dev/kvm of either architecture.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use skep_arch::acpi::loader::GENERATION_OFFSET;
use skep_chipset::fw_cfg::FwCfgState;
use skep_chipset::pl011::Pl011State;
use skep_chipset::pm::PmState;
use skep_chipset::uart16550::Uart16550State;
use skep_hypervisor::{Hypervisor, HypervisorError, Powers, VmBuilder, VmRequest, aarch64, x86_64};
use skep_state::Record;
use skep_vmm::Ending;
use skep_vmm::machine::{ClockPolicy, Saved};
use skep_vmm::monitor::{self, Start};
use skep_vmm::state::{HEADER, Header, MEMORY, MachineState, NamedRecord, RECORDS, Records, RecordsFile, Snapshot};
use support::rig::{Rig, SIZE, interrupted, load};
use support::variables::volume;
use support::{Builder, Finished, Machine, in_lab, is_x86_64};

impl Rig {
    fn ctl(&self, words: &[&str]) -> Finished {
        self.ctl_at("vm.sock", words)
    }

    /// The guest that drives both disks.
    fn start(&self, cmdline: &str) -> Machine {
        self.drive("vm.sock", "raw", cmdline)
    }

    fn restore(&self, name: &str, words: &[&str]) -> Machine {
        let (snapshot, socket) = (self.text(name), self.text("vm.sock"));
        let fixed = ["restore", &snapshot, "--control", &socket, "--log", "info"];
        Builder::command(&[&fixed[..], words].concat()).start()
    }

    /// Puts the machine away, and lets it go on; or answers how it ended if it was done before.
    fn again(&self, machine: Machine, name: &str) -> Result<Machine, Finished> {
        let saved = self.ctl(&["save", &self.text(name), "--quit"]);
        let end = machine.finish();
        if saved.code != Some(0) && end.code == Some(0) {
            return Err(end);
        }
        // What has ended otherwise says why.
        end.expect_code(14);
        saved.expect_code(0);
        let mut next = self.restore(name, &[]);
        next.wait_for_log("restored from");
        Ok(next.after(&end.console))
    }
}

#[test]
fn what_a_guest_does_with_its_disks_is_the_same_when_it_is_put_away_meanwhile() {
    let ways = ["shadow=1", "shadow=0 indirect=1"];
    for way in &ways[..if in_lab() { 1 } else { 2 }] {
        let words = format!("{way} {}{}", load("nvme"), load("virtio-blk"));
        interrupted(
            |rig| rig.start(&words),
            |rig, machine| {
                let next = rig.again(machine, "away")?;
                // What a machine maps may lose its name.
                fs::remove_dir_all(rig.path("away")).unwrap();
                Ok(next)
            },
            |_| (),
        );
    }
}

#[test]
fn a_save_leaves_the_guest_as_it_was_and_what_is_restored_is_what_was_saved() {
    let rig = Rig::new();
    let mut machine =
        Builder::command(&["hello", "echo", "--cpus", "2", "--memory", "64M", "--control", &rig.text("vm.sock")])
            .start();
    machine.wait_for("echo: ready");
    rig.ctl(&["status"]).expect_code(0).expect_console("running\n");
    rig.ctl(&["pause"]).expect_code(0);
    rig.ctl(&["pause"]).expect_code(0);
    rig.ctl(&["status"]).expect_code(0).expect_console("paused\n");
    machine.send("not yet\r");
    rig.ctl(&["stats"]).expect_code(0);
    for name in ["one", "two"] {
        rig.ctl(&["save", &rig.text(name)]).expect_code(0).expect_console("saved ");
        rig.ctl(&["status"]).expect_code(0).expect_console("paused\n");
    }
    rig.ctl(&["resume"]).expect_code(0);
    machine.wait_for("echo: not yet");
    rig.ctl(&["save", &rig.text("three")]).expect_code(0);
    machine.send("on it goes\r");
    machine.wait_for("echo: on it goes");
    rig.ctl(&["quit"]).expect_code(0);
    machine.finish().expect_code(14);

    // A machine that has not run since is saved as what it was, by all that is not the host's.
    let mut again = rig.restore("one", &["--paused"]);
    again.wait_for_log("restored from");
    rig.ctl(&["status"]).expect_code(0).expect_console("paused\n");
    rig.ctl(&["save", &rig.text("four")]).expect_code(0);
    // KVM tells each CPU anew of its clock, in a structure in the guest's memory.
    for (one, other, clocks) in [("one", "two", 0), ("one", "four", 2)] {
        let [a, b] = [one, other].map(|name| fs::read(rig.path(name).join("memory")).unwrap());
        let lines = a.chunks(64).zip(b.chunks(64)).filter(|(a, b)| a != b).count();
        assert!(lines <= clocks, "{lines} lines of memory differ");
        let [one, other] = [one, other].map(|name| Snapshot::open(&rig.path(name)).unwrap());
        one.verify_memory().unwrap();
        assert_eq!(one.header.memory.data, other.header.memory.data);
        let names = |snapshot: &Snapshot| snapshot.records.records.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&one), names(&other));
        for (one, other) in one.records.records.iter().zip(&other.records.records) {
            // Clocks, which go on while it stands, and what the host's counters are seen by.
            let timers = ["board/i8254", "board/pm", "board/rtc"];
            if !one.name.starts_with("vcpu/") && one.name != "machine" && !timers.contains(&one.name.as_str()) {
                assert_eq!(timeless(one), timeless(other));
            }
        }
    }
    rig.ctl(&["resume"]).expect_code(0);
    again.send("hello again\r");
    again.wait_for("echo: hello again");
    again.send("bye\r");
    again.finish().expect_code(0).expect_console("problems: 0");
    // Any number of times.
    let mut clone = rig.restore("three", &["--clock", "jump"]);
    clone.send("third life\r");
    clone.wait_for("echo: third life");
    rig.ctl(&["reset"]).expect_code(0);
    clone.finish().expect_code(10);
}

/// Without the time until a serial port tells of what has waited to be read, which passes while the machine stands.
fn timeless(record: &NamedRecord) -> NamedRecord {
    // The PL011's RIS keeps that it has passed.
    const RECEIVE_TIMEOUT: u16 = 1 << 6;
    let mut record = record.clone();
    if let Ok(state) = record.record.open::<Uart16550State>() {
        record.record = Record::of(&Uart16550State { timeout: None, ..state });
    } else if let Ok(state) = record.record.open::<Pl011State>() {
        record.record = Record::of(&Pl011State { timeout: None, ris: state.ris & !RECEIVE_TIMEOUT, ..state });
    }
    record
}

/// Writes a snapshot's records anew.
fn rewrite(folder: &Path, header: &mut Header, records: &Records) {
    let bytes = records.bytes();
    header.records = RecordsFile::of(&bytes);
    fs::write(folder.join(RECORDS), &bytes).unwrap();
    fs::write(folder.join(HEADER), serde_json::to_vec(header).unwrap()).unwrap();
}

/// Lets a snapshot be one that was saved so many seconds earlier. Answers the frequency of the guest's counter in Hz.
fn age(folder: &Path, seconds: i64) -> u64 {
    let Snapshot { mut header, mut records, .. } = Snapshot::open(folder).unwrap();
    let own = records.records.iter_mut().find(|named| named.name == "machine").unwrap();
    let state: MachineState = own.record.open().unwrap();
    own.record = Record::of(&MachineState { host_nanos: state.host_nanos - seconds * 1_000_000_000, ..state });
    rewrite(folder, &mut header, &records);
    if is_x86_64() {
        let first: x86_64::VcpuState = records.open("vcpu/0").unwrap();
        return u64::from(first.tsc_khz.unwrap()) * 1000;
    }
    let first: aarch64::VcpuState = records.open("vcpu/0").unwrap();
    first.counter_hz.into()
}

/// As the guest sees them: the RTC, its counter, and what it reads without an exit.
#[test]
fn clocks_go_on_where_they_stood_or_jump() {
    const HOUR: u64 = 3600;
    let rig = Rig::new();
    let words = ["hello", "echo", "--memory", "64M", "--control", &rig.text("vm.sock")];
    let mut machine = Builder::command(&words).start();
    machine.wait_for("echo: ready");
    let clocks = |machine: &mut Machine| {
        machine.send("clocks\r");
        let line = machine.wait_for(" ticks");
        let numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let [seconds, ticks] = numbers.collect::<Vec<_>>()[..] else { panic!("{line}") };
        (seconds, ticks)
    };
    let before = clocks(&mut machine);
    rig.ctl(&["save", &rig.text("away"), "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let hz = age(&rig.path("away"), HOUR.cast_signed());
    // In a second: kvmclock's nanoseconds, or the counter itself.
    let pace = if is_x86_64() { 1_000_000_000 } else { hz };
    let clock = |name: &str| Snapshot::open(&rig.path(name)).unwrap().machine().unwrap().guest_clock;
    // Where there is no hardware virtualization the guest reads the host's own counter.
    let is_own = skep_kvm::caveat().is_none();
    for (policy, jumps) in [("continue", false), ("jump", true), ("continue", false)] {
        let mut machine = rig.restore("away", &["--clock", policy]);
        let (seconds, ticks) = clocks(&mut machine);
        let day = 24 * HOUR;
        let passed = (seconds + day - before.0) % day;
        assert_eq!(passed >= HOUR, jumps, "{policy}: the RTC has gone on by {passed} s");
        let counted = ticks.checked_sub(before.1).expect("a counter does not go back");
        if is_own {
            assert_eq!(counted / hz >= HOUR, jumps, "{policy}: the counter has gone on by {counted} at {hz} Hz");
        }
        rig.ctl(&["save", &rig.text("later")]).expect_code(0);
        let counted = clock("later").checked_sub(clock("away")).expect("a clock does not go back");
        assert_eq!(counted / pace >= HOUR, jumps, "{policy}: the guest's clock has gone on by {counted} at {pace} Hz");
        fs::remove_dir_all(rig.path("later")).unwrap();
        machine.send("bye\r");
        machine.finish().expect_code(0).expect_console("problems: 0");
    }
}

/// Nanoseconds of each clock of a snapshot.
fn clocks(snapshot: &Snapshot) -> Vec<(&'static str, u64)> {
    let (own, records) = (snapshot.machine().unwrap(), &snapshot.records);
    let nanos = |ticks: u64, hz: u64| u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(hz)).unwrap();
    let wall = own.wall_nanos.try_into().unwrap();
    let devices = [("guest time", own.guest_nanos), ("the wall clock", wall)];
    let others = if is_x86_64() {
        let first: x86_64::VcpuState = records.open("vcpu/0").unwrap();
        let timer: PmState = records.open("board/pm").unwrap();
        let counter = nanos(first.tsc, u64::from(first.tsc_khz.unwrap()) * 1000);
        vec![("kvmclock", own.guest_clock), ("the TSC", counter), ("the PM timer", timer.timer_nanos)]
    } else {
        let first: aarch64::VcpuState = records.open("vcpu/0").unwrap();
        let hz = first.counter_hz.into();
        vec![("the VM's counter", nanos(own.guest_clock, hz)), ("the counter", nanos(first.counter, hz))]
    };
    devices.into_iter().chain(others).collect()
}

/// They go on together, those of devices and those that the host keeps: which of them stand would be seen when the guest goes on elsewhere.
#[test]
fn clocks_of_a_paused_machine_are_saved_as_of_one_moment() {
    let rig = Rig::new();
    let words = ["hello", "echo", "--memory", "64M", "--control", &rig.text("vm.sock")];
    let mut machine = Builder::command(&words).start();
    machine.wait_for("echo: ready");
    rig.ctl(&["pause"]).expect_code(0);
    let save = |name: &str| {
        let begin = Instant::now();
        rig.ctl(&["save", &rig.text(name)]).expect_code(0);
        (begin, Instant::now())
    };
    let one = save("one");
    for _ in 0..4 {
        rig.ctl(&["status"]).expect_code(0).expect_console("paused");
    }
    let two = save("two");
    rig.ctl(&["quit"]).expect_code(0);
    machine.finish().expect_code(14);
    // A host does not know its counter's frequency exactly.
    let (least, most) = ((two.0 - one.1).mul_f64(0.98), (two.1 - one.0).mul_f64(1.02));
    let [one, two] = ["one", "two"].map(|name| clocks(&Snapshot::open(&rig.path(name)).unwrap()));
    for ((clock, before), (_, after)) in one.into_iter().zip(two) {
        let passed = Duration::from_nanos(after.checked_sub(before).expect("a clock does not go back"));
        assert!((least..=most).contains(&passed), "{clock}: {passed:?}, and it was {least:?} to {most:?}");
    }
}

/// Each on images of its own, behind which those of the snapshot are: as they were, for any number.
#[test]
fn clones_go_on_side_by_side() {
    let rig = Rig::new();
    let words = "device=nvme seed=7 ms=600000 bs=4096 verify=1 op=write depth=32 count=4096 run op=randwrite count=2000 run op=read count=4096 run";
    let mut machine = rig.start(words);
    machine.wait_for("op=write");
    rig.ctl(&["save", &rig.text("away"), "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let disks = || ["nvme", "virtio"].map(|name| fs::read(rig.path(name)).unwrap());
    let before = disks();
    let restore = |name: &str| {
        let [nvme, other] = ["disk0", "other"].map(|disk| format!("{disk}={}", rig.text(&format!("{name}-{disk}"))));
        Builder::command(&["restore", &rig.text("away"), "--clone", "--overlay", &nvme, "--overlay", &other])
    };
    for clone in ["one", "two"].map(|name| restore(name).start()) {
        clone.finish().expect_code(0).expect_console("problems: 0\r\n");
    }
    assert!(disks() == before);
    restore("two").finish().expect_code(1).expect_log("it is there already");
    let wrong = Builder::command(&["restore", &rig.text("away"), "--tap", "net0=tap7"]).finish();
    wrong.expect_code(1).expect_log("the machine has no network card on a tap interface `net0`");
    let wrong = Builder::command(&["restore", &rig.text("away"), "--firmware-vars", &rig.text("vars")]).finish();
    wrong.expect_code(1).expect_log("the machine has no file of firmware's variables");
}

/// Firmware that does nothing, and a volume for its variables, which has none.
fn idle_firmware() -> (Vec<u8>, Vec<u8>) {
    let mut code = vec![0xff; 0x2_0000];
    let size = if is_x86_64() {
        // By the header of a part of it (TE) it is known, and begins at its end: JMP to itself.
        code[0x2000..0x2006].copy_from_slice(&[b'V', b'Z', 0x64, 0x86, 3, 11]);
        code[0x1_fff0..0x1_fff2].copy_from_slice(&[0xeb, 0xfe]);
        0x8000
    } else {
        // A branch to itself.
        code[..4].copy_from_slice(&0x1400_0000u32.to_le_bytes());
        code[0x1000..0x1006].copy_from_slice(b"PE\0\0\x64\xaa");
        64 << 20
    };
    (code, volume(size))
}

/// Where its firmware has put it. One that is no clone keeps what it had.
#[test]
fn a_clone_has_another_generation_id() {
    const PAGE: u64 = 1 << 20;
    let rig = Rig::new();
    let (code, volume) = idle_firmware();
    fs::write(rig.path("code.fd"), &code).unwrap();
    fs::write(rig.path("vars.fd"), &volume).unwrap();
    let words = ["--firmware", &rig.text("code.fd"), "--firmware-vars", &rig.text("vars.fd")];
    let machine = Builder::command(&["run", "--memory", "64M", "--control", &rig.text("vm.sock")]).args(&words).start();
    while !rig.path("vm.sock").exists() {
        std::thread::yield_now();
    }
    rig.ctl(&["save", &rig.text("away"), "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    // The firmware has said where its page is: in the largest piece of RAM.
    let Snapshot { mut header, mut records, .. } = Snapshot::open(&rig.path("away")).unwrap();
    let ram = header.memory.ram.clone();
    let (largest, piece) = ram.iter().enumerate().max_by_key(|(_, piece)| piece.size).unwrap();
    let own = records.records.iter_mut().find(|named| named.name == "board/fw_cfg").unwrap();
    let mut state: FwCfgState = own.record.open().unwrap();
    let [written] = &mut state.written[..] else { panic!("{state:?}") };
    written.copy_from_slice(&(piece.address + PAGE).to_le_bytes());
    own.record = Record::of(&state);
    rewrite(&rig.path("away"), &mut header, &records);
    let before: u64 = ram[..largest].iter().map(|piece| piece.size).sum();
    let id = |name: &str| {
        let memory = fs::read(rig.path(name).join(MEMORY)).unwrap();
        memory[(before + PAGE) as usize + GENERATION_OFFSET..][..16].to_vec()
    };
    let restored = |words: &[&str]| {
        let mut machine = rig.restore("away", &[&["--paused"], words].concat());
        machine.wait_for_log("restored from");
        rig.ctl(&["save", &rig.text("later"), "--quit"]).expect_code(0);
        machine.finish().expect_code(14);
        let id = id("later");
        fs::remove_dir_all(rig.path("later")).unwrap();
        id
    };
    assert_eq!(restored(&[]), id("away"));
    let clones = [restored(&["--clone"]), restored(&["--clone"])];
    assert_ne!(clones[0], clones[1]);
    assert!(!clones.contains(&id("away")));
}

/// What is made for a restore that is refused goes again, so that the same words do once nothing is in their way.
#[test]
fn a_restore_that_is_refused_leaves_nothing_behind() {
    let rig = Rig::new();
    let (code, volume) = idle_firmware();
    fs::write(rig.path("code.fd"), &code).unwrap();
    fs::write(rig.path("vars.fd"), &volume).unwrap();
    let disk = format!("{},format=raw", rig.text("nvme"));
    let words = ["--firmware", &rig.text("code.fd"), "--firmware-vars", &rig.text("vars.fd"), "--disk", &disk];
    let machine = Builder::command(&["run", "--memory", "64M", "--control", &rig.text("vm.sock")]).args(&words).start();
    while !rig.path("vm.sock").exists() {
        std::thread::yield_now();
    }
    rig.ctl(&["save", &rig.text("away"), "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let there = || {
        let mut names: Vec<_> = fs::read_dir(rig.folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = there();
    let overlay = format!("disk0={}", rig.text("overlay"));
    let made = ["--firmware-vars", &rig.text("made.fd"), "--overlay", &overlay, "--paused"];
    let refused = |words: &[&str], why: &str| {
        rig.restore("away", &[&made[..], words].concat()).finish().expect_code(1).expect_log(why);
        assert_eq!(there(), before, "{why}");
    };
    refused(&["--overlay", &format!("disk7={}", rig.text("other"))], "try: one of disk0");
    refused(&["--tap", "net0=tap7"], "no network card on a tap interface");
    refused(&["--serial", "socket=/nowhere/serial"], "/nowhere/serial");
    // When all but the machine is there.
    let mut other = code.clone();
    other[0x4000] ^= 1;
    fs::write(rig.path("code.fd"), &other).unwrap();
    refused(&[], "is not the firmware that the guest has");
    fs::write(rig.path("code.fd"), &code).unwrap();
    // What is somebody else's stays.
    fs::write(rig.path("made.fd"), "mine").unwrap();
    rig.restore("away", &made).finish().expect_code(1).expect_log("made.fd").expect_log("File exists");
    assert_eq!(fs::read(rig.path("made.fd")).unwrap(), b"mine");
    fs::remove_file(rig.path("made.fd")).unwrap();
    assert_eq!(there(), before);
    let mut again = rig.restore("away", &made);
    again.wait_for_log("restored from");
    rig.ctl(&["status"]).expect_code(0).expect_console("paused\n");
    rig.ctl(&["quit"]).expect_code(0);
    again.finish().expect_code(14);
    assert!(fs::read(rig.path("made.fd")).unwrap() == volume);
    Builder::command(&["image", "check", &rig.text("overlay"), "--format", "qcow2"]).finish().expect_code(0);
}

/// A whole snapshot, what two processes change after it, and the guest goes on as if nothing had been.
#[test]
fn a_guest_goes_on_from_a_chain_of_differences() {
    let rig = Rig::new();
    let mut machine = rig.start(&load("nvme"));
    machine.wait_for("op=write");
    let refused = rig.ctl(&["save", &rig.text("early"), "--diff"]);
    refused.expect_code(1).expect_log("there is no snapshot of this machine that a difference could be to");
    rig.ctl(&["save", &rig.text("whole"), "--track"]).expect_code(0);
    rig.ctl(&["save", &rig.text("first"), "--diff", "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let mut machine = rig.restore("first", &["--track"]);
    machine.wait_for_log("restored from");
    // What is saved while nothing runs differs by nothing that the guest has.
    rig.ctl(&["pause"]).expect_code(0);
    rig.ctl(&["save", &rig.text("second"), "--diff"]).expect_code(0);
    rig.ctl(&["save", &rig.text("third"), "--diff", "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let data = |name: &str| Snapshot::open(&rig.path(name)).unwrap().header.memory.data;
    assert!(data("third") < data("whole"), "{} of {}", data("third"), data("whole"));
    let verify = |name: &str| Builder::command(&["snapshot", "verify", &rig.text(name)]).finish();
    verify("third").expect_code(0);
    let end = rig.restore("third", &[]).finish();
    end.expect_code(0).expect_console("problems: 0\r\n");
    fs::remove_dir_all(rig.path("first")).unwrap();
    verify("second").expect_code(1).expect_log("it is the difference to");
}

/// The machine would end, and nothing could bring it back.
#[test]
fn a_difference_to_what_is_gone_is_refused_before_the_machine_ends() {
    let rig = Rig::new();
    let words = ["hello", "echo", "--memory", "64M", "--control", &rig.text("vm.sock")];
    let mut machine = Builder::command(&words).start();
    machine.wait_for("echo: ready");
    rig.ctl(&["save", &rig.text("monday"), "--track"]).expect_code(0);
    fs::remove_dir_all(rig.path("monday")).unwrap();
    rig.ctl(&["save", &rig.text("tuesday"), "--diff", "--quit"])
        .expect_code(1)
        .expect_log("a difference can't be saved: it is the difference to")
        .expect_log("try: a whole snapshot, by `save DIR --track`");
    machine.send("still here\r");
    machine.wait_for("echo: still here");
    // What is whole does not need it.
    rig.ctl(&["save", &rig.text("tuesday"), "--track"]).expect_code(0);
    rig.ctl(&["save", &rig.text("wednesday"), "--diff", "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    let mut machine = rig.restore("wednesday", &[]);
    machine.send("back\r");
    machine.wait_for("echo: back");
    machine.send("bye\r");
    machine.finish().expect_code(0);
}

/// A host's limit stands for a full disk, which takes root to make.
#[test]
fn a_save_that_fails_leaves_the_guest_running_and_no_folder() {
    let rig = Rig::new();
    let socket = rig.text("vm.sock");
    let command = format!("ulimit -f 1; exec {} hello echo --control {socket}", support::skep().display());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &command]);
    let mut machine = Builder::spawn(shell);
    machine.wait_for("echo: ready");
    rig.ctl(&["save", &rig.text("large")])
        .expect_code(1)
        .expect_log("File too large")
        .expect_log("try: a higher limit of a file's size");
    rig.ctl(&["save", &rig.text("none/such")]).expect_code(1).expect_log("there is no such folder");
    rig.ctl(&["save", &rig.text("nvme")]).expect_code(1).expect_log("is there already");
    machine.send("unharmed\r");
    machine.wait_for("echo: unharmed");
    let left: Vec<_> = fs::read_dir(rig.folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    rig.ctl(&["quit"]).expect_code(0);
    machine.finish().expect_code(14);
}

/// Killed at some moment of a save, a machine leaves a whole snapshot or none.
#[test]
fn a_machine_that_is_killed_while_it_is_saved_leaves_nothing_that_looks_whole() {
    let rig = Rig::new();
    // What a machine holds is 8 MiB and more, which are written piece by piece.
    let words = "device=nvme bs=131072 depth=64 ms=600000 op=write count=128 run op=randwrite count=1000000000 run";
    let part = || {
        let names = fs::read_dir(rig.folder.path()).unwrap().map(|file| file.unwrap().path());
        names.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "part"))
    };
    // How far a save has come: bytes of the host's that a file of it has.
    let there = |name: &str| {
        let file = part().and_then(|part| part.join(name).metadata().ok());
        file.map(|file| file.blocks() * 512)
    };
    let memory = |bytes: u64| there("memory").is_some_and(|there| there >= bytes);
    let moments: [&dyn Fn() -> bool; 8] = [
        &|| part().is_some(),
        &|| there("records.cbor").is_some(),
        &|| memory(0),
        &|| memory(1),
        &|| memory(2 << 20),
        &|| memory(6 << 20),
        &|| there("header.json").is_some(),
        &|| rig.path("cut").exists(),
    ];
    for moment in moments {
        let mut machine = rig.start(words);
        machine.wait_for("op=write");
        let save = Builder::command(&["ctl", &rig.text("vm.sock"), "save", &rig.text("cut")]).start();
        while !moment() && !rig.path("cut").exists() {
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_raw(machine.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        machine.finish();
        save.finish();
        let look = |command: &[&str], path: &Path| Builder::command(&[command, &[path.to_str().unwrap()]].concat());
        let whole = rig.path("cut").exists();
        // One that is renamed is no draft any more.
        assert!(!whole || part().is_none());
        if whole {
            look(&["snapshot", "verify"], &rig.path("cut")).finish().expect_code(0);
            fs::remove_dir_all(rig.path("cut")).unwrap();
        }
        if let Some(part) = part() {
            for command in [&["snapshot", "verify"][..], &["snapshot", "inspect"], &["restore"]] {
                let said = look(command, &part).finish();
                said.expect_code(1).expect_log("it is what a save that did not end has left");
            }
            fs::remove_dir_all(part).unwrap();
        }
        // The socket's name is what else is left.
        fs::remove_file(rig.path("vm.sock")).unwrap();
    }
}

#[test]
fn a_disk_that_has_moved_on_is_refused_and_a_copy_is_taken() {
    let rig = Rig::new();
    let mut machine = rig.start(&load("nvme"));
    machine.wait_for("op=write");
    rig.ctl(&["pause"]).expect_code(0);
    rig.ctl(&["save", &rig.text("snapshot")]).expect_code(0);
    fs::copy(rig.path("nvme"), rig.path("copy")).unwrap();
    rig.ctl(&["resume"]).expect_code(0);
    machine.finish().expect_code(0).expect_console("problems: 0");
    rig.restore("snapshot", &[])
        .finish()
        .expect_code(1)
        .expect_log("disk `disk0`: ")
        .expect_log("has been written since the snapshot was saved")
        .expect_log("try: --disk disk0=FILE");
    let copy = format!("disk0={}", rig.text("copy"));
    rig.restore("snapshot", &["--disk", &copy]).finish().expect_code(0).expect_console("problems: 0");
    rig.restore("snapshot", &["--disk", "disk7=x"]).finish().expect_code(1).expect_log("try: one of disk0, other");
    fs::File::options().write(true).open(rig.path("copy")).unwrap().set_len(SIZE / 2).unwrap();
    rig.restore("snapshot", &["--disk", &copy]).finish().expect_code(1).expect_log("bytes, and had");
    let inspect = |words: &[&str]| Builder::command(&[&["snapshot", "inspect"], words].concat()).finish();
    let text = inspect(&[&rig.text("snapshot")]);
    text.expect_code(0)
        .expect_console("disks (skep-disks, version 1)")
        .expect_console("device/disk0 (nvme, version 1)");
    let json = inspect(&[&rig.text("snapshot"), "--json"]);
    json.expect_code(0).expect_console("\"magic\": \"skep-snapshot\"");
    inspect(&[&rig.text("nvme")]).expect_code(1).expect_log("a snapshot is a folder");
}

/// A backend without some of its powers.
struct Without<'a, A: Saved>(&'a dyn Hypervisor<A>, Powers);

impl<A: Saved> Hypervisor<A> for Without<'_, A> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn address_bits(&self) -> Result<u8, HypervisorError> {
        self.0.address_bits()
    }

    fn builder(&self, request: &VmRequest) -> Result<Box<dyn VmBuilder<A>>, HypervisorError> {
        self.0.builder(&VmRequest { powers: request.powers - self.1, ..request.clone() })
    }
}

fn ends_well<A: Saved>(hypervisor: &dyn Hypervisor<A>, snapshot: &Path, log: &Path) {
    let snapshot = Snapshot::open(snapshot).unwrap();
    let mut config = snapshot.config().unwrap();
    config.control = None;
    config.serial = skep_config::Serial::File(log.to_owned());
    config.finish().unwrap();
    let start = Start::Snapshot {
        snapshot: Box::new(snapshot),
        clock: ClockPolicy::Continue,
        paused: false,
        track: false,
        clone: false,
        made: Vec::new(),
    };
    let taken = Powers::DOORBELLS | Powers::INTERRUPT_EVENTFDS | Powers::RESAMPLE | Powers::POSTED_WRITES;
    let without = Without(hypervisor, taken);
    let outcome = monitor::run(&config, &without, start, Instant::now()).unwrap();
    assert!(matches!(outcome.ending, Ending::PowerOff), "{:?}", outcome.ending);
    let said = fs::read_to_string(log).unwrap();
    assert!(said.contains("problems: 0") && said.contains("op=randwrite"), "{said}");
}

#[test]
fn a_snapshot_taken_with_eventfds_is_restored_without_them() {
    let rig = Rig::new();
    let mut machine = rig.start(&(load("nvme") + &load("virtio-blk")));
    machine.wait_for("op=write");
    rig.ctl(&["save", &rig.text("snapshot"), "--quit"]).expect_code(0);
    machine.finish().expect_code(14);
    ends_well(&skep_kvm::open().unwrap(), &rig.path("snapshot"), &rig.path("log"));
}

/// Header and records of a machine on a real KVM, from a folder of golden ones.
macro_rules! of_kvm {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../src/state/golden/kvm-", $name, "/header.json")).as_slice(),
            include_bytes!(concat!("../../src/state/golden/kvm-", $name, "/records.cbor")).as_slice(),
        )
    };
}

fn could_be_made<A: Saved>(hypervisor: &dyn Hypervisor<A>, snapshot: &Path) -> Result<(), String> {
    let snapshot = Snapshot::open(snapshot).unwrap();
    monitor::could_restore(&snapshot.config().unwrap(), hypervisor, &snapshot).map_err(|error| error.to_string())
}

/// On a host like theirs machines of an earlier version are made, and are what they were; others refuse them by name, as `skep restore` does.
#[test]
fn machines_of_an_earlier_version_are_made_again_or_refused_by_name() {
    let pc = [of_kvm!("x86_64")];
    let arm = [of_kvm!("aarch64-gicv3"), of_kvm!("aarch64-gicv2")];
    for (name, header, records) in if is_x86_64() { &pc[..] } else { &arm } {
        let rig = Rig::new();
        fs::create_dir(rig.path("old")).unwrap();
        fs::write(rig.path("old").join(HEADER), header).unwrap();
        fs::write(rig.path("old").join(RECORDS), records).unwrap();
        // What the guest had in memory is not kept: it does not run.
        fs::File::create(rig.path("old").join("memory")).unwrap().set_len(64 << 20).unwrap();
        let disks = [format!("disk0={}", rig.text("nvme")), format!("other={}", rig.text("virtio"))];
        let words = ["--disk", &disks[0], "--disk", &disks[1], "--paused"];
        if let Err(why) = could_be_made(&skep_kvm::open().unwrap(), &rig.path("old")) {
            assert!(why.contains("this host's CPU is not one for the guest") || why.contains("GICv"), "{name}: {why}");
            let first = why.lines().next().unwrap();
            rig.restore("old", &words).finish().expect_code(1).expect_log(first);
            continue;
        }
        let mut machine = rig.restore("old", &words);
        machine.wait_for_log("restored from");
        rig.ctl(&["save", &rig.text("new"), "--quit"]).expect_code(0);
        machine.finish().expect_code(14);
        let [old, new] = ["old", "new"].map(|name| Snapshot::open(&rig.path(name)).unwrap().records.records);
        let names = |records: &[NamedRecord]| records.iter().map(|named| named.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&old), names(&new), "{name}");
        for (old, new) in old.iter().zip(&new) {
            // Clocks, what the host's counters are seen by, and the files that the disks have.
            let is_here = old.name.starts_with("vcpu/") || ["machine", "disks"].contains(&old.name.as_str());
            assert!(is_here || old == new, "{name}: {} is another one", old.name);
        }
    }
}
