//! A device inside KVM, by its attributes (Documentation/virt/kvm/devices).
#![allow(unsafe_code)] // KVM reads and writes attributes by their address.

use std::io;

use kvm_bindings::{KVM_CREATE_DEVICE_TEST, KVM_DEV_ARM_VGIC_GRP_ADDR, KVMIO, kvm_create_device, kvm_device_attr};
use kvm_ioctls::{DeviceFd, VmFd};
use skep_hypervisor::HypervisorError;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_CREATE_DEVICE, KVMIO, 0xe0, kvm_create_device);

/// Whether KVM on this host can make a device of `kind` for this VM.
pub(super) fn is_offered(vm: &VmFd, kind: u32) -> bool {
    let mut device = kvm_create_device { type_: kind, fd: 0, flags: KVM_CREATE_DEVICE_TEST };
    // SAFETY: KVM reads the structure; with the test flag it makes nothing.
    unsafe { ioctl_with_mut_ref(vm, KVM_CREATE_DEVICE(), &mut device) == 0 }
}

/// A device inside KVM.
pub(super) struct Device {
    fd: DeviceFd,
    name: &'static str,
}

/// An attribute of a device: its group and its number there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute {
    pub(super) group: u32,
    pub(super) number: u64,
}

/// What KVM keeps behind an attribute: a plain number of 32 or 64 bits, as its group says.
pub(super) trait Number: Copy + Default {}
impl Number for u32 {}
impl Number for u64 {}

impl Device {
    /// Makes a device of `kind` in `vm`, which messages call `name`.
    pub(super) fn new(vm: &VmFd, kind: u32, name: &'static str) -> Result<Self, HypervisorError> {
        let mut device = kvm_create_device { type_: kind, fd: 0, flags: 0 };
        let fd = vm.create_device(&mut device).map_err(|e| HypervisorError::call(format!("make the {name}"), e))?;
        Ok(Self { fd, name })
    }

    /// Reads what is behind `attribute`.
    pub(super) fn get<T: Number>(&self, attribute: Attribute) -> Result<T, HypervisorError> {
        let mut value = T::default();
        let mut raw = self.raw(attribute, &raw mut value as u64);
        // SAFETY: the address is that of `value`, whose size the attribute's group prescribes.
        unsafe { self.fd.get_device_attr(&mut raw) }.map_err(|e| self.failed("read", attribute, e))?;
        Ok(value)
    }

    /// Writes what is behind `attribute`.
    pub(super) fn set<T: Number>(&self, attribute: Attribute, value: T) -> Result<(), HypervisorError> {
        let raw = self.raw(attribute, &raw const value as u64);
        self.fd.set_device_attr(&raw).map_err(|e| self.failed("write", attribute, e))
    }

    /// Puts its `frame` at `address`, by the value that KVM wants for this `kind` of frame.
    pub(super) fn place(&self, frame: &str, address: u64, kind: u32, value: u64) -> Result<(), HypervisorError> {
        let raw =
            self.raw(Attribute { group: KVM_DEV_ARM_VGIC_GRP_ADDR, number: kind.into() }, &raw const value as u64);
        let name = self.name;
        let placed = self.fd.set_device_attr(&raw);
        placed.map_err(|e| HypervisorError::call(format!("put the {name}'s {frame} at {address:#x}"), e))
    }

    /// Does what `attribute`, which has no value, stands for.
    pub(super) fn command(&self, attribute: Attribute, what: &'static str) -> Result<(), HypervisorError> {
        let raw = self.raw(attribute, 0);
        self.fd.set_device_attr(&raw).map_err(|e| HypervisorError::call(format!("{}: {what}", self.name), e))
    }

    fn raw(&self, attribute: Attribute, addr: u64) -> kvm_device_attr {
        kvm_device_attr { group: attribute.group, attr: attribute.number, addr, flags: 0 }
    }

    fn failed(&self, act: &str, attribute: Attribute, error: impl Into<io::Error>) -> HypervisorError {
        let Attribute { group, number } = attribute;
        HypervisorError::call(format!("{}: {act} attribute {number:#x} of group {group}", self.name), error)
    }
}
