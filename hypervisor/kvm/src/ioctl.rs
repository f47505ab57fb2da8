//! The ioctls that kvm-ioctls lacks, or whose answer it hides (the unit of a string port access).
#![allow(unsafe_code)] // ioctl(2).

use std::io;

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_ioeventfd};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// An ioctl's answer as a result.
pub(crate) fn result(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Runs guest code. The answer is in the vCPU's page.
pub(crate) fn run(vcpu: &VcpuFd) -> io::Result<()> {
    // SAFETY: the call takes no argument; what it writes to, the vCPU's page and guest memory, is mapped for it.
    result(unsafe { ioctl_with_val(vcpu, KVM_RUN(), 0) }).map(drop)
}

/// Attaches or detaches a doorbell.
pub(crate) fn ioeventfd(vm: &VmFd, request: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: the kernel reads the structure, whose type is the call's.
    result(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), request) }).map(drop)
}

/// Forgets pages of a slot's dirty log, and protects them again: those whose bit is set in `bits`, from `first_page` on. Both ends are
/// multiples of 64 pages, but for the end of the slot.
pub(crate) fn clear_dirty_log(vm: &VmFd, slot: u32, first_page: u64, pages: u32, bits: &[u64]) -> io::Result<()> {
    assert!(bits.len() * 64 >= pages as usize, "each page has its bit");
    let bitmap = kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bits.as_ptr().cast_mut().cast() };
    let request = kvm_clear_dirty_log { slot, num_pages: pages, first_page, __bindgen_anon_1: bitmap };
    // SAFETY: the kernel reads the structure, whose type is the call's, and the bitmap, which has a bit for each page.
    result(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) }).map(drop)
}
