//! The lab: an emulated host with a real `/dev/kvm`, of either architecture, on any Linux machine.
//!
//! QEMU's software processors have the virtualization extensions, so a stock Debian kernel inside has KVM. The lab boots
//! one (see [`Board`]), carries files in on an NVMe disk, runs programs one after the other, and brings their exit
//! codes and their files back. What they print is shown as it comes. Nothing here needs root.

mod board;
mod command;
mod console;
mod disk;
mod plan;
mod qemu;

pub(crate) use board::Board;
pub(crate) use command::{Args, main};
pub(crate) use plan::Program;

use crate::images::Images;
use crate::paths::Scratch;
use anyhow::{Context, Result, bail};
use console::{Console, Event};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The directory in the lab under which things that were carried in are found.
pub(crate) const LAB: &str = "/lab";

/// A host says that it lives every 10 seconds of its own, which are more of this machine's when that is busy.
const SILENCE: Duration = Duration::from_secs(90);

/// The emulated host is lost, which says nothing of the program that it was running.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HostLost(String);

/// A lab to be booted.
pub(crate) struct Lab {
    board: Board,
    icount: bool,
    cpus: u32,
    memory_mib: u32,
    carried: Vec<(PathBuf, String)>,
    bring_back: Option<PathBuf>,
    disk: Option<PathBuf>,
    limit: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub(crate) code: i32,
    /// What it printed, and what the host's kernel printed meanwhile.
    pub(crate) output: Vec<u8>,
    /// The time that it took, by this machine's clock.
    pub(crate) time: Duration,
}

