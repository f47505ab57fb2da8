//! A machine's state as a whole: taken from one that stands, and put into one that has not run.

mod aarch64;
mod disks;
mod features;
mod x86_64;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_block::Locking;
use skep_config::Config;
use skep_hypervisor::{Capabilities, Hypervisor};
use skep_memory::{Backing, DirtyLog, Region};
use skep_state::Record;

use super::platform::rng_seed_of_host;
use super::{Machine, Named, Plan, Platform, Services, ram_pieces};
use crate::Error;
use crate::boot::BootFiles;
use crate::firmware::FirmwareFiles;
use crate::migrate::wire::{self, Hello, Session};
use crate::migrate::{Address, Arrival, OutgoingPlan};
use crate::run::Gate;
use crate::state::changes::{Origin, Tracker};
use crate::state::records::{CPUS, DISKS, FIRMWARE, INTERRUPTS, MACHINE, refused, vcpu};
use crate::state::{
    FirmwareState, Layer, MachineState, NamedNumber, NamedRecord, RamRange, Records, Snapshot, SnapshotError,
};
pub(crate) use aarch64::Aarch64CpusState;
pub(crate) use disks::WeakImage;
pub use disks::{DiskImages, check_disks};

pub(super) use features::address_bits;
pub(crate) use x86_64::X86CpusState;
pub(super) use x86_64::feature_list;

#[cfg(test)]
#[path = "saved_test.rs"]
mod test;

/// What an architecture answers for its machine to be saved.
pub trait Saved: Platform {
    /// What the guest was shown of its CPUs; with the frequency of its counter (see [`Plan::counter`]) and what the first one is, where their states do not
    /// come with it.
    fn cpus(plan: &Plan<Self>, counter: Option<u32>, identity: Option<Self::VcpuIdentity>) -> Record;

    /// What the first of the CPUs of that record is, if it says so.
    ///
    /// # Errors
    /// Where the record is refused.
    fn identity(_saved: &Record) -> Result<Option<Self::VcpuIdentity>, SnapshotError> {
        Ok(None)
    }

    /// What a vCPU with that state is that its host fixes, where that is compared before anything is made.
    fn fixed(_vcpu: &Self::VcpuState) -> Option<Self::VcpuIdentity> {
        None
    }

    /// Lets the plan have the CPUs of a snapshot, of which `first` is the first one's state, where it is known.
    ///
    /// # Errors
    /// [`SnapshotError::Cpu`] for what this host can't show, by name.
    fn adopt(
        plan: &mut Plan<Self>,
        host: &Capabilities<Self>,
        saved: &Record,
        first: Option<&Self::VcpuState>,
    ) -> Result<(), SnapshotError>;

    /// The CPU features that a guest could be shown here and on the hosts of these lists, as a list.
    ///
    /// # Errors
    /// Where there are no such lists, or one can't be read.
    fn common_features(_plan: &Plan<Self>, _lists: &[String], backend: &'static str) -> Result<String, Error> {
        let mend = "a guest is shown the host's own CPU there".to_owned();
        Err(Error::Lacking { what: "lists of CPU features are for x86_64".to_owned(), backend, mend })
    }

    /// The backend's own interrupt controllers, where they are not the vCPUs'. Tables in guest RAM are written there.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn save_interrupts(board: &Self::Board) -> Result<Option<Record>, SnapshotError>;

    /// The reverse, after memory and vCPUs. `None` where the snapshot has none.
    ///
    /// # Errors
    /// Where the backend refuses, or there should be some.
    fn restore_interrupts(board: &Self::Board, saved: Option<&Record>) -> Result<(), SnapshotError>;

    /// Moves the counter that a vCPU's state has on by so many nanoseconds.
    fn move_counter(vcpu: &mut Self::VcpuState, nanos: u64);

    /// Moves the clock that guests read without an exit on.
    fn move_clock(value: u64, vcpu: &Self::VcpuState, nanos: u64) -> u64;
}

/// What the guest's clocks do when it is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockPolicy {
    /// They go on where they stood.
    Continue,
    /// They jump by the time that has passed on the host.
    Jump,
}

/// What a snapshot says of disks that come and go.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) namespaces: BTreeMap<String, u32>,
    pub(super) last: BTreeMap<String, u32>,
}

impl From<&MachineState> for Numbers {
    fn from(state: &MachineState) -> Self {
        let map = |list: &[NamedNumber]| list.iter().map(|one| (one.name.clone(), one.number)).collect();
        Self { namespaces: map(&state.namespaces), last: map(&state.last_namespaces) }
    }
}

