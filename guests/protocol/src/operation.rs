//! The operations and how they are encoded.

use crate::{Op, RegisterSet, Width};

/// The numbers of the operations: [`Op::code`].
#[allow(missing_docs, reason = "each is the number of the operation of the same name")]
pub mod code {
    pub const END: u16 = 1;
    pub const READ_MEMORY: u16 = 2;
    pub const WRITE_MEMORY: u16 = 3;
    pub const ADD_MEMORY: u16 = 4;
    pub const TOUCH_PAGES: u16 = 5;
    pub const SPIN_UNTIL: u16 = 6;
    pub const REPEAT: u16 = 7;
    pub const READ_PORT: u16 = 8;
    pub const WRITE_PORT: u16 = 9;
    pub const READ_PORT_STRING: u16 = 10;
    pub const WRITE_PORT_STRING: u16 = 11;
    pub const READ_MSR: u16 = 12;
    pub const WRITE_MSR: u16 = 13;
    pub const READ_CPUID: u16 = 14;
    pub const READ_SYSTEM_REGISTER: u16 = 15;
    pub const WRITE_SYSTEM_REGISTER: u16 = 16;
    pub const FIRMWARE_CALL: u16 = 17;
    pub const READ_COUNTER: u16 = 18;
    pub const INIT_LOCAL_APIC: u16 = 19;
    pub const INIT_X2APIC: u16 = 20;
    pub const INIT_GIC: u16 = 21;
    pub const ENABLE_INTID: u16 = 22;
    pub const DISABLE_INTID: u16 = 23;
    pub const INIT_ITS: u16 = 24;
    pub const MAP_MSI: u16 = 25;
    pub const ON_IRQ_WRITE: u16 = 26;
    pub const WAIT_IRQ: u16 = 27;
    pub const SET_INTERRUPTS: u16 = 28;
    pub const SEND_IPI: u16 = 29;
    pub const HALT: u16 = 30;
    pub const START_CPU: u16 = 31;
    pub const HOLD_REGISTERS: u16 = 32;
    pub const TRIPLE_FAULT: u16 = 33;
}

/// Which GIC an operation speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: a distributor and a CPU interface in memory.
    V2,
    /// GICv3: a distributor and redistributors in memory, the CPU interface in system registers.
    V3,
}

/// What makes an interrupt pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A rising edge.
    Edge,
    /// A high level.
    Level,
}

