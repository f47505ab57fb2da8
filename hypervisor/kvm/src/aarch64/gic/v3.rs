//! GICv3: what its state is made of (IHI 0069H, chapter 12; Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
};
use skep_hypervisor::HypervisorError;
use skep_hypervisor::aarch64::{GicCpuState, GicState, Redistributor, SystemRegister};

use super::device::{Attribute, Device};
use super::registers::{self, Block, Write, unfit};

const GICR_CTLR: u32 = 0x0000;

const ICC_PMR_EL1: SystemRegister = SystemRegister::new(3, 0, 4, 6, 0);
const ICC_BPR0_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 8, 3);
const ICC_BPR1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 3);
const ICC_CTLR_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 4);
const ICC_SRE_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 5);
const ICC_IGRPEN0_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 6);
const ICC_IGRPEN1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 7);
/// CBPR and EOImode, the guest's to set; the others tell what the CPU interface is.
const ICC_CTLR_WRITABLE: u64 = 0b11;

/// The CPU interface but for the active priorities, in the order in which they are written.
const INTERFACE: [SystemRegister; 7] =
    [ICC_SRE_EL1, ICC_CTLR_EL1, ICC_PMR_EL1, ICC_BPR0_EL1, ICC_BPR1_EL1, ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1];

/// KVM's power-on value of a table's address register: inner shareable, cacheable.
const TABLE_ATTRIBUTES: u32 = 0x580;
/// KVM's SPIs are edge-triggered at power-on.
const EDGES: u32 = 0xaaaa_aaaa;

/// The distributor's registers of `spis` SPIs, in the order in which they are written. KVM looks for a CPU that takes a pending interrupt
/// only as it becomes pending, active or enabled: by then the distributor must be on, and the interrupt's route known.
fn distributor(spis: u32) -> [Block; 9] {
    let (bits, pairs, bytes, routes) = (spis / 32, spis / 16, spis / 4, spis * 2);
    [
        Block::new(0x0008, 1, Write::Identity, 0),               // GICD_IIDR
        Block::new(0x0000, 1, Write::Plain, 0),                  // GICD_CTLR
        Block::new(0x0084, bits, Write::Plain, u32::MAX),        // GICD_IGROUPR<n>
        Block::new(0x0420, bytes, Write::Plain, 0),              // GICD_IPRIORITYR<n>
        Block::new(0x0c08, pairs, Write::Plain, EDGES),          // GICD_ICFGR<n>
        Block::new(0x6100, routes, Write::Plain, 0),             // GICD_IROUTER<n>
        Block::new(0x0204, bits, Write::Plain, 0),               // GICD_ISPENDR<n>: KVM writes zeroes as well
        Block::new(0x0304, bits, Write::SetAndClear(0x0384), 0), // GICD_ISACTIVER<n>
        Block::new(0x0104, bits, Write::SetAndClear(0x0184), 0), // GICD_ISENABLER<n>
    ]
}

/// A redistributor's registers, in the order in which they are written. LPIs are off meanwhile: where their tables are can't be changed
/// while they are on.
const REDISTRIBUTOR: [Block; 11] = [
    Block::new(0x0070, 1, Write::Plain, TABLE_ATTRIBUTES), // GICR_PROPBASER, low half
    Block::new(0x0074, 1, Write::Plain, 0),
    Block::new(0x0078, 1, Write::Plain, TABLE_ATTRIBUTES), // GICR_PENDBASER, low half
    Block::new(0x007c, 1, Write::Plain, 0),
    Block::new(0x1_0080, 1, Write::Plain, u32::MAX), // GICR_IGROUPR0
    Block::new(0x1_0400, 8, Write::Plain, 0),        // GICR_IPRIORITYR<n>
    Block::new(0x1_0c04, 1, Write::Plain, 0),        // GICR_ICFGR1: what KVM's PPIs are is fixed
    Block::new(0x1_0200, 1, Write::Plain, 0),        // GICR_ISPENDR0
    Block::new(0x1_0300, 1, Write::SetAndClear(0x1_0380), 0), // GICR_ISACTIVER0
    Block::new(0x1_0100, 1, Write::SetAndClear(0x1_0180), 0xffff), // GICR_ISENABLER0: SGIs are on
    Block::new(GICR_CTLR, 1, Write::Plain, 0),
];

/// A CPU's affinity where KVM's attributes want it: Aff3 beside the others.
fn affinity(mpidr: u64) -> u64 {
    ((mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff) << 32
}

fn register(group: u32, mpidr: u64, offset: u32) -> Attribute {
    Attribute { group, number: affinity(mpidr) | u64::from(offset) }
}

fn in_distributor(offset: u32) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, offset)
}

fn in_redistributor(mpidr: u64, offset: u32) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, mpidr, offset)
}

fn in_interface(mpidr: u64, register_: SystemRegister) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, mpidr, register_.0.into())
}

/// The levels of the 32 lines from `intid` on.
fn levels(mpidr: u64, intid: u32) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, mpidr, intid)
}

/// The registers of active priorities that a CPU interface with this ICC_CTLR_EL1 has: ICC_AP0R<n>_EL1 and ICC_AP1R<n>_EL1.
fn active_priorities(icc_ctlr: u64) -> impl Iterator<Item = SystemRegister> {
    let count = match (icc_ctlr >> 8 & 7) + 1 {
        7.. => 4,
        6 => 2,
        _ => 1,
    };
    (0..count).flat_map(|n| [SystemRegister::new(3, 0, 12, 8, 4 + n), SystemRegister::new(3, 0, 12, 9, n)])
}

