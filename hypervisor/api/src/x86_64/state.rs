//! The architectural state of an x86_64 vCPU.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "state_test.rs"]
pub(crate) mod test;

/// General registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
#[allow(missing_docs)] // The names are the registers'.
pub struct GeneralRegisters {
    /// Any value.
    #[n(0)]
    pub rax: u64,
    /// Any value.
    #[n(1)]
    pub rbx: u64,
    /// Any value.
    #[n(2)]
    pub rcx: u64,
    /// Any value.
    #[n(3)]
    pub rdx: u64,
    /// Any value.
    #[n(4)]
    pub rsi: u64,
    /// Any value.
    #[n(5)]
    pub rdi: u64,
    /// Any value.
    #[n(6)]
    pub rsp: u64,
    /// Any value.
    #[n(7)]
    pub rbp: u64,
    /// Any value.
    #[n(8)]
    pub r8: u64,
    /// Any value.
    #[n(9)]
    pub r9: u64,
    /// Any value.
    #[n(10)]
    pub r10: u64,
    /// Any value.
    #[n(11)]
    pub r11: u64,
    /// Any value.
    #[n(12)]
    pub r12: u64,
    /// Any value.
    #[n(13)]
    pub r13: u64,
    /// Any value.
    #[n(14)]
    pub r14: u64,
    /// Any value.
    #[n(15)]
    pub r15: u64,
    /// Any value.
    #[n(16)]
    pub rip: u64,
    #[n(17)]
    pub rflags: u64,
}

/// A segment register with its hidden part (SDM 3A section 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Segment {
    /// The visible part. Any value.
    #[n(0)]
    pub selector: u16,
    /// The base. Any value.
    #[n(1)]
    pub base: u64,
    /// The limit in bytes, with the granularity applied. Any value.
    #[n(2)]
    pub limit: u32,
    /// Access rights as in the second doubleword of a descriptor, from bit 8 on: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
    /// Any value.
    #[n(3)]
    pub attributes: u16,
    /// The segment can't be used (a null selector was loaded).
    #[n(4)]
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct DescriptorTable {
    /// The base. Any value.
    #[n(0)]
    pub base: u64,
    /// The limit. Any value.
    #[n(1)]
    pub limit: u16,
}

/// Segments, tables, control registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
#[allow(missing_docs)] // The names are the registers'.
pub struct SystemRegisters {
    #[n(0)]
    pub cs: Segment,
    #[n(1)]
    pub ds: Segment,
    #[n(2)]
    pub es: Segment,
    #[n(3)]
    pub fs: Segment,
    #[n(4)]
    pub gs: Segment,
    #[n(5)]
    pub ss: Segment,
    #[n(6)]
    pub tr: Segment,
    #[n(7)]
    pub ldt: Segment,
    #[n(8)]
    pub gdt: DescriptorTable,
    #[n(9)]
    pub idt: DescriptorTable,
    #[n(10)]
    pub cr0: u64,
    /// Any value.
    #[n(11)]
    pub cr2: u64,
    /// Any value.
    #[n(12)]
    pub cr3: u64,
    #[n(13)]
    pub cr4: u64,
    #[n(14)]
    pub cr8: u64,
    #[n(15)]
    pub efer: u64,
}

/// What the CPU is about to deliver (SDM 3A chapter 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Events {
    /// An exception that has been raised and not yet delivered.
    #[n(0)]
    pub exception: Option<u8>,
    /// Its error code, where it has one. Any value.
    #[n(1)]
    pub error_code: Option<u32>,
    /// Its payload (CR2, or DR6 bits), not yet in the register. Any value.
    #[n(2)]
    pub payload: Option<u64>,
    /// The exception has been taken back into the queue while it was being delivered.
    #[n(3)]
    pub exception_injected: bool,
    /// An interrupt's vector that is being delivered. Any value.
    #[n(4)]
    pub interrupt: Option<u8>,
    /// It is a software interrupt.
    #[n(5)]
    pub soft_interrupt: bool,
    /// NMIs that wait.
    #[n(6)]
    pub nmi_pending: u8,
    /// An NMI is being delivered.
    #[n(7)]
    pub nmi_injected: bool,
    /// NMIs are blocked until IRET.
    #[n(8)]
    pub nmi_masked: bool,
    /// The next instruction is in the shadow of STI.
    #[n(9)]
    pub sti_shadow: bool,
    /// The next instruction is in the shadow of MOV SS or POP SS.
    #[n(10)]
    pub mov_ss_shadow: bool,
    /// The vector of a SIPI that waits. Any value.
    #[n(11)]
    pub sipi_vector: Option<u8>,
    /// A triple fault waits to be reported.
    #[n(12)]
    pub triple_fault: bool,
}

/// Whether the CPU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum MpState {
    /// It runs.
    #[default]
    #[n(0)]
    Running,
    /// It waits for an INIT.
    #[n(1)]
    Uninitialized,
    /// It has had its INIT and waits for a SIPI.
    #[n(2)]
    InitReceived,
    /// It waits for an interrupt.
    #[n(3)]
    Halted,
    /// It has had its SIPI and is about to run.
    #[n(4)]
    SipiReceived,
}

