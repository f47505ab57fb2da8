//! What only aarch64 has: SPIs, PSCI, system registers, more than one GIC.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use skep_guest_protocol::{self as protocol, AARCH64_END, AARCH64_LOAD, Operation, Status, Width};
use skep_irq::{IrqError, IrqLine, LineTable, MsiMessage, MsiTarget, Polarity, RequesterId, Trigger};

use super::bus::{DEADLINE, Recorder, Space};
use super::interrupts::{HANDLED, READY, deassert_at, on_irq, take, take_after};
use super::rig::{Rig, Stop, builder};
use super::target::{Level, Messages, Register};
use super::{Subject, Target};
use crate::aarch64::{
    BootState, Features, GicConfig, GicState, GicSupport, GicVersion, NOT_SUPPORTED, RedistributorRegion,
    SystemRegister, VcpuConfig, VcpuState, VmConfig, registers,
};
use crate::{Aarch64, Arch, Capabilities, Exit, HypervisorError, Powers, VmRequest};

use Operation::{
    DisableIntid, EnableIntid, FirmwareCall, InitGic, InitIts, MapMsi, ReadSystemRegister, SetInterrupts, WaitIrq,
    WriteMemory, WriteSystemRegister,
};

const DISTRIBUTOR: u64 = 0x0800_0000;
const CPU_INTERFACE: u64 = 0x0801_0000;
const ITS: u64 = 0x0808_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const SPIS: u32 = 64;
/// INTIDs.
const EDGE: u32 = 40;
const LEVEL: u32 = 41;
const FRAME: u32 = 48;
const LPI: u64 = 8192;
/// The ITS's register that takes messages (GITS_TRANSLATER).
const TRANSLATER: u64 = ITS + 0x1_0040;
const DEVICE_ID: u32 = 0x18;

/// PSCI (DEN 0022).
const PSCI_VERSION: u64 = 0x8400_0000;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
/// A function of the range for hypervisors' vendors that is none.
const NO_FUNCTION: u64 = 0xc600_3fff;

/// The least of a v2m frame: a message is an edge on the SPI that its data names.
struct Frame(Vec<IrqLine>);

impl MsiTarget for Frame {
    fn signal(&self, message: MsiMessage, _: Option<RequesterId>) -> Result<(), IrqError> {
        let line = self.0.iter().find(|line| line.description().number == message.data);
        line.ok_or(IrqError::NoMsiTarget { address: message.address, data: message.data }).map(IrqLine::pulse)
    }
}

fn config(support: &GicSupport, vcpus: u32) -> VmConfig {
    let gic = match support.version {
        GicVersion::V2 => GicConfig::V2 { distributor: DISTRIBUTOR, cpu_interface: CPU_INTERFACE },
        GicVersion::V3 => GicConfig::V3 {
            distributor: DISTRIBUTOR,
            redistributors: vec![RedistributorRegion { base: REDISTRIBUTORS, count: vcpus }],
            its: support.its.then_some(ITS),
        },
    };
    VmConfig { gic, spis: SPIS }
}

fn lines(rig: &Rig<Aarch64>) -> LineTable {
    LineTable::new(rig.interrupts.lines.clone(), 32..=31 + SPIS)
}

fn edge_line(rig: &Rig<Aarch64>) -> IrqLine {
    lines(rig).line(EDGE, Trigger::Edge, Polarity::High).expect("the line is there")
}

fn enable(irq: u32, trigger: protocol::Trigger) -> Operation {
    EnableIntid { irq: irq.into(), trigger }
}

#[allow(private_interfaces, reason = "nobody else implements or calls it")]
impl Target for Aarch64 {
    const RAM: u64 = 0x4000_0000;
    const PROBE: u64 = AARCH64_LOAD;
    const FREE: u64 = AARCH64_END;
    const DEVICE: u64 = 0x0a00_0000;
    const MORE: [u64; 3] = [0x1000_0000, 0x8000_0000, 0x1_4000_0000];
    const SIMD_SIZE: usize = 512;

    fn configs(capabilities: &Capabilities<Self>, vcpus: u32) -> Vec<VmConfig> {
        let gics = capabilities.arch.gics.iter().filter(|gic| gic.max_vcpus >= vcpus);
        gics.map(|gic| config(gic, vcpus)).collect()
    }

