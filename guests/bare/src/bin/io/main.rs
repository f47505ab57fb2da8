//! `io`: drives a disk without interrupts, by queues that it polls, and says what that took.
//!
//! Boots as a PVH ELF file on x86_64 and as a Linux `Image` on aarch64. On x86_64 all that takes long runs in user mode, which a host without
//! hardware virtualization runs at full speed. The words of the command line are described where the guest is embedded, in `skep-guests`.

#![no_std]
#![no_main]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod machine;

mod disk;
mod job;
mod memory;
mod nvme;
mod pattern;
mod pci;
mod run;
mod virtio;

use core::panic::PanicInfo;

use bare::arch::cpu;
use bare::{console, problem, say};
use disk::Disk;
use job::{Device, Job, Word};
use machine::Machine;
use memory::Pool;
use pci::Function;

/// Do what the command line says, and end.
fn work(machine: &Machine) -> ! {
    say!("skep io: up");
    let (mut job, mut pool, mut power_off) = (Job::new(), Pool::new(), true);
    let (mut nvme, mut virtio) = (None, None);
    for word in machine.command_line().split_ascii_whitespace() {
        match job.word(word) {
            Word::Set => {}
            Word::Unknown => problem!("`{word}` is no word of this guest"),
            Word::Halt => power_off = false,
            Word::Idle(ms) => idle(machine, ms),
            Word::Run => {
                let done = match job.device {
                    Device::Nvme => with(&mut nvme, || open_nvme(machine, &mut pool, &job), &job, machine),
                    Device::VirtioBlk => with(&mut virtio, || open_virtio(machine, &mut pool, &job), &job, machine),
                };
                if let Err(why) = done {
                    problem!("{}: {why}", job.device.word());
                }
            }
        }
    }
    say!("problems: {}", console::problems());
    say!("end: {}", if power_off { "poweroff" } else { "halt" });
    if power_off {
        machine.power_off();
    }
    machine.halt()
}

/// Runs `job` on the disk, which is opened if it is not open yet.
fn with<D: Disk>(
    disk: &mut Option<D>,
    open: impl FnOnce() -> Result<D, &'static str>,
    job: &Job,
    machine: &Machine,
) -> Result<(), &'static str> {
    if disk.is_none() {
        *disk = Some(open()?);
    }
    match disk {
        Some(disk) => run::run(disk, job, machine),
        None => Ok(()),
    }
}

fn open_nvme(machine: &Machine, pool: &mut Pool, job: &Job) -> Result<nvme::Nvme, &'static str> {
    const CLASS: u32 = 0x01_08_02;
    let function = Function::find(machine, |function| function.class() == CLASS).ok_or("there is none on bus 0")?;
    nvme::Nvme::open(&function, pool, job.shadow)
}

fn open_virtio(machine: &Machine, pool: &mut Pool, job: &Job) -> Result<virtio::Virtio, &'static str> {
    const BLOCK: u32 = 0x1042_1af4;
    let function = Function::find(machine, |function| function.id() == BLOCK).ok_or("there is none on bus 0")?;
    virtio::Virtio::open(&function, pool, job.indirect)
}

/// Leave all devices alone for so long.
fn idle(machine: &Machine, ms: u64) {
    say!("idle: {ms} ms");
    let begin = cpu::counter();
    while cpu::counter() - begin < machine.ticks_per_second() / 1000 * ms {
        cpu::relax();
    }
    say!("idle: over");
}

/// An exception that nothing here allows for.
#[unsafe(no_mangle)]
extern "C" fn guest_fault(number: u64, instruction: u64, address: u64) -> ! {
    problem!("exception {number:#x} at {instruction:#x}, address {address:#x}");
    cpu::park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    problem!("{}", info.message());
    cpu::park()
}