/// A state component of XSAVE (SDM 1 section 13.1), in its standard form.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct XsaveComponent {
    /// Its bit in XCR0.
    #[n(0)]
    pub number: u8,
    /// Its content, as CPUID leaf 0xd gives its size. Those of the legacy region are its bytes 0 to 23 and 32 to 159 (0, x87), and 24 to 27 and
    /// 160 to 415 (1, SSE: MXCSR, then XMM0 to XMM15).
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub data: Vec<u8>,
}

/// A local APIC's registers (SDM 3A section 10.4.1): those at offsets 0x000, 0x010, ... 0x3f0, one each.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LocalApic {
    /// 64 registers of 32 bits, by offset / 16. ICR's high half is at 0x310 in either mode; the id at 0x020 is the x2APIC id in x2APIC mode.
    #[n(0)]
    pub registers: Vec<u32>,
    /// IA32_APIC_BASE (SDM 4).
    #[n(1)]
    pub base: u64,
    /// IA32_TSC_DEADLINE (SDM 3A section 10.5.4.1). Any value.
    #[n(2)]
    pub tsc_deadline: u64,
}

/// The whole architectural state of an x86_64 vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VcpuState {
    /// General registers, RIP and RFLAGS.
    #[n(0)]
    pub general: GeneralRegisters,
    /// Segments, tables, control registers.
    #[n(1)]
    pub system: SystemRegisters,
    /// DR0 to DR3, DR6, DR7. Any value.
    #[n(2)]
    pub debug: [u64; 6],
    /// XCR0.
    #[n(3)]
    pub xcr0: u64,
    /// The components that are not in their initial state.
    #[n(4)]
    pub xsave: Vec<XsaveComponent>,
    /// MSRs, by number. The APIC base, the TSC, EFER and the TSC deadline have fields of their own.
    #[n(5)]
    pub msrs: Vec<(u32, u64)>,
    /// The time stamp counter at the moment of saving. Any value.
    #[n(6)]
    pub tsc: u64,
    /// The counter's frequency in kHz, where it is known.
    #[n(7)]
    pub tsc_khz: Option<u32>,
    /// The local APIC.
    #[n(8)]
    pub apic: LocalApic,
    /// What is about to be delivered.
    #[n(9)]
    pub events: Events,
    /// Whether the CPU runs.
    #[n(10)]
    pub mp: MpState,
}

impl State for VcpuState {
    const ID: &'static str = "x86_64-vcpu";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.general.rflags & 2 != 0, id, "rflags", self.general.rflags, "bit 1 is always set")?;
        ensure(self.system.cr8 <= 15, id, "cr8", self.system.cr8, "a task priority has 4 bits")?;
        let (cr0, long) = (self.system.cr0, self.system.efer & 1 << 10 != 0);
        ensure(cr0 >> 32 == 0, id, "cr0", cr0, "its upper half is reserved")?;
        ensure(self.system.cr4 >> 32 == 0, id, "cr4", self.system.cr4, "its upper half is reserved")?;
        ensure(cr0 & 1 << 31 == 0 || cr0 & 1 != 0, id, "cr0", cr0, "paging needs protection")?;
        ensure(!long || cr0 & 1 << 31 != 0, id, "efer", self.system.efer, "long mode needs paging")?;
        ensure(self.xcr0 & 1 == 1, id, "xcr0", self.xcr0, "x87 state is always enabled")?;
        let mut last = None;
        for component in &self.xsave {
            let number = component.number;
            ensure(number < 63, id, "xsave.number", number, "XCR0 has 63 components")?;
            ensure(last < Some(number), id, "xsave.number", number, "components ascend")?;
            ensure(
                component.data.len() <= 1 << 16,
                id,
                "xsave.data",
                component.data.len(),
                "no component is that large",
            )?;
            last = Some(number);
        }
        let count = self.msrs.len();
        ensure(count <= 4096, id, "msrs", count, "no CPU has that many that are saved")?;
        let khz = self.tsc_khz;
        ensure(khz.is_none_or(|khz| khz > 0), id, "tsc_khz", khz, "the counter runs")?;
        ensure(self.apic.registers.len() == 64, id, "apic.registers", self.apic.registers.len(), "there are 64")?;
        let base = self.apic.base;
        ensure(base & 0x2ff == 0, id, "apic.base", base, "bits 9 and 7:0 are reserved")?;
        ensure(base & 3 << 10 != 1 << 10, id, "apic.base", base, "an x2APIC is enabled")?;
        let events = &self.events;
        ensure(events.exception.is_none_or(|v| v < 32), id, "events.exception", events.exception, "vectors end at 31")?;
        ensure(events.nmi_pending <= 2, id, "events.nmi_pending", events.nmi_pending, "two can wait")
    }
}
