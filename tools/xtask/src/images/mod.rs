//! `cargo xtask images`: the kernels, initramfs archives and firmware that tests, demo and lab use, made of Debian's newest packages.
//!
//! Packages are fetched once and kept in the cache (see [`crate::paths::cache`]); `--refresh` asks the archive again.

mod bootdisk;
mod cpio;
mod debian;
mod disk;
pub(crate) mod firmware;
mod initramfs;
mod kernel;
mod module;
mod netboot;
pub(crate) mod portable;
pub(crate) mod rootfs;

use debian::Archive;

use crate::arch::Arch;
use crate::paths;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Raise it when the products are made in another way, and they are made anew.
const RECIPE: u32 = 4;

/// Debian's cloud kernel has drivers for NVMe and ext4 built in, and these as modules.
const VIRTIO: [&str; 8] = [
    "virtio-pci",
    "virtio-blk",
    "virtio-net",
    "virtio-rng",
    "virtio-balloon",
    "virtio-console",
    "vmw-vsock-virtio-transport",
    "virtiofs",
];

/// Modules for a guest that was booted by firmware: its variables, its system partition, and a power button (whose driver is built in on aarch64).
fn firmware_modules(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &["efivarfs", "vfat", "nls_cp437", "nls_ascii", "evdev", "button"],
        Arch::Aarch64 => &["efivarfs", "vfat", "nls_cp437", "nls_ascii", "evdev"],
    }
}

/// The name of the file that says what a directory was made of, written last.
const STAMP: &str = "made-of";

/// Make the kernels and initramfs archives for guests and lab, and fetch guests' firmware
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this architecture
    #[arg(long)]
    arch: Option<Arch>,
    /// Also the disk with Debian's root file system
    #[arg(long)]
    rootfs: bool,
    /// Ask Debian's archive for newer packages, though there are some in the cache
    #[arg(long)]
    refresh: bool,
}

/// The images of one architecture.
pub(crate) struct Images {
    arch: Arch,
    /// What guests boot; the directory that tests know as `SKEP_IMAGES`.
    guest: PathBuf,
    /// What the lab's emulated host boots.
    host: PathBuf,
}

/// Modules of Debian's generic kernel for what its cloud kernel knows nothing of, or has no driver for: an old network card, and keys.
fn generic_modules(arch: Arch) -> [&'static str; 3] {
    match arch {
        Arch::X86_64 => ["ne2k-pci", "evdev", "button"],
        Arch::Aarch64 => ["ne2k-pci", "evdev", "gpio-keys"],
    }
}

impl Images {
    /// The images of `arch`, made if they are not there yet.
    pub(crate) fn get(arch: Arch) -> Result<Images> {
        Images::make(arch, false).with_context(|| format!("cannot make the images for {arch}"))
    }

    /// The directory with the guests' kernels and initramfs:
    /// on x86_64 `vmlinuz` (bzImage), `vmlinux` (the ELF in it) and `vmlinuz-generic` (the bzImage of Debian's generic kernel),
    /// on aarch64 `Image`, `Image.gz`, `Image.zboot` and `Image-generic`; on both `initramfs.cpio.gz`, `initramfs-virtio.cpio.gz` with the modules for virtio
    /// devices, `initramfs-firmware.cpio.gz` with those for UEFI's variables and system partition besides, `initramfs-generic.cpio.gz` with some of
    /// the generic kernel's, and `disk.ext4`, a small disk with a file on it.
    pub(crate) fn guest(&self) -> &Path {
        &self.guest
    }

    /// The file that says what these images were made of.
    fn made_of(&self) -> PathBuf {
        self.guest.with_file_name(STAMP)
    }

    /// The kernel of the lab's host.
    pub(crate) fn host_kernel(&self) -> PathBuf {
        self.guest.join(match self.arch {
            Arch::X86_64 => "vmlinux",
            Arch::Aarch64 => "Image",
        })
    }

    /// The initramfs of the lab's host.
    pub(crate) fn host_initramfs(&self) -> PathBuf {
        self.host.join("initramfs.cpio")
    }

    fn make(arch: Arch, refresh: bool) -> Result<Images> {
        let cache = paths::cache()?;
        let packages = cache.join("packages").join(arch.name());
        let root = cache.join("images").join(arch.name());
        let images = Images { arch, guest: root.join("guest"), host: root.join("host") };
        fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;

        // One at a time: others wait for what this one makes.
        let lock = fs::File::create(packages.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;

        let fetched = fetch(arch, &packages, refresh)?;
        let stamp = stamp(&fetched);
        if fs::read_to_string(root.join(STAMP)).is_ok_and(|old| old == stamp) {
            return Ok(images);
        }
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&images.guest)?;
        fs::create_dir_all(&images.host)?;
        images.write(&packages)?;
        fs::write(root.join(STAMP), stamp)?;
        eprintln!("images: {} is ready", images.guest.display());
        Ok(images)
    }

