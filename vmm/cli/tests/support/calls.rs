//! System calls, counted by ptrace(2).
#![allow(unsafe_code)]
// Requests of ptrace, which has no safe interface.
// Children are waited for by all their threads; the C libraries disagree about the type of ptrace's request.
#![allow(clippy::unwrap_used, clippy::zombie_processes, clippy::useless_conversion)]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;

use libc::{c_int, c_long, c_void, pid_t};

/// How often each system call is made, by its number.
pub type Calls = BTreeMap<c_long, u32>;

/// What `command` and all its threads call between its execution and the first run of a vCPU. It is killed then.
pub fn before_the_guest(command: Command) -> Calls {
    let calls = count(command, true);
    assert!(calls.1, "skep ended before it ran its guest: {:?}", calls.0);
    calls.0
}

/// What `command` and all its threads call from its execution to its end.
pub fn until_the_end(command: Command) -> Calls {
    count(command, false).0
}

/// Counts to the first run of a vCPU, or to the end; says whether the first has come.
fn count(mut command: Command, to_the_guest: bool) -> (Calls, bool) {
    // The search for shared libraries, where there are any, is not skep's.
    command.stdin(Stdio::null()).stdout(Stdio::null()).env_remove("LD_LIBRARY_PATH");
    // SAFETY: one system call, which touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<c_void>(), 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut child = command.spawn().unwrap();
    let leader = child.id().cast_signed();
    assert_eq!(wait(), Some((leader, libc::SIGTRAP << 8 | 0x7f)), "it stops once it is executed");
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, leader, 0, options);
    request(libc::PTRACE_SYSCALL, leader, 0, 0);

    let (mut calls, mut ran) = (Calls::new(), false);
    while let Some((thread, status)) = wait() {
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let mut signal = libc::WSTOPSIG(status);
        if signal == libc::SIGTRAP | 0x80 {
            signal = 0;
            if let Some((number, second_argument)) = entered_call(thread) {
                ran |= number == libc::SYS_ioctl && second_argument == RUN;
                if ran && to_the_guest {
                    break;
                }
                *calls.entry(number).or_default() += 1;
            }
        } else if signal == libc::SIGTRAP || signal == libc::SIGSTOP {
            // A new thread, told by either side.
            signal = 0;
        }
        request(libc::PTRACE_SYSCALL, thread, 0, signal);
    }
    // It may have ended, and been waited for.
    let _ = child.kill();
    // Its threads are ours to wait for as well.
    while wait().is_some() {}
    (calls, ran)
}

/// The ioctl that runs a vCPU (linux/kvm.h).
const RUN: u64 = 0xae80;

/// Waits for any process or thread that this thread traces; nothing when there is none.
fn wait() -> Option<(pid_t, c_int)> {
    let mut status = 0;
    // SAFETY: the status is ours to write to.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) } {
        -1 => {
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ECHILD));
            None
        }
        thread => Some((thread, status)),
    }
}

/// A request of ptrace(2) that takes a number. A thread that was killed meanwhile takes none, and is told by [`wait`].
fn request(request: impl TryInto<i32>, thread: pid_t, address: usize, number: c_int) {
    let request: i32 = request.try_into().ok().expect("requests are small numbers");
    // SAFETY: such a request reads and writes no memory of ours.
    let done = unsafe {
        libc::ptrace(request.try_into().expect("and not negative"), thread, address as *mut c_void, number as c_long)
    };
    assert!(done != -1 || io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH));
}

/// The number and the second argument of the system call that a stopped thread enters; nothing if it leaves one.
fn entered_call(thread: pid_t) -> Option<(c_long, u64)> {
    const GET_SYSCALL_INFO: u32 = 0x420e;
    const ENTRY: u8 = 1;
    // struct ptrace_syscall_info (linux/ptrace.h): op, pad, arch, instruction and stack pointer, number, arguments.
    let mut info = [0_u64; 10];
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let length = unsafe {
        libc::ptrace(
            GET_SYSCALL_INFO.try_into().expect("it is a small number"),
            thread,
            size_of_val(&info) as *mut c_void,
            info.as_mut_ptr(),
        )
    };
    assert!(length > 0, "Linux 5.3 tells of system calls: {}", io::Error::last_os_error());
    let entered = info[0].to_ne_bytes()[0] == ENTRY;
    entered.then(|| (c_long::try_from(info[3]).expect("numbers are small"), info[5]))
}
