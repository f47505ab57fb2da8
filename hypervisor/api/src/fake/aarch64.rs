//! The fake's aarch64: a GIC, PSCI, system registers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use skep_guest_protocol::{Operation, Trigger, Width};
use skep_irq::{EoiListener, EoiSubscription, IrqError, LineTarget, MsiMessage, MsiRoutes, MsiTarget, RequesterId};
use skep_state::{StateError, ensure};
use vmm_sys_util::eventfd::EventFd;

use super::machine::{Machine, Model, Registers};
use super::vcpu::{FakeVcpu, Outcome};
use super::{limit, lock};
use crate::aarch64::registers::{CNTV_CTL_EL0, MIDR_EL1, MPIDR_EL1, SCTLR_EL1, TPIDR_EL1, VBAR_EL1};
use crate::aarch64::{
    BootState, Capabilities, FirmwareCall, Gic, GicConfig, GicCpuState, GicState, GicSupport, GicVersion, Interrupts,
    ItsState, PowerState, Redistributor, SimdRegisters, SystemRegister, VcpuConfig, VcpuIdentity, VcpuState, VmConfig,
};
use crate::{Aarch64, Arch, Capabilities as AnyCapabilities, Exit, GuestClock, HypervisorError, Powers};

type AnyIo = <Aarch64 as Arch>::Io;

/// EL1h with interrupts masked.
const PSTATE: u64 = 0x3c5;
/// PSTATE.I.
const I: u64 = 1 << 7;
const COUNTER_HZ: u32 = 62_500_000;
const CNTVCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 2);
/// An unknown reason, with the IL bit: what ESR_EL1 is after an undefined instruction.
const UNDEFINED: u64 = 1 << 25;

/// PSCI functions and answers (DEN 0022).
const PSCI_VERSION: u64 = 0x8400_0000;
const CPU_OFF: u64 = 0x8400_0002;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const PSCI_1_1: u64 = 0x1_0001;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;

/// The distributor's registers in a state (IHI 0069 section 12.9), and the CPU interface's.
const ISENABLER: u32 = 0x100;
const ISPENDR: u32 = 0x200;
const ICFGR: u32 = 0xc00;
const IROUTER: u32 = 0x6100;
const SGI_BASE: u32 = 0x1_0000;
const ICC_IGRPEN1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 7);
const GICC_CTLR: u32 = 0;
const GITS_BASER0: u32 = 0x100;
/// The form in which LPIs and the ITS's events lie in guest RAM: a count, then four words for each.
const ITS_TABLES: &str = "fake-its-0";
const FIRST_LPI: u32 = 8192;

/// An SGI, PPI or SPI.
#[derive(Debug, Clone, Copy, Default)]
struct Irq {
    enabled: bool,
    level: bool,
    asserted: bool,
    latched: bool,
    /// Which CPU takes it, of the shared ones.
    cpu: usize,
}

impl Irq {
    fn is_ready(&self) -> bool {
        self.enabled && (self.latched || self.level && self.asserted)
    }

    fn set(&mut self, asserted: bool) {
        self.latched |= asserted && !self.asserted && !self.level;
        self.asserted = asserted;
    }
}

#[derive(Debug, Clone, Default)]
struct GicCpu {
    mpidr: u64,
    on: bool,
    private: [Irq; 32],
}

#[derive(Default)]
struct Its {
    tables: u64,
    cpu: usize,
    /// The LPI of a device's event, and whether it is pending.
    events: BTreeMap<(u32, u32), (u32, bool)>,
}

/// A GIC.
pub(super) struct FakeGic {
    version: GicVersion,
    has_its: bool,
    cpus: Mutex<Vec<GicCpu>>,
    shared: Mutex<Vec<Irq>>,
    its: Mutex<Its>,
    listeners: Mutex<Vec<(u32, Weak<EoiListener>)>>,
}

impl FakeGic {
    fn cpu_of(&self, mpidr: u64) -> Option<usize> {
        lock(&self.cpus).iter().position(|cpu| cpu.mpidr == mpidr)
    }

