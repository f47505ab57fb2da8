//! A guest architecture as a type.

use std::fmt::{self, Debug, Display};
use std::str::FromStr;

use skep_state::State;

/// A guest architecture at the edges that a user sees (config, snapshots, messages).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArchKind {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl ArchKind {
    /// The name, as in a target triple.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The architecture that this program was built for, if it is one of them.
    #[must_use]
    pub fn host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }
}

impl Display for ArchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ArchKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(format!("`{other}` is no architecture that skep knows: x86_64 or aarch64")),
        }
    }
}

/// What a vCPU calls for an access to memory that no region backs. `data` has 1 to 8 bytes, little-endian.
pub trait MemoryIo: Send {
    /// Fills `data`.
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]);
    /// Takes `data`.
    fn memory_write(&mut self, gpa: u64, data: &[u8]);
}

/// A guest architecture: which types describe it.
pub trait Arch: Sized + Debug + Send + Sync + 'static {
    /// The same as a value.
    const KIND: ArchKind;

    /// What a backend can do that only this architecture has.
    type Capabilities: Debug + Clone + Send + Sync;
    /// What a VM is made with: the interrupt controllers, above all.
    type VmConfig: Debug + Clone + Send + Sync;
    /// What a vCPU is made with: its identity.
    type VcpuConfig: Debug + Clone + Send + Sync;
    /// The registers that a boot protocol sets.
    type BootState: Debug + Clone + PartialEq + Send + Sync;
    /// The whole architectural state of a vCPU.
    type VcpuState: State;
    /// What a vCPU is that its host fixes; nothing where all of it is configured.
    type VcpuIdentity: Debug + Clone + PartialEq + Send + Sync;
    /// What a vCPU calls back into while it runs.
    type Io: MemoryIo + ?Sized;
    /// The interrupt controllers that are the backend's own.
    type Interrupts: Send + Sync;
}
