//! The root complex: bus 0, its root ports, and the two ways to configuration space.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bus::{Action, Device, value_of};
use skep_irq::{IrqLine, MsiTarget};
use skep_memory::MemoryMap;
use skep_state::{Component, Persist, StateError, ensure};

use crate::address::{Address, DEVICES};
use crate::config_space::{Part, parts};
use crate::decoder::Mapping;
use crate::node::{ConfigFunction, Upstream};
use crate::root_port::{Ejected, RootPort, SlotState, Unplug};
use crate::state::{FunctionState, ROOT_COMPLEX_ID, RootComplexState};
use crate::{Endpoint, PciError, PciPlace, Pin, Socket};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "root_complex_test.rs"]
pub(crate) mod test;

/// Bytes of ECAM for 256 buses.
pub const ECAM_SIZE: u64 = 256 << 20;
/// Region of ECAM (PCI Express Base 5.0 section 7.2.2).
pub const ECAM_REGION: u32 = 0;
/// Region of configuration mechanism 1 (PCI Local Bus 3.0 section 3.2.2.3.2): CONFIG_ADDRESS and CONFIG_DATA, 8 ports.
pub const PORTS_REGION: u32 = 1;

const CONFIG_DATA: u64 = 4;
/// CONFIG_ADDRESS: configuration cycles, bus, device, function and doubleword.
const ENABLE: u32 = 1 << 31;
pub(crate) const CONFIG_ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;

/// A function of the chipset on bus 0.
pub trait ChipsetFunction: ConfigFunction + Component {}

impl<T: ConfigFunction + Component> ChipsetFunction for T {}

/// What a root complex is made of.
pub struct RootComplexConfig {
    /// Guest memory.
    pub memory: MemoryMap,
    /// What takes message-signalled interrupts; [`crate::NoMessages`] where nothing does.
    pub messages: Arc<dyn MsiTarget>,
    /// The lines that interrupt pins share, 4 or 8: device `d`'s pin `p` (0 to 3) is on line `(d + p) % lines`.
    pub lines: Vec<IrqLine>,
    /// Told of each device that has left its slot, under no lock: it can't be reached any more, and is stopped and dropped by who is told.
    pub ejected: Box<dyn Fn(Arc<Endpoint>) + Send + Sync>,
}

#[derive(Clone)]
enum Node {
    Chipset(Arc<dyn ChipsetFunction>),
    Endpoint(Arc<Endpoint>),
    Port(Arc<RootPort>),
}

impl Node {
    fn function(&self) -> &dyn ConfigFunction {
        match self {
            Self::Chipset(function) => &**function,
            Self::Endpoint(endpoint) => &**endpoint,
            Self::Port(port) => &**port,
        }
    }

    fn component(&self) -> &dyn Component {
        match self {
            Self::Chipset(function) => &**function,
            Self::Endpoint(endpoint) => &**endpoint,
            Self::Port(port) => &**port,
        }
    }
}

/// The root of the hierarchy, as one component: saved, restored and reset with all functions (not with what is behind their BARs).
pub struct RootComplex {
    memory: MemoryMap,
    messages: Arc<dyn MsiTarget>,
    lines: Vec<IrqLine>,
    ejected: Ejected,
    nodes: Mutex<BTreeMap<u8, Node>>,
    config_address: Mutex<u32>,
}

impl RootComplex {
    /// A root complex with nothing on bus 0.
    #[must_use]
    pub fn new(config: RootComplexConfig) -> Self {
        let RootComplexConfig { memory, messages, lines, ejected } = config;
        let (nodes, config_address) = (Mutex::default(), Mutex::new(0));
        Self { memory, messages, lines, ejected: ejected.into(), nodes, config_address }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u8, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on bus 0, by device numbers.
    fn all(&self) -> Vec<(u8, Node)> {
        self.nodes().iter().map(|(device, node)| (*device, node.clone())).collect()
    }

    /// The root ports, by device numbers.
    #[must_use]
    pub fn ports(&self) -> Vec<Arc<RootPort>> {
        let port = |(_, node): (u8, Node)| if let Node::Port(port) = node { Some(port) } else { None };
        self.all().into_iter().filter_map(port).collect()
    }

    fn port(&self, number: u8) -> Result<Arc<RootPort>, PciError> {
        self.ports().into_iter().find(|port| port.number() == number).ok_or(PciError::NoPlace(PciPlace::Port(number)))
    }

    /// What is in the slot at `place`; none where there is no slot.
    #[must_use]
    pub fn slot_state(&self, place: PciPlace) -> Option<SlotState> {
        let PciPlace::Port(number) = place else { return None };
        Some(self.port(number).ok()?.slot_state())
    }

    /// The endpoints, those on bus 0 first.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let nodes = self.all();
        let here =
            nodes.iter().filter_map(|(_, node)| if let Node::Endpoint(it) = node { Some(it.clone()) } else { None });
        let behind = nodes.iter().filter_map(|(_, node)| if let Node::Port(port) = node { port.child() } else { None });
        here.chain(behind).collect()
    }

