//! The command without a machine: what it says about wrong input, and with which exit code.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// What a run of `skep` said.
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    /// It was refused with `code`, and standard error holds each of `texts`; there was no panic, and nothing on standard output.
    #[track_caller]
    fn refuses(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert_eq!(self.stdout, "");
        for text in texts {
            assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    #[track_caller]
    fn succeeds(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""));
        self.stdout
    }
}

fn skep<S: AsRef<OsStr>>(words: &[S]) -> Said {
    let output = Command::new(support::skep()).args(words).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Files for the command, in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A pipe that nobody writes to.
    fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        path
    }

    /// The least that is an arm64 Image (Documentation/arch/arm64/booting.rst): `code0` to `text_offset`, `image_size`, and the magic number.
    fn image(&self) -> String {
        let mut image = vec![0; 4096];
        image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        self.write("Image", image)
    }
}

#[test]
fn nothing_asked_for_shows_help() {
    let said = skep::<&str>(&[]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("Usage: skep <COMMAND>"), "{}", said.stderr);
    let help = skep(&["--help"]).succeeds();
    for text in [
        "run ",
        "hello ",
        "ctl ",
        "doctor ",
        "check ",
        "completions ",
        "man ",
        "Examples:",
        "skep run --kernel",
        "Exit codes:",
        "128+N",
    ] {
        assert!(help.contains(text), "`{text}` is not in:\n{help}");
    }
    assert_eq!(skep(&["--version"]).succeeds(), format!("skep {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_of_run_names_every_flag_and_has_examples() {
    let help = skep(&["run", "--help"]).succeeds();
    let flags = "config kernel initrd cmdline dtb firmware firmware-vars machine cpus cpu cpu-features memory irqchip rng-seed serial control \
                 on-power-off on-reset on-panic on-triple-fault log stats dump-config print-layout";
    for flag in flags.split(' ') {
        assert!(help.contains(&format!("  --{flag}")), "--{flag} is not in:\n{help}");
    }
    // What it is, not what its flags are documented by.
    assert!(help.starts_with("Run a machine\n"), "{help}");
    assert!(help.contains("Examples:") && help.contains("A config file:") && help.contains("Exit codes:"));
    assert!(help.lines().all(|line| line.chars().count() <= 110));
}

#[test]
fn wrong_words_are_usage_errors() {
    skep(&["rum"]).refuses(2, &["unrecognized subcommand 'rum'", "run"]);
    skep(&["run", "--kernal", "x"]).refuses(2, &["unexpected argument '--kernal'", "--kernel"]);
    skep(&["run", "--memory", "1G", "--memory", "2G"])
        .refuses(2, &["'--memory <SIZE[,...]>' cannot be used multiple times"]);
    skep(&["run", "--kernel"]).refuses(2, &["a value is required for '--kernel <FILE>'"]);
    skep(&["run", "--on-reset", "reboot"]).refuses(2, &["invalid value 'reboot'", "exit, restart"]);
    skep(&["run", "--dump-config", "--print-layout"]).refuses(2, &["cannot be used with"]);
    skep(&["run", "vmlinuz"]).refuses(2, &["unexpected argument 'vmlinuz'"]);
    skep(&["completions", "tcsh"]).refuses(2, &["invalid value 'tcsh'", "bash"]);
}

#[test]
fn absurd_numbers_are_usage_errors() {
    let refused = |flag: &str, value: &str, text: &str| skep(&["run", flag, value]).refuses(2, &[value, text]);
    refused("--cpus", "0", "`count` must be at least 1");
    refused("--cpus", "-1", "unexpected argument '-1'");
    refused("--cpus", "4294967296", "expected a whole number up to 4294967295");
    refused("--cpus", "4,max=2", "4 CPUs are more than the most that there may be, 2");
    refused("--cpus", "4,thread=2", "did you mean `threads`?");
    refused("--memory", "0M", "a guest needs memory");
    refused("--memory", "512", "size `512` has no unit: write `512M`");
    refused("--memory", "16E", "size `16E` is beyond 64 bits");
    refused("--memory", "1.5G", "use the next smaller unit");
    refused("--memory", "1G,hugepages=3M", "huge pages of 3M do not exist");
    refused("--rng-seed", "abc", "a seed is 64 hexadecimal digits");
    refused("--serial", "stdio,none", "exactly one of");
    refused("--log", "loud", "warn");
    refused("--disk", "a.img", "the format is never guessed");
    refused("--disk", "a.img,format=raw,read-only", "did you mean `readonly`?");
    refused("--net", "tap", "`tap`: found `true`, expected a text");
    refused("--net", "id=x", "exactly one of tap=NAME, user and vhost-user=SOCKET");
    refused("--device", "baloon", "did you mean `balloon`?");
}

#[test]
fn what_is_no_firmware_is_refused_by_name() {
    let files = Files::new();
    let firmware = files.write("OVMF.fd", [0; 4096]);
    let none = |machine, words| {
        for command in ["run", "check"] {
            skep(&[command, "--machine", machine, "--firmware", &firmware]).refuses(1, &["OVMF.fd", words]);
        }
    };
    none("q35-1", "no firmware of a PC");
    none("virt-1", "no aarch64 firmware");
}

#[test]
fn keys_that_contradict_each_other_are_usage_errors() {
    for command in ["run", "check"] {
        skep(&[command]).refuses(2, &["error: there is nothing to boot\n", "  try: a kernel, by `--kernel FILE`"]);
        skep(&[command, "--machine", "virt-1", "--kernel", "k", "--dtb", "d", "--firmware", "f"])
            .refuses(2, &["both `boot.dtb` and `boot.firmware`", "  try: "]);
        skep(&[command, "--initrd", "i"]).refuses(2, &["`boot.initrd` is given without `boot.kernel`", "  try: "]);
        skep(&[command, "--machine", "q35-1", "--kernel", "k", "--dtb", "d"])
            .refuses(2, &["`boot.dtb` is for aarch64 guests"]);
        skep(&[command, "--machine", "q35-1", "--kernel", "k", "--irqchip", "gicv2"])
            .refuses(2, &["`irqchip` is for aarch64"]);
        skep(&[command, "--machine", "virt-1", "--kernel", "k", "--irqchip", "gicv2", "--cpus", "9"])
            .refuses(2, &["9 CPUs are more than a GICv2 can have, 8\n", "  try: `--irqchip gicv3`"]);
    }
}

#[test]
fn mistakes_in_a_file_are_named_with_their_place() {
    let files = Files::new();
    let refused = |text: &str, place: &str, message: &str| {
        let file = files.write("vm.toml", text);
        skep(&["run", "--config", &file]).refuses(2, &[&format!("error: {file}:{place}: "), message]);
    };
    refused("cpus = 2\n\n[boot]\nkernal = 'x'", "4:1", "`boot`: unknown key `kernal`: did you mean `kernel`?");
    refused("kernel = 'x'", "1:1", "unknown key `kernel`: did you mean `boot.kernel`?");
    refused("memory = 512", "1:10", "`memory`: `size`: size `512` has no unit");
    refused("control = 5", "1:11", "`control`: found `5`, expected a path");
    refused("[[disk]]\nfile = 'x'", "1:1", "the format is never guessed");
    refused("cpus = 2\ncpus = 3", "2:1", "duplicate key");
    refused("[boot\n", "1:6", "unclosed table");
}

#[test]
fn a_file_that_cannot_be_read_is_a_usage_error() {
    let files = Files::new();
    let refused = |path: &Path, text: &str| {
        let path = path.to_str().unwrap();
        skep(&["run", "--config", path]).refuses(2, &[&format!("config file `{path}` can't be read: "), text]);
    };
    refused(&files.path("nowhere"), "No such file");
    refused(files.0.path(), "it is a directory, and only a regular file will do");
    files.write("latin1", [0xe9]);
    refused(&files.path("latin1"), "valid UTF-8");
    refused(Path::new("/dev/zero"), "it is a character device, and only a regular file will do");
    refused(&files.fifo(), "it is a pipe, and only a regular file will do");
    files.write("large", vec![b'#'; (1 << 20) + 1]);
    refused(&files.path("large"), "it is larger than 1 MiB");
    files.write("largest", vec![b'#'; 1 << 20]);
    let dump = skep(&["run", "--dump-config", "--config", files.path("largest").to_str().unwrap()]);
    assert!(dump.succeeds().starts_with("machine = "));
}

#[test]
fn what_the_guest_needs_is_opened_or_named() {
    let files = Files::new();
    let image = files.image();
    let nowhere = files.path("nowhere").to_str().unwrap().to_owned();
    let folder = files.0.path().to_str().unwrap();
    let fifo = files.fifo();
    let fifo = fifo.to_str().unwrap();
    for command in ["run", "check"] {
        let refused = |words: &[&str], texts: &[&str]| {
            skep(&[&[command, "--machine", "virt-1"], words].concat()).refuses(1, texts)
        };
        refused(&["--kernel", &nowhere], &["error: kernel `", "nowhere", "No such file"]);
        refused(&["--kernel", folder], &["error: kernel `", "directory"]);
        refused(&["--kernel", fifo], &["error: kernel `", "it is a pipe"]);
        refused(&["--kernel", &image, "--initrd", fifo], &["error: initramfs `", "it is a pipe"]);
        refused(&["--kernel", "/dev/zero"], &["error: kernel `", "it is a character device"]);
        refused(&["--kernel", &files.write("empty", "")], &["error: kernel `", "empty"]);
        refused(
            &["--kernel", &files.write("text", "this is no kernel".repeat(100))],
            &["error: kernel `", "  caused by: "],
        );
        refused(&["--kernel", &image, "--initrd", &nowhere], &["initramfs", "nowhere", "No such file"]);
        refused(&["--kernel", &image, "--dtb", &image], &["device tree", "Image"]);
    }
}

#[test]
fn a_kernel_for_the_other_architecture_is_refused() {
    let image = Files::new();
    let path = image.image();
    for command in ["run", "check"] {
        skep(&[command, "--machine", "q35-1", "--kernel", &path]).refuses(1, &["Image", "aarch64", "x86_64"]);
    }
    let sound = skep(&["check", "--machine", "virt-1", "--kernel", &path]).succeeds();
    assert_eq!(sound, "machine virt-1 (aarch64), kernel Image: the config is sound\n");
}

#[test]
fn a_dump_fed_back_in_gives_the_same() {
    let files = Files::new();
    let words = "--kernel k --initrd i --cpus 2,max=8,threads=2 --memory 3G,hugepages=2M --serial pty,link=l --on-panic restart --stats";
    let words: Vec<&str> = ["run", "--dump-config"].into_iter().chain(words.split(' ')).collect();
    let first = skep(&words).succeeds();
    assert!(first.contains("max = 8\nsockets = 1\ncores = 4\nthreads = 2\n"), "{first}");
    let again = skep(&["run", "--dump-config", "--config", &files.write("vm.toml", &first)]).succeeds();
    assert_eq!(again, first);
    let changed =
        skep(&["run", "--dump-config", "--config", &files.write("vm.toml", &first), "--memory", "1G"]).succeeds();
    assert_eq!(changed, first.replace("size = \"3G\"\nhugepages = \"2M\"", "size = \"1G\""));
}

#[test]
fn output_never_goes_into_a_file_that_the_machine_is_made_from() {
    let files = Files::new();
    let image = files.image();
    let content = fs::read(&image).unwrap();
    let other = files.path("other-name");
    fs::hard_link(&image, &other).unwrap();
    let config = files.write("vm.toml", "[boot]\nkernel = 'Image'\n");
    for command in ["run", "check"] {
        let refused = |words: &[&str], file: &str, role: &str| {
            let serial = format!("file={file}");
            let text = format!("{file} is the {role} too");
            let words = [&[command, "--machine", "virt-1", "--serial", &serial], words].concat();
            skep(&words).refuses(1, &[&text, "\n  try: another file"]);
        };
        refused(&["--kernel", &image], &image, "kernel");
        refused(&["--kernel", &image], other.to_str().unwrap(), "kernel");
        refused(&["--kernel", &files.write("k", &content), "--initrd", &image], &image, "initramfs");
        refused(&["--config", &config], &config, "config file");
    }
    assert_eq!(fs::read(&image).unwrap(), content);
}

#[test]
fn the_words_of_hello_are_told_and_others_refused() {
    let help = skep(&["hello", "--help"]).succeeds();
    for word in ["first", "cpus", "ticks", "ticks=slow", "echo", "end=poweroff", "end=reset", "end=panic", "end=halt"] {
        assert!(help.contains(&format!("\n  {word} ")), "`{word}` is not in:\n{help}");
    }
    skep(&["hello", "frist"]).refuses(2, &["invalid value 'frist'", "did you mean `first`?"]);
    skep(&["hello", "end=restart"]).refuses(2, &["invalid value 'end=restart'", "did you mean `end=reset`?"]);
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let text = skep(&["completions", shell]).succeeds();
        assert!(text.contains("print-layout") && text.contains("doctor"), "{shell}");
    }
    // `skep help image create`, to its end.
    let bash = skep(&["completions", "bash"]).succeeds();
    assert!(bash.contains("skep__subcmd__help__subcmd__image__subcmd__create"), "{bash}");
}

#[test]
fn manual_pages_are_made_for_each_command() {
    let files = Files::new();
    let folder = files.path("share/man1");
    assert_eq!(skep(&["man", folder.to_str().unwrap()]).succeeds(), "");
    for (page, text) in [
        ("skep.1", "Exit codes"),
        ("skep-run.1", "firmware"),
        ("skep-ctl-save.1", "skep ctl <SOCKET> save [OPTIONS] <FOLDER>"),
        ("skep-hello.1", "built in"),
        ("skep-doctor.1", "host"),
    ] {
        let page = fs::read_to_string(folder.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(page.starts_with(".ie") && page.contains(text), "{page}");
    }
    skep(&["man", "/proc/nowhere"]).refuses(1, &["/proc/nowhere can't be written"]);
}

#[test]
fn doctor_tells_what_it_found() {
    let said = skep(&["doctor"]);
    assert!(said.code == 0 || said.code == 1, "{}", said.stderr);
    assert!(!said.stdout.contains("mapped at once") || said.stdout.contains("memory regions "), "{}", said.stdout);
    for topic in ["memory ", "huge pages ", "open files ", "io_uring "] {
        assert!(said.stdout.contains(topic), "`{topic}` is not in:\n{}", said.stdout);
    }
    let verdict = if said.code == 0 { "This host runs guests" } else { "This host runs no guest yet" };
    assert!(said.stdout.contains(verdict), "{}", said.stdout);
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
    let run = |stdout: Stdio| {
        let skep =
            Command::new(support::skep()).args(["run", "--dump-config"]).stdout(stdout).stderr(Stdio::piped()).output();
        let output = skep.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), (Some(0), String::new()));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, stderr) = run(full.into());
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: standard output can't be written: No space left"), "{stderr}");
}
