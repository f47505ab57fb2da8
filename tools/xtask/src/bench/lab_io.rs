//! `cargo xtask bench lab-io`: fio and iperf3 in a stock guest, under skep and under QEMU, on KVM in the labs.
//!
//! Both monitors are given the same kernel, the same disks (files in the host's memory) and the same tap interface, one boot each in a round. The
//! emulated host's CPUs are slow and shared, so that only the ratio of what ran in the same run says anything.

use super::figures::{Table, median, told};
use super::{InLabs, qemu};
use crate::arch::Arch;
use crate::images::{Images, portable, rootfs};
use crate::lab::{LAB, Program, Progress};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;

/// Measure disks and networks with fio and iperf3, in the labs
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    labs: InLabs,
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

const LIMIT: Duration = Duration::from_secs(3600);
/// The tap interface, and the host's address on it.
const TAP: &str = "bench0";
const HOST: &str = "192.168.78.1";

/// What the host does for each boot: the disks are fresh, and cached.
const AROUND: &str = r#"set -e
[ -e /sys/class/net/bench0 ] || busybox tunctl -t bench0 >/dev/null
ip addr replace 192.168.78.1/24 dev bench0
ip link set bench0 up
for disk in nvme virtio; do dd if=/dev/zero of=/tmp/$disk.img bs=1M count=64 2>/dev/null; done
# What the guest is to do is at the start of a disk.
dd if=/lab/inside.sh of=/tmp/nvme.img conv=notrunc 2>/dev/null
iperf3 -s >/dev/null 2>&1 &
exec "$@"
"#;

/// What the guest does: programs are Debian's, on a disk that stays as it is.
fn inside(seconds: u32) -> String {
    let script = "mkdir -p /system
         mount -t ext4 -o ro,noload /dev/nvme0n1 /system
         mount -t devtmpfs dev /system/dev
         mount -t proc proc /system/proc
         mount -t tmpfs tmp /system/tmp
         mount -t tmpfs tmp /system/run
         disk() {
             field=8
             [ $3 = randread ] || field=49
             echo \"bench: $1, 4 KiB $3, depth $4: $(chroot /system /bin/sh -c \"mkdir -p /run/shm; /usr/local/bin/fio --name=x \
                 --filename=/dev/$2 --rw=$3 --bs=4k --iodepth=$4 --ioengine=libaio --direct=1 --thread \
                 --runtime=SECONDS --time_based --output-format=terse --terse-version=3\" | tail -n 1 | cut -d';' -f$field)\"
         }
         net() {
             echo \"bench: virtio-net, TCP $1: $(chroot /system /usr/bin/iperf3 -c HOST -t SECONDS -f k $2 |
                 awk '/receiver/ { for (i = 2; i <= NF; i++) if ($i == \"Kbits/sec\") print $(i - 1) }')\"
         }
         for one in 'NVMe nvme1n1' 'virtio-blk vda'; do
             for way in 'randread 1' 'randread 32' 'randwrite 32'; do disk $one $way; done
         done
         card=$(ls /sys/class/net | grep -v lo | head -n 1)
         ip addr add 192.168.78.2/24 dev $card
         ip link set $card up
         ping -c 1 -w 20 HOST >/dev/null
         net 'to the host'
         net 'to the guest' -R
";
    script.replace("SECONDS", &seconds.to_string()).replace("HOST", HOST)
}

/// How the guest comes to it: `head -c 4096 /dev/nvme1n1 | tr -d '\0' >/tmp/inside; sh -e /tmp/inside`, by base64.
const READ_IT: &str =
    "aGVhZCAtYyA0MDk2IC9kZXYvbnZtZTFuMSB8IHRyIC1kICdcMCcgPi90bXAvaW5zaWRlOyBzaCAtZSAvdG1wL2luc2lkZQ==";

pub(super) fn main(args: &Args) -> Result<()> {
    args.labs.print(|arch| measure(arch, args))
}

fn measure(arch: Arch, args: &Args) -> Result<Table> {
    let (names, lab) = args.labs.lab(arch)?;
    let tools = portable::TOOLS.get(arch)?;
    let scratch = crate::paths::Scratch::new()?;
    let around = scratch.path().join("around.sh");
    std::fs::write(&around, AROUND)?;
    let script = scratch.path().join("inside.sh");
    std::fs::write(&script, inside(args.seconds))?;
    let lab = lab
        .carry(Images::get(arch)?.guest(), "images")
        .carry(rootfs::disk(arch, false)?, "debian.ext4")
        .carry(tools.join("bin"), "bin")
        .carry(tools.join("lib"), "lib")
        .carry(&around, "around.sh")
        .carry(&script, "inside.sh")
        .limit(LIMIT);
    let contenders = contenders(arch, names.iter().map(String::as_str));
    let around = ["sh".to_owned(), format!("{LAB}/around.sh")];
    let one = |(_, command): &(String, Vec<String>)| Program::new([&around[..], command].concat());
    let programs: Vec<Program> = (0..args.labs.rounds).flat_map(|_| contenders.iter().map(one)).collect();
    let name = |number: usize| contenders[number % contenders.len()].0.as_str();
    let outcomes = lab.run(&programs, &mut |progress| match progress {
        Progress::Begin(number) => {
            eprintln!("bench: round {} of {}: {}", number / contenders.len() + 1, args.labs.rounds, name(number));
        }
        Progress::End(number, outcome) if readings(&outcome.output).is_empty() => {
            eprintln!("bench: {}: {}", name(number), String::from_utf8_lossy(&outcome.output).trim_end());
        }
        _ => {}
    })?;
    // What was measured, in the order in which it was, and what each contender came to in its rounds.
    let mut cases: Vec<String> = Vec::new();
    let mut figures: BTreeMap<(String, usize), Vec<f64>> = BTreeMap::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        let found = readings(&outcome.output);
        if found.len() != 8 {
            let output = String::from_utf8_lossy(&outcome.output);
            bail!("{} ended with code {} and without its 8 figures:\n{output}", name(number), outcome.code);
        }
        for (case, value) in found {
            if !cases.contains(&case) {
                cases.push(case.clone());
            }
            figures.entry((case, number % contenders.len())).or_default().push(value);
        }
    }
    table(&cases, &figures, &contenders)
}

