//! What is x86_64's own of a saved machine.

use std::io;

use minicbor::{Decode, Encode};
use skep_hypervisor::x86_64::{Cpuid, CpuidEntry, VcpuConfig, VcpuState};
use skep_hypervisor::{Capabilities, X86_64};
use skep_state::{Record, State, StateError, ensure};

use super::Saved;
use super::features::{self, List, capabilities};
use crate::Error;
use crate::machine::Plan;
use crate::machine::q35::Board;
use crate::state::SnapshotError;
use crate::state::records::{CPUS, INTERRUPTS, refused};

/// One leaf of CPUID, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct CpuidLeaf {
    /// EAX on the way in. Any value.
    #[n(0)]
    pub leaf: u32,
    /// ECX on the way in, of a leaf that has subleaves. Any value.
    #[n(1)]
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX and EDX on the way out. Any value.
    #[n(2)]
    pub registers: [u32; 4],
}

/// One CPU: what it has beyond the first one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct X86CpuState {
    /// Its (x2)APIC id. Any value.
    #[n(0)]
    pub apic_id: u32,
    /// The leaves that are not as the first CPU's.
    #[n(1)]
    pub own: Vec<CpuidLeaf>,
}

/// What the guest was shown of its CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct X86CpusState {
    /// CPUID of the first CPU.
    #[n(0)]
    pub first: Vec<CpuidLeaf>,
    /// The CPUs.
    #[n(1)]
    pub cpus: Vec<X86CpuState>,
    /// The TSC's frequency in kHz, where a machine is told of before its vCPUs' states, which hold it.
    #[n(2)]
    pub tsc_khz: Option<u32>,
    /// What they read in IA32_ARCH_CAPABILITIES (SDM volume 4 table 2-2), where CPUID shows that there is one. Any value.
    #[n(3)]
    pub arch_capabilities: Option<u64>,
}

impl State for X86CpusState {
    const ID: &'static str = "x86_64-cpus";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let (count, leaves) = (self.cpus.len(), self.first.len());
        ensure((1..=4096).contains(&count), Self::ID, "cpus", count, "a machine has 1 to 4096 CPUs")?;
        ensure(leaves <= 256, Self::ID, "first", leaves, "CPUID has no more leaves")?;
        let most = self.cpus.iter().map(|cpu| cpu.own.len()).max().unwrap_or(0);
        ensure(most <= leaves, Self::ID, "cpus.own", most, "each CPU has the leaves of the first")?;
        ensure(self.tsc_khz.is_none_or(|khz| khz > 0), Self::ID, "tsc_khz", self.tsc_khz, "the counter runs")
    }
}

fn leaf(entry: &CpuidEntry) -> CpuidLeaf {
    let subleaf = entry.indexed.then_some(entry.subleaf);
    CpuidLeaf { leaf: entry.leaf, subleaf, registers: [entry.eax, entry.ebx, entry.ecx, entry.edx] }
}

fn entry(leaf: &CpuidLeaf) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = leaf.registers;
    let (subleaf, indexed) = (leaf.subleaf.unwrap_or(0), leaf.subleaf.is_some());
    CpuidEntry { leaf: leaf.leaf, subleaf, indexed, eax, ebx, ecx, edx }
}

/// The features that a level or a file names.
pub(in crate::machine) fn feature_list(cpu: &str) -> Result<List, Error> {
    if let Some(level) = List::level(cpu) {
        return Ok(level);
    }
    let role = "`--cpu` names no level, and the list of CPU features";
    let failed = |source| Error::File { role, path: cpu.into(), source };
    let text = std::fs::read_to_string(cpu).map_err(failed)?;
    List::parse(&text).map_err(|reason| failed(io::Error::new(io::ErrorKind::InvalidData, reason)))
}

impl Saved for X86_64 {
    fn common_features(plan: &Plan<Self>, lists: &[String], backend: &'static str) -> Result<String, Error> {
        let here = plan.vcpus.first().map(List::of).unwrap_or_default();
        let mend = "one vendor's alone have a CPU in common".to_owned();
        let differs = |what| Error::Lacking { what, backend, mend };
        let common = lists.iter().try_fold(Ok(here), |common: Result<List, String>, list| {
            let list = feature_list(list)?;
            Ok::<_, Error>(common.and_then(|common| common.common(&list)))
        });
        common?.map(|common| common.text()).map_err(differs)
    }

