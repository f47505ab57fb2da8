//! The fake's x86_64: local APICs, ports, MSRs, CPUID.

use std::sync::{Arc, Mutex};

use skep_guest_protocol::{Operation, Width};
use skep_irq::{ApicBus, IrqError, MsiMessage, MsiRoutes, MsiTarget, RequesterId};

use super::lock;
use super::machine::{Machine, Model, Registers};
use super::vcpu::{FakeVcpu, Outcome};
use crate::x86_64::{
    BootState, Capabilities, Cpuid, CpuidEntry, DescriptorTable, GeneralRegisters, Interrupts, LocalApic, MpState,
    Segment, SystemRegisters, VcpuConfig, VcpuState, VmConfig, XsaveComponent,
};
use crate::{Arch, Capabilities as AnyCapabilities, DoorbellSpace, Exit, HypervisorError, Powers, X86_64};

type AnyIo = <X86_64 as Arch>::Io;

/// Interrupt enable in RFLAGS.
const IF: u64 = 1 << 9;
/// Local APIC registers by offset / 16 (SDM 3A table 12-1).
const ID: usize = 0x02;
const VERSION: usize = 0x03;
const PRIORITY: usize = 0x08;
const SPURIOUS: usize = 0x0f;
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;
const LVT: [usize; 7] = [0x2f, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37];
const LINT0: usize = 0x35;
/// Of x2APIC mode only.
const SELF_IPI: usize = 0x3f;
const MASKED: u32 = 1 << 16;
const EXTERNAL: u32 = 7 << 8;
/// Bits of IA32_APIC_BASE.
const X2APIC: u64 = 1 << 10;
const FIRST: u64 = 1 << 8;
const BASE: u64 = 0xfee0_0000;
/// XSAVE component 1 in its initial state: MXCSR, then XMM0 to XMM15.
const SSE: [u8; 260] = {
    let mut bytes = [0; 260];
    (bytes[0], bytes[1]) = (0x80, 0x1f);
    bytes
};
/// Exceptions.
const GENERAL_PROTECTION: u64 = 13;

/// The local APICs of a VM, and what they know of the IOAPIC's pins.
#[derive(Default)]
pub(super) struct Apics {
    cpus: Mutex<Vec<(u32, LocalApic)>>,
    pins: Mutex<Vec<MsiMessage>>,
}

fn power_on(id: u32, first: bool) -> LocalApic {
    let mut registers = vec![0; 64];
    registers[ID] = id << 24;
    registers[VERSION] = 0x0005_0014;
    registers[SPURIOUS] = 0xff;
    LVT.iter().for_each(|&lvt| registers[lvt] = MASKED);
    if first {
        registers[LINT0] = EXTERNAL;
    }
    LocalApic { registers, base: BASE | 1 << 11 | if first { FIRST } else { 0 }, tsc_deadline: 0 }
}

fn bit(vector: u8) -> (usize, u32) {
    (usize::from(vector / 32), 1 << (vector % 32))
}

impl Apics {
    /// Makes `vector` pending at a local APIC; without effect where none has that id, or it is off.
    fn raise(&self, id: u64, vector: u8, level: bool) {
        let (word, mask) = bit(vector);
        for (_, apic) in lock(&self.cpus).iter_mut().filter(|(apic_id, _)| u64::from(*apic_id) == id) {
            if apic.registers[SPURIOUS] & 1 << 8 != 0 {
                apic.registers[IRR + word] |= mask;
                apic.registers[TMR + word] = apic.registers[TMR + word] & !mask | if level { mask } else { 0 };
            }
        }
    }

    fn with<T>(&self, cpu: usize, act: impl FnOnce(&mut LocalApic) -> T) -> T {
        act(&mut lock(&self.cpus)[cpu].1)
    }
}