/// Where a machine's RAM and its disks' numbers come from, where they are not new.
#[derive(Default)]
pub(super) struct Inherited {
    pub(super) memory: Option<Arc<Backing>>,
    pub(super) numbers: Numbers,
    pub(super) locking: Locking,
}

fn host_nanos() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

fn in_config(reason: impl ToString) -> SnapshotError {
    SnapshotError::Records { reason: format!("the config can't be written: {}", reason.to_string()) }
}

impl<A: Saved> Machine<A> {
    /// The machine's records, but for its disks, with the gate closed and empty and the devices stopped. From here on nothing of it may change until its
    /// memory has been written as well.
    ///
    /// # Errors
    /// Where something can't be saved now.
    pub fn save(&mut self) -> Result<Records, SnapshotError> {
        self.can_be_saved()?;
        if let Some(id) = self.devices.going() {
            return Err(SnapshotError::Busy(format!(
                "the guest has let `{id}` go, and what it had begun has not ended"
            )));
        }
        // Before the interrupt controllers: what has come due since the clock stands is an edge or a level of theirs.
        let named = self.named();
        named.iter().for_each(|(_, component)| component.catch_up_component());
        // First of what is saved: it writes into guest RAM, and what it writes there is saved with it.
        let interrupts = A::save_interrupts(&self.board)?;
        self.vm.begin_save();
        let mut records = vec![NamedRecord::new(MACHINE, Record::of(&self.own_state()?))];
        records.push(NamedRecord::new(CPUS, A::cpus(&self.plan, None, None)));
        for (index, mut slot) in self.vcpus.paused().enumerate() {
            let slot = &mut *slot;
            records.push(NamedRecord::new(vcpu(index), Record::of(&slot.vcpu.save(&mut *slot.io)?)));
        }
        if let (Some(code), Some(path)) = (&self.firmware, &self.config.boot.firmware) {
            records.push(NamedRecord::new(FIRMWARE, Record::of(&known_by(code, path)?)));
        }
        records.extend(interrupts.map(|record| NamedRecord::new(INTERRUPTS, record)));
        records.extend(named.into_iter().map(|(name, component)| NamedRecord::new(name, component.save_record())));
        Ok(Records { records })
    }

    /// Refuses a machine that can't be saved as it is put together now.
    ///
    /// # Errors
    /// [`SnapshotError::Backend`].
    pub(crate) fn can_be_saved(&mut self) -> Result<(), SnapshotError> {
        self.forget_gone();
        match self.config.of_a_backend() {
            Some(id) => Err(SnapshotError::Backend { id: id.to_owned() }),
            None => Ok(()),
        }
    }

    fn own_state(&self) -> Result<MachineState, SnapshotError> {
        let (namespaces, last) = self.devices.numbers();
        let list = |map: BTreeMap<String, u32>| map.into_iter().map(|(name, number)| NamedNumber { name, number });
        Ok(MachineState {
            config: self.told_config()?,
            guest_nanos: self.clock.now(),
            wall_nanos: i64::try_from(self.clock.wall().max(0)).unwrap_or(i64::MAX),
            host_nanos: host_nanos(),
            guest_clock: self.vm.clock().get()?,
            namespaces: list(namespaces).collect(),
            last_namespaces: list(last).collect(),
        })
    }

    /// Its config, for another process: what the guest was shown of its CPUs is told by the records, and a file that says so may be this host's alone.
    fn told_config(&self) -> Result<String, SnapshotError> {
        Config { cpu: None, ..self.config.clone() }.to_toml().map_err(in_config)
    }

    /// The components by their records' names.
    fn named(&self) -> Vec<Named> {
        let board = A::components(&self.board).iter().map(|(name, one)| (format!("board/{name}"), one.clone()));
        let devices = self.devices.components().into_iter().map(|(name, one)| (format!("device/{name}"), one));
        board.chain(devices).collect()
    }

    /// The CPU features that a guest could be shown here and on the hosts of these lists, as a list.
    ///
    /// # Errors
    /// What the backend lacks, and lists that can't be read.
    pub fn common_features(config: &Config, hypervisor: &dyn Hypervisor<A>, lists: &[String]) -> Result<String, Error> {
        A::common_features(&Self::plan(config, hypervisor)?.0, lists, hypervisor.name())
    }

