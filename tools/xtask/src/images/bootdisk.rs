//! A disk that firmware boots: a GUID partition table with an EFI system partition that holds Debian's signed shim and GRUB, a file system with
//! the kernel, and for a PC's BIOS GRUB's own image in a partition of its own.
//!
//! Nothing here needs root or a loop device: mtools writes FAT, mke2fs ext4, sfdisk the table.

use super::debian::Archive;
use super::portable::{Portable, loader};
use super::{Images, read, write};
use crate::arch::Arch;
use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes GRUB's image for a BIOS, on this machine.
const GRUB_TOOLS: Portable<'static> =
    Portable { name: "grub-tools", packages: &["grub-common"], programs: &["usr/bin/grub-mkimage"], files: &[] };

/// What the guest on the disk looks at its firmware's variables with.
const GUEST_TOOLS: Portable<'static> =
    Portable { name: "efi-tools", packages: &["efibootmgr"], programs: &["bin/efibootmgr"], files: &[] };

/// All that GRUB for a BIOS does: it loads no module from the disk.
const BIOS_MODULES: &str = "biosdisk part_gpt part_msdos fat ext2 search search_label regexp normal configfile linux linux16 echo test \
    serial terminal reboot halt ls cat sleep boot";

/// What GRUB does on every platform. The lines of `@` are room for commands of a test's own, which it writes over them in the image.
const GRUB_CONFIG: &str = include_str!("grub.cfg");
/// Bytes of that room.
const ROOM: usize = 3072;

/// Bytes.
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// GRUB's image for a BIOS lies between the table and the first partition that begins on a MiB.
const BIOS_START: u64 = 34;
const ESP_START: u64 = MIB / SECTOR;
const ESP_SIZE: u64 = 16 * MIB;
const BOOT_START: u64 = ESP_START + ESP_SIZE / SECTOR;
const BOOT_SIZE: u64 = 47 * MIB;
const SYSTEM_START: u64 = BOOT_START + BOOT_SIZE / SECTOR;
/// Bytes of the first sector that are code; the rest is the partition table's.
const MBR_CODE: usize = 440;

/// What the disk is made of.
pub(super) const INPUTS: ([&str; 5], usize, [u64; 4]) = (
    [BIOS_MODULES, GRUB_CONFIG, SHELL_SCRIPT, SETTING_SCRIPT, GREETING],
    ROOM,
    [ESP_SIZE, BOOT_START, SYSTEM_START, SHELL_SIZE],
);

/// The tools that it needs from Debian's archive; each locks the cache for itself.
pub(super) struct Tools {
    grub: PathBuf,
    guest: PathBuf,
}

impl Tools {
    /// For a disk of `arch`.
    pub(super) fn get(arch: Arch) -> Result<Tools> {
        let here = Arch::of_this_machine().context("GRUB's tools do not run on this machine's architecture")?;
        Ok(Tools { grub: GRUB_TOOLS.get(here)?, guest: GUEST_TOOLS.get(arch)? })
    }

    /// Makes an image of GRUB of modules in a directory.
    pub(super) fn mkimage(&self, directory: &Path, words: &[String], modules: &str, image: &Path) -> Result<()> {
        let here = Arch::of_this_machine().context("GRUB's tools do not run on this machine's architecture")?;
        process::output(
            Command::new(self.grub.join("lib").join(loader(here)))
                .arg("--library-path")
                .args([self.grub.join("lib"), self.grub.join("bin/grub-mkimage")])
                .args(words)
                .arg(format!("--directory={}", directory.display()))
                .arg(format!("--output={}", image.display()))
                .args(modules.split_whitespace()),
        )?;
        Ok(())
    }
}

