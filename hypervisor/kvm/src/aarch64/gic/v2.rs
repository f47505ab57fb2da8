//! GICv2: what its state is made of (IHI 0048B, chapter 4; Documentation/virt/kvm/devices/arm-vgic.rst).
//!
//! KVM does not tell what a GICv2's lines are driven to: the levels of SPIs are known where they are driven, those of PPIs follow from the
//! timers' state, and a pending level interrupt's own bit is made of both.

use kvm_bindings::{KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS};
use skep_hypervisor::HypervisorError;
use skep_hypervisor::aarch64::{GicCpuState, GicState, Redistributor};

use super::device::{Attribute, Device};
use super::registers::{self, Block, Write};

const GICD_IIDR: u32 = 0x0008;
const GICD_ISPENDR: u32 = 0x0200;
const GICD_ICFGR: u32 = 0x0c00;
const GICC_PMR: u32 = 0x0004;
/// KVM's SPIs are edge-triggered at power-on.
const EDGES: u32 = 0xaaaa_aaaa;

/// The distributor's registers that all CPUs share, in the order in which they are written. KVM looks for a CPU that takes a pending
/// interrupt only as it becomes pending, active or enabled: by then the distributor must be on, and the interrupt's targets known.
fn distributor(spis: u32) -> [Block; 9] {
    let (bits, pairs, bytes) = (spis / 32, spis / 16, spis / 4);
    [
        Block::new(GICD_IIDR, 1, Write::Identity, 0),           // GICD_IIDR
        Block::new(0x000, 1, Write::Plain, 0),                  // GICD_CTLR
        Block::new(0x084, bits, Write::Plain, 0),               // GICD_IGROUPR<n>
        Block::new(0x420, bytes, Write::Plain, 0),              // GICD_IPRIORITYR<n>
        Block::new(0x820, bytes, Write::Plain, 0),              // GICD_ITARGETSR<n>
        Block::new(GICD_ICFGR + 8, pairs, Write::Plain, EDGES), // GICD_ICFGR<n>
        Block::new(GICD_ISPENDR + 4, bits, Write::SetAndClear(0x284), 0), // GICD_ISPENDR<n>
        Block::new(0x304, bits, Write::SetAndClear(0x384), 0),  // GICD_ISACTIVER<n>
        Block::new(0x104, bits, Write::SetAndClear(0x184), 0),  // GICD_ISENABLER<n>
    ]
}

/// Those that each CPU has for its SGIs and PPIs. GICD_ICFGR0 and 1 and GICD_ITARGETSR0 to 7 are fixed.
const BANKED: [Block; 6] = [
    Block::new(0x080, 1, Write::Plain, 0),                     // GICD_IGROUPR0
    Block::new(0x400, 8, Write::Plain, 0),                     // GICD_IPRIORITYR<n>
    Block::new(GICD_ISPENDR, 1, Write::SetAndClear(0x280), 0), // GICD_ISPENDR0
    Block::new(0xf20, 4, Write::SetAndClear(0xf10), 0),        // GICD_SPENDSGIR<n>
    Block::new(0x300, 1, Write::SetAndClear(0x380), 0),        // GICD_ISACTIVER0
    Block::new(0x100, 1, Write::SetAndClear(0x180), 0xffff),   // GICD_ISENABLER0: SGIs are on
];

/// A CPU interface's registers. GICC_APR<n> are in KVM's own form: a bit for each of 128 priorities.
const INTERFACE: [Block; 5] = [
    Block::new(0x0000, 1, Write::Plain, 0), // GICC_CTLR
    Block::new(GICC_PMR, 1, Write::Plain, 0),
    Block::new(0x0008, 1, Write::Plain, 0), // GICC_BPR
    Block::new(0x001c, 1, Write::Plain, 0), // GICC_ABPR
    Block::new(0x00d0, 4, Write::Plain, 0), // GICC_APR<n>
];

fn register(group: u32, cpu: usize, offset: u32) -> Attribute {
    Attribute { group, number: (cpu as u64) << 32 | u64::from(offset) }
}

fn in_distributor(cpu: usize, offset: u32) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, cpu, offset)
}

fn in_interface(cpu: usize, offset: u32) -> Attribute {
    register(KVM_DEV_ARM_VGIC_GRP_CPU_REGS, cpu, offset)
}

/// KVM gives and takes the priority mask as the five bits that are implemented.
fn from_kvm(offset: u32, value: u32) -> u32 {
    if offset == GICC_PMR { (value & 0x1f) << 3 } else { value }
}

fn to_kvm(offset: u32, value: u32) -> u32 {
    if offset == GICC_PMR { value >> 3 & 0x1f } else { value }
}