    fn write(&self, packages: &Path) -> Result<()> {
        let busybox = read(&packages.join("busybox/bin/busybox"))?;
        let kernel = read(&boot_file(&packages.join("cloud"))?)?;
        let guest = |name: &str, content: &[u8]| write(&self.guest.join(name), content);

        let host_modules = match self.arch {
            Arch::X86_64 => {
                guest("vmlinuz", &kernel)?;
                guest("vmlinux", &kernel::vmlinux(&kernel)?)?;
                guest("vmlinuz-generic", &read(&boot_file(&packages.join("generic"))?)?)?;
                let mut modules =
                    initramfs::modules(&packages.join("cloud/lib/modules"), &["kvm-amd", "tun", "dummy"])?;
                for (_, content) in modules.iter_mut().filter(|(name, _)| name == "kvm_amd.ko") {
                    *content = module::always_intercept_cr8(content).context("kvm-amd.ko")?;
                }
                modules
            }
            Arch::Aarch64 => {
                let generic = read(&boot_file(&packages.join("generic"))?)?;
                if [&kernel, &generic].iter().any(|image| image.get(56..60) != Some(b"ARM\x64")) {
                    bail!("Debian's arm64 vmlinuz is no plain Image any more");
                }
                guest("Image", &kernel)?;
                guest("Image-generic", &generic)?;
                let packed = kernel::gzip(&kernel);
                guest("Image.gz", &packed)?;
                guest("Image.zboot", &kernel::zboot(&packed))?;
                // Debian's arm64 kernel has KVM built in.
                initramfs::modules(&packages.join("cloud/lib/modules"), &["tun", "dummy"])?
            }
        };
        guest("initramfs.cpio.gz", &kernel::gzip(&initramfs::guest(&busybox, &[])))?;
        let modules = initramfs::modules(&packages.join("cloud/lib/modules"), &VIRTIO)?;
        guest("initramfs-virtio.cpio.gz", &kernel::gzip(&initramfs::guest(&busybox, &modules)))?;
        let wanted = [&VIRTIO[..], firmware_modules(self.arch)].concat();
        let modules = initramfs::modules(&packages.join("cloud/lib/modules"), &wanted)?;
        guest("initramfs-firmware.cpio.gz", &kernel::gzip(&initramfs::guest(&busybox, &modules)))?;
        let modules = initramfs::modules(&packages.join("generic/lib/modules"), &generic_modules(self.arch))?;
        guest("initramfs-generic.cpio.gz", &kernel::gzip(&initramfs::guest(&busybox, &modules)))?;
        disk::make(&self.guest.join("disk.ext4"))?;
        // Not compressed: the emulated host would take longer to unpack it than QEMU takes to load it.
        write(&self.host.join("initramfs.cpio"), &initramfs::host(&busybox, &host_modules))
    }
}

/// `cargo xtask images`.
pub(crate) fn main(args: &Args) -> Result<()> {
    for arch in args.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]) {
        let images = Images::make(arch, args.refresh).with_context(|| format!("cannot make the images for {arch}"))?;
        println!("{arch}: {}", images.guest.display());
        let mut files = fs::read_dir(&images.guest)?.collect::<std::io::Result<Vec<_>>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            println!("  {:18} {:>9} KiB", file.file_name().to_string_lossy(), file.metadata()?.len() / 1024);
        }
        for line in fs::read_to_string(paths::cache()?.join("packages").join(arch.name()).join(STAMP))?.lines() {
            println!("  of {line}");
        }
        println!("  {}", firmware::directory(arch, args.refresh)?.display());
        if args.rootfs {
            println!("  {}", rootfs::disk(arch, args.refresh)?.display());
            println!("  {}", rootfs::bootable(arch)?.display());
        }
    }
    Ok(())
}

/// Fetches the packages of `arch` into `packages` unless they are there, and gives back their file names.
fn fetch(arch: Arch, packages: &Path, refresh: bool) -> Result<String> {
    let stamp = packages.join(STAMP);
    // The cache may have been filled before modules of the generic kernel were wanted.
    let complete = packages.join("generic/lib/modules").is_dir();
    if !refresh
        && complete
        && let Ok(names) = fs::read_to_string(&stamp)
    {
        return Ok(names);
    }
    eprintln!("images: fetching Debian's newest kernel and busybox for {arch}");
    let archive = Archive::open(arch, &packages.join("apt"))?;
    let mut wanted = vec![("busybox", "busybox-static".to_owned(), vec!["./bin/busybox"])];
    // Metapackage, the directory it goes to, and what of it is used.
    let kernels: &[(&str, &str, &[&str])] = match arch {
        Arch::X86_64 => &[
            ("linux-image-cloud-amd64", "cloud", &["./boot/*", "./lib/modules/*"]),
            ("linux-image-amd64", "generic", &["./boot/*", "*/8390/*.ko", "*/evdev.ko", "*/button.ko"]),
        ],
        Arch::Aarch64 => &[
            ("linux-image-cloud-arm64", "cloud", &["./boot/*", "./lib/modules/*"]),
            ("linux-image-arm64", "generic", &["./boot/*", "*/8390/*.ko", "*/evdev.ko", "*/gpio_keys.ko"]),
        ],
    };
    for (metapackage, directory, patterns) in kernels {
        wanted.push((*directory, archive.dependency(metapackage, "linux-image-")?, patterns.to_vec()));
    }

    let mut names = String::new();
    for (directory, package, patterns) in wanted {
        eprintln!("images: {package}");
        let new = packages.join(format!("{directory}.new"));
        let _ = fs::remove_dir_all(&new);
        names.push_str(&archive.unpack(&package, &patterns, &new)?);
        names.push('\n');
        let _ = fs::remove_file(&stamp);
        let _ = fs::remove_dir_all(packages.join(directory));
        fs::rename(&new, packages.join(directory))?;
    }
    fs::write(stamp, &names)?;
    Ok(names)
}

/// What products are made of: the packages, the scripts and the recipe.
fn stamp(packages: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (RECIPE, VIRTIO, initramfs::GUEST_INIT, initramfs::HOST_INIT).hash(&mut hasher);
    format!("{packages}recipe {:016x}\n", hasher.finish())
}

/// The one kernel in the `boot` directory of an unpacked package.
fn boot_file(package: &Path) -> Result<PathBuf> {
    let boot = package.join("boot");
    for entry in fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("{} holds no vmlinuz", boot.display())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