    /// Acts on the INTID as CPU `cpu` sees it.
    fn with<T>(&self, cpu: usize, intid: u64, act: impl FnOnce(&mut Irq) -> T) -> Option<T> {
        match intid {
            0..32 => lock(&self.cpus).get_mut(cpu).map(|cpu| act(&mut cpu.private[intid as usize])),
            _ => lock(&self.shared).get_mut(usize::try_from(intid - 32).ok()?).map(act),
        }
    }

    fn take(&self, cpu: usize) -> Option<u32> {
        let mut cpus = lock(&self.cpus);
        let me = cpus.get_mut(cpu).filter(|me| me.on)?;
        let mut shared = lock(&self.shared);
        let private = (0..).zip(&mut me.private);
        let shared = (32..).zip(&mut *shared).filter(|(_, irq)| irq.cpu == cpu);
        if let Some((intid, irq)) = private.chain(shared).find(|(_, irq)| irq.is_ready()) {
            irq.latched = false;
            return Some(intid);
        }
        let mut its = lock(&self.its);
        let mine = its.cpu == cpu;
        let (lpi, pending) = its.events.values_mut().find(|(_, pending)| *pending && mine)?;
        *pending = false;
        Some(*lpi)
    }
}

fn bits(irqs: &[Irq], bit: impl Fn(&Irq) -> bool) -> impl Iterator<Item = u32> {
    let word = move |irqs: &[Irq]| (0..).zip(irqs).fold(0, |word, (i, irq)| word | u32::from(bit(irq)) << i);
    irqs.chunks(32).map(word).collect::<Vec<_>>().into_iter()
}

/// The registers of some interrupts, the first of which is `INTID` 32 `word`.
fn save_irqs(irqs: &[Irq], word: u32) -> Vec<(u32, u32)> {
    let rows = |base: u32, words: Vec<u32>| (word..).map(move |n| base + n * 4).zip(words);
    let enabled = rows(ISENABLER, bits(irqs, |irq| irq.enabled).collect());
    let pending = rows(ISPENDR, bits(irqs, |irq| irq.latched).collect());
    let edge = |irqs: &[Irq]| (0..).zip(irqs).fold(0, |word, (i, irq)| word | u32::from(!irq.level) << (2 * i + 1));
    let trigger = (2 * word..).map(|n| ICFGR + n * 4).zip(irqs.chunks(16).map(edge));
    enabled.chain(pending).chain(trigger).collect()
}

fn restore_irqs(irqs: &mut [Irq], word: u32, registers: &[(u32, u32)], levels: &[u32]) {
    let bit = |base: u32, bit: u32| {
        let offset = base + bit / 32 * 4;
        registers.iter().find(|(at, _)| *at == offset).is_some_and(|(_, value)| value >> (bit % 32) & 1 != 0)
    };
    for (i, irq) in (0..).zip(irqs) {
        irq.enabled = bit(ISENABLER, word * 32 + i);
        irq.latched = bit(ISPENDR, word * 32 + i);
        irq.level = !bit(ICFGR, 2 * (word * 32 + i) + 1);
        irq.asserted = levels.get((i / 32) as usize).is_some_and(|level| level >> (i % 32) & 1 != 0);
    }
}

impl Gic for Machine<Aarch64> {
    fn save(&self) -> Result<GicState, HypervisorError> {
        let gic = &self.controller;
        let shared = lock(&gic.shared);
        let mut cpus = lock(&gic.cpus);
        let routers =
            (0..).zip(&*shared).map(|(i, irq)| (IROUTER + 8 * i, cpus.get(irq.cpu).map_or(0, |cpu| cpu.mpidr as u32)));
        let distributor = save_irqs(&shared, 1).into_iter().chain(routers.collect::<Vec<_>>()).collect();
        let cpu = |cpu: &mut GicCpu| {
            let registers = save_irqs(&cpu.private, 0).into_iter().map(|(at, value)| (at + SGI_BASE, value)).collect();
            let levels = bits(&cpu.private, |irq| irq.asserted).next().unwrap_or_default();
            let (mut interface, mut memory_interface) = (Vec::new(), Vec::new());
            match gic.version {
                GicVersion::V2 => memory_interface.push((GICC_CTLR, cpu.on.into())),
                GicVersion::V3 => interface.push((ICC_IGRPEN1_EL1, cpu.on.into())),
            }
            let redistributor = Redistributor { registers, levels };
            GicCpuState { mpidr: cpu.mpidr, redistributor, interface, memory_interface }
        };
        Ok(GicState {
            version: if gic.version == GicVersion::V2 { 2 } else { 3 },
            spis: shared.len() as u32,
            distributor,
            levels: bits(&shared, |irq| irq.asserted).collect(),
            cpus: cpus.iter_mut().map(cpu).collect(),
            its: gic.has_its.then(|| self.save_its()),
        })
    }