    fn put(&self, device: u8, node: Node) -> Result<(), PciError> {
        let place = PciPlace::Root(device);
        if device >= DEVICES {
            return Err(PciError::NoPlace(place));
        }
        let mut nodes = self.nodes();
        if nodes.contains_key(&device) {
            return Err(PciError::PlaceTaken(place));
        }
        nodes.insert(device, node);
        Ok(())
    }

    /// Puts a function of the chipset at `device` on bus 0.
    ///
    /// # Errors
    /// Where something is there already.
    pub fn add_chipset(&self, device: u8, function: Arc<dyn ChipsetFunction>) -> Result<(), PciError> {
        self.put(device, Node::Chipset(function))
    }

    /// Puts root port `number` at `device` on bus 0.
    ///
    /// # Errors
    /// Where something is there already, or the number is taken.
    pub fn add_port(&self, number: u8, device: u8) -> Result<Arc<RootPort>, PciError> {
        if self.port(number).is_ok() {
            return Err(PciError::PlaceTaken(PciPlace::Port(number)));
        }
        let line = self.line(device, Pin::A);
        let port = RootPort::new(number, device, &self.messages, line, self.ejected.clone());
        self.put(device, Node::Port(port.clone()))?;
        Ok(port)
    }

    /// The number among the lines of a device's pin.
    #[must_use]
    pub fn line_index(device: u8, pin: Pin, lines: usize) -> usize {
        (usize::from(device) + pin.index()) % lines.max(1)
    }

    fn line(&self, device: u8, pin: Pin) -> IrqLine {
        let index = Self::line_index(device, pin, self.lines.len());
        self.lines.get(index).map_or_else(IrqLine::detached, IrqLine::share)
    }

    /// What a free place offers to a function. A port passes its device's pins on to the lines of its own pins.
    ///
    /// # Errors
    /// Where there is no such place, or something is there already.
    pub fn socket(&self, place: PciPlace) -> Result<Socket, PciError> {
        let device = match place {
            PciPlace::Root(device) if device >= DEVICES => return Err(PciError::NoPlace(place)),
            PciPlace::Root(device) if self.nodes().contains_key(&device) => return Err(PciError::PlaceTaken(place)),
            PciPlace::Root(device) => device,
            PciPlace::Port(number) => {
                let port = self.port(number)?;
                if port.child().is_some() {
                    return Err(PciError::PlaceTaken(place));
                }
                port.device()
            }
        };
        let lines = Pin::ALL.map(|pin| self.line(device, pin));
        Ok(Socket::new(place, self.memory.clone(), self.messages.clone(), lines))
    }

    /// Puts an endpoint into its place, of a machine that has not started or is being put together again: the guest finds it there.
    ///
    /// # Errors
    /// Where there is no such place, or something is there already.
    pub fn insert(&self, endpoint: Arc<Endpoint>) -> Result<(), PciError> {
        let place = endpoint.place();
        match place {
            PciPlace::Root(device) => {
                endpoint.connect(Upstream::ROOT);
                self.put(device, Node::Endpoint(endpoint))
            }
            PciPlace::Port(number) if self.port(number)?.insert(endpoint) => Ok(()),
            PciPlace::Port(_) => Err(PciError::PlaceTaken(place)),
        }
    }

