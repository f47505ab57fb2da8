use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use skep_arch::x86_64::layout::ECAM;
use skep_block::{FileDisk, FileOptions};
use skep_clock::Clock;
use skep_config::Config;
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, MemoryIo, X86_64};
use skep_memory::MemoryMap;

use super::*;
use crate::machine::{DeviceState, Plan, Services};
use crate::run::Gate;

trait Tested: Platform {
    fn fake() -> Box<dyn Hypervisor<Self>>;
    fn ecam(plan: &Plan<Self>) -> u64;
    fn memory(io: &mut crate::run::BoxedIo<Self>) -> &mut dyn MemoryIo;
}

impl Tested for X86_64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }
    fn ecam(_plan: &Plan<Self>) -> u64 {
        ECAM.base
    }
    fn memory(io: &mut crate::run::BoxedIo<Self>) -> &mut dyn MemoryIo {
        &mut **io
    }
}

impl Tested for Aarch64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }
    fn ecam(plan: &Plan<Self>) -> u64 {
        plan.layout.ecam.base
    }
    fn memory(io: &mut crate::run::BoxedIo<Self>) -> &mut dyn MemoryIo {
        &mut **io
    }
}

/// Slot control of a slot that is on, and of one that is off.
const ON: u16 = 0x01c0;
const OFF: u16 = 0x07c0;
/// The first root port on bus 0.
const PORT: u64 = 0x10;

/// A machine with two root ports, and a guest's hands.
struct Rig<A: Platform> {
    machine: Machine<A>,
    io: crate::run::BoxedIo<A>,
    folder: tempfile::TempDir,
}

impl<A: Tested> Rig<A> {
    fn new(edit: impl FnOnce(&mut Config, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), vec![0; 1 << 20]).unwrap();
        }
        let mut config = Config::new(A::KIND);
        config.memory.size = skep_config::Size(64 << 20);
        config.pci_ports = 2;
        edit(&mut config, folder.path());
        let services = Services {
            clock: Clock::manual(0),
            requests: skep_chipset::Requests::new(|_| ()),
            serial: Box::new(()),
            memory: MemoryMap::new(),
            firmware: None,
        };
        let machine = Machine::new(&config, &*A::fake(), Arc::new(Gate::default()), services).unwrap();
        A::place(&machine.plan, &machine.board).unwrap();
        let io = A::io(&machine.board, 0);
        Self { machine, io, folder }
    }

    fn config(&self, bus: u64, device: u64) -> u64 {
        A::ecam(&self.machine.plan) + (bus << 20 | device << 15)
    }

    fn read(&mut self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        A::memory(&mut self.io).memory_read(gpa, &mut data);
        u32::from_le_bytes(data)
    }

    fn slot(&mut self, port: u64) -> u64 {
        let function = self.config(0, PORT + port);
        let mut at = self.read(function + 0x34) & 0xff;
        while self.read(function + u64::from(at)) & 0xff != 0x10 {
            at = self.read(function + u64::from(at)) >> 8 & 0xff;
        }
        function + u64::from(at) + 0x18
    }

    /// The guest switches a slot.
    fn switch(&mut self, port: u64, control: u16) {
        let slot = self.slot(port);
        A::memory(&mut self.io).memory_write(slot, &control.to_le_bytes());
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self, text: &str) -> Disk {
        format!("{}/{text}", self.folder.path().display()).parse().unwrap()
    }

    fn plug(&mut self, text: &str) -> Result<Plugged, Error> {
        let disk = self.disk(text);
        self.machine.plug_disk(disk)
    }

    fn unplug(&mut self, id: &str) -> Result<Receiver<Removal>, HotplugError> {
        let (tell, told) = channel();
        self.machine.unplug(id, false, Some(Box::new(move |removal| tell.send(removal).unwrap())))?;
        Ok(told)
    }

    fn states(&self) -> Vec<String> {
        let devices = self.machine.device_list().into_iter();
        devices.map(|device| format!("{} {} {} {:?}", device.id, device.kind, device.place, device.state)).collect()
    }

    fn is_free(&self, name: &str) -> bool {
        FileDisk::open(&self.image(name), &FileOptions::default()).is_ok()
    }
}

fn both(x86_64: fn(Rig<X86_64>), aarch64: fn(Rig<Aarch64>), edit: fn(&mut Config, &Path)) {
    x86_64(Rig::new(edit));
    aarch64(Rig::new(edit));
}

