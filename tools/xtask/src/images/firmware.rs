//! The firmware that Debian ships, unmodified, and what firmware starts that is no system: option ROMs, the UEFI shell, a memory test.

use super::debian::{self, Archive};
use super::{Images, bootdisk, netboot};
use crate::arch::Arch;
use crate::{paths, process};
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Raise it when the directory is made in another way, and it is made anew.
const RECIPE: u32 = 3;

/// Firmware of this release is kept as well, in the directory `newer`: what works must not hang on one build. Only it has the UEFI shell
/// in packages of its own.
const NEWER: &str = "trixie";

/// A package, and which files of it are kept.
type Package = (&'static str, &'static [&'static str]);

/// Of [`debian::RELEASE`]. Firmware of the other architecture is there to be refused.
fn packages(arch: Arch) -> &'static [Package] {
    match arch {
        Arch::X86_64 => &[
            (
                "ovmf",
                &[
                    "usr/share/OVMF/OVMF_CODE_4M.fd",
                    "usr/share/OVMF/OVMF_VARS_4M.fd",
                    // One that asks for SMM.
                    "usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                    // Variables of another build.
                    "usr/share/OVMF/OVMF_VARS.fd",
                    "usr/share/ovmf/OVMF.fd",
                ],
            ),
            ("qemu-efi-aarch64", &["usr/share/qemu-efi-aarch64/QEMU_EFI.fd"]),
            ("seabios", &["usr/share/seabios/bios-256k.bin"]),
            ("ipxe-qemu", &["usr/lib/ipxe/qemu/pxe-virtio.rom", "usr/lib/ipxe/qemu/pxe-ne2k_pci.rom"]),
            ("memtest86+", &["boot/memtest86+x64.bin", "boot/memtest86+x64.efi"]),
        ],
        // The option ROMs have no arm64 code.
        Arch::Aarch64 => &[
            (
                "qemu-efi-aarch64",
                &[
                    "usr/share/AAVMF/AAVMF_CODE.fd",
                    "usr/share/AAVMF/AAVMF_VARS.fd",
                    "usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
                ],
            ),
            ("ovmf", &["usr/share/ovmf/OVMF.fd"]),
        ],
    }
}

/// Of [`NEWER`].
fn newer_packages(arch: Arch) -> &'static [Package] {
    match arch {
        Arch::X86_64 => &[
            ("ovmf", &["usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd", "usr/share/ovmf/OVMF.fd"]),
            ("seabios", &["usr/share/seabios/bios-256k.bin"]),
            ("efi-shell-x64", &["usr/share/efi-shell-x64/shellx64.efi"]),
        ],
        Arch::Aarch64 => &[
            (
                "qemu-efi-aarch64",
                &[
                    "usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
                    "usr/share/AAVMF/AAVMF_VARS.fd",
                    "usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
                ],
            ),
            ("efi-shell-aa64", &["usr/share/efi-shell-aa64/shellaa64.efi"]),
        ],
    }
}

/// The UEFI shell of [`NEWER`], whose firmware has none of its own.
fn newer_shell(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "shellx64.efi",
        Arch::Aarch64 => "shellaa64.efi",
    }
}

/// The disk with a script for the UEFI shell; the one in `newer` has that shell as well.
const SHELL_DISK: &str = "shell.img";

/// What firmware loads from a network.
const NET_PROGRAM: &str = "net.efi";

/// The disk that firmware boots.
pub(crate) const BOOT_DISK: &str = "boot.img";

/// The directory of `arch`, which tests know as `SKEP_FIRMWARE`; from Debian's archive if it is not in the cache, or in any case to `refresh` it.
/// Its files are named as in their packages; those of a newer release are in the directory `newer` below it. [`BOOT_DISK`] is a disk for the
/// firmware to boot, [`SHELL_DISK`] one for the UEFI shell, and [`NET_PROGRAM`] what it loads from a network.
pub(crate) fn directory(arch: Arch, refresh: bool) -> Result<PathBuf> {
    make(arch, refresh).with_context(|| format!("cannot get Debian's firmware for {arch}"))
}

fn make(arch: Arch, refresh: bool) -> Result<PathBuf> {
    let (images, tools) = (Images::get(arch)?, bootdisk::Tools::get(arch)?);
    let kernel = String::from_utf8_lossy(&super::read(&images.made_of())?).into_owned();
    let cache = paths::cache()?;
    let packages_of = cache.join("packages").join(arch.name());
    let directory = cache.join("images").join(format!("{arch}-firmware"));
    fs::create_dir_all(&packages_of).with_context(|| format!("cannot make {}", packages_of.display()))?;
    // One at a time: others wait for what this one makes.
    let lock = fs::File::create(packages_of.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;

    let (made_of, recipe) = (directory.join(super::STAMP), recipe(arch, &kernel));
    if !refresh && fs::read_to_string(&made_of).is_ok_and(|old| old.lines().last() == Some(&recipe)) {
        return Ok(directory);
    }
    eprintln!("images: fetching Debian's firmware for {arch}");
    let scratch = tempfile::tempdir_in(&packages_of)?;
    let new = scratch.path().join("firmware");
    let mut stamp = String::new();
    for (release, state, packages, into) in [
        (debian::RELEASE, "apt", packages(arch), new.clone()),
        (NEWER, "apt-newer", newer_packages(arch), new.join("newer")),
    ] {
        let archive = Archive::of(release, arch, &packages_of.join(state))?;
        fs::create_dir_all(&into)?;
        for (package, files) in packages {
            stamp.push_str(&add(&archive, package, files, scratch.path(), &into)?);
            stamp.push('\n');
        }
        if release == debian::RELEASE {
            stamp.push_str(&bootdisk::make(&images, &archive, &tools, &new, scratch.path(), &new.join(BOOT_DISK))?);
            stamp.push_str(&netboot::make(&images, &archive, &tools, scratch.path(), &new.join(NET_PROGRAM))?);
            stamp.push('\n');
        }
    }
    bootdisk::shell(arch, None, scratch.path(), &new.join(SHELL_DISK))?;
    let newer = new.join("newer");
    let shell = newer.join(newer_shell(arch));
    bootdisk::shell(arch, Some(&shell), scratch.path(), &newer.join(SHELL_DISK))?;
    fs::write(new.join(super::STAMP), format!("{stamp}{recipe}\n"))?;
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(cache.join("images"))?;
    fs::rename(&new, &directory).with_context(|| format!("cannot make {}", directory.display()))?;
    eprintln!("images: {} is ready", directory.display());
    Ok(directory)
}

/// Puts `files` of `package` into the directory `into`, and gives the package's file name back.
fn add(archive: &Archive, package: &str, files: &[&str], scratch: &Path, into: &Path) -> Result<String> {
    let unpacked = scratch.join("unpacked");
    let patterns: Vec<String> = files.iter().map(|file| format!("./{file}")).collect();
    let name = archive.unpack(package, &patterns.iter().map(String::as_str).collect::<Vec<_>>(), &unpacked)?;
    for file in files {
        // Flash for arm64 is 64 MiB each, of which most is empty.
        let mut copy = Command::new("cp");
        process::output(copy.arg("--sparse=always").arg(unpacked.join(file)).arg(into))?;
    }
    fs::remove_dir_all(&unpacked)?;
    Ok(name)
}

/// What says whether the directory has all that it should have.
fn recipe(arch: Arch, kernel: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (RECIPE, NEWER, debian::RELEASE, packages(arch), newer_packages(arch), bootdisk::INPUTS, netboot::INPUTS, kernel)
        .hash(&mut hasher);
    format!("recipe {:016x}", hasher.finish())
}
