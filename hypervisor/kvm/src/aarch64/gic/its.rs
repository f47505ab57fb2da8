//! The ITS: registers, and tables that KVM keeps in guest RAM while they are saved (IHI 0069H, 12.18;
//! Documentation/virt/kvm/devices/arm-vgic-its.rst).

use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, KVM_VGIC_ITS_ADDR_TYPE,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS as KIND,
};
use kvm_ioctls::VmFd;
use skep_hypervisor::HypervisorError;
use skep_hypervisor::aarch64::ItsState;

use super::device::{self, Attribute, Device};
use super::registers::unfit;

/// The form of the tables in guest RAM: revision 0 of KVM's ABI.
const TABLES: &str = "kvm-its-0";

const GITS_CTLR: u32 = 0x0000;
const GITS_IIDR: u32 = 0x0004;
const GITS_TYPER: u32 = 0x0008;
const GITS_CBASER: u32 = 0x0080;
const GITS_CWRITER: u32 = 0x0088;
const GITS_CREADR: u32 = 0x0090;
/// GITS_BASER0 to GITS_BASER7.
const GITS_BASER: [u32; 8] = [0x100, 0x108, 0x110, 0x118, 0x120, 0x128, 0x130, 0x138];
/// What the ITS is: a state with other values does not fit.
const IDENTITY: [u32; 2] = [GITS_IIDR, GITS_TYPER];

/// In the order in which they are written: where the commands are before how far they have been read, tables, then the control register,
/// which has the tables' contents loaded before it.
fn registers() -> impl Iterator<Item = u32> {
    [GITS_IIDR, GITS_TYPER, GITS_CBASER, GITS_CREADR, GITS_CWRITER].into_iter().chain(GITS_BASER).chain([GITS_CTLR])
}

fn at(offset: u32) -> Attribute {
    Attribute { group: KVM_DEV_ARM_VGIC_GRP_ITS_REGS, number: offset.into() }
}

const fn control(number: u32) -> Attribute {
    Attribute { group: KVM_DEV_ARM_VGIC_GRP_CTRL, number: number as u64 }
}

/// Whether KVM on this host has an ITS.
pub(super) fn is_offered(vm: &VmFd) -> bool {
    device::is_offered(vm, KIND)
}

/// The ITS of a VM.
pub(super) struct Its(Device);

impl Its {
    /// Makes it at `address`, in a VM whose GIC has been made.
    pub(super) fn new(vm: &VmFd, address: u64) -> Result<Self, HypervisorError> {
        let device = Device::new(vm, KIND, "GICv3 ITS")?;
        device.place("registers", address, KVM_VGIC_ITS_ADDR_TYPE, address)?;
        device.command(control(KVM_DEV_ARM_VGIC_CTRL_INIT), "initialise")?;
        Ok(Self(device))
    }

    /// Writes the tables into guest RAM, and reads the registers.
    pub(super) fn save(&self) -> Result<ItsState, HypervisorError> {
        self.0.command(control(KVM_DEV_ARM_ITS_SAVE_TABLES), "save its tables into guest RAM")?;
        let registers = registers().map(|offset| Ok((offset, self.0.get(at(offset))?)));
        Ok(ItsState { registers: registers.collect::<Result<_, HypervisorError>>()?, tables: TABLES.to_owned() })
    }

    /// Checks that `state` fits.
    pub(super) fn check(&self, state: &ItsState) -> Result<(), HypervisorError> {
        let unfit = |reason| Err(unfit("ITS", reason));
        if state.tables != TABLES {
            return unfit(format!(
                "its tables in guest RAM have the form `{}`, and KVM reads `{TABLES}`",
                state.tables
            ));
        }
        if let Some((offset, _)) = state.registers.iter().find(|(offset, _)| !registers().any(|r| r == *offset)) {
            return unfit(format!("KVM's ITS has no state in a register at {offset:#x}"));
        }
        for offset in registers() {
            let mut saved = state.registers.iter().filter(|(r, _)| *r == offset);
            let Some((_, value)) = saved.next() else {
                return unfit(format!("the register at {offset:#x} is missing"));
            };
            if saved.next().is_some() {
                return unfit(format!("the register at {offset:#x} is there twice"));
            }
            let here = if IDENTITY.contains(&offset) { self.0.get(at(offset))? } else { *value };
            if here != *value {
                return unfit(format!("the register at {offset:#x} is {value:#x}, and {here:#x} on this host"));
            }
        }
        Ok(())
    }

    /// Takes on what [`Self::check`] has passed, after a reset, with RAM and redistributors restored.
    pub(super) fn restore(&self, state: &ItsState) -> Result<(), HypervisorError> {
        for offset in registers() {
            let Some((_, value)) = state.registers.iter().find(|(saved, _)| *saved == offset) else { continue };
            if offset == GITS_CTLR {
                self.0.command(control(KVM_DEV_ARM_ITS_RESTORE_TABLES), "load its tables from guest RAM")?;
            }
            // KVM changes attributes of an address that is written, even of none.
            if self.0.get::<u64>(at(offset))? != *value {
                self.0.set(at(offset), *value)?;
            }
        }
        Ok(())
    }

    /// The power-on state.
    pub(super) fn reset(&self) -> Result<(), HypervisorError> {
        self.0.command(control(KVM_DEV_ARM_ITS_CTRL_RESET), "reset")
    }
}