    /// Plugs an endpoint into its place while the guest runs.
    ///
    /// # Errors
    /// Where the place is on bus 0, which takes no device at run time; or there is no such place, or something is there already.
    pub fn plug(&self, endpoint: Arc<Endpoint>) -> Result<(), PciError> {
        let place = endpoint.place();
        match place {
            PciPlace::Root(_) => Err(PciError::NotPluggable(place)),
            PciPlace::Port(number) if self.port(number)?.plug(endpoint) => Ok(()),
            PciPlace::Port(_) => Err(PciError::PlaceTaken(place)),
        }
    }

    /// Asks the guest to let the device at `place` go. When it has, the device is handed to `ejected`; the machine then maps what
    /// is left ([`crate::Decoder::update`]).
    ///
    /// # Errors
    /// Where the place is on bus 0, or there is no such place, or nothing in it.
    pub fn unplug(&self, place: PciPlace) -> Result<Unplug, PciError> {
        match place {
            PciPlace::Root(_) => Err(PciError::NotPluggable(place)),
            PciPlace::Port(number) => self.port(number)?.unplug().ok_or(PciError::PlaceEmpty(place)),
        }
    }

    /// Calls the function at an address, if there is one.
    fn with_function<R>(&self, address: Address, call: impl FnOnce(&dyn ConfigFunction) -> R) -> Option<R> {
        if address.bus == 0 {
            let node = self.nodes().get(&address.device).cloned().filter(|_| address.function == 0);
            return node.map(|node| call(node.function()));
        }
        // The first bridge that claims a bus has it.
        let claims =
            |port: &Arc<RootPort>| port.buses().is_some_and(|(first, last)| (first..=last).contains(&address.bus));
        let endpoint = self.ports().into_iter().find(claims)?.device_at(address)?;
        Some(call(&*endpoint))
    }

    /// Reads `data` at `offset` of a function's configuration space. What is not there is all ones.
    pub fn config_read(&self, address: Address, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        self.with_function(address, |function| {
            let mut done = 0;
            let plan: Vec<Part> = parts(offset, data).collect();
            for part in plan {
                let value = if part.offset < 0x1000 { function.config_read(part.offset) } else { u32::MAX };
                let bytes = value.to_le_bytes().into_iter().skip(part.lane);
                let lanes = data.iter_mut().skip(done).take(part.length);
                lanes.zip(bytes).for_each(|(byte, value)| *byte = value);
                done += part.length;
            }
        });
    }

    /// Writes `data` at `offset` of a function's configuration space.
    pub fn config_write(&self, address: Address, offset: u16, data: &[u8]) -> Action {
        let written = self.with_function(address, |function| {
            let mut action = Action::None;
            for part in parts(offset, data).filter(|part| part.offset < 0x1000) {
                if function.config_write(part.offset, part.lanes(), part.value) == Action::Relocate {
                    action = Action::Relocate;
                }
            }
            action
        });
        written.unwrap_or_default()
    }

    /// What is decoded now, in an order that depends on nothing but places.
    #[must_use]
    pub fn mappings(&self) -> Vec<Mapping> {
        let mut all = Vec::new();
        for (_, node) in self.all() {
            let (endpoint, decoded) = match node {
                Node::Chipset(_) => continue,
                Node::Endpoint(endpoint) => {
                    let decoded = endpoint.decoded();
                    (endpoint, decoded)
                }
                Node::Port(port) => match port.forwarded() {
                    Some(forwarded) => forwarded,
                    None => continue,
                },
            };
            let doorbells = endpoint.doorbells();
            all.extend(decoded.into_iter().map(|range| Mapping::of(&endpoint, range, &doorbells)));
        }
        all
    }

