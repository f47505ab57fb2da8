//! The ioctls of x86_64 that kvm-ioctls lacks.
#![allow(unsafe_code)] // ioctl(2).

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

use crate::ioctl::result;

ioctl_io_nr!(KVM_SET_BOOT_CPU_ID, KVMIO, 0x78);
ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);

/// Which vCPU is the bootstrap processor, by KVM's id; it is 0 where nothing is said.
pub(super) fn set_boot_cpu(vm: &VmFd, id: u32) -> io::Result<()> {
    // SAFETY: the argument is a plain number.
    result(unsafe { ioctl_with_val(vm, KVM_SET_BOOT_CPU_ID(), libc::c_ulong::from(id)) }).map(drop)
}

/// The TSC frequency in kHz that the VM's vCPUs will have; before Linux 5.18 a VM does not know it.
pub(super) fn vm_tsc_khz(vm: &VmFd) -> Option<u32> {
    // SAFETY: the call takes no argument.
    let khz = result(unsafe { ioctl_with_val(vm, KVM_GET_TSC_KHZ(), 0) }).ok()?;
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

fn tsc_offset_at(address: u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr: address, flags: 0 }
}

/// What the vCPU's TSC is ahead of the host's, where it is not scaled (Linux 5.16).
pub(super) fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    let attribute = tsc_offset_at(&raw mut offset as u64);
    // SAFETY: the kernel reads the structure, and writes 8 bytes where it points to.
    result(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) })?;
    Ok(offset)
}

/// Sets what the vCPU's TSC is ahead of the host's.
pub(super) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attribute = tsc_offset_at(&raw const offset as u64);
    // SAFETY: the kernel reads the structure, and 8 bytes where it points to.
    result(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) }).map(drop)
}

/// Reads the XSAVE area. `area` has the size that `KVM_CAP_XSAVE2` tells, and not less than 4096 bytes.
pub(super) fn xsave(vcpu: &VcpuFd, area: &mut [u8]) -> io::Result<()> {
    assert!(area.len() >= size_of::<kvm_xsave>(), "KVM writes so much at the least");
    let request = if area.len() > size_of::<kvm_xsave>() { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: the first call writes 4096 bytes, the second as many as the capability told, which is the area's size; it grows only by a
    // permission that this process never asks for.
    result(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) }).map(drop)
}

/// Sets the XSAVE area, whose size is as above.
pub(super) fn set_xsave(vcpu: &VcpuFd, area: &[u8]) -> io::Result<()> {
    assert!(area.len() >= size_of::<kvm_xsave>(), "KVM reads so much at the least");
    // SAFETY: the kernel reads as many bytes as the capability told, which is the area's size.
    result(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) }).map(drop)
}
