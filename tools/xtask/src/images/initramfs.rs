//! The two initramfs archives, both made of one static busybox: the guests' and the lab host's.

use super::cpio::Cpio;
use super::module;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The guests' init.
pub(crate) const GUEST_INIT: &str = include_str!("guest-init.sh");
/// The lab host's init.
pub(crate) const HOST_INIT: &str = include_str!("host-init.sh");

/// The applets that get a link in `/bin`; Debian's static busybox has them all.
const APPLETS: &str = "ash awk base64 basename cat chmod chown chroot clear cmp cp cttyhack cut date dd df dirname dmesg \
    du echo env expr false find free grep gunzip gzip halt head hexdump hostname id ifconfig insmod ip kill less ln losetup \
    ls lsmod lspci md5sum mkdir mkfifo mknod mktemp modprobe more mount mv nc nproc od pidof ping poweroff printf ps \
    pwd readlink realpath reboot rm rmdir rmmod sed seq setsid sh sha256sum sleep sort stat stty switch_root sync sysctl tail tar tee \
    telnet test time timeout top touch tr true truncate tty umount uname uniq uptime usleep vi wc wget which xargs yes zcat";

/// The initramfs of the guests, with `modules` in the order in which they are loaded.
pub(crate) fn guest(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut cpio = base(busybox);
    if !modules.is_empty() {
        add_modules(&mut cpio, modules);
    }
    cpio.file("init", 0o755, GUEST_INIT.as_bytes());
    cpio.finish()
}

/// The initramfs of the lab's host, with `modules` in the order in which they are loaded.
pub(crate) fn host(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut cpio = base(busybox);
    cpio.file("init", 0o755, HOST_INIT.as_bytes());
    cpio.directory("lab");
    add_modules(&mut cpio, modules);
    cpio.finish()
}

fn add_modules(cpio: &mut Cpio, modules: &[(String, Vec<u8>)]) {
    cpio.directory("modules");
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    cpio.file("modules/order", 0o644, order.as_bytes());
    for (name, content) in modules {
        cpio.file(&format!("modules/{name}"), 0o644, content);
    }
}

fn base(busybox: &[u8]) -> Cpio {
    let mut cpio = Cpio::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        cpio.directory(directory);
    }
    cpio.symlink("sbin", "bin");
    cpio.file("bin/busybox", 0o755, busybox);
    for applet in APPLETS.split_whitespace() {
        cpio.symlink(&format!("bin/{applet}"), "busybox");
    }
    cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    cpio.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n");
    cpio
}

/// Finds the modules `wanted` and all that they depend on below `dir`, in the order in which they can be loaded.
pub(crate) fn modules(dir: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    collect(dir, &mut files)?;
    let mut ordered = Vec::new();
    for name in wanted {
        add(name, &files, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    // Files are named with "-" or "_" as their authors liked; the kernel takes both for the same.
    let name = name.replace('-', "_");
    let file_name = format!("{name}.ko");
    if ordered.iter().any(|(other, _)| *other == file_name) {
        return Ok(());
    }
    let path = files.get(&name).with_context(|| format!("Debian's kernel package has no module {name}"))?;
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    for dependency in module::depends(&content).with_context(|| path.display().to_string())? {
        add(&dependency, files, ordered)?;
    }
    ordered.push((file_name, content));
    Ok(())
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        } else if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "initramfs_test.rs"]
mod test;
