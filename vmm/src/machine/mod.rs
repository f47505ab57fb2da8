//! Puts a machine together from a configuration: memory map, buses, devices, tables, vCPUs.

mod boot_order;
mod devices;
mod firmware;
mod hotplug;
mod pci;
mod platform;
mod q35;
mod saved;
mod virt;

use std::fs::File;
use std::sync::Arc;

use skep_arch::layout::{AddressRange, Row};
use skep_chipset::SerialPort;
use skep_clock::Clock;
use skep_config::Config;
use skep_hypervisor::{Capabilities, Hypervisor, Powers, Vm, VmBuilder, VmRequest};
use skep_memory::{Backing, DirtyLog, HugePages, MemoryError, MemoryMap, RamOptions, Region, RegionKind};
use skep_pci::RootComplex;

use crate::Error;
use crate::boot::KernelFiles;
use crate::run::{Gate, Slot, Vcpus};
use crate::state::SnapshotError;
use crate::state::changes::Tracker;
use devices::{Devices, Site};
use saved::{Inherited, Numbers};

pub use devices::{DeviceError, DeviceInfo, DeviceState, HotplugError, Removal};
pub use hotplug::{BalloonInfo, Plugged};
pub use platform::{Ejected, Named, Plan, Platform, Services};
pub(crate) use saved::WeakImage;
pub(crate) use saved::{Aarch64CpusState, X86CpusState};
pub use saved::{ClockPolicy, DiskImages, Saved, check_disks, renew_addresses};

#[cfg(test)]
mod machine_test;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod tables_test;
#[cfg(test)]
#[path = "plan_test.rs"]
mod test;

/// A machine: everything but the threads that control it.
pub struct Machine<A: Platform> {
    config: Config,
    plan: Plan<A>,
    // Threads end before what they run on goes: fields drop in this order.
    vcpus: Vcpus<A>,
    devices: Arc<Devices>,
    board: Arc<A::Board>,
    memory: MemoryMap,
    clock: Clock,
    vm: Arc<dyn Vm<A>>,
    numbers: Numbers,
    /// Once somebody wants to know what of RAM changes.
    log: Option<Arc<DirtyLog>>,
    /// What follows changes of RAM, once somebody wants to save differences.
    tracker: Option<Tracker>,
    loaded_once: bool,
    /// RAM as it is saved: also what comes and goes as firmware says, which is no RAM by its kind.
    ram: Vec<Arc<Region>>,
    /// The firmware's code.
    firmware: Option<Arc<Backing>>,
    /// The file of its variables.
    variables: Option<Arc<File>>,
}

/// A plan, and the backend's builder that it was made for.
type Planned<A> = (Plan<A>, Box<dyn VmBuilder<A>>);

impl<A: Platform> Machine<A> {
    /// Begins a machine: asks the backend what it can do, and plans.
    ///
    /// # Errors
    /// What the backend lacks, or what does not fit.
    fn plan(config: &Config, hypervisor: &dyn Hypervisor<A>) -> Result<Planned<A>, Error> {
        let offered = A::KIND;
        if config.arch() != offered {
            return Err(Error::OtherArchitecture {
                machine: config.machine.to_string(),
                wanted: config.arch(),
                backend: hypervisor.name(),
                offered,
            });
        }
        let bits = A::address_bits(config.memory.size.bytes()).min(hypervisor.address_bits()?);
        let highest_gpa = u64::MAX >> (64 - u32::from(bits));
        let request = VmRequest { max_vcpus: config.cpus.max, highest_gpa, powers: Powers::all() };
        let builder = hypervisor.builder(&request)?;
        let capabilities = builder.capabilities();
        if config.cpus.max > capabilities.max_vcpus {
            let mend = "; choose fewer by --cpus";
            let (wanted, limit) = (config.cpus.max, capabilities.max_vcpus);
            return Err(Error::Vcpus { wanted, backend: hypervisor.name(), limit, mend });
        }
        let plan = A::plan(config, hypervisor.name(), capabilities)?;
        Ok((plan, builder))
    }

    /// The memory layout of the machine that a configuration gives on this backend.
    ///
    /// # Errors
    /// What the backend lacks, or what does not fit.
    pub fn layout(config: &Config, hypervisor: &dyn Hypervisor<A>) -> Result<Vec<Row>, Error> {
        Ok(A::describe(&Self::plan(config, hypervisor)?.0.layout))
    }