    fn restore(&self, state: &GicState) -> Result<(), HypervisorError> {
        let gic = &self.controller;
        let id = "gic";
        ensure(state.gic_version() == gic.version, id, "version", state.version, "this GIC is of another")?;
        let (mut shared, mut cpus) = (lock(&gic.shared), lock(&gic.cpus));
        ensure(state.spis as usize == shared.len(), id, "spis", state.spis, "this GIC has another number of them")?;
        ensure(
            state.cpus.len() == cpus.len(),
            id,
            "cpus",
            state.cpus.len(),
            "this machine has another number of them",
        )?;
        if let Some(its) = &state.its {
            ensure(gic.has_its, id, "its", &its.tables, "this GIC has none")?;
            self.restore_its(its)?;
        }
        restore_irqs(&mut shared, 1, &state.distributor, &state.levels);
        for (at, mpidr) in state.distributor.iter().filter(|(at, _)| *at >= IROUTER) {
            let cpu = cpus.iter().position(|cpu| cpu.mpidr == u64::from(*mpidr));
            if let (Some(irq), Some(cpu)) = (shared.get_mut(((at - IROUTER) / 8) as usize), cpu) {
                irq.cpu = cpu;
            }
        }
        for (cpu, saved) in cpus.iter_mut().zip(&state.cpus) {
            let private = &saved.redistributor;
            let registers: Vec<_> =
                private.registers.iter().map(|(at, value)| (at.wrapping_sub(SGI_BASE), *value)).collect();
            restore_irqs(&mut cpu.private, 0, &registers, &[private.levels]);
            cpu.on =
                saved.interface.contains(&(ICC_IGRPEN1_EL1, 1)) || saved.memory_interface.contains(&(GICC_CTLR, 1));
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        let gic = &self.controller;
        lock(&gic.shared).iter_mut().for_each(|irq| *irq = Irq { asserted: irq.asserted, ..POWER_ON });
        lock(&gic.cpus).iter_mut().for_each(|cpu| (cpu.on, cpu.private) = (false, [POWER_ON; 32]));
        *lock(&gic.its) = Its::default();
        Ok(())
    }
}

/// Interrupts are level-triggered until the guest says otherwise.
const POWER_ON: Irq = Irq { enabled: false, level: true, asserted: false, latched: false, cpu: 0 };

impl Machine<Aarch64> {
    fn save_its(&self) -> ItsState {
        let its = lock(&self.controller.its);
        let words = its.events.iter().flat_map(|((device, event), (lpi, pending))| {
            [u64::from(*device), u64::from(*event), u64::from(*lpi), u64::from(*pending)]
        });
        for (i, word) in (0..).zip([its.events.len() as u64, its.cpu as u64].into_iter().chain(words)) {
            // Tables where there is no RAM hold nothing: so they do on hardware.
            self.memory.write(its.tables + i * 8, &word.to_le_bytes());
        }
        let registers = vec![(GITS_BASER0, its.tables)];
        ItsState { registers, tables: ITS_TABLES.to_owned() }
    }

