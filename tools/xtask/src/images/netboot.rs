//! A program that UEFI firmware loads from a network: GRUB with all that it boots in it, so that the network is the firmware's alone.

use super::Images;
use super::bootdisk::{Tools, room};
use super::debian::Archive;
use crate::arch::Arch;
use crate::process;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;

/// All that it does: it loads no module.
const MODULES: &str = "memdisk tar gzio normal linux echo";

/// What it does before it has a configuration.
const START: &str = "normal (memdisk)/grub.cfg\n";

/// GRUB's commands. A test may write commands of its own over the room.
const CONFIG: &str = r#"echo "skep: GRUB from the network"
@room@
linux /vmlinuz console=@console@ quiet panic=-1 $words
initrd /initramfs.cpio.gz
boot
"#;

/// What the program is made of.
pub(super) const INPUTS: [&str; 3] = [MODULES, START, CONFIG];

/// Makes the program `program`. Gives back the package's file name.
pub(super) fn make(
    images: &Images,
    archive: &Archive,
    tools: &Tools,
    scratch: &Path,
    program: &Path,
) -> Result<String> {
    let arch = images.arch;
    let (platform, kernel) = match arch {
        Arch::X86_64 => ("x86_64-efi", "vmlinuz"),
        Arch::Aarch64 => ("arm64-efi", "Image.gz"),
    };
    let packages = scratch.join("netboot");
    let directory = format!("usr/lib/grub/{platform}");
    let package = format!("grub-efi-{}-bin", arch.debian());
    let name = archive.unpack(&package, &[&format!("./{directory}/*")], &packages)?;

    let content = scratch.join("netboot-content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("grub.cfg"), room(CONFIG, arch))?;
    fs::copy(images.guest.join(kernel), content.join("vmlinuz"))?;
    fs::copy(images.guest.join("initramfs-firmware.cpio.gz"), content.join("initramfs.cpio.gz"))?;
    let tar = scratch.join("netboot.tar");
    let mut command = Command::new(process::find("tar")?);
    let files = ["grub.cfg", "vmlinuz", "initramfs.cpio.gz"];
    process::output(command.args(["--format=ustar", "-cf"]).arg(&tar).arg("-C").arg(&content).args(files))?;

    let start = scratch.join("netboot.cfg");
    fs::write(&start, START)?;
    let words = [
        format!("--format={platform}"),
        format!("--memdisk={}", tar.display()),
        format!("--config={}", start.display()),
        "--prefix=(memdisk)".to_owned(),
    ];
    tools.mkimage(&packages.join(directory), &words, MODULES, program)?;
    Ok(name)
}