impl MsiTarget for Machine<X86_64> {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        X86_64::signal(self, message, requester)
    }

    fn routes(&self) -> Option<&dyn MsiRoutes> {
        self.has(Powers::INTERRUPT_EVENTFDS).then_some(self)
    }
}

impl ApicBus for Machine<X86_64> {
    fn set_pin_routes(&self, pins: &[Option<MsiMessage>]) -> Result<(), IrqError> {
        *lock(&self.controller.pins) = pins.iter().flatten().copied().collect();
        Ok(())
    }
}

impl Model for X86_64 {
    type Controller = Apics;
    const SHUT_DOWN: Exit = Exit::TripleFault;

    fn capabilities() -> Capabilities {
        let entry =
            |leaf, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry { leaf, eax, ebx, ecx, edx, ..CpuidEntry::default() };
        // FPU, MSR, APIC, FXSR and SSE; x2APIC, XSAVE.
        let features = [0x0006_0fb1, 0, 1 << 26 | 1 << 21, 1 << 25 | 1 << 24 | 1 << 9 | 1 << 5 | 1];
        // x87, SSE, AVX: 256 bytes behind the legacy region and the header.
        let xsave = |subleaf, registers| CpuidEntry { subleaf, indexed: true, ..entry(0xd, registers) };
        let xsave = [xsave(0, [7, 832, 832, 0]), xsave(2, [256, 576, 0, 0])];
        let basic = [entry(0, [0xd, 0x656b_6166, 0x656b_6166, 0x656b_6166]), entry(1, features)];
        let cpuid = Cpuid(basic.into_iter().chain(xsave).collect());
        Capabilities {
            cpuid,
            arch_capabilities: 0,
            apic_ids: 4096,
            extended_msi_destinations: true,
            tsc_khz: None,
            tsc_scaling: false,
        }
    }

    fn controller(
        _config: &VmConfig,
        _capabilities: &AnyCapabilities<Self>,
        vcpus: &[VcpuConfig],
    ) -> Result<Apics, HypervisorError> {
        let apics = vcpus.iter().enumerate().map(|(i, cpu)| (cpu.apic_id, power_on(cpu.apic_id, i == 0))).collect();
        Ok(Apics { cpus: Mutex::new(apics), pins: Mutex::default() })
    }

    fn interrupts(machine: &Arc<Machine<Self>>) -> Interrupts {
        Interrupts { apics: machine.clone() }
    }

    fn add(machine: &Machine<Self>, config: &VcpuConfig) -> bool {
        lock(&machine.controller.cpus).push((config.apic_id, power_on(config.apic_id, false)));
        true
    }

    fn id(config: &VcpuConfig) -> u64 {
        config.apic_id.into()
    }

    fn signal(machine: &Machine<Self>, message: MsiMessage, _: Option<RequesterId>) -> Result<(), IrqError> {
        let MsiMessage { address, data } = message;
        if address >> 20 != BASE >> 20 {
            return Err(IrqError::NoMsiTarget { address, data });
        }
        // Bits 11:5 of the address hold bits 14:8 of the destination.
        let destination = address >> 12 & 0xff | address << 3 & 0x7f00;
        machine.controller.raise(destination, data as u8, data & 1 << 15 != 0);
        machine.wake_all();
        Ok(())
    }

