//! Packages from Debian's archive, of either architecture, on a machine of any architecture.
//!
//! apt itself fetches and checks them, with state directories of its own: neither the machine's package architectures
//! nor its lists are touched, no rights are needed, and on Ubuntu it is still Debian's archive that is asked.

use crate::arch::Arch;
use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release that guests and the lab are made of.
pub(super) const RELEASE: &str = "bookworm";
/// Where Debian and Ubuntu put the keys of Debian's archive (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the archive of a release is: lines of a `sources.list`.
pub(super) fn sources(release: &str) -> String {
    format!(
        "deb [signed-by={KEYRING}] http://deb.debian.org/debian {release} main\n\
         deb [signed-by={KEYRING}] http://deb.debian.org/debian-security {release}-security main\n"
    )
}

/// Debian's archive as seen by a machine of one architecture.
pub(crate) struct Archive {
    arch: Arch,
    dir: PathBuf,
}

impl Archive {
    /// Fetches the lists of [`RELEASE`] into `dir`.
    pub(crate) fn open(arch: Arch, dir: &Path) -> Result<Archive> {
        Archive::of(RELEASE, arch, dir)
    }

    /// Fetches the lists of `release` into `dir`.
    pub(crate) fn of(release: &str, arch: Arch, dir: &Path) -> Result<Archive> {
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is missing: run tools/setup (package debian-archive-keyring)");
        }
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot make {}", dir.join(sub).display()))?;
        }
        fs::write(dir.join("sources.list"), sources(release))?;
        fs::write(dir.join("status"), "")?;
        let archive = Archive { arch, dir: dir.to_owned() };
        // Without the error mode, an unreachable archive is a warning and the old lists stay.
        process::output(archive.apt("apt-get").args(["-oAPT::Update::Error-Mode=any", "update"]))
            .context("Debian's archive cannot be read")?;
        Ok(archive)
    }

    /// The newest package of the archive that the metapackage `package` depends on and whose name starts with `prefix`.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let record = process::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        record
            .lines()
            .filter_map(|line| line.strip_prefix("Depends:"))
            .flat_map(|depends| depends.split([',', '|']))
            .filter_map(|one| one.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("Debian's {package} depends on no package named {prefix}..."))
    }

    /// Fetches `package` and unpacks those of its files that match `patterns` (as tar's, for instance `./boot/*`)
    /// under `into`. Gives back the package's file name, which holds its version.
    pub(crate) fn unpack(&self, package: &str, patterns: &[&str], into: &Path) -> Result<String> {
        let scratch = tempfile::tempdir_in(&self.dir)?;
        process::output(self.apt("apt-get").args(["download", package]).current_dir(scratch.path()))?;
        let deb = fs::read_dir(scratch.path())?
            .next()
            .with_context(|| format!("apt-get downloaded nothing for {package}"))??
            .path();

        fs::create_dir_all(into)?;
        let mut dpkg = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let tar = dpkg.stdout.take().expect("stdout is piped");
        let status = Command::new("tar")
            .args(["--extract", "--no-same-owner", "--wildcards", "--directory"])
            .arg(into)
            .args(patterns)
            .stdin(tar)
            .status()
            .context("cannot start tar")?;
        let unpacked = dpkg.wait()?.success() && status.success();
        if !unpacked {
            bail!("{} has no files {} or cannot be unpacked", deb.display(), patterns.join(", "));
        }
        Ok(deb.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Fetches `package` and all that it depends on, and unpacks them under `into`.
    pub(crate) fn unpack_with_dependencies(&self, package: &str, into: &Path) -> Result<()> {
        let archives = tempfile::tempdir_in(&self.dir)?;
        fs::create_dir_all(archives.path().join("partial"))?;
        let place = format!("-oDir::Cache::archives={}", archives.path().display());
        let words = ["--yes", "--download-only", "--no-install-recommends", &place, "install", package];
        process::output(self.apt("apt-get").args(words))?;
        for entry in fs::read_dir(archives.path())? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                process::output(Command::new("dpkg-deb").arg("--extract").args([&deb, into]))?;
            }
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let arch = self.arch.debian();
        let dir = self.dir.display();
        let mut command = Command::new(program);
        command.args([
            "-qq".to_owned(),
            format!("-oAPT::Architecture={arch}"),
            format!("-oAPT::Architectures={arch}"),
            format!("-oDir::State={dir}"),
            format!("-oDir::State::status={dir}/status"),
            format!("-oDir::State::Lists={dir}/lists"),
            format!("-oDir::Cache={dir}"),
            format!("-oDir::Etc::SourceList={dir}/sources.list"),
            "-oDir::Etc::SourceParts=/dev/null".to_owned(),
            "-oDir::Etc::Preferences=/dev/null".to_owned(),
            "-oDir::Etc::PreferencesParts=/dev/null".to_owned(),
            // Nothing is installed, and the cache may be where apt's own user cannot write.
            "-oAPT::Sandbox::User=root".to_owned(),
            "-oAcquire::Languages=none".to_owned(),
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "-oAcquire::Retries=3".to_owned(),
        ]);
        command
    }
}
