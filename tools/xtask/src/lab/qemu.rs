//! QEMU as a child process whose console is read.
#![allow(unsafe_code)] // Reason: a child that must end with its parent is set up between fork and exec.

use super::{HostLost, Lab};
use crate::arch::Arch;
use crate::images::Images;
use crate::process;
use anyhow::{Context, Result, bail};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// The name of the disk that carries files in.
pub(super) const CARRIED: &str = "carried.img";
/// The name of the disk that brings files back.
pub(super) const BACK: &str = "back.img";

/// A running QEMU; it is killed when this is dropped, or when xtask ends in whatever way.
pub(super) struct Qemu {
    child: Child,
    console: Option<Receiver<Vec<u8>>>,
    start: Instant,
    /// When it was last seen to work, and what it had worked until then.
    worked: (Instant, Duration),
}

/// How long a host that runs programs may have next to nothing to do.
const REST: Duration = Duration::from_secs(100);
/// What is next to nothing: a part of that time. A host that merely idles takes half as much, one that tests something four times as much.
const NOTHING: u32 = 5;

impl Qemu {
    /// Starts `lab` with the disks in `scratch`. With `terminal` its console is this terminal, in raw mode.
    pub(super) fn start(lab: &Lab, images: &Images, scratch: &Path, terminal: bool) -> Result<Qemu> {
        let arch = lab.board.arch();
        let mut command = Command::new(process::find(&format!("qemu-system-{arch}"))?);
        command.args(lab.board.qemu());
        if lab.icount {
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]);
        } else {
            command.args(["-accel", "tcg,thread=multi", "-smp"]).arg(lab.cpus.to_string());
        }
        command.args(["-m", &format!("{}M", lab.memory_mib)]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        // With a terminal, Ctrl-A X ends QEMU; Ctrl-C goes to the lab.
        command.args(if terminal { ["-serial", "mon:stdio"] } else { ["-serial", "stdio"] });
        command.arg("-kernel").arg(images.host_kernel()).arg("-initrd").arg(images.host_initramfs());
        command.args(["-append", &kernel_command_line(lab)]);
        let made = [("carried", CARRIED), ("back", BACK)].map(|(serial, file)| (serial, scratch.join(file)));
        for (serial, path) in made.into_iter().chain(lab.disk.clone().map(|image| ("disk", image))) {
            if path.exists() {
                // The disk lives for one boot, or is made by it: it need not survive this machine's.
                let drive = format!(
                    "file={},format=raw,if=none,id={serial},cache=unsafe",
                    path.display().to_string().replace(',', ",,")
                );
                command.args(["-drive", &drive, "-device", &format!("nvme,drive={serial},serial={serial}")]);
            }
        }
        if !terminal {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let parent = rustix::process::getpid();
        // SAFETY: the closure makes two system calls and touches no memory of the parent's.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
                match rustix::process::getppid() == Some(parent) {
                    true => Ok(()),
                    false => Err(std::io::Error::other("the parent is gone")),
                }
            });
        }
        let mut child = command.spawn().context("cannot start QEMU")?;

        let console = child.stdout.take().map(|mut stdout| {
            let (sender, receiver) = sync_channel(64);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                    if sender.send(buffer[..length].to_vec()).is_err() {
                        break;
                    }
                }
            });
            receiver
        });
        Ok(Qemu { child, console, start: Instant::now(), worked: (Instant::now(), Duration::ZERO) })
    }

    /// The next bytes of its console, or nothing when it has ended. Fails once it has run for longer than `limit`; has said nothing for as long as
    /// `silence`; or says that it lives, and does nothing, as an emulated host does whose guests' timers have got lost.
    pub(super) fn read(&mut self, limit: Duration, silence: Option<Duration>) -> Result<Option<Vec<u8>>> {
        let Some(console) = &self.console else { return Ok(None) };
        let left = limit.saturating_sub(self.start.elapsed());
        match console.recv_timeout(silence.map_or(left, |silence| silence.min(left))) {
            Ok(bytes) => {
                if silence.is_some() {
                    self.look_whether_it_works()?;
                }
                Ok(Some(bytes))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => match silence {
                Some(silence) if silence < left => {
                    Err(HostLost(format!("it stands still: it has said nothing for {} s", silence.as_secs())).into())
                }
                _ => bail!("the lab took longer than {} s and was ended", limit.as_secs()),
            },
        }
    }

    fn look_whether_it_works(&mut self) -> Result<()> {
        let (since, before) = self.worked;
        let time = since.elapsed();
        if time < REST {
            return Ok(());
        }
        let spent = work(self.child.id());
        self.worked = (Instant::now(), spent);
        if stands_still(spent.saturating_sub(before), time) {
            return Err(HostLost(format!("it stands still: it has done nothing for {} s", time.as_secs())).into());
        }
        Ok(())
    }

    /// Waits for it to end.
    pub(super) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for QEMU")?;
        if !status.success() {
            return Err(HostLost(format!("QEMU failed ({status}); what it said is above")).into());
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stands_still(spent: Duration, time: Duration) -> bool {
    spent * NOTHING < time
}

/// How long a process's threads have run, and have waited for a processor to run on (proc(5), `schedstat`).
fn work(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let one = |text: String| text.split_whitespace().take(2).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
    let all = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok().map(one));
    Duration::from_nanos(all.sum())
}

fn kernel_command_line(lab: &Lab) -> String {
    let words = [
        // It prints nothing but its death, and that at once and with the reason.
        "loglevel=1 panic=-1 oops=panic",
        // No time is spent on measures against attackers, or on testing ciphers.
        "mitigations=off nowatchdog cryptomgr.notests=1",
        // A library that each process has at another address is translated anew for each.
        "norandmaps",
    ];
    let clock = match lab.board.arch() {
        // On a machine that is busy with other work, a kernel that compares its clocks with each other takes one to be broken, and panics; and
        // the local APIC's timer, whose frequency it measures, then ticks too slowly by far. The HPET tells its own.
        Arch::X86_64 => " no_timer_check tsc=reliable nolapic_timer",
        Arch::Aarch64 => "",
    };
    format!("console={} {}{clock}", lab.board.arch().console(), words.join(" "))
}

#[cfg(test)]
#[path = "qemu_test.rs"]
mod test;
