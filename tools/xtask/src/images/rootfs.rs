//! A root file system of Debian's, on a disk that guests boot from.
//!
//! mmdebstrap fetches and unpacks the packages, of either architecture on a machine of any, and a hook of it makes the disk. What comes after,
//! the maintainers' scripts, has to run on the architecture: on this machine where it is of that one, else in the lab. It takes a minute or a
//! few, once: the disk is kept in the cache.

use super::portable::{Portable, loader};
use super::{Images, bootdisk, debian, firmware, read};
use crate::arch::Arch;
use crate::lab::{Board, LAB, Lab, Program, Progress};
use crate::paths::{self, Scratch};
use crate::process;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Raise it when the disk is made in another way, and it is made anew.
const RECIPE: u32 = 2;

/// What the system has besides Debian's essential packages: what boots it to a login, and what the tests use in it.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,login,passwd,e2fsprogs,iproute2,iputils-ping,pciutils,nvme-cli,iperf3,socat,efibootmgr";

/// Without its package, which brings a third as many packages again (Python, Ceph) for what no test uses.
const FIO: Portable<'static> = Portable { name: "fio", packages: &["fio"], programs: &["usr/bin/fio"], files: &[] };

/// Bytes of the disk; the file is sparse.
const SIZE: u64 = 1 << 30;

/// The second half, which runs in the new system.
const CONFIGURE: &str = include_str!("rootfs-configure.sh");

/// What mmdebstrap does between the unpacking and its end.
const HOOK: &str = include_str!("rootfs-hook.sh");

/// What the lab does where this machine can't run the second half.
const INSTALL: &str = r#"set -e
mkdir /root/new
mount -t ext4 /dev/nvme1n1 /root/new
for one in dev proc sys; do mount --bind /$one /root/new/$one; done
# By its path: busybox takes a plain name for an applet of its own.
chroot /root/new /bin/sh /configure
for one in dev proc sys; do umount /root/new/$one; done
rm /root/new/configure
umount /root/new
"#;

/// The disk of `arch`, made if it is not there yet, or in any case to `refresh` it: ext4 without partitions, labelled `skep-root`, with the
/// modules of Debian's cloud kernel.
pub(crate) fn disk(arch: Arch, refresh: bool) -> Result<PathBuf> {
    make(arch, refresh).with_context(|| format!("cannot make Debian's root file system for {arch}"))
}

