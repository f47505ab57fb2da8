//! `cargo xtask demo`: stock Debian guests boot under skep on both architectures: a kernel to the greeting of its init, a whole system to a
//! login, from an NVMe disk and from a virtio one, and the same by Debian's UEFI firmware and GRUB.

use crate::arch::Arch;
use crate::images::{Images, firmware, portable, rootfs};
use crate::lab::{Board, LAB, Lab, Program, Progress};
use crate::paths::Scratch;
use crate::process::show;
use crate::test::{self, Kvm};
use anyhow::{Context, Result};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Boots a system to a login and looks around in it.
const LOGIN: &str = include_str!("demo.sh");

/// Seconds that a guest may take.
const LIMIT: u64 = 420;

/// Boot stock Debian guests under skep on both architectures, and show their consoles
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this architecture
    #[arg(long)]
    arch: Option<Arch>,
    /// Also Debian's whole system, from an NVMe disk and from a virtio one, to a login; it takes minutes to make the first time
    #[arg(long)]
    system: bool,
    /// Also that system from an NVMe disk by Debian's UEFI firmware and GRUB, to a login, powered off by the power button
    #[arg(long)]
    firmware: bool,
}

/// What a guest is to show.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    /// A kernel, to the greeting of its init (see `images/guest-init.sh`).
    Init,
    /// Debian's system, to a login, from a disk of that device.
    System(&'static str),
    /// The same from an NVMe disk by UEFI and GRUB.
    Firmware,
}

impl Show {
    fn all(args: &Args) -> Vec<Show> {
        let mut shows = vec![Show::Init];
        if args.system {
            shows.extend([Show::System("nvme"), Show::System("virtio-blk")]);
        }
        shows.extend(args.firmware.then_some(Show::Firmware));
        shows
    }

    fn name(self) -> String {
        match self {
            Show::Init => "a kernel and its init".to_owned(),
            Show::System(device) => format!("Debian on {device}, to a login"),
            Show::Firmware => "Debian on nvme by UEFI and GRUB, to a login, and off by the power button".to_owned(),
        }
    }

    /// What the console says when it is there; what follows in the line is shown.
    fn mark(self) -> &'static str {
        match self {
            Show::Init => "skep: hello from Debian guest init: ",
            // What is typed there is echoed.
            Show::System(_) | Show::Firmware => "skep login: root",
        }
    }
}

/// Where things are, in the place where guests run.
struct Paths {
    skep: String,
    images: String,
    disk: String,
    login: String,
    /// Debian's firmware, a disk that it boots, and its variables.
    firmware: String,
    whole: String,
    vars: String,
}

/// How a guest did.
struct Boot {
    arch: Arch,
    place: String,
    show: Show,
    /// What its mark's line says besides, and the time from skep's start to it.
    seen: Option<(String, Duration)>,
    /// The exit code of skep, or of what looks around.
    code: i32,
    total: Duration,
}

impl Boot {
    fn good(&self) -> bool {
        self.seen.is_some() && self.code == 0
    }
}

/// Runs what the arguments say, and gives back the exit code.
pub(crate) fn main(args: &Args) -> Result<i32> {
    let start = Instant::now();
    let mut boots = Vec::new();
    for arch in args.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]) {
        eprintln!("demo: building skep for {arch}");
        let skep = test::skep(arch)?;
        let native = Kvm::here() == Kvm::Hardware && Arch::of_this_machine() == Some(arch);
        let done = if native { on_hardware(arch, &skep, args) } else { in_lab(arch, &skep, args) };
        boots.extend(done.with_context(|| format!("no guest booted on {arch}"))?);
    }

    println!();
    for boot in &boots {
        let Boot { arch, place, show, code, .. } = boot;
        match &boot.seen {
            Some((words, after)) => {
                println!("{arch}: {}: there {:.1} s after skep's start, on {place}", show.name(), after.as_secs_f64());
                if !words.is_empty() {
                    println!("    {words}");
                }
            }
            None => println!("{arch}: {}: it did not come, on {place}", show.name()),
        }
        println!("    ended with code {code} after {:.1} s", boot.total.as_secs_f64());
    }
    let good = boots.iter().filter(|boot| boot.good()).count();
    println!("{good} of {} guests booted as they should; {:.0} s in all", boots.len(), start.elapsed().as_secs_f64());
    Ok(i32::from(good < boots.len()))
}

/// The command line that shows it.
fn command(arch: Arch, show: Show, paths: &Paths) -> Vec<String> {
    if show == Show::Firmware {
        return firmware_command(arch, paths);
    }
    let kernel = match arch {
        Arch::X86_64 => "vmlinuz",
        Arch::Aarch64 => "Image",
    };
    let images = &paths.images;
    let (more, initrd, memory) = match show {
        Show::Init | Show::Firmware => ("", Some("initramfs.cpio.gz"), "256M"),
        // The kernel has a driver for NVMe built in; the one for virtio disks is a module.
        Show::System("nvme") => (" root=/dev/nvme0n1 rw", None, "512M"),
        Show::System(_) => (" skep.root=/dev/vda", Some("initramfs-virtio.cpio.gz"), "512M"),
    };
    let command_line = format!("console={} panic=-1{more}", arch.console());
    let mut words = Vec::new();
    if show != Show::Init {
        words.extend(["sh".to_owned(), paths.login.clone()]);
    }
    words.extend([paths.skep.clone(), "run".to_owned(), "--kernel".to_owned(), format!("{images}/{kernel}")]);
    if let Some(initrd) = initrd {
        words.extend(["--initrd".to_owned(), format!("{images}/{initrd}")]);
    }
    words.extend(
        ["--cmdline", &command_line, "--memory", memory, "--cpus", "1", "--serial", "stdio"].map(str::to_owned),
    );
    if let Show::System(device) = show {
        let disk = format!("{},format=raw,device={device}", paths.disk);
        words.extend(["--disk", &disk].map(str::to_owned));
    }
    words
}