    /// Follows what is changed from now on, for differences to be saved; to `origin`, if that is what memory holds.
    ///
    /// # Errors
    /// Where the backend has no dirty log, or refuses.
    pub(crate) fn track(&mut self, origin: Option<Origin>) -> Result<Tracker, SnapshotError> {
        let tracker = Tracker::begin(self.dirty_log()?, origin)?;
        self.tracker = Some(tracker.clone());
        Ok(tracker)
    }

    /// What says which pages of RAM are written. Who wants to know subscribes to it.
    ///
    /// # Errors
    /// [`SnapshotError::NoDirtyLog`].
    pub(crate) fn dirty_log(&mut self) -> Result<Arc<DirtyLog>, SnapshotError> {
        if let Some(log) = &self.log {
            return Ok(log.clone());
        }
        let source = self.vm.dirty_source().ok_or(SnapshotError::NoDirtyLog)?;
        Ok(self.log.insert(Arc::new(DirtyLog::new(self.memory.clone(), source))).clone())
    }

    /// What follows its changes, if anything does.
    pub(crate) fn tracker(&self) -> Option<Tracker> {
        self.tracker.clone()
    }

    /// Makes the machine that a snapshot is of, which is `track`ed from there on if asked. Nothing runs, the queues stand, and the clock stands.
    ///
    /// # Errors
    /// What the host lacks, and what of the snapshot does not hold, by name.
    pub fn of_snapshot(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        gate: Arc<Gate>,
        services: Services,
        snapshot: &Snapshot,
        policy: ClockPolicy,
        track: bool,
    ) -> Result<Self, Error> {
        if A::fixed(&snapshot.records.open(&vcpu(0))?).is_some() {
            Self::could_restore(config, hypervisor, snapshot)?;
        }
        let own = snapshot.machine()?;
        let mapped = config.memory.hugepages.is_none() && !config.memory.shared;
        let [whole, differences @ ..] = snapshot.layers.as_slice() else {
            return Err(SnapshotError::Missing { name: crate::state::MEMORY.to_owned() }.into());
        };
        let file = whole.file.try_clone().map_err(|source| in_memory(snapshot, source))?;
        let memory = if mapped { Some(Arc::new(Backing::of_file(file)?)) } else { None };
        let inherited = Inherited { memory, numbers: Numbers::from(&own), locking: Locking::Now };
        let records = &snapshot.records;
        let mut machine = Self::inherit(config, hypervisor, gate, services, inherited, records)?;
        let ram = machine.ram();
        if machine.ram_ranges() != snapshot.header.memory.ram {
            return Err(other_ram().into());
        }
        let read = |layer: &Layer| crate::state::memory::read(&layer.file, layer.changed.as_deref(), &ram);
        let layers = if mapped { differences } else { &snapshot.layers };
        layers.iter().try_for_each(read).map_err(|source| in_memory(snapshot, source))?;
        if track {
            machine.track(Some(snapshot.origin()))?;
        }
        let passed = match policy {
            ClockPolicy::Continue => 0,
            ClockPolicy::Jump => u64::try_from(host_nanos().saturating_sub(own.host_nanos)).unwrap_or(0),
        };
        machine.restore(records, &own, passed)?;
        Ok(machine)
    }

    /// Whether this host could go on with a machine of that config, these CPUs and these pieces of RAM. What is made to find out goes again.
    ///
    /// # Errors
    /// What the host lacks, by name.
    pub(crate) fn could_inherit(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        cpus: &Record,
        ram: &[RamRange],
    ) -> Result<(), Error> {
        let mut config = config.clone();
        config.finish()?;
        Self::can_have(&config, hypervisor, cpus, ram, None, A::identity(cpus)?)
    }

    /// Whether this host could go on with the machine of a snapshot. Nothing is made of it; what is made to find out goes again.
    ///
    /// # Errors
    /// What the host lacks, by name.
    pub fn could_restore(config: &Config, hypervisor: &dyn Hypervisor<A>, snapshot: &Snapshot) -> Result<(), Error> {
        let mut config = config.clone();
        config.finish()?;
        let (first, ram) = (snapshot.records.open(&vcpu(0))?, &snapshot.header.memory.ram);
        Self::can_have(&config, hypervisor, snapshot.records.get(CPUS)?, ram, Some(&first), A::fixed(&first))
    }

