//! The test programs, and the static `skep` that they start.

use crate::arch::Arch;
use crate::cargo::{self, Metadata};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// The packages whose `tests/` are integration tests.
const PACKAGES: [&str; 2] = ["skep-kvm", "skep"];

/// What a test file needs, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No `/dev/kvm`: it runs with the unit tests, not here.
    Nothing,
    /// Any `/dev/kvm`: its guests are our own.
    AnyKvm,
    /// Hardware virtualization, or the lab.
    Hardware,
    /// That, and Debian's root file system.
    Debian,
}

impl Need {
    fn of(package: &str, file: &str) -> Need {
        match package {
            "skep-kvm" => Need::AnyKvm,
            _ if file.starts_with("cli") => Need::Nothing,
            _ if file.starts_with("native_") => Need::AnyKvm,
            _ if file.starts_with("debian") => Need::Debian,
            _ => Need::Hardware,
        }
    }
}

/// Whether a test file is for hosts of `arch`: one whose name begins with an architecture is for that one alone.
fn is_for(arch: Arch, file: &str) -> bool {
    Arch::ALL.into_iter().all(|other| other == arch || !file.starts_with(other.name()))
}

/// A test program of an architecture.
pub(super) struct TestProgram {
    /// Package and file, as in `skep/boot`.
    pub(super) name: String,
    /// The program.
    pub(super) path: PathBuf,
    /// Whether it runs without hardware virtualization.
    pub(super) without_hardware: bool,
    /// Whether its guests have Debian's root file system.
    pub(super) debian: bool,
    /// Whether its guests have firmware.
    pub(super) firmware: bool,
    /// Whether its guests have devices with vhost-user backends.
    pub(super) vhost_user: bool,
}

/// What was built for an architecture.
pub(super) struct Built {
    /// The test programs.
    pub(super) tests: Vec<TestProgram>,
    /// The static `skep`.
    pub(super) skep: PathBuf,
}

/// Builds for `arch` the test files that `wanted` names (all when it is empty).
pub(super) fn build(arch: Arch, wanted: &[String]) -> Result<Built> {
    let metadata = cargo::metadata(false)?;
    let mut arguments: Vec<String> = ["test", "--no-run", "--target", arch.musl_target()].map(str::to_owned).into();
    let mut found = Vec::new();
    for name in PACKAGES {
        arguments.extend(["--package".to_owned(), name.to_owned()]);
        for target in package(&metadata, name)?.targets.iter().filter(|target| target.is("test")) {
            let ours = Need::of(name, &target.name) != Need::Nothing && is_for(arch, &target.name);
            if ours && (wanted.is_empty() || wanted.contains(&target.name)) {
                arguments.extend(["--test".to_owned(), target.name.clone()]);
                found.push(target.name.clone());
            }
        }
    }
    for name in wanted {
        if !found.contains(name) {
            bail!("there is no integration test file {name} for {arch}");
        }
    }
    if found.is_empty() {
        bail!("there are no integration tests for {arch}");
    }

    let mut built = Built { tests: Vec::new(), skep: skep(arch)? };
    let executables = cargo::build(&arguments)?;
    for name in PACKAGES {
        let id = &package(&metadata, name)?.id;
        for program in executables.iter().filter(|one| one.test && one.target.is("test") && one.package == *id) {
            let need = Need::of(name, &program.target.name);
            built.tests.push(TestProgram {
                name: format!("{name}/{}", program.target.name),
                path: program.path.clone(),
                without_hardware: need == Need::AnyKvm,
                debian: need == Need::Debian,
                firmware: program.target.name.contains("firmware"),
                vhost_user: program.target.name == "vhost_user",
            });
        }
    }
    built.tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

/// Builds the static `skep` of `arch`, in the profile that tests use.
pub(crate) fn skep(arch: Arch) -> Result<PathBuf> {
    let arguments = ["build", "--package", "skep", "--bin", "skep", "--target", arch.musl_target()];
    let executables = cargo::build(&arguments.map(str::to_owned))?;
    Ok(executables.into_iter().next().context("cargo built no skep")?.path)
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a cargo::Package> {
    let found = metadata.packages.iter().find(|package| package.name == name);
    found.with_context(|| format!("the workspace has no package {name}"))
}

#[cfg(test)]
#[path = "build_test.rs"]
mod test;
