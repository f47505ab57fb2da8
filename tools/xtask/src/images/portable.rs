//! Debian's programs with the libraries that they need, in a directory that can be carried into a lab.

use super::Archive;
use crate::arch::Arch;
use crate::paths;
use anyhow::{Context, Result, bail};
use object::elf::DT_NEEDED;
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Programs that are carried together.
pub(crate) struct Portable<'a> {
    /// The directory's name in the cache; another one where what follows changes.
    pub(crate) name: &'a str,
    /// The packages that they are in.
    pub(crate) packages: &'a [&'a str],
    /// The programs, by their paths in the packages; they come to `bin`, and what they are linked with to `lib`.
    pub(crate) programs: &'a [&'a str],
    /// Other files, which come to `share`.
    pub(crate) files: &'a [&'a str],
}

/// What the tests in a lab use on the host's side.
pub(crate) const TOOLS: Portable<'static> = Portable {
    name: "tools",
    packages: &["passt", "iperf3"],
    programs: &["usr/bin/passt", "usr/bin/iperf3"],
    files: &[],
};

/// What firmware boots from a network with.
pub(crate) const NETWORK: Portable<'static> =
    Portable { name: "network", packages: &["dnsmasq-base"], programs: &["usr/sbin/dnsmasq"], files: &[] };

/// Programs that are the other side of vhost-user devices.
pub(crate) const BACKENDS: Portable<'static> = Portable {
    name: "vhost-user",
    packages: &["qemu-system-common"],
    programs: &["usr/lib/qemu/virtiofsd", "usr/bin/qemu-storage-daemon"],
    files: &[],
};

impl Portable<'_> {
    /// The directory, for `arch`; from Debian's archive if it is not in the cache.
    pub(crate) fn get(&self, arch: Arch) -> Result<PathBuf> {
        let packages = paths::cache()?.join("packages").join(arch.name());
        fs::create_dir_all(&packages)?;
        // One at a time: others wait for what this one makes.
        let lock = fs::File::create(packages.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
        let directory = packages.join(self.name);
        if !directory.is_dir() {
            let failed = || format!("cannot get Debian's {} for {arch}", self.packages.join(", "));
            self.make(arch, &packages, &directory).with_context(failed)?;
        }
        Ok(directory)
    }

    fn make(&self, arch: Arch, packages: &Path, directory: &Path) -> Result<()> {
        eprintln!("images: fetching Debian's {} for {arch}, and what they depend on", self.packages.join(", "));
        let root = tempfile::tempdir_in(packages)?;
        let archive = Archive::open(arch, &packages.join("apt"))?;
        for package in self.packages {
            archive.unpack_with_dependencies(package, root.path())?;
        }
        let mut files = BTreeMap::new();
        collect(root.path(), &mut files)?;

        let new = packages.join(format!("{}.new", self.name));
        let _ = fs::remove_dir_all(&new);
        for sub in ["bin", "lib", "share"] {
            fs::create_dir_all(new.join(sub))?;
        }
        let copy = |name: &str, to: &Path| -> Result<()> {
            let from = files.get(name).with_context(|| format!("none of the packages has {name}"))?;
            fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok(())
        };
        for name in self.files {
            copy(name, &new.join("share").join(name))?;
        }
        // The libraries that they name, those that these name, and so on.
        let mut wanted = vec![loader(arch).to_owned()];
        for program in self.programs {
            let to = new.join("bin").join(Path::new(program).file_name().unwrap_or_default());
            fs::copy(root.path().join(program), &to).with_context(|| format!("none of the packages has {program}"))?;
            wanted.extend(needed(&to)?);
        }
        while let Some(name) = wanted.pop() {
            let to = new.join("lib").join(&name);
            if !to.exists() {
                copy(&name, &to)?;
                wanted.extend(needed(&to)?);
            }
        }
        fs::rename(&new, directory)?;
        Ok(())
    }
}

/// The files of all `sets`, with where a lab has them: what two of them have is carried once.
pub(crate) fn together(sets: &[Portable<'_>], arch: Arch) -> Result<Vec<(PathBuf, String)>> {
    let mut files = BTreeMap::new();
    for set in sets {
        let directory = set.get(arch)?;
        for sub in ["bin", "lib"] {
            for entry in fs::read_dir(directory.join(sub))? {
                let entry = entry?;
                files.entry(format!("{sub}/{}", entry.file_name().to_string_lossy())).or_insert(entry.path());
            }
        }
    }
    Ok(files.into_iter().map(|(name, path)| (path, name)).collect())
}

/// The dynamic linker of glibc.
pub(crate) fn loader(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ld-linux-x86-64.so.2",
        Arch::Aarch64 => "ld-linux-aarch64.so.1",
    }
}

/// The files below `directory` by their names, links followed within `directory`.
fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.is_file() {
            files.entry(entry.file_name().to_string_lossy().into_owned()).or_insert(path);
        }
    }
    Ok(())
}

/// The shared libraries that an ELF file names.
fn needed(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path)?;
    let failed = || format!("{} is no ELF file that can be read", path.display());
    let file = ElfFile64::<object::Endianness>::parse(&*bytes).with_context(failed)?;
    let (endian, data) = (file.endian(), &*bytes);
    let sections = file.elf_header().sections(endian, data).with_context(failed)?;
    let Some((dynamic, link)) = sections.dynamic(endian, data).with_context(failed)? else { bail!(failed()) };
    let strings = sections.strings(endian, data, link).with_context(failed)?;
    let mut names = Vec::new();
    for entry in dynamic.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)) {
        let name = entry.string(endian, strings).with_context(failed)?;
        names.push(String::from_utf8(name.to_owned()).with_context(failed)?);
    }
    Ok(names)
}