    fn restore_its(&self, state: &ItsState) -> Result<(), StateError> {
        ensure(state.tables == ITS_TABLES, "gic", "its.tables", &state.tables, "the fake reads its own form only")?;
        let tables = state.registers.iter().find(|(at, _)| *at == GITS_BASER0).map_or(0, |(_, value)| *value);
        let word = |i: u64| self.memory.read_word(tables.wrapping_add(i * 8)).unwrap_or_default();
        let mut its = Its { tables, cpu: word(1) as usize, events: BTreeMap::new() };
        for i in (0..word(0).min(Operation::ITS_TABLES_SIZE / 32)).map(|i| 2 + i * 4) {
            its.events.insert((word(i) as u32, word(i + 1) as u32), (word(i + 2) as u32, word(i + 3) != 0));
        }
        *lock(&self.controller.its) = its;
        Ok(())
    }
}

impl LineTarget for Machine<Aarch64> {
    fn set_level(&self, line: u32, asserted: bool) {
        self.controller.with(0, line.into(), |irq| irq.set(asserted));
        self.wake_all();
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        self.has(Powers::RESAMPLE).then(|| {
            let subscription = Arc::new(listener);
            let mut listeners = lock(&self.controller.listeners);
            listeners.retain(|(_, listener)| listener.strong_count() > 0);
            listeners.push((line, Arc::downgrade(&subscription)));
            Box::new(subscription) as EoiSubscription
        })
    }

    fn eventfd(&self, line: u32) -> Option<EventFd> {
        self.line_eventfd(line)
    }
}

impl MsiTarget for Machine<Aarch64> {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        Aarch64::signal(self, message, requester)
    }

    fn routes(&self) -> Option<&dyn MsiRoutes> {
        self.has(Powers::INTERRUPT_EVENTFDS).then_some(self)
    }
}

impl Model for Aarch64 {
    type Controller = FakeGic;
    const SHUT_DOWN: Exit = Exit::PowerOff;

    fn capabilities() -> Capabilities {
        let v2 = GicSupport { version: GicVersion::V2, max_vcpus: 8, its: false };
        let v3 = GicSupport { version: GicVersion::V3, max_vcpus: 1024, its: true };
        let gics = vec![v3, v2];
        Capabilities { gics, sve: false, pointer_authentication: false, pmu: false, counter_hz: COUNTER_HZ }
    }

    fn controller(
        config: &VmConfig,
        capabilities: &AnyCapabilities<Self>,
        vcpus: &[VcpuConfig],
    ) -> Result<FakeGic, HypervisorError> {
        let version = config.gic.version();
        let Some(support) = capabilities.arch.gics.iter().find(|gic| gic.version == version) else {
            let (what, mend) = (format!("a GIC of version {version:?}"), String::new());
            return Err(HypervisorError::Missing { backend: super::NAME, what, mend });
        };
        if vcpus.len() as u64 > u64::from(support.max_vcpus) {
            return Err(limit("vCPUs of this GIC", vcpus.len() as u64, support.max_vcpus.into()));
        }
        let cpu = |config: &VcpuConfig| GicCpu { mpidr: config.mpidr, on: false, private: [POWER_ON; 32] };
        Ok(FakeGic {
            version,
            has_its: matches!(config.gic, GicConfig::V3 { its: Some(_), .. }),
            cpus: Mutex::new(vcpus.iter().map(cpu).collect()),
            shared: Mutex::new(vec![POWER_ON; config.spis.min(988) as usize]),
            its: Mutex::default(),
            listeners: Mutex::default(),
        })
    }

    fn interrupts(machine: &Arc<Machine<Self>>) -> Interrupts {
        let its = machine.controller.has_its.then(|| machine.clone() as Arc<dyn MsiTarget>);
        Interrupts { gic: machine.clone(), lines: machine.clone(), its }
    }

    fn add(_: &Machine<Self>, _: &VcpuConfig) -> bool {
        false
    }

    fn id(config: &VcpuConfig) -> u64 {
        config.mpidr
    }

    fn signal(machine: &Machine<Self>, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        let MsiMessage { address, data } = message;
        let device = requester.ok_or(IrqError::NoMsiTarget { address, data })?.0;
        if let Some((_, pending)) = lock(&machine.controller.its).events.get_mut(&(device, data)) {
            *pending = true;
        }
        machine.wake_all();
        Ok(())
    }

    fn edge(machine: &Machine<Self>, line: u32) {
        machine.controller.with(0, line.into(), |irq| irq.latched = true);
        machine.wake_all();
    }

