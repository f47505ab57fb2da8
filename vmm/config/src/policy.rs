//! What happens when the guest ends or fails.

use serde::{Deserialize, Serialize};

/// What skep does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// End, with the exit code of what happened.
    Exit,
    /// Start the guest again from power-on.
    Restart,
}

/// An action for each way in which a guest can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Policy {
    /// The guest powered itself off (ACPI S5, PSCI SYSTEM_OFF).
    pub power_off: Action,
    /// The guest asked for a reset (keyboard controller, reset register, PSCI SYSTEM_RESET).
    pub reset: Action,
    /// The guest's kernel reported a panic (pvpanic).
    pub panic: Action,
    /// A processor of the guest shut down after a triple fault (x86_64). Some kernels reset that way.
    pub triple_fault: Action,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { power_off: Action::Exit, reset: Action::Restart, panic: Action::Exit, triple_fault: Action::Exit }
    }
}
