//! What only x86_64 has: ports, MSRs, CPUID, pins of an IOAPIC, the PIC.

use std::sync::{Arc, Mutex, PoisonError};

use skep_guest_protocol::{Operation, Status, Width, X86_64_END, X86_64_LOAD};
use skep_irq::{ApicBus, IrqLine, LineTable, LineTarget, MsiMessage};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::{Recorder, Space};
use super::interrupts::{HANDLED, Meanwhile, READY, on_irq, ready, take};
use super::rig::{Rig, Stop, builder};
use super::state::{expect_the_same, random, seeds};
use super::target::{Level, Messages, Register};
use super::{Lacks, Subject, Target};
use crate::x86_64::{
    BootState, CpuidEntry, GeneralRegisters, Segment, SystemRegisters, VcpuConfig, VcpuState, VmConfig, XsaveComponent,
};
use crate::{Arch, Capabilities, Doorbell, DoorbellSpace, Exit, X86_64};

use Operation::{
    InitLocalApic, InitX2Apic, ReadCpuid, ReadMsr, ReadPort, ReadPortString, SendIpi, SpinUntil, StartCpu, TripleFault,
    WaitIrq, WriteMemory, WriteMsr, WritePort, WritePortString,
};

/// Where a local APIC lies at power-on.
const APIC: u64 = 0xfee0_0000;
/// The level bit of a message's data (SDM 3A section 11.11.2).
const LEVEL: u32 = 1 << 15;
/// IA32_LSTAR: any canonical address.
const LSTAR: u32 = 0xc000_0082;
/// A leaf for hypervisors that none uses.
const MARK: CpuidEntry = CpuidEntry {
    leaf: 0x4000_00f0,
    subleaf: 0,
    indexed: false,
    eax: 0x11,
    ebx: 0x2222,
    ecx: 0x33_3333,
    edx: 0x4444_4444,
};
const PORT: u16 = 0x1234;
const VALUE: u64 = 0x8182_8384_8586_8788;

fn message(id: u64, vector: u64) -> MsiMessage {
    // Bits 11:5 of the address hold bits 14:8 of the destination.
    MsiMessage { address: APIC | (id & 0xff) << 12 | (id >> 8) << 5, data: vector as u32 }
}

/// The least of an IOAPIC: one level-triggered pin.
struct Pin {
    apics: Arc<dyn ApicBus>,
    message: MsiMessage,
    state: Mutex<PinState>,
}

#[derive(Default)]
struct PinState {
    asserted: bool,
    /// Delivered, and not ended yet: remote IRR.
    in_service: bool,
}

impl Pin {
    fn change(&self, change: impl FnOnce(&mut PinState)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if state.asserted && !state.in_service {
            state.in_service = true;
            self.apics.signal(self.message, None).expect("the message is delivered");
        }
    }
}

impl LineTarget for Pin {
    fn set_level(&self, _line: u32, asserted: bool) {
        self.change(|state| state.asserted = asserted);
    }
}

#[allow(private_interfaces, reason = "nobody else implements or calls it")]
impl Target for X86_64 {
    const RAM: u64 = 0;
    const PROBE: u64 = X86_64_LOAD;
    const FREE: u64 = X86_64_END;
    const DEVICE: u64 = 0xd000_0000;
    const MORE: [u64; 3] = [0x1000_0000, 0x8000_0000, 0x1_4000_0000];
    const SIMD_SIZE: usize = 256;

    fn configs(capabilities: &Capabilities<Self>, vcpus: u32) -> Vec<VmConfig> {
        let one = VmConfig { ioapic_pins: 24 };
        if vcpus <= capabilities.max_vcpus { vec![one] } else { Vec::new() }
    }

    fn cpu_id(index: u32) -> u64 {
        index.into()
    }

    fn vcpu_config(capabilities: &Capabilities<Self>, id: u64) -> VcpuConfig {
        let mut cpuid = capabilities.arch.cpuid.clone();
        for entry in &mut cpuid.0 {
            match entry.leaf {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | (id as u32) << 24,
                0xb | 0x1f => entry.edx = id as u32,
                _ => {}
            }
        }
        cpuid.set(MARK);
        VcpuConfig { apic_id: id as u32, cpuid, arch_capabilities: None }
    }