fn a_disk_comes_and_goes<A: Tested>(mut rig: Rig<A>) {
    for (text, kind, device) in [
        ("a,format=raw,id=data", "nvme", 0x0010_1b36),
        ("a,format=raw,id=data,device=virtio-blk", "virtio-blk", 0x1042_1af4),
    ] {
        let plugged = rig.plug(text).unwrap();
        assert_eq!(plugged, Plugged { id: "data".to_owned(), place: "port:0".to_owned(), namespace: None });
        let state = |state| vec!["rng virtio-rng root:1 On".to_owned(), format!("data {kind} port:0 {state}")];
        assert_eq!(rig.states(), state("Off"));
        let slot = rig.slot(0);
        assert_eq!(rig.read(slot) >> 16 & 0x49, 0x49, "occupied, its presence changed, the button pressed");
        rig.switch(0, ON);
        assert_eq!(rig.states(), state("On"));
        let function = rig.config(1, 0);
        assert_eq!(rig.read(function), device);
        assert!(!rig.is_free("a"));
        assert!(rig.machine.components().iter().any(|(name, _)| name == "data"));

        let gone = rig.unplug("data").unwrap();
        assert_eq!(rig.states(), state("Leaving"));
        assert!(matches!(rig.unplug("data"), Err(HotplugError::AlreadyAsked { .. })));
        rig.machine.unplug("data", true, None).unwrap();
        assert!(gone.try_recv().is_err());
        rig.switch(0, OFF);
        assert_eq!(gone.recv().unwrap(), Removal::Gone);
        assert!(rig.is_free("a"), "its file is another's to use");
        assert_eq!(rig.read(function), u32::MAX);
        assert_eq!(rig.states(), ["rng virtio-rng root:1 On"]);
        assert!(rig.machine.components().iter().all(|(name, _)| name != "data"));
    }
}

#[test]
fn a_disk_comes_and_goes_on_both_machines() {
    both(a_disk_comes_and_goes, a_disk_comes_and_goes, |_, _| ());
}

fn a_card_cant_be_made<A: Tested>(mut rig: Rig<A>) {
    // What the host has not, is no card; and nothing has changed then.
    let error = rig.machine.plug_net("tap=a/b".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "device `net0` can't be made");
    assert_eq!(rig.states(), ["rng virtio-rng root:1 On"]);
    assert_eq!(rig.plug("a,format=raw").unwrap().place, "port:0");
    let card = rig.machine.plug_net("tap=a/b,place=port:0".parse().unwrap()).unwrap_err();
    assert_eq!(card.to_string().lines().next(), Some("`disk0` and `net0` are both at port:0"));
}

#[test]
fn a_card_that_cant_be_made_leaves_nothing_behind() {
    both(a_card_cant_be_made, a_card_cant_be_made, |_, _| ());
}

/// What can't come can go all the same.
fn devices_go<A: Tested>(mut rig: Rig<A>) {
    let devices = ["rng", "balloon", "vsock", "console"];
    let there = |rig: &Rig<A>| rig.machine.device_list().into_iter().map(|device| device.id).collect::<Vec<_>>();
    assert_eq!(there(&rig), devices);
    assert!(rig.image("vsock.sock").exists() && rig.image("console.sock").exists());
    for (port, id) in (0..).zip(devices) {
        let gone = rig.unplug(id).unwrap();
        assert!(gone.try_recv().is_err(), "{id}: the guest has not answered");
        rig.switch(port, OFF);
        assert_eq!(gone.recv().unwrap(), Removal::Gone, "{id}");
        assert_eq!(there(&rig), devices[port as usize + 1..]);
        assert!(rig.machine.components().iter().all(|(name, _)| name != id));
    }
    assert!(rig.machine.balloon(None).is_err() && rig.machine.resize_console(80, 25).is_err());
    for port in 0..4 {
        rig.plug(&format!("a,format=raw,readonly,place=port:{port}")).unwrap();
    }
}

#[test]
fn devices_behind_ports_go_whatever_they_are() {
    both(devices_go, devices_go, |config, folder| {
        let folder = folder.display();
        let devices = [
            "rng,place=port:0".to_owned(),
            "balloon,place=port:1".to_owned(),
            format!("vsock={folder}/vsock.sock,cid=7,place=port:2"),
            format!("console={folder}/console.sock,place=port:3"),
        ];
        config.device = devices.iter().map(|device| device.parse().unwrap()).collect();
        config.pci_ports = 4;
    });
}

#[test]
fn a_slot_that_is_off_lets_go_at_once() {
    let mut rig = Rig::<X86_64>::new(|_, _| ());
    rig.plug("a,format=raw,place=port:1").unwrap();
    let gone = rig.unplug("disk0").unwrap();
    assert_eq!(gone.recv().unwrap(), Removal::Gone);
    assert!(rig.is_free("a"));
    // Name and place are free again.
    assert_eq!(rig.plug("b,format=raw,place=port:1").unwrap().id, "disk0");
}