/// Reads all, with the levels to which the SPIs are driven.
pub(super) fn save(device: &Device, spis: u32, mpidrs: &[u64], levels: Vec<u32>) -> Result<GicState, HypervisorError> {
    let distributor = registers::save(&distributor(spis), |offset| device.get(in_distributor(0, offset)))?;
    let cpu = |(cpu, &mpidr): (usize, &u64)| {
        let banked = registers::save(&BANKED, |offset| device.get(in_distributor(cpu, offset)))?;
        let read = |offset| Ok(from_kvm(offset, device.get(in_interface(cpu, offset))?));
        let memory_interface = registers::save(&INTERFACE, read)?;
        let redistributor = Redistributor { registers: banked, levels: 0 };
        Ok(GicCpuState { mpidr, redistributor, interface: Vec::new(), memory_interface })
    };
    let cpus = mpidrs.iter().enumerate().map(cpu).collect::<Result<_, HypervisorError>>()?;
    Ok(GicState { version: 2, spis, distributor, levels, cpus, its: None })
}

/// Checks that `state`, which is of as many SPIs and of the same CPUs, fits.
pub(super) fn check(device: &Device, state: &GicState) -> Result<(), HypervisorError> {
    let read = |offset| device.get(in_distributor(0, offset));
    registers::check("distributor", &distributor(state.spis), &state.distributor, read)?;
    for cpu in &state.cpus {
        let what = format!("CPU {:#x}", cpu.mpidr);
        registers::check(&what, &BANKED, &cpu.redistributor.registers, read)?;
        registers::check(&what, &INTERFACE, &cpu.memory_interface, read)?;
    }
    Ok(())
}

/// Writes all but the levels of the SPIs.
pub(super) fn restore(device: &Device, state: &GicState) -> Result<(), HypervisorError> {
    let values = without_levels(&state.distributor, &state.levels);
    registers::restore(&distributor(state.spis), &values, |o, v| device.set(in_distributor(0, o), v))?;
    for (number, cpu) in state.cpus.iter().enumerate() {
        // SGIs become pending by GICD_SPENDSGIR, which knows who sent them; PPIs are level-triggered.
        let banked = cpu.redistributor.registers.iter();
        let banked: Vec<_> = banked.map(|&(o, v)| (o, if o == GICD_ISPENDR { 0 } else { v })).collect();
        registers::restore(&BANKED, &banked, |o, v| device.set(in_distributor(number, o), v))?;
        let write = |o, v| device.set(in_interface(number, o), to_kvm(o, v));
        registers::restore(&INTERFACE, &cpu.memory_interface, write)?;
    }
    Ok(())
}

/// Leaves out the pending bits of level-triggered SPIs whose lines are high: those are pending by their levels, and would stay so for ever if their bits
/// were written. One whose line is low was made pending by the guest.
fn without_levels(saved: &[(u32, u32)], levels: &[u32]) -> registers::Values {
    let config = |register: u32| saved.iter().find(|(o, _)| *o == GICD_ICFGR + register * 4).map_or(0, |(_, v)| *v);
    let edges = |word: u32| {
        let pairs = u64::from(config(word * 2 + 1)) << 32 | u64::from(config(word * 2));
        (0..32).filter(|bit| pairs >> (bit * 2 + 1) & 1 == 1).fold(0u32, |edges, bit| edges | 1 << bit)
    };
    let pending = GICD_ISPENDR..GICD_ISPENDR + 0x80;
    let low = |word: u32| !word.checked_sub(1).and_then(|word| levels.get(word as usize)).copied().unwrap_or(u32::MAX);
    let own = |word: u32| edges(word) | low(word);
    let keep = |(o, v): &(u32, u32)| {
        if pending.contains(o) { (*o, v & own((o - GICD_ISPENDR) / 4)) } else { (*o, *v) }
    };
    saved.iter().map(keep).collect()
}

/// Writes the power-on state. Levels are inputs: they stay what the devices make them.
pub(super) fn reset(device: &Device, spis: u32, cpus: usize) -> Result<(), HypervisorError> {
    // KVM takes groups only from one who has shown that it knows this GIC.
    device.set(in_distributor(0, GICD_IIDR), device.get::<u32>(in_distributor(0, GICD_IIDR))?)?;
    registers::reset(&distributor(spis), |o, v| device.set(in_distributor(0, o), v))?;
    for cpu in 0..cpus {
        registers::reset(&BANKED, |o, v| device.set(in_distributor(cpu, o), v))?;
        registers::reset(&INTERFACE, |o, v| device.set(in_interface(cpu, o), v))?;
    }
    Ok(())
}
