//! Firmware's variables.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::group::{Group, group};

/// The file with firmware's variables: `FILE[,template=FILE]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FirmwareVars {
    /// The file, which the guest writes.
    pub file: PathBuf,
    /// What it is made from where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    file: Option<PathBuf>,
    template: Option<PathBuf>,
}

impl Group for FirmwareVars {
    type Keys = Keys;
    const LEADING: Option<&'static str> = Some("file");

    fn from_keys(keys: Keys) -> Result<Self, String> {
        let file = keys.file.filter(|file| !file.as_os_str().is_empty());
        let file = file.ok_or("a file for the variables is needed: FILE[,template=FILE]")?;
        Ok(FirmwareVars { file, template: keys.template })
    }
}

group!(FirmwareVars, "a path, or a table of file and template");