#[test]
fn what_cant_be_is_refused_by_name() {
    let mut rig = Rig::<Aarch64>::new(|config, folder| {
        config.disk = vec![format!("{}/a,format=raw,id=root", folder.display()).parse().unwrap()];
    });
    let said = |error: &dyn std::error::Error| error.to_string();
    let unknown = rig.unplug("data").unwrap_err();
    assert_eq!(said(&unknown), "there is no device `data`\n  try: one of root, rng");
    let fixed = rig.unplug("root").unwrap_err();
    assert!(said(&fixed).starts_with("`root` is at root:1 and can't leave while the guest runs"), "{fixed}");
    let locked = rig.plug("a,format=raw").unwrap_err();
    assert_eq!(said(&locked), "device `disk0` can't be made");
    assert!(said(std::error::Error::source(&locked).unwrap()).contains("is in use by process"));
    assert!(said(&rig.plug("none,format=raw").unwrap_err()).contains("`disk0`"));
    assert!(matches!(rig.machine.resize_disk("rng"), Err(HotplugError::NoDisk { .. })));
    assert!(matches!(rig.machine.resize_disk("data"), Err(HotplugError::UnknownId { .. })));
    assert_eq!(rig.machine.device_list().len(), 2, "nothing has changed");
    for name in ["b", "c"] {
        rig.plug(&format!("{name},format=raw")).unwrap();
    }
    let full = rig.plug("none,format=raw").unwrap_err();
    assert_eq!(said(&full).lines().next(), Some("no root port is free: port:0 has `disk0`, port:1 has `disk1`"));
}

#[test]
fn a_restart_forgets_what_the_guest_was_asked() {
    let mut rig = Rig::<X86_64>::new(|_, _| ());
    rig.plug("a,format=raw").unwrap();
    rig.switch(0, ON);
    let gone = rig.unplug("disk0").unwrap();
    let (done, stopped) = channel();
    rig.machine.begin_stop(move || done.send(()).unwrap());
    stopped.recv().unwrap();
    rig.machine.reset().unwrap();
    assert_eq!(gone.recv().unwrap(), Removal::Restarted);
    X86_64::place(&rig.machine.plan, &rig.machine.board).unwrap();
    assert_eq!(rig.states(), ["rng virtio-rng root:1 On", "disk0 nvme port:0 On"]);
    let function = rig.config(1, 0);
    assert_eq!(rig.read(function), 0x0010_1b36, "it is there from the start now");
    let gone = rig.unplug("disk0").unwrap();
    rig.switch(0, OFF);
    assert_eq!(gone.recv().unwrap(), Removal::Gone);
}

#[test]
fn a_disk_of_another_size_is_seen() {
    let mut rig = Rig::<X86_64>::new(|_, _| ());
    rig.plug("a,format=raw,id=data").unwrap();
    fs::File::options().write(true).open(rig.image("a")).unwrap().set_len(3 << 20).unwrap();
    assert_eq!(rig.machine.resize_disk("data").unwrap(), 3 << 20);
    assert_eq!(rig.machine.device_list()[1].size, Some(3 << 20));
}

fn namespaces_come_and_go<A: Tested>(mut rig: Rig<A>) {
    let joined = rig.plug("b,format=raw,id=more,controller=many").unwrap();
    assert_eq!(joined, Plugged { id: "more".to_owned(), place: "root:1".to_owned(), namespace: Some(2) });
    let rows = [
        "many nvme root:1 On",
        "first nvme-namespace root:1 On",
        "more nvme-namespace root:1 On",
        "rng virtio-rng root:2 On",
    ];
    assert_eq!(rig.states(), rows);
    let gone = rig.unplug("first").unwrap();
    assert_eq!(gone.recv().unwrap(), Removal::Gone);
    assert!(rig.is_free("a") && !rig.is_free("b"));
    let last = rig.unplug("more").unwrap_err();
    assert_eq!(last.to_string(), "`more` is the last disk of `many`\n  try: remove `many`");
    // A number is not another disk's at once.
    assert_eq!(rig.plug("a,format=raw,controller=many").unwrap().namespace, Some(3));
    assert_eq!(rig.machine.device_list()[0].state, DeviceState::On);
    assert!(matches!(rig.unplug("many"), Err(HotplugError::NotRemovable { .. })));
    assert!(matches!(rig.plug("c,format=raw,controller=many,place=port:0"), Err(Error::Config(_))));
    // A new controller has a place of its own.
    assert_eq!(rig.plug("c,format=raw,controller=other,id=third").unwrap().place, "port:0");
    let gone = rig.unplug("other").unwrap();
    assert_eq!(gone.recv().unwrap(), Removal::Gone);
    assert!(rig.is_free("c"));
}

#[test]
fn namespaces_come_and_go_on_both_machines() {
    both(namespaces_come_and_go, namespaces_come_and_go, |config, folder| {
        config.disk = vec![format!("{}/a,format=raw,id=first,controller=many", folder.display()).parse().unwrap()];
    });
}
