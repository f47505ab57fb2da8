use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;

use skep_config::{Config, Device};
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, X86_64};
use skep_memory::MemoryMap;

use crate::machine::{Machine, Platform, Services};
use crate::run::Gate;

use super::*;

fn machine<A: Platform>(edit: impl FnOnce(&mut Config)) -> Result<Machine<A>, Error>
where
    Fake<A>: Hypervisor<A> + Default,
{
    let mut config = Config::new(A::KIND);
    config.memory.size = skep_config::Size(64 << 20);
    edit(&mut config);
    let services = Services {
        clock: Clock::manual(0),
        requests: skep_chipset::Requests::new(|_| ()),
        serial: Box::new(()),
        memory: MemoryMap::new(),
        firmware: None,
    };
    Machine::new(&config, &Fake::<A>::default(), Arc::new(Gate::default()), services)
}

/// A configuration with a device of each kind that needs nothing of the host but files in `folder`.
fn some_of_each(folder: &Path) -> impl Fn(&mut Config) {
    for name in ["a", "b", "c"] {
        fs::write(folder.join(name), vec![0; 1 << 20]).unwrap();
    }
    let folder = folder.display().to_string();
    move |config| {
        let disk = |text: &str| format!("{folder}/{text}").parse().unwrap();
        config.disk = vec![
            disk("a,format=raw,readonly"),
            disk("b,format=raw,readonly,device=virtio-blk,id=data"),
            disk("c,format=raw,readonly,place=port:0"),
        ];
        config.device = vec!["balloon".parse().unwrap()];
        config.pci_ports = 1;
    }
}

fn stop<A: Platform>(machine: &Machine<A>) {
    let (done, stopped) = channel();
    machine.begin_stop(move || done.send(()).unwrap());
    stopped.recv().unwrap();
}

fn each_device_is_there_and_is_saved<A: Platform>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let edit = some_of_each(folder.path());
    let mut one = machine::<A>(&edit).unwrap();
    let names: Vec<_> = one.components().into_iter().map(|(name, _)| name).skip_while(|name| name != "pci").collect();
    let expected =
        ["pci", "disk0", "data", "data/transport", "disk1", "balloon", "balloon/transport", "rng", "rng/transport"];
    assert_eq!(names, expected);
    let places: Vec<_> = one.pci().endpoints().iter().map(|endpoint| endpoint.place().to_string()).collect();
    assert_eq!(places, ["root:1", "root:2", "root:3", "root:4", "port:0"]);
    stop(&one);
    let two = machine::<A>(&edit).unwrap();
    stop(&two);
    for ((name, from), (_, to)) in one.components().into_iter().zip(two.components()) {
        to.restore_record(&from.save_record()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    one.reset().unwrap();
    stop(&one);
    stop(&one);
}

#[test]
fn each_device_is_there_and_is_saved_on_both_machines() {
    each_device_is_there_and_is_saved::<X86_64>();
    each_device_is_there_and_is_saved::<Aarch64>();
}

#[test]
fn a_machine_without_devices_has_nothing_to_stop() {
    let machine = machine::<X86_64>(|config| config.device = vec![Device::rng(false)]).unwrap();
    assert!(!machine.has_devices());
    stop(&machine);
}

#[test]
fn a_device_that_the_guest_lets_go_is_no_longer_there() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine::<Aarch64>(some_of_each(folder.path())).unwrap();
    let endpoints = machine.pci().endpoints();
    let plugged = endpoints.iter().find(|endpoint| endpoint.place() == PciPlace::Port(0)).unwrap();
    machine.devices.ejected(plugged.clone());
    assert!(machine.components().iter().all(|(name, _)| name != "disk1"));
    machine.devices.ejected(plugged.clone());
    stop(&machine);
}

#[test]
fn what_is_wrong_with_a_device_is_told_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.img");
    fs::write(&path, vec![0; 100]).unwrap();
    let text = format!("{},format=raw,id=root", path.display());
    let error = machine::<X86_64>(|config| config.disk = vec![text.parse().unwrap()]).err().unwrap();
    assert_eq!(error.to_string(), "device `root` can't be made");
    let Error::Device { source, .. } = error else { panic!("{error}") };
    let expected = format!(
        "`{}` can't be used as a disk: it has 100 bytes, and a disk is made of blocks of 512\n  try: another size, by `truncate -s SIZE FILE`",
        path.display()
    );
    assert_eq!(source.to_string(), expected);
}

#[test]
fn an_image_is_of_the_format_that_is_named() {
    use skep_block::image::{Backing, CreateOptions, ImageFormat, NewImage, create};
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.raw"), vec![0; 1 << 20]).unwrap();
    let backing = Some(Backing { file: "base.raw".into(), format: Some("raw".to_owned()) });
    let new = NewImage { qcow2: CreateOptions { backing, ..CreateOptions::default() }, force: false };
    create(&folder.path().join("a.qcow2"), ImageFormat::Qcow2, None, &new).unwrap();
    let made = |text: &str| {
        let text = format!("{}/{text}", folder.path().display());
        machine::<Aarch64>(|config| config.disk = vec![text.parse().unwrap()])
    };
    for device in ["nvme", "virtio-blk"] {
        let machine = made(&format!("a.qcow2,format=qcow2,device={device}")).unwrap();
        stop(&machine);
        let (tell, closed) = std::sync::mpsc::channel();
        machine.on_close(move || tell.send(()).unwrap());
        drop(machine);
        // It is closed by a thread of its own.
        closed.recv().unwrap();
    }
    let refusal = |text| {
        let Error::Device { source, .. } = made(text).err().unwrap() else { panic!("{text}") };
        source.to_string()
    };
    assert!(refusal("base.raw,format=qcow2").ends_with("it is no qcow2 image: is its format raw?"));
    fs::remove_file(folder.path().join("base.raw")).unwrap();
    let text = refusal("a.qcow2,format=qcow2");
    assert!(
        text.contains("base.raw`: No such file") && text.contains("try: put it where the image before it"),
        "{text}"
    );
}

#[test]
fn a_disk_does_no_more_than_its_rates_say() {
    use skep_block::{Buffer, Operation, Request};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    // The first read of 512 bytes is made up for in as many seconds.
    let limited: skep_config::Disk = format!("{},format=raw,bandwidth=1B", path.display()).parse().unwrap();
    let file = disk::open(&limited, 512, Locking::Now).unwrap();
    let mut queue = disk::held(&limited, &file).open_queue(8).unwrap();
    for tag in 0..4 {
        let request = Request { tag, operation: Operation::Read { offset: 0 }, buffer: Buffer::zeroed(512) };
        assert!(queue.submit(request).is_ok());
    }
    let mut done = Vec::new();
    while done.is_empty() {
        queue.kick();
        queue.reap(&mut done);
    }
    (1..4).for_each(|tag| queue.cancel(tag));
    queue.reap(&mut done);
    let results: Vec<_> = done.iter().map(|one| (one.tag, one.result.is_ok())).collect();
    assert_eq!(results, [(0, true), (1, false), (2, false), (3, false)]);
    assert!(limiter(None, None).is_none());
}