/// Makes the disk `disk` in the directory `scratch`. Gives back the packages' file names.
///
/// `firmware` is the directory with other things that firmware starts.
pub(super) fn make(
    images: &Images,
    archive: &Archive,
    tools: &Tools,
    firmware: &Path,
    scratch: &Path,
    disk: &Path,
) -> Result<String> {
    let arch = images.arch;
    let (short, signed) = match arch {
        Arch::X86_64 => (short(arch), "x86_64-efi-signed"),
        Arch::Aarch64 => (short(arch), "arm64-efi-signed"),
    };
    let packages = scratch.join("packages");
    let mut stamp = String::new();
    let mut unpack = |package: &str, patterns: &[&str]| -> Result<()> {
        stamp.push_str(&archive.unpack(package, patterns, &packages)?);
        stamp.push('\n');
        Ok(())
    };
    unpack("shim-signed", &["./usr/lib/shim/*"])?;
    unpack(&format!("grub-efi-{}-signed", arch.debian()), &[&format!("./usr/lib/grub/{signed}/*")])?;
    let shim = packages.join(format!("usr/lib/shim/shim{short}.efi.signed"));
    let grub = packages.join(format!("usr/lib/grub/{signed}/grub{short}.efi.signed"));

    let esp = scratch.join("esp.img");
    let config = scratch.join("grub.cfg");
    fs::write(&config, room(GRUB_CONFIG, arch))?;
    fs::File::create(&esp)?.set_len(ESP_SIZE)?;
    mtools("mformat", &esp, &["-T", &(ESP_SIZE / SECTOR).to_string(), "-N", "534b4550", "-v", "SKEP-ESP", "::"])?;
    mtools("mmd", &esp, &["::/EFI", "::/EFI/BOOT", "::/EFI/debian"])?;
    for (file, to) in [
        (&shim, removable(arch)),
        (&grub, format!("::/EFI/BOOT/grub{short}.efi")),
        (&shim, format!("::/EFI/debian/shim{short}.efi")),
        (&config, "::/EFI/debian/grub.cfg".to_owned()),
    ] {
        let file = file.to_str().context("the cache's path is not UTF-8")?;
        mtools("mcopy", &esp, &[file, &to])?;
    }

    let boot = scratch.join("boot.img");
    ext4(images, tools, firmware, scratch, &boot)?;

    fs::File::create(disk)?.set_len(SYSTEM_START * SECTOR + MIB)?;
    table(disk, arch, None)?;
    let image = fs::File::options().write(true).open(disk)?;
    copy(&esp, &image, ESP_START * SECTOR)?;
    copy(&boot, &image, BOOT_START * SECTOR)?;
    if arch == Arch::X86_64 {
        unpack("grub-pc-bin", &["./usr/lib/grub/i386-pc/*"])?;
        bios(&packages.join("usr/lib/grub/i386-pc"), tools, scratch, disk)?;
    }
    Ok(stamp)
}

/// Bytes of the disk with a script for the UEFI shell.
const SHELL_SIZE: u64 = 4 * MIB;
const GREETING: &str = "a file for the UEFI shell\r\n";
/// The shell runs it by itself. It finds the disk as its first file system.
const SHELL_SCRIPT: &str = "@echo -off\r\nver\r\npci\r\ndevices\r\ntype fs0:\\greeting\r\nreset -s\r\n";

/// Run by hand: sets a variable again and again, to what it says.
const SETTING_SCRIPT: &str = "@echo -off\r\nfor %a run (10 99)\r\nfor %b run (10 99)\r\n\
    setvar Skep -guid 736b6570-0000-4000-8000-000000000000 -bs -rt -nv =%a%b\r\necho set %a%b.\r\nendfor\r\nendfor\r\n";