    fn boot_state(list: u64) -> BootState {
        let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093, unusable: false };
        let none = Segment { unusable: true, ..Segment::default() };
        BootState {
            general: GeneralRegisters { rip: X86_64_LOAD, rbx: list, rflags: 2, ..GeneralRegisters::default() },
            system: SystemRegisters {
                cs: Segment { selector: 8, attributes: 0xc09b, ..data },
                ds: data,
                es: data,
                fs: data,
                gs: data,
                ss: data,
                tr: Segment { limit: 0x67, attributes: 0x8b, ..Segment::default() },
                ldt: none,
                cr0: 0x11,
                ..SystemRegisters::default()
            },
        }
    }

    fn io(recorder: &mut Recorder) -> &mut <Self as Arch>::Io {
        recorder
    }

    fn controller_registers(_config: &VmConfig) -> Vec<Register> {
        let register = |(offset, free, set)| Register { address: APIC + offset, free, set };
        let written = [
            // TPR, which holds all interrupts back; LDR, DFR, SVR.
            (0x80, 0xf, 0xf0),
            (0xd0, 0xff00_0000, 0),
            (0xe0, 0xf000_0000, 0x0fff_ffff),
            (0xf0, 0xef, 0x110),
            // ICR: its other half, and a fixed interrupt to itself, which waits.
            (0x310, 0xff00_0000, 0),
            (0x300, 0xdf, 0x4_0020),
            // LVT: timer, thermal, performance, LINT0 and 1, error; all but the mask, which the timer's count does not wait for.
            (0x320, 0x1_00ef, 0x10),
            (0x330, 0x1_00ef, 0x10),
            (0x340, 0x1_00ef, 0x10),
            (0x350, 0x1_a0ef, 0x10),
            (0x360, 0x1_a0ef, 0x10),
            (0x370, 0x1_00ef, 0x10),
            (0x3e0, 0xb, 0),
        ];
        // Id, PPR; ISR, TMR and IRR: what is written to them is lost.
        let read = [0x20, 0xa0].into_iter().chain((0x100..0x280).step_by(0x10)).map(|offset| (offset, 0, 0));
        written.into_iter().chain(read).map(register).collect()
    }

    fn still(state: &mut VcpuState) -> u64 {
        // The APIC timer's current count runs too.
        if let Some(count) = state.apic.registers.get_mut(0x39) {
            *count = 0;
        }
        std::mem::take(&mut state.tsc)
    }

    fn general(state: &VcpuState) -> Vec<(u64, u64)> {
        let g = &state.general;
        let low = [(1, g.rcx), (2, g.rdx), (3, g.rbx), (5, g.rbp), (6, g.rsi), (7, g.rdi)];
        let high = [g.r8, g.r9, g.r10, g.r11, g.r12, g.r13, g.r14, g.r15];
        low.into_iter().chain((8..).zip(high)).collect()
    }

    fn set_simd(state: &mut VcpuState, bytes: &[u8]) {
        state.xsave.retain(|component| component.number != 1);
        let place = state.xsave.partition_point(|component| component.number < 1);
        // MXCSR as at power-on, then the registers.
        let data = [&0x1f80_u32.to_le_bytes()[..], bytes].concat();
        state.xsave.insert(place, XsaveComponent { number: 1, data });
    }

    fn spoil(state: &mut VcpuState) {
        state.xsave.push(XsaveComponent { number: 61, data: vec![1; 64] });
    }

    fn system_register(value: u64) -> [Operation; 2] {
        [WriteMsr { index: LSTAR, value }, ReadMsr { index: LSTAR }]
    }

    fn offers(rig: &Rig<Self>) -> (bool, Option<bool>) {
        (rig.interrupts.apics.routes().is_some(), None)
    }

    fn init_interrupts(_rig: &Rig<Self>, table: u64) -> Operation {
        InitLocalApic { base: APIC, table }
    }

    fn ipi() -> (u64, Vec<Operation>) {
        (0x60, Vec::new())
    }

    fn messages(rig: &mut Rig<Self>, cpu: u32, count: u32) -> Messages {
        let vectors = (0x50..).take(count as usize);
        Messages {
            target: rig.interrupts.apics.clone(),
            requester: None,
            setup: Vec::new(),
            messages: vectors.map(|vector| (message(Self::cpu_id(cpu), vector), vector)).collect(),
        }
    }

    fn level(rig: &Rig<Self>) -> Level {
        const VECTOR: u8 = 0x70;
        let mut message = message(0, VECTOR.into());
        message.data |= LEVEL;
        let apics = rig.interrupts.apics.clone();
        apics.set_pin_routes(&[None, Some(message)]).expect("the backend takes the pins' routes");
        let pin = Arc::new(Pin { apics, message, state: Mutex::default() });
        let end = pin.clone();
        rig.bus.on(Space::End, VECTOR.into(), move |_| {
            end.change(|state| state.in_service = false);
            0
        });
        Level { lines: LineTable::new(pin, 0..=23), line: 1, irq: VECTOR.into(), setup: Vec::new() }
    }

    fn restore_level(line: &IrqLine) {
        // The IOAPIC is the machine's, and this one has no state: it sends once more what waits in the APIC already.
        line.assert();
    }
}

