//! A vCPU that carries out operations.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use skep_guest_protocol::{IrqSlot, Op, Operation, RegisterSet, Status, Width, held_value, irq_slot};
use skep_state::{State, StateError};

use super::machine::{Machine, Mailbox, Model};
use super::{NAME, lock};
use crate::{Arch, DoorbellSpace, Exit, ExitCounts, Kick, MemoryIo, Vcpu, VcpuError};

/// A test's own guest.
pub(super) type Program<A> = Box<dyn FnMut(&mut Guest<'_, A>) -> Option<Exit> + Send>;

/// Where a vCPU's operations come from.
pub(super) enum Source<A: Arch> {
    /// Guest memory.
    Memory,
    /// A list outside of it.
    Operations(Arc<Mutex<Vec<Op>>>),
    /// No operations: a closure.
    Program(Program<A>),
}

/// Where a list outside of guest memory seems to lie.
const OUTSIDE: u64 = 0x1_0000;
const OP_SIZE: u64 = Op::SIZE as u64;

/// What came of an operation.
pub(super) enum Outcome {
    Done(u64),
    Unsupported,
    Fault(u64),
    Malformed,
    /// Go back some operations.
    Back(u64, u64),
    /// The list has ended: ring.
    End(u64),
    /// Not done yet: look again at once.
    Again,
    /// Not done yet: look again when something has happened.
    Wait,
    /// Done; the run returns.
    Exit(Exit),
    /// Done; the CPU is off.
    Off,
}

/// Whether a vCPU goes on.
enum Step {
    Next,
    Yield,
    Wait,
    Exit(Exit),
}

pub(super) struct FakeVcpu<A: Model> {
    pub index: u32,
    pub config: A::VcpuConfig,
    pub machine: Arc<Machine<A>>,
    pub mailbox: Arc<Mailbox>,
    pub state: A::VcpuState,
    pub exits: ExitCounts,
    source: Source<A>,
}

impl<A: Model> FakeVcpu<A> {
    pub(super) fn new(machine: Arc<Machine<A>>, mailbox: Arc<Mailbox>, index: u32, config: A::VcpuConfig) -> Self {
        let state = A::power_on(&config, index == 0);
        let source = lock(&machine.script.sources).remove(&index).unwrap_or(Source::Memory);
        Self { index, config, machine, mailbox, state, exits: ExitCounts::default(), source }
    }

    fn unfit(&self, reason: String) -> VcpuError {
        let source = StateError::Backend { what: format!("restore `{}`", A::VcpuState::ID), reason };
        VcpuError::State { vcpu: self.index, source }
    }

    /// Its place among the VM's vCPUs.
    pub(super) fn place(&self) -> usize {
        self.index as usize
    }

    pub(super) fn load(&mut self, address: u64, width: Width, io: &mut A::Io) -> u64 {
        if let Some(value) = A::read_controller(self, address) {
            return value.into();
        }
        let mut data = [0; 8];
        let part = &mut data[..usize::from(width.bytes())];
        if !self.machine.memory.read(address, part) {
            self.exits.memory_reads += 1;
            self.machine.posted.deliver(io);
            io.memory_read(address, part);
        }
        u64::from_le_bytes(data)
    }

    pub(super) fn store(&mut self, address: u64, value: u64, width: Width, io: &mut A::Io) {
        let value = width.truncate(value);
        let data = &value.to_le_bytes()[..usize::from(width.bytes())];
        if self.machine.memory.write(address, data)
            || A::write_controller(self, address, value as u32)
            || self.machine.ring(DoorbellSpace::Memory, address, value, width)
            || self.machine.posted.post(address, data)
        {
            return;
        }
        self.exits.memory_writes += 1;
        self.machine.posted.deliver(io);
        io.memory_write(address, data);
    }

    /// What the guest's handler does.
    fn handle(&mut self, irq: u32, io: &mut A::Io) {
        let table = *A::registers(&mut self.state).table;
        if let Some(slot) = irq_slot(irq.into()).filter(|_| table != 0) {
            let at = table + slot * size_of::<IrqSlot>() as u64;
            let cpu = self.mailbox.id;
            self.store(at + 8, cpu, Width::Eight, io);
            let address = self.load(at + 16, Width::Eight, io);
            if address != 0 {
                let value = self.load(at + 24, Width::Eight, io);
                self.store(address, value, Width::Four, io);
            }
            let count = self.load(at, Width::Eight, io);
            self.store(at, count + 1, Width::Eight, io);
        }
        A::end_interrupt(self, irq, io);
    }

    /// Takes an interrupt if one waits.
    fn interrupt(&mut self, io: &mut A::Io) -> bool {
        match A::take_interrupt(self, io) {
            Some(irq) => {
                self.handle(irq, io);
                true
            }
            None => false,
        }
    }

    fn step(&mut self, io: &mut A::Io) -> Result<Step, VcpuError> {
        self.take_start();
        if !A::is_on(&self.state) {
            return Ok(Step::Wait);
        }
        let holds = *A::registers(&mut self.state).area != 0;
        if A::interrupts_on(&self.state) && !holds && self.interrupt(io) {
            return Ok(Step::Next);
        }
        let list = match &mut self.source {
            Source::Memory => A::first_list(&self.state),
            Source::Operations(_) => OUTSIDE,
            Source::Program(_) => return Ok(self.call(io)),
        };
        if *A::registers(&mut self.state).list == 0 {
            self.begin(list);
        }
        let position = *A::registers(&mut self.state).position;
        if position == 0 {
            return Ok(Step::Wait);
        }
        let Some(op) = self.fetch(position)? else {
            *A::registers(&mut self.state).position = 0;
            return Ok(Step::Wait);
        };
        let outcome = match Operation::decode(&op) {
            Ok(operation) => self.carry_out(operation, op.result, io),
            Err(_) => Outcome::Malformed,
        };
        Ok(self.finish(position, outcome, io))
    }

    /// Begins where another CPU has started it.
    fn take_start(&mut self) {
        let list = lock(&self.mailbox.start).take();
        if let Some(list) = list {
            A::turn_on(&mut self.state);
            self.begin(list);
        }
    }

    fn begin(&mut self, list: u64) {
        let registers = A::registers(&mut self.state);
        (*registers.list, *registers.position) = (list, list);
    }

    /// Calls a test's program.
    fn call(&mut self, io: &mut A::Io) -> Step {
        let Source::Program(mut program) = std::mem::replace(&mut self.source, Source::Memory) else {
            return Step::Wait;
        };
        let exit = program(&mut Guest { cpu: self, io });
        self.source = Source::Program(program);
        exit.map_or(Step::Yield, Step::Exit)
    }

    /// The operation at `position`; `None` behind the end of a list outside of guest memory.
    fn fetch(&self, position: u64) -> Result<Option<Op>, VcpuError> {
        if let Source::Operations(list) = &self.source {
            return Ok(lock(list).get(((position - OUTSIDE) / OP_SIZE) as usize).copied());
        }
        let mut bytes = [0; Op::SIZE];
        if self.machine.memory.read(position, &mut bytes) {
            return Ok(Some(Op::from_bytes(&bytes)));
        }
        Err(VcpuError::Internal {
            vcpu: self.index,
            backend: NAME,
            reason: format!("there is no operation at {position:#x}"),
            meaning: "the fake backend carries out lists of operations only".to_owned(),
            registers: format!("{:#x?}", self.state),
        })
    }

    fn write_back(&self, position: u64, status: Status, result: u64) {
        if let Source::Operations(list) = &self.source {
            if let Some(op) = lock(list).get_mut(((position - OUTSIDE) / OP_SIZE) as usize) {
                (op.status, op.result) = (status as u32, result);
            }
            return;
        }
        // A list that can't be written to is the test's own loss. The status comes last, for a host that looks at any time.
        self.machine.memory.write(position + Op::RESULT_OFFSET as u64, &result.to_le_bytes());
        self.machine.memory.write(position + Op::STATUS_OFFSET as u64, &(status as u32).to_le_bytes());
    }

    fn finish(&mut self, position: u64, outcome: Outcome, io: &mut A::Io) -> Step {
        let index = (position - *A::registers(&mut self.state).list) / OP_SIZE;
        let (status, result, next, step) = match outcome {
            Outcome::Again => return Step::Yield,
            Outcome::Wait => return Step::Wait,
            Outcome::Done(result) => (Status::Done, result, position + OP_SIZE, Step::Next),
            Outcome::Unsupported => (Status::Unsupported, 0, position + OP_SIZE, Step::Next),
            Outcome::Fault(number) => (Status::Faulted, number, position + OP_SIZE, Step::Next),
            Outcome::Back(back, count) if (1..=index).contains(&back) => {
                (Status::Done, count, position - back * OP_SIZE, Step::Next)
            }
            Outcome::Malformed | Outcome::Back(..) => (Status::Malformed, 0, 0, Step::Exit(A::SHUT_DOWN)),
            Outcome::Exit(exit) => (Status::Done, 0, position + OP_SIZE, Step::Exit(exit)),
            Outcome::Off => (Status::Done, 0, 0, Step::Next),
            Outcome::End(doorbell) => {
                self.write_back(position, Status::Done, 0);
                *A::registers(&mut self.state).position = 0;
                A::set_interrupts(&mut self.state, false);
                self.store(doorbell, index, Width::Four, io);
                return Step::Next;
            }
        };
        self.write_back(position, status, result);
        *A::registers(&mut self.state).position = next;
        step
    }

    fn carry_out(&mut self, operation: Operation, result: u64, io: &mut A::Io) -> Outcome {
        use Operation::*;
        match operation {
            End { doorbell } => return Outcome::End(doorbell),
            ReadMemory { address, width } => return Outcome::Done(self.load(address, width, io)),
            WriteMemory { address, value, width } => self.store(address, value, width, io),
            AddMemory { address, value, width } => {
                let old = self.load(address, width, io);
                self.store(address, old.wrapping_add(value), width, io);
            }
            TouchPages { address, pages, value } => {
                (0..pages).for_each(|page| self.store(address + page * 0x1000, value, Width::Eight, io));
            }
            SpinUntil { address, value, width } => {
                let value = width.truncate(value);
                return if self.load(address, width, io) == value { Outcome::Done(value) } else { Outcome::Again };
            }
            Repeat { back, times } if result < times => return Outcome::Back(back, result + 1),
            Repeat { .. } => return Outcome::Done(result),
            OnIrqWrite { irq, address, value } => {
                let table = *A::registers(&mut self.state).table;
                let Some(slot) = irq_slot(irq).filter(|_| table != 0) else { return Outcome::Unsupported };
                let at = table + slot * size_of::<IrqSlot>() as u64;
                self.store(at + 24, value, Width::Eight, io);
                self.store(at + 16, address, Width::Eight, io);
            }
            WaitIrq { irq, count } => {
                let table = *A::registers(&mut self.state).table;
                let Some(slot) = irq_slot(irq).filter(|_| table != 0) else { return Outcome::Wait };
                let seen = self.load(table + slot * size_of::<IrqSlot>() as u64, Width::Eight, io);
                return match seen >= count {
                    true => Outcome::Done(seen),
                    false if self.interrupt(io) => Outcome::Again,
                    false => Outcome::Wait,
                };
            }
            SetInterrupts { on } => {
                let were = A::interrupts_on(&self.state);
                A::set_interrupts(&mut self.state, on);
                return Outcome::Done(were.into());
            }
            Halt => return if self.interrupt(io) { Outcome::Done(0) } else { Outcome::Wait },
            HoldRegisters { set, pattern, doorbell, area } => return self.hold(set, pattern, doorbell, area, io),
            other => return A::carry_out(self, other, io),
        }
        Outcome::Done(0)
    }

    fn hold(&mut self, set: RegisterSet, pattern: u64, doorbell: u64, area: u64, io: &mut A::Io) -> Outcome {
        if set == RegisterSet::Extended {
            return Outcome::Unsupported;
        }
        let begun = *A::registers(&mut self.state).area == area;
        if begun && self.load(area, Width::Eight, io) == 0 {
            return Outcome::Again;
        }
        // Fills the registers the first time, and compares them the second.
        let mut changed = 0;
        if set == RegisterSet::General {
            for (number, register) in A::registers(&mut self.state).general {
                let old = std::mem::replace(register, held_value(pattern, number.into()));
                changed |= u64::from(old != *register) << number;
            }
        } else {
            for (word, bytes) in A::simd(&mut self.state).chunks_exact_mut(8).enumerate() {
                let value = held_value(pattern, word as u64).to_le_bytes();
                changed |= u64::from(bytes != value) << (word / 2);
                bytes.copy_from_slice(&value);
            }
        }
        if begun {
            *A::registers(&mut self.state).area = 0;
            return Outcome::Done(changed);
        }
        *A::registers(&mut self.state).area = area;
        self.store(doorbell, doorbell, Width::Four, io);
        Outcome::Again
    }
}

impl<A: Model> Vcpu<A> for FakeVcpu<A> {
    fn index(&self) -> u32 {
        self.index
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.mailbox.clone()
    }

    fn run(&mut self, io: &mut A::Io) -> Result<Exit, VcpuError> {
        if let Some(error) = lock(&self.machine.script.failures).remove(&self.index) {
            return Err(error);
        }
        loop {
            // Other callbacks than memory's are operations of their own.
            self.machine.posted.deliver(io);
            if self.mailbox.take_kick() {
                self.exits.kicks += 1;
                return Ok(Exit::Kicked);
            }
            self.machine.pump();
            match self.step(io)? {
                Step::Next => {}
                Step::Yield => std::thread::yield_now(),
                Step::Wait => self.mailbox.wait(),
                Step::Exit(exit) => {
                    self.exits.others += 1;
                    return Ok(exit);
                }
            }
        }
    }

    fn boot(&mut self, state: &A::BootState) -> Result<(), VcpuError> {
        A::boot(&mut self.state, state);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        self.state = A::power_on(&self.config, self.index == 0);
        self.mailbox.on.store(self.index == 0, Ordering::Release);
        lock(&self.mailbox.start).take();
        A::reset(&self.machine, self.place());
        Ok(())
    }

    fn save(&mut self, _io: &mut A::Io) -> Result<A::VcpuState, VcpuError> {
        self.take_start();
        let mut state = self.state.clone();
        A::save(&self.machine, self.place(), &mut state);
        Ok(state)
    }

    fn restore(&mut self, state: &A::VcpuState) -> Result<(), VcpuError> {
        A::fits(&self.config, state).map_err(|reason| self.unfit(reason))?;
        self.state = state.clone();
        self.mailbox.on.store(A::is_on(state), Ordering::Release);
        A::restore(&self.machine, self.place(), state);
        Ok(())
    }

    fn stood_still(&mut self) -> Result<(), VcpuError> {
        *lock(&self.machine.script.standstills).entry(self.index).or_default() += 1;
        Ok(())
    }

    fn identity(&mut self) -> Result<A::VcpuIdentity, VcpuError> {
        Ok(A::identity(&self.config))
    }

    fn adopt(&mut self, identity: &A::VcpuIdentity) -> Result<(), VcpuError> {
        A::is_same(&self.config, identity).map_err(|reason| self.unfit(reason))
    }

    fn exits(&self) -> ExitCounts {
        self.exits
    }

    fn dump(&mut self) -> String {
        format!("{:#x?}", self.state)
    }
}

/// What a test's program sees of its vCPU: see [`Fake::program`](super::Fake::program).
pub struct Guest<'a, A: Arch> {
    cpu: &'a mut dyn Access<A>,
    io: &'a mut A::Io,
}

