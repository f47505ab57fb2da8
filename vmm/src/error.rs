//! Why a machine can't be made or run.

use std::path::PathBuf;

use skep_arch::kernel::{KernelError, LoadError};
use skep_arch::layout::LayoutError;
use skep_hypervisor::{ArchKind, HypervisorError, VcpuError};
use skep_irq::IrqError;
use skep_memory::MemoryError;

use crate::run::ControlError;

/// Why a machine can't be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend runs guests of the other architecture.
    #[error(
        "{machine} is an {wanted} machine, and {backend} on this host runs {offered} guests only\n  try: --machine {}",
        skep_config::MachineVersion::newest(*offered)
    )]
    OtherArchitecture {
        /// The machine's version.
        machine: String,
        /// Its architecture.
        wanted: ArchKind,
        /// The backend.
        backend: &'static str,
        /// Its architecture.
        offered: ArchKind,
    },
    /// Firmware needs system management mode.
    #[error(
        "the firmware can't do without system management mode, and no machine of skep has it\n  try: a build without it: OVMF_CODE_4M.fd, not OVMF_CODE_4M.secboot.fd"
    )]
    SmmWanted,
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] skep_config::Conflict),
    /// More vCPUs than the backend offers.
    #[error("{wanted} vCPUs: {backend} on this host offers {limit} at most{mend}")]
    Vcpus {
        /// How many were asked for.
        wanted: u32,
        /// The backend.
        backend: &'static str,
        /// How many there can be.
        limit: u32,
        /// What would do, or nothing.
        mend: &'static str,
    },
    /// The host has no such interrupt controller, or lacks a CPU feature.
    #[error("{what}: {backend} on this host has none; {mend}")]
    Lacking {
        /// What was asked for.
        what: String,
        /// The backend.
        backend: &'static str,
        /// What would do.
        mend: String,
    },
    /// A file can't be opened or read.
    #[error("{role} `{}`: {source}", path.display())]
    File {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// The kernel is none that this machine boots.
    #[error("kernel `{}`", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: KernelError,
    },
    /// Kernel, initramfs or command line don't fit.
    #[error("can't load `{}`", path.display())]
    Load {
        /// The kernel's path.
        path: PathBuf,
        /// What does not fit.
        source: LoadError,
    },
    /// The memory doesn't fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The backend.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// An interrupt line.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The vCPUs can't be arranged.
    #[error(transparent)]
    Topology(#[from] skep_arch::topology::TopologyError),
    /// The vCPUs can't be told apart.
    #[error(transparent)]
    Identity(#[from] skep_arch::x86_64::cpuid::IdentityError),
    /// Two devices in one place, or one outside its address space: a mistake in the machine itself.
    #[error("the machine can't be put together")]
    Bus(#[from] skep_bus::BusError),
    /// A device can't be made.
    #[error("device `{id}` can't be made")]
    Device {
        /// The device.
        id: String,
        /// Why.
        source: Box<crate::machine::DeviceError>,
    },
    /// A PCI device has no place.
    #[error(transparent)]
    Pci(#[from] skep_pci::PciError),
    /// The tables that describe the machine can't be written.
    #[error("the tables that describe the machine can't be made: {0}")]
    Tables(String),
    /// The control thread.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A thread can't be started.
    #[error("the host refuses a thread for {what}: {source}")]
    Thread {
        /// Whose.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// A mistake in skep itself. Programs whose panics abort, as skep's release does, end before this.
    #[error("the thread of vCPU {vcpu} panicked, which is a mistake in skep\n  try: report it with the message above")]
    Panicked {
        /// Which.
        vcpu: usize,
    },
    /// The control socket.
    #[error("control socket: {0}")]
    ControlSocket(#[source] crate::ListenError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] crate::state::SnapshotError),
    /// A migration.
    #[error(transparent)]
    Migrate(#[from] crate::migrate::MigrateError),
    /// The console.
    #[error(transparent)]
    Console(#[from] crate::console::ConsoleError),
}
