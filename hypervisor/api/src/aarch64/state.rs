//! The architectural state of an aarch64 vCPU.

use std::fmt;

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "state_test.rs"]
pub(crate) mod test;

/// A system register by its encoding (DDI 0487, C5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct SystemRegister(#[n(0)] pub u16);

impl SystemRegister {
    /// By its five numbers: op0 in bits 15:14, op1 in 13:11, CRn in 10:7, CRm in 6:3, op2 in 2:0.
    #[must_use]
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self((op0 & 3) << 14 | (op1 & 7) << 11 | (crn & 15) << 7 | (crm & 15) << 3 | (op2 & 7))
    }

    /// Its five numbers: op0, op1, CRn, CRm, op2.
    const fn numbers(self) -> [u16; 5] {
        let Self(r) = self;
        [r >> 14, r >> 11 & 7, r >> 7 & 15, r >> 3 & 15, r & 7]
    }

    /// Whether it tells what the CPU is, and so can't be written: the ID registers, CTR_EL0 and the like.
    #[must_use]
    pub const fn is_identity(self) -> bool {
        let [op0, op1, crn, ..] = self.numbers();
        // op1 = 2 is CSSELR_EL1, which selects what CCSIDR_EL1 shows.
        op0 == 3 && crn == 0 && op1 != 2
    }
}

/// The architecture's name for those that messages are likely to name, else the generic one (DDI 0487, C5.1.2).
impl fmt::Display for SystemRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [op0, op1, crn, crm, op2] = self.numbers();
        f.write_str(match (op0, op1, crn, crm, op2) {
            (3, 0, 0, 0, 0) => "MIDR_EL1",
            (3, 0, 0, 0, 5) => "MPIDR_EL1",
            (3, 0, 0, 0, 6) => "REVIDR_EL1",
            (3, 0, 0, 4, 0) => "ID_AA64PFR0_EL1",
            (3, 0, 0, 4, 1) => "ID_AA64PFR1_EL1",
            (3, 0, 0, 4, 4) => "ID_AA64ZFR0_EL1",
            (3, 0, 0, 4, 5) => "ID_AA64SMFR0_EL1",
            (3, 0, 0, 5, 0) => "ID_AA64DFR0_EL1",
            (3, 0, 0, 5, 1) => "ID_AA64DFR1_EL1",
            (3, 0, 0, 6, 0) => "ID_AA64ISAR0_EL1",
            (3, 0, 0, 6, 1) => "ID_AA64ISAR1_EL1",
            (3, 0, 0, 6, 2) => "ID_AA64ISAR2_EL1",
            (3, 0, 0, 7, 0) => "ID_AA64MMFR0_EL1",
            (3, 0, 0, 7, 1) => "ID_AA64MMFR1_EL1",
            (3, 0, 0, 7, 2) => "ID_AA64MMFR2_EL1",
            (3, 0, 12, 12, 4) => "ICC_CTLR_EL1",
            (3, 0, 12, 12, 5) => "ICC_SRE_EL1",
            (3, 1, 0, 0, 1) => "CLIDR_EL1",
            (3, 1, 0, 0, 7) => "AIDR_EL1",
            (3, 3, 0, 0, 1) => "CTR_EL0",
            (3, 3, 0, 0, 7) => "DCZID_EL0",
            (3, 3, 14, 3, 1) => "CNTV_CTL_EL0",
            (3, 3, 14, 3, 2) => "CNTV_CVAL_EL0",
            _ => return write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}"),
        })
    }
}

/// Registers that skep's own code names.
#[allow(missing_docs)] // The names are the registers'.
pub mod registers {
    use super::SystemRegister;

    pub const MIDR_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 0, 0);
    pub const MPIDR_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 0, 5);
    pub const CLIDR_EL1: SystemRegister = SystemRegister::new(3, 1, 0, 0, 1);
    pub const SCTLR_EL1: SystemRegister = SystemRegister::new(3, 0, 1, 0, 0);
    pub const TTBR0_EL1: SystemRegister = SystemRegister::new(3, 0, 2, 0, 0);
    pub const TTBR1_EL1: SystemRegister = SystemRegister::new(3, 0, 2, 0, 1);
    pub const TCR_EL1: SystemRegister = SystemRegister::new(3, 0, 2, 0, 2);
    pub const ESR_EL1: SystemRegister = SystemRegister::new(3, 0, 5, 2, 0);
    pub const FAR_EL1: SystemRegister = SystemRegister::new(3, 0, 6, 0, 0);
    pub const VBAR_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 0, 0);
    pub const TPIDR_EL1: SystemRegister = SystemRegister::new(3, 0, 13, 0, 4);
    pub const CNTV_CTL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 3, 1);
    pub const CNTV_CVAL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 3, 2);
}

/// Floating-point and SIMD registers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct SimdRegisters {
    /// V0 to V31, 16 bytes each, little-endian.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub v: Vec<u8>,
    /// FPSR. Any value.
    #[n(1)]
    pub fpsr: u32,
    /// FPCR. Any value.
    #[n(2)]
    pub fpcr: u32,
    /// SVE's state, where the vCPU has it: the vector length in bits, then Z0 to Z31 (V0 to V31 are their low parts), P0 to P15 and FFR.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub sve: Option<Vec<u8>>,
    /// SVE's vector length in bits, where the vCPU has it.
    #[n(4)]
    pub sve_bits: Option<u16>,
}