    fn power_on(config: &VcpuConfig, first: bool) -> VcpuState {
        let mut registers = vec![
            (MIDR_EL1, 0x410f_d0c1),
            (MPIDR_EL1, 1 << 31 | config.mpidr),
            (SCTLR_EL1, 0x30d0_0800),
            (VBAR_EL1, 0),
            (TPIDR_EL1, 0),
            (CNTV_CTL_EL0, 0),
        ];
        registers.sort_by_key(|(register, _)| *register);
        VcpuState {
            x: [0; 31],
            sp_el0: 0,
            sp_el1: 0,
            pc: 0,
            pstate: PSTATE,
            elr_el1: 0,
            spsr: [0; 5],
            simd: SimdRegisters { v: vec![0; 512], ..SimdRegisters::default() },
            registers,
            power: if first { PowerState::On } else { PowerState::Off },
            serror: None,
            counter: 0,
            counter_hz: COUNTER_HZ,
            firmware: vec![("psci".to_owned(), PSCI_1_1)],
        }
    }

    fn boot(state: &mut VcpuState, boot: &BootState) {
        (state.pc, state.pstate) = (boot.pc, PSTATE);
        state.x[..4].copy_from_slice(&boot.x);
    }

    fn first_list(state: &VcpuState) -> u64 {
        state.x[0]
    }