/// What happens in a lab, as it happens.
pub(crate) enum Progress<'a> {
    /// Program number n begins.
    Begin(usize),
    /// It, or the host's kernel, prints.
    Output(&'a [u8]),
    /// Program number n ended.
    End(usize, &'a Outcome),
}

impl Lab {
    /// A lab on `board`, with as many CPUs as it bears and 3 GiB.
    pub(crate) fn new(board: Board) -> Lab {
        Lab {
            board,
            icount: false,
            cpus: board.cpus(),
            memory_mib: 3072,
            carried: Vec::new(),
            bring_back: None,
            disk: None,
            limit: Duration::from_secs(15 * 60),
        }
    }

    /// Makes the lab's clock count instructions, a thousand in a microsecond, on one CPU: times repeat exactly.
    pub(crate) fn icount(mut self, on: bool) -> Lab {
        self.icount = on;
        self
    }

    /// Sets the number of the host's CPUs.
    pub(crate) fn cpus(mut self, cpus: u32) -> Lab {
        self.cpus = cpus;
        self
    }

    /// Sets the size of the host's memory in MiB.
    pub(crate) fn memory_mib(mut self, memory_mib: u32) -> Lab {
        self.memory_mib = memory_mib;
        self
    }

    /// Carries `source`, a file or a directory, in as `/lab/NAME`.
    pub(crate) fn carry(mut self, source: impl Into<PathBuf>, name: impl Into<String>) -> Lab {
        self.carried.push((source.into(), name.into()));
        self
    }

    /// Brings back into `directory` what programs leave in the directory that they know as `LAB_OUT`.
    pub(crate) fn bring_back(mut self, directory: impl Into<PathBuf>) -> Lab {
        self.bring_back = Some(directory.into());
        self
    }

    /// Gives the lab one more disk, an image that it may write to: `/dev/nvme1n1`, or the one after it where files are brought back.
    pub(crate) fn disk(mut self, image: impl Into<PathBuf>) -> Lab {
        self.disk = Some(image.into());
        self
    }

    /// Sets the time, by this machine's clock, after which the lab is given up.
    pub(crate) fn limit(mut self, limit: Duration) -> Lab {
        self.limit = limit;
        self
    }

    /// Boots the lab and runs `programs` one after the other; `watch` is told what happens.
    ///
    /// An emulated host can be lost, by QEMU's faults: it dies, or stands still. A second one then begins with the program that had not ended, and
    /// the terminal's user is told. Where files are brought back or an image is written to, there is no second one.
    ///
    /// # Errors
    ///
    /// If the lab cannot be booted, if its host is lost again, or if it takes longer than the limit. A program that fails is no error.
    pub(crate) fn run(&self, programs: &[Program], watch: &mut dyn FnMut(Progress<'_>)) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let mut again = self.bring_back.is_none() && self.disk.is_none();
        while let Err(error) = self.run_once(programs, &mut outcomes, watch) {
            if !again || !error.is::<HostLost>() {
                return Err(error);
            }
            again = false;
            eprintln!("lab: THE EMULATED HOST IS LOST: {error:#}");
            eprintln!("lab: another one is booted, and goes on with program {}", outcomes.len() + 1);
        }
        Ok(outcomes)
    }

    /// Boots the lab and runs those of `programs` that have no outcome.
    fn run_once(
        &self,
        programs: &[Program],
        outcomes: &mut Vec<Outcome>,
        watch: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let first = outcomes.len();
        let scratch = Scratch::new()?;
        let word = format!("lab-{:08x}", std::process::id());
        let script = plan::script(&word, &programs[first..], self.bring_back.is_some(), !self.icount);
        let mut qemu = self.boot(scratch.path(), &script, false)?;

        let mut console = Console::new(&word);
        let mut running: Option<(Instant, Vec<u8>)> = None;
        let mut ended = false;
        while let Some(bytes) = qemu.read(self.limit, self.silence())? {
            for event in console.feed(&bytes) {
                match event {
                    Event::Alive => {}
                    Event::Start(number) => {
                        watch(Progress::Begin(first + number));
                        running = Some((Instant::now(), Vec::new()));
                    }
                    // The kernel's farewell.
                    Event::Output(_) if ended => {}
                    Event::Output(printed) => {
                        watch(Progress::Output(&printed));
                        if let Some((_, output)) = &mut running {
                            output.extend(printed);
                        }
                    }
                    Event::Exit(number, code) => {
                        let (start, output) = running.take().context("the lab's console is garbled")?;
                        if first + number != outcomes.len() {
                            bail!("the lab's console is garbled: program {number} ended out of turn");
                        }
                        let outcome = Outcome { code, output, time: start.elapsed() };
                        watch(Progress::End(first + number, &outcome));
                        outcomes.push(outcome);
                    }
                    Event::End => ended = true,
                }
            }
        }
        watch(Progress::Output(&console.rest()));
        qemu.finish()?;
        if !ended {
            let (done, all) = (outcomes.len(), programs.len());
            return Err(HostLost(format!("it died (what it said last is above) after {done} of {all} programs")).into());
        }
        self.unpack(&scratch)
    }

    /// How long a host that lives may say nothing.
    fn silence(&self) -> Option<Duration> {
        // A clock that counts instructions knows nothing of this machine's time.
        (!self.icount).then_some(SILENCE)
    }

    /// Boots the lab and gives the terminal's user a prompt in it.
    pub(crate) fn shell(&self) -> Result<()> {
        let scratch = Scratch::new()?;
        self.boot(scratch.path(), &plan::shell(self.bring_back.is_some()), true)?.finish()?;
        self.unpack(&scratch)
    }

    /// Brings back what the lab's host has put on its second disk.
    fn unpack(&self, scratch: &Scratch) -> Result<()> {
        let Some(directory) = &self.bring_back else { return Ok(()) };
        disk::bring_back(&scratch.path().join(qemu::BACK), directory).context("cannot bring the lab's files back")
    }

    fn boot(&self, scratch: &Path, script: &str, terminal: bool) -> Result<qemu::Qemu> {
        let images = Images::get(self.board.arch())?;
        let staging = scratch.join("staging");
        for (source, name) in &self.carried {
            disk::stage(source, &staging, name)?;
        }
        std::fs::create_dir_all(staging.join(".lab"))?;
        std::fs::write(staging.join(".lab/plan"), script)?;
        disk::carry_in(&staging, &scratch.join(qemu::CARRIED))
            .context("cannot make the disk that carries files into the lab")?;
        std::fs::remove_dir_all(&staging)?;
        if self.bring_back.is_some() {
            disk::empty(&scratch.join(qemu::BACK))?;
        }
        let clock = if self.icount { ", its clock counts instructions" } else { "" };
        eprintln!("lab: booting {} (emulated{clock})", self.board.name());
        if let Some(remark) = self.board.remark() {
            eprintln!("lab: note: {remark}");
        }
        qemu::Qemu::start(self, &images, scratch, terminal)
    }
}
