//! Keys that are a choice out of few.

use serde::{Deserialize, Serialize};

use crate::group::{Group, group};

/// The guest's interrupt controller, where there is a choice: on aarch64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Irqchip {
    /// The newest that the host offers.
    #[default]
    Auto,
    /// GICv2 with a v2m frame: 8 CPUs at most.
    Gicv2,
    /// GICv3 with an ITS.
    Gicv3,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What ends the guest or loses its data.
    Error,
    /// What went wrong and could be dealt with.
    #[default]
    Warn,
    /// What happens once: set-up, the guest's requests, the end.
    Info,
    /// What happens often.
    Debug,
    /// Everything.
    Trace,
}

/// Processor features that tie the guest to its host, so that it gets them only when asked for, `pauth,sve`; and one that it is given where the host has it,
/// as every server's has, unless it is asked for, `pmu`, or refused, `pmu=false`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuFeatures {
    /// Pointer authentication (aarch64, FEAT_PAuth).
    pub pauth: bool,
    /// A performance monitor (aarch64, FEAT_PMUv3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmu: Option<bool>,
    /// Scalable vectors (aarch64, FEAT_SVE).
    pub sve: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FeatureKeys {
    #[serde(default)]
    pauth: bool,
    #[serde(default)]
    pmu: Option<bool>,
    #[serde(default)]
    sve: bool,
}

impl Group for CpuFeatures {
    type Keys = FeatureKeys;
    const LEADING: Option<&'static str> = None;

    fn from_keys(keys: FeatureKeys) -> Result<Self, String> {
        Ok(CpuFeatures { pauth: keys.pauth, pmu: keys.pmu, sve: keys.sve })
    }
}

group!(CpuFeatures, "a list such as \"pauth,sve\", or a table of them");