const PORT_WIDTHS: [Width; 3] = [Width::One, Width::Two, Width::Four];

/// The accesses to ports so far: whether a write, the width, the value.
fn port_accesses(rig: &Rig<X86_64>) -> Vec<(bool, usize, u64)> {
    let ports =
        rig.bus.log().into_iter().filter(|access| access.space == Space::Port && access.address == u64::from(PORT));
    ports.map(|access| (access.write, access.width, access.value)).collect()
}

/// IN and OUT of each width call back once with the exact value; a doorbell at a port, where there are doorbells, takes a write away.
pub fn ports_of_every_width(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 1);
    rig.bus.on(Space::Port, PORT.into(), |access| if access.write { 0 } else { VALUE });
    let each = |width| [ReadPort { port: PORT, width }, WritePort { port: PORT, value: !VALUE, width }];
    let pause = rig.pause();
    let list = rig.list(&[&PORT_WIDTHS.map(each).concat()[..], &pause, &each(Width::Two)].concat());
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));
    let expected = PORT_WIDTHS.map(|width| {
        let len = usize::from(width.bytes());
        // The upper part of a read is not the machine's to give.
        [(false, len, VALUE), (true, len, width.truncate(!VALUE))]
    });
    assert_eq!(port_accesses(&rig), expected.concat());
    let exits = rig.vcpu(0).exits();
    assert_eq!((exits.port_reads, exits.port_writes), (3, 3));

    let fd = EventFd::new(EFD_NONBLOCK).expect("the host gives an eventfd");
    let doorbell = Doorbell { space: DoorbellSpace::Port, address: PORT.into(), width: Some(2), value: None };
    rig.bus.forget();
    let power = rig.vm.doorbells().map(|power| power.attach(doorbell, &fd)).transpose();
    let attached = power.expect("the backend attaches a doorbell to a port").is_some();
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(port_accesses(&rig).len(), if attached { 1 } else { 2 });
    assert_eq!(fd.read().ok(), attached.then_some(1));
    let results = rig.results(list);
    for (width, results) in PORT_WIDTHS.into_iter().zip(results.chunks(2)) {
        assert_eq!(results[0], width.truncate(VALUE), "IN of {width:?}");
    }
}

/// REP INS and REP OUTS call back once for each element, in order, with exact values, across a page too.
pub fn string_io_is_exact(subject: &Subject<X86_64>) {
    const COUNT: u64 = 300;
    for width in PORT_WIDTHS {
        let mut rig = Rig::new(subject, 1);
        let mut next = VALUE;
        rig.bus.on(Space::Port, PORT.into(), move |access| {
            next += u64::from(!access.write);
            next
        });
        // They begin 16 bytes before a page ends.
        let from = rig.allocate(0x2000, 0x1000) + 0xff0;
        let to = rig.allocate(0x2000, 0x1000) + 0xff0;
        let bytes: Vec<_> = (0..COUNT * 4).map(|i| (i * 7 + 3) as u8).collect();
        rig.write(from, &bytes);
        rig.carry_out(&[
            WritePortString { port: PORT, address: from, count: COUNT, width },
            ReadPortString { port: PORT, address: to, count: COUNT, width },
        ]);
        let len = usize::from(width.bytes());
        let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let written: Vec<_> = bytes.chunks(len).take(300).map(|bytes| (true, len, value(bytes))).collect();
        let read: Vec<_> = (1..=COUNT).map(|i| (false, len, VALUE + i)).collect();
        assert_eq!(port_accesses(&rig), [written, read].concat());
        let stored: [u8; 1200] = rig.read(to);
        for (i, bytes) in (1..=COUNT).zip(stored.chunks(len)) {
            assert_eq!(value(bytes), width.truncate(VALUE + i), "element {i} of {width:?}");
        }
    }
}

