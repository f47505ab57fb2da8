//! What can go wrong.

use skep_irq::IrqError;
use skep_memory::MemoryError;
use skep_state::StateError;

/// Why a backend can't make or change a VM.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The backend is not there, or this process has no right to it.
    #[error("{what}: {source}\n  try: {mend}")]
    Unavailable {
        /// What was tried, with the path.
        what: String,
        /// The host's error.
        source: std::io::Error,
        /// What would mend it.
        mend: String,
    },
    /// The backend lacks something that the machine can't do without.
    #[error("{backend} on this host lacks {what}{mend}")]
    Missing {
        /// Which backend.
        backend: &'static str,
        /// What it lacks.
        what: String,
        /// What would mend it, or nothing.
        mend: String,
    },
    /// The request is beyond a limit of the backend.
    #[error("{what}: {wanted} is more than the {limit} that {backend} offers on this host{mend}")]
    Limit {
        /// Which backend.
        backend: &'static str,
        /// What was asked for.
        what: &'static str,
        /// How much of it.
        wanted: u64,
        /// How much there is.
        limit: u64,
        /// What would do, or nothing.
        mend: String,
    },
    /// A call to the backend failed.
    #[error("{what}: {source}")]
    Call {
        /// What was being done.
        what: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An interrupt controller.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Saved state.
    #[error(transparent)]
    State(#[from] StateError),
}

impl HypervisorError {
    /// A failed call, by what was being done.
    pub fn call(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Call { what: what.into(), source: source.into() }
    }
}

/// Why a vCPU can't go on. None of them is the guest's orderly end.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The hardware refused to enter the guest.
    #[error("vCPU {vcpu}: the hardware refuses to enter the guest (reason {reason:#x}): {meaning}")]
    EntryFailed {
        /// Which vCPU.
        vcpu: u32,
        /// The hardware's own reason.
        reason: u64,
        /// What that means on this host.
        meaning: String,
        /// The registers, as text, for the log.
        registers: String,
    },
    /// The backend could not emulate an instruction.
    #[error("vCPU {vcpu}: {backend} could not emulate the instruction {} at {rip:#x}: {meaning}", hex(.bytes))]
    Emulation {
        /// Which vCPU.
        vcpu: u32,
        /// Which backend.
        backend: &'static str,
        /// The instruction's address.
        rip: u64,
        /// Its bytes, as far as they are known.
        bytes: Vec<u8>,
        /// What that means on this host.
        meaning: String,
        /// The registers, as text, for the log.
        registers: String,
    },
    /// The backend gave up for a reason of its own.
    #[error("vCPU {vcpu}: {backend} gave up ({reason}): {meaning}")]
    Internal {
        /// Which vCPU.
        vcpu: u32,
        /// Which backend.
        backend: &'static str,
        /// The backend's own reason.
        reason: String,
        /// What that means on this host.
        meaning: String,
        /// The registers, as text, for the log.
        registers: String,
    },
    /// A call to the backend failed.
    #[error("vCPU {vcpu}: {what}: {source}")]
    Call {
        /// Which vCPU.
        vcpu: u32,
        /// What was being done.
        what: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// The state does not fit.
    #[error("vCPU {vcpu}: {source}")]
    State {
        /// Which vCPU.
        vcpu: u32,
        /// Why.
        source: StateError,
    },
}

impl VcpuError {
    /// The registers at the failure, as text, where they are known.
    #[must_use]
    pub fn registers(&self) -> Option<&str> {
        match self {
            Self::EntryFailed { registers, .. }
            | Self::Emulation { registers, .. }
            | Self::Internal { registers, .. } => Some(registers),
            Self::Call { .. } | Self::State { .. } => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(bytes unknown)".to_owned();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
