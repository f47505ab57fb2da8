//! What the vCPUs of both architectures have in common: the page shared with the kernel, entering guest code, kicks, failures.
#![allow(unsafe_code)] // The shared page.

use std::io;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run, kvm_run__bindgen_ty_1,
};
use kvm_ioctls::{VcpuFd, VmFd};
use skep_hypervisor::{Exit, ExitCounts, HypervisorError, Kick, MemoryIo, VcpuError};
use skep_state::StateError;

use crate::host::Virtualization;
use crate::kick::{Kicker, Running};
use crate::posted::{Posted, Ring};
use crate::slots::Slots;
use crate::{NAME, ioctl, kick, meaning};

/// How an attempt to run guest code ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// By an exit with this reason (`KVM_EXIT_*`).
    Exit(u32),
    /// By a kick.
    Kicked,
    /// By a signal that is nobody's, or by KVM itself: enter again.
    Again,
}

/// A vCPU of either architecture.
pub(crate) struct Core {
    index: u32,
    pub(crate) fd: VcpuFd,
    page: NonNull<kvm_run>,
    #[cfg(target_arch = "x86_64")]
    page_size: usize,
    kicker: Arc<Kicker>,
    pub(crate) exits: ExitCounts,
    ring: Option<Ring>,
    posted: Arc<Posted>,
    /// Guest memory stays while the vCPU can run.
    _slots: Arc<Slots>,
}

// SAFETY: the page belongs to `fd`, which goes with it; only `immediate_exit` is shared, by atomic access.
unsafe impl Send for Core {}

impl Core {
    /// Makes vCPU number `index` with KVM's id `id`.
    pub(crate) fn new(
        vm: &VmFd,
        slots: &Arc<Slots>,
        posted: &Arc<Posted>,
        index: u32,
        id: u64,
    ) -> Result<Self, HypervisorError> {
        let failed = |source: io::Error| HypervisorError::call(format!("make vCPU {index} (KVM's id {id})"), source);
        kick::install_handler().map_err(failed)?;
        let mut fd = vm.create_vcpu(id).map_err(|e| failed(e.into()))?;
        let page = NonNull::from(fd.get_kvm_run());
        // SAFETY: it is what kvm-ioctls has mapped of the vCPU, and goes with `fd`.
        let ring = unsafe { Ring::of(page, vm.run_size()) };
        let (kicker, slots, posted) = (Arc::default(), slots.clone(), posted.clone());
        Ok(Self {
            index,
            fd,
            page,
            #[cfg(target_arch = "x86_64")]
            page_size: vm.run_size(),
            kicker,
            exits: ExitCounts::default(),
            ring,
            posted,
            _slots: slots,
        })
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn kicker(&self) -> Arc<dyn Kick> {
        self.kicker.clone()
    }

    fn immediate_exit(&self) -> *const AtomicU8 {
        // SAFETY: the offset is the field's, inside the page.
        unsafe { self.page.as_ptr().cast::<u8>().add(offset_of!(kvm_run, immediate_exit)).cast() }
    }

    /// Must be held around a series of [`Self::enter`]s: it makes kicks reach this thread.
    pub(crate) fn running(&self) -> Running {
        // SAFETY: callers hold the guard inside one method of `&mut self`, and the page lives as long as `self`.
        unsafe { self.kicker.running(self.immediate_exit()) }
    }

    /// Completes the access that the last exit began, and runs guest code. What was posted meanwhile has come to `io` when this returns.
    pub(crate) fn enter<I: MemoryIo + ?Sized>(&mut self, io: &mut I) -> Result<Entered, VcpuError> {
        let entered = self.run_guest();
        if let Some(ring) = &self.ring {
            ring.deliver(&self.posted, |address, data| io.memory_write(address, data));
        }
        entered
    }

    fn run_guest(&mut self) -> Result<Entered, VcpuError> {
        let Err(source) = ioctl::run(&self.fd) else { return Ok(Entered::Exit(self.exit_reason())) };
        match source.raw_os_error() {
            Some(libc::EINTR) => {
                // SAFETY: the flag is a byte of the page, shared by atomic access only.
                unsafe { &*self.immediate_exit() }.store(0, Ordering::SeqCst);
                self.exits.kicks += 1;
                Ok(if self.kicker.take() { Entered::Kicked } else { Entered::Again })
            }
            // KVM's way to say that a vCPU has got its INIT.
            Some(libc::EAGAIN) => Ok(Entered::Again),
            errno => Err(self.call_failed(meaning::run_failed(errno), source)),
        }
    }

    fn exit_reason(&self) -> u32 {
        // SAFETY: the page is mapped, and the kernel does not write while no `KVM_RUN` is under way.
        unsafe { (*self.page.as_ptr()).exit_reason }
    }

    /// The page shared with the kernel, for reading and writing single fields by place: no reference to the whole may be made, because
    /// kickers write to `immediate_exit`.
    pub(crate) fn page(&mut self) -> *mut kvm_run {
        self.page.as_ptr()
    }

    /// What the exit tells.
    fn exit(&self) -> *const kvm_run__bindgen_ty_1 {
        // SAFETY: a field of the page.
        unsafe { &raw const (*self.page.as_ptr()).__bindgen_anon_1 }
    }

    /// `length` bytes of the page from `offset` on, if it has them: the data of port accesses.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bytes(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset).ok()?;
        let inside = start.checked_add(length).is_some_and(|end| end <= self.page_size);
        (inside && start >= size_of::<kvm_run>()).then(|| {
            // SAFETY: the range lies in the mapping behind `kvm_run` itself, and the kernel writes to it in `KVM_RUN` only.
            unsafe { std::slice::from_raw_parts_mut(self.page.as_ptr().cast::<u8>().add(start), length) }
        })
    }

