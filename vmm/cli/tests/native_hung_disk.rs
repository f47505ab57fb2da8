//! Machines whose disk's host does not answer a flush, or a write, with the guest that is built in: on any /dev/kvm of either architecture.
#![allow(unsafe_code)] // A filter of system calls, which is set in a child.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use support::rig::{Rig, load};
use support::{Builder, Machine, is_x86_64, skep};

/// Lets this process's system call `hangs` hang until it is killed: a filter asks a listener what to do, which nobody is. io_uring, which would not ask, is not
/// there.
fn hang(hangs: libc::c_long) -> io::Result<()> {
    let rule = |code: u32, jt, jf, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut rules = [
        // The call's number is what a filter's data begins with.
        rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        rule(equals, 2, 0, number(hangs)),
        rule(equals, 2, 0, number(libc::SYS_io_uring_setup)),
        rule(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        rule(answer, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        rule(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    let program = libc::sock_fprog { len: rules.len() as u16, filter: rules.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: `program` and its rules live until the call has returned, which copies them.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // The program keeps its own listener, so that the calls hang: without any they would fail.
    // SAFETY: it touches no memory.
    match unsafe { libc::fcntl(listener as i32, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A machine at the control socket `vm.sock` with these words, whose system call `hangs` hangs.
fn hanging(rig: &Rig, hangs: libc::c_long, words: &[&str]) -> Machine {
    let mut command = Command::new(skep());
    command.args(["run", "--memory", "64M", "--control", &rig.text("vm.sock")]).args(words);
    // SAFETY: three system calls, and no memory is taken.
    unsafe {
        command.pre_exec(move || hang(hangs));
    }
    Builder::spawn(command)
}

/// A guest that echoes what it is sent, with a disk whose flushes hang.
fn hung(rig: &Rig) -> Machine {
    fs::write(rig.path("echo"), if is_x86_64() { HELLO_X86_64 } else { HELLO_AARCH64 }).unwrap();
    let disk = format!("{},format=raw", rig.text("nvme"));
    let words = ["--kernel", &rig.text("echo"), "--cmdline", "echo", "--disk", &disk];
    let mut machine = hanging(rig, libc::SYS_fdatasync, &words);
    machine.wait_for("echo: ready");
    machine
}

/// Waits until the machine waits for its disk.
fn wait_until_it_hangs(machine: &Machine) {
    let tasks = format!("/proc/{}/task", machine.pid());
    let is_flush = |task: io::Result<fs::DirEntry>| {
        let name = task.and_then(|task| fs::read_to_string(task.path().join("comm")));
        name.is_ok_and(|name| name == "flush\n")
    };
    while !fs::read_dir(&tasks).unwrap().any(is_flush) {
        std::thread::yield_now();
    }
}

fn echoes(machine: &mut Machine, text: &str) {
    machine.send(&format!("{text}\r"));
    machine.wait_for(&format!("echo: {text}"));
}

/// What is in the folder of a save that came to nothing.
fn left(rig: &Rig) -> Vec<std::ffi::OsString> {
    let names = fs::read_dir(rig.folder.path()).unwrap().map(|file| file.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains("away")).collect()
}

#[test]
fn a_save_whose_disk_hangs_can_be_cancelled_and_a_machine_ended() {
    let rig = Rig::new();
    let ctl = |words: &[&str]| rig.ctl_at("vm.sock", words);
    let save = || Builder::command(&["ctl", &rig.text("vm.sock"), "save", &rig.text("away"), "--quit"]).start();
    let wait_until_it_saves = || while !ctl(&["status"]).console.starts_with("saving") {};
    let mut machine = hung(&rig);
    ctl(&["save-cancel"]).expect_code(1).expect_log("the machine is not being saved");
    let saving = save();
    wait_until_it_hangs(&machine);
    wait_until_it_saves();
    ctl(&["resume"]).expect_code(1).expect_log("or `save-cancel` gives a save up");
    ctl(&["save-cancel"]).expect_code(0);
    saving.finish().expect_code(1).expect_log("it was cancelled");
    assert_eq!(left(&rig), Vec::<std::ffi::OsString>::new());
    ctl(&["status"]).expect_code(0).expect_console("running\n");
    echoes(&mut machine, "still here");
    // One that somebody has paused stays so.
    ctl(&["pause"]).expect_code(0);
    let saving = save();
    wait_until_it_saves();
    ctl(&["save-cancel"]).expect_code(0);
    saving.finish().expect_code(1).expect_log("it was cancelled");
    ctl(&["status"]).expect_code(0).expect_console("paused\n");
    ctl(&["resume"]).expect_code(0);
    echoes(&mut machine, "and here");

    let saving = save();
    wait_until_it_saves();
    let pid = Pid::from_raw(machine.pid()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    saving.finish().expect_code(1).expect_log("the machine ends before it is saved");
    assert_eq!(left(&rig), Vec::<std::ffi::OsString>::new());
    // The image is not closed before its host answers, which a second one does not wait for, however far the machine's end has come.
    kill_process(pid, Signal::TERM).unwrap();
    machine.finish().expect_code(143).expect_log("the machine ends ");
}

#[test]
fn a_migration_whose_disk_hangs_can_be_cancelled() {
    let rig = Rig::new();
    let ctl = |words: &[&str]| rig.ctl_at("vm.sock", words);
    let mut machine = hung(&rig);
    let at = format!("unix:{}", rig.text("target"));
    let mut there = Builder::command(&["receive", &at]).start();
    there.wait_for_log("waiting for a machine at unix:");
    let going = Builder::command(&["ctl", &rig.text("vm.sock"), "migrate", &at]).start();
    wait_until_it_hangs(&machine);
    ctl(&["migrate-cancel"]).expect_code(0);
    going.finish().expect_code(1).expect_log("it was cancelled");
    there.finish().expect_code(1);
    ctl(&["status"]).expect_code(0).expect_console("running\n");
    echoes(&mut machine, "still here");
    let pid = Pid::from_raw(machine.pid()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    machine.finish();
}

/// Waits until one of its threads is in this system call.
fn wait_until_it_calls(machine: &Machine, number: libc::c_long) {
    let tasks = format!("/proc/{}/task", machine.pid());
    let is_in_it = |task: io::Result<fs::DirEntry>| {
        let call = task.and_then(|task| fs::read_to_string(task.path().join("syscall")));
        call.is_ok_and(|call| call.split(' ').next() == Some(&number.to_string()))
    };
    while !fs::read_dir(&tasks).unwrap().any(is_in_it) {
        std::thread::yield_now();
    }
}

/// What a guest has in flight is waited for before its machine stands still, and that wait can be given up.
fn gives_up_what_waits_for_a_write(device: &str) {
    let rig = Rig::new();
    let ctl = |words: &[&str]| rig.ctl_at("vm.sock", words);
    let begin = |words: &[&str]| Builder::command(&[&["ctl", &rig.text("vm.sock")], words].concat()).start();
    let (disk, cmdline) = (format!("{},format=raw,device={device}", rig.text("nvme")), load(device));
    let words = ["--kernel", &rig.text("io"), "--disk", &disk, "--cmdline", &cmdline];
    let machine = hanging(&rig, libc::SYS_pwritev2, &words);
    wait_until_it_calls(&machine, libc::SYS_pwritev2);
    // To be counted it leaves guest code, if it is there.
    let exits = || {
        let told = ctl(&["stats", "--json"]);
        told.expect_code(0).console.split_once("\"exits\"").expect("exits").1.to_owned()
    };
    let runs = || {
        ctl(&["status"]).expect_code(0).expect_console("running\n");
        let before = exits();
        while exits() == before {}
    };
    runs();

    // Twice: what was given up is not taken for what comes after it.
    for _ in 0..2 {
        let pausing = begin(&["pause"]);
        while !ctl(&["status"]).console.starts_with("pausing: its devices wait") {}
        ctl(&["save", &rig.text("away")]).expect_code(1).expect_log("`resume` gives the pause up");
        ctl(&["resume"]).expect_code(0);
        pausing.finish().expect_code(1).expect_log("it was cancelled");
        runs();
    }

    let saving = begin(&["save", &rig.text("away")]);
    while !ctl(&["status"]).console.starts_with("saving") {}
    ctl(&["resume"]).expect_code(1).expect_log("`save-cancel` gives the save up");
    ctl(&["save-cancel"]).expect_code(0);
    saving.finish().expect_code(1).expect_log("it was cancelled");
    assert_eq!(left(&rig), Vec::<std::ffi::OsString>::new());
    runs();

    let at = format!("unix:{}", rig.text("target"));
    let mut there = Builder::command(&["receive", &at]).start();
    there.wait_for_log("waiting for a machine at unix:");
    let going = begin(&["migrate", &at]);
    let refused = loop {
        let list = ctl(&["device", "list"]);
        if list.code != Some(0) {
            break list;
        }
    };
    refused.expect_code(1).expect_log("`migrate-cancel` gives the migration up");
    assert!(ctl(&["status"]).console.starts_with("migrating"));
    ctl(&["migrate-cancel"]).expect_code(0);
    going.finish().expect_code(1).expect_log("it was cancelled");
    there.finish().expect_code(1);
    runs();
    // Nor does its end wait for it.
    let pausing = begin(&["pause"]);
    while !ctl(&["status"]).console.starts_with("pausing") {}
    ctl(&["quit"]).expect_code(0);
    pausing.finish().expect_code(1);
    machine.finish().expect_log("the machine ends with requests of its devices in flight");
}

#[test]
fn what_waits_for_a_write_of_nvme_that_hangs_can_be_given_up() {
    gives_up_what_waits_for_a_write("nvme");
}

#[test]
fn what_waits_for_a_write_of_virtio_blk_that_hangs_can_be_given_up() {
    gives_up_what_waits_for_a_write("virtio-blk");
}
