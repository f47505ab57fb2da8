//! A VM under test, with the probe in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use skep_guest_protocol::{IRQ_TABLE_SIZE, IrqSlot, Op, Operation, STACK_SIZE, Status, Width, irq_slot};
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};
use skep_state::Record;

use super::bus::{Bus, DEADLINE, Recorder};
use super::{Subject, Target};
use crate::aarch64::GicState;
use crate::{Capabilities, Exit, Kick, Parts, Vcpu, Vm, VmBuilder, VmRequest};

/// From [`Target::DEVICE`]: a write to this page stops the vCPU, to its first word because its list has ended.
const STOP: u64 = 0x1000;
const PAUSED: u64 = 8;
const HELD: u64 = 0x10;
/// RAM from [`Target::RAM`] on.
const RAM_SIZE: u64 = 32 << 20;
/// No case uses an address from here on.
const HIGHEST: u64 = (8 << 30) - 1;

/// Why a vCPU that was set going has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its list has ended.
    End,
    /// It has come to the [`Rig::pause`] of this number, from 0.
    At(u64),
    /// It holds registers.
    Held,
    /// The machine must decide.
    Exit(Exit),
}

/// A list in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub gpa: u64,
    /// How many operations, without the end.
    len: usize,
}

/// The state of a whole VM.
pub(super) struct Saved<A: Target> {
    pub vcpus: Vec<A::VcpuState>,
    pub controller: Option<GicState>,
}

pub(super) struct Rig<A: Target> {
    pub capabilities: Capabilities<A>,
    pub config: A::VmConfig,
    pub vcpu_configs: Vec<A::VcpuConfig>,
    pub map: MemoryMap,
    pub vm: Arc<dyn Vm<A>>,
    pub vcpus: Vec<Option<Box<dyn Vcpu<A>>>>,
    pub interrupts: A::Interrupts,
    pub bus: Arc<Bus>,
    ram: Arc<Backing>,
    /// RAM from here on is not used yet.
    free: u64,
    /// The words that let a vCPU go on from a pause, and at which pause the vCPUs are.
    pauses: Vec<u64>,
    paused: BTreeMap<u32, usize>,
}

/// A vCPU on a thread of its own, and why it comes back.
pub(super) struct Running<A: Target> {
    cpu: u32,
    pub kicker: Arc<dyn Kick>,
    outcome: Receiver<Outcome<A>>,
}

/// A vCPU handed back, and why it has come back, or what went wrong.
type Outcome<A> = (Box<dyn Vcpu<A>>, Result<Stop, String>);

pub(super) fn builder<A: Target>(subject: &Subject<A>, max_vcpus: u32) -> Box<dyn VmBuilder<A>> {
    let request = VmRequest { max_vcpus, highest_gpa: HIGHEST, powers: subject.powers };
    subject.hypervisor.builder(&request).expect("the backend begins a VM")
}

impl<A: Target> Rig<A> {
    /// A VM with `vcpus` vCPUs and the first interrupt controller that the backend offers for that many.
    pub(super) fn new(subject: &Subject<A>, vcpus: u32) -> Self {
        let builder = builder(subject, vcpus);
        let config = A::configs(builder.capabilities(), vcpus).into_iter().next();
        let ids: Vec<_> = (0..vcpus).map(A::cpu_id).collect();
        Self::build(subject, builder, config.expect("an interrupt controller takes that many vCPUs"), &ids)
    }

    /// Calls `case` with a VM for each interrupt controller that the backend offers.
    pub(super) fn for_each(subject: &Subject<A>, vcpus: u32, case: impl Fn(Self)) {
        let configs = A::configs(builder(subject, vcpus).capabilities(), vcpus);
        assert!(!configs.is_empty(), "no interrupt controller takes {vcpus} vCPUs");
        for config in configs {
            let ids: Vec<_> = (0..vcpus).map(A::cpu_id).collect();
            case(Self::build(subject, builder(subject, vcpus), config, &ids));
        }
    }