fn firmware_command(arch: Arch, paths: &Paths) -> Vec<String> {
    let (code, template) = match arch {
        Arch::X86_64 => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        Arch::Aarch64 => ("AAVMF_CODE.fd", "AAVMF_VARS.fd"),
    };
    let Paths { skep, login, firmware, whole, vars, .. } = paths;
    let (code, vars) = (format!("{firmware}/{code}"), format!("{vars},template={firmware}/{template}"));
    let disk = format!("{whole},format=raw");
    let words = ["sh", login, "--button", skep, "run", "--firmware", &code, "--firmware-vars", &vars, "--disk", &disk];
    words.into_iter().chain(["--memory", "512M", "--cpus", "1", "--serial", "stdio"]).map(str::to_owned).collect()
}

fn in_lab(arch: Arch, skep: &Path, args: &Args) -> Result<Vec<Boot>> {
    let board = Board::of(arch);
    let shows = Show::all(args);
    let scratch = Scratch::new()?;
    let login = scratch.path().join("login.sh");
    fs::write(&login, LOGIN)?;
    let limit = Duration::from_secs(LIMIT * shows.len() as u64 + 60);
    let mut lab = Lab::new(board).carry(Images::get(arch)?.guest(), "images").carry(skep, "skep").limit(limit);
    if args.system {
        let tools = portable::TOOLS.get(arch)?;
        lab = lab.carry(tools.join("bin"), "bin").carry(tools.join("lib"), "lib");
        lab = lab.carry(rootfs::disk(arch, false)?, "debian.ext4");
    }
    if args.firmware {
        lab = lab.carry(firmware::directory(arch, false)?, "firmware").carry(rootfs::bootable(arch)?, "debian-gpt.img");
    }
    lab = lab.carry(login, "login.sh");
    let place = |name| format!("{LAB}/{name}");
    let paths = Paths {
        skep: place("skep"),
        images: place("images"),
        disk: place("debian.ext4"),
        login: place("login.sh"),
        firmware: place("firmware"),
        whole: place("debian-gpt.img"),
        vars: place("vars.fd"),
    };
    let commands: Vec<_> = shows.iter().map(|&show| command(arch, show, &paths)).collect();
    let programs: Vec<_> =
        commands.iter().map(|words| Program::new(words.clone()).limit(Duration::from_secs(LIMIT))).collect();
    let mut watch = Watch::new("");
    let mut boots = Vec::new();
    lab.run(&programs, &mut |progress| match progress {
        Progress::Begin(number) => {
            println!("== {} (in the lab)", commands[number].join(" "));
            watch = Watch::new(shows[number].mark());
        }
        Progress::Output(bytes) => watch.see(bytes),
        Progress::End(number, outcome) => boots.push(Boot {
            arch,
            place: format!("the lab's {}", board.name()),
            show: shows[number],
            seen: watch.seen.take(),
            code: outcome.code,
            total: outcome.time,
        }),
    })?;
    Ok(boots)
}

fn on_hardware(arch: Arch, skep: &Path, args: &Args) -> Result<Vec<Boot>> {
    let scratch = Scratch::new()?;
    let here = |name| scratch.path().join(name);
    let (login, disk, whole) = (here("login.sh"), here("debian.ext4"), here("debian-gpt.img"));
    fs::write(&login, LOGIN)?;
    if args.system {
        fs::copy(rootfs::disk(arch, false)?, &disk).context("cannot copy Debian's disk")?;
    }
    let mut firmware_files = scratch.path().to_owned();
    if args.firmware {
        fs::copy(rootfs::bootable(arch)?, &whole).context("cannot copy Debian's disk")?;
        firmware_files = firmware::directory(arch, false)?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let images = Images::get(arch)?;
    let paths = Paths {
        skep: text(skep),
        images: text(images.guest()),
        disk: text(&disk),
        login: text(&login),
        firmware: text(&firmware_files),
        whole: text(&whole),
        vars: text(&here("vars.fd")),
    };
    Show::all(args).iter().map(|&show| boot(arch, show, &command(arch, show, &paths))).collect()
}

/// Boots a guest on this machine.
fn boot(arch: Arch, show: Show, words: &[String]) -> Result<Boot> {
    println!("== {}", words.join(" "));
    let mut watch = Watch::new(show.mark());
    let mut child = Command::new("timeout")
        .arg(LIMIT.to_string())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start timeout, of coreutils")?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut buffer = [0; 4096];
    while let length @ 1.. = stdout.read(&mut buffer)? {
        watch.see(&buffer[..length]);
    }
    let code = child.wait()?.code().unwrap_or(128);
    let place = "this machine's KVM".to_owned();
    Ok(Boot { arch, place, show, seen: watch.seen, code, total: watch.start.elapsed() })
}

/// Shows what a guest prints, and notes when it says its mark.
struct Watch {
    mark: &'static str,
    start: Instant,
    line: Vec<u8>,
    seen: Option<(String, Duration)>,
}

impl Watch {
    /// The clock starts now.
    fn new(mark: &'static str) -> Watch {
        Watch { mark, start: Instant::now(), line: Vec::new(), seen: None }
    }

    fn see(&mut self, bytes: &[u8]) {
        show(bytes);
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            if let Some((_, words)) = String::from_utf8_lossy(&self.line).split_once(self.mark) {
                self.seen.get_or_insert((words.trim().to_owned(), self.start.elapsed()));
            }
            self.line.clear();
        }
    }
}

#[cfg(test)]
#[path = "demo_test.rs"]
mod demo_test;