    fn cpus(plan: &Plan<Self>, counter: Option<u32>, _identity: Option<()>) -> Record {
        let leaves = |vcpu: &VcpuConfig| vcpu.cpuid.0.iter().map(leaf).collect::<Vec<_>>();
        let first = plan.vcpus.first().map(leaves).unwrap_or_default();
        let cpu = |vcpu: &VcpuConfig| X86CpuState {
            apic_id: vcpu.apic_id,
            own: leaves(vcpu).into_iter().filter(|leaf| !first.contains(leaf)).collect(),
        };
        let cpus = plan.vcpus.iter().map(cpu).collect();
        let arch_capabilities = plan.vcpus.first().and_then(|vcpu| vcpu.arch_capabilities);
        Record::of(&X86CpusState { first, cpus, tsc_khz: counter, arch_capabilities })
    }

    fn adopt(
        plan: &mut Plan<Self>,
        host: &Capabilities<Self>,
        saved: &Record,
        first: Option<&VcpuState>,
    ) -> Result<(), SnapshotError> {
        let saved: X86CpusState = saved.open().map_err(refused(CPUS))?;
        let refuse = |reason: String| Err(SnapshotError::Cpu { reason });
        let khz = saved.tsc_khz.or(first.and_then(|first| first.tsc_khz));
        plan.counter = khz.or(plan.counter);
        if let (Some(khz), Some(here)) = (khz, host.arch.tsc_khz)
            && !host.arch.can_run_tsc(khz)
        {
            return refuse(format!("the TSC's frequency was {khz} kHz, and is {here} kHz here, which can't scale it"));
        }
        let first = Cpuid(saved.first.iter().map(entry).collect());
        if !plan.vcpus.iter().map(|vcpu| vcpu.apic_id).eq(saved.cpus.iter().map(|cpu| cpu.apic_id)) {
            return refuse("its CPUs have other APIC ids than those of its config".to_owned());
        }
        let Some(here) = plan.vcpus.first() else { return Ok(()) };
        features::compare(&first, &here.cpuid).or_else(refuse)?;
        let shown = saved.arch_capabilities;
        shown.map_or(Ok(()), |shown| capabilities::compare(shown, host.arch.arch_capabilities)).or_else(refuse)?;
        // The windows for PCI's BARs end where the guest's addresses do.
        if let Some(bits) = features::address_bits(&first) {
            plan.layout = plan.layout.within(bits).map_err(|error| SnapshotError::Cpu { reason: error.to_string() })?;
            plan.ram = plan.layout.ram.clone();
        }
        for (vcpu, cpu) in plan.vcpus.iter_mut().zip(&saved.cpus) {
            let mut cpuid = first.clone();
            cpu.own.iter().for_each(|leaf| cpuid.set(entry(leaf)));
            // Features are compared for the first; the others have no more.
            features::compare(&cpuid, &first).or_else(refuse)?;
            (vcpu.cpuid, vcpu.arch_capabilities) = (cpuid, shown);
        }
        Ok(())
    }

    fn save_interrupts(_board: &Board) -> Result<Option<Record>, SnapshotError> {
        // The local APICs are the vCPUs', and the others are components.
        Ok(None)
    }

    fn restore_interrupts(_board: &Board, saved: Option<&Record>) -> Result<(), SnapshotError> {
        let unknown = |record: &Record| SnapshotError::Unknown { name: INTERRUPTS.to_owned(), id: record.id.clone() };
        saved.map_or(Ok(()), |record| Err(unknown(record)))
    }

    fn move_counter(vcpu: &mut VcpuState, nanos: u64) {
        let ticks = u128::from(nanos) * u128::from(vcpu.tsc_khz.unwrap_or(0)) / 1_000_000;
        vcpu.tsc = vcpu.tsc.wrapping_add(ticks as u64);
    }

    fn move_clock(value: u64, _vcpu: &VcpuState, nanos: u64) -> u64 {
        value.wrapping_add(nanos)
    }
}