    fn cpu_id(index: u32) -> u64 {
        // 16 CPUs to a cluster, as GICv3's SGIs reach them.
        u64::from(index & 15 | index >> 4 << 8)
    }

    fn vcpu_config(_capabilities: &Capabilities<Self>, id: u64) -> VcpuConfig {
        VcpuConfig { mpidr: id, features: Features::default() }
    }

    fn boot_state(list: u64) -> BootState {
        BootState { pc: AARCH64_LOAD, x: [list, 0, 0, 0] }
    }

    fn io(recorder: &mut Recorder) -> &mut <Self as Arch>::Io {
        recorder
    }

    fn controller_registers(config: &VmConfig) -> Vec<Register> {
        const ALL: u32 = u32::MAX;
        let register = |base: u64| move |(offset, free, set)| Register { address: base + offset, free, set };
        // Groups, enabled and not, pending and not, active and not, configuration: of SPIs 32 to 63; their priorities. They wait, since the CPU masks
        // interrupts.
        let spis = [
            (0x84, ALL, 0),
            (0x104, ALL, 0),
            (0x184, ALL, 0),
            (0x204, ALL, 0),
            (0x284, ALL, 0),
            (0x304, ALL, 0),
            (0x384, ALL, 0),
            (0xc08, 0xaaaa_aaaa, 0),
        ];
        let priorities = (0x420..0x440).step_by(4).map(|offset| (offset, 0xf8f8_f8f8, 0));
        // The same of private interrupts, without the timer's and the performance monitor's lines, which have levels of their own.
        let private = [(0x80, ALL, 0), (0x100, 0xffff, 0), (0x180, 0xffff, 0)];
        let private_priorities = (0x400..0x410).step_by(4).map(|offset| (offset, 0xf8f8_f8f8, 0));
        let shared = spis.into_iter().chain(priorities).map(register(DISTRIBUTOR));
        let private = private.into_iter().chain(private_priorities);
        match &config.gic {
            GicConfig::V2 { .. } => {
                let targets = (0x820..0x840).step_by(4).map(|offset| (offset, 0x0101_0101, 0));
                // Control, priority mask, binary point.
                let interface = [(0x0, 1, 0), (0x4, 0xf8, 0), (0x8, 7, 0)].map(register(CPU_INTERFACE));
                let control = [(0x0, 1, 0)].into_iter().chain(private).chain(targets).map(register(DISTRIBUTOR));
                shared.chain(control).chain(interface).collect()
            }
            GicConfig::V3 { .. } => {
                // Which group is on.
                let control = [(0x0, 2, 0)].map(register(DISTRIBUTOR));
                // SGIs that are active: a GICv2's have a source each besides.
                let private = private.chain([(0x300, 0xffff, 0), (0x380, 0xffff, 0)]);
                // Both halves of routes.
                let routes =
                    (0x6100..0x6120).step_by(8).map(|offset| (offset, 0x8000_0000, 0)).map(register(DISTRIBUTOR));
                shared.chain(control).chain(routes).chain(private.map(register(REDISTRIBUTORS + 0x1_0000))).collect()
            }
        }
    }

    fn still(state: &mut VcpuState) -> u64 {
        std::mem::take(&mut state.counter)
    }

    fn general(state: &VcpuState) -> Vec<(u64, u64)> {
        (1..31).map(|number| (number as u64, state.x[number])).collect()
    }

    fn set_simd(state: &mut VcpuState, bytes: &[u8]) {
        state.simd.v = bytes.to_vec();
    }

    fn spoil(state: &mut VcpuState) {
        // The last encoding there is, which is no register's.
        state.registers.push((SystemRegister(0xffff), 1));
    }

    fn system_register(value: u64) -> [Operation; 2] {
        let register = registers::TPIDR_EL1.0;
        [WriteSystemRegister { register, value }, ReadSystemRegister { register }]
    }

    fn save_controller(interrupts: &<Self as Arch>::Interrupts) -> Option<GicState> {
        Some(interrupts.gic.save().expect("the backend saves its GIC"))
    }

    fn restore_controller(interrupts: &<Self as Arch>::Interrupts, state: &GicState) {
        interrupts.gic.restore(state).expect("the backend restores its GIC");
    }

    fn reset_controller(interrupts: &<Self as Arch>::Interrupts) {
        interrupts.gic.reset().expect("the backend resets its GIC");
    }