    /// A VM whose vCPUs have these ids.
    pub(super) fn build(
        subject: &Subject<A>,
        builder: Box<dyn VmBuilder<A>>,
        config: A::VmConfig,
        ids: &[u64],
    ) -> Self {
        let ram = Backing::new(RAM_SIZE, &RamOptions::default()).expect("the host gives the guest's RAM");
        let vcpus: Vec<_> = ids.iter().map(|id| A::vcpu_config(builder.capabilities(), *id)).collect();
        let rig = Self::on(builder, config, vcpus, Arc::new(ram));
        rig.load_probe(subject);
        rig
    }

    fn on(builder: Box<dyn VmBuilder<A>>, config: A::VmConfig, vcpus: Vec<A::VcpuConfig>, ram: Arc<Backing>) -> Self {
        let capabilities = builder.capabilities().clone();
        let parts = builder.build(&config, &vcpus).expect("the backend makes the VM");
        let Parts { vm, vcpus: cpus, interrupts } = parts;
        assert_eq!(cpus.len(), vcpus.len(), "as many vCPUs as were asked for");
        let map = MemoryMap::new();
        map.listen(vm.memory()).expect("the backend follows an empty map");
        let region = Region::new("ram", RegionKind::Ram, A::RAM, RAM_SIZE, Arc::clone(&ram), 0);
        map.add(region.expect("RAM is made of whole pages")).expect("the backend maps RAM");
        let vcpus_by_index = cpus.into_iter().map(Some).collect();
        Self {
            capabilities,
            config,
            vcpu_configs: vcpus,
            map,
            vm,
            vcpus: vcpus_by_index,
            interrupts,
            bus: Arc::default(),
            ram,
            free: A::FREE,
            pauses: Vec::new(),
            paused: BTreeMap::new(),
        }
    }

    /// A fresh VM like this one, with the same RAM. This one must not run any more.
    pub(super) fn successor(self, subject: &Subject<A>) -> Self {
        let Self { config, vcpu_configs, ram, free, bus, pauses, paused, vm, vcpus, map, interrupts, .. } = self;
        drop((vcpus, interrupts, map, vm));
        let max = u32::try_from(vcpu_configs.len()).expect("there were that many before");
        Self { free, bus, pauses, paused, ..Self::on(builder(subject, max), config, vcpu_configs, ram) }
    }

