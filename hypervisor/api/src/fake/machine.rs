//! What a fake VM's vCPUs share, and what an architecture is to them.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use skep_guest_protocol::{Operation, Width};
use skep_irq::{IrqError, MsiMessage, MsiRoutes, RequesterId, Route, RouteChange};
use skep_memory::{DirtySource, Listener};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::Memory;
use super::posted::Posted;
use super::vcpu::{FakeVcpu, Outcome};
use super::{Script, limit, lock};
use crate::{
    Arch, Capabilities, Doorbell, DoorbellSpace, Doorbells, Exit, GuestClock, HypervisorError, Kick, PostedWrites,
    Powers, Vcpu, Vm,
};

/// The registers in which an interpreter of operations keeps where it is, so that a saved state holds all of it.
pub(super) struct Registers<'a> {
    /// The operation that comes next; 0 where the list has ended.
    pub position: &'a mut u64,
    /// The list; 0 where it has not begun.
    pub list: &'a mut u64,
    /// The area of a `HoldRegisters` under way, or 0.
    pub area: &'a mut u64,
    /// The table of interrupts.
    pub table: &'a mut u64,
    /// The registers that `HoldRegisters` fills, with their numbers.
    pub general: Vec<(u32, &'a mut u64)>,
}

/// An architecture, as the fake sees it.
pub(super) trait Model: Arch<VcpuConfig: Clone, Capabilities: Clone> {
    /// The interrupt controllers of a VM.
    type Controller: Send + Sync;
    /// How a guest ends that finds its list malformed.
    const SHUT_DOWN: Exit;

    fn capabilities() -> Self::Capabilities;
    fn controller(
        config: &Self::VmConfig,
        capabilities: &Capabilities<Self>,
        vcpus: &[Self::VcpuConfig],
    ) -> Result<Self::Controller, HypervisorError>;
    fn interrupts(machine: &Arc<Machine<Self>>) -> Self::Interrupts;
    /// Takes a further vCPU in, if the controllers take one now.
    fn add(machine: &Machine<Self>, config: &Self::VcpuConfig) -> bool;
    /// What other CPUs call it.
    fn id(config: &Self::VcpuConfig) -> u64;
    fn signal(machine: &Machine<Self>, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError>;
    /// A rising edge on a line.
    fn edge(_machine: &Machine<Self>, _line: u32) {}

    fn power_on(config: &Self::VcpuConfig, first: bool) -> Self::VcpuState;
    fn boot(state: &mut Self::VcpuState, boot: &Self::BootState);
    /// The list that a boot state points to.
    fn first_list(state: &Self::VcpuState) -> u64;
    fn registers(state: &mut Self::VcpuState) -> Registers<'_>;
    /// The 128-bit registers.
    fn simd(state: &mut Self::VcpuState) -> &mut [u8];
    fn is_on(state: &Self::VcpuState) -> bool;
    fn turn_on(state: &mut Self::VcpuState);
    fn interrupts_on(state: &Self::VcpuState) -> bool;
    fn set_interrupts(state: &mut Self::VcpuState, on: bool);
    /// What a vCPU is that is no configuration.
    fn identity(config: &Self::VcpuConfig) -> Self::VcpuIdentity;
    /// Whether a saved state's identity can be this vCPU's; the text says why not.
    fn is_same(_config: &Self::VcpuConfig, _identity: &Self::VcpuIdentity) -> Result<(), String> {
        Ok(())
    }
    /// Whether a saved state can be this vCPU's; the text says why not.
    fn fits(config: &Self::VcpuConfig, state: &Self::VcpuState) -> Result<(), String>;

    /// What the power-on state of the vCPU's own part of the controllers is.
    fn reset(machine: &Machine<Self>, cpu: usize);
    /// Adds to a state what the controllers and the clock hold of it.
    fn save(machine: &Machine<Self>, cpu: usize, state: &mut Self::VcpuState);
    fn restore(machine: &Machine<Self>, cpu: usize, state: &Self::VcpuState);

    /// Takes the next interrupt.
    fn take_interrupt(cpu: &mut FakeVcpu<Self>, io: &mut Self::Io) -> Option<u32>;
    fn end_interrupt(cpu: &mut FakeVcpu<Self>, irq: u32, io: &mut Self::Io);
    /// A register of a controller, at `address` in memory.
    fn read_controller(_cpu: &FakeVcpu<Self>, _address: u64) -> Option<u32> {
        None
    }
    fn write_controller(_cpu: &FakeVcpu<Self>, _address: u64, _value: u32) -> bool {
        false
    }
    /// An operation that only this architecture has.
    fn carry_out(cpu: &mut FakeVcpu<Self>, operation: Operation, io: &mut Self::Io) -> Outcome;
}

/// How others reach a vCPU.
pub(super) struct Mailbox {
    /// What other CPUs call it.
    pub id: u64,
    kicked: AtomicBool,
    /// Whether it has been started.
    pub on: AtomicBool,
    /// The list that it is to start with.
    pub start: Mutex<Option<u64>>,
    wake: EventFd,
    /// Readable when `wake` is, or a route's eventfd.
    epoll: Epoll,
}

impl Mailbox {
    fn new(id: u64, on: bool, routes: &Epoll) -> Result<Self, HypervisorError> {
        let failed = |source| HypervisorError::call("make a fake vCPU's events", source);
        let (wake, epoll) = (EventFd::new(EFD_NONBLOCK).map_err(failed)?, Epoll::new().map_err(failed)?);
        for fd in [wake.as_raw_fd(), routes.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).map_err(failed)?;
        }
        let (kicked, on) = (AtomicBool::new(false), AtomicBool::new(on));
        Ok(Self { id, kicked, on, start: Mutex::default(), wake, epoll })
    }