    fn offers(rig: &Rig<Self>) -> (bool, Option<bool>) {
        let line = edge_line(rig);
        let eventfds = line.eventfd().is_some();
        if let Some(its) = &rig.interrupts.its {
            assert_eq!(its.routes().is_some(), eventfds, "by message as by line");
        }
        let level = lines(rig).line(LEVEL, Trigger::Level, Polarity::High).expect("the line is there");
        (eventfds, Some(level.on_eoi(Arc::new(|| {})).is_some()))
    }

    fn init_interrupts(rig: &Rig<Self>, table: u64) -> Operation {
        match &rig.config.gic {
            GicConfig::V2 { distributor, cpu_interface } => {
                InitGic { gic: protocol::Gic::V2, distributor: *distributor, interface: *cpu_interface, table }
            }
            GicConfig::V3 { distributor, .. } => {
                InitGic { gic: protocol::Gic::V3, distributor: *distributor, interface: REDISTRIBUTORS, table }
            }
        }
    }

    fn ipi() -> (u64, Vec<Operation>) {
        (3, vec![enable(3, protocol::Trigger::Edge)])
    }

    fn messages(rig: &mut Rig<Self>, _cpu: u32, count: u32) -> Messages {
        if let Some(its) = rig.interrupts.its.clone() {
            let tables = rig.allocate(Operation::ITS_TABLES_SIZE, Operation::ITS_TABLES_SIZE);
            let map = |event| MapMsi { device: DEVICE_ID, event, irq: LPI + u64::from(event) };
            return Messages {
                target: its,
                requester: Some(RequesterId(DEVICE_ID)),
                setup: [InitIts { base: ITS, tables }].into_iter().chain((0..count).map(map)).collect(),
                messages: (0..count)
                    .map(|event| (MsiMessage { address: TRANSLATER, data: event }, LPI + u64::from(event)))
                    .collect(),
            };
        }
        let table = lines(rig);
        let spis = FRAME..FRAME + count;
        let line = |spi| table.line(spi, Trigger::Edge, Polarity::High).expect("the line is there");
        Messages {
            target: Arc::new(Frame(spis.clone().map(line).collect())),
            requester: None,
            setup: spis.clone().map(|spi| enable(spi, protocol::Trigger::Edge)).collect(),
            messages: spis.map(|spi| (MsiMessage { address: 0, data: spi }, spi.into())).collect(),
        }
    }

    fn level(rig: &Rig<Self>) -> Level {
        let setup = vec![enable(LEVEL, protocol::Trigger::Level)];
        Level { lines: lines(rig), line: LEVEL, irq: LEVEL.into(), setup }
    }
}

/// Each pulse of an edge-triggered line is one interrupt.
pub fn edge_lines_are_counted(subject: &Subject<Aarch64>) {
    Rig::for_each(subject, 1, |mut rig| {
        let line = edge_line(&rig);
        count_edges(&mut rig, || line.pulse());
    });
}

/// Each signal of a line's eventfd is one interrupt, where the backend offers that.
pub fn eventfds_are_edges_on_lines(subject: &Subject<Aarch64>) {
    Rig::for_each(subject, 1, |mut rig| {
        let line = edge_line(&rig);
        let Some(fd) = line.eventfd() else {
            assert!(!rig.capabilities.powers.contains(Powers::INTERRUPT_EVENTFDS));
            return;
        };
        count_edges(&mut rig, || fd.write(1).expect("an eventfd takes a signal"));
    });
}

fn count_edges(rig: &mut Rig<Aarch64>, edge: impl Fn()) {
    let table = rig.table();
    let setup = [enable(EDGE, protocol::Trigger::Edge)];
    let list = rig.list(&take_after(rig, table, &setup, EDGE.into(), 4));
    rig.boot(0, list);
    let running = rig.start(0);
    rig.bus.wait(Aarch64::DEVICE + READY, 1);
    for count in 1..5 {
        edge();
        rig.bus.wait(Aarch64::DEVICE + HANDLED, count);
    }
    assert_eq!(rig.join(running), Stop::End);
    rig.results(list);
    assert_eq!(rig.slot(table, EDGE.into()), (4, 0));
}

