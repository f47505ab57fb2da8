//! A VM that has been made.

use std::sync::Arc;

use skep_hypervisor::aarch64::VcpuConfig;
use skep_hypervisor::{Aarch64, Doorbells, GuestClock, HypervisorError, PostedWrites, Powers, Vcpu, Vm};
use skep_memory::{DirtySource, Listener};

use super::clock::Clock;
use crate::doorbells::IoEvents;
use crate::posted::Posted;
use crate::slots::Slots;

/// A VM on KVM.
pub(super) struct KvmVm {
    pub(super) powers: Powers,
    pub(super) slots: Arc<Slots>,
    pub(super) posted: Arc<Posted>,
    pub(super) doorbells: IoEvents,
    pub(super) clock: Arc<Clock>,
}

impl Vm<Aarch64> for KvmVm {
    fn memory(&self) -> Arc<dyn Listener> {
        self.slots.clone()
    }

    /// KVM's GIC has been initialised after the last vCPU, and takes no more.
    fn add_vcpu(&self, _config: &VcpuConfig) -> Result<Option<Box<dyn Vcpu<Aarch64>>>, HypervisorError> {
        Ok(None)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        self.powers.contains(Powers::DOORBELLS).then_some(&self.doorbells as &dyn Doorbells)
    }

    fn posted_writes(&self) -> Option<Arc<dyn PostedWrites>> {
        self.powers.contains(Powers::POSTED_WRITES).then(|| self.posted.clone() as Arc<dyn PostedWrites>)
    }

    fn dirty_source(&self) -> Option<Arc<dyn DirtySource>> {
        self.powers.contains(Powers::DIRTY_LOG).then(|| self.slots.clone() as Arc<dyn DirtySource>)
    }

    fn clock(&self) -> &dyn GuestClock {
        &*self.clock
    }
}
