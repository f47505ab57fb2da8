use std::path::{Path, PathBuf};

use proptest::option;
use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Config, Error> {
    Config::from_toml(text, Path::new("vm.toml"), ArchKind::X86_64)
}

fn refused(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(read("").unwrap(), Config::new(ArchKind::X86_64));
    assert_eq!(Config::from_toml("", Path::new(""), ArchKind::Aarch64).unwrap(), Config::new(ArchKind::Aarch64));
}

#[test]
fn groups_are_texts_or_tables() {
    let text = read("cpus = 4\nmemory = '1G,prefault'\nserial = 'pty,link=/l'\ncpu-features = 'sve'").unwrap();
    let table = read(
        "cpus = { count = 4 }\nmemory = { size = '1G', prefault = true }\nserial = { pty = true, link = '/l' }\n\
         cpu-features = { sve = true }",
    );
    assert_eq!(text, table.unwrap());
    assert_eq!(read("cpus = '4,threads=2'").unwrap(), read("[cpus]\ncount = 4\nthreads = 2").unwrap());
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, message) in [
        ("\n\n  kernal = 1", "vm.toml:3:3: unknown key `kernal`: did you mean `boot.kernel`?"),
        ("[boot]\nkernal = 'k'", "vm.toml:2:1: `boot`: unknown key `kernal`: did you mean `kernel`?"),
        ("[boot]\nkernel = 5", "vm.toml:2:10: `boot.kernel`: found `5`, expected a path"),
        (
            "log = 'loud'",
            "vm.toml:1:7: `log`: `loud` is not one of the choices: they are off, error, warn, info, debug, trace",
        ),
        ("log = 'wran'", "vm.toml:1:7: `log`: `wran` is not one of the choices: did you mean `warn`?"),
        ("log = 3", "vm.toml:1:7: `log`: found `3`, expected one of off, error, warn, info, debug, trace"),
        ("stats = 'yes'", "vm.toml:1:9: `stats`: found `yes`, expected true or false"),
        ("cpus = 0", "vm.toml:1:8: `cpus`: `count` must be at least 1"),
        ("cpus = -3", "vm.toml:1:8: `cpus`: `count`: found `-3`, expected a whole number up to 4294967295"),
        (
            "cpus = 1.5",
            "vm.toml:1:8: `cpus`: found a number with a fraction, expected a number of CPUs, or a table of count, max, sockets, cores and threads",
        ),
        (
            "[cpus]\ncount = 4294967296",
            "vm.toml:2:9: `cpus.count`: found `4294967296`, expected a whole number up to 4294967295",
        ),
        (
            "cpus = 99999999999999999999",
            "vm.toml:1:8: `cpus`: found a number beyond 64 bits, expected a number of CPUs, or a table of count, max, sockets, cores and threads",
        ),
        (
            "memory = 512",
            "vm.toml:1:10: `memory`: `size`: size `512` has no unit: write `512M` for mebibytes, or `512B` for bytes",
        ),
        (
            "[memory]\nsize = 512",
            "vm.toml:2:8: `memory.size`: size `512` has no unit: write `512M` for mebibytes, or `512B` for bytes",
        ),
        (
            "serial = { file = 'a', socket = 'b' }",
            "vm.toml:1:10: `serial`: exactly one of stdio, file=FILE, pty, socket=PATH and none is needed",
        ),
        (
            "[[disk]]\nfile = 'x'",
            "vm.toml:1:1: `disk`: `x`: the format is never guessed, since its guest writes what a guess looks at: add format=raw or format=qcow2",
        ),
        ("[[disk]]\nfile = 'x'\nfromat = 'raw'", "vm.toml:3:1: `disk`: unknown key `fromat`: did you mean `format`?"),
        ("disk = 'x'", "vm.toml:1:8: `disk`: found `x`, expected a list, such as [[disk]] makes"),
        ("control = 3", "vm.toml:1:11: `control`: found `3`, expected a path"),
        (
            "[on]\nreset = 'reboot'",
            "vm.toml:2:9: `on.reset`: `reboot` is not one of the choices: they are exit, restart",
        ),
        ("machine = 'q35-2'", "vm.toml:1:11: `machine`: `q35-2` is not one of the choices: did you mean `q35-1`?"),
        ("boot = []", "vm.toml:1:8: `boot`: found a list, expected a table"),
        ("boot = 1979-05-27", "vm.toml:1:8: `boot`: found a date or time, expected a table"),
        ("rng-seed = 'x'", "vm.toml:1:12: `rng-seed`: a seed is 64 hexadecimal digits, and this has 1 characters"),
    ] {
        assert_eq!(refused(text), message);
    }
}

