//! What each architecture's machine must answer.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use skep_arch::kernel::LoadError;
use skep_arch::layout::{AddressRange, Row};
use skep_arch::topology::{Topology, TopologyError};
use skep_chipset::{Flash, Requests, SerialOut, SerialPort};
use skep_clock::Clock;
use skep_config::{Config, Cpus};
use skep_hypervisor::{Arch, Capabilities, Vcpu, Vm};
use skep_memory::{Backing, MemoryMap};
use skep_pci::{Endpoint, RootComplex};
use skep_state::Component;

use crate::Error;
use crate::boot::KernelFiles;
use crate::firmware::FirmwareFiles;
use crate::run::BoxedIo;

/// What a machine will be: everything that follows from configuration and capabilities, before anything is made.
#[derive(Debug, Clone)]
pub struct Plan<A: Platform> {
    /// The memory layout.
    pub layout: A::Layout,
    /// RAM, ascending; the parts follow each other in the memory behind them.
    pub ram: Vec<AddressRange>,
    /// What the backend's VM is made with.
    pub vm: A::VmConfig,
    /// What its vCPUs are made with.
    pub vcpus: Vec<A::VcpuConfig>,
    /// The hardware ids (APIC id, MPIDR affinity) of all vCPUs that there may ever be; those in `vcpus` come first.
    pub possible: Vec<u64>,
    /// The frequency of the counter that the guest reads, where it is known: the TSC's in kHz, CNTVCT_EL0's in Hz.
    pub counter: Option<u32>,
}

/// What a machine gives its devices.
pub struct Services {
    /// Guest time.
    pub clock: Clock,
    /// The way to the control thread.
    pub requests: Requests,
    /// Where the first serial port's output goes.
    pub serial: Box<dyn SerialOut>,
    /// Guest memory.
    pub memory: MemoryMap,
    /// What the machine starts from, where that is firmware.
    pub firmware: Option<FirmwareFiles>,
}

/// Told of each device that a guest has let go.
pub type Ejected = Box<dyn Fn(Arc<Endpoint>) + Send + Sync>;

/// A component of a machine, by its name in a snapshot.
pub type Named = (String, Arc<dyn Component>);

/// An architecture's machine: what it is made of, and how a guest is booted on it.
pub trait Platform: Arch {
    /// The memory layout.
    type Layout: std::fmt::Debug + Clone;
    /// The devices, put together.
    type Board: Send + Sync;

    /// How many guest physical address bits a machine with `ram` bytes is given where the host has as many: a function of the configuration
    /// alone, so that the same configuration gives the same hardware on every host.
    fn address_bits(ram: u64) -> u8;