    /// `KVM_EXIT_MMIO`.
    pub(crate) fn memory_access<I: MemoryIo + ?Sized>(&mut self, io: &mut I) {
        // SAFETY: the exit's reason says that this variant is the one.
        let mmio = unsafe { (*self.exit()).mmio };
        let mut data = mmio.data;
        let length = (mmio.len as usize).min(data.len());
        if mmio.is_write != 0 {
            self.exits.memory_writes += 1;
            io.memory_write(mmio.phys_addr, &data[..length]);
        } else {
            self.exits.memory_reads += 1;
            io.memory_read(mmio.phys_addr, &mut data[..length]);
            // SAFETY: as above; KVM reads the field at the next entry.
            unsafe { (*self.page.as_ptr()).__bindgen_anon_1.mmio.data = data };
        }
    }

    /// `KVM_EXIT_SYSTEM_EVENT`, where it is one that the machine knows.
    pub(crate) fn system_event(&mut self) -> Option<Exit> {
        self.exits.others += 1;
        // SAFETY: the exit's reason says that this variant is the one.
        match unsafe { (*self.exit()).system_event.type_ } {
            KVM_SYSTEM_EVENT_SHUTDOWN => Some(Exit::PowerOff),
            KVM_SYSTEM_EVENT_RESET => Some(Exit::Reset),
            KVM_SYSTEM_EVENT_CRASH => Some(Exit::GuestPanic),
            _ => None,
        }
    }

    /// Why it can't go on, by the exit's reason: what no run loop handles.
    pub(crate) fn failure(&mut self, reason: u32, rip: u64, registers: String) -> VcpuError {
        let (vcpu, backend, host) = (self.index, NAME, Virtualization::of_host());
        match reason {
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit's reason says that this variant is the one.
                let reason = unsafe { (*self.exit()).fail_entry.hardware_entry_failure_reason };
                VcpuError::EntryFailed { vcpu, reason, meaning: meaning::entry_failed(host, reason), registers }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let suberror = unsafe { (*self.exit()).internal.suberror };
                if suberror == KVM_INTERNAL_ERROR_EMULATION {
                    let (bytes, meaning) = (self.instruction(), meaning::emulation(host));
                    return VcpuError::Emulation { vcpu, backend, rip, bytes, meaning, registers };
                }
                let (what, meaning) = meaning::internal(host, suberror);
                let reason = format!("{what}, KVM_INTERNAL_ERROR {suberror}");
                VcpuError::Internal { vcpu, backend, reason, meaning, registers }
            }
            other => {
                let meaning = "this kernel's KVM reports what skep does not know; it was not asked to".to_owned();
                VcpuError::Internal { vcpu, backend, reason: format!("exit reason {other}"), meaning, registers }
            }
        }
    }

    /// The bytes of the instruction that could not be emulated, as far as KVM tells them.
    fn instruction(&self) -> Vec<u8> {
        // SAFETY: an internal error of suberror 1 holds this variant; its flags say what of it is there.
        let failure = unsafe { (*self.exit()).emulation_failure };
        // Fewer words of data than the flags and the bytes take: an older kernel.
        if failure.ndata < 3 || failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
            return Vec::new();
        }
        // SAFETY: the flag says that the bytes are there.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        instruction.insn_bytes[..length].to_vec()
    }

    /// A failed call on this vCPU.
    pub(crate) fn call_failed(&self, what: impl Into<String>, source: impl Into<io::Error>) -> VcpuError {
        VcpuError::Call { vcpu: self.index, what: what.into(), source: source.into() }
    }

    /// For `map_err`: a failed call by what was being done.
    pub(crate) fn failed<E: Into<io::Error>>(&self, what: &'static str) -> impl FnOnce(E) -> VcpuError + use<E> {
        let vcpu = self.index;
        move |source| VcpuError::Call { vcpu, what: what.to_owned(), source: source.into() }
    }

    /// A state that does not fit, by what of it does not and why.
    pub(crate) fn misfit(&self, what: impl Into<String>, reason: impl Into<String>) -> VcpuError {
        VcpuError::State { vcpu: self.index, source: StateError::Backend { what: what.into(), reason: reason.into() } }
    }
}