    fn power_on(config: &VcpuConfig, first: bool) -> VcpuState {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x93, unusable: false };
        let code = Segment { selector: 0xf000, base: 0xffff_0000, attributes: 0x9b, ..data };
        let table = DescriptorTable { base: 0, limit: 0xffff };
        VcpuState {
            general: GeneralRegisters { rip: 0xfff0, rflags: 2, ..GeneralRegisters::default() },
            system: SystemRegisters {
                cs: code,
                ds: data,
                es: data,
                fs: data,
                gs: data,
                ss: data,
                tr: Segment { attributes: 0x8b, ..data },
                ldt: Segment { attributes: 0x82, ..data },
                gdt: table,
                idt: table,
                cr0: 0x6000_0010,
                ..SystemRegisters::default()
            },
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xcr0: 1,
            xsave: Vec::new(),
            // IA32_PAT and the system call registers: what a guest may write without the machine hearing of it.
            msrs: vec![(0x277, 0x0007_0406_0007_0406), (0xc000_0081, 0), (0xc000_0082, 0), (0xc000_0084, 0)],
            tsc: 0,
            tsc_khz: None,
            apic: power_on(config.apic_id, first),
            events: Default::default(),
            mp: if first { MpState::Running } else { MpState::Uninitialized },
        }
    }

    fn boot(state: &mut VcpuState, boot: &BootState) {
        (state.general, state.system) = (boot.general, boot.system);
    }

    fn first_list(state: &VcpuState) -> u64 {
        state.general.rbx & 0xffff_ffff
    }

    fn registers(state: &mut VcpuState) -> Registers<'_> {
        let GeneralRegisters {
            rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, ..
        } = &mut state.general;
        let low = [(1, rcx), (2, rdx), (3, rbx), (5, rbp), (6, rsi), (7, rdi)];
        let general = low.into_iter().chain((8..).zip([r8, r9, r10, r11, r12, r13, r14, r15])).collect();
        Registers { position: rip, list: rax, area: rsp, table: &mut state.system.idt.base, general }
    }

    fn simd(state: &mut VcpuState) -> &mut [u8] {
        let place = state.xsave.iter().position(|component| component.number == 1).unwrap_or_else(|| {
            let place = state.xsave.partition_point(|component| component.number < 1);
            state.xsave.insert(place, XsaveComponent { number: 1, data: SSE.to_vec() });
            place
        });
        &mut state.xsave[place].data[4..]
    }

    fn is_on(state: &VcpuState) -> bool {
        state.mp == MpState::Running
    }

    fn turn_on(state: &mut VcpuState) {
        state.mp = MpState::Running;
    }

    fn interrupts_on(state: &VcpuState) -> bool {
        state.general.rflags & IF != 0
    }

    fn set_interrupts(state: &mut VcpuState, on: bool) {
        state.general.rflags = state.general.rflags & !IF | if on { IF } else { 0 };
    }

    fn identity(_: &VcpuConfig) {}

    fn fits(config: &VcpuConfig, state: &VcpuState) -> Result<(), String> {
        let size = |number: u8| match number {
            0 => None,
            1 => Some(SSE.len()),
            _ => config.cpuid.get(0xd, number.into()).map(|entry| entry.eax as usize),
        };
        let strange = |component: &&XsaveComponent| size(component.number) != Some(component.data.len());
        if let Some(XsaveComponent { number, data }) = state.xsave.iter().find(strange) {
            return Err(format!("this CPU has no XSAVE component {number} of {} bytes", data.len()));
        }
        let found = state.apic.registers.get(ID).copied().unwrap_or_default();
        let id = if state.apic.base & X2APIC == 0 { config.apic_id << 24 } else { config.apic_id };
        if found == id {
            Ok(())
        } else {
            Err(format!("it is of the CPU with APIC id register {found:#x}, this is {id:#x}"))
        }
    }

    fn reset(machine: &Machine<Self>, cpu: usize) {
        let (id, apic) = &mut lock(&machine.controller.cpus)[cpu];
        *apic = power_on(*id, cpu == 0);
    }

    fn save(machine: &Machine<Self>, cpu: usize, state: &mut VcpuState) {
        state.apic = machine.controller.with(cpu, |apic| apic.clone());
        state.xsave.retain(|component| component.number != 1 || component.data != SSE);
    }

    fn restore(machine: &Machine<Self>, cpu: usize, state: &VcpuState) {
        machine.controller.with(cpu, |apic| *apic = state.apic.clone());
    }

    fn take_interrupt(cpu: &mut FakeVcpu<Self>, io: &mut AnyIo) -> Option<u32> {
        let place = cpu.place();
        let lint0 = cpu.machine.controller.with(place, |apic| apic.registers[LINT0]);
        if lint0 & (MASKED | 0x700) == EXTERNAL && io.external_interrupt() {
            cpu.exits.interrupt_windows += 1;
            return io.acknowledge_interrupt().map(u32::from);
        }
        cpu.machine.controller.with(place, |apic| {
            let waits = |vector: &u8| apic.registers[IRR + bit(*vector).0] & bit(*vector).1 != 0;
            let least = apic.registers[PRIORITY] >> 4 & 0xf;
            let vector = (0_u8..=255).rev().find(waits).filter(|vector| u32::from(vector >> 4) > least)?;
            let (word, mask) = bit(vector);
            apic.registers[IRR + word] &= !mask;
            apic.registers[ISR + word] |= mask;
            Some(vector.into())
        })
    }

    fn end_interrupt(cpu: &mut FakeVcpu<Self>, irq: u32, io: &mut AnyIo) {
        let (vector, place) = (irq as u8, cpu.place());
        let (word, mask) = bit(vector);
        let level = cpu.machine.controller.with(place, |apic| {
            let served = apic.registers[ISR + word] & mask != 0;
            apic.registers[ISR + word] &= !mask;
            served && apic.registers[TMR + word] & mask != 0
        });
        let routed =
            level && lock(&cpu.machine.controller.pins).iter().any(|m| m.data as u8 == vector && m.data & 1 << 15 != 0);
        if routed {
            cpu.exits.interrupt_ends += 1;
            io.end_of_interrupt(vector);
        }
    }

    fn read_controller(cpu: &FakeVcpu<Self>, address: u64) -> Option<u32> {
        let register = (address.checked_sub(BASE)? / 16) as usize;
        cpu.machine.controller.with(cpu.place(), |apic| apic.registers.get(register).copied())
    }

    fn write_controller(cpu: &FakeVcpu<Self>, address: u64, value: u32) -> bool {
        let register = (address.wrapping_sub(BASE) / 16) as usize;
        cpu.machine
            .controller
            .with(cpu.place(), |apic| apic.registers.get_mut(register).map(|old| *old = value))
            .is_some()
    }

    fn carry_out(cpu: &mut FakeVcpu<Self>, operation: Operation, io: &mut AnyIo) -> Outcome {
        use Operation::*;
        match operation {
            ReadPort { width: Width::Eight, .. }
            | WritePort { width: Width::Eight, .. }
            | ReadPortString { width: Width::Eight, .. }
            | WritePortString { width: Width::Eight, .. } => return Outcome::Unsupported,
            ReadPort { port, width } => return Outcome::Done(cpu.port_in(port, width, io)),
            WritePort { port, value, width } => cpu.port_out(port, value, width, io),
            ReadPortString { port, address, count, width } => {
                for i in 0..count {
                    let value = cpu.port_in(port, width, io);
                    cpu.store(address + i * u64::from(width.bytes()), value, width, io);
                }
            }
            WritePortString { port, address, count, width } => {
                for i in 0..count {
                    let value = cpu.load(address + i * u64::from(width.bytes()), width, io);
                    cpu.port_out(port, value, width, io);
                }
            }
            ReadMsr { index } => match cpu.read_msr(index) {
                Some(value) => return Outcome::Done(value),
                None => {
                    cpu.exits.register_accesses += 1;
                    return io.msr_read(index).map_or(Outcome::Fault(GENERAL_PROTECTION), Outcome::Done);
                }
            },
            WriteMsr { index, value } => {
                if !cpu.write_msr(index, value) {
                    cpu.exits.register_accesses += 1;
                    if io.msr_write(index, value).is_err() {
                        return Outcome::Fault(GENERAL_PROTECTION);
                    }
                }
            }
            ReadCpuid { leaf, subleaf, address } => {
                let CpuidEntry { eax, ebx, ecx, edx, .. } =
                    cpu.config.cpuid.get(leaf, subleaf).copied().unwrap_or_default();
                for (i, value) in (0..).zip([eax, ebx, ecx, edx]) {
                    cpu.store(address + i * 4, value.into(), Width::Four, io);
                }
            }
            ReadCounter => {
                cpu.state.tsc += 1;
                return Outcome::Done(cpu.state.tsc);
            }
            InitLocalApic { table, .. } => cpu.init_apic(table),
            InitX2Apic { table } => {
                if cpu.config.cpuid.get(1, 0).is_none_or(|entry| entry.ecx & 1 << 21 == 0) {
                    return Outcome::Unsupported;
                }
                let id = cpu.config.apic_id;
                cpu.machine.controller.with(cpu.place(), |apic| {
                    apic.base |= X2APIC;
                    apic.registers[ID] = id;
                });
                cpu.init_apic(table);
            }
            SendIpi { cpu: id, irq } => {
                cpu.machine.controller.raise(id, irq as u8, false);
                cpu.machine.wake_all();
            }
            StartCpu { cpu: id, list, .. } => {
                if let Some(other) = cpu.machine.find(id) {
                    // A CPU that runs takes no notice of a SIPI.
                    Machine::<Self>::start(&other, list);
                }
            }
            TripleFault => return Outcome::Exit(Exit::TripleFault),
            _ => return Outcome::Unsupported,
        }
        Outcome::Done(0)
    }
}