/// Makes the disk `disk` in the directory `scratch`: FAT without partitions, with scripts for the UEFI shell, and a file for one to show. Where
/// firmware has no shell of its own, `shell` is the one that it boots from there.
pub(super) fn shell(arch: Arch, shell: Option<&Path>, scratch: &Path, disk: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(SHELL_SIZE)?;
    mtools("mformat", disk, &["-T", &(SHELL_SIZE / SECTOR).to_string(), "-N", "534b4551", "-v", "SKEP-SHELL", "::"])?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the cache's path is not UTF-8");
    for (name, content) in [("startup.nsh", SHELL_SCRIPT), ("set.nsh", SETTING_SCRIPT), ("greeting", GREETING)] {
        let file = scratch.join(name);
        fs::write(&file, content)?;
        mtools("mcopy", disk, &[&text(&file)?, &format!("::/{name}")])?;
    }
    if let Some(shell) = shell {
        mtools("mmd", disk, &["::/EFI", "::/EFI/BOOT"])?;
        mtools("mcopy", disk, &[&text(shell)?, &removable(arch)])?;
    }
    Ok(())
}

/// What firmware boots from a disk that it knows nothing of.
fn removable(arch: Arch) -> String {
    format!("::/EFI/BOOT/BOOT{}.EFI", short(arch).to_uppercase())
}

/// The architecture's name in the names of UEFI's programs.
fn short(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x64",
        Arch::Aarch64 => "aa64",
    }
}

/// Makes the disk `whole` of the disk `boot` and a file system `system`, as its third partition, which GRUB then boots.
pub(super) fn with_system(arch: Arch, boot: &Path, system: &Path, whole: &Path) -> Result<()> {
    process::output(Command::new("cp").arg("--sparse=always").args([boot, whole]))?;
    let size = fs::metadata(system)?.len();
    let image = fs::File::options().write(true).open(whole)?;
    // The old table's copy at the end gives way to the partition.
    image.set_len(SYSTEM_START * SECTOR)?;
    image.set_len(SYSTEM_START * SECTOR + size + MIB)?;
    copy(system, &image, SYSTEM_START * SECTOR)?;
    table(whole, arch, Some(size))?;
    // Whoever makes a new table clears what stands before it.
    let mut first = [0; MBR_CODE];
    fs::File::open(boot)?.read_exact_at(&mut first, 0)?;
    image.write_all_at(&first, 0)?;
    Ok(())
}

/// The kernel, its initramfs and what the guest uses, in a file system that GRUB finds by its label.
fn ext4(images: &Images, tools: &Tools, firmware: &Path, scratch: &Path, image: &Path) -> Result<()> {
    let content = scratch.join("content");
    let kernel = match images.arch {
        Arch::X86_64 => "vmlinuz",
        Arch::Aarch64 => "Image",
    };
    fs::create_dir_all(&content)?;
    fs::copy(images.guest.join(kernel), content.join("vmlinuz"))?;
    fs::copy(images.guest.join("initramfs-firmware.cpio.gz"), content.join("initramfs.cpio.gz"))?;
    if images.arch == Arch::X86_64 {
        for file in ["memtest86+x64.bin", "memtest86+x64.efi"] {
            fs::copy(firmware.join(file), content.join(file))?;
        }
    }
    process::output(Command::new("cp").arg("-r").args([&tools.guest, &content.join("tools")]))?;
    let script = format!(
        "#!/bin/sh\ntools=${{0%/*}}\nexec $tools/lib/{} --library-path $tools/lib $tools/bin/efibootmgr \"$@\"\n",
        loader(images.arch)
    );
    write(&content.join("tools/efibootmgr"), script.as_bytes())?;
    fs::File::create(image)?.set_len(BOOT_SIZE)?;
    process::output(
        Command::new(process::find("mke2fs")?)
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-m", "0", "-L", "skep-boot", "-d"])
            .args([&content, image]),
    )?;
    Ok(())
}

