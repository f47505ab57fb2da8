//! Debian's QEMU: how it is told to run a guest as skep does, and how it gets into a lab.

use super::MEMORY;
use crate::arch::Arch;
use crate::images::Archive;
use crate::paths;
use anyhow::{Context, Result, bail};
use object::elf::DT_NEEDED;
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The arguments with which QEMU gives a guest one vCPU, as much memory as skep does, a serial port, and nothing else that can be left out.
pub(super) fn arguments(machine: &str, kernel: &str, append: &str) -> Vec<String> {
    let machine = format!("{machine},accel=kvm");
    let words = ["-machine", &machine, "-cpu", "host", "-smp", "1", "-m", MEMORY];
    let quiet = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"];
    let guest = ["-kernel", kernel, "-append", append];
    words.into_iter().chain(quiet).chain(guest).map(str::to_owned).collect()
}

/// The firmware that a guest with a kernel of its own is started by.
const FIRMWARE: [&str; 6] =
    ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "qboot.rom"];

/// QEMU with all that it needs, in one directory that can be carried into a lab.
pub(super) struct Portable {
    arch: Arch,
    /// The directory on this machine.
    pub(super) directory: PathBuf,
}

impl Portable {
    /// QEMU for `arch`, from Debian's archive if it is not in the cache.
    pub(super) fn get(arch: Arch) -> Result<Portable> {
        let packages = paths::cache()?.join("packages").join(arch.name());
        fs::create_dir_all(&packages)?;
        // One at a time: others wait for what this one makes.
        let lock = fs::File::create(packages.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
        let directory = packages.join("qemu");
        if !directory.is_dir() {
            make(arch, &packages, &directory).with_context(|| format!("cannot get Debian's QEMU for {arch}"))?;
        }
        Ok(Portable { arch, directory })
    }

    /// The words that start it where the directory is `place`.
    pub(super) fn command(&self, place: &str) -> Vec<String> {
        let library = format!("{place}/lib");
        let words = [
            &format!("{library}/{}", loader(self.arch)),
            "--library-path",
            &library,
            &format!("{place}/{}", program(self.arch)),
            "-L",
            &format!("{place}/share"),
        ];
        words.map(str::to_owned).into()
    }
}

fn program(arch: Arch) -> String {
    format!("qemu-system-{arch}")
}

/// The dynamic linker of glibc.
fn loader(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ld-linux-x86-64.so.2",
        Arch::Aarch64 => "ld-linux-aarch64.so.1",
    }
}

fn make(arch: Arch, packages: &Path, directory: &Path) -> Result<()> {
    let package = match arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    };
    eprintln!("bench: fetching Debian's {package} for {arch}, and what it depends on");
    let root = tempfile::tempdir_in(packages)?;
    Archive::open(arch, &packages.join("apt"))?.unpack_with_dependencies(package, root.path())?;
    let mut files = BTreeMap::new();
    collect(root.path(), &mut files)?;

    let new = packages.join("qemu.new");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(new.join("lib"))?;
    fs::create_dir_all(new.join("share"))?;
    let copy = |name: &str, to: &Path| -> Result<()> {
        let from = files.get(name).with_context(|| format!("none of the packages has {name}"))?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    if arch == Arch::X86_64 {
        for name in FIRMWARE {
            copy(name, &new.join("share").join(name))?;
        }
    }
    copy(&program(arch), &new.join(program(arch)))?;
    // The libraries that it names, those that they name, and so on.
    let mut wanted = vec![loader(arch).to_owned()];
    wanted.extend(needed(&new.join(program(arch)))?);
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
