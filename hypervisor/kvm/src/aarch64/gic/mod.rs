//! KVM's GIC: made, saved, restored and reset.

mod device;
mod its;
mod registers;
mod v2;
mod v3;

use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2 as V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as V3,
};
use kvm_ioctls::VmFd;
use skep_hypervisor::HypervisorError;
use skep_hypervisor::aarch64::{Gic, GicConfig, GicState, GicSupport, GicVersion, VmConfig};

use self::device::{Attribute, Device};
use self::its::Its;
use self::registers::unfit;
use super::lines::{FIRST_SPI, Lines};

/// CPUs that a GICv2's registers have room for.
const V2_CPUS: u32 = 8;

/// The GICs that KVM on this host can make, the best first.
pub(super) fn offered(vm: &VmFd, max_vcpus: u32) -> Vec<GicSupport> {
    let mut gics = Vec::new();
    if device::is_offered(vm, V3) {
        gics.push(GicSupport { version: GicVersion::V3, max_vcpus, its: its::is_offered(vm) });
    }
    if device::is_offered(vm, V2) {
        gics.push(GicSupport { version: GicVersion::V2, max_vcpus: max_vcpus.min(V2_CPUS), its: false });
    }
    gics
}

/// KVM's GIC of one VM.
pub(super) struct KvmGic {
    device: Device,
    version: GicVersion,
    its: Option<Its>,
    spis: u32,
    /// The affinities of its CPUs.
    mpidrs: Vec<u64>,
    lines: Arc<Lines>,
}

impl KvmGic {
    /// Makes the GIC of a VM whose vCPUs, with these affinities, have all been made. It then takes no more.
    pub(super) fn new(
        vm: &VmFd,
        config: &VmConfig,
        mpidrs: Vec<u64>,
        lines: Arc<Lines>,
    ) -> Result<Self, HypervisorError> {
        let version = config.gic.version();
        let device = match version {
            GicVersion::V2 => Device::new(vm, V2, "GICv2")?,
            GicVersion::V3 => Device::new(vm, V3, "GICv3")?,
        };
        device.set(Attribute { group: KVM_DEV_ARM_VGIC_GRP_NR_IRQS, number: 0 }, FIRST_SPI + config.spis)?;
        match &config.gic {
            GicConfig::V2 { distributor, cpu_interface } => {
                device.place("distributor", *distributor, KVM_VGIC_V2_ADDR_TYPE_DIST, *distributor)?;
                device.place("CPU interface", *cpu_interface, KVM_VGIC_V2_ADDR_TYPE_CPU, *cpu_interface)?;
            }
            GicConfig::V3 { distributor, redistributors, .. } => {
                device.place("distributor", *distributor, KVM_VGIC_V3_ADDR_TYPE_DIST, *distributor)?;
                for (index, region) in redistributors.iter().enumerate() {
                    let value = u64::from(region.count) << 52 | region.base | index as u64;
                    device.place("redistributors", region.base, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, value)?;
                }
            }
        }
        let number = KVM_DEV_ARM_VGIC_CTRL_INIT.into();
        device.command(Attribute { group: KVM_DEV_ARM_VGIC_GRP_CTRL, number }, "initialise")?;
        let its = match config.gic {
            GicConfig::V3 { its: Some(address), .. } => Some(Its::new(vm, address)?),
            _ => None,
        };
        Ok(Self { device, version, its, spis: config.spis, mpidrs, lines })
    }

    /// Checks that `state` fits, before anything is touched.
    fn check(&self, state: &GicState) -> Result<(), HypervisorError> {
        let here = if self.version == GicVersion::V2 { 2 } else { 3 };
        if state.version != here {
            return Err(unfit("version", format!("it is of a GICv{}, and this is a GICv{here}", state.version)));
        }
        if state.spis != self.spis {
            return Err(unfit("spis", format!("it has {} SPIs, and this GIC {}", state.spis, self.spis)));
        }
        if !state.cpus.iter().map(|cpu| cpu.mpidr).eq(self.mpidrs.iter().copied()) {
            let (saved, here) = (state.cpus.len(), self.mpidrs.len());
            return Err(unfit("cpus", format!("its {saved} CPUs are not the {here} of this GIC, by their affinities")));
        }
        match (&self.its, &state.its) {
            (Some(its), Some(state)) => its.check(state)?,
            (None, None) => {}
            (Some(_), None) => return Err(unfit("its", "it has no ITS, and this GIC has one".to_owned())),
            (None, Some(_)) => return Err(unfit("its", "it has an ITS, and this GIC has none".to_owned())),
        }
        match self.version {
            GicVersion::V2 => v2::check(&self.device, state),
            GicVersion::V3 => v3::check(&self.device, state),
        }
    }
}

impl Gic for KvmGic {
    fn save(&self) -> Result<GicState, HypervisorError> {
        let its = self.its.as_ref().map(Its::save).transpose()?;
        let state = match self.version {
            GicVersion::V2 => v2::save(&self.device, self.spis, &self.mpidrs, self.lines.levels())?,
            GicVersion::V3 => v3::save(&self.device, self.spis, &self.mpidrs)?,
        };
        Ok(GicState { its, ..state })
    }

    fn restore(&self, state: &GicState) -> Result<(), HypervisorError> {
        self.check(state)?;
        if let Some(its) = &self.its {
            // What it translated so far is not to become pending when the redistributors turn LPIs on.
            its.reset()?;
        }
        match self.version {
            GicVersion::V2 => v2::restore(&self.device, state)?,
            GicVersion::V3 => v3::restore(&self.device, state)?,
        }
        self.lines.restore(&state.levels, self.version == GicVersion::V2);
        match (&self.its, &state.its) {
            (Some(its), Some(state)) => its.restore(state),
            _ => Ok(()),
        }
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        if let Some(its) = &self.its {
            its.reset()?;
        }
        match self.version {
            GicVersion::V2 => v2::reset(&self.device, self.spis, self.mpidrs.len()),
            GicVersion::V3 => v3::reset(&self.device, self.spis, &self.mpidrs),
        }
    }
}
