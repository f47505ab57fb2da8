//! Virtual CPUs and their topology.

use serde::{Deserialize, Serialize};

use crate::group::{Group, group};

#[cfg(test)]
#[path = "cpus_test.rs"]
mod test;

/// Virtual CPUs: `N[,max=N][,sockets=N][,cores=N][,threads=N]`.
///
/// Always complete: `count <= max` and `sockets * cores * threads == max`. There is no limit here; the backend knows its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpus {
    /// How many there are at power-on.
    pub count: u32,
    /// The most that there may ever be.
    pub max: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads in each core.
    pub threads: u32,
}

impl Default for Cpus {
    fn default() -> Self {
        Cpus { count: 1, max: 1, sockets: 1, cores: 1, threads: 1 }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    count: Option<u32>,
    max: Option<u32>,
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
}

impl Group for Cpus {
    type Keys = Keys;
    const LEADING: Option<&'static str> = Some("count");

    /// What is missing is made up: `max` from a full topology, else `count`; cores before sockets before threads.
    fn from_keys(keys: Keys) -> Result<Self, String> {
        let given = [
            ("count", keys.count),
            ("max", keys.max),
            ("sockets", keys.sockets),
            ("cores", keys.cores),
            ("threads", keys.threads),
        ];
        if let Some((key, _)) = given.iter().find(|(_, value)| *value == Some(0)) {
            return Err(format!("`{key}` must be at least 1"));
        }
        // In the order in which what is left over is placed.
        let mut parts = [keys.cores, keys.sockets, keys.threads];
        let known: u128 = parts.iter().flatten().map(|part| u128::from(*part)).product();
        let full = parts.iter().all(Option::is_some);
        let count = keys.count.unwrap_or(1);
        let max = match keys.max {
            Some(max) => max,
            None if full => {
                u32::try_from(known).map_err(|_| format!("a topology of {known} CPUs is beyond 32 bits"))?
            }
            None => count,
        };
        if count > max {
            return Err(format!(
                "{count} CPUs are more than the most that there may be, {max}: raise `max` or the topology"
            ));
        }
        let rest = u32::try_from(u128::from(max) / known).unwrap_or(0);
        if u128::from(max) % known != 0 || (full && rest != 1) {
            let given: Vec<_> =
                given[2..].iter().filter_map(|(key, value)| Some(format!("{key}={}", (*value)?))).collect();
            return Err(format!(
                "{max} CPUs can't be laid out as {}: sockets * cores * threads must be {max}",
                given.join(", ")
            ));
        }
        if let Some(part) = parts.iter_mut().find(|part| part.is_none()) {
            *part = Some(rest);
        }
        let [cores, sockets, threads] = parts.map(|part| part.unwrap_or(1));
        Ok(Cpus { count, max, sockets, cores, threads })
    }
}

group!(Cpus, "a number of CPUs, or a table of count, max, sockets, cores and threads");
