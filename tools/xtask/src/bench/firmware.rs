//! `cargo xtask bench firmware`: from the execution of the monitor to GRUB, and to Debian's login, by UEFI firmware from an NVMe disk, in labs whose clocks
//! count instructions.
//!
//! Both monitors have the same firmware and the same disk, each time as new: it lies behind an empty qcow2 image. What they
//! write is in memory, for a lab's clock runs fast while its host waits for a disk. Exits are all that the guest has
//! made by then, by KVM's own count.

use super::boot::{self, Contender};
use super::{InLabs, qemu, release};
use crate::arch::Arch;
use crate::images::{firmware, rootfs};
use crate::lab::LAB;
use anyhow::Result;
use std::time::Duration;

/// Measure the boot of Debian by UEFI firmware in labs whose clocks count instructions
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    labs: InLabs,
    /// Only to GRUB
    #[arg(long)]
    grub: bool,
}

const MEMORY: &str = "512M";
const MEMORY_BYTES: u64 = 512 << 20;
/// There are many boots of some minutes each.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

pub(super) fn main(args: &Args) -> Result<()> {
    args.labs.print(|arch| {
        let (names, lab) = args.labs.lab(arch)?;
        let lab = lab
            .icount(true)
            .carry(release("stopwatch", arch)?, "bin/stopwatch")
            .carry(firmware::directory(arch, false)?, "firmware")
            .carry(rootfs::bootable(arch)?, "debian-gpt.img")
            .limit(LIMIT);
        let mut contenders = contenders(arch, &names, args.grub);
        boot::run(&lab, &mut contenders, args.labs.rounds)?;
        boot::table("monitor, to", &contenders)
    })
}

fn contenders(arch: Arch, skeps: &[String], only_grub: bool) -> Vec<Contender> {
    let (code, vars, machine) = match arch {
        Arch::X86_64 => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "q35"),
        Arch::Aarch64 => ("AAVMF_CODE.fd", "AAVMF_VARS.fd", "virt,gic-version=3"),
    };
    let place = |name: &str| format!("{LAB}/{name}");
    let (code, vars) = (place(&format!("firmware/{code}")), place(&format!("firmware/{vars}")));
    let marks = [("GRUB", "skep: GRUB on"), ("login", "skep login:")];
    let mut contenders = Vec::new();
    for (what, until) in marks.into_iter().take(if only_grub { 1 } else { 2 }) {
        let mut add = |name: &str, command: Vec<String>| {
            let prepare = format!(
                "cd /tmp; rm -f disk.qcow2 vars.fd; cp {vars} vars.fd; {LAB}/bin/{} image create disk.qcow2 --format qcow2 \
                --backing {LAB}/debian-gpt.img --backing-format raw >/dev/null",
                skeps[0]
            );
            let contender = Contender::new(format!("{name}, {what}"), until, MEMORY_BYTES, command);
            contenders.push(contender.after(&prepare));
        };
        for name in skeps {
            let words = ["run", "--firmware", &code, "--firmware-vars", "vars.fd", "--disk", "disk.qcow2,format=qcow2"];
            let machine = ["--memory", MEMORY, "--cpus", "1", "--device", "rng=false"];
            let program = place(&format!("bin/{name}"));
            add(
                name,
                [&program].into_iter().map(String::as_str).chain(words).chain(machine).map(str::to_owned).collect(),
            );
        }
        let mut command = qemu::command(arch, &place("qemu"));
        command.extend(qemu::with_firmware(machine, MEMORY, &code, "vars.fd", "disk.qcow2"));
        add(&format!("QEMU {}", machine.split(',').next().unwrap_or(machine)), command);
    }
    contenders
}
