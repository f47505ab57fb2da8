//! Debian's firmware, unmodified: the UEFI builds of both architectures start a kernel that they are handed.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use support::disk::{boot_disk, words};
use support::{Builder, Finished, Machine, again, base64, firmware, image, is_x86_64, usual_kernel};
use tempfile::TempDir;

fn code() -> PathBuf {
    firmware(if is_x86_64() { "OVMF_CODE_4M.fd" } else { "AAVMF_CODE.fd" })
}

fn template() -> PathBuf {
    firmware(if is_x86_64() { "OVMF_VARS_4M.fd" } else { "AAVMF_VARS.fd" })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Firmware with variables in `folder`.
fn machine(folder: &TempDir) -> Builder {
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
    Builder::command(&["run", "--memory", "512M", "--firmware", text(&code()), "--firmware-vars", &vars])
}

/// Which is handed Debian's kernel.
fn with_kernel(builder: Builder) -> Builder {
    let console = if is_x86_64() { "ttyS0" } else { "ttyAMA0" };
    let kernel = image(if is_x86_64() { "vmlinuz-generic" } else { "Image-generic" });
    let initrd = image("initramfs.cpio.gz");
    let words = ["--kernel", text(&kernel), "--initrd", text(&initrd)];
    builder.args(&words).cmdline(&format!("console={console} loglevel=5 panic=-1 acpi=force"))
}

fn expect_no_fault(end: &Finished) {
    for words in ["ACPI Error", "ACPI Warning", "ACPI BIOS", "Firmware Bug", "BUG:", "nobody cared"] {
        let line = end.console.lines().find(|line| line.contains(words));
        assert!(line.is_none(), "{line:?} is among the kernel's warnings");
    }
}

/// How often firmware's variables have a name in them.
fn count(variables: &Path, name: &str) -> usize {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let bytes = std::fs::read(variables).unwrap();
    bytes.windows(name.len()).filter(|window| *window == name).count()
}

/// Linux finds the machine described by ACPI without a fault, has the UUID that it is given, and hears of a new generation id (for which only Debian's
/// generic kernel has a driver), on command and as a clone, which has variables of its own.
#[test]
fn uefi_starts_a_kernel_that_it_is_handed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let uuid = "736b6570-0001-4002-8003-000000000004";
    let mut machine = with_kernel(machine(&folder))
        .args(&["--cpus", "2", "--uuid", uuid, "--control", text(&socket)])
        .script(
            "ls /sys/firmware/acpi/tables | tr '\\n' ' '; [ -d /sys/firmware/efi ]
            echo uuid $(cat /sys/class/dmi/id/product_uuid); echo it may be copied
            heard() { until [ $(dmesg | grep -c 'due to virtual machine fork') = $1 ]; do usleep 100000; done; }
            heard 1; echo a new id; heard 2",
        )
        .start();
    machine.wait_for(&format!("uuid {uuid}"));
    machine.wait_for("it may be copied");
    Builder::command(&["ctl", text(&socket), "renew-generation"]).finish().expect_code(0);
    machine.wait_for("a new id");
    let variables = folder.path().join("clone.fd");
    let (first, clone) = again(machine, folder.path(), &["--clone", "--firmware-vars", text(&variables)]);
    first.expect_console("skep: cpus 2").expect_console("FACP");
    let end = clone.finish();
    end.expect_code(0).expect_console("skep: script 0");
    [first, end].iter().for_each(expect_no_fault);
    assert!(std::fs::read(&variables).unwrap() == std::fs::read(folder.path().join("vars.fd")).unwrap());
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
    boot_disk(folder.path(), name, &words(&format!("loglevel=5 skep.script={}", base64(script))));
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
    assert!(count(&variables, "BootOrder") > 0 && count(&variables, "Skep") > 0);

    let socket = folder.path().join("vm.sock");
    let mut machine = with_disks(machine(&folder), &folder, ["", ""]).args(&["--control", text(&socket)]).start();
    expect_grub(&mut machine, platform);
    machine.wait_for("skep is remembered");
    machine.wait_for("the guest listens");
    let (_, mut machine) = again(machine, folder.path(), &[]);
    Builder::command(&["ctl", text(&socket), "power-button"]).finish().expect_code(0);
    machine.wait_for("pressed");
    let end = machine.finish();
    end.expect_code(0).expect_console("skep: script 0");
    expect_no_fault(&end);
    assert!(count(&variables, "Again") > 0);
}

/// What firmware has stored in the file of its variables: names and values, in the order in which they were set (edk2's VariableFormat.h). The file is whole:
/// behind one that is being written there is nothing.
fn stored(path: &Path) -> Vec<(String, Vec<u8>)> {
    const HEADER: usize = 60;
    const START: usize = 0x55aa;
    let mut bytes = Vec::new();
    File::open(path).unwrap().take(1 << 20).read_to_end(&mut bytes).unwrap();
    let number =
        |at: usize, size: usize| bytes[at..at + size].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let store = number(48, 2);
    assert_eq!((&bytes[40..44], &bytes[store + 20..store + 22]), (&b"_FVH"[..], &[0x5a, 0xfe][..]));
    let (mut at, end) = (store + 28, store + number(store + 16, 4));
    let mut set = Vec::new();
    while number(at, 2) == START {
        let state = bytes[at + 2];
        // Of one that was only begun, firmware takes the header to be all that there is.
        let sizes = if state == 0xff { [0, 0] } else { [36, 40].map(|field| number(at + field, 4)) };
        let [name, data] = sizes;
        let start = at + HEADER;
        if matches!(state, 0x3f | 0x3e) {
            let units: Vec<u16> =
                bytes[start..start + name - 2].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            set.push((String::from_utf16(&units).unwrap(), bytes[start + name..start + name + data].to_vec()));
        }
        at = (start + name + data).next_multiple_of(4);
        assert!(at < end, "a variable leaves the store");
    }
    assert!(bytes[at..end].iter().all(|byte| *byte == 0xff), "something is written where nothing is");
    set
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
    let before = stored(&path("vars.fd"));
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
        let set = stored(&variables);
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
    assert_eq!(stored(&path("vars.fd")).last(), Some(&("Last".to_owned(), value)));
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
    // Of a size that firmware might have, so that what is in it is looked at.
    let mut bytes = std::fs::read(image(usual_kernel())).unwrap();
    bytes.resize(bytes.len().next_multiple_of(4096) + 4096, 0);
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, bytes).unwrap();
    let refusal = if is_x86_64() { "no code at the reset vector" } else { "no code at its beginning" };
    Builder::command(&["run", "--firmware", text(&kernel)]).finish().expect_code(1).expect_log(refusal);
    if is_x86_64() {
        // Only there is firmware that asks for SMM.
        let secure = firmware("OVMF_CODE_4M.secboot.fd");
        let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
        let words = ["run", "--firmware", text(&secure), "--firmware-vars", &vars];
        Builder::command(&words).finish().expect_code(1).expect_log("system management mode");
    }
}