/// A string input whose run a kick has ended is finished before the state is taken: each element calls back once.
pub fn string_io_under_way_is_finished_by_save(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 1);
    let kicker = rig.vcpu(0).kicker();
    let mut next = 0;
    rig.bus.on(Space::Port, PORT.into(), move |_| {
        next += 1;
        if next == 3 {
            kicker.kick();
        }
        next
    });
    let to = rig.allocate(64, 64);
    let pause = rig.pause();
    let list =
        rig.list(&[&[ReadPortString { port: PORT, address: to, count: 10, width: Width::Two }][..], &pause].concat());
    rig.boot(0, list);
    let running = rig.enter(0);
    assert_eq!(rig.join(running), Stop::Exit(Exit::Kicked));
    let saved = rig.save();
    let mut rig = rig.successor(subject);
    rig.restore(&saved);
    assert_eq!(rig.run(0), Stop::At(0));
    let stored: [u8; 20] = rig.read(to);
    let expected: Vec<_> = (1..=10_u16).flat_map(u16::to_le_bytes).collect();
    assert_eq!(stored[..], expected);
    assert_eq!(port_accesses(&rig).len(), 10);
    assert_eq!(rig.run(0), Stop::End);
}

/// An MSR that the backend does not know calls back; where the machine does not know it either, the guest takes a fault.
pub fn msrs_call_back(subject: &Subject<X86_64>) {
    const KNOWN: u32 = 0x5000_0000;
    let mut rig = Rig::new(subject, 1);
    rig.bus.on(Space::Msr, KNOWN.into(), |_| VALUE);
    let unknown = KNOWN + 1;
    let list = rig.list(&[
        ReadMsr { index: KNOWN },
        WriteMsr { index: KNOWN, value: !VALUE },
        ReadMsr { index: unknown },
        WriteMsr { index: unknown, value: 1 },
        ReadMsr { index: KNOWN },
    ]);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::End);
    let went: Vec<_> = (0..5).map(|i| rig.op(list, i)).map(|op| (op.outcome(), op.result)).collect();
    let (value, fault) = ((Some(Status::Done), VALUE), (Some(Status::Faulted), 13));
    assert_eq!(went, [value, (Some(Status::Done), 0), fault, fault, value]);
    let seen: Vec<_> = rig.bus.log().iter().filter(|a| a.space == Space::Msr).map(|a| (a.write, a.value)).collect();
    assert_eq!(seen, [(false, VALUE), (true, !VALUE), (false, VALUE)]);
}

/// CPUID shows what the vCPU was configured with.
pub fn cpuid_is_as_configured(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 1);
    let to = rig.allocate(64, 64);
    let leaves = [0, MARK.leaf, 1];
    let operations: Vec<_> =
        (0..).zip(leaves).map(|(i, leaf)| ReadCpuid { leaf, subleaf: 0, address: to + 16 * i }).collect();
    rig.carry_out(&operations);
    for (i, leaf) in (0..).zip(leaves) {
        let mut found = [0, 4, 8, 12].map(|offset| u32::from_le_bytes(rig.read(to + 16 * i + offset)));
        let entry = rig.vcpu_configs[0].cpuid.get(leaf, 0).expect("each CPU has it");
        let mut expected = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        if leaf == 1 {
            // OSXSAVE is CR4's, and APIC the APIC base's.
            let all = if subject.lacks.contains(Lacks::EXACT_CPUID) { u32::MAX } else { 0 };
            for features in [&mut found, &mut expected] {
                features[2] &= !(1 << 27 | all);
                features[3] &= !(1 << 9 | all);
            }
        }
        assert_eq!(found, expected, "leaf {leaf:#x}");
    }
}

