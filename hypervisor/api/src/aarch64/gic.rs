//! The state of a GIC, by its architectural registers.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{GicVersion, SystemRegister};

#[cfg(test)]
#[path = "gic_test.rs"]
mod test;

/// One redistributor (GICv3), or the banked part of the distributor (GICv2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Redistributor {
    /// Registers by their offset in the frame (RD_base; SGI_base from 0x10000 on): 32 bits each.
    #[n(0)]
    pub registers: Vec<(u32, u32)>,
    /// The levels of the private lines, one bit each (SGIs and PPIs). Any value.
    #[n(1)]
    pub levels: u32,
}

/// One CPU's part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct GicCpuState {
    /// The CPU's affinity as in MPIDR_EL1. Any value.
    #[n(0)]
    pub mpidr: u64,
    /// Its redistributor or banked distributor registers.
    #[n(1)]
    pub redistributor: Redistributor,
    /// GICv3's CPU interface, by system register (ICC_*).
    #[n(2)]
    pub interface: Vec<(SystemRegister, u64)>,
    /// GICv2's CPU interface, by offset (GICC_*).
    #[n(3)]
    pub memory_interface: Vec<(u32, u32)>,
}

/// The ITS. Its tables lie in guest RAM, in a form of the backend's own, which `tables` names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ItsState {
    /// Registers by their offset (GITS_*): 64 bits each.
    #[n(0)]
    pub registers: Vec<(u32, u64)>,
    /// The form of the tables in guest RAM: `kvm-its-0` is KVM's ABI revision 0.
    #[n(1)]
    pub tables: String,
}

/// The whole state of a GIC.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GicState {
    /// 2 or 3.
    #[n(0)]
    pub version: u8,
    /// How many SPIs.
    #[n(1)]
    pub spis: u32,
    /// The distributor's registers, by offset: 32 bits each; 64-bit ones are two.
    #[n(2)]
    pub distributor: Vec<(u32, u32)>,
    /// The levels of the SPIs, one bit each, INTID 32 in bit 0 of word 0.
    #[n(3)]
    pub levels: Vec<u32>,
    /// The CPUs, in their order.
    #[n(4)]
    pub cpus: Vec<GicCpuState>,
    /// The ITS, where there is one.
    #[n(5)]
    pub its: Option<ItsState>,
}

impl GicState {
    /// Which GIC it is of.
    #[must_use]
    pub fn gic_version(&self) -> GicVersion {
        if self.version == 2 { GicVersion::V2 } else { GicVersion::V3 }
    }
}

impl State for GicState {
    const ID: &'static str = "gic";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(matches!(self.version, 2 | 3), id, "version", self.version, "GICs of version 2 and 3 are known")?;
        let spis = self.spis;
        ensure(spis <= 988 && spis.is_multiple_of(4), id, "spis", spis, "INTIDs of SPIs end at 1019")?;
        let words = spis.div_ceil(32) as usize;
        ensure(self.levels.len() == words, id, "levels", self.levels.len(), "each SPI has one bit")?;
        let aligned = |registers: &[(u32, u32)]| registers.iter().all(|(offset, _)| offset.is_multiple_of(4));
        ensure(aligned(&self.distributor), id, "distributor", (), "registers lie at multiples of 4")?;
        let count = self.cpus.len();
        ensure((1..=512).contains(&count), id, "cpus", count, "a machine has 1 to 512 CPUs")?;
        for cpu in &self.cpus {
            ensure(
                aligned(&cpu.redistributor.registers),
                id,
                "cpus.redistributor.registers",
                (),
                "registers lie at multiples of 4",
            )?;
            ensure(aligned(&cpu.memory_interface), id, "cpus.memory_interface", (), "registers lie at multiples of 4")?;
        }
        let its = self.its.as_ref();
        ensure(self.version == 3 || its.is_none(), id, "its", (), "a GICv2 has none")?;
        let aligned = its.is_none_or(|its| its.registers.iter().all(|(offset, _)| offset.is_multiple_of(4)));
        ensure(aligned, id, "its.registers", (), "registers lie at multiples of 4")?;
        for cpu in &self.cpus {
            let held = cpu.interface.len();
            ensure(self.version == 3 || held == 0, id, "cpus.interface", held, "a GICv2 has no system registers")?;
            ensure(held <= 64, id, "cpus.interface", held, "an interface has not that many registers")?;
        }
        let form = its.map_or("none", |its| &its.tables);
        ensure((1..=64).contains(&form.len()), id, "its.tables", form.len(), "a form has a name of 1 to 64 bytes")
    }
}
