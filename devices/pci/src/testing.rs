//! What the tests share: a hierarchy whose every effect is noted, and random lives in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use skep_bus::{Action, AddressSpace, Device};
use skep_hypervisor::{Doorbell, HypervisorError};
pub(crate) use skep_irq::testing::Log;
use skep_irq::{
    IrqError, IrqLine, LineTable, LineTarget, MsiMessage, MsiRoutes, MsiTarget, RequesterId, Route, RouteChange,
};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::*;

/// Line `number`, whose changes are noted as `INTx NUMBER+` and `-`.
pub(crate) fn line(log: &Log, number: usize) -> IrqLine {
    log.line(format!("INTx {number}"))
}

/// The lines of a PC: changes of PIRQs' inputs are noted as [`line`]'s, those of ISA as `IRQ NUMBER+` and `-`.
struct Lines(Log);

impl LineTarget for Lines {
    fn set_level(&self, line: u32, asserted: bool) {
        let name = line.checked_sub(16).map_or_else(|| format!("IRQ {line}"), |number| format!("INTx {number}"));
        self.0.note(format!("{name}{}", if asserted { '+' } else { '-' }));
    }
}

/// A router to such lines.
pub(crate) fn router(log: &Log) -> Arc<PirqRouter> {
    let table = LineTable::new(Arc::new(Lines(log.clone())), 0..=23);
    Arc::new(PirqRouter::new(&table, 16).unwrap())
}

/// An LPC bridge with nothing on its PIRQs.
pub(crate) fn lpc_bridge(pm_base: Option<u16>) -> LpcBridge {
    LpcBridge::new(pm_base, router(&Log::default()))
}

/// Notes attached and detached doorbells.
pub(crate) struct Bells(pub(crate) Log);

impl skep_hypervisor::Doorbells for Bells {
    fn attach(&self, doorbell: Doorbell, _fd: &EventFd) -> Result<(), HypervisorError> {
        self.0.note(format!("attach {:?} {:x}", doorbell.space, doorbell.address));
        Ok(())
    }

    fn detach(&self, doorbell: Doorbell, _fd: &EventFd) -> Result<(), HypervisorError> {
        self.0.note(format!("detach {:?} {:x}", doorbell.space, doorbell.address));
        Ok(())
    }
}

/// Notes messages as `MSI WHO ADDRESS DATA`, and changes of routes as `routes COUNT`.
#[derive(Clone, Default)]
pub(crate) struct Sink {
    pub(crate) log: Log,
    routes: Arc<Mutex<BTreeMap<u32, EventFd>>>,
}

impl MsiTarget for Sink {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        let who = requester.map_or(u32::MAX, |requester| requester.0);
        self.log.note(format!("MSI {who:04x} {:x} {:x}", message.address, message.data));
        Ok(())
    }

    fn routes(&self) -> Option<&dyn MsiRoutes> {
        Some(self)
    }
}

impl MsiRoutes for Sink {
    fn allocate(&self) -> Result<(Route, EventFd), IrqError> {
        let mut routes = self.routes.lock().unwrap();
        let (route, fd) = (routes.len() as u32, EventFd::new(EFD_NONBLOCK).unwrap());
        routes.insert(route, fd.try_clone().unwrap());
        Ok((Route(route), fd))
    }

    fn update(&self, changes: &[RouteChange]) -> Result<(), IrqError> {
        let live = changes.iter().filter(|change| change.message.is_some()).count();
        self.log.note(format!("routes {live}/{}", changes.len()));
        Ok(())
    }

    fn free(&self, route: Route) {
        self.routes.lock().unwrap().remove(&route.0);
    }
}

/// A function that answers each byte with its offset, and notes what it is told.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) log: Log,
    pub(crate) attachment: Attachment,
    pub(crate) bells: Mutex<Vec<FunctionDoorbell>>,
}

impl Function for Probe {
    fn read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = at as u8;
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.log.note(format!("{} BAR {bar} {offset:x}={data:x?}", self.name));
    }

    fn reset(&self) {
        self.log.note(format!("{} reset", self.name));
    }

    fn doorbells(&self) -> Vec<FunctionDoorbell> {
        self.bells.lock().unwrap().clone()
    }
}

pub(crate) const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    class: 0x01_0802,
    revision: 1,
};

/// 64-bit registers, MSI-X in a BAR of its own, I/O, MSI, pin B, and a window on the BARs.
pub(crate) fn config() -> EndpointConfig {
    let msix = Msix::in_bar(2, 5);
    EndpointConfig {
        identity: IDENTITY,
        bars: [
            Some(Bar::memory64(0x4000)),
            None,
            Some(Bar::memory32(msix.own_bar_size())),
            Some(Bar::io(0x20)),
            None,
            None,
        ],
        msix: Some(msix),
        msi: 4,
        pin: Some(Pin::B),
        capabilities: vec![Capability {
            id: 9,
            body: [vec![20, 5], vec![0; 16]].concat(),
            writable: [vec![0, 0, 0xff, 0, 0, 0], vec![0xff; 8], vec![0; 4]].concat(),
            window: Some(BarWindow { bar: 4, offset: 8, length: 12, data: 16 }),
        }],
        rom: None,
    }
}