    /// Makes the machine. `clock` stands, and no vCPU runs until `gate` opens.
    ///
    /// # Errors
    /// What the backend or the host refuses.
    pub fn new(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        gate: Arc<Gate>,
        services: Services,
    ) -> Result<Self, Error> {
        Self::make(config, hypervisor, gate, services, Inherited::default(), |_, _| Ok(()))
    }

    /// Makes the machine, of `origin` where it is not new; `adopt` lets the plan have its CPUs.
    fn make(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        gate: Arc<Gate>,
        services: Services,
        inherited: Inherited,
        adopt: impl FnOnce(&mut Plan<A>, &Capabilities<A>) -> Result<(), SnapshotError>,
    ) -> Result<Self, Error> {
        let mut config = config.clone();
        config.finish()?;
        let (mut plan, builder) = Self::plan(&config, hypervisor)?;
        let Inherited { memory: from, numbers, locking } = inherited;
        adopt(&mut plan, builder.capabilities())?;
        let mut parts = builder.build(&plan.vm, &plan.vcpus)?;
        let (memory, clock) = (services.memory.clone(), services.clock.clone());
        let firmware = services.firmware.as_ref().map(|files| files.code.clone());
        let variables = variables(&services)?;
        let (backing, ram) = add_ram(&config, &plan, &memory, from, firmware.is_some())?;
        memory.listen(parts.vm.memory())?;
        let devices = Devices::new();
        let theirs = devices.clone();
        let ejected: Ejected = Box::new(move |endpoint| theirs.ejected(endpoint));
        let board = A::assemble(&config, &plan, &parts.vm, parts.interrupts, services, backing, ejected)?;
        let site = Site {
            devices: &devices,
            root: A::pci(&board),
            clock: &clock,
            memory: &memory,
            running: false,
            numbers: &numbers,
            locking,
        };
        site.add(&config)?;
        if let Some(first) = parts.vcpus.first_mut() {
            A::meet(&board, &mut **first);
        }
        let slots = parts.vcpus.into_iter().map(|vcpu| {
            let io = A::io(&board, vcpu.index());
            Slot::new(vcpu, io)
        });
        let vcpus = Vcpus::new(slots.collect(), gate);
        Ok(Self {
            config,
            plan,
            vcpus,
            devices,
            board,
            memory,
            clock,
            vm: parts.vm,
            numbers,
            log: None,
            tracker: None,
            loaded_once: false,
            ram,
            firmware,
            variables,
        })
    }

    /// Loads the guest's kernel, or has firmware find it, and sets the first vCPU to begin there, with the gate closed and empty.
    ///
    /// # Errors
    /// What does not fit, or the backend refuses.
    pub fn load(&mut self, kernel: Option<&mut KernelFiles>) -> Result<(), Error> {
        let Some(files) = kernel else {
            let state = A::start_firmware(&self.config, &self.plan, &self.board, &self.memory)?;
            if let (Some(state), Some(mut first)) = (state, self.vcpus.paused().next()) {
                first.vcpu.boot(&state)?;
            }
            return Ok(());
        };
        let fresh = !std::mem::replace(&mut self.loaded_once, true);
        A::place(&self.plan, &self.board)?;
        let state = A::load(&self.config, &self.plan, &self.board, &self.memory, files, fresh)?;
        if let Some(mut first) = self.vcpus.paused().next() {
            first.vcpu.boot(&state)?;
        }
        Ok(())
    }

    /// Whether there is anything that [`begin_stop`](Self::begin_stop) would stop.
    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Begins to stop all devices' queues, with the gate closed and empty, and calls `done`, on any thread, when nothing is in flight any more.
    /// They go on after [`reset`](Self::reset).
    pub fn begin_stop(&self, done: impl FnOnce() + Send + Sync + 'static) {
        self.devices.begin_stop(done);
    }

    /// Calls `done`, on any thread, when the machine has been dropped and all its disks' images are closed, which may take a host that hangs
    /// for ever.
    pub fn on_close(&self, done: impl FnOnce() + Send + Sync + 'static) {
        self.devices.on_close(done);
    }