    fn registers(state: &mut VcpuState) -> Registers<'_> {
        let VcpuState { x, sp_el0, sp_el1, pc, registers, .. } = state;
        let table = registers.iter_mut().find(|(register, _)| *register == VBAR_EL1);
        let (_, table) = table.expect("`fits` lets no state in without it");
        Registers { position: pc, list: sp_el0, area: sp_el1, table, general: (1..).zip(&mut x[1..]).collect() }
    }

    fn simd(state: &mut VcpuState) -> &mut [u8] {
        &mut state.simd.v
    }

    fn is_on(state: &VcpuState) -> bool {
        state.power == PowerState::On
    }

    fn turn_on(state: &mut VcpuState) {
        state.power = PowerState::On;
    }

    fn interrupts_on(state: &VcpuState) -> bool {
        state.pstate & I == 0
    }

    fn set_interrupts(state: &mut VcpuState, on: bool) {
        state.pstate = state.pstate & !I | if on { 0 } else { I };
    }

    fn identity(config: &VcpuConfig) -> VcpuIdentity {
        Self::power_on(config, true).identity()
    }

    fn is_same(config: &VcpuConfig, identity: &VcpuIdentity) -> Result<(), String> {
        let mine = Self::identity(config).registers;
        if !mine.iter().map(|(register, _)| register).eq(identity.registers.iter().map(|(register, _)| register)) {
            return Err("this CPU has other system registers".to_owned());
        }
        let differs = mine.iter().zip(&identity.registers).find_map(|((register, mine), (_, other))| {
            let (mine, other) = (mine.as_ref()?, other.as_ref()?);
            (mine != other).then(|| format!("{register}: it is {other:#x}, and {mine:#x} on this host"))
        });
        differs.map_or(Ok(()), Err)
    }

    fn fits(config: &VcpuConfig, state: &VcpuState) -> Result<(), String> {
        Self::is_same(config, &state.identity())
    }

    fn reset(_: &Machine<Self>, _: usize) {}

    fn save(machine: &Machine<Self>, _: usize, state: &mut VcpuState) {
        state.counter = machine.clock.read();
    }

    fn restore(machine: &Machine<Self>, _: usize, state: &VcpuState) {
        // It can't fail.
        let _ = machine.clock.set(state.counter);
    }

    fn take_interrupt(cpu: &mut FakeVcpu<Self>, _: &mut AnyIo) -> Option<u32> {
        cpu.machine.controller.take(cpu.place())
    }

    fn end_interrupt(cpu: &mut FakeVcpu<Self>, irq: u32, _: &mut AnyIo) {
        let listeners: Vec<_> = {
            let all = lock(&cpu.machine.controller.listeners);
            all.iter().filter(|(line, _)| *line == irq).filter_map(|(_, listener)| listener.upgrade()).collect()
        };
        listeners.iter().for_each(|listener| listener());
    }

    fn carry_out(cpu: &mut FakeVcpu<Self>, operation: Operation, io: &mut AnyIo) -> Outcome {
        use Operation::*;
        let (place, machine) = (cpu.place(), Arc::clone(&cpu.machine));
        let gic = &machine.controller;
        match operation {
            ReadCounter => return Outcome::Done(machine.clock.read()),
            ReadSystemRegister { register } if SystemRegister(register) == CNTVCT_EL0 => {
                return Outcome::Done(machine.clock.read());
            }
            ReadSystemRegister { register } => match cpu.register(register) {
                Some(value) => return Outcome::Done(*value),
                None => {
                    cpu.exits.register_accesses += 1;
                    return io.register_read(SystemRegister(register)).map_or(Outcome::Fault(UNDEFINED), Outcome::Done);
                }
            },
            WriteSystemRegister { register, value } => match cpu.register(register) {
                Some(old) => *old = value,
                None => {
                    cpu.exits.register_accesses += 1;
                    if io.register_write(SystemRegister(register), value).is_err() {
                        return Outcome::Fault(UNDEFINED);
                    }
                }
            },
            FirmwareCall { address } => return cpu.firmware_call(address, io),
            InitGic { table, .. } => {
                *Self::registers(&mut cpu.state).table = table;
                if let Some(cpu) = lock(&gic.cpus).get_mut(place) {
                    cpu.on = true;
                }
            }
            EnableIntid { irq, trigger } => {
                let enable = |it: &mut Irq| (it.enabled, it.level, it.cpu) = (true, trigger == Trigger::Level, place);
                if gic.with(place, irq, enable).is_none() {
                    return Outcome::Unsupported;
                }
            }
            DisableIntid { irq } => {
                if gic.with(place, irq, |it| it.enabled = false).is_none() {
                    return Outcome::Unsupported;
                }
            }
            InitIts { tables, .. } if gic.has_its => {
                *lock(&gic.its) = Its { tables, cpu: place, events: BTreeMap::new() };
            }
            MapMsi { device, event, irq } if gic.has_its && irq >= FIRST_LPI.into() => {
                lock(&gic.its).events.insert((device, event), (irq as u32, false));
            }
            SendIpi { cpu: id, irq } => {
                let Some(target) = gic.cpu_of(id) else { return Outcome::Done(0) };
                gic.with(target, irq & 15, |irq| irq.latched = true);
                machine.wake_all();
            }
            StartCpu { cpu: id, list, .. } => {
                let Some(other) = machine.find(id) else { return Outcome::Done(INVALID_PARAMETERS) };
                return Outcome::Done(if Machine::<Self>::start(&other, list) { 0 } else { ALREADY_ON });
            }
            _ => return Outcome::Unsupported,
        }
        Outcome::Done(0)
    }
}

impl FakeVcpu<Aarch64> {
    fn register(&mut self, register: u16) -> Option<&mut u64> {
        self.state.registers.iter_mut().find(|(number, _)| number.0 == register).map(|(_, value)| value)
    }

    fn firmware_call(&mut self, address: u64, io: &mut AnyIo) -> Outcome {
        let mut call = FirmwareCall { x: [0; 8] };
        for (i, x) in (0..).zip(&mut call.x) {
            *x = self.load(address + i * 8, Width::Eight, io);
        }
        match call.x[0] {
            SYSTEM_OFF => return Outcome::Exit(Exit::PowerOff),
            SYSTEM_RESET => return Outcome::Exit(Exit::Reset),
            CPU_OFF => {
                self.state.power = PowerState::Off;
                self.mailbox.on.store(false, Ordering::Release);
                return Outcome::Off;
            }
            PSCI_VERSION => call.x[0] = PSCI_1_1,
            _ => {
                self.exits.firmware_calls += 1;
                io.firmware_call(&mut call);
            }
        }
        for (i, x) in (0..4).zip(call.x) {
            self.store(address + i * 8, x, Width::Eight, io);
        }
        Outcome::Done(call.x[0])
    }
}
