//! An endpoint: configuration space, interrupts and BARs of one function, with a [`Function`] behind them.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bus::{Action, Device, value_of};
use skep_irq::Requester;
use skep_memory::BusMaster;
use skep_state::{Persist, StateError};

use crate::PciPlace;
use crate::address::Address;
use crate::bar::{self, Bars, Decoded};
use crate::capability::express::{Express, Kind};
use crate::capability::msi::MsiCapability;
use crate::capability::msix::{Msix, MsixCapability};
use crate::capability::power::PowerManagement;
use crate::capability::vendor::{Capability, PlacedWindow, WindowAccess};
use crate::config_space::{Bits, ConfigSpace, command, header, status};
use crate::function::{Attachment, Doorbells, Function, FunctionDoorbell};
use crate::interrupts::{Control, Interrupts, Messages};
use crate::node::{ConfigFunction, Upstream};
use crate::rom::{self, OptionRom};
use crate::socket::{Pin, Socket};
use crate::state::{ENDPOINT_ID, EndpointState};

#[cfg(test)]
#[path = "endpoint_test.rs"]
mod test;

/// Who a function says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Class code: base class, subclass, programming interface, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

impl Identity {
    /// Writes vendor, device, revision and class.
    pub(crate) fn define(&self, space: &mut ConfigSpace) {
        space.define(header::VENDOR, Bits::fixed(self.vendor.into()));
        space.define(header::DEVICE, Bits::fixed(self.device.into()));
        space.define(header::REVISION, Bits::fixed(u32::from(self.revision) | (self.class & 0xff_ffff) << 8));
    }
}

/// What an endpoint is made of.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Who it is.
    pub identity: Identity,
    /// Its BARs.
    pub bars: Bars,
    /// MSI-X, if it has it.
    pub msix: Option<Msix>,
    /// How many vectors of MSI it has: 0, or 1 to 32.
    pub msi: u16,
    /// Its interrupt pin, if it has one.
    pub pin: Option<Pin>,
    /// Capabilities besides power management, PCI Express, MSI and MSI-X.
    pub capabilities: Vec<Capability>,
    /// Its option ROM, if it has one.
    pub rom: Option<OptionRom>,
}

/// An endpoint in its place.
pub struct Endpoint {
    place: PciPlace,
    bars: Bars,
    msix: Option<Msix>,
    power: PowerManagement,
    express: Express,
    msi_capability: Option<MsiCapability>,
    msix_capability: Option<MsixCapability>,
    windows: Vec<PlacedWindow>,
    rom: Option<OptionRom>,
    interrupts: Arc<Interrupts>,
    requester: Requester,
    bus_master: BusMaster,
    doorbells: Doorbells,
    function: Arc<dyn Function>,
    inner: Mutex<Inner>,
    // Fields drop in this order: it is told last.
    released: Released,
}

struct Inner {
    space: ConfigSpace,
    upstream: Upstream,
}

/// Who is told of the end.
#[derive(Default)]
struct Released(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|tell| tell());
    }
}

impl Endpoint {
    /// An endpoint in its power-on state, and the function that `build` makes of what the bus gives it.
    ///
    /// # Panics
    /// If the configuration contradicts itself: it is a device's author who writes it.
    pub fn new(
        socket: &Socket,
        config: &EndpointConfig,
        build: impl FnOnce(Attachment) -> Arc<dyn Function>,
    ) -> Arc<Self> {
        match Self::try_new(socket, config, |attachment| Ok::<_, Infallible>(build(attachment))) {
            Ok(endpoint) => endpoint,
        }
    }

