//! Names of devices.

use std::collections::BTreeSet;

use crate::error::Conflict;

/// Characters of a name; an NVMe serial number has no more.
const MOST: usize = 20;

/// Refuses what is no name.
pub(crate) fn check_id(id: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.is_empty() || id.len() > MOST || !id.bytes().all(allowed) {
        return Err(format!("`{id}` is no name: 1 to {MOST} letters, digits, `-`, `_` and `.`"));
    }
    Ok(())
}

/// The names of a machine's devices, each given once.
#[derive(Default)]
pub(crate) struct Ids(BTreeSet<String>);

impl Ids {
    /// Takes a name that the config gives.
    pub(crate) fn take(&mut self, id: &str) -> Result<(), Conflict> {
        if self.0.insert(id.to_owned()) { Ok(()) } else { Err(Conflict::SameId { id: id.to_owned() }) }
    }

    /// Fills in a name of that kind that nobody has: `disk0`, `disk1`, ...
    pub(crate) fn fill(&mut self, kind: &str, id: &mut Option<String>) {
        if id.is_none() {
            let free = (0..).map(|number: u32| format!("{kind}{number}")).find(|name| !self.0.contains(name));
            self.0.extend(free.clone());
            *id = free;
        }
    }
}