    fn can_have(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        cpus: &Record,
        ram: &[RamRange],
        first: Option<&A::VcpuState>,
        identity: Option<A::VcpuIdentity>,
    ) -> Result<(), Error> {
        // What the guest was shown is told by the record: an older skep's config names a file as well, which may not be here.
        let config = Config { cpu: None, ..config.clone() };
        let (mut plan, builder) = Self::plan(&config, hypervisor)?;
        let pieces = ram_pieces(&plan, config.boot.firmware.is_some()).into_iter();
        if !pieces.map(|(_, piece, _)| RamRange { address: piece.base, size: piece.size }).eq(ram.iter().copied()) {
            return Err(other_ram().into());
        }
        A::adopt(&mut plan, builder.capabilities(), cpus, first)?;
        let (Some(identity), Some(first)) = (identity, plan.vcpus.get(..1)) else { return Ok(()) };
        // What a host fixes of its CPUs is asked of one.
        let mut parts = builder.build(&plan.vm, first)?;
        let adopted = parts.vcpus.first_mut().map_or(Ok(()), |vcpu| vcpu.adopt(&identity));
        Ok(adopted.map_err(|error| SnapshotError::Cpu { reason: error.to_string() })?)
    }

    /// Makes the machine that another process has sent, and says since when its clocks stand. Nothing runs, the queues stand, and its images are still
    /// to be locked ([`Machine::hold_images`]).
    ///
    /// # Errors
    /// As for [`Machine::of_snapshot`].
    pub(crate) fn of_arrival(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        gate: Arc<Gate>,
        services: Services,
        arrival: &Arrival,
    ) -> Result<(Self, Instant), Error> {
        let (records, (memory, ram)) = (&arrival.records, &arrival.memory);
        let own: MachineState = records.open(MACHINE)?;
        let (memory, numbers) = (Some(memory.clone()), Numbers::from(&own));
        let inherited = Inherited { memory, numbers, locking: Locking::Later };
        let mut machine = Self::inherit(config, hypervisor, gate, services, inherited, records)?;
        if machine.ram_ranges() != *ram {
            return Err(other_ram().into());
        }
        let now = Instant::now();
        machine.restore(records, &own, arrival.stood())?;
        Ok((machine, now))
    }

    /// What another process is told of the machine before it takes it, and all that is sent, with the gate closed and empty.
    ///
    /// # Errors
    /// What can't be saved.
    pub(crate) fn leave(&mut self, to: Address, downtime: Duration) -> Result<OutgoingPlan, Error> {
        self.can_be_saved()?;
        let mut session = Session::default();
        let seed = rng_seed_of_host()?;
        session.copy_from_slice(&seed[..16]);
        let (ram, images) = (self.ram(), self.disk_images());
        let identity = self.vcpus.paused().next().map(|mut first| first.vcpu.identity());
        let identity = identity.transpose().map_err(SnapshotError::Vcpu)?;
        let hello = Hello {
            protocol: wire::VERSION,
            skep: env!("CARGO_PKG_VERSION").to_owned(),
            requires: Vec::new(),
            session,
            architecture: self.config.arch().to_string(),
            config: self.told_config()?,
            ram: ram.iter().map(|region| (region.gpa(), region.size())).collect(),
            cpus: A::cpus(&self.plan, self.plan.counter, identity),
            disks: images.describe()?,
        };
        Ok(OutgoingPlan { to, downtime, hello, images: images.weak(), ram, log: self.dirty_log()? })
    }

    /// A machine with the CPUs of `records`, before its state is put into it.
    fn inherit(
        config: &Config,
        hypervisor: &dyn Hypervisor<A>,
        gate: Arc<Gate>,
        mut services: Services,
        inherited: Inherited,
        records: &Records,
    ) -> Result<Self, Error> {
        let (cpus, first) = (records.get(CPUS)?, records.open(&vcpu(0))?);
        services.firmware = firmware(config, records, inherited.locking)?;
        let adopt = |plan: &mut Plan<A>, host: &Capabilities<A>| A::adopt(plan, host, cpus, Some(&first));
        let machine = Self::make(config, hypervisor, gate, services, inherited, adopt)?;
        machine.disk_images().check_sizes(&records.open(DISKS)?)?;
        Ok(machine)
    }

