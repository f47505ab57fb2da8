//! Guest memory.

use serde::{Deserialize, Serialize};

use crate::group::{Group, group};
use crate::size::Size;

#[cfg(test)]
#[path = "memory_test.rs"]
mod test;

/// Guest memory: `SIZE[,hugepages=SIZE][,prefault][,shared]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Memory {
    /// How much RAM the guest has. The machine's memory layout says which amounts it can hold.
    pub size: Size,
    /// Take it from huge pages of this size, which the host must have set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<Size>,
    /// Take all of it before the guest starts, rather than page by page when it is first touched.
    pub prefault: bool,
    /// Back it by a file descriptor that other processes can map. It is so in any case where a device has a vhost-user backend.
    pub shared: bool,
}

/// What `--memory` gives when there is none.
const DEFAULT_SIZE: Size = Size::mib(512);
/// The smallest huge page of any host (aarch64, 16 contiguous pages of 4 KiB).
const SMALLEST_HUGE_PAGE: Size = Size::kib(64);

impl Default for Memory {
    fn default() -> Self {
        Memory { size: DEFAULT_SIZE, hugepages: None, prefault: false, shared: false }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    size: Option<Size>,
    hugepages: Option<Size>,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    shared: bool,
}

impl Group for Memory {
    type Keys = Keys;
    const LEADING: Option<&'static str> = Some("size");

    fn from_keys(keys: Keys) -> Result<Self, String> {
        let size = keys.size.unwrap_or(DEFAULT_SIZE);
        if size.bytes() == 0 {
            return Err("a guest needs memory".to_owned());
        }
        if let Some(page) = keys.hugepages {
            if !page.bytes().is_power_of_two() || page < SMALLEST_HUGE_PAGE {
                return Err(format!(
                    "huge pages of {page} do not exist: `ls /sys/kernel/mm/hugepages` names the host's"
                ));
            }
            if !size.bytes().is_multiple_of(page.bytes()) {
                return Err(format!("memory of {size} is not a whole number of huge pages of {page}"));
            }
        }
        Ok(Memory { size, hugepages: keys.hugepages, prefault: keys.prefault, shared: keys.shared })
    }
}

group!(Memory, "a size, or a table of size, hugepages, prefault and shared");
