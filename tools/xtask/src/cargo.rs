//! cargo, called by the tools.

use crate::{paths, process};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The workspace, as `cargo metadata` tells it (doc.rust-lang.org/cargo/commands/cargo-metadata.html).
#[derive(Deserialize)]
pub(crate) struct Metadata {
    /// Every package: those of the workspace, and those that they depend on.
    pub(crate) packages: Vec<Package>,
    /// The ids of the workspace's own.
    pub(crate) workspace_members: Vec<String>,
}

/// A package.
#[derive(Deserialize)]
pub(crate) struct Package {
    /// The id by which other parts of cargo's output name it.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Where its Cargo.toml is.
    pub(crate) manifest_path: PathBuf,
    /// The packages that its Cargo.toml names.
    pub(crate) dependencies: Vec<Dependency>,
    /// What is built of it.
    pub(crate) targets: Vec<Target>,
}

/// A package's need of another.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    /// The other's name.
    pub(crate) name: String,
    /// `dev` or `build`; nothing for an ordinary one.
    pub(crate) kind: Option<String>,
    /// What it is for, as in `cfg(fuzzing)`; nothing for all.
    pub(crate) target: Option<String>,
}

/// Something that is built of a package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// What it is: `lib`, `bin`, `test`, ...
    pub(crate) kind: Vec<String>,
    /// Its first source file.
    pub(crate) src_path: PathBuf,
}

impl Target {
    /// Whether it is of this kind.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind.iter().any(|one| one == kind)
    }
}

/// A program that cargo has built.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    /// The id of its package.
    pub(crate) package: String,
    /// What it was built of.
    pub(crate) target: Target,
    /// Whether it is a test harness.
    pub(crate) test: bool,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// The cargo that runs these tools, in the root of the work tree.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace());
    command
}

/// The workspace's packages, and with `dependencies` all others that they are built with.
pub(crate) fn metadata(dependencies: bool) -> Result<Metadata> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1"]);
    if !dependencies {
        command.arg("--no-deps");
    }
    serde_json::from_str(&process::output(&mut command)?).context("cargo metadata printed something unknown")
}

/// Runs a cargo command that builds, and gives back the programs that came of it.
pub(crate) fn build(arguments: &[String]) -> Result<Vec<Executable>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(default)]
        package_id: String,
        target: Option<Target>,
        profile: Option<Profile>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }

    let mut command = cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics");
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {}: {}", arguments.join(" "), output.status);
    }
    let mut executables = Vec::new();
    for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Message = serde_json::from_slice(line).context("cargo printed something unknown")?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        if let (Some(target), Some(profile), Some(path)) = (message.target, message.profile, message.executable) {
            executables.push(Executable { package: message.package_id, target, test: profile.test, path });
        }
    }
    Ok(executables)
}