fn interface(device: &Device, mpidr: u64) -> Result<Vec<SystemRegister>, HypervisorError> {
    let ctlr = device.get(in_interface(mpidr, ICC_CTLR_EL1))?;
    Ok(INTERFACE.into_iter().chain(active_priorities(ctlr)).collect())
}

/// Reads all but the ITS.
pub(super) fn save(device: &Device, spis: u32, mpidrs: &[u64]) -> Result<GicState, HypervisorError> {
    // LPIs that are pending are in tables in guest RAM.
    let number = KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.into();
    device.command(Attribute { group: KVM_DEV_ARM_VGIC_GRP_CTRL, number }, "save pending LPIs into guest RAM")?;
    let first = mpidrs.first().copied().unwrap_or_default();
    Ok(GicState {
        version: 3,
        spis,
        distributor: registers::save(&distributor(spis), |offset| device.get(in_distributor(offset)))?,
        levels: spi_words(spis).map(|intid| device.get(levels(first, intid))).collect::<Result<_, _>>()?,
        cpus: mpidrs.iter().map(|&mpidr| save_cpu(device, mpidr)).collect::<Result<_, _>>()?,
        its: None,
    })
}

fn spi_words(spis: u32) -> impl Iterator<Item = u32> {
    (32..32 + spis).step_by(32)
}

fn save_cpu(device: &Device, mpidr: u64) -> Result<GicCpuState, HypervisorError> {
    let read = |offset| device.get(in_redistributor(mpidr, offset));
    let redistributor =
        Redistributor { registers: registers::save(&REDISTRIBUTOR, read)?, levels: device.get(levels(mpidr, 0))? };
    let interface = interface(device, mpidr)?.into_iter();
    let interface = interface.map(|r| Ok((r, device.get(in_interface(mpidr, r))?)));
    let interface = interface.collect::<Result<_, HypervisorError>>()?;
    Ok(GicCpuState { mpidr, redistributor, interface, memory_interface: Vec::new() })
}

/// Checks that `state`, which is of as many SPIs and of the same CPUs, fits.
pub(super) fn check(device: &Device, state: &GicState) -> Result<(), HypervisorError> {
    let read = |offset| device.get(in_distributor(offset));
    registers::check("distributor", &distributor(state.spis), &state.distributor, read)?;
    for cpu in &state.cpus {
        let what = format!("CPU {:#x}", cpu.mpidr);
        let read = |offset| device.get(in_redistributor(cpu.mpidr, offset));
        registers::check(&what, &REDISTRIBUTOR, &cpu.redistributor.registers, read)?;
        let expected = interface(device, cpu.mpidr)?;
        let fits = cpu.interface.len() == expected.len()
            && expected.iter().all(|register| cpu.interface.iter().any(|(saved, _)| saved == register));
        if !fits {
            return Err(unfit(&what, "its interface has other registers (ICC_*) than this host's".to_owned()));
        }
        for (register, value) in &cpu.interface {
            let identity = match *register {
                ICC_SRE_EL1 => u64::MAX,
                // KVM takes fewer priority bits for good: a state that has them would be the last that fits.
                ICC_CTLR_EL1 => !ICC_CTLR_WRITABLE,
                _ => continue,
            };
            let here: u64 = device.get(in_interface(cpu.mpidr, *register))?;
            if (value ^ here) & identity != 0 {
                return Err(unfit(&what, format!("its {} is {value:#x}, and {here:#x} on this host", register)));
            }
        }
    }
    Ok(())
}

/// Writes all but the ITS, which comes after it.
pub(super) fn restore(device: &Device, state: &GicState) -> Result<(), HypervisorError> {
    let first = state.cpus.first().map(|cpu| cpu.mpidr).unwrap_or_default();
    registers::restore(&distributor(state.spis), &state.distributor, |o, v| device.set(in_distributor(o), v))?;
    for (intid, word) in spi_words(state.spis).zip(&state.levels) {
        device.set(levels(first, intid), *word)?;
    }
    for cpu in &state.cpus {
        let mpidr = cpu.mpidr;
        device.set(in_redistributor(mpidr, GICR_CTLR), 0u32)?;
        let write = |o, v| device.set(in_redistributor(mpidr, o), v);
        registers::restore(&REDISTRIBUTOR, &cpu.redistributor.registers, write)?;
        device.set(levels(mpidr, 0), cpu.redistributor.levels)?;
        for register in interface(device, mpidr)? {
            if let Some((_, value)) = cpu.interface.iter().find(|(saved, _)| *saved == register) {
                device.set(in_interface(mpidr, register), *value)?;
            }
        }
    }
    Ok(())
}

/// Writes the power-on state of all but the ITS, which has been reset before. Levels are inputs: they stay what the devices make them.
pub(super) fn reset(device: &Device, spis: u32, mpidrs: &[u64]) -> Result<(), HypervisorError> {
    registers::reset(&distributor(spis), |o, v| device.set(in_distributor(o), v))?;
    for &mpidr in mpidrs {
        device.set(in_redistributor(mpidr, GICR_CTLR), 0u32)?;
        registers::reset(&REDISTRIBUTOR, |o, v| device.set(in_redistributor(mpidr, o), v))?;
        for register in interface(device, mpidr)? {
            let attribute = in_interface(mpidr, register);
            match register {
                ICC_SRE_EL1 => {}
                ICC_CTLR_EL1 => device.set(attribute, device.get::<u64>(attribute)? & !ICC_CTLR_WRITABLE)?,
                _ => device.set(attribute, 0u64)?,
            }
        }
    }
    Ok(())
}
