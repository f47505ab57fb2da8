//! x86_64: what a backend offers and what a vCPU is.
//!
//! Follows the Intel 64 and IA-32 Architectures Software Developer's Manual (SDM) and AMD's Architecture Programmer's Manual (APM). Local APICs
//! are the backend's; PIC, PIT and IOAPIC are portable devices of skep's own.

mod cpuid;
pub(crate) mod state;

use std::sync::Arc;

use skep_irq::ApicBus;

pub use cpuid::{Cpuid, CpuidEntry};
pub use state::{
    DescriptorTable, Events, GeneralRegisters, LocalApic, MpState, Segment, SystemRegisters, VcpuState, XsaveComponent,
};

use crate::{Arch, ArchKind, MemoryIo};

/// The 64-bit x86 architecture.
#[derive(Debug, Clone, Copy)]
pub struct X86_64;

impl Arch for X86_64 {
    const KIND: ArchKind = ArchKind::X86_64;
    type Capabilities = Capabilities;
    type VmConfig = VmConfig;
    type VcpuConfig = VcpuConfig;
    type BootState = BootState;
    type VcpuState = VcpuState;
    type VcpuIdentity = ();
    type Io = dyn Io;
    type Interrupts = Interrupts;
}

/// What a backend can do for x86_64 guests.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// What the guest may be shown of the host's CPU, with the hypervisor leaves that the backend itself implements.
    pub cpuid: Cpuid,
    /// What it may be shown in IA32_ARCH_CAPABILITIES (SDM volume 4 table 2-2), 0 where there is none.
    pub arch_capabilities: u64,
    /// The highest APIC id there may be, plus one. Beyond 255 they are x2APIC ids.
    pub apic_ids: u32,
    /// MSIs can name APIC ids beyond 255 (bits 11:5 of the address hold bits 14:8 of the destination).
    pub extended_msi_destinations: bool,
    /// The guest's TSC frequency in kHz, where it is known.
    pub tsc_khz: Option<u32>,
    /// The TSC frequency can be set to another value than the host's.
    pub tsc_scaling: bool,
}

impl Capabilities {
    /// Whether a guest that was told of a TSC of `khz` can go on here, as far as this host's frequency is known.
    #[must_use]
    pub fn can_run_tsc(&self, khz: u32) -> bool {
        self.tsc_scaling || self.tsc_khz.is_none_or(|here| is_same_frequency(khz, here))
    }
}

/// Parts per million by which two frequencies may differ to be the same: what KVM takes for the same, and crystals differ by more than hosts
/// of one model.
const TOLERANCE_PPM: u64 = 250;

/// Whether a guest that was told `saved` kHz can go on at `here` kHz.
#[must_use]
pub fn is_same_frequency(saved: u32, here: u32) -> bool {
    u64::from(saved.abs_diff(here)) * 1_000_000 <= u64::from(saved) * TOLERANCE_PPM
}

/// What an x86_64 VM is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// How many IOAPIC pins the backend must report ends of interrupt for.
    pub ioapic_pins: u32,
}

/// What an x86_64 vCPU is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuConfig {
    /// Its (x2)APIC id.
    pub apic_id: u32,
    /// What CPUID shows on it, complete.
    pub cpuid: Cpuid,
    /// What it reads in IA32_ARCH_CAPABILITIES where its CPUID shows that there is one. `None`: what the backend shows by itself.
    pub arch_capabilities: Option<u64>,
}

/// What a boot protocol sets: everything else is as at power-on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootState {
    /// General registers, RIP and RFLAGS.
    pub general: GeneralRegisters,
    /// Segments, control registers, EFER. The APIC base is left as it is.
    pub system: SystemRegisters,
}

/// Why an MSR access is refused: the guest takes a general protection fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrFault;

/// What an x86_64 vCPU calls back into.
pub trait Io: MemoryIo {
    /// IN: `data` has 1, 2 or 4 bytes.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// OUT: `data` has 1, 2 or 4 bytes.
    fn port_write(&mut self, port: u16, data: &[u8]);

    /// RDMSR of an MSR that the backend does not implement.
    ///
    /// # Errors
    /// [`MsrFault`] makes a #GP.
    fn msr_read(&mut self, _msr: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }

    /// WRMSR of an MSR that the backend does not implement.
    ///
    /// # Errors
    /// [`MsrFault`] makes a #GP.
    fn msr_write(&mut self, _msr: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }

    /// A local APIC broadcasts the end of a level-triggered interrupt.
    fn end_of_interrupt(&mut self, vector: u8);

    /// Whether the PIC's INTR output is high at this vCPU (only ever at the first).
    fn external_interrupt(&self) -> bool;

    /// INTA: the vCPU takes the external interrupt and asks for its vector. `None` where INTR has gone meanwhile.
    fn acknowledge_interrupt(&mut self) -> Option<u8>;
}

/// The interrupt controllers that are the backend's own.
pub struct Interrupts {
    /// The local APICs.
    pub apics: Arc<dyn ApicBus>,
}
