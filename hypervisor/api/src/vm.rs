//! A hypervisor, its builder, and a virtual machine.

use std::ops::Range;
use std::sync::Arc;

use skep_memory::{DirtySource, Listener};
use vmm_sys_util::eventfd::EventFd;

use crate::{Arch, HypervisorError, Vcpu};

bitflags::bitflags! {
    /// Optional powers of a backend. A machine works without each of them; a test turns them off to show that.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Powers: u32 {
        /// A guest's write that signals an eventfd without a callback ([`Vm::doorbells`]).
        const DOORBELLS = 1;
        /// Interrupts raised by an eventfd.
        const INTERRUPT_EVENTFDS = 1 << 1;
        /// An eventfd or a callback at the end of a level interrupt.
        const RESAMPLE = 1 << 2;
        /// A log of the pages that vCPUs write ([`Vm::dirty_source`]).
        const DIRTY_LOG = 1 << 3;
        /// A guest's writes that make no exit of their own ([`Vm::posted_writes`]).
        const POSTED_WRITES = 1 << 4;
    }
}

/// What a VM is asked to be, before anything is fixed.
#[derive(Debug, Clone)]
pub struct VmRequest {
    /// The most vCPUs that may ever exist.
    pub max_vcpus: u32,
    /// The highest guest physical address that will be used.
    pub highest_gpa: u64,
    /// Which optional powers may be used.
    pub powers: Powers,
}

/// What a backend can do for a [`VmRequest`].
#[derive(Debug, Clone)]
pub struct Capabilities<A: Arch> {
    /// Which optional powers there are: the requested ones at the most.
    pub powers: Powers,
    /// The most vCPUs of one VM. A limit of one interrupt controller is in [`Self::arch`].
    pub max_vcpus: u32,
    /// The guest's physical address bits.
    pub address_bits: u8,
    /// How many memory regions can be mapped at once.
    pub memory_slots: u32,
    /// What only this architecture has.
    pub arch: A::Capabilities,
}

/// A hypervisor backend.
pub trait Hypervisor<A: Arch>: Send + Sync {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// The most guest physical address bits of a VM on this host.
    ///
    /// # Errors
    /// Where the backend can't tell.
    fn address_bits(&self) -> Result<u8, HypervisorError>;

    /// Begins a VM.
    ///
    /// # Errors
    /// Where the backend is not there, or the request is beyond its limits.
    fn builder(&self, request: &VmRequest) -> Result<Box<dyn VmBuilder<A>>, HypervisorError>;
}

/// A VM that is being made. It hides the backend's order of things.
pub trait VmBuilder<A: Arch> {
    /// What the backend can do for this request.
    fn capabilities(&self) -> &Capabilities<A>;

    /// Makes the VM with these vCPUs. All but the first wait to be started by the guest.
    ///
    /// # Errors
    /// Where the backend refuses, or lacks what the configuration asks for.
    fn build(self: Box<Self>, config: &A::VmConfig, vcpus: &[A::VcpuConfig]) -> Result<Parts<A>, HypervisorError>;
}

/// A VM that has been made.
pub struct Parts<A: Arch> {
    /// What all share.
    pub vm: Arc<dyn Vm<A>>,
    /// The vCPUs, in the order of their configurations.
    pub vcpus: Vec<Box<dyn Vcpu<A>>>,
    /// The interrupt controllers that are the backend's own.
    pub interrupts: A::Interrupts,
}

/// A virtual machine.
pub trait Vm<A: Arch>: Send + Sync {
    /// What follows the memory map and maps it into the guest.
    fn memory(&self) -> Arc<dyn Listener>;

    /// Makes a further vCPU, where the backend takes one after [`VmBuilder::build`].
    ///
    /// # Errors
    /// Where the backend refuses.
    fn add_vcpu(&self, config: &A::VcpuConfig) -> Result<Option<Box<dyn Vcpu<A>>>, HypervisorError>;

    /// Eventfd doorbells.
    fn doorbells(&self) -> Option<&dyn Doorbells>;

    /// Writes that the guest does not wait for.
    fn posted_writes(&self) -> Option<Arc<dyn PostedWrites>>;

    /// The log of pages that vCPUs write.
    fn dirty_source(&self) -> Option<Arc<dyn DirtySource>>;

    /// The clock that the guest reads without an exit.
    fn clock(&self) -> &dyn GuestClock;

    /// The vCPUs, none of which runs, are about to be saved. Where a backend tells the counters of all of them for one moment, it is this one from now on: those
    /// of a machine that stands have gone on since it was last saved, as its clock has.
    fn begin_save(&self) {}
}

/// Where a doorbell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DoorbellSpace {
    /// Guest physical addresses.
    Memory,
    /// x86 ports.
    Port,
}

/// A guest's write that signals an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Doorbell {
    /// Which address space.
    pub space: DoorbellSpace,
    /// The address.
    pub address: u64,
    /// The write's width in bytes (1, 2, 4, 8), or `None` for any.
    pub width: Option<u8>,
    /// Only a write of this value, where the width is given.
    pub value: Option<u64>,
}

/// Eventfd doorbells: an attached doorbell's write makes no callback.
pub trait Doorbells: Send + Sync {
    /// Attaches `fd`.
    ///
    /// # Errors
    /// Where the backend refuses (it is taken, or there is no room).
    fn attach(&self, doorbell: Doorbell, fd: &EventFd) -> Result<(), HypervisorError>;

    /// Detaches what was attached.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn detach(&self, doorbell: Doorbell, fd: &EventFd) -> Result<(), HypervisorError>;
}

/// Writes to memory that no region backs, for which their vCPU does not leave guest code: the bus has them later, in the order in which they were made.
///
/// Nobody who asks the bus sees that they were late: they come before the next callback of any vCPU, and before a vCPU's [`run`](crate::Vcpu::run) returns. A
/// device whose writes have effects that are seen without asking it, an interrupt or a doorbell, must not have them posted.
pub trait PostedWrites: Send + Sync {
    /// Lets writes that lie inside these guest physical addresses be posted. Some may still call back at once, where there is no room.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn attach(&self, range: Range<u64>) -> Result<(), HypervisorError>;

    /// Has writes to what was attached call back at once again. What was posted by then comes as it would have.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn detach(&self, range: Range<u64>) -> Result<(), HypervisorError>;
}

/// The clock that the guest reads without an exit: kvmclock's nanoseconds on x86_64, the virtual counter's ticks (CNTVCT_EL0) on aarch64.
pub trait GuestClock: Send + Sync {
    /// Its value now.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn get(&self) -> Result<u64, HypervisorError>;

    /// Sets it, with all vCPUs stopped: restored machines go on where the saved ones stopped.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn set(&self, value: u64) -> Result<(), HypervisorError>;
}
