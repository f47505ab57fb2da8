//! kvmclock: the nanoseconds that the guest reads without an exit.

use std::sync::Arc;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;
use skep_hypervisor::{GuestClock, HypervisorError};

/// The kvmclock of one VM.
pub(super) struct KvmClock(pub(super) Arc<VmFd>);

impl GuestClock for KvmClock {
    fn get(&self) -> Result<u64, HypervisorError> {
        let data = self.0.get_clock().map_err(|e| HypervisorError::call("read kvmclock", e))?;
        Ok(data.clock)
    }

    fn set(&self, value: u64) -> Result<(), HypervisorError> {
        let data = kvm_clock_data { clock: value, ..Default::default() };
        self.0.set_clock(&data).map_err(|e| HypervisorError::call("set kvmclock", e))
    }
}
