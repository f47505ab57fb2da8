//! The ioctls of aarch64 that kvm-ioctls lacks, or has for one owner of a vCPU only.
#![allow(unsafe_code)] // ioctl(2).

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_REG_SIZE_MASK, KVM_REG_SIZE_U64, KVMIO, kvm_arm_counter_offset, kvm_one_reg, kvm_reg_list};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use crate::ioctl::result;

ioctl_iow_nr!(KVM_GET_ONE_REG, KVMIO, 0xab, kvm_one_reg);
ioctl_iow_nr!(KVM_SET_ONE_REG, KVMIO, 0xac, kvm_one_reg);
ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, kvm_reg_list);
ioctl_iow_nr!(KVM_ARM_SET_COUNTER_OFFSET, KVMIO, 0xb5, kvm_arm_counter_offset);

/// KVM's names of all registers that a vCPU has: with every feature on, more than kvm-ioctls' list has room for.
pub(super) fn register_list(vcpu: &VcpuFd) -> io::Result<Vec<u64>> {
    // The structure is a count, and as many names behind it.
    let mut list = vec![0u64];
    loop {
        let room = list.len() as u64 - 1;
        let address = list.as_mut_ptr().cast::<kvm_reg_list>();
        // SAFETY: the kernel writes the count, and the names if there is room for them, as the count said.
        match result(unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_REG_LIST(), address) }) {
            Ok(_) => {
                list.remove(0);
                return Ok(list);
            }
            // The count has become what it should have been.
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) && list[0] > room => {
                let count = list[0];
                list = vec![0; usize::try_from(count).map_err(io::Error::other)? + 1];
                list[0] = count;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Reads a 64-bit register, by any descriptor of its vCPU.
pub(super) fn register(vcpu: &impl AsRawFd, id: u64) -> io::Result<u64> {
    assert_eq!(id & KVM_REG_SIZE_MASK, KVM_REG_SIZE_U64, "{id:#x} has 64 bits");
    let mut value = 0u64;
    let request = kvm_one_reg { id, addr: &raw mut value as u64 };
    // SAFETY: the kernel reads the structure and writes the value, which has the size that the name says.
    result(unsafe { ioctl_with_ref(vcpu, KVM_GET_ONE_REG(), &request) })?;
    Ok(value)
}

/// Writes a 64-bit register, by any descriptor of its vCPU.
pub(super) fn set_register(vcpu: &impl AsRawFd, id: u64, value: u64) -> io::Result<()> {
    assert_eq!(id & KVM_REG_SIZE_MASK, KVM_REG_SIZE_U64, "{id:#x} has 64 bits");
    let request = kvm_one_reg { id, addr: &raw const value as u64 };
    // SAFETY: the kernel reads the structure and the value, which has the size that the name says.
    result(unsafe { ioctl_with_ref(vcpu, KVM_SET_ONE_REG(), &request) }).map(drop)
}

/// Sets what all counters of a VM lag behind the host's.
pub(super) fn set_counter_offset(vm: &VmFd, counter_offset: u64) -> io::Result<()> {
    let request = kvm_arm_counter_offset { counter_offset, reserved: 0 };
    // SAFETY: the kernel reads the structure.
    result(unsafe { ioctl_with_ref(vm, KVM_ARM_SET_COUNTER_OFFSET(), &request) }).map(drop)
}