impl FakeVcpu<X86_64> {
    fn port_in(&mut self, port: u16, width: Width, io: &mut AnyIo) -> u64 {
        let mut data = [0; 8];
        self.exits.port_reads += 1;
        io.port_read(port, &mut data[..usize::from(width.bytes())]);
        u64::from_le_bytes(data)
    }

    fn port_out(&mut self, port: u16, value: u64, width: Width, io: &mut AnyIo) {
        let value = width.truncate(value);
        if !self.machine.ring(DoorbellSpace::Port, port.into(), value, width) {
            self.exits.port_writes += 1;
            io.port_write(port, &value.to_le_bytes()[..usize::from(width.bytes())]);
        }
    }

    fn msr(&mut self, index: u32) -> Option<&mut u64> {
        self.state.msrs.iter_mut().find(|(number, _)| *number == index).map(|(_, value)| value)
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        if let Some(register) = self.x2apic(index) {
            return self
                .machine
                .controller
                .with(self.place(), |apic| apic.registers.get(register).copied().map(u64::from));
        }
        self.msr(index).copied()
    }

    /// Says whether there is such an MSR.
    fn write_msr(&mut self, index: u32, value: u64) -> bool {
        if let Some(register) = self.x2apic(index) {
            return self.machine.controller.with(self.place(), |apic| {
                let (register, value) = match register {
                    SELF_IPI => {
                        (IRR + bit(value as u8).0, apic.registers[IRR + bit(value as u8).0] | bit(value as u8).1)
                    }
                    register => (register, value as u32),
                };
                apic.registers.get_mut(register).map(|old| *old = value).is_some()
            });
        }
        self.msr(index).map(|old| *old = value).is_some()
    }

    /// The APIC's register behind an MSR, in x2APIC mode.
    fn x2apic(&self, index: u32) -> Option<usize> {
        let on = self.machine.controller.with(self.place(), |apic| apic.base & X2APIC != 0);
        (on && (0x800..0x840).contains(&index)).then_some(index as usize - 0x800)
    }

    fn init_apic(&mut self, table: u64) {
        self.state.system.idt.base = table;
        self.machine.controller.with(self.place(), |apic| {
            apic.registers[SPURIOUS] = 0x1ff;
            LVT.iter().for_each(|&lvt| apic.registers[lvt] = MASKED);
        });
    }
}