/// One thing for the guest to do. Addresses are guest-physical; the result is 0 where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The list ends: write this operation's index as 4 bytes to `doorbell`, then wait for ever with interrupts off.
    /// The status is written before the doorbell is.
    End {
        /// Where to write.
        doorbell: u64,
    },
    /// Read; the result is what was read.
    ReadMemory {
        /// Where from.
        address: u64,
        /// How wide.
        width: Width,
    },
    /// Write.
    WriteMemory {
        /// Where to.
        address: u64,
        /// What; its low bits for a narrow width.
        value: u64,
        /// How wide.
        width: Width,
    },
    /// Add to memory: one `ADD` instruction with a memory operand on x86_64, a load and a store on aarch64.
    AddMemory {
        /// Where.
        address: u64,
        /// What is added, wrapping.
        value: u64,
        /// How wide.
        width: Width,
    },
    /// Write 8 bytes at the beginning of each of some 4 KiB pages.
    TouchPages {
        /// The first page.
        address: u64,
        /// How many pages.
        pages: u64,
        /// What is written.
        value: u64,
    },
    /// Read again and again until memory holds a value. The result is the value.
    SpinUntil {
        /// Where.
        address: u64,
        /// The value waited for.
        value: u64,
        /// How wide.
        width: Width,
    },
    /// Go back and carry out the operations before this one again. The result counts how often that was done: it must begin as 0.
    Repeat {
        /// How many operations to go back; 0, or more than there are, is malformed.
        back: u64,
        /// How many more times.
        times: u64,
    },
    /// x86_64: `IN`; the result is what was read. 8 bytes wide is unsupported.
    ReadPort {
        /// The port.
        port: u16,
        /// How wide.
        width: Width,
    },
    /// x86_64: `OUT`. 8 bytes wide is unsupported.
    WritePort {
        /// The port.
        port: u16,
        /// What.
        value: u64,
        /// How wide.
        width: Width,
    },
    /// x86_64: `REP INS`. 8 bytes wide is unsupported.
    ReadPortString {
        /// The port.
        port: u16,
        /// Where in memory to store.
        address: u64,
        /// How many accesses.
        count: u64,
        /// How wide each is.
        width: Width,
    },
    /// x86_64: `REP OUTS`. 8 bytes wide is unsupported.
    WritePortString {
        /// The port.
        port: u16,
        /// Where in memory to load from.
        address: u64,
        /// How many accesses.
        count: u64,
        /// How wide each is.
        width: Width,
    },
    /// x86_64: `RDMSR`; the result is what was read.
    ReadMsr {
        /// The register.
        index: u32,
    },
    /// x86_64: `WRMSR`.
    WriteMsr {
        /// The register.
        index: u32,
        /// What.
        value: u64,
    },
    /// x86_64: `CPUID`, its four registers stored as 4 bytes each: `EAX`, `EBX`, `ECX`, `EDX`.
    ReadCpuid {
        /// `EAX` on entry.
        leaf: u32,
        /// `ECX` on entry.
        subleaf: u32,
        /// Where in memory to store.
        address: u64,
    },
    /// aarch64: `MRS`; the result is what was read.
    ReadSystemRegister {
        /// Which: see [`system_register`](crate::system_register).
        register: u16,
    },
    /// aarch64: `MSR`.
    WriteSystemRegister {
        /// Which: see [`system_register`](crate::system_register).
        register: u16,
        /// What.
        value: u64,
    },
    /// aarch64: `HVC #0` by the SMC calling convention with `X0` to `X7` from memory; `X0` to `X3` are stored there afterwards. The result is
    /// `X0`.
    FirmwareCall {
        /// Where the eight registers lie, 8 bytes each.
        address: u64,
    },
    /// The result is the time stamp counter, or `CNTVCT_EL0`.
    ReadCounter,
    /// x86_64: enable this CPU's local APIC by its registers in memory, and mask its local interrupts.
    InitLocalApic {
        /// Its base address.
        base: u64,
        /// Where the table of [`IrqSlot`](crate::IrqSlot)s lies: the same for all CPUs.
        table: u64,
    },
    /// x86_64: enable this CPU's local APIC in x2APIC mode, and mask its local interrupts. Unsupported where `CPUID` has no x2APIC.
    InitX2Apic {
        /// Where the table of [`IrqSlot`](crate::IrqSlot)s lies: the same for all CPUs.
        table: u64,
    },
    /// aarch64: enable the distributor (with all its interrupts disabled, if this is the first CPU to do so) and this CPU's interface, at the
    /// lowest priority mask.
    InitGic {
        /// Which GIC.
        gic: Gic,
        /// The distributor's base address.
        distributor: u64,
        /// The CPU interface's base address, or that of the region of redistributors in which this CPU's lies.
        interface: u64,
        /// Where the table of [`IrqSlot`](crate::IrqSlot)s lies: the same for all CPUs.
        table: u64,
    },
    /// aarch64: make INTID `irq` (below 1024) edge or level triggered, send it to this CPU, and enable it.
    EnableIntid {
        /// The INTID.
        irq: u64,
        /// Its trigger.
        trigger: Trigger,
    },
    /// aarch64: disable INTID `irq` (below 1024).
    DisableIntid {
        /// The INTID.
        irq: u64,
    },
    /// aarch64 with GICv3: enable LPIs on this CPU, and an ITS whose collection 0 is this CPU.
    InitIts {
        /// The ITS's base address.
        base: u64,
        /// [`ITS_TABLES_SIZE`](Self::ITS_TABLES_SIZE) bytes of RAM for its tables, aligned to 64 KiB, all zero.
        tables: u64,
    },
    /// aarch64 with GICv3: let an event of a device raise LPI `irq` on the CPU that did [`Operation::InitIts`].
    MapMsi {
        /// The requester's id, below 256.
        device: u32,
        /// The event, below 32: the MSI's data.
        event: u32,
        /// The INTID, from 8192 on.
        irq: u64,
    },
    /// From now on the handler of `irq` writes `value` as 4 bytes to `address` before it ends the interrupt. Address 0 ends that.
    OnIrqWrite {
        /// The vector or INTID.
        irq: u64,
        /// Where to write.
        address: u64,
        /// What to write.
        value: u64,
    },
    /// Wait with interrupts on until `irq` was counted at least `count` times, by `HLT` or `WFI`. Interrupts are afterwards as they were before.
    /// The result is the count.
    WaitIrq {
        /// The vector or INTID.
        irq: u64,
        /// How many.
        count: u64,
    },
    /// Turn interrupts on or off (`RFLAGS.IF`, `PSTATE.I`). A list begins with them off. The result is 1 if they were on before.
    SetInterrupts {
        /// On.
        on: bool,
    },
    /// Send an interrupt to a CPU: vector `irq` by the local APIC, or SGI `irq` by the GIC. The controller must have been initialised.
    SendIpi {
        /// APIC id, or the affinity fields of `MPIDR_EL1`.
        cpu: u64,
        /// The vector, or the SGI.
        irq: u64,
    },
    /// Execute `HLT` or `WFI` once with interrupts on. Interrupts are afterwards as they were before.
    Halt,
    /// Start another CPU, by INIT and SIPI through the local APIC of this one (which must have been initialised), or by PSCI `CPU_ON`; it begins
    /// on a list of its own. The result is PSCI's.
    StartCpu {
        /// APIC id, or the affinity fields of `MPIDR_EL1`.
        cpu: u64,
        /// Its list.
        list: u64,
        /// The upper end of its stack of at least [`STACK_SIZE`](crate::STACK_SIZE) bytes, aligned to 16.
        stack: u64,
    },
    /// Fill registers with values made from `pattern`, write 4 bytes to `doorbell`, spin until the 8 bytes at `area` are not zero, and compare. The
    /// result has a bit for each register that has changed, as [`RegisterSet`] says. Interrupts are off meanwhile.
    HoldRegisters {
        /// Which registers.
        set: RegisterSet,
        /// What [`held_value`](crate::held_value) makes the values of.
        pattern: u64,
        /// Where to write 4 bytes once the registers are filled: the low ones of `doorbell` itself.
        doorbell: u64,
        /// The word that releases the CPU, and behind it the guest's work area: [`HOLD_AREA_SIZE`](crate::HOLD_AREA_SIZE) bytes.
        area: u64,
    },
    /// x86_64: a triple fault.
    TripleFault,
}

