//! Whether the host lets this process use io_uring.
#![allow(unsafe_code)] // The system call has no safe form.

use std::io;

use skep_hypervisor::report::{Finding, Verdict};

#[cfg(test)]
#[path = "io_uring_test.rs"]
mod test;

/// What the kernel answers, with what `/proc/sys/kernel/io_uring_disabled` says where it exists.
pub(super) fn finding(disabled: Option<&str>) -> Finding {
    judge(answer().raw_os_error(), disabled.map(str::trim))
}

fn judge(answer: Option<i32>, disabled: Option<&str>) -> Finding {
    let missing = |text: &str| Finding::new("io_uring", text, Verdict::Missing);
    match (answer, disabled) {
        // It got as far as looking at its arguments.
        (Some(libc::EFAULT | libc::EINVAL), _) => Finding::new("io_uring", "available", Verdict::Ok),
        (Some(libc::EPERM), Some("1" | "2")) => {
            missing("turned off for this user").mend("sudo sysctl kernel.io_uring_disabled=0")
        }
        (Some(libc::EPERM), _) => {
            missing("refused, by the container's system call filter as a rule").mend("a seccomp profile that allows it")
        }
        _ => missing("the kernel has none").mend("Linux 5.10 or later with CONFIG_IO_URING"),
    }
}

/// Asks for a ring without room and without arguments, which no kernel grants.
fn answer() -> io::Error {
    // SAFETY: a null argument makes the call fail before it reads or makes anything.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    io::Error::last_os_error()
}