/// An endpoint of `config` in a place, with its probe.
pub(crate) fn probe(
    socket: &Socket,
    log: &Log,
    name: &'static str,
    config: &EndpointConfig,
) -> (Arc<Endpoint>, Arc<Probe>) {
    let mut made = None;
    let endpoint = Endpoint::new(socket, config, |attachment| {
        let probe = Arc::new(Probe { name, log: log.clone(), attachment, bells: Mutex::default() });
        made = Some(probe.clone());
        probe
    });
    (endpoint, made.unwrap())
}

/// Memory of 64 KiB at 0.
pub(crate) fn memory() -> MemoryMap {
    let map = MemoryMap::new();
    let backing = Arc::new(Backing::new(0x1_0000, &RamOptions::default()).unwrap());
    map.add(Region::new("RAM", RegionKind::Ram, 0, 0x1_0000, backing, 0).unwrap()).unwrap();
    map
}

/// A place outside any hierarchy.
pub(crate) fn socket(sink: &Sink, place: PciPlace) -> Socket {
    let lines = [0, 1, 2, 3].map(|number| line(&sink.log, number));
    Socket::new(place, memory(), Arc::new(sink.clone()), lines)
}

/// A whole hierarchy: MCH, LPC bridge, three ports of which the first has a device, a device on bus 0.
pub(crate) struct Rig {
    pub(crate) root: Arc<RootComplex>,
    pub(crate) sink: Sink,
    pub(crate) log: Log,
    pub(crate) ejected: Arc<Mutex<Vec<PciPlace>>>,
    pub(crate) probes: Vec<Arc<Probe>>,
    pub(crate) memory: AddressSpace,
    pub(crate) ports: AddressSpace,
    pub(crate) decoder: Decoder,
}

/// The device of the rig's endpoint on bus 0, and that of its first port.
pub(crate) const INTEGRATED: u8 = 4;
pub(crate) const FIRST_PORT: u8 = 8;
/// What devices behind its ports are called.
pub(crate) const BEHIND: [&str; 3] = ["two", "three", "four"];

/// The rig's endpoints, once placed, and its first port.
pub(crate) const ONE: Address = Address::new(0, INTEGRATED);
pub(crate) const TWO: Address = Address::new(1, 0);
pub(crate) const PORT: Address = Address::new(0, FIRST_PORT);

pub(crate) const WINDOWS: Windows = Windows {
    io: Window { base: 0x1000, size: 0xf000 },
    memory32: Window { base: 0xc000_0000, size: 0x2000_0000 },
    memory64: Window { base: 0x40_0000_0000, size: 0x40_0000_0000 },
};

pub(crate) fn rig() -> Rig {
    rig_with(Arc::new(Mch::default()), &[0])
}

/// With that at device 0, and devices behind those ports.
pub(crate) fn rig_with(bridge: Arc<dyn ChipsetFunction>, ports: &[u8]) -> Rig {
    let sink = Sink::default();
    let log = sink.log.clone();
    let ejected = Arc::new(Mutex::new(Vec::new()));
    let router = router(&log);
    let root = Arc::new(RootComplex::new(RootComplexConfig {
        memory: memory(),
        messages: Arc::new(sink.clone()),
        lines: router.lines(),
        ejected: Box::new({
            let ejected = ejected.clone();
            move |endpoint| ejected.lock().unwrap().push(endpoint.place())
        }),
    }));
    root.add_chipset(0, bridge).unwrap();
    root.add_chipset(31, Arc::new(LpcBridge::new(Some(0x600), router))).unwrap();
    for number in 0..3 {
        root.add_port(number, FIRST_PORT + number).unwrap();
    }
    let mut probes = Vec::new();
    let behind = ports.iter().map(|number| (BEHIND[usize::from(*number)], PciPlace::Port(*number)));
    for (name, place) in [("one", PciPlace::Root(INTEGRATED))].into_iter().chain(behind) {
        let (endpoint, probe) = probe(&root.socket(place).unwrap(), &log, name, &config());
        root.insert(endpoint).unwrap();
        probes.push(probe);
    }
    let (memory, ports) = (AddressSpace::memory(), AddressSpace::ports());
    Rig { root, sink, log, ejected, probes, memory, ports, decoder: Decoder::new() }
}

/// [`rig`], placed and mapped.
pub(crate) fn placed() -> Rig {
    rig().placed()
}