    /// `passed` are the nanoseconds by which its clocks have moved on since.
    fn restore(&mut self, records: &Records, own: &MachineState, passed: u64) -> Result<(), Error> {
        let named = self.named();
        let vcpus = self.vcpus.paused().count();
        records.all_known(|name| {
            let fixed = [MACHINE, DISKS, FIRMWARE, CPUS, INTERRUPTS].contains(&name);
            fixed || named.iter().any(|(known, _)| known == name) || (0..vcpus).any(|index| vcpu(index) == name)
        })?;
        let states = (0..vcpus).map(|index| records.open::<A::VcpuState>(&vcpu(index)));
        let mut states = states.collect::<Result<Vec<_>, _>>()?;
        let guest_clock = states.first().map(|first| A::move_clock(own.guest_clock, first, passed));
        for (mut slot, state) in self.vcpus.paused().zip(&mut states) {
            A::move_counter(state, passed);
            slot.vcpu.restore(state)?;
        }
        let interrupts = records.get(INTERRUPTS).ok();
        A::restore_interrupts(&self.board, interrupts)?;
        if let Some(guest_clock) = guest_clock {
            self.vm.clock().set(guest_clock)?;
        }
        // Components are told the time that they were saved at; then it moves on.
        self.clock.set(own.guest_nanos);
        self.clock.set_wall(own.wall_nanos.into());
        let (done, stopped) = channel();
        self.devices.begin_stop(move || {
            // Nobody has gone.
            let _ = done.send(());
        });
        let _ = stopped.recv();
        for (name, component) in named {
            component.restore_record(records.get(&name)?).map_err(refused(&name))?;
        }
        self.pass_time(passed);
        A::relocate(&self.board);
        self.loaded_once = true;
        Ok(())
    }

    /// Lets guest time, which stands, and the wall clock jump by so many nanoseconds.
    pub fn pass_time(&self, nanos: u64) {
        let wall = self.clock.wall();
        self.clock.set(self.clock.now().saturating_add(nanos));
        self.clock.set_wall(wall + i128::from(nanos));
    }

    /// Lets the queues go on, after [`Machine::of_snapshot`] or a save, with the gate closed and empty and before any timer runs; the vCPUs hear that they
    /// stood still, before they run. The files of its disks and of its firmware's variables are this machine's.
    pub fn resume(&self) {
        self.vcpus.stood_still();
        if let Some(flash) = A::flash(&self.board) {
            flash.resumed();
        }
        self.devices.resume();
    }

    /// RAM, in the order in which it is saved. What comes and goes as firmware says is none by its kind: the dirty log may not know it.
    pub fn ram(&self) -> Vec<Arc<Region>> {
        self.ram.clone()
    }

    /// The pieces of RAM, in that order.
    pub(crate) fn ram_ranges(&self) -> Vec<RamRange> {
        self.ram.iter().map(|region| RamRange { address: region.gpa(), size: region.size() }).collect()
    }

    /// Takes the locks of the disks' images, and of the firmware's variables.
    ///
    /// # Errors
    /// Where somebody else has taken one.
    pub(crate) fn hold_images(&self) -> Result<(), SnapshotError> {
        self.disk_images().hold(true)
    }

    /// Tells the networks that its cards are here now.
    pub(crate) fn announce(&self) {
        self.devices.announce();
    }

    /// The disks' images, to be flushed and told of.
    pub fn disk_images(&self) -> DiskImages {
        DiskImages::new(&self.config, &self.devices, self.variables.clone())
    }

    /// The names that a header has.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn other_ram() -> SnapshotError {
    SnapshotError::Records { reason: "its pieces of RAM are not those of its config on this host".to_owned() }
}

fn in_memory(snapshot: &Snapshot, source: std::io::Error) -> SnapshotError {
    SnapshotError::Host { what: "read", path: snapshot.path.join(crate::state::MEMORY), source }
}

/// Gives each network card a new address, of those that everybody may use. The driver that runs keeps the one that it knows, which is in the card's state.
///
/// # Errors
/// The host has no entropy.
pub fn renew_addresses(config: &mut Config) -> Result<(), Error> {
    for net in &mut config.net {
        let [first, b, c, d, e, f, ..] = rng_seed_of_host()?;
        // Locally administered, and of one card.
        net.mac = Some(skep_config::Mac([first & !1 | 2, b, c, d, e, f]));
    }
    Ok(())
}

/// Opens the firmware of a machine that has some, which must be what it was.
fn firmware(config: &Config, records: &Records, lock: Locking) -> Result<Option<FirmwareFiles>, Error> {
    let Some(path) = &config.boot.firmware else { return Ok(None) };
    let files = BootFiles::open(&config.boot.source()?, config.arch(), lock)?.split().1;
    let same = match &files {
        Some(files) => known_by(&files.code, path)? == records.open(FIRMWARE)?,
        None => true,
    };
    if same { Ok(files) } else { Err(SnapshotError::Firmware { path: path.clone() }.into()) }
}

fn known_by(code: &Arc<Backing>, path: &Path) -> Result<FirmwareState, SnapshotError> {
    let failed = |source| SnapshotError::Host { what: "read", path: path.to_owned(), source };
    crate::state::memory::firmware(code).map_err(failed)
}