/// Each component of XSAVE's that the CPU has, given to a vCPU by a state, is in the next state that is saved.
pub fn extended_registers_survive(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 1);
    let mut state = rig.save_vcpu(0);
    let cpuid = &rig.vcpu_configs[0].cpuid;
    let all = cpuid.get(0xd, 0).map_or(0, |entry| entry.eax);
    // AVX, the three of AVX-512, PKRU: plain data, of which any bits do, but for the upper half of PKRU's.
    for number in [2, 5, 6, 7, 9].into_iter().filter(|number| all >> number & 1 != 0) {
        let size = cpuid.get(0xd, number).expect("a component has a leaf").eax;
        let mut data: Vec<_> = (0..size).map(|byte| (byte * 5 + number) as u8).collect();
        if number == 9 {
            data[4..].fill(0);
        }
        state.xsave.push(XsaveComponent { number: number as u8, data });
        state.xcr0 |= 3 | 1 << number;
    }
    assert!(!state.xsave.is_empty(), "the CPU has none");
    rig.vcpu(0).restore(&state).expect("the backend restores extended registers");
    let mut again = rig.save_vcpu(0);
    X86_64::still(&mut state);
    X86_64::still(&mut again);
    assert_eq!(again, state);
}

/// A triple fault ends the run, and after a reset the CPU boots again.
pub fn a_triple_fault_is_told(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 1);
    for _ in 0..2 {
        let list = rig.list(&[TripleFault]);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::Exit(Exit::TripleFault));
        rig.vcpu(0).reset().expect("the backend resets a vCPU");
        rig.load_probe(subject);
    }
}

/// The PIC's interrupts are taken when the guest allows them, and end a halt: each is acknowledged once.
pub fn external_interrupts_are_taken(subject: &Subject<X86_64>) {
    const VECTOR: u8 = 0x30;
    let mut rig = Rig::new(subject, 2);
    let (table, stack) = (rig.table(), rig.stack());
    let irq = u64::from(VECTOR);
    let meanwhile = Meanwhile::new(&mut rig);
    let pauses = [rig.pause(), rig.pause()];
    let first = [
        InitLocalApic { base: APIC, table },
        // LINT0 takes external interrupts, as after power-on.
        WriteMemory { address: APIC + 0x350, value: 0x700, width: Width::Four },
        StartCpu { cpu: 1, list: meanwhile.list.gpa, stack },
        on_irq::<X86_64>(irq),
    ];
    let last = [ready::<X86_64>(), WaitIrq { irq, count: 3 }];
    let list = rig.list(&[&first[..], &pauses[0], &take(table, irq, 2), &pauses[1], &last].concat());
    rig.boot(0, list);
    let other = rig.start(1);
    // One waits until interrupts are on, the next comes while the first is being handled.
    assert_eq!(rig.run(0), Stop::At(0));
    rig.bus.set_external(Some(VECTOR));
    let (bus, mut handled) = (Arc::downgrade(&rig.bus), 0);
    rig.bus.on(Space::Memory, X86_64::DEVICE + HANDLED, move |_| {
        handled += 1;
        if let Some(bus) = bus.upgrade().filter(|_| handled == 1) {
            bus.set_external(Some(VECTOR));
        }
        0
    });
    assert_eq!(rig.run(0), Stop::At(1));
    assert_eq!(rig.slot(table, irq), (2, 0));
    let running = rig.start(0);
    rig.bus.wait(X86_64::DEVICE + READY, 1);
    meanwhile.pass(&rig);
    rig.bus.set_external(Some(VECTOR));
    running.kicker.kick();
    assert_eq!(rig.join(running), Stop::End);
    assert_eq!(rig.join(other), Stop::End);
    rig.results(list);
    assert_eq!(rig.slot(table, irq), (3, 0));
}