    pub(super) fn wake(&self) {
        // An eventfd refuses only what would overflow it, and is readable then.
        let _ = self.wake.write(1);
    }

    pub(super) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Waits for what may end a wait. What came since the last wait counts.
    pub(super) fn wait(&self) {
        let mut events = [EpollEvent::default()];
        // A signal of the host's is as good an end as any: the caller looks again.
        let _ = self.epoll.wait(-1, &mut events);
        let _ = self.wake.read();
    }
}

impl Kick for Mailbox {
    fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.wake();
    }
}

/// What an eventfd's signal is.
#[derive(Clone, Copy)]
enum Delivery {
    Message(MsiMessage, Option<RequesterId>),
    Edge(u32),
}

/// The clock that the guest reads: each reading moves it on.
pub(super) struct Clock(AtomicU64);

impl GuestClock for Clock {
    fn get(&self) -> Result<u64, HypervisorError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn set(&self, value: u64) -> Result<(), HypervisorError> {
        self.0.store(value, Ordering::Relaxed);
        Ok(())
    }
}

impl Clock {
    pub(super) fn read(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A fake VM.
pub(super) struct Machine<A: Model> {
    me: Weak<Self>,
    powers: Powers,
    max_vcpus: u32,
    pub memory: Arc<Memory>,
    pub controller: A::Controller,
    pub clock: Clock,
    pub script: Arc<Script<A>>,
    pub posted: Arc<Posted>,
    cpus: Mutex<Vec<Arc<Mailbox>>>,
    doorbells: Mutex<BTreeMap<Doorbell, EventFd>>,
    routes: Mutex<BTreeMap<u32, (EventFd, Option<Delivery>)>>,
    /// Readable when an eventfd is whose route delivers.
    epoll: Epoll,
}

impl<A: Model> Machine<A> {
    pub(super) fn new(
        capabilities: Capabilities<A>,
        controller: A::Controller,
        max_vcpus: u32,
        script: Arc<Script<A>>,
    ) -> Result<Arc<Self>, HypervisorError> {
        let epoll = Epoll::new().map_err(|e| HypervisorError::call("make a fake VM's events", e))?;
        let Capabilities { powers, address_bits, memory_slots, .. } = capabilities;
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            powers,
            max_vcpus,
            memory: Arc::new(Memory::new(memory_slots, address_bits)),
            controller,
            clock: Clock(AtomicU64::new(0)),
            script,
            posted: Arc::default(),
            cpus: Mutex::default(),
            doorbells: Mutex::default(),
            routes: Mutex::default(),
            epoll,
        }))
    }

    pub(super) fn has(&self, power: Powers) -> bool {
        self.powers.contains(power)
    }

    pub(super) fn vcpu(self: &Arc<Self>, config: &A::VcpuConfig) -> Result<Box<dyn Vcpu<A>>, HypervisorError> {
        let mut cpus = lock(&self.cpus);
        let index = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        let mailbox = Arc::new(Mailbox::new(A::id(config), index == 0, &self.epoll)?);
        cpus.push(Arc::clone(&mailbox));
        Ok(Box::new(FakeVcpu::new(Arc::clone(self), mailbox, index, config.clone())))
    }

    /// The vCPU that others call `id`.
    pub(super) fn find(&self, id: u64) -> Option<Arc<Mailbox>> {
        lock(&self.cpus).iter().find(|cpu| cpu.id == id).cloned()
    }

    /// Lets each vCPU that waits look again.
    pub(super) fn wake_all(&self) {
        lock(&self.cpus).iter().for_each(|cpu| cpu.wake());
    }

    /// Starts a vCPU that is off; `false` for one that is on.
    pub(super) fn start(cpu: &Mailbox, list: u64) -> bool {
        if cpu.on.swap(true, Ordering::AcqRel) {
            return false;
        }
        *lock(&cpu.start) = Some(list);
        cpu.wake();
        true
    }

    /// Signals the doorbell of a write, if there is one.
    pub(super) fn ring(&self, space: DoorbellSpace, address: u64, value: u64, width: Width) -> bool {
        let doorbells = lock(&self.doorbells);
        let fits = |doorbell: &&Doorbell| {
            (doorbell.space, doorbell.address) == (space, address)
                && doorbell.width.is_none_or(|wanted| u16::from(wanted) == width.bytes())
                && doorbell.value.is_none_or(|wanted| wanted == value)
        };
        let found = doorbells.keys().find(fits).and_then(|doorbell| doorbells.get(doorbell));
        found.is_some_and(|fd| fd.write(1).is_ok())
    }

    /// Delivers what eventfds have been signalled with.
    pub(super) fn pump(&self) {
        let signalled: Vec<_> = {
            let routes = lock(&self.routes);
            let unmasked = routes.values().filter_map(|(fd, delivery)| delivery.map(|delivery| (fd, delivery)));
            unmasked.filter(|(fd, _)| fd.read().is_ok()).map(|(_, delivery)| delivery).collect()
        };
        for delivery in signalled {
            match delivery {
                // A message that reaches nothing is the guest's own doing.
                Delivery::Message(message, requester) => drop(A::signal(self, message, requester)),
                Delivery::Edge(line) => A::edge(self, line),
            }
        }
    }

    fn add_route(&self) -> Result<(Route, EventFd), IrqError> {
        let failed = |source| IrqError::Backend { what: "make a route's eventfd", source };
        let fd = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let mut routes = lock(&self.routes);
        let number = (0..).find(|number| !routes.contains_key(number)).expect("there are fewer routes than numbers");
        routes.insert(number, (fd.try_clone().map_err(failed)?, None));
        Ok((Route(number), fd))
    }

    fn set_route(&self, route: Route, delivery: Option<Delivery>) -> Result<(), IrqError> {
        let failed = |source| IrqError::Backend { what: "change a route", source };
        let mut routes = lock(&self.routes);
        let (fd, old) = routes.get_mut(&route.0).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let operation = match (&old, &delivery) {
            (None, Some(_)) => ControlOperation::Add,
            (Some(_), None) => ControlOperation::Delete,
            _ => ControlOperation::Modify,
        };
        if old.is_some() || delivery.is_some() {
            self.epoll.ctl(operation, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).map_err(failed)?;
        }
        *old = delivery;
        Ok(())
    }

    /// An eventfd whose signals are edges on a line.
    pub(super) fn line_eventfd(&self, line: u32) -> Option<EventFd> {
        let (route, fd) = self.has(Powers::INTERRUPT_EVENTFDS).then(|| self.add_route())?.ok()?;
        self.set_route(route, Some(Delivery::Edge(line))).ok()?;
        Some(fd)
    }
}