/// An edge on a line that is disabled waits until it is enabled.
pub fn a_disabled_interrupt_waits(subject: &Subject<Aarch64>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let line = edge_line(&rig);
        let (enable, irq) = (enable(EDGE, protocol::Trigger::Edge), u64::from(EDGE));
        let on = |on| SetInterrupts { on };
        let first = [Aarch64::init_interrupts(&rig, table), enable, DisableIntid { irq }];
        let pauses = [rig.pause(), rig.pause()];
        let then = [enable, on(false), WaitIrq { irq, count: 1 }];
        let list = rig.list(&[&first[..], &pauses[0], &[on(true)], &pauses[1], &then].concat());
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        line.pulse();
        assert_eq!(rig.run(0), Stop::At(1));
        assert_eq!(rig.slot(table, irq), (0, 0), "it is disabled");
        assert_eq!(rig.run(0), Stop::End);
        rig.results(list);
        assert_eq!(rig.slot(table, irq), (1, 0));
    });
}

/// The ends of a level line's interrupts are told, where the backend offers that, until nobody listens.
pub fn ends_of_interrupts_are_heard_of(subject: &Subject<Aarch64>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let line = lines(&rig).line(LEVEL, Trigger::Level, Polarity::High).expect("the line is there");
        let line = Arc::new(line);
        let (sender, heard) = channel();
        let (mine, sender, count) = (Arc::clone(&line), Mutex::new(sender), AtomicU64::new(0));
        let listener = Arc::new(move || {
            // The first end finds the device's reason still there.
            if count.fetch_add(1, Ordering::AcqRel) > 0 {
                mine.deassert();
            }
            let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
            sender.send(()).expect("the case hears each end");
        });
        let Some(subscription) = line.on_eoi(listener) else {
            assert!(!rig.capabilities.powers.contains(Powers::RESAMPLE));
            return;
        };
        let setup = [enable(LEVEL, protocol::Trigger::Level)];
        let irq = u64::from(LEVEL);
        let mut operations = take_after(&rig, table, &setup, irq, 2);
        operations.extend(rig.pause());
        operations.extend(take(table, irq, 3));
        let list = rig.list(&operations);
        rig.boot(0, list);
        let running = rig.start(0);
        rig.bus.wait(Aarch64::DEVICE + READY, 1);
        line.assert();
        assert_eq!(rig.join(running), Stop::At(0));
        for end in 1..3 {
            // A backend may tell of it a moment later, and keeps the line low until it has.
            assert!(heard.recv_timeout(DEADLINE).is_ok(), "end {end}");
        }
        assert_eq!(rig.slot(table, irq), (2, 0));
        assert!(!line.is_asserted());
        drop(subscription);
        deassert_at(&rig, 1, [Arc::clone(&line)]);
        line.assert();
        assert_eq!(rig.run(0), Stop::End);
        rig.results(list);
        assert!(heard.try_recv().is_err(), "nobody listens any more");
    });
}

/// A level that is high when the state is taken is high in the VM that is restored.
pub fn level_lines_survive_a_restore(subject: &Subject<Aarch64>) {
    Rig::for_each(subject, 1, |mut rig| {
        let table = rig.table();
        let irq = u64::from(LEVEL);
        let first =
            [Aarch64::init_interrupts(&rig, table), enable(LEVEL, protocol::Trigger::Level), on_irq::<Aarch64>(irq)];
        let pause = rig.pause();
        let list = rig.list(&[&first[..], &pause, &[WaitIrq { irq, count: 2 }]].concat());
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        let line = lines(&rig).line(LEVEL, Trigger::Level, Polarity::High).expect("the line is there");
        line.assert();
        let saved = rig.save();
        let mut rig = rig.successor(subject);
        rig.restore(&saved);
        let line = lines(&rig).line(LEVEL, Trigger::Level, Polarity::High).expect("the line is there");
        line.restore(true);
        deassert_at(&rig, 2, [Arc::new(line)]);
        assert_eq!(rig.run(0), Stop::End);
        rig.results(list);
        assert_eq!(rig.slot(table, irq), (2, 0));
    });
}

/// PSCI's ways to end are told apart.
pub fn power_off_and_reset_are_told(subject: &Subject<Aarch64>) {
    for (function, exit) in [(SYSTEM_OFF, Exit::PowerOff), (SYSTEM_RESET, Exit::Reset)] {
        let mut rig = Rig::new(subject, 1);
        let address = rig.allocate(64, 64);
        rig.write_word(address, function);
        let list = rig.list(&[FirmwareCall { address }]);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::Exit(exit));
    }
}