/// The same system on a disk that firmware boots by GRUB, as its third partition.
pub(crate) fn bootable(arch: Arch) -> Result<PathBuf> {
    let make = || -> Result<PathBuf> {
        let (system, firmware) = (disk(arch, false)?, firmware::directory(arch, false)?);
        let directory = system.parent().context("the disk is in a directory")?;
        let lock = fs::File::create(directory.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
        let (whole, made_of) = (directory.join("debian-gpt.img"), directory.join("gpt-made-of"));
        let stamp = [directory, &firmware].map(|made| read(&made.join(super::STAMP))).into_iter();
        let stamp = stamp.collect::<Result<Vec<_>>>()?.concat();
        if whole.is_file() && fs::read(&made_of).is_ok_and(|old| old == stamp) {
            return Ok(whole);
        }
        let _ = fs::remove_file(&made_of);
        bootdisk::with_system(arch, &firmware.join(firmware::BOOT_DISK), &system, &whole)?;
        fs::write(made_of, stamp)?;
        Ok(whole)
    };
    make().with_context(|| format!("cannot make a disk with Debian for {arch} that firmware boots"))
}

fn make(arch: Arch, refresh: bool) -> Result<PathBuf> {
    let images = Images::get(arch)?;
    let directory = paths::cache()?.join("images").join(format!("{arch}-debian"));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // One at a time: others wait for what this one makes.
    let lock = fs::File::create(directory.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;

    let (disk, made_of) = (directory.join("debian.ext4"), directory.join(super::STAMP));
    let stamp = stamp(&images)?;
    if !refresh && disk.is_file() && fs::read_to_string(&made_of).is_ok_and(|old| old == stamp) {
        return Ok(disk);
    }
    let _ = fs::remove_file(&made_of);
    let scratch = Scratch::new()?;
    let new = scratch.path().join("debian.ext4");
    fs::File::create(&new)?.set_len(SIZE).with_context(|| format!("cannot make {}", new.display()))?;
    unpack(arch, scratch.path(), &new)?;
    if !is_native(arch) {
        configure(arch, scratch.path(), &new)?;
    }
    fs::rename(&new, &disk).context("cannot keep the disk")?;
    fs::write(made_of, stamp)?;
    eprintln!("images: {} is ready", disk.display());
    Ok(disk)
}

/// Whether the maintainers' scripts can run on this machine.
fn is_native(arch: Arch) -> bool {
    Arch::of_this_machine() == Some(arch)
}

/// The first half, and on a machine of the architecture the second as well, onto `disk`.
fn unpack(arch: Arch, scratch: &Path, disk: &Path) -> Result<()> {
    eprintln!("images: fetching Debian's packages for a root file system of {arch}");
    let (hook, configure) = (scratch.join("hook.sh"), scratch.join("configure.sh"));
    fs::write(&hook, HOOK)?;
    fs::write(&configure, CONFIGURE)?;
    // mmdebstrap may run its hook as another user (a namespace's root), who can't come to where the disk is: it is open already.
    fs::set_permissions(disk, fs::Permissions::from_mode(0o666))?;
    let open = ["-c", r#"exec 9<>"$0" && exec "$@""#];
    let packages = paths::cache()?.join("packages").join(arch.name());
    let mut command = Command::new("sh");
    command
        .args(open)
        .args([disk, &process::find("mmdebstrap")?])
        .args(["--quiet", "--variant=extract", "--format=null", "--aptopt=APT::Install-Recommends \"false\""])
        .args([&format!("--architectures={}", arch.debian()), "--include=?essential", &format!("--include={PACKAGES}")])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .args(["doc", "info", "locale", "man"].map(|one| format!("--dpkgopt=path-exclude=/usr/share/{one}/*")))
        .arg(format!("--extract-hook=sh {} \"$1\"", hook.display()))
        .args([debian::RELEASE, "/dev/null"])
        .args(debian::sources(debian::RELEASE).lines())
        .env("SKEP_ARCH", arch.debian())
        .env("SKEP_FIO", FIO.get(arch)?)
        .env("SKEP_LOADER", loader(arch))
        .env("SKEP_MODULES", packages.join("cloud/lib/modules"))
        .env("SKEP_CONFIGURE", configure)
        .env("SKEP_NATIVE", if is_native(arch) { "yes" } else { "" });
    process::output(&mut command)?;
    fs::set_permissions(disk, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// The second half, in the lab, on `disk`.
fn configure(arch: Arch, scratch: &Path, disk: &Path) -> Result<()> {
    eprintln!("images: configuring the packages in the lab");
    let script = scratch.join("install.sh");
    fs::write(&script, INSTALL)?;
    let limit = Duration::from_secs(25 * 60);
    let lab = Lab::new(Board::of(arch)).carry(script, "install.sh").disk(disk).limit(limit);
    let program = Program::new(["sh".to_owned(), format!("{LAB}/install.sh")]).limit(limit);
    let outcomes = lab.run(&[program], &mut |progress| {
        if let Progress::Output(bytes) = progress {
            process::show(bytes);
        }
    })?;
    match outcomes.first().map(|outcome| outcome.code) {
        Some(0) => Ok(()),
        code => bail!("the packages cannot be configured (code {code:?}); what went wrong is above"),
    }
}

/// What the disk is made of: the kernel whose modules it has, the packages, the scripts and the recipe.
fn stamp(images: &Images) -> Result<String> {
    let kernel = read(&images.made_of()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let mut hasher = DefaultHasher::new();
    (RECIPE, PACKAGES, CONFIGURE, HOOK, INSTALL, SIZE).hash(&mut hasher);
    let kernel = kernel.lines().find(|line| line.contains("cloud")).unwrap_or_default();
    Ok(format!("{kernel}\nrecipe {:016x}\n", hasher.finish()))
}
