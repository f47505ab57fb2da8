//! The guest's counters: CNTVCT_EL0 and, where this kernel can offset it, CNTPCT_EL0.
#![allow(unsafe_code)] // The host's counter is read.

use std::arch::asm;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::KVM_CAP_COUNTER_OFFSET;
use kvm_ioctls::{VcpuFd, VmFd};
use skep_hypervisor::{GuestClock, HypervisorError};

use super::ioctl;
use super::register::COUNTER;

/// The counter's frequency in Hz, which guest and host share (CNTFRQ_EL0).
pub(super) fn frequency() -> u32 {
    let value: u64;
    // SAFETY: the register can be read at EL0; nothing else changes.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value as u32
}

/// The host's counter now.
fn host_counter() -> u64 {
    let value: u64;
    // SAFETY: the register can be read at EL0; nothing else changes. The barrier keeps the read in its place.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// The counters of one VM.
pub(super) enum Clock {
    /// The VM has one offset for all its counters (Linux 6.4), which is known here.
    Offset {
        /// Whose counters.
        vm: Arc<VmFd>,
        /// What the guest's counters lag behind the host's.
        offset: AtomicU64,
    },
    /// The virtual counter can be read and set by any vCPU's registers, while that vCPU does not run; the physical counter is the host's.
    Register {
        /// The first vCPU.
        vcpu: OwnedFd,
    },
}

impl Clock {
    /// The clock of `vm`, which has not run, at about 0.
    pub(super) fn new(vm: &Arc<VmFd>, first: &VcpuFd) -> Result<Self, HypervisorError> {
        if vm.check_extension_raw(u64::from(KVM_CAP_COUNTER_OFFSET) as libc::c_ulong) > 0 {
            let clock = Self::Offset { vm: vm.clone(), offset: AtomicU64::new(0) };
            clock.set(0)?;
            return Ok(clock);
        }
        // SAFETY: the descriptor is open for as long as `first` is borrowed.
        let first = unsafe { BorrowedFd::borrow_raw(first.as_raw_fd()) };
        let vcpu = first.try_clone_to_owned().map_err(|e| failed("hold on to", e))?;
        Ok(Self::Register { vcpu })
    }
}

fn failed(what: &str, source: io::Error) -> HypervisorError {
    HypervisorError::call(format!("{what} the virtual counter"), source)
}

impl GuestClock for Clock {
    /// Where the kernel has no common offset, this waits until the first vCPU does not run.
    fn get(&self) -> Result<u64, HypervisorError> {
        match self {
            Self::Offset { offset, .. } => Ok(host_counter().wrapping_sub(offset.load(Ordering::SeqCst))),
            Self::Register { vcpu } => ioctl::register(vcpu, COUNTER).map_err(|e| failed("read", e)),
        }
    }

    fn set(&self, value: u64) -> Result<(), HypervisorError> {
        match self {
            Self::Offset { vm, offset } => {
                let lag = host_counter().wrapping_sub(value);
                ioctl::set_counter_offset(vm, lag).map_err(|e| failed("set", e))?;
                offset.store(lag, Ordering::SeqCst);
                Ok(())
            }
            Self::Register { vcpu } => ioctl::set_register(vcpu, COUNTER, value).map_err(|e| failed("set", e)),
        }
    }
}