/// Writes the partition table, with a system of so many bytes as the last partition. What is in the partitions is left alone.
fn table(disk: &Path, arch: Arch, system: Option<u64>) -> Result<()> {
    let esp = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
    let linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
    let bios_boot = "21686148-6449-6E6F-744E-656564454649";
    // Identifiers of our own: the disk is the same each time that it is made.
    let id = |number: u32| format!("736b6570-0000-4000-8000-{number:012x}");
    let mut rows = vec![
        format!("label: gpt\nlabel-id: {}\nunit: sectors\nfirst-lba: {BIOS_START}\n", id(0)),
        format!("1: start={ESP_START}, size={}, type={esp}, uuid={}, name=skep-esp\n", ESP_SIZE / SECTOR, id(1)),
        format!("2: start={BOOT_START}, size={}, type={linux}, uuid={}, name=skep-boot\n", BOOT_SIZE / SECTOR, id(2)),
    ];
    if let Some(size) = system {
        let size = size / SECTOR;
        rows.push(format!("3: start={SYSTEM_START}, size={size}, type={linux}, uuid={}, name=skep-root\n", id(3)));
    }
    if arch == Arch::X86_64 {
        let size = ESP_START - BIOS_START;
        rows.push(format!("128: start={BIOS_START}, size={size}, type={bios_boot}, uuid={}, name=bios\n", id(128)));
    }
    let mut sfdisk = Command::new(process::find("sfdisk")?)
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never", "--wipe-partitions=never"])
        .arg(disk)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start sfdisk")?;
    sfdisk.stdin.take().expect("stdin is piped").write_all(rows.concat().as_bytes())?;
    if !sfdisk.wait()?.success() {
        bail!("sfdisk cannot write the partition table of {}", disk.display());
    }
    Ok(())
}

/// Puts GRUB for a BIOS on the disk: its first sector into the master boot record, the rest into the partition that is there for it (what
/// grub-bios-setup does to a disk that it can open).
fn bios(modules: &Path, tools: &Tools, scratch: &Path, disk: &Path) -> Result<()> {
    let core = scratch.join("core.img");
    let words = ["--format=i386-pc", "--prefix=(,gpt1)/EFI/debian", "--compression=auto"].map(str::to_owned);
    tools.mkimage(modules, &words, BIOS_MODULES, &core)?;
    let (mut first, mut core) = (read(&modules.join("boot.img"))?, read(&core)?);
    // Where the first sector finds the second, and that one what follows it.
    let put = |bytes: &mut [u8], at: usize, sector: u64| -> Result<()> {
        bytes.get_mut(at..at + 8).context("GRUB's image is too short")?.copy_from_slice(&sector.to_le_bytes());
        Ok(())
    };
    put(&mut first, 0x5c, BIOS_START)?;
    put(&mut core, 0x1f4, BIOS_START + 1)?;
    if core.len() as u64 > (ESP_START - BIOS_START) * SECTOR {
        bail!("GRUB's image of {} bytes does not fit before the first partition", core.len());
    }
    let image = fs::File::options().write(true).open(disk)?;
    image.write_all_at(first.get(..MBR_CODE).context("GRUB's boot.img is too short")?, 0)?;
    image.write_all_at(&core, BIOS_START * SECTOR)?;
    Ok(())
}

/// GRUB's configuration with room for a test's commands, and the console's name.
pub(super) fn room(config: &str, arch: Arch) -> String {
    let room = format!("{}\n", "#".repeat(127)).repeat(ROOM / 128);
    let marked = format!("# skep: room\n{room}# skep: end\n");
    config.replace("@room@\n", &marked).replace("@console@", arch.console())
}

fn mtools(program: &str, image: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new(process::find(program)?);
    process::output(command.arg("-i").arg(image).args(words).env("MTOOLS_SKIP_CHECK", "1"))?;
    Ok(())
}

/// Copies what of `from` is not zero into `to`, from `offset` on.
fn copy(from: &Path, to: &fs::File, offset: u64) -> Result<()> {
    let mut source = fs::File::open(from)?;
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        source.seek(SeekFrom::Start(at))?;
        let length = source.read(&mut block)?;
        if length == 0 {
            return Ok(());
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..length], offset + at)?;
        }
        at += length as u64;
    }
}