impl Rig {
    pub(crate) fn placed(self) -> Self {
        self.root.place(&WINDOWS).unwrap();
        self.update();
        self.log.take();
        self
    }

    pub(crate) fn update(&self) {
        let spaces =
            Spaces { memory: &self.memory, io: IoSpace::Ports(&self.ports), doorbells: Some(&Bells(self.log.clone())) };
        self.decoder.update(&spaces, || self.root.mappings());
    }

    /// What is mapped, as text.
    pub(crate) fn mapped(&self) -> Vec<String> {
        let mut rows: Vec<_> = self.decoder.mapped().iter().map(|mapping| format!("{mapping:?}")).collect();
        rows.sort();
        rows
    }

    pub(crate) fn read(&self, address: Address, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.root.config_read(address, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read16(&self, address: Address, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.root.config_read(address, offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Writes `bytes` bytes, and lets the machine follow.
    pub(crate) fn write(&self, address: Address, offset: u16, bytes: usize, value: u32) {
        if self.root.config_write(address, offset, &value.to_le_bytes()[..bytes]) == Action::Relocate {
            self.update();
        }
    }

    /// Where a function's capability is.
    pub(crate) fn capability(&self, address: Address, id: u8) -> u16 {
        let mut at = self.read(address, 0x34) as u16 & 0xff;
        for _ in 0..48 {
            let header = self.read16(address, at);
            if header as u8 == id {
                return at;
            }
            at = header >> 8;
        }
        panic!("{address} has no capability {id:#x}");
    }

    /// Writes memory as a guest does.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if self.memory.write(address, data) == Some(Action::Relocate) {
            self.update();
        }
    }

    /// Does a step, and says all that it showed.
    pub(crate) fn step(&self, step: &Step) -> (Vec<u8>, Vec<String>) {
        let length = 1 << (step.width % 4);
        let mut data = vec![0; length];
        let value = step.value.to_le_bytes();
        let bytes = &value[..length];
        let address = [
            Address::new(0, 0),
            Address::new(0, 31),
            ONE,
            PORT,
            Address::new(0, FIRST_PORT + 1),
            TWO,
            Address::new(step.value as u8, 0),
            Address::from_bits(step.offset as u16),
        ][usize::from(step.who % 8)];
        let offset = (step.offset % 0x100) as u16 & !(length as u16 - 1);
        let probe = &self.probes[usize::from(step.who) % self.probes.len()];
        match step.kind % 12 {
            0 | 1 => self.root.config_read(address, offset, &mut data),
            2..=5 => {
                if self.root.config_write(address, offset, bytes) == Action::Relocate {
                    self.update();
                }
            }
            6 => {
                let far = u64::from(address.requester().0) << 12 | step.offset & 0xfff;
                Device::read(&*self.root, ECAM_REGION, far, &mut data);
            }
            7 => {
                let at = (step.offset % 8).min(8 - length as u64);
                if Device::write(&*self.root, PORTS_REGION, at, bytes) == Action::Relocate {
                    self.update();
                }
                Device::read(&*self.root, PORTS_REGION, at, &mut data);
            }
            8 => probe.attachment.interrupts.signal(step.offset as u16 % 8),
            9 => probe.attachment.interrupts.set_pin(step.value & 1 != 0),
            kind => self.access(step, kind == 10, &mut data),
        }
        (data, self.log.take())
    }

    /// An access to something that is mapped.
    fn access(&self, step: &Step, reads: bool, data: &mut [u8]) {
        let mut mapped = self.decoder.mapped();
        mapped.sort_by_key(|mapping| (mapping.space, mapping.base));
        let Some(mapping) = mapped.get(usize::from(step.who) % mapped.len().max(1)) else { return };
        let at = mapping.base + (step.offset % mapping.size).min(mapping.size - data.len() as u64);
        let space = if mapping.space == Space::Io { &self.ports } else { &self.memory };
        if reads {
            space.read(at, data);
        } else if space.write(at, &step.value.to_le_bytes()[..data.len()]) == Some(Action::Relocate) {
            self.update();
        }
    }
}

/// A step of a random life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    kind: u8,
    who: u8,
    width: u8,
    offset: u64,
    value: u64,
}

pub(crate) fn steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        any::<u64>(),
        0u64..256,
        (0u32..64).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
        Just(7),
        any::<u32>().prop_map(|place| u64::from(place) & 0xfff0_0000),
    ];
    // Headers as often as what follows.
    let offset = prop_oneof![any::<u64>(), 0u64..0x40, 0x40u64..0x100];
    let step = (any::<(u8, u8, u8)>(), offset, value).prop_map(|((kind, who, width), offset, value)| Step {
        kind,
        who,
        width,
        offset,
        value,
    });
    proptest::collection::vec(step, count)
}
