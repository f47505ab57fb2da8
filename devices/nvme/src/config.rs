//! What a controller and its namespaces are made of.

use std::sync::Arc;
use std::time::Duration;

use skep_block::Disk;

/// A power state (Base 8.15, Power State Descriptor).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerState {
    /// The most power that it takes, in units of 0.01 W.
    pub centiwatts: u16,
    /// No I/O is done in it: the next I/O command leaves it.
    pub non_operational: bool,
    /// How long entering it takes, in microseconds.
    pub entry_latency: u32,
    /// How long leaving it takes, in microseconds.
    pub exit_latency: u32,
}

/// What a controller is made of.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Serial number, at most 20 characters of ASCII.
    pub serial: String,
    /// Model number, at most 40 characters of ASCII.
    pub model: String,
    /// NVM subsystem qualified name, at most 223 characters.
    pub nqn: String,
    /// I/O queue pairs at most, 1 to [`ControllerConfig::MOST_QUEUES`].
    pub queues: u16,
    /// Commands that one completion queue's worker has in flight at most.
    pub in_flight: u16,
    /// How long a worker polls at most before it sleeps; zero turns polling off.
    pub poll: Duration,
    /// Power states, from the one with most power on; 1 to 32.
    pub power_states: Vec<PowerState>,
}

impl ControllerConfig {
    /// What one page of shadow doorbells has room for.
    pub const MOST_QUEUES: u16 = 510;

    /// A controller with that serial number, and 64 queue pairs.
    #[must_use]
    pub fn new(serial: impl Into<String>) -> Self {
        let serial = serial.into();
        let state = |centiwatts, non_operational, entry_latency, exit_latency| PowerState {
            centiwatts,
            non_operational,
            entry_latency,
            exit_latency,
        };
        Self {
            model: "skep NVMe".to_owned(),
            nqn: format!("nqn.2014-08.org.nvmexpress:skep.{serial}"),
            serial,
            queues: 64,
            in_flight: 256,
            poll: Duration::from_micros(32),
            power_states: vec![
                state(850, false, 0, 0),
                state(450, false, 0, 0),
                state(300, false, 0, 0),
                state(40, true, 200, 1000),
                state(5, true, 1000, 9000),
            ],
        }
    }

    pub(crate) fn check(&self) -> Result<(), NvmeError> {
        let refuse = |what, rule| Err(NvmeError::Config { what, rule });
        if !(1..=Self::MOST_QUEUES).contains(&self.queues) {
            return refuse("number of queues", "it is 1 to 510");
        }
        if !(1..=4096).contains(&self.in_flight) {
            return refuse("number of commands in flight", "it is 1 to 4096");
        }
        if self.serial.len() > 20 || self.model.len() > 40 || self.nqn.len() > 223 {
            return refuse("serial number, model or name", "they have at most 20, 40 and 223 characters");
        }
        if !(1..=32).contains(&self.power_states.len()) || self.power_states[0].non_operational {
            return refuse("list of power states", "there are 1 to 32, and the first one is operational");
        }
        Ok(())
    }
}

/// What a namespace is made of.
#[derive(Clone)]
pub struct NamespaceConfig {
    /// Its content.
    pub disk: Arc<dyn Disk>,
    /// The logical block's size in bytes: 512 or 4096.
    pub block_size: u32,
    /// It is shown write protected, whatever the disk is.
    pub read_only: bool,
    /// Its UUID, by which guests find it again.
    pub uuid: [u8; 16],
}

/// Why a controller or a namespace can't be had.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The configuration asks for what can't be.
    #[error("NVMe: the {what} can't be used: {rule}")]
    Config {
        /// Which part.
        what: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A namespace can't be attached.
    #[error("NVMe namespace {nsid}: {reason}")]
    Namespace {
        /// Which.
        nsid: u32,
        /// Why not, and what would mend it.
        reason: String,
    },
    /// The host has no resources left.
    #[error("NVMe: can't {what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
}