/// Whether the CPU runs (PSCI's terms).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum PowerState {
    /// On.
    #[default]
    #[n(0)]
    On,
    /// Off until CPU_ON.
    #[n(1)]
    Off,
    /// Suspended until a wake-up event.
    #[n(2)]
    Suspended,
}

/// The whole architectural state of an aarch64 vCPU, but for its part of the GIC, which is in the GIC's state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VcpuState {
    /// X0 to X30. Any value.
    #[n(0)]
    pub x: [u64; 31],
    /// SP_EL0. Any value.
    #[n(1)]
    pub sp_el0: u64,
    /// SP_EL1. Any value.
    #[n(2)]
    pub sp_el1: u64,
    /// The program counter. Any value.
    #[n(3)]
    pub pc: u64,
    /// PSTATE as SPSR_EL1 would hold it.
    #[n(4)]
    pub pstate: u64,
    /// ELR_EL1. Any value.
    #[n(5)]
    pub elr_el1: u64,
    /// SPSR_EL1, SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq. Any value.
    #[n(6)]
    pub spsr: [u64; 5],
    /// Floating point and SIMD.
    #[n(7)]
    pub simd: SimdRegisters,
    /// System registers, in the order of their encodings.
    #[n(8)]
    pub registers: Vec<(SystemRegister, u64)>,
    /// Whether the CPU runs.
    #[n(9)]
    pub power: PowerState,
    /// An SError that waits, with its syndrome (ISS) where the CPU has RAS.
    #[n(10)]
    pub serror: Option<u64>,
    /// The virtual counter (CNTVCT_EL0) at the moment of saving. Any value.
    #[n(11)]
    pub counter: u64,
    /// The counter's frequency in Hz.
    #[n(12)]
    pub counter_hz: u32,
    /// Versions of the firmware interfaces that the guest sees, by name: `psci` 0x10002 is 1.2.
    #[n(13)]
    pub firmware: Vec<(String, u64)>,
}

impl VcpuState {
    /// A system register's value.
    #[must_use]
    pub fn register(&self, register: SystemRegister) -> Option<u64> {
        self.registers.iter().find(|(r, _)| *r == register).map(|(_, value)| *value)
    }
}

/// What a vCPU is that a host fixes: a state fits where it is the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct VcpuIdentity {
    /// The system registers that it has, in the order of their encodings, with the values of those that tell what it is.
    #[n(0)]
    pub registers: Vec<(SystemRegister, Option<u64>)>,
    /// SVE's vector length in bits, where it has it.
    #[n(1)]
    pub sve_bits: Option<u16>,
    /// Firmware interfaces and the like by name. What differs there fits as well where the backend takes the state's value.
    #[n(2)]
    pub firmware: Vec<(String, u64)>,
}

impl VcpuState {
    /// What of it a host fixes.
    #[must_use]
    pub fn identity(&self) -> VcpuIdentity {
        let told = |(register, value): &(SystemRegister, u64)| (*register, register.is_identity().then_some(*value));
        VcpuIdentity {
            registers: self.registers.iter().map(told).collect(),
            sve_bits: self.simd.sve_bits,
            firmware: self.firmware.clone(),
        }
    }
}

impl State for VcpuState {
    const ID: &'static str = "aarch64-vcpu";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        let mode = self.pstate & 0x1f;
        ensure(matches!(mode, 0 | 4 | 5), id, "pstate", self.pstate, "the mode is EL0t, EL1t or EL1h in 64-bit state")?;
        ensure(self.simd.v.len() == 512, id, "simd.v", self.simd.v.len(), "32 registers have 512 bytes")?;
        ensure(
            self.registers.is_sorted_by(|a, b| a.0 < b.0),
            id,
            "registers",
            self.registers.len(),
            "registers ascend by encoding, each once",
        )?;
        let (bits, sve) = (self.simd.sve_bits, self.simd.sve.as_ref().map(Vec::len));
        let legal = bits.is_none_or(|b| (128..=2048).contains(&b) && b.is_multiple_of(128));
        ensure(legal, id, "simd.sve_bits", bits, "it is a multiple of 128 up to 2048")?;
        // Z: 32 vectors, P: 16 predicates of an eighth, FFR: one more.
        let expected = bits.map(|bits| usize::from(bits) / 8 * 32 + usize::from(bits) / 64 * 17);
        ensure(sve == expected, id, "simd.sve", sve, "its size follows from the vector length")?;
        let serror = self.serror;
        ensure(serror.is_none_or(|iss| iss < 1 << 25), id, "serror", serror, "a syndrome (ISS) has 25 bits")?;
        ensure(self.counter_hz > 0, id, "counter_hz", self.counter_hz, "the counter runs")?;
        ensure(self.firmware.len() <= 64, id, "firmware", self.firmware.len(), "there are not that many interfaces")
    }
}
