//! The test programs, and the static `skep` that they start.

use crate::arch::Arch;
use crate::cargo::{self, Metadata};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// A package whose `tests/` are integration tests: they need a `/dev/kvm`.
struct Suite {
    package: &'static str,
    /// Whether a test file runs without hardware virtualization: it uses guests of our own only.
    without_hardware: fn(&str) -> bool,
}

const SUITES: [Suite; 2] = [
    Suite { package: "skep-kvm", without_hardware: |_| true },
    Suite { package: "skep", without_hardware: |file| file.starts_with("native_") },
];

/// A test program of an architecture.
pub(super) struct TestProgram {
    /// Package and file, as in `skep/boot`.
    pub(super) name: String,
    /// The program.
    pub(super) path: PathBuf,
    /// Whether it runs without hardware virtualization.
    pub(super) without_hardware: bool,
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
    for suite in &SUITES {
        let package = package(&metadata, suite.package)?;
        arguments.extend(["--package".to_owned(), suite.package.to_owned()]);
        for target in package.targets.iter().filter(|target| target.is("test")) {
            if wanted.is_empty() || wanted.contains(&target.name) {
                arguments.extend(["--test".to_owned(), target.name.clone()]);
                found.push(target.name.clone());
            }
        }
    }
    for name in wanted {
        if !found.contains(name) {
            bail!("there is no integration test file {name}");
        }
    }
    if found.is_empty() {
        bail!("there are no integration tests");
    }

    let mut built = Built { tests: Vec::new(), skep: skep(arch)? };
    let executables = cargo::build(&arguments)?;
    for suite in &SUITES {
        let id = &package(&metadata, suite.package)?.id;
        for program in executables.iter().filter(|one| one.test && one.target.is("test") && one.package == *id) {
            built.tests.push(TestProgram {
                name: format!("{}/{}", suite.package, program.target.name),
                path: program.path.clone(),
                without_hardware: (suite.without_hardware)(&program.target.name),
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
