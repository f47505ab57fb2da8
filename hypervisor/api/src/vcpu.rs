//! A virtual CPU.

use std::sync::Arc;

use crate::{Arch, VcpuError};

/// Why [`Vcpu::run`] has returned: what the machine must decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Somebody kicked it ([`Kick::kick`]).
    Kicked,
    /// The guest asks for a reset (PSCI SYSTEM_RESET).
    Reset,
    /// The guest asks to be powered off (PSCI SYSTEM_OFF).
    PowerOff,
    /// The guest says that it has crashed.
    GuestPanic,
    /// The CPU has shut down: a triple fault on x86_64.
    TripleFault,
}

/// Stops a vCPU from another thread.
pub trait Kick: Send + Sync {
    /// Makes [`Vcpu::run`] return [`Exit::Kicked`] soon: the run under way, or else the next one. Several kicks before a return are one.
    fn kick(&self);
}

macro_rules! exit_counts {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)+) => {
        /// How often a vCPU has left guest code, by kind.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct ExitCounts {
            $($(#[$doc])* pub $field: u64,)+
        }

        impl ExitCounts {
            /// Each kind by name.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($name, self.$field)),+].into_iter()
            }

            /// Adds another vCPU's.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)+
            }

            /// All kinds together.
            #[must_use]
            pub fn total(&self) -> u64 {
                self.rows().map(|(_, count)| count).sum()
            }
        }
    };
}

exit_counts! {
    /// Reads of memory that no region backs.
    memory_reads: "memory read",
    /// Writes to memory that no region backs.
    memory_writes: "memory write",
    /// Port reads (x86_64).
    port_reads: "port read",
    /// Port writes (x86_64).
    port_writes: "port write",
    /// MSR or system register accesses.
    register_accesses: "register access",
    /// Firmware calls (SMCCC).
    firmware_calls: "firmware call",
    /// Ends of level interrupts that the backend reports (x86_64).
    interrupt_ends: "end of interrupt",
    /// Windows for an external interrupt (x86_64).
    interrupt_windows: "interrupt window",
    /// Waits for an interrupt outside the host's kernel.
    halts: "halt",
    /// Kicks, and signals of the host.
    kicks: "kick",
    /// What else the machine decides.
    others: "other",
}

/// A virtual CPU. It runs on one thread at a time.
pub trait Vcpu<A: Arch>: Send {
    /// Its number in the machine, from 0.
    fn index(&self) -> u32;

    /// What stops it from another thread.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Runs guest code until the machine must decide something. A vCPU that waits, for an interrupt (HLT, WFI) or for being started by another
    /// (SIPI, CPU_ON), waits inside: the backend has the local interrupt controller, so it alone knows what ends the wait. A kick does too.
    ///
    /// # Errors
    /// Where the vCPU can't go on.
    fn run(&mut self, io: &mut A::Io) -> Result<Exit, VcpuError>;

    /// Sets what a boot protocol sets, on a vCPU in its power-on state.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn boot(&mut self, state: &A::BootState) -> Result<(), VcpuError>;

    /// The power-on state, in place.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn reset(&mut self) -> Result<(), VcpuError>;

    /// Its whole architectural state. An access that has begun is finished first, which may call back into `io`.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn save(&mut self, io: &mut A::Io) -> Result<A::VcpuState, VcpuError>;

    /// Takes on a state that has been checked.
    ///
    /// # Errors
    /// Where the backend refuses, or the state does not fit this vCPU's configuration; the error names what.
    fn restore(&mut self, state: &A::VcpuState) -> Result<(), VcpuError>;

    /// It goes on after it has stood still, or was restored: the guest is told, where there is a way, so that it does not take the time for one in which
    /// it hung.
    ///
    /// # Errors
    /// Where the backend refuses. A guest that has not asked to be told is none.
    fn stood_still(&mut self) -> Result<(), VcpuError> {
        Ok(())
    }

    /// What it is that its host fixes.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn identity(&mut self) -> Result<A::VcpuIdentity, VcpuError>;

    /// Becomes a vCPU of that identity as far as that can be set, as the first part of [`restore`](Self::restore).
    ///
    /// # Errors
    /// Where its host fixes something else; the error names what, with both values.
    fn adopt(&mut self, identity: &A::VcpuIdentity) -> Result<(), VcpuError>;

    /// How often it has left guest code.
    fn exits(&self) -> ExitCounts;

    /// Its registers as text, for a log.
    fn dump(&mut self) -> String;
}
