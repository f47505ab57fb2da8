//! Doorbells by `KVM_IOEVENTFD`.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use skep_hypervisor::{Doorbell, DoorbellSpace, Doorbells, HypervisorError};
use vmm_sys_util::eventfd::EventFd;

use crate::ioctl;

/// The doorbells of one VM.
pub(crate) struct IoEvents {
    vm: Arc<VmFd>,
}

impl IoEvents {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    fn change(&self, doorbell: Doorbell, fd: &EventFd, deassign: bool) -> io::Result<()> {
        let mut flags = 0;
        let mut set = |bit, on: bool| flags |= u32::from(on) << bit;
        set(kvm_ioeventfd_flag_nr_pio, doorbell.space == DoorbellSpace::Port);
        set(kvm_ioeventfd_flag_nr_datamatch, doorbell.value.is_some());
        set(kvm_ioeventfd_flag_nr_deassign, deassign);
        if doorbell.value.is_some() && doorbell.width.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a value is matched at a known width only"));
        }
        let request = kvm_ioeventfd {
            datamatch: doorbell.value.unwrap_or(0),
            addr: doorbell.address,
            // 0 is any width.
            len: doorbell.width.map_or(0, u32::from),
            fd: fd.as_raw_fd(),
            flags,
            ..Default::default()
        };
        ioctl::ioeventfd(&self.vm, &request)
    }
}

fn failed(what: &str, doorbell: Doorbell, source: io::Error) -> HypervisorError {
    let Doorbell { space, address, .. } = doorbell;
    let why = match source.raw_os_error() {
        Some(libc::EEXIST) => " (there is one already)",
        Some(libc::ENOSPC) => " (KVM takes no more of them: use fewer queues)",
        Some(libc::ENOENT) => " (there is none)",
        _ => "",
    };
    HypervisorError::call(format!("{what} the doorbell at {space:?} {address:#x}{why}"), source)
}

impl Doorbells for IoEvents {
    fn attach(&self, doorbell: Doorbell, fd: &EventFd) -> Result<(), HypervisorError> {
        self.change(doorbell, fd, false).map_err(|e| failed("attach", doorbell, e))
    }

    fn detach(&self, doorbell: Doorbell, fd: &EventFd) -> Result<(), HypervisorError> {
        self.change(doorbell, fd, true).map_err(|e| failed("detach", doorbell, e))
    }
}