/// An [`Op`] that no [`Operation`] is encoded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedOp {
    /// The operation's number.
    pub code: u16,
    /// Its form.
    pub variant: u16,
}

impl core::fmt::Display for MalformedOp {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the probe's operation {} of form {} with these arguments does not exist", self.code, self.variant)
    }
}

impl core::error::Error for MalformedOp {}

const GIC_V2: u16 = 2;
const GIC_V3: u16 = 3;
const EDGE: u16 = 0;
const LEVEL: u16 = 1;

impl Operation {
    /// The size of the RAM that [`Operation::InitIts`] uses, in bytes.
    pub const ITS_TABLES_SIZE: u64 = 0x10_0000;

    /// The operation as it is written to guest memory, not carried out yet.
    pub const fn encode(self) -> Op {
        use Operation::*;
        let (code, variant, [a, b, c]) = match self {
            End { doorbell } => (code::END, 0, [doorbell, 0, 0]),
            ReadMemory { address, width } => (code::READ_MEMORY, width.bytes(), [address, 0, 0]),
            WriteMemory { address, value, width } => (code::WRITE_MEMORY, width.bytes(), [address, value, 0]),
            AddMemory { address, value, width } => (code::ADD_MEMORY, width.bytes(), [address, value, 0]),
            TouchPages { address, pages, value } => (code::TOUCH_PAGES, 0, [address, pages, value]),
            SpinUntil { address, value, width } => (code::SPIN_UNTIL, width.bytes(), [address, value, 0]),
            Repeat { back, times } => (code::REPEAT, 0, [back, times, 0]),
            ReadPort { port, width } => (code::READ_PORT, width.bytes(), [port as u64, 0, 0]),
            WritePort { port, value, width } => (code::WRITE_PORT, width.bytes(), [port as u64, value, 0]),
            ReadPortString { port, address, count, width } => {
                (code::READ_PORT_STRING, width.bytes(), [port as u64, address, count])
            }
            WritePortString { port, address, count, width } => {
                (code::WRITE_PORT_STRING, width.bytes(), [port as u64, address, count])
            }
            ReadMsr { index } => (code::READ_MSR, 0, [index as u64, 0, 0]),
            WriteMsr { index, value } => (code::WRITE_MSR, 0, [index as u64, value, 0]),
            ReadCpuid { leaf, subleaf, address } => (code::READ_CPUID, 0, [leaf as u64, subleaf as u64, address]),
            ReadSystemRegister { register } => (code::READ_SYSTEM_REGISTER, 0, [register as u64, 0, 0]),
            WriteSystemRegister { register, value } => (code::WRITE_SYSTEM_REGISTER, 0, [register as u64, value, 0]),
            FirmwareCall { address } => (code::FIRMWARE_CALL, 0, [address, 0, 0]),
            ReadCounter => (code::READ_COUNTER, 0, [0; 3]),
            InitLocalApic { base, table } => (code::INIT_LOCAL_APIC, 0, [base, table, 0]),
            InitX2Apic { table } => (code::INIT_X2APIC, 0, [table, 0, 0]),
            InitGic { gic: Gic::V2, distributor, interface, table } => {
                (code::INIT_GIC, GIC_V2, [distributor, interface, table])
            }
            InitGic { gic: Gic::V3, distributor, interface, table } => {
                (code::INIT_GIC, GIC_V3, [distributor, interface, table])
            }
            EnableIntid { irq, trigger: Trigger::Edge } => (code::ENABLE_INTID, EDGE, [irq, 0, 0]),
            EnableIntid { irq, trigger: Trigger::Level } => (code::ENABLE_INTID, LEVEL, [irq, 0, 0]),
            DisableIntid { irq } => (code::DISABLE_INTID, 0, [irq, 0, 0]),
            InitIts { base, tables } => (code::INIT_ITS, 0, [base, tables, 0]),
            MapMsi { device, event, irq } => (code::MAP_MSI, 0, [device as u64, event as u64, irq]),
            OnIrqWrite { irq, address, value } => (code::ON_IRQ_WRITE, 0, [irq, address, value]),
            WaitIrq { irq, count } => (code::WAIT_IRQ, 0, [irq, count, 0]),
            SetInterrupts { on } => (code::SET_INTERRUPTS, 0, [on as u64, 0, 0]),
            SendIpi { cpu, irq } => (code::SEND_IPI, 0, [cpu, irq, 0]),
            Halt => (code::HALT, 0, [0; 3]),
            StartCpu { cpu, list, stack } => (code::START_CPU, 0, [cpu, list, stack]),
            HoldRegisters { set, pattern, doorbell, area } => {
                (code::HOLD_REGISTERS, set.number(), [pattern, doorbell, area])
            }
            TripleFault => (code::TRIPLE_FAULT, 0, [0; 3]),
        };
        Op { code, variant, status: 0, a, b, c, result: 0 }
    }