/// What the guest says, but for measurements that have come to nothing.
fn readings(output: &[u8]) -> Vec<(String, f64)> {
    told(output, "bench").into_iter().filter(|(_, value)| *value > 0.0).collect()
}

/// Each one's name, and its command in the lab.
fn contenders<'a>(arch: Arch, skeps: impl Iterator<Item = &'a str>) -> Vec<(String, Vec<String>)> {
    let kernel = format!("{LAB}/images/{}", if arch == Arch::X86_64 { "vmlinux" } else { "Image" });
    let initrd = format!("{LAB}/images/initramfs-virtio.cpio.gz");
    let append = format!("console={} quiet panic=-1 skep.script={}", arch.console(), READ_IT);
    let system = format!("{LAB}/debian.ext4");
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();

    let mut contenders = Vec::new();
    for name in skeps {
        let program = format!("{LAB}/bin/{name}");
        let mut command = owned(&[&program, "run", "--kernel", &kernel, "--initrd", &initrd, "--cmdline", &append]);
        command.extend(owned(&["--memory", super::MEMORY, "--cpus", "1", "--net", &format!("tap={TAP}")]));
        for (path, device) in [(system.as_str(), "nvme"), ("/tmp/nvme.img", "nvme"), ("/tmp/virtio.img", "virtio-blk")]
        {
            command.extend(owned(&["--disk", &format!("{path},format=raw,device={device}")]));
        }
        contenders.push((name.to_owned(), command));
    }
    let machine = if arch == Arch::X86_64 { "q35" } else { "virt,gic-version=3" };
    let mut command = qemu::command(arch, &format!("{LAB}/qemu"));
    command.extend(qemu::arguments(machine, &kernel, &append));
    command.extend(owned(&["-initrd", &initrd, "-object", "iothread,id=t"]));
    // The best that it has for each: doorbells by eventfds, and a thread apart from the vCPU's.
    let disks = [
        (system.as_str(), "nvme,serial=system,ioeventfd=on,drive=system", "system"),
        ("/tmp/nvme.img", "nvme,serial=nvme,ioeventfd=on,drive=nvme", "nvme"),
        ("/tmp/virtio.img", "virtio-blk-pci,iothread=t,disable-legacy=on,drive=virtio", "virtio"),
    ];
    for (path, device, id) in disks {
        let drive = format!("file={path},format=raw,if=none,id={id},cache=writeback,aio=threads");
        command.extend(owned(&["-drive", &drive, "-device", device]));
    }
    let tap = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off");
    command.extend(owned(&["-netdev", &tap, "-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="]));
    contenders.push(("QEMU".to_owned(), command));
    contenders
}

fn table(
    cases: &[String],
    figures: &BTreeMap<(String, usize), Vec<f64>>,
    contenders: &[(String, Vec<String>)],
) -> Result<Table> {
    let last = contenders.len() - 1;
    let ratios = contenders[..last].iter().map(|(name, _)| format!("{name} : QEMU"));
    let heading = ["in the guest".to_owned()].into_iter().chain(contenders.iter().map(|(name, _)| name.clone()));
    let mut table = Table::of(heading.chain(ratios).collect());
    for case in cases {
        let middle = |which: usize| {
            let all = figures.get(&(case.clone(), which)).into_iter().flatten().copied();
            median(all).with_context(|| format!("no figure of {case}"))
        };
        let unit = |value: f64| {
            if case.contains("TCP") { format!("{:.0} Mbit/s", value / 1e3) } else { format!("{value:.0}/s") }
        };
        let all = (0..=last).map(middle).collect::<Result<Vec<f64>>>()?;
        let mut row = vec![case.clone()];
        row.extend(all.iter().map(|value| unit(*value)));
        row.extend(all[..last].iter().map(|value| format!("{:.2}", value / all[last])));
        table.add(row);
    }
    Ok(table)
}

#[cfg(test)]
#[path = "lab_io_test.rs"]
mod test;
