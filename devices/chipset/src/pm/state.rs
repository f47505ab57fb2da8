//! The power management block's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{BLOCK_SIZE, control, enable, status};

/// The registers of the power management block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PmState {
    /// Where the block is, if it is anywhere.
    #[n(0)]
    pub base: Option<u16>,
    /// PM1_STS.
    #[n(1)]
    pub status: u16,
    /// PM1_EN.
    #[n(2)]
    pub enable: u16,
    /// PM1_CNT.
    #[n(3)]
    pub control: u16,
    /// Nanoseconds that the timer has run, of which its value is derived.
    #[n(4)]
    pub timer_nanos: u64,
    /// GPE0_STS. Any value.
    #[n(5)]
    pub gpe_status: u64,
    /// GPE0_EN. Any value.
    #[n(6)]
    pub gpe_enable: u64,
    /// SMI_EN. Any value.
    #[n(7)]
    pub smi_enable: u32,
    /// The APM control port. Any value.
    #[n(8)]
    pub apm_control: u8,
    /// The APM status port. Any value.
    #[n(9)]
    pub apm_status: u8,
}

impl State for PmState {
    const ID: &'static str = "ich9-pm";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        let placed = self.base.is_none_or(|base| base % BLOCK_SIZE == 0);
        ensure(placed, id, "base", self.base, "the block stands at a multiple of 128")?;
        ensure(self.status & !status::ALL == 0, id, "status", self.status, "reserved bits are 0")?;
        ensure(self.enable & !enable::ALL == 0, id, "enable", self.enable, "reserved bits are 0")?;
        ensure(self.control & !control::KEPT == 0, id, "control", self.control, "reserved bits are 0")?;
        ensure(self.timer_nanos <= 1 << 62, id, "timer_nanos", self.timer_nanos, "nothing counts for centuries")
    }
}
