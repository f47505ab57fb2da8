//! What KVM itself takes for what `cargo xtask bench state` measures of skep: a program that does nothing else.
//!
//! `kvm_alone first FILE MIB` maps a file as a guest's RAM, and tells the milliseconds up to where its only vCPU could run; `kvm_alone pause VCPUS ROUNDS` tells, of each
//! round, those in which vCPUs that are halted are called out of KVM by a signal to each. Lines are `kvm_alone: CASE: MILLISECONDS`.
#![allow(unsafe_code)] // Guest memory, and signals to threads of our own.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// A program that fails says why.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A vCPU that does not halt by then never will.
const LIMIT: Duration = Duration::from_secs(60);

/// A page of the guest's, where its code is.
const PAGE: usize = 0x1000;

fn main() -> Result<()> {
    let begin = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["first", file, size] => {
            // SAFETY: the mapping is the guest's alone, and lives as long as the process.
            let ram = unsafe { map(Some(&File::open(file)?), size.parse::<usize>()? << 20)? };
            let kvm = Kvm::new()?;
            let vm = guest_with(&kvm, ram, size.parse::<u64>()? << 20)?;
            let _vcpu = guest::vcpu(&kvm, &vm, 0)?;
            println!("kvm_alone: first: {}", begin.elapsed().as_secs_f64() * 1e3);
            Ok(())
        }
        ["pause", vcpus, rounds] => pause(vcpus.parse()?, rounds.parse()?),
        _ => Err("usage: kvm_alone first FILE MIB | kvm_alone pause VCPUS ROUNDS".into()),
    }
}

/// Maps a file, or nothing, as private memory.
///
/// # Safety
/// Whoever uses the memory keeps to its size.
unsafe fn map(file: Option<&File>, size: usize) -> Result<*mut u8> {
    let (flags, fd) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    // SAFETY: it takes no place that is somebody's.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(std::io::Error::last_os_error().into()) } else { Ok(at.cast()) }
}

/// A VM whose RAM is this memory.
fn guest_with(kvm: &Kvm, memory: *mut u8, size: u64) -> Result<VmFd> {
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        guest_phys_addr: guest::RAM,
        memory_size: size,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    // SAFETY: the memory is never unmapped.
    unsafe { vm.set_user_memory_region(region) }?;
    // After the memory: a grace period of what it sets up would be waited for with each slot.
    guest::interrupt_controllers(&vm)?;
    Ok(vm)
}

/// What the threads of vCPUs and the one that pauses them share.
struct Shared {
    /// vCPUs that are still in KVM.
    inside: AtomicU32,
    /// Each round begins for all at once.
    turn: Barrier,
}

fn pause(vcpus: u32, rounds: u32) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler touches nothing.
    unsafe { libc::signal(libc::SIGRTMIN(), nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    // SAFETY: a page of the guest's, which is never unmapped.
    let ram = unsafe { map(None, PAGE)? };
    // SAFETY: the code is shorter than the page.
    unsafe { std::ptr::copy_nonoverlapping(guest::HALT.as_ptr(), ram, guest::HALT.len()) };
    let kvm = Kvm::new()?;
    let vm = guest_with(&kvm, ram, PAGE as u64)?;
    let shared = Arc::new(Shared { inside: AtomicU32::new(0), turn: Barrier::new(vcpus as usize + 1) });
    for number in 0..vcpus {
        let (mut vcpu, shared, control) = (guest::vcpu(&kvm, &vm, number)?, shared.clone(), thread::current());
        let run = move || (0..rounds).for_each(|_| run(&mut vcpu, &shared, &control));
        thread::Builder::new().name(format!("vcpu {number}")).spawn(run)?;
    }
    for _ in 0..rounds {
        shared.inside.store(vcpus, Ordering::SeqCst);
        shared.turn.wait();
        let halted = halted()?;
        let begin = Instant::now();
        for thread in halted {
            // SAFETY: it signals a thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
        }
        while shared.inside.load(Ordering::SeqCst) > 0 {
            thread::park();
        }
        println!("kvm_alone: pause: {}", begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Runs a vCPU once its turn has come, until a signal ends that.
fn run(vcpu: &mut VcpuFd, shared: &Shared, control: &Thread) {
    shared.turn.wait();
    match vcpu.run() {
        Err(error) if error.errno() == libc::EINTR => {}
        other => {
            eprintln!("kvm_alone: a vCPU does not halt: {other:?}");
            std::process::exit(1);
        }
    }
    if shared.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
        control.unpark();
    }
}

/// The threads of vCPUs, once each sleeps in KVM.
fn halted() -> Result<Vec<libc::c_int>> {
    const KVM_RUN: &str = "0xae80";
    let (mut halted, begin) = (Vec::new(), Instant::now());
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if !std::fs::read_to_string(task.join("comm"))?.starts_with("vcpu") {
            continue;
        }
        // A system call's number and its arguments, of a thread that sleeps in it.
        while std::fs::read_to_string(task.join("syscall"))?.split(' ').nth(2) != Some(KVM_RUN) {
            if begin.elapsed() > LIMIT {
                return Err("the vCPUs do not halt".into());
            }
            thread::yield_now();
        }
        halted.extend(task.file_name().and_then(|name| name.to_str()?.parse::<libc::c_int>().ok()));
    }
    Ok(halted)
}

/// A guest that halts at once, and what a machine takes at least.
#[cfg(target_arch = "x86_64")]
mod guest {
    use super::Result;
    use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap};
    use kvm_ioctls::{Kvm, VcpuFd, VmFd};

    /// Where RAM begins.
    pub(super) const RAM: u64 = 0;
    /// `cli; hlt; jmp` to the `hlt`.
    pub(super) const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

    /// Local APICs, in which a halted vCPU sleeps.
    pub(super) fn interrupt_controllers(vm: &VmFd) -> Result<()> {
        let args = [24, 0, 0, 0];
        Ok(vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args, ..Default::default() })?)
    }

    pub(super) fn vcpu(kvm: &Kvm, vm: &VmFd, number: u32) -> Result<VcpuFd> {
        let vcpu = vm.create_vcpu(number.into())?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let mut special = vcpu.get_sregs()?;
        (special.cs.base, special.cs.selector) = (RAM, 0);
        vcpu.set_sregs(&special)?;
        vcpu.set_regs(&kvm_bindings::kvm_regs { rip: 0, rflags: 2, ..Default::default() })?;
        vcpu.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE })?;
        Ok(vcpu)
    }
}

/// A guest that halts at once, and what a machine takes at least.
#[cfg(target_arch = "aarch64")]
mod guest {
    use super::Result;
    use kvm_ioctls::{Kvm, VcpuFd, VmFd};

    /// Where RAM begins.
    pub(super) const RAM: u64 = 0x4000_0000;
    /// `wfi; b` to the `wfi`.
    pub(super) const HALT: &[u8] = &[0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17];
    /// The program counter (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE, api.rst section 4.68).
    const PC: u64 = 0x6030_0000_0010_0040;

    /// A vCPU sleeps without any.
    pub(super) fn interrupt_controllers(_: &VmFd) -> Result<()> {
        Ok(())
    }

    pub(super) fn vcpu(_: &Kvm, vm: &VmFd, number: u32) -> Result<VcpuFd> {
        let vcpu = vm.create_vcpu(number.into())?;
        let mut kind = kvm_bindings::kvm_vcpu_init::default();
        vm.get_preferred_target(&mut kind)?;
        vcpu.vcpu_init(&kind)?;
        vcpu.set_one_reg(PC, &RAM.to_le_bytes())?;
        Ok(vcpu)
    }
}