    /// What the machine will be.
    ///
    /// # Errors
    /// What the backend lacks, or what does not fit, by name.
    fn plan(config: &Config, backend: &'static str, capabilities: &Capabilities<Self>) -> Result<Plan<Self>, Error>;

    /// The layout for a person to read.
    fn describe(layout: &Self::Layout) -> Vec<Row>;

    /// Makes the devices and puts them together.
    ///
    /// # Errors
    /// Where the backend refuses a line or an address.
    fn assemble(
        config: &Config,
        plan: &Plan<Self>,
        vm: &Arc<dyn Vm<Self>>,
        interrupts: Self::Interrupts,
        services: Services,
        ram: Arc<Backing>,
        ejected: Ejected,
    ) -> Result<Arc<Self::Board>, Error>;

    /// Pieces of a part of RAM that are always there in a machine with firmware: its end among them.
    fn lasting_ram(part: AddressRange) -> Vec<AddressRange> {
        vec![part]
    }

    /// Carries an [`Action`](skep_bus::Action) out that asks for less than [`Platform::relocate`].
    fn remap(board: &Self::Board);

    /// Maps what the devices' registers say: after an access that moved something, a reset or a restore.
    fn relocate(board: &Self::Board);

    /// The PCI hierarchy: devices are put into it, and plugged.
    fn pci(board: &Self::Board) -> &Arc<RootComplex>;

    /// Gives PCI's functions their places, as firmware does in a machine that has one.
    ///
    /// # Errors
    /// What does not fit, by its place.
    fn place(plan: &Plan<Self>, board: &Self::Board) -> Result<(), Error>;

    /// What vCPU `index` calls back into.
    fn io(board: &Arc<Self::Board>, index: u32) -> BoxedIo<Self>;

    /// Loads the guest into RAM with the tables that describe the machine, and answers what the first vCPU begins with.
    ///
    /// # Errors
    /// What does not fit, by name.
    fn load(
        config: &Config,
        plan: &Plan<Self>,
        board: &Self::Board,
        memory: &MemoryMap,
        files: &mut KernelFiles,
        memory_is_zero: bool,
    ) -> Result<Self::BootState, Error>;

    /// Puts firmware's first instruction, and what it finds in RAM, into their places; answers what the first vCPU begins with, if that is not as at
    /// power-on.
    ///
    /// # Errors
    /// What does not fit, by name.
    fn start_firmware(
        config: &Config,
        plan: &Plan<Self>,
        board: &Self::Board,
        memory: &MemoryMap,
    ) -> Result<Option<Self::BootState>, Error>;

    /// Presses the power button, and says whether the guest listens to it.
    fn press_power_button(board: &Self::Board) -> bool;

    /// Gives the guest a new generation id, and says whether it has one.
    ///
    /// # Errors
    /// The host has no entropy.
    fn renew_generation(board: &Self::Board, memory: &MemoryMap) -> Result<bool, Error>;

    /// The bank of flash with firmware's variables, if it has one.
    fn flash(board: &Self::Board) -> Option<&Arc<Flash>>;

    /// The devices' state, in the order in which it is saved.
    fn components(board: &Self::Board) -> &[Named];

    /// Puts the backend's own interrupt controllers into their power-on state.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn reset_interrupts(board: &Self::Board) -> Result<(), Error>;

    /// The first serial port.
    fn serial(board: &Self::Board) -> Arc<dyn SerialPort>;

    /// Has the devices know the first vCPU, which the others are like.
    fn meet(board: &Self::Board, first: &mut dyn Vcpu<Self>);
}

/// Guest physical address bits that machines are given: what nearly all hosts have, then what larger machines need.
const ADDRESS_BITS: [u8; 4] = [40, 44, 48, 52];

/// The first of [`ADDRESS_BITS`] with room for `ram` bytes.
pub(super) fn smallest_bits(ram: u64, max_ram: impl Fn(u8) -> u64) -> u8 {
    ADDRESS_BITS.into_iter().find(|bits| ram <= max_ram(*bits)).unwrap_or(52)
}

/// Names the kernel that can't be loaded.
pub(super) fn load_error(path: &Path) -> impl Fn(LoadError) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Load { path: path.clone(), source }
}

/// How the processors of a config are arranged.
pub(super) fn topology(cpus: &Cpus) -> Result<Topology, TopologyError> {
    Topology::new(cpus.sockets, cpus.cores, cpus.threads)
}

/// The seed of the guest's random number generator: the configured one, or the host's entropy.
pub(super) fn rng_seed(config: &Config) -> Result<[u8; 32], Error> {
    if let Some(seed) = config.rng_seed {
        return Ok(seed.0);
    }
    rng_seed_of_host()
}

/// The host's entropy.
pub(super) fn rng_seed_of_host() -> Result<[u8; 32], Error> {
    let mut seed = [0; 32];
    let path = Path::new("/dev/urandom");
    let failed = |source| Error::File { role: "the host's entropy", path: path.to_path_buf(), source };
    File::open(path).and_then(|mut file| file.read_exact(&mut seed)).map_err(failed)?;
    Ok(seed)
}