    /// [`Self::new`] of a function that may fail to be made.
    ///
    /// # Errors
    /// Those of `build`.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn try_new<E>(
        socket: &Socket,
        config: &EndpointConfig,
        build: impl FnOnce(Attachment) -> Result<Arc<dyn Function>, E>,
    ) -> Result<Arc<Self>, E> {
        let mut space = ConfigSpace::new();
        config.identity.define(&mut space);
        let subsystem = u32::from(config.identity.subsystem_vendor) | u32::from(config.identity.subsystem) << 16;
        space.define(header::SUBSYSTEM, Bits::fixed(subsystem));
        let io = if config.bars.iter().flatten().any(|bar| bar.space() == bar::Space::Io) { command::IO } else { 0 };
        let writable =
            io | command::MEMORY | command::BUS_MASTER | command::PARITY | command::SERR | command::PIN_DISABLED;
        space.define(header::COMMAND, Bits::fixed(0).writable(writable));
        space.define(header::CACHE_LINE, Bits::fixed(0).writable(0xff));
        space.define(header::INTERRUPT_LINE, Bits::fixed(0).writable(0xff));
        space.define(header::INTERRUPT_PIN, Bits::fixed(config.pin.map_or(0, |pin| pin as u32)));
        bar::define(&mut space, &config.bars);
        let rom = config.rom.as_ref().map(|rom| rom.of(&config.identity));
        rom.iter().for_each(|rom| rom.define(&mut space));
        let power = PowerManagement::add(&mut space, false);
        let kind = match socket.place() {
            PciPlace::Root(_) => Kind::Integrated,
            PciPlace::Port(_) => Kind::Endpoint,
        };
        let express = Express::add(&mut space, kind);
        if let Some(msix) = &config.msix {
            check_msix(msix, &config.bars);
        }
        let msix_capability = config.msix.as_ref().map(|msix| MsixCapability::add(&mut space, msix));
        let msi_capability = (config.msi > 0).then(|| MsiCapability::add(&mut space, config.msi));
        let windows = config.capabilities.iter().filter_map(|capability| capability.add(&mut space)).collect();

        let (requester, bus_master) = (socket.requester(), BusMaster::default());
        let vectors = config.msix.map_or(0, |msix| msix.vectors).max(config.msi);
        let interrupts = Interrupts::new(vectors, &socket.messages, &requester, socket.line(config.pin));
        let (interrupts, doorbells) = (Arc::new(interrupts), Doorbells::default());
        let function = build(Attachment {
            dma: socket.memory.dma(requester.clone(), bus_master.clone()),
            interrupts: interrupts.clone(),
            doorbells: doorbells.clone(),
        })?;
        Ok(Arc::new(Self {
            place: socket.place(),
            bars: config.bars,
            msix: config.msix,
            power,
            express,
            msi_capability,
            msix_capability,
            windows,
            rom,
            interrupts,
            requester,
            bus_master,
            doorbells,
            function,
            inner: Mutex::new(Inner { space, upstream: Upstream::default() }),
            released: Released::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its place.
    #[must_use]
    pub fn place(&self) -> PciPlace {
        self.place
    }

    /// Calls `tell`, on whatever thread it is, when the last of those who reach it has let it go, and what is behind its BARs with it.
    pub fn on_release(&self, tell: impl FnOnce() + Send + 'static) {
        self.released.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(tell));
    }

    /// Its BARs.
    #[must_use]
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// What is behind its BARs.
    #[must_use]
    pub fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// Its interrupts.
    #[must_use]
    pub fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    /// The doorbells that are the function's now.
    pub(crate) fn doorbells(&self) -> Vec<FunctionDoorbell> {
        self.function.doorbells()
    }

    fn device(&self) -> u8 {
        match self.place {
            PciPlace::Root(device) => device,
            PciPlace::Port(_) => 0,
        }
    }

    fn decoded(&self, space: &ConfigSpace) -> Vec<Decoded> {
        if !self.power.is_on(space) {
            return Vec::new();
        }
        let mut decoded = bar::decoded(space, &self.bars);
        decoded.extend(self.rom.as_ref().and_then(|rom| rom.decoded(space)));
        decoded
    }

    /// What configuration space says of interrupts.
    fn control(&self, space: &ConfigSpace) -> Control {
        let msix = self.msix_capability.map_or(Messages::Off, |msix| msix.messages(space));
        // A guest must not turn both on; then MSI-X holds.
        let messages = match (msix, self.msi_capability) {
            (Messages::Off, Some(msi)) => msi.messages(space),
            (msix, _) => msix,
        };
        let enabled = space.register(header::COMMAND);
        Control {
            pin_disabled: enabled & command::PIN_DISABLED != 0,
            bus_master: self.bus_master.is_enabled(),
            messages,
        }
    }

    /// Lets memory and interrupts be what configuration space and the buses above say.
    fn apply(&self, inner: &Inner) {
        let space = &inner.space;
        let enabled = space.register(header::COMMAND) & command::BUS_MASTER != 0;
        self.bus_master.set(enabled && inner.upstream.bus_master && self.power.is_on(space));
        self.interrupts.control(self.control(space));
    }

    /// The power-on state of function, interrupts and configuration space, in this order: what the function still says meanwhile is forgotten.
    fn reset_function(&self) {
        self.function.reset();
        let mut inner = self.lock();
        inner.space.reset(0..0);
        self.interrupts.reset();
        self.apply(&inner);
    }

    fn window(&self, offset: u16) -> Option<&PlacedWindow> {
        self.windows.iter().find(|window| window.is_data(offset))
    }

    /// The access of a window, if its BAR has that register and the function is awake.
    fn window_access(&self, window: &PlacedWindow) -> Option<WindowAccess> {
        let access = {
            let inner = self.lock();
            window.access(&inner.space).filter(|_| self.power.is_on(&inner.space))?
        };
        let bar = self.bars.get(usize::from(access.bar)).copied().flatten()?;
        (access.offset + access.length as u64 <= bar.size).then_some(access)
    }

    fn msix_part(&self, bar: u32, offset: u64) -> Option<(MsixPart, u64)> {
        let msix = self.msix.as_ref().filter(|msix| u32::from(msix.bar) == bar)?;
        let within = |start: u32, size: u64| offset.checked_sub(start.into()).filter(|offset| *offset < size);
        let table = within(msix.table, msix.table_size()).map(|offset| (MsixPart::Table, offset));
        table.or_else(|| within(msix.pending, msix.pending_size()).map(|offset| (MsixPart::Pending, offset)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MsixPart {
    Table,
    Pending,
}

fn check_msix(msix: &Msix, bars: &Bars) {
    let bar = bars.get(usize::from(msix.bar)).copied().flatten();
    let bar = bar.filter(|bar| bar.space() == bar::Space::Memory).expect("MSI-X is in a memory BAR of the function");
    let (table, pending) = (u64::from(msix.table), u64::from(msix.pending));
    let (table_end, pending_end) = (table + msix.table_size(), pending + msix.pending_size());
    assert!(table_end <= bar.size && pending_end <= bar.size, "table and pending bits are within the BAR");
    assert!(table_end <= pending || pending_end <= table, "table and pending bits are apart");
}

impl ConfigFunction for Endpoint {
    fn config_read(&self, offset: u16) -> u32 {
        if let Some(window) = self.window(offset) {
            let Some(access) = self.window_access(window) else { return u32::MAX };
            let mut data = [0xff; 4];
            let (data, _) = data.split_at_mut(access.length);
            Device::read(self, access.bar.into(), access.offset, data);
            return value_of(data) as u32;
        }
        let value = self.lock().space.register(offset);
        if offset == header::COMMAND && self.interrupts.pin() {
            return value | status::INTERRUPT;
        }
        if self.msi_capability.is_some_and(|msi| msi.is_pending_register(offset)) {
            return self.interrupts.pending_bits(0);
        }
        value
    }

    fn config_write(&self, offset: u16, lanes: u32, value: u32) -> Action {
        if let Some(window) = self.window(offset) {
            let Some(access) = self.window_access(window) else { return Action::None };
            let wanted = u32::MAX >> (32 - 8 * access.length);
            if lanes & wanted != wanted {
                return Action::None;
            }
            let bytes = value.to_le_bytes();
            let (data, _) = bytes.split_at(access.length);
            return Device::write(self, access.bar.into(), access.offset, data);
        }
        let mut inner = self.lock();
        let before = self.decoded(&inner.space);
        let change = inner.space.write(offset, lanes, value);
        let wakes = self.power.contains(offset) && self.power.written(&mut inner.space, change);
        if wakes || self.express.asks_reset(offset, change.ones) {
            drop(inner);
            self.reset_function();
            inner = self.lock();
        } else {
            let concerns_interrupts = offset == header::COMMAND
                || self.power.contains(offset)
                || self.msi_capability.is_some_and(|msi| msi.contains(offset))
                || self.msix_capability.is_some_and(|msix| msix.contains(offset));
            if concerns_interrupts {
                self.apply(&inner);
            }
        }
        let moved = before != self.decoded(&inner.space);
        if self.doorbells.take() || moved { Action::Relocate } else { Action::None }
    }

    fn decoded(&self) -> Vec<Decoded> {
        self.decoded(&self.lock().space)
    }

    fn connect(&self, upstream: Upstream) {
        let mut inner = self.lock();
        inner.upstream = upstream;
        self.requester.set(Address::new(upstream.bus, self.device()).requester());
        self.apply(&inner);
        self.interrupts.requester_changed();
    }

    fn bus_reset(&self) {
        self.reset_function();
    }
}

/// The BARs: a region is a BAR's number. The option ROM's follows those of the BARs.
impl Device for Endpoint {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        if region == u32::from(rom::BAR) {
            self.rom.iter().for_each(|rom| rom.read(offset, data));
            return;
        }
        match self.msix_part(region, offset) {
            Some((MsixPart::Table, offset)) => self.interrupts.read_table(offset, data),
            Some((MsixPart::Pending, offset)) => self.interrupts.read_pending(offset, data),
            None => self.function.read(region as u8, offset, data),
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        if region == u32::from(rom::BAR) {
            return Action::None;
        }
        match self.msix_part(region, offset) {
            Some((MsixPart::Table, offset)) => self.interrupts.write_table(offset, data),
            Some((MsixPart::Pending, _)) => {}
            None => self.function.write(region as u8, offset, data),
        }
        if self.doorbells.take() { Action::Relocate } else { Action::None }
    }
}

impl Persist for Endpoint {
    type State = EndpointState;

    fn save(&self) -> EndpointState {
        EndpointState { config: self.lock().space.save(), interrupts: self.interrupts.save() }
    }

    fn restore(&self, state: &EndpointState) -> Result<(), StateError> {
        self.interrupts.check(&state.interrupts, ENDPOINT_ID)?;
        let mut inner = self.lock();
        inner.space.restore(&state.config, ENDPOINT_ID)?;
        let enabled = inner.space.register(header::COMMAND) & command::BUS_MASTER != 0;
        self.bus_master.set(enabled && inner.upstream.bus_master && self.power.is_on(&inner.space));
        self.interrupts.restore(&state.interrupts, self.control(&inner.space));
        Ok(())
    }

    fn reset(&self) {
        self.reset_function();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("place", &self.place).field("bars", &self.bars).finish_non_exhaustive()
    }
}