#[test]
fn what_is_not_toml_is_named_with_its_place() {
    for (text, place) in [
        ("log = ", "vm.toml:1:"),
        ("log = 'a'\nlog = 'b'", "vm.toml:2:1:"),
        ("\u{1}", "vm.toml:1:"),
        ("é = [", "vm.toml:1:"),
    ] {
        let message = refused(text);
        assert!(message.starts_with(place), "{message}");
    }
}

#[test]
fn nothing_to_boot_can_be_dumped_but_not_run() {
    let mut config = Config::new(ArchKind::X86_64);
    assert_eq!(config.finish(), Ok(()));
    assert_eq!(config.boot.source(), Err(Conflict::NothingToBoot));
    assert_eq!(read(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn the_control_socket_has_a_path_of_its_own() {
    let finish = |text: &str| read(text).unwrap().finish();
    assert_eq!(finish("control = 'a'\nserial = 'socket=b'"), Ok(()));
    assert_eq!(finish("control = ''"), Err(Conflict::EmptyPath { key: "control" }));
    assert_eq!(finish("control = 'a'\nserial = 'socket=a'"), Err(Conflict::SameSocket { path: "a".into() }));
}

#[test]
fn firmware_tells_the_uuid() {
    let text = "uuid = '01234567-89ab-cdef-0123-456789abcdef'";
    let refused = Conflict::Without { key: "uuid", needs: "boot.firmware" };
    assert_eq!(read(text).unwrap().finish(), Err(refused));
    let mut config = read(&format!("{text}\nboot = {{ firmware = '/f' }}")).unwrap();
    config.finish().unwrap();
    assert_eq!(read(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn a_gicv2_has_eight_cpus() {
    let finish = |text: &str| read(&format!("machine = 'virt-1'\n{text}")).unwrap().finish();
    assert_eq!(finish("cpus = 8\nirqchip = 'gicv2'"), Ok(()));
    let refused = Conflict::Gicv2Cpus { cpus: 9, limit: 8 };
    assert_eq!(finish("cpus = '1,max=9'\nirqchip = 'gicv2'"), Err(refused));
    assert_eq!(finish("cpus = 9\nirqchip = 'gicv3'"), Ok(()));
}

#[test]
fn a_dump_has_every_value_and_absolute_paths() {
    let text = "boot = { kernel = 'k' }\ndisk = ['/d.img,format=raw']\nnet = ['user,mac=02:00:00:00:00:01']";
    let mut config = read(text).unwrap();
    config.finish().unwrap();
    let kernel = std::env::current_dir().unwrap().join("k");
    let expected = format!(
        "machine = \"q35-1\"\nirqchip = \"auto\"\nlog = \"warn\"\nstats = false\npci-ports = 0\nserial = \"stdio\"\n\n\
         [cpus]\ncount = 1\nmax = 1\nsockets = 1\ncores = 1\nthreads = 1\n\n\
         [cpu-features]\npauth = false\nsve = false\n\n\
         [memory]\nsize = \"512M\"\nprefault = false\nshared = false\n\n\
         [boot]\nkernel = \"{}\"\ncmdline = \"console=ttyS0\"\n\n\
         [on]\npower-off = \"exit\"\nreset = \"restart\"\npanic = \"exit\"\ntriple-fault = \"exit\"\n\n\
         [[disk]]\nfile = \"/d.img\"\nformat = \"raw\"\ndevice = \"nvme\"\nid = \"disk0\"\nserial = \"disk0\"\nreadonly = false\n\
         direct = false\nblock-size = 512\nqueues = 64\npoll = \"32us\"\nplace = \"root:1\"\n\n\
         [[net]]\nuser = true\ndevice = \"virtio-net\"\nqueues = 1\nid = \"net0\"\nmac = \"02:00:00:00:00:01\"\npoll = \"32us\"\nplace = \"root:2\"\n\n\
         [[device]]\nrng = true\nplace = \"root:3\"\n",
        kernel.display()
    );
    assert_eq!(config.to_toml().unwrap(), expected);
}

/// Any absolute path that is UTF-8 and in its normal form.
fn path() -> impl Strategy<Value = PathBuf> {
    "/[^/\0.][^/\0]{0,12}".prop_map(PathBuf::from)
}

fn serial() -> impl Strategy<Value = Serial> {
    prop_oneof![
        Just(Serial::Stdio),
        Just(Serial::None),
        path().prop_map(Serial::File),
        path().prop_map(Serial::Socket),
        option::of(path()).prop_map(|link| Serial::Pty { link }),
    ]
}

fn memory() -> impl Strategy<Value = Memory> {
    (1_u64..1 << 20, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(count, huge, prefault, shared)| Memory {
        size: Size::mib(2 * count),
        hugepages: huge.then_some(Size::mib(2)),
        prefault,
        shared,
    })
}

fn cpus() -> impl Strategy<Value = Cpus> {
    (1_u32..20, 1_u32..20, 1_u32..4).prop_flat_map(|(sockets, cores, threads)| {
        let max = sockets * cores * threads;
        (1..=max).prop_map(move |count| Cpus { count, max, sockets, cores, threads })
    })
}

fn boot() -> impl Strategy<Value = Boot> {
    prop_oneof![
        (path(), option::of(path()), "\\PC{0,40}", option::of(path())).prop_map(|(kernel, initrd, cmdline, dtb)| {
            Boot { kernel: Some(kernel), initrd, cmdline: Some(cmdline), dtb, ..Boot::default() }
        }),
        (path(), option::of((path(), option::of(path())))).prop_map(|(firmware, firmware_vars)| Boot {
            firmware: Some(firmware),
            firmware_vars: firmware_vars.map(|(file, template)| FirmwareVars { file, template }),
            ..Boot::default()
        }),
    ]
}

fn id() -> impl Strategy<Value = Option<String>> {
    option::of("[a-c][0-9a-zA-Z_.-]{6,12}")
}

fn poll() -> impl Strategy<Value = Option<Poll>> {
    option::of((0_u32..10_000).prop_map(|us| format!("{us}us").parse().unwrap()))
}

fn rate<T: Counted + std::fmt::Debug>(unit: &'static str) -> impl Strategy<Value = Option<Rate<T>>> {
    option::of(
        (1_u32..2000, 1_u32..2000)
            .prop_map(move |(rate, burst)| format!("{rate}{unit}/{burst}{unit}").parse().unwrap()),
    )
}

prop_compose! {
    fn disk()(file in path(), id in id(), readonly in any::<bool>(), direct in any::<bool>(), queues in option::of(1_u16..256), poll in poll(), iops in rate(""), bandwidth in rate("M"), large in option::of(any::<bool>())) -> Disk {
        Disk {
            source: DiskSource::Image { file, format: Format::Raw },
            device: if large.is_some() { DiskDevice::Nvme } else { DiskDevice::VirtioBlk },
            id, serial: None, readonly, direct,
            block_size: large.map(|large| if large { 4096 } else { 512 }),
            queues, poll, iops, bandwidth, controller: None, place: None, bootindex: None,
        }
    }
}

prop_compose! {
    fn net()((tap, socket) in (option::of("[a-z0-9]{1,15}"), option::of(path())), pairs in 1_u16..256, old: bool, romfile in option::of(path()), id in id(), mac in option::of(any::<[u8; 6]>()), poll in poll(), (rx_packets, rx_bandwidth, tx_packets, tx_bandwidth) in (rate(""), rate("K"), rate(""), rate("G"))) -> Net {
        let mac = mac.map(|bytes| Mac([2, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]));
        let device = if old { NetDevice::Ne2kPci } else { NetDevice::VirtioNet };
        let queues = if tap.is_some() && !old { pairs } else { 1 };
        let net = Net {
            user: tap.is_none(), vhost_user: None, device, queues, tap, id, mac, poll: None, rx_packets: None, rx_bandwidth: None, tx_packets: None,
            tx_bandwidth: None, romfile, place: None, bootindex: None,
        };
        match socket {
            Some(_) => Net { user: false, tap: None, vhost_user: socket, device: NetDevice::VirtioNet, queues: pairs, ..net },
            None if old => net,
            None => Net { poll, rx_packets, rx_bandwidth, tx_packets, tx_bandwidth, ..net },
        }
    }
}

fn device() -> impl Strategy<Value = Device> {
    let kind = prop_oneof![
        any::<bool>().prop_map(|deflate_on_oom| DeviceKind::Balloon { deflate_on_oom }),
        (path(), 3_u32..0xffff_ffff).prop_map(|(socket, cid)| DeviceKind::Vsock { socket, cid }),
        (path(), prop::collection::btree_set("[a-z.]{1,20}", 0..4))
            .prop_map(|(socket, ports)| DeviceKind::Console { socket, ports: ports.into_iter().collect() }),
        (path(), "[a-z,= ]{1,36}", 1_u16..=64, id()).prop_map(|(socket, tag, queues, id)| DeviceKind::Fs {
            socket,
            tag,
            queues,
            id
        }),
    ];
    kind.prop_map(|kind| Device { kind, place: None })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Exit), Just(Action::Restart)]
}

prop_compose! {
    fn config()(
        (serial, cpus, memory, boot) in (serial(), cpus(), memory(), boot()),
        (power_off, reset, panic, triple_fault) in (action(), action(), action(), action()),
        irqchip in prop_oneof![Just(Irqchip::Auto), Just(Irqchip::Gicv2), Just(Irqchip::Gicv3)],
        log in prop_oneof![Just(LogLevel::Off), Just(LogLevel::Info), Just(LogLevel::Trace)],
        (disk, net) in (prop::collection::vec(disk(), 0..4), prop::collection::vec(net(), 0..3)),
        (device, pci_ports, control) in (prop::collection::vec(device(), 0..2), 0_u8..16, option::of(path())),
        (stats, pauth, sve, pmu, seed) in any::<(bool, bool, bool, Option<bool>, Option<[u8; 32]>)>(),
    ) -> Config {
        Config {
            machine: MachineVersion::VirtV1,
            // A GICv2 has few.
            irqchip: if cpus.max > 8 { Irqchip::Auto } else { irqchip },
            log, stats, serial, cpus, memory, boot, disk, net, device, pci_ports, control,
            rng_seed: seed.map(RngSeed),
            uuid: None, cpu: None,
            cpu_features: CpuFeatures { pauth, pmu, sve },
            on: Policy { power_off, reset, panic, triple_fault },
        }
    }
}

proptest! {
    #[test]
    fn a_dump_fed_back_in_gives_the_same(mut config in config()) {
        // Names that came twice are refused.
        prop_assume!(config.finish().is_ok());
        let text = config.to_toml().unwrap();
        let mut again = read(&text).unwrap();
        again.finish().unwrap();
        prop_assert_eq!(again, config);
    }

    #[test]
    fn any_text_is_a_config_or_an_error(text in "\\PC{0,60}", keys in "(cpus|memory|serial|boot|disk|net|device|format=raw|\\[|\\]|=|\\.|'|\"|\n|[0-9]){0,20}") {
        let _ = read(&text);
        let _ = read(&keys);
    }
}
