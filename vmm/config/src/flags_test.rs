use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;
use crate::{Boot, Conflict, Size};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

fn flags(args: &[&str]) -> Flags {
    Command::try_parse_from([&["skep"], args].concat()).unwrap().flags
}

fn refused(args: &[&str]) -> String {
    Command::try_parse_from([&["skep"], args].concat()).err().unwrap().to_string()
}

fn config(args: &[&str]) -> Result<Config, Error> {
    flags(args).config(ArchKind::X86_64)
}

#[test]
fn flags_alone_make_a_config() {
    let args =
        "--kernel k --initrd i --cpus 2,max=4 --memory 1G,shared --serial file=out --on-reset exit --log debug --stats";
    let config = config(&args.split(' ').collect::<Vec<_>>()).unwrap();
    let expected = Config {
        boot: Boot {
            kernel: Some("k".into()),
            initrd: Some("i".into()),
            cmdline: Some("console=ttyS0".into()),
            ..Boot::default()
        },
        cpus: Cpus { count: 2, max: 4, sockets: 1, cores: 4, threads: 1 },
        memory: Memory { size: Size::gib(1), shared: true, ..Memory::default() },
        serial: Serial::File("out".into()),
        on: crate::Policy { reset: Action::Exit, ..crate::Policy::default() },
        log: LogLevel::Debug,
        stats: true,
        device: vec![crate::Device { place: Some(crate::Place::Root(1)), ..crate::Device::rng(true) }],
        ..Config::new(ArchKind::X86_64)
    };
    assert_eq!(config, expected);
}

#[test]
fn flags_replace_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    fs::write(&file, "cpus = 8\nstats = true\nlog = \"info\"\n[boot]\nkernel = \"k\"\ninitrd = \"i\"\n[memory]\nsize = \"1G\"\nshared = true")
        .unwrap();
    let file = file.to_str().unwrap();
    let config = config(&["--config", file, "--kernel", "other", "--memory", "2G", "--stats=false"]).unwrap();
    assert_eq!(config.boot.kernel.as_deref(), Some(Path::new("other")));
    assert_eq!(config.boot.initrd, Some(folder.path().join("i")), "the file's paths start at its folder");
    assert_eq!(config.memory, Memory { size: Size::gib(2), ..Memory::default() }, "a group is replaced whole");
    assert_eq!((config.cpus.count, config.stats, config.log), (8, false, LogLevel::Info));
}

#[test]
fn devices_are_a_list_which_flags_replace_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    fs::write(&file, "disk = ['a,format=raw', 'b,format=raw']\nnet = ['user']\n[[device]]\nvsock = \"s\"").unwrap();
    let file = file.to_str().unwrap();
    let from_file = config(&["--config", file]).unwrap();
    let image = |file: &Path| crate::DiskSource::Image { file: file.to_owned(), format: crate::Format::Raw };
    assert_eq!(
        from_file.disk.iter().map(|disk| disk.source.clone()).collect::<Vec<_>>(),
        ["a", "b"].map(|name| image(&folder.path().join(name)))
    );
    let socket = crate::DeviceKind::Vsock { socket: folder.path().join("s"), cid: 3 };
    assert_eq!((from_file.net.len(), &from_file.device[0].kind), (1, &socket));
    let flags =
        config(&["--config", file, "--disk", "c,format=raw", "--device", "rng=false", "--pci-ports", "2"]).unwrap();
    assert_eq!((flags.disk.len(), &flags.disk[0].source, flags.net.len()), (1, &image(Path::new("c")), 1));
    assert_eq!((flags.device, flags.pci_ports), (vec![crate::Device::rng(false)], 2));
}

#[test]
fn a_flag_for_the_other_way_to_boot_drops_the_first() {
    let from = |toml| {
        let mut config = Config::from_toml(toml, Path::new("vm.toml"), ArchKind::X86_64).unwrap();
        flags(&["--firmware", "f"]).apply(&mut config);
        config.boot
    };
    let firmware = Boot { firmware: Some("f".into()), ..Boot::default() };
    assert_eq!(from("boot = { kernel = 'k', initrd = 'i', cmdline = 'c' }"), firmware);
    let mut config =
        Config::from_toml("boot = { firmware = 'f', firmware-vars = 'v' }", Path::new("vm.toml"), ArchKind::X86_64)
            .unwrap();
    flags(&["--kernel", "k"]).apply(&mut config);
    assert_eq!(config.boot, Boot { kernel: Some("k".into()), ..Boot::default() });
}

#[test]
fn both_ways_to_boot_are_refused() {
    let conflict = |args: &[&str]| match config(args) {
        Err(Error::Conflict(conflict)) => conflict,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        conflict(&["--machine", "virt-1", "--kernel", "k", "--dtb", "d", "--firmware", "f"]),
        Conflict::DtbAndFirmware
    );
    assert_eq!(conflict(&["--initrd", "i"]), Conflict::Without { key: "boot.initrd", needs: "boot.kernel" });
    let other = |key| Conflict::OtherArch { key, needs: ArchKind::Aarch64, machine: MachineVersion::Q35V1 };
    assert_eq!(conflict(&["--kernel", "k", "--dtb", "d"]), other("boot.dtb"));
    assert_eq!(conflict(&["--irqchip", "gicv2"]), other("irqchip"));
    assert_eq!(conflict(&["--cpu-features", "sve"]), other("cpu-features.sve"));
    assert_eq!(conflict(&["--cpu-features", "pmu=false"]), other("cpu-features.pmu"));
    let needs = Conflict::OtherArch { key: "cpu", needs: ArchKind::X86_64, machine: MachineVersion::VirtV1 };
    assert_eq!(conflict(&["--machine", "virt-1", "--cpu", "x86-64-v2"]), needs);
    assert_eq!(config(&["--machine", "q35-1", "--cpu", "x86-64-v2"]).unwrap().cpu.as_deref(), Some("x86-64-v2"));
    let arm = config(&[
        "--machine",
        "virt-1",
        "--irqchip",
        "gicv2",
        "--cpu-features",
        "pauth",
        "--kernel",
        "k",
        "--dtb",
        "d",
    ])
    .unwrap();
    assert_eq!((arm.arch(), arm.boot.cmdline.as_deref()), (ArchKind::Aarch64, Some("")));
}

#[test]
fn wrong_flags_are_explained() {
    assert!(refused(&["--memory", "12Q"]).contains("size `12Q` has the unknown unit `Q`"));
    assert!(refused(&["--memory", "1G", "--memory", "2G"]).contains("cannot be used multiple times"));
    assert!(refused(&["--machine", "q35"]).contains("q35-1, virt-1"));
    assert!(refused(&["--stats=maybe"]).contains("maybe"));
    assert!(refused(&["--cpus"]).contains("a value is required"));
}