    /// Puts the probe into RAM as it is at first, with all that it uses besides zero.
    pub(super) fn load_probe(&self, subject: &Subject<A>) {
        let room = usize::try_from(A::FREE - A::PROBE).expect("it is small");
        assert!(subject.probe.len() < room, "the probe does not fit");
        let mut image = vec![0; room];
        image[..subject.probe.len()].copy_from_slice(subject.probe);
        self.write(A::PROBE, &image);
    }

    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.map.ram().write_slice(bytes, GuestAddress(gpa)).expect("the case writes RAM");
    }

    pub(super) fn write_word(&self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    pub(super) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.map.ram().read_slice(&mut bytes, GuestAddress(gpa)).expect("the case reads RAM");
        bytes
    }

    pub(super) fn read_word(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }

    /// Some RAM that nothing else uses, zero.
    pub(super) fn allocate(&mut self, size: u64, alignment: u64) -> u64 {
        let gpa = self.free.next_multiple_of(alignment);
        self.free = gpa + size;
        assert!(self.free <= A::RAM + RAM_SIZE, "the case uses more RAM than there is");
        gpa
    }

    /// The upper end of a stack.
    pub(super) fn stack(&mut self) -> u64 {
        self.allocate(STACK_SIZE, 0x1000) + STACK_SIZE
    }

    /// A table of interrupts.
    pub(super) fn table(&mut self) -> u64 {
        self.allocate(IRQ_TABLE_SIZE, 0x1000)
    }

    /// How often an interrupt was counted in a table, and on which CPU last.
    pub(super) fn slot(&self, table: u64, irq: u64) -> (u64, u64) {
        let slot = irq_slot(irq).expect("the table has room for it");
        let at = table + slot * size_of::<IrqSlot>() as u64;
        (self.read_word(at), self.read_word(at + 8))
    }

    /// All RAM that anything uses, from its beginning on.
    pub(super) fn used(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.free - A::RAM).expect("it is small")];
        self.map.ram().read_slice(&mut bytes, GuestAddress(A::RAM)).expect("the case reads RAM");
        bytes
    }

    /// Puts back what [`Rig::used`] has read, with all pauses ended.
    pub(super) fn rewind(&self, ram: &[u8]) {
        self.write(A::RAM, ram);
        self.pauses.iter().for_each(|word| self.write_word(*word, 1));
    }

    /// Another region of memory, filled with `fill`.
    pub(super) fn add_region(&self, kind: RegionKind, gpa: u64, pages: u64, fill: u8) {
        let size = pages * 0x1000;
        let backing = Backing::new(size, &RamOptions::default()).expect("the host gives memory");
        let region = Region::new("more", kind, gpa, size, Arc::new(backing), 0).expect("it is made of whole pages");
        let bytes = vec![fill; usize::try_from(size).expect("it is small")];
        region.write_slice(&bytes, skep_memory::vm_memory::MemoryRegionAddress(0)).expect("it is that large");
        self.map.add(region).expect("the backend maps another region");
    }

    /// A list of operations in RAM, that ends by stopping the vCPU.
    pub(super) fn list(&mut self, operations: &[Operation]) -> List {
        let end = Operation::End { doorbell: A::DEVICE + STOP };
        let bytes: Vec<_> =
            operations.iter().chain([&end]).flat_map(|operation| operation.encode().to_bytes()).collect();
        let gpa = self.allocate(bytes.len() as u64, 64);
        self.write(gpa, &bytes);
        List { gpa, len: operations.len() }
    }

    /// An operation as it is in RAM now.
    pub(super) fn op(&self, list: List, index: usize) -> Op {
        Op::from_bytes(&self.read(list.gpa + (index * Op::SIZE) as u64))
    }

    /// The results of all operations of a list, each of which must have been carried out.
    pub(super) fn results(&self, list: List) -> Vec<u64> {
        let result = |index| {
            let op = self.op(list, index);
            let what = Operation::decode(&op);
            assert_eq!(op.outcome(), Some(Status::Done), "operation {index}, {what:?}, result {:#x}", op.result);
            op.result
        };
        (0..list.len).map(result).collect()
    }

    /// Lets a vCPU in its power-on state begin with a list.
    pub(super) fn boot(&mut self, cpu: u32, list: List) {
        self.vcpu(cpu).boot(&A::boot_state(list.gpa)).expect("the backend takes a boot state");
    }

    pub(super) fn vcpu(&mut self, cpu: u32) -> &mut dyn Vcpu<A> {
        self.vcpus[cpu as usize].as_deref_mut().expect("the vCPU is not running")
    }

    pub(super) fn recorder(&mut self, cpu: u32) -> Recorder {
        let (bus, kicker) = (Arc::clone(&self.bus), self.vcpu(cpu).kicker());
        Recorder { cpu, bus, kicker, stop_at: A::DEVICE + STOP, stopped: None }
    }

    /// Operations that stop the vCPU, as [`Stop::At`] counts them; it goes on when it is started again, not before.
    pub(super) fn pause(&mut self) -> [Operation; 2] {
        let word = self.allocate(8, 8);
        self.write_word(word, 0);
        let number = self.pauses.len() as u64;
        self.pauses.push(word);
        let stop = Operation::WriteMemory { address: A::DEVICE + STOP + PAUSED, value: number, width: Width::Four };
        [stop, Operation::SpinUntil { address: word, value: 1, width: Width::Eight }]
    }

    /// Where `HoldRegisters` stops the vCPU: [`Stop::Held`].
    pub(super) fn hold_doorbell() -> u64 {
        A::DEVICE + STOP + HELD
    }

    /// Sets a vCPU going, on a thread of its own. Kicks don't stop it.
    pub(super) fn start(&mut self, cpu: u32) -> Running<A> {
        if let Some(number) = self.paused.remove(&cpu) {
            self.write_word(self.pauses[number], 1);
        }
        self.spawn(cpu, |vcpu, recorder| {
            loop {
                let exit = vcpu.run(A::io(recorder));
                let exit = exit.map_err(|e| format!("{e}\n{}", e.registers().unwrap_or_default()))?;
                match (exit, recorder.stopped.take()) {
                    (Exit::Kicked, None) if recorder.bus.is_given_up() => return Err(vcpu.dump()),
                    (Exit::Kicked, None) => {}
                    (Exit::Kicked, Some((address, value))) => {
                        return Ok(match address & 0xfff {
                            PAUSED => Stop::At(value),
                            HELD => Stop::Held,
                            _ => Stop::End,
                        });
                    }
                    (exit, _) => return Ok(Stop::Exit(exit)),
                }
            }
        })
    }

    /// Sets a vCPU going for one run only.
    pub(super) fn enter(&mut self, cpu: u32) -> Running<A> {
        self.spawn(cpu, |vcpu, recorder| vcpu.run(A::io(recorder)).map(Stop::Exit).map_err(|e| e.to_string()))
    }

    /// Lets `act` have a vCPU on a thread of its own.
    pub(super) fn spawn<F>(&mut self, cpu: u32, act: F) -> Running<A>
    where
        F: FnOnce(&mut dyn Vcpu<A>, &mut Recorder) -> Result<Stop, String> + Send + 'static,
    {
        let mut recorder = self.recorder(cpu);
        let kicker = Arc::clone(&recorder.kicker);
        let mut vcpu = self.vcpus[cpu as usize].take().expect("the vCPU is not running");
        let (sender, outcome) = channel();
        std::thread::spawn(move || {
            let stop = act(&mut *vcpu, &mut recorder);
            // A case that has failed already does not listen any more.
            let _ = sender.send((vcpu, stop));
        });
        Running { cpu, kicker, outcome }
    }

    /// Waits until a vCPU stops.
    pub(super) fn join(&mut self, running: Running<A>) -> Stop {
        let Running { cpu, kicker, outcome } = running;
        let (vcpu, stop) = match outcome.recv_timeout(DEADLINE) {
            Ok((vcpu, Ok(stop))) => (vcpu, stop),
            Ok((_, Err(why))) => panic!("vCPU {cpu}: {why}\nall accesses: {:x?}", self.bus.log()),
            Err(RecvTimeoutError::Disconnected) => panic!("what vCPU {cpu} called back into has failed: see above"),
            Err(RecvTimeoutError::Timeout) => {
                self.bus.give_up();
                kicker.kick();
                let state = outcome.recv_timeout(DEADLINE).map(|(_, state)| state.err().unwrap_or_default());
                let state = state.unwrap_or_else(|_| "it does not even heed a kick".to_owned());
                panic!("vCPU {cpu} does not stop; all accesses: {:x?}\n{state}", self.bus.log());
            }
        };
        self.vcpus[cpu as usize] = Some(vcpu);
        if let Stop::At(number) = stop {
            self.paused.insert(cpu, usize::try_from(number).expect("there are few"));
        }
        stop
    }

    /// Runs a vCPU until it stops.
    pub(super) fn run(&mut self, cpu: u32) -> Stop {
        let running = self.start(cpu);
        self.join(running)
    }

    /// Boots vCPU 0 with a list, runs it to its end, and gives the results.
    pub(super) fn carry_out(&mut self, operations: &[Operation]) -> Vec<u64> {
        let list = self.list(operations);
        self.boot(0, list);
        assert_eq!(self.run(0), Stop::End);
        self.results(list)
    }

    /// The state of a vCPU that is stopped, which passes its own checks and survives being encoded.
    pub(super) fn save_vcpu(&mut self, cpu: u32) -> A::VcpuState {
        let mut recorder = self.recorder(cpu);
        let state = self.vcpu(cpu).save(A::io(&mut recorder)).expect("the backend saves a vCPU");
        let again = Record::of(&state).open().expect("a saved state passes its own checks");
        assert_eq!(state, again, "a state survives being encoded");
        state
    }

    /// The state of the VM, all vCPUs being stopped.
    pub(super) fn save(&mut self) -> Saved<A> {
        let vcpus = (0..).take(self.vcpus.len()).map(|cpu| self.save_vcpu(cpu)).collect();
        let controller = A::save_controller(&self.interrupts);
        if let Some(state) = &controller {
            assert_eq!(Record::of(state).open().as_ref(), Ok(state), "a state survives being encoded");
        }
        Saved { vcpus, controller }
    }

    pub(super) fn restore(&mut self, saved: &Saved<A>) {
        for (cpu, state) in (0..).zip(&saved.vcpus) {
            self.vcpu(cpu).restore(state).expect("the backend restores what it has saved");
        }
        if let Some(state) = &saved.controller {
            A::restore_controller(&self.interrupts, state);
        }
    }
}