/// The end of a level interrupt is reported while a pin is routed to its vector; that of an edge, or of one without a pin, is not.
pub fn only_level_pins_report_their_end(subject: &Subject<X86_64>) {
    let mut rig = Rig::new(subject, 2);
    let (table, stack, word) = (rig.table(), rig.stack(), rig.allocate(8, 8));
    let messages = [message(0, 0x41), message(0, 0x42), message(1, 0x43)];
    let [edge, level, second] = [messages[0], messages[1], messages[2]].map(|m| m);
    let (level, second) =
        (MsiMessage { data: level.data | LEVEL, ..level }, MsiMessage { data: second.data | LEVEL, ..second });
    let apics = rig.interrupts.apics.clone();
    apics.set_pin_routes(&[None, Some(edge), Some(level), None, Some(second)]).expect("the backend takes routes");
    let pauses = [rig.pause(), rig.pause()];
    let other = [InitLocalApic { base: APIC, table }, WriteMemory { address: word, value: 1, width: Width::Eight }];
    // A backend may report the end as late as the next exit.
    let other = rig.list(&[&other[..], &take(table, 0x43, 1), &[ready::<X86_64>()]].concat());
    let first = [
        InitLocalApic { base: APIC, table },
        StartCpu { cpu: 1, list: other.gpa, stack },
        SpinUntil { address: word, value: 1, width: Width::Eight },
    ];
    let wait = |irq, count| WaitIrq { irq, count };
    let list =
        rig.list(&[&first[..], &pauses[0], &[wait(0x41, 1), wait(0x42, 1)], &pauses[1], &[wait(0x42, 2)]].concat());
    rig.boot(0, list);
    let running = rig.start(1);
    assert_eq!(rig.run(0), Stop::At(0));
    for message in [edge, level, second] {
        apics.signal(message, None).expect("the message is delivered");
    }
    assert_eq!(rig.run(0), Stop::At(1));
    assert_eq!(rig.join(running), Stop::End);
    let ends = |rig: &Rig<X86_64>| {
        let ends = rig.bus.log().into_iter().filter(|access| access.space == Space::End);
        let mut ends: Vec<_> = ends.map(|access| (access.cpu, access.address)).collect();
        ends.sort_unstable();
        ends
    };
    assert_eq!(ends(&rig), [(0, 0x42), (1, 0x43)]);
    assert_eq!(rig.vcpu(0).exits().interrupt_ends, 1);
    apics.set_pin_routes(&[None; 5]).expect("the backend takes routes");
    apics.signal(level, None).expect("the message is delivered");
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(ends(&rig).len(), 2, "no pin waits for it any more");
    rig.results(list);
    rig.results(other);
}

/// A CPU whose APIC id needs more than 8 bits is started, and takes messages and interprocessor interrupts in x2APIC mode, where the backend
/// offers such ids.
pub fn apic_ids_beyond_255(subject: &Subject<X86_64>) {
    const ID: u64 = 300;
    let builder = builder(subject, 2);
    let offered = &builder.capabilities().arch;
    if u64::from(offered.apic_ids) <= ID || !offered.extended_msi_destinations {
        assert!(offered.apic_ids <= 255 || !offered.extended_msi_destinations, "{} APIC ids", offered.apic_ids);
        return;
    }
    let config = VmConfig { ioapic_pins: 24 };
    let mut rig = Rig::build(subject, builder, config, &[0, ID]);
    let (table, stack) = (rig.table(), rig.stack());
    let other = [
        &[InitX2Apic { table }, on_irq::<X86_64>(0x41), ready::<X86_64>()][..],
        &take(table, 0x41, 1),
        &take(table, 0x42, 1),
        &[SendIpi { cpu: 0, irq: 0x43 }],
    ];
    let other = rig.list(&other.concat());
    let first = [
        InitX2Apic { table },
        StartCpu { cpu: ID, list: other.gpa, stack },
        SpinUntil { address: table + 0x41 * 32, value: 1, width: Width::Eight },
        SendIpi { cpu: ID, irq: 0x42 },
    ];
    let list = rig.list(&[&first[..], &take(table, 0x43, 1)].concat());
    rig.boot(0, list);
    let running = [rig.start(0), rig.start(1)];
    rig.bus.wait(X86_64::DEVICE + READY, 1);
    rig.interrupts.apics.signal(message(ID, 0x41), None).expect("the message is delivered");
    for running in running {
        assert_eq!(rig.join(running), Stop::End);
    }
    rig.results(list);
    rig.results(other);
    assert_eq!([0x41, 0x42, 0x43].map(|vector| rig.slot(table, vector)), [(1, ID), (1, ID), (1, 0)]);
}