    /// First and last address of what is decoded above 4 GiB, by endpoints and by ports' windows: where firmware has put it.
    #[must_use]
    pub fn memory64(&self) -> Option<(u64, u64)> {
        let mappings = self.mappings();
        let decoded = mappings.iter().filter(|mapping| mapping.space == crate::Space::Memory);
        let decoded = decoded.map(|mapping| (mapping.base, mapping.base.saturating_add(mapping.size - 1)));
        let windows = self.ports();
        let windows = windows.iter().filter_map(|port| port.prefetchable());
        let above = decoded.chain(windows).filter(|(base, _)| *base >= 1 << 32);
        above.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// CONFIG_ADDRESS, as a function's address and the offset of a doubleword.
    fn selected(&self) -> Option<(Address, u16)> {
        let value = *self.config_address();
        (value & ENABLE != 0).then(|| (Address::from_bits((value >> 8) as u16), value as u16 & 0xfc))
    }

    fn config_address(&self) -> MutexGuard<'_, u32> {
        self.config_address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match offset {
            0 if data.len() == 4 => skep_bus::fill(data, u64::from(*self.config_address())),
            CONFIG_DATA.. => {
                if let Some((address, register)) = self.selected() {
                    self.config_read(address, register + (offset - CONFIG_DATA) as u16, data);
                }
            }
            // Narrow accesses to CONFIG_ADDRESS are accesses to ordinary ports.
            _ => {}
        }
    }

    fn ports_write(&self, offset: u64, data: &[u8]) -> Action {
        match offset {
            0 if data.len() == 4 => *self.config_address() = value_of(data) as u32 & CONFIG_ADDRESS_MASK,
            CONFIG_DATA.. => {
                if let Some((address, register)) = self.selected() {
                    return self.config_write(address, register + (offset - CONFIG_DATA) as u16, data);
                }
            }
            _ => {}
        }
        Action::None
    }
}

fn ecam(offset: u64) -> (Address, u16) {
    (Address::from_bits((offset >> 12) as u16), offset as u16 & 0xfff)
}

/// [`ECAM_REGION`] and [`PORTS_REGION`].
impl Device for RootComplex {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        if region == PORTS_REGION {
            return self.ports_read(offset, data);
        }
        let (address, register) = ecam(offset);
        self.config_read(address, register, data);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        if region == PORTS_REGION {
            return self.ports_write(offset, data);
        }
        let (address, register) = ecam(offset);
        self.config_write(address, register, data)
    }
}

impl RootComplex {
    /// The functions in the order in which they are saved: ports before what is behind them, since that learns its bus from them.
    fn functions(&self) -> Vec<(u8, bool, Node)> {
        let nodes = self.all();
        let behind: Vec<_> = nodes
            .iter()
            .filter_map(|(device, node)| match node {
                Node::Port(port) => port.child().map(|child| (*device, true, Node::Endpoint(child))),
                _ => None,
            })
            .collect();
        nodes.into_iter().map(|(device, node)| (device, false, node)).chain(behind).collect()
    }
}

impl Persist for RootComplex {
    type State = RootComplexState;

    fn save(&self) -> RootComplexState {
        let functions = self.functions().into_iter();
        let saved = functions.map(|(device, behind, node)| {
            let record = node.component().save_record();
            FunctionState { device, behind, record }
        });
        RootComplexState { config_address: *self.config_address(), functions: saved.collect() }
    }

    fn restore(&self, state: &RootComplexState) -> Result<(), StateError> {
        let here = self.functions();
        let place = |device: u8, behind: bool| (device, behind);
        let missing = here.iter().find(|(device, behind, _)| {
            !state.functions.iter().any(|saved| place(saved.device, saved.behind) == place(*device, *behind))
        });
        let missing = missing.map(|(device, behind, _)| place(*device, *behind));
        let rule = "each function of this machine's configuration is in the snapshot";
        ensure(missing.is_none(), ROOT_COMPLEX_ID, "functions", missing, rule)?;
        let surplus = state.functions.iter().find(|saved| {
            !here.iter().any(|(device, behind, _)| place(*device, *behind) == place(saved.device, saved.behind))
        });
        let surplus = surplus.map(|saved| place(saved.device, saved.behind));
        let rule = "this machine's configuration has no function there";
        ensure(surplus.is_none(), ROOT_COMPLEX_ID, "functions", surplus, rule)?;
        for ((_, _, node), saved) in here.iter().zip(&state.functions) {
            node.component().restore_record(&saved.record)?;
        }
        *self.config_address() = state.config_address;
        Ok(())
    }

    fn reset(&self) {
        for (_, _, node) in self.functions() {
            node.component().reset_component();
        }
        *self.config_address() = 0;
    }
}

impl fmt::Debug for RootComplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootComplex").field("devices", &self.nodes().keys()).finish_non_exhaustive()
    }
}
