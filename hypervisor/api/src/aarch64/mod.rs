//! aarch64: what a backend offers and what a vCPU is.
//!
//! Follows the Arm Architecture Reference Manual (DDI 0487), the GICv2 and GICv3 architecture specifications (IHI 0048, IHI 0069), and PSCI (DEN 0022).
//! GIC, virtual timer and PSCI are the backend's; GICv2's MSI frame is a device of skep's own.

mod gic;
pub(crate) mod state;

use std::sync::Arc;

use skep_irq::{LineTarget, MsiTarget};

pub use gic::{GicCpuState, GicState, ItsState, Redistributor};
pub use state::{PowerState, SimdRegisters, SystemRegister, VcpuIdentity, VcpuState, registers};

use crate::{Arch, ArchKind, HypervisorError, MemoryIo};

/// The 64-bit Arm architecture.
#[derive(Debug, Clone, Copy)]
pub struct Aarch64;

impl Arch for Aarch64 {
    const KIND: ArchKind = ArchKind::Aarch64;
    type Capabilities = Capabilities;
    type VmConfig = VmConfig;
    type VcpuConfig = VcpuConfig;
    type BootState = BootState;
    type VcpuState = VcpuState;
    type VcpuIdentity = VcpuIdentity;
    type Io = dyn Io;
    type Interrupts = Interrupts;
}

/// Which GIC architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GicVersion {
    /// GICv2: at most 8 CPUs, MSIs by a v2m frame.
    V2,
    /// GICv3: MSIs by an ITS.
    V3,
}

/// A GIC that the backend can emulate on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GicSupport {
    /// Which.
    pub version: GicVersion,
    /// Its limit of CPUs on this host.
    pub max_vcpus: u32,
    /// It has an ITS.
    pub its: bool,
}

/// What a backend can do for aarch64 guests.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The GICs, the best first.
    pub gics: Vec<GicSupport>,
    /// The Scalable Vector Extension can be given to a guest.
    pub sve: bool,
    /// Pointer authentication can be given to a guest.
    pub pointer_authentication: bool,
    /// A performance monitor can be given to a guest.
    pub pmu: bool,
    /// The counter's frequency in Hz (CNTFRQ_EL0).
    pub counter_hz: u32,
}

impl Capabilities {
    /// The first of these features, by its name, that can't be given to a guest.
    #[must_use]
    pub fn lacks(&self, features: Features) -> Option<&'static str> {
        let named = [
            (features.sve && !self.sve, "SVE"),
            (features.pointer_authentication && !self.pointer_authentication, "pointer authentication"),
            (features.pmu && !self.pmu, "a performance monitor (PMUv3)"),
        ];
        named.into_iter().find_map(|(lacking, name)| lacking.then_some(name))
    }
}

/// Redistributors that lie one after the other, 128 KiB each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedistributorRegion {
    /// The first one's address.
    pub base: u64,
    /// How many.
    pub count: u32,
}

/// The GIC that a VM is made with, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GicConfig {
    /// GICv2.
    V2 {
        /// The distributor's address.
        distributor: u64,
        /// The CPU interface's address.
        cpu_interface: u64,
    },
    /// GICv3.
    V3 {
        /// The distributor's address.
        distributor: u64,
        /// The redistributors.
        redistributors: Vec<RedistributorRegion>,
        /// The ITS's address, where there is one.
        its: Option<u64>,
    },
}

impl GicConfig {
    /// Which GIC it is.
    #[must_use]
    pub fn version(&self) -> GicVersion {
        match self {
            Self::V2 { .. } => GicVersion::V2,
            Self::V3 { .. } => GicVersion::V3,
        }
    }
}

/// What an aarch64 VM is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The GIC.
    pub gic: GicConfig,
    /// How many shared peripheral interrupts (SPIs): a multiple of 32, at most 960. INTIDs 32 to 31 + `spis`.
    pub spis: u32,
}

/// Features of a vCPU that are there only if asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The Scalable Vector Extension.
    pub sve: bool,
    /// Pointer authentication, both kinds.
    pub pointer_authentication: bool,
    /// A performance monitor (PMUv3).
    pub pmu: bool,
}

/// What an aarch64 vCPU is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuConfig {
    /// Its affinity as in MPIDR_EL1 (Aff3 in bits 39:32, Aff2 to Aff0 in 23:0).
    pub mpidr: u64,
    /// Its optional features.
    pub features: Features,
}

/// What a boot protocol sets: everything else is as at power-on, in EL1h with interrupts masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootState {
    /// Where it begins.
    pub pc: u64,
    /// X0 to X3.
    pub x: [u64; 4],
}

/// A firmware call (SMCCC, DEN 0028).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareCall {
    /// X0 to X7 on the way in; X0 to X3 are the results.
    pub x: [u64; 8],
}

/// SMCCC: the function does not exist.
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// Why a system register access is refused: the guest takes an undefined instruction exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undefined;

/// What an aarch64 vCPU calls back into.
pub trait Io: MemoryIo {
    /// MRS of a register that the backend does not implement.
    ///
    /// # Errors
    /// [`Undefined`] makes the guest's exception.
    fn register_read(&mut self, _register: SystemRegister) -> Result<u64, Undefined> {
        Err(Undefined)
    }

    /// MSR of a register that the backend does not implement.
    ///
    /// # Errors
    /// [`Undefined`] makes the guest's exception.
    fn register_write(&mut self, _register: SystemRegister, _value: u64) -> Result<(), Undefined> {
        Err(Undefined)
    }

    /// HVC or SMC that the backend does not answer itself.
    fn firmware_call(&mut self, call: &mut FirmwareCall) {
        call.x[0] = NOT_SUPPORTED;
    }
}

/// A GIC that is the backend's own.
pub trait Gic: Send + Sync {
    /// Its whole state, with all vCPUs stopped. Tables that live in guest RAM (an ITS's) are written there first, so RAM is saved after it.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn save(&self) -> Result<GicState, HypervisorError>;

    /// Takes on a state that has been checked, with RAM and vCPUs restored.
    ///
    /// # Errors
    /// Where the backend refuses, or the state is of another GIC or of a form that this backend does not read.
    fn restore(&self, state: &GicState) -> Result<(), HypervisorError>;

    /// The power-on state, in place.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn reset(&self) -> Result<(), HypervisorError>;
}

/// The interrupt controllers that are the backend's own.
pub struct Interrupts {
    /// The GIC's state.
    pub gic: Arc<dyn Gic>,
    /// Its SPIs, by INTID.
    pub lines: Arc<dyn LineTarget>,
    /// The ITS, where there is one. A message names the requester's device id.
    pub its: Option<Arc<dyn MsiTarget>>,
}
