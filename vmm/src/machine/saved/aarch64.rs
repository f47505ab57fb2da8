//! What is aarch64's own of a saved machine.

use minicbor::{Decode, Encode};
use skep_hypervisor::aarch64::{Features, GicState, VcpuIdentity, VcpuState};
use skep_hypervisor::{Aarch64, Capabilities};
use skep_state::{Record, State, StateError, ensure};

use super::Saved;
use crate::machine::Plan;
use crate::machine::virt::Board;
use crate::state::SnapshotError;
use crate::state::records::{CPUS, INTERRUPTS, refused};

/// What the guest was shown of its CPUs, beyond what the vCPUs' states hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Aarch64CpusState {
    /// Their affinities, as in MPIDR_EL1.
    #[n(0)]
    pub mpidrs: Vec<u64>,
    /// The counter's frequency in Hz (CNTFRQ_EL0), where a machine is told of before its vCPUs' states, which hold it.
    #[n(1)]
    pub counter_hz: Option<u32>,
    /// They have the Scalable Vector Extension.
    #[n(2)]
    pub sve: bool,
    /// They have pointer authentication.
    #[n(3)]
    pub pointer_authentication: bool,
    /// What the first of them is that a host fixes, where a machine is told of before its vCPUs' states, which hold it.
    #[n(4)]
    pub identity: Option<VcpuIdentity>,
    /// They have a performance monitor. Any value.
    #[n(5)]
    pub pmu: Option<bool>,
}

impl State for Aarch64CpusState {
    const ID: &'static str = "aarch64-cpus";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let count = self.mpidrs.len();
        ensure((1..=512).contains(&count), Self::ID, "mpidrs", count, "a machine has 1 to 512 CPUs")?;
        let hz = self.counter_hz;
        ensure(hz.is_none_or(|hz| hz > 0), Self::ID, "counter_hz", hz, "the counter runs")?;
        let Some(VcpuIdentity { registers, sve_bits, firmware }) = &self.identity else { return Ok(()) };
        let legal = sve_bits.is_none_or(|bits| (128..=2048).contains(&bits) && bits.is_multiple_of(128));
        ensure(legal, Self::ID, "identity.sve_bits", sve_bits, "it is a multiple of 128 up to 2048")?;
        ensure(
            registers.is_sorted_by(|a, b| a.0 < b.0),
            Self::ID,
            "identity.registers",
            registers.len(),
            "registers ascend by encoding, each once",
        )?;
        let count = firmware.len();
        ensure(count <= 64, Self::ID, "identity.firmware", count, "there are not that many interfaces")
    }
}

impl Saved for Aarch64 {
    fn cpus(plan: &Plan<Self>, counter: Option<u32>, identity: Option<VcpuIdentity>) -> Record {
        let first = plan.vcpus.first().map(|vcpu| vcpu.features).unwrap_or_default();
        Record::of(&Aarch64CpusState {
            mpidrs: plan.vcpus.iter().map(|vcpu| vcpu.mpidr).collect(),
            counter_hz: counter,
            sve: first.sve,
            pointer_authentication: first.pointer_authentication,
            identity,
            pmu: first.pmu.then_some(true),
        })
    }

    fn identity(saved: &Record) -> Result<Option<VcpuIdentity>, SnapshotError> {
        saved.open::<Aarch64CpusState>().map(|saved| saved.identity).map_err(refused(CPUS))
    }

    fn fixed(vcpu: &VcpuState) -> Option<VcpuIdentity> {
        Some(vcpu.identity())
    }

    fn adopt(
        plan: &mut Plan<Self>,
        host: &Capabilities<Self>,
        saved: &Record,
        first: Option<&VcpuState>,
    ) -> Result<(), SnapshotError> {
        let saved: Aarch64CpusState = saved.open().map_err(refused(CPUS))?;
        let refuse = |reason: String| Err(SnapshotError::Cpu { reason });
        let hz = saved.counter_hz.or(first.map(|first| first.counter_hz));
        if let (Some(hz), here) = (hz, host.arch.counter_hz)
            && hz != here
        {
            return refuse(format!("the counter's frequency was {hz} Hz, and is {here} Hz here"));
        }
        if !plan.vcpus.iter().map(|vcpu| vcpu.mpidr).eq(saved.mpidrs.iter().copied()) {
            return refuse("its CPUs have other affinities than those of its config".to_owned());
        }
        let features = Features {
            sve: saved.sve,
            pointer_authentication: saved.pointer_authentication,
            pmu: saved.pmu.unwrap_or_default(),
        };
        for vcpu in &mut plan.vcpus {
            vcpu.features.pmu = features.pmu;
        }
        match host.arch.lacks(features) {
            Some(name) => refuse(format!("the guest was shown {name}, which it does not have")),
            None => Ok(()),
        }
    }

    fn save_interrupts(board: &Board) -> Result<Option<Record>, SnapshotError> {
        Ok(Some(Record::of(&board.gic.save()?)))
    }

    fn restore_interrupts(board: &Board, saved: Option<&Record>) -> Result<(), SnapshotError> {
        let missing = || SnapshotError::Missing { name: INTERRUPTS.to_owned() };
        let state: GicState = saved.ok_or_else(missing)?.open().map_err(refused(INTERRUPTS))?;
        Ok(board.gic.restore(&state)?)
    }

    fn move_counter(vcpu: &mut VcpuState, nanos: u64) {
        vcpu.counter = vcpu.counter.wrapping_add(ticks(vcpu.counter_hz, nanos));
    }

    fn move_clock(value: u64, vcpu: &VcpuState, nanos: u64) -> u64 {
        value.wrapping_add(ticks(vcpu.counter_hz, nanos))
    }
}

fn ticks(hz: u32, nanos: u64) -> u64 {
    (u128::from(nanos) * u128::from(hz) / 1_000_000_000) as u64
}