    /// The operation that `op` encodes, whatever its status.
    ///
    /// # Errors
    ///
    /// [`MalformedOp`] where no operation has the number, the form, or an argument so large.
    pub fn decode(op: &Op) -> Result<Self, MalformedOp> {
        let malformed = MalformedOp { code: op.code, variant: op.variant };
        let Op { a, b, c, .. } = *op;
        let width = || Width::from_bytes(op.variant).ok_or(malformed);
        let port = || u16::try_from(a).map_err(|_| malformed);
        let short = |value: u64| u32::try_from(value).map_err(|_| malformed);
        let register = || u16::try_from(a).map_err(|_| malformed);
        Ok(match op.code {
            code::END => Self::End { doorbell: a },
            code::READ_MEMORY => Self::ReadMemory { address: a, width: width()? },
            code::WRITE_MEMORY => Self::WriteMemory { address: a, value: b, width: width()? },
            code::ADD_MEMORY => Self::AddMemory { address: a, value: b, width: width()? },
            code::TOUCH_PAGES => Self::TouchPages { address: a, pages: b, value: c },
            code::SPIN_UNTIL => Self::SpinUntil { address: a, value: b, width: width()? },
            code::REPEAT => Self::Repeat { back: a, times: b },
            code::READ_PORT => Self::ReadPort { port: port()?, width: width()? },
            code::WRITE_PORT => Self::WritePort { port: port()?, value: b, width: width()? },
            code::READ_PORT_STRING => Self::ReadPortString { port: port()?, address: b, count: c, width: width()? },
            code::WRITE_PORT_STRING => Self::WritePortString { port: port()?, address: b, count: c, width: width()? },
            code::READ_MSR => Self::ReadMsr { index: short(a)? },
            code::WRITE_MSR => Self::WriteMsr { index: short(a)?, value: b },
            code::READ_CPUID => Self::ReadCpuid { leaf: short(a)?, subleaf: short(b)?, address: c },
            code::READ_SYSTEM_REGISTER => Self::ReadSystemRegister { register: register()? },
            code::WRITE_SYSTEM_REGISTER => Self::WriteSystemRegister { register: register()?, value: b },
            code::FIRMWARE_CALL => Self::FirmwareCall { address: a },
            code::READ_COUNTER => Self::ReadCounter,
            code::INIT_LOCAL_APIC => Self::InitLocalApic { base: a, table: b },
            code::INIT_X2APIC => Self::InitX2Apic { table: a },
            code::INIT_GIC => {
                let gic = match op.variant {
                    GIC_V2 => Gic::V2,
                    GIC_V3 => Gic::V3,
                    _ => return Err(malformed),
                };
                Self::InitGic { gic, distributor: a, interface: b, table: c }
            }
            code::ENABLE_INTID => {
                let trigger = match op.variant {
                    EDGE => Trigger::Edge,
                    LEVEL => Trigger::Level,
                    _ => return Err(malformed),
                };
                Self::EnableIntid { irq: a, trigger }
            }
            code::DISABLE_INTID => Self::DisableIntid { irq: a },
            code::INIT_ITS => Self::InitIts { base: a, tables: b },
            code::MAP_MSI => Self::MapMsi { device: short(a)?, event: short(b)?, irq: c },
            code::ON_IRQ_WRITE => Self::OnIrqWrite { irq: a, address: b, value: c },
            code::WAIT_IRQ => Self::WaitIrq { irq: a, count: b },
            code::SET_INTERRUPTS => Self::SetInterrupts { on: a != 0 },
            code::SEND_IPI => Self::SendIpi { cpu: a, irq: b },
            code::HALT => Self::Halt,
            code::START_CPU => Self::StartCpu { cpu: a, list: b, stack: c },
            code::HOLD_REGISTERS => {
                let set = RegisterSet::from_number(op.variant).ok_or(malformed)?;
                Self::HoldRegisters { set, pattern: a, doorbell: b, area: c }
            }
            code::TRIPLE_FAULT => Self::TripleFault,
            _ => return Err(malformed),
        })
    }
}

impl From<Operation> for Op {
    fn from(operation: Operation) -> Self {
        operation.encode()
    }
}

impl TryFrom<Op> for Operation {
    type Error = MalformedOp;

    fn try_from(op: Op) -> Result<Self, MalformedOp> {
        Self::decode(&op)
    }
}