impl<A: Model> Vm<A> for Machine<A> {
    fn memory(&self) -> Arc<dyn Listener> {
        self.memory.clone()
    }

    fn add_vcpu(&self, config: &A::VcpuConfig) -> Result<Option<Box<dyn Vcpu<A>>>, HypervisorError> {
        let count = lock(&self.cpus).len() as u64;
        if count >= u64::from(self.max_vcpus) {
            return Err(limit("vCPUs", count + 1, self.max_vcpus.into()));
        }
        let me = self.me.upgrade().expect("a VM that is called is there");
        A::add(self, config).then(|| me.vcpu(config)).transpose()
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        self.has(Powers::DOORBELLS).then_some(self)
    }

    fn posted_writes(&self) -> Option<Arc<dyn PostedWrites>> {
        self.has(Powers::POSTED_WRITES).then(|| self.posted.clone() as _)
    }

    fn dirty_source(&self) -> Option<Arc<dyn DirtySource>> {
        self.has(Powers::DIRTY_LOG).then(|| self.memory.clone() as _)
    }

    fn clock(&self) -> &dyn GuestClock {
        &self.clock
    }
}

impl<A: Model> Doorbells for Machine<A> {
    fn attach(&self, doorbell: Doorbell, fd: &EventFd) -> Result<(), HypervisorError> {
        let failed = |source| HypervisorError::call(format!("attach a doorbell at {:#x}", doorbell.address), source);
        let mut doorbells = lock(&self.doorbells);
        if doorbells.contains_key(&doorbell) {
            return Err(failed(std::io::ErrorKind::AlreadyExists.into()));
        }
        doorbells.insert(doorbell, fd.try_clone().map_err(failed)?);
        Ok(())
    }

    fn detach(&self, doorbell: Doorbell, _fd: &EventFd) -> Result<(), HypervisorError> {
        let what = format!("detach a doorbell at {:#x}", doorbell.address);
        let gone = || HypervisorError::call(what, std::io::ErrorKind::NotFound);
        lock(&self.doorbells).remove(&doorbell).map(drop).ok_or_else(gone)
    }
}

impl<A: Model> MsiRoutes for Machine<A> {
    fn allocate(&self) -> Result<(Route, EventFd), IrqError> {
        self.add_route()
    }

    fn update(&self, changes: &[RouteChange]) -> Result<(), IrqError> {
        changes.iter().try_for_each(|change| {
            self.set_route(change.route, change.message.map(|message| Delivery::Message(message, change.requester)))
        })
    }

    fn free(&self, route: Route) {
        // Where the route was not there, there is nothing to give back.
        let _ = self.set_route(route, None);
        lock(&self.routes).remove(&route.0);
    }
}