    /// Puts everything but RAM into its power-on state, in place, with the gate closed and empty and the devices stopped.
    ///
    /// # Errors
    /// Where the backend refuses.
    pub fn reset(&mut self) -> Result<(), Error> {
        // What is behind PCI's functions is reset by them.
        for (_, component) in A::components(&self.board) {
            component.reset_component();
        }
        self.devices.restarted();
        self.devices.resume();
        A::relocate(&self.board);
        for mut slot in self.vcpus.paused() {
            slot.vcpu.reset()?;
        }
        A::reset_interrupts(&self.board)
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &Vcpus<A> {
        &self.vcpus
    }

    /// The vCPUs, to start their threads.
    pub fn vcpus_mut(&mut self) -> &mut Vcpus<A> {
        &mut self.vcpus
    }

    /// The devices' state, by name, in the order in which it is saved.
    pub fn components(&self) -> Vec<Named> {
        A::components(&self.board).iter().cloned().chain(self.devices.components()).collect()
    }

    /// The backend's VM.
    pub fn vm(&self) -> &dyn Vm<A> {
        &*self.vm
    }

    /// Guest memory.
    pub fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// Guest time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The PCI hierarchy: devices are put into it before the first [`load`](Self::load), and plugged later.
    pub fn pci(&self) -> &Arc<RootComplex> {
        A::pci(&self.board)
    }

    /// Maps what the devices' registers say, after something outside the guest has changed them.
    pub fn relocate(&self) {
        A::relocate(&self.board);
    }

    /// Presses the power button, and says whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        A::press_power_button(&self.board)
    }

    /// Gives the guest a new generation id, by which it knows that it is a copy, and says whether it has one.
    ///
    /// # Errors
    /// The host has no entropy.
    pub fn renew_generation(&self) -> Result<bool, Error> {
        A::renew_generation(&self.board, &self.memory)
    }

    /// Has the file of firmware's variables hold what the guest has set, at the machine's end, which the guest has asked for or not; calls `done`, on any thread,
    /// when it is on stable storage. Says whether there is anything to wait for.
    pub fn settle(&self, by_guest: bool, done: impl Fn() + Clone + Send + 'static) -> bool {
        let Some(flash) = A::flash(&self.board).filter(|_| self.variables.is_some()) else { return false };
        flash.settle(by_guest, done);
        true
    }

    /// The first serial port.
    pub fn serial(&self) -> Arc<dyn SerialPort> {
        A::serial(&self.board)
    }
}

/// The file of the firmware's variables, by whose lock others are kept from it.
fn variables(services: &Services) -> Result<Option<Arc<File>>, Error> {
    let Some(files) = &services.firmware else { return Ok(None) };
    let file = files.vars.as_ref().and_then(|vars| vars.file.as_ref());
    let failed = |source| Error::File { role: "firmware's variables", path: files.path.clone(), source };
    Ok(file.map(File::try_clone).transpose().map_err(failed)?.map(Arc::new))
}

/// RAM as the config asks for it.
pub(crate) fn take_ram(config: &Config) -> Result<Backing, MemoryError> {
    let wanted = &config.memory;
    let options = RamOptions {
        huge_pages: wanted.hugepages.map(|size| HugePages { page_size: size.bytes() }),
        prefault: wanted.prefault,
        shared: wanted.shared,
    };
    Backing::new(wanted.size.bytes(), &options)
}

/// Maps RAM, and gives the memory behind it back, and its regions.
fn add_ram<A: Platform>(
    config: &Config,
    plan: &Plan<A>,
    memory: &MemoryMap,
    from: Option<Arc<Backing>>,
    firmware: bool,
) -> Result<(Arc<Backing>, Vec<Arc<Region>>), Error> {
    let backing = match from {
        Some(backing) => backing,
        None => Arc::new(take_ram(config)?),
    };
    let pieces = ram_pieces(plan, firmware).into_iter().map(|(kind, piece, at)| {
        let region = Region::new("RAM", kind, piece.base, piece.size, backing.clone(), at)?;
        if kind == RegionKind::Ram { memory.add(region) } else { Ok(Arc::new(region)) }
    });
    let regions = pieces.collect::<Result<_, _>>()?;
    Ok((backing, regions))
}

/// The pieces of RAM, each with where it begins in the memory behind it. What firmware shows or hides is none to the map.
fn ram_pieces<A: Platform>(plan: &Plan<A>, firmware: bool) -> Vec<(RegionKind, AddressRange, u64)> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for part in &plan.ram {
        let mut next = part.base;
        let mut push = |kind, piece: AddressRange| pieces.push((kind, piece, offset + (piece.base - part.base)));
        for piece in if firmware { A::lasting_ram(*part) } else { vec![*part] } {
            if next < piece.base {
                push(RegionKind::ReadOnly, AddressRange::between(next, piece.base));
            }
            push(RegionKind::Ram, piece);
            next = piece.end();
        }
        offset += part.size;
    }
    pieces
}