/// The part of a vCPU that a program reaches, without the model's own types.
trait Access<A: Arch> {
    fn index(&self) -> u32;
    fn read(&mut self, gpa: u64, width: Width, io: &mut A::Io) -> u64;
    fn write(&mut self, gpa: u64, value: u64, width: Width, io: &mut A::Io);
    fn interrupt(&mut self, io: &mut A::Io) -> Option<u32>;
}

impl<A: Model> Access<A> for FakeVcpu<A> {
    fn index(&self) -> u32 {
        self.index
    }

    fn read(&mut self, gpa: u64, width: Width, io: &mut A::Io) -> u64 {
        self.load(gpa, width, io)
    }

    fn write(&mut self, gpa: u64, value: u64, width: Width, io: &mut A::Io) {
        self.store(gpa, value, width, io);
    }

    fn interrupt(&mut self, io: &mut A::Io) -> Option<u32> {
        let irq = A::take_interrupt(self, io)?;
        A::end_interrupt(self, irq, io);
        Some(irq)
    }
}

impl<A: Arch> Guest<'_, A> {
    /// The vCPU's number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.cpu.index()
    }

    /// The machine's I/O, to be called as a vCPU does.
    pub fn io(&mut self) -> &mut A::Io {
        self.io
    }

    /// Reads memory, as an instruction does.
    pub fn read(&mut self, gpa: u64, width: Width) -> u64 {
        self.cpu.read(gpa, width, self.io)
    }

    /// Writes memory, as an instruction does.
    pub fn write(&mut self, gpa: u64, value: u64, width: Width) {
        self.cpu.write(gpa, value, width, self.io);
    }

    /// Takes the next interrupt that waits and ends it at once: its vector or INTID.
    pub fn interrupt(&mut self) -> Option<u32> {
        self.cpu.interrupt(self.io)
    }
}