/// Firmware calls are answered: PSCI's, and one that does not exist.
pub fn firmware_calls_are_answered(subject: &Subject<Aarch64>) {
    let mut rig = Rig::new(subject, 1);
    let address = rig.allocate(128, 64);
    rig.write_word(address, PSCI_VERSION);
    rig.write_word(address + 64, NO_FUNCTION);
    let results = rig.carry_out(&[FirmwareCall { address }, FirmwareCall { address: address + 64 }]);
    assert!((0x2..0x1_0000_0000).contains(&results[0]), "PSCI 0.2 or later: {:#x}", results[0]);
    assert_eq!(results[1], NOT_SUPPORTED);
}

/// A register that nobody knows is undefined to the guest, and the list goes on.
pub fn unknown_registers_are_undefined(subject: &Subject<Aarch64>) {
    let mut rig = Rig::new(subject, 1);
    // Implementation-defined, and of no implementation.
    let register = SystemRegister::new(3, 7, 15, 15, 7).0;
    let address = rig.allocate(8, 8);
    let operations = [
        ReadSystemRegister { register },
        WriteSystemRegister { register, value: 1 },
        WriteMemory { address, value: 1, width: Width::Eight },
    ];
    let list = rig.list(&operations);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::End);
    let went: Vec<_> = (0..3).map(|i| rig.op(list, i).outcome()).collect();
    assert_eq!(went, [Some(Status::Faulted), Some(Status::Faulted), Some(Status::Done)]);
    let class = rig.op(list, 0).result >> 26;
    assert!(matches!(class, 0 | 0x18), "exception class {class:#x}");
    assert_eq!(rig.bus.log().iter().filter(|access| access.space == Space::Memory).count(), 1);
}

/// More vCPUs than a GIC takes are refused with both figures, when the VM is made.
pub fn each_gic_has_its_limit(subject: &Subject<Aarch64>) {
    let capabilities = builder(subject, 1).capabilities().clone();
    assert!(!capabilities.arch.gics.is_empty(), "there is no interrupt controller");
    for gic in &capabilities.arch.gics {
        assert!(gic.max_vcpus > 0 && gic.max_vcpus <= capabilities.max_vcpus, "{gic:?}");
        let most = if gic.version == GicVersion::V2 { 8 } else { u32::MAX };
        assert!(gic.max_vcpus <= most, "{gic:?}");
        let many = gic.max_vcpus + 1;
        if many > capabilities.max_vcpus {
            continue;
        }
        let request = VmRequest { max_vcpus: many, highest_gpa: 1 << 32, powers: subject.powers };
        let builder = subject.hypervisor.builder(&request).expect("the backend begins a VM");
        let vcpus: Vec<_> = (0..many).map(|i| Aarch64::vcpu_config(&capabilities, Aarch64::cpu_id(i))).collect();
        match builder.build(&config(gic, many), &vcpus).map(|_| ()) {
            Err(HypervisorError::Limit { wanted, limit, .. }) => {
                assert_eq!((wanted, limit), (many.into(), gic.max_vcpus.into()));
            }
            other => panic!("{many} vCPUs of {gic:?}: {other:?}"),
        }
    }
}

/// A vCPU says of itself what its state does, and becomes one of its own kind but none of another, which is named with both values.
pub fn a_cpu_is_the_same_and_no_other(subject: &Subject<Aarch64>) {
    let mut rig = Rig::new(subject, 1);
    let identity = rig.vcpu(0).identity().expect("the backend tells what a vCPU is");
    assert_eq!(identity, rig.save_vcpu(0).identity());
    let told = identity.registers.iter().filter(|(_, value)| value.is_some()).count();
    assert!(told > 0 && told < identity.registers.len(), "{told} of {}", identity.registers.len());
    let mut successor = rig.successor(subject);
    successor.vcpu(0).adopt(&identity).expect("it is of the same kind");
    for (index, (register, value)) in identity.registers.iter().enumerate() {
        let Some(value) = value else { continue };
        let mut other = identity.clone();
        other.registers[index].1 = Some(value ^ 1 << 20);
        let text = successor.vcpu(0).adopt(&other).expect_err("it is of another kind").to_string();
        let named = format!("{register}: it is {:#x}, and {value:#x} on this host", value ^ 1 << 20);
        assert!(text.contains(&named), "{text}");
    }
}