/// What the task priority holds back is held back after a restore too, in both modes of the APIC, and then comes in the order of priorities, as
/// it does without one.
pub fn priorities_hold_after_a_restore(subject: &Subject<X86_64>) {
    const WAITING: [u64; 4] = [0x45, 0x51, 0x5e, 0x61];
    for x2apic in [false, true] {
        let mut rig = Rig::new(subject, 1);
        let table = rig.table();
        let (init, priority) = if x2apic {
            (InitX2Apic { table }, (|value| WriteMsr { index: 0x808, value }) as fn(u64) -> Operation)
        } else {
            let write: fn(u64) -> Operation = |value| WriteMemory { address: APIC + 0x80, value, width: Width::Four };
            (InitLocalApic { base: APIC, table }, write)
        };
        let mut operations = vec![init, priority(0x50)];
        operations.extend(WAITING.map(on_irq::<X86_64>));
        operations.extend(rig.pause());
        operations.extend(take(table, 0x61, 1));
        operations.extend(rig.pause());
        operations.push(priority(0x40));
        operations.extend(take(table, 0x51, 1));
        operations.extend(rig.pause());
        operations.push(priority(0));
        operations.extend(take(table, 0x45, 1));
        let list = rig.list(&operations);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        for vector in WAITING {
            rig.interrupts.apics.signal(message(0, vector), None).expect("the message is delivered");
        }
        let (saved, ram) = (rig.save(), rig.used());
        let go_on = |rig: &mut Rig<X86_64>| {
            rig.bus.forget();
            let order = |rig: &Rig<X86_64>| {
                let handled = rig.bus.at(X86_64::DEVICE + HANDLED);
                handled.iter().map(|access| access.value).collect::<Vec<_>>()
            };
            assert_eq!(rig.run(0), Stop::At(1));
            assert_eq!(order(rig), [0x61], "the others wait");
            assert_eq!(rig.run(0), Stop::At(2));
            assert_eq!(order(rig), [0x61, 0x5e, 0x51], "the highest first");
            assert_eq!(rig.run(0), Stop::End);
            assert_eq!(order(rig), [0x61, 0x5e, 0x51, 0x45]);
            rig.results(list);
        };
        go_on(&mut rig);
        let mut rig = rig.successor(subject);
        rig.rewind(&ram);
        rig.restore(&saved);
        go_on(&mut rig);
    }
}

/// [`super::state::any_state_of_a_controller_survives`] for an APIC in x2APIC mode, where registers are MSRs.
pub fn any_state_of_an_x2apic_survives(subject: &Subject<X86_64>) {
    // Bits that a guest may write as it likes, and those that it always sets; see `controller_registers`, the first holds interrupts back.
    const WRITTEN: [(u32, u32, u32); 11] = [
        (0x808, 0xf, 0xf0),
        (0x80f, 0xef, 0x110),
        (0x832, 0x1_00ef, 0x10),
        (0x833, 0x1_00ef, 0x10),
        (0x834, 0x1_00ef, 0x10),
        (0x835, 0x1_a0ef, 0x10),
        (0x836, 0x1_a0ef, 0x10),
        (0x837, 0x1_00ef, 0x10),
        (0x83e, 0xb, 0),
        // An interrupt to itself, which waits: by a register of its own, and by the command register.
        (0x83f, 0xcf, 0x20),
        (0x830, 0xcf, 0x4_0020),
    ];
    // Id, version, PPR, LDR; ISR, TMR and IRR; and what was written, as far as it is read.
    let read = [0x802, 0x803, 0x80a, 0x80d].into_iter().chain(0x810..0x828);
    let read: Vec<u32> = read.chain(WRITTEN.map(|(index, ..)| index).into_iter().filter(|one| *one != 0x83f)).collect();
    for seed in seeds(5) {
        let mut rig = Rig::new(subject, 1);
        let table = rig.table();
        let mut next = random(seed);
        let mut operations = vec![InitX2Apic { table }];
        operations.extend((0..60).map(|number| {
            let (index, free, set) = WRITTEN[if number == 0 { 0 } else { next() as usize % WRITTEN.len() }];
            WriteMsr { index, value: u64::from(next() & free | set) }
        }));
        operations.extend(rig.pause());
        operations.extend(read.iter().map(|index| ReadMsr { index: *index }));
        expect_the_same(rig, subject, &operations, seed);
    }
}
