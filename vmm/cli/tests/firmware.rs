//! Debian's firmware, unmodified: the UEFI builds of both architectures boot disks, and keep what guests set.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use support::disk::{boot_disk, words};
use support::variables::Variables;
use support::warnings::{SHOWN, expect_no_fault};
use support::{Builder, Machine, again, base64, either, firmware, image, is_x86_64, text, usual_kernel};
use tempfile::TempDir;

fn code() -> PathBuf {
    either("OVMF_CODE_4M.fd", "AAVMF_CODE.fd")
}

fn template() -> PathBuf {
    either("OVMF_VARS_4M.fd", "AAVMF_VARS.fd")
}

/// Firmware with variables in `folder`.
fn machine(folder: &TempDir) -> Builder {
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
    Builder::command(&["run", "--memory", "512M", "--firmware", text(&code()), "--firmware-vars", &vars])
}

/// What the guests' scripts begin with, on the disk `disk`: efibootmgr, and a variable of the test's own.
fn tools(disk: &str) -> String {
    format!(
        "mkdir /m; mount -t ext4 -o ro /dev/{disk} /m
        e() {{ sh /m/tools/efibootmgr \"$@\"; }}
        n() {{ e -v | sed -n \"s/^Boot\\(....\\).*Pci($1,0x0).*/\\1/p\"; }}
        v=/sys/firmware/efi/efivars/Skep-736b6570-0000-4000-8000-000000000000
        "
    )
}

/// Waits for the power button. What it says comes as 24 bytes.
const BUTTON: &str = "for i in /sys/class/input/event*; do
        if grep -q 'Power Button' $i/device/name; then b=/dev/input/${i##*/}; fi
    done
    exec 3<$b; echo the guest listens; head -c 24 <&3 | wc -c; echo pressed";

/// A machine with two disks, the first NVMe; each has a script of its own.
fn with_disks(builder: Builder, folder: &TempDir, more: [&str; 2]) -> Builder {
    let flag = |name: &str, device: &str, more: &str| {
        format!("{},format=raw,device={device}{more}", text(&folder.path().join(name)))
    };
    builder.args(&["--disk", &flag("nvme.img", "nvme", more[0]), "--disk", &flag("virtio.img", "virtio-blk", more[1])])
}

/// GRUB, booted by the firmware, boots Debian's kernel with a script in it.
fn make_disk(folder: &TempDir, name: &str, script: &str) {
    boot_disk(folder.path(), name, &words(&format!("{SHOWN} skep.script={}", base64(script))));
}

fn expect_grub(machine: &mut Machine, platform: &str) {
    machine.wait_for(&format!("skep: GRUB on {platform}"));
    machine.wait_for("skep: hello from Debian guest init");
}

/// By shim and GRUB to Debian's kernel: first from the disk that `bootindex` puts first, then, by BootNext and a reboot, from the other one, where that one
/// is put first in BootOrder, a variable is set and the machine is killed. A second machine, to which no order is told, boots in the guest's, is put away,
/// goes on, is powered off by the button, and sets a variable.
#[test]
fn uefi_boots_disks_in_the_order_that_it_is_told_and_keeps_what_guests_set() {
    let folder = tempfile::tempdir().unwrap();
    let from_virtio = "e -qn $(n 0x1); echo next is the other; reboot -f";
    let from_nvme = format!(
        "if [ -e $v ]; then tail -c 4 $v; echo ' is remembered'
        else
            [ -z \"$(e | grep BootNext)\" ]
            case $(e | grep BootOrder) in *$(n 0x2),*$(n 0x1)*) ;; *) false;; esac
            e -qo $(n 0x1),$(n 0x2); printf '\\7\\0\\0\\0skep' >$v; echo the order is set; sleep 86400
        fi
        {BUTTON}; printf '\\7\\0\\0\\0skep' >${{v%/*}}/Again-${{v##*/Skep-}}"
    );
    make_disk(&folder, "nvme.img", &format!("{}{from_nvme}", tools("nvme0n1p2")));
    make_disk(&folder, "virtio.img", &format!("{}{from_virtio}", tools("vda2")));
    let platform = if is_x86_64() { "x86_64-efi" } else { "arm64-efi" };

    let mut killed = with_disks(machine(&folder), &folder, [",bootindex=1", ",bootindex=0"]).start();
    killed.be_patient();
    expect_grub(&mut killed, platform);
    killed.wait_for("next is the other");
    expect_grub(&mut killed, platform);
    killed.wait_for("the order is set");
    drop(killed);
    let variables = folder.path().join("vars.fd");
    let kept = Variables::of(&variables);
    assert!(kept.value("BootOrder").is_some());
    assert_eq!(kept.value("Skep"), Some(&b"skep"[..]));

    let socket = folder.path().join("vm.sock");
    let mut machine = with_disks(machine(&folder), &folder, ["", ""]).args(&["--control", text(&socket)]).start();
    expect_grub(&mut machine, platform);
    machine.wait_for("skep is remembered");
    machine.wait_for("the guest listens");
    let (first, mut machine) = again(machine, folder.path(), &[]);
    expect_no_fault(&first);
    Builder::command(&["ctl", text(&socket), "power-button"]).finish().expect_code(0);
    machine.wait_for("pressed");
    let end = machine.finish();
    end.expect_code(0).expect_console("skep: script 0");
    assert_eq!(Variables::of(&variables).value("Again"), Some(&b"skep"[..]));
}

/// Writes to a file, as they happen.
struct Writes(rustix::fd::OwnedFd);

impl Writes {
    fn to(path: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY).unwrap();
        Self(watch)
    }

    /// Waits until there have been so many; what happens at once may count as one.
    fn wait(&self, count: usize) {
        const EVENT: usize = 16;
        let mut seen = 0;
        while seen < count {
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            let limit = Timespec { tv_sec: 120, tv_nsec: 0 };
            assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "of {count} writes there were {seen}");
            let mut events = [0; 4096];
            seen += rustix::io::read(&self.0, &mut events).unwrap() / EVENT;
        }
    }
}

/// Waits for the UEFI shell to be ready for a command.
fn wait_for_shell(machine: &mut Machine) {
    machine.wait_for("UEFI Interactive Shell");
    // It looks for a script first.
    machine.wait_for("startup.nsh");
    machine.send("\r");
    machine.wait_for("Shell>");
}

const VENDOR: &str = "736b6570-0000-4000-8000-000000000000";
const VALUE: &str = "1234567890123456";

/// Types a command that sets a variable.
fn set(machine: &mut Machine, name: &str) {
    machine.send(&format!("setvar {name} -guid {VENDOR} -nv -bs ={VALUE}\r"));
}

/// A machine that stands before the UEFI shell's prompt goes on again and again, is told to set variables, and is killed at the first, second, third write
/// to its file: what was set before is there, and of the others those that are there are whole. Firmware goes on with such a file.
#[test]
fn what_was_set_before_a_kill_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (socket, snapshot) = (path("vm.sock"), path("snapshot"));
    let mut first = machine(&folder).args(&["--control", text(&socket)]).start();
    wait_for_shell(&mut first);
    set(&mut first, "Before");
    first.wait_for("Shell>");
    Builder::command(&["ctl", text(&socket), "save", text(&snapshot), "--quit"]).finish().expect_code(0);
    first.finish().expect_code(14);
    let before = Variables::of(&path("vars.fd")).set();
    let value = vec![0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];
    assert_eq!(before.last(), Some(&("Before".to_owned(), value.clone())));

    let names = ["Alpha", "Beta", "Gamma"];
    let mut cut = 0;
    for number in 1..=6 {
        let variables = path(&format!("{number}.fd"));
        let words = ["restore", text(&snapshot), "--clone", "--firmware-vars", text(&variables), "--log", "info"];
        let mut clone = Builder::command(&words).start();
        clone.wait_for_log("restored from");
        let writes = Writes::to(&variables);
        names.iter().for_each(|name| set(&mut clone, name));
        writes.wait(number);
        drop(clone);
        let set = Variables::of(&variables).set();
        assert_eq!(set[..before.len()], before);
        let others: Vec<_> = names.iter().map(|name| ((*name).to_owned(), value.clone())).collect();
        let new = &set[before.len()..];
        assert_eq!(new, &others[..new.len()]);
        cut += usize::from(new.len() < names.len());
    }
    assert!(cut > 0, "it was never killed before it had set them all");

    std::fs::copy(path("1.fd"), path("vars.fd")).unwrap();
    let mut last = machine(&folder).start();
    wait_for_shell(&mut last);
    last.send(&format!("setvar Before -guid {VENDOR}\r"));
    last.wait_for("12 34 56 78 90 12 34 56");
    last.wait_for("Shell>");
    set(&mut last, "Last");
    last.wait_for("Shell>");
    drop(last);
    assert_eq!(Variables::of(&path("vars.fd")).set().last(), Some(&("Last".to_owned(), value)));
}

#[test]
fn firmware_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.fd");
    let whole = std::fs::read(template()).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let code = code();
    let words = ["run", "--firmware", text(&code), "--firmware-vars", text(&cut)];
    Builder::command(&words).finish().expect_code(1).expect_log("and should have");
    if is_x86_64() {
        // Variables of the other build that Debian 12 has, which hold less.
        let mut small = whole[..128 << 10].to_vec();
        small[32..40].copy_from_slice(&(128u64 << 10).to_le_bytes());
        std::fs::write(&cut, small).unwrap();
        Builder::command(&words).finish().expect_code(1).expect_log("it has 131072 bytes, and should have 540672");
        // SeaBIOS would not look at a kernel.
        let (bios, kernel) = (firmware("bios-256k.bin"), image(usual_kernel()));
        let words = ["run", "--firmware", text(&bios), "--kernel", text(&kernel)];
        Builder::command(&words).finish().expect_code(1).expect_log("it is no UEFI firmware");
    }
    // Of a size that firmware might have, so that what is in it is looked at.
    let mut bytes = std::fs::read(image(usual_kernel())).unwrap();
    bytes.resize(bytes.len().next_multiple_of(4096) + 4096, 0);
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, bytes).unwrap();
    let refusal = if is_x86_64() { "no code at the reset vector" } else { "no code at its beginning" };
    Builder::command(&["run", "--firmware", text(&kernel)]).finish().expect_code(1).expect_log(refusal);
    let (other, built) = if is_x86_64() { ("QEMU_EFI.fd", "aarch64") } else { ("OVMF.fd", "x86_64") };
    let other = Builder::command(&["run", "--firmware", text(&firmware(other))]).finish();
    other.expect_code(1).expect_log(built);
    if is_x86_64() {
        // Only there is firmware that asks for SMM.
        let secure = firmware("OVMF_CODE_4M.secboot.fd");
        let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
        let words = ["run", "--firmware", text(&secure), "--firmware-vars", &vars];
        Builder::command(&words).finish().expect_code(1).expect_log("system management mode");
    }
}
