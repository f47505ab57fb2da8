use std::path::Path;

use crate::{ArchKind, Config, Conflict, Device, Place};

fn finished(text: &str) -> Result<Config, Conflict> {
    let mut config = Config::from_toml(text, Path::new("vm.toml"), ArchKind::X86_64).unwrap();
    config.finish().map(|()| config)
}

fn places(config: &Config) -> Vec<String> {
    let disks = config.disk.iter().map(|disk| (disk.id.clone(), disk.place));
    let nets = config.net.iter().map(|net| (net.id.clone(), net.place));
    let devices = config.device.iter().map(|device| (Some(device.kind.name().to_owned()), device.place));
    let all = disks.chain(nets).chain(devices);
    let text = |place: Option<Place>| place.map_or("none".to_owned(), |place| place.to_string());
    all.map(|(id, place)| format!("{} {}", id.unwrap(), text(place))).collect()
}

#[test]
fn devices_get_the_next_free_places_in_their_order() {
    let config = finished(
        "disk = ['a,format=raw', 'b,format=raw,place=root:2', 'c,format=raw,id=disk0']\nnet = ['user', 'tap=t']\ndevice = ['balloon']",
    );
    let config = config.unwrap();
    assert_eq!(
        places(&config),
        ["disk1 root:1", "disk2 root:2", "disk0 root:3", "net0 root:4", "net1 root:5", "balloon root:6", "rng root:7"]
    );
    let mut again = config.clone();
    again.finish().unwrap();
    assert_eq!(again, config, "what is finished stays");
    assert_eq!(config.disk[0].serial.as_deref(), Some("disk1"));
}

#[test]
fn random_numbers_are_there_unless_they_are_not_wanted() {
    assert_eq!(finished("").unwrap().device.len(), 1);
    let without = finished("device = ['rng=false']").unwrap();
    assert_eq!((without.device.clone(), places(&without)), (vec![Device::rng(false)], vec!["rng none".to_owned()]));
    assert_eq!(places(&finished("pci-ports = 1\ndevice = ['rng,place=port:0']").unwrap()), ["rng port:0"]);
}

#[test]
fn disks_of_one_controller_have_one_place() {
    let text = "disk = ['a,format=raw,controller=c', 'b,format=raw', 'd,format=raw,controller=c']";
    let config = finished(text).unwrap();
    assert_eq!(places(&config), ["disk0 root:1", "disk1 root:2", "disk2 none", "rng root:3"]);
    assert_eq!(config.disk[0].queues, Some(64));
    assert_eq!(config.disk[2].queues, None);
    assert_eq!(config.disk.iter().map(|disk| disk.poll.is_some()).collect::<Vec<_>>(), [true, true, false]);
    let other = finished("disk = ['a,format=raw,controller=c', 'd,format=raw,controller=c,place=root:9']");
    let own = Conflict::ControllersOwn { id: "disk1".into(), key: "place", controller: "c".into() };
    assert_eq!(other, Err(own));
}

#[test]
fn what_does_not_go_together_is_named() {
    let said = |text| finished(text).unwrap_err().to_string();
    assert_eq!(
        said("disk = ['a,format=raw,id=x']\nnet = ['user,id=x']"),
        "two devices are called `x`\n  try: another `id` for one of them"
    );
    assert_eq!(said("device = ['balloon', 'balloon']").lines().next(), Some("two devices are called `balloon`"));
    assert_eq!(
        said("disk = ['a,format=raw,place=root:3']\nnet = ['user,place=root:3']"),
        "`disk0` and `net0` are both at root:3\n  try: another `place` for one of them, or none"
    );
    assert_eq!(
        said("net = ['user,place=port:0']"),
        "`net0` is at port:0, which is no free place of machine q35-1 with 0 root ports\n  try: root:1 to root:15, or port:NUMBER \
         with `pci-ports` above NUMBER"
    );
    assert_eq!(said("pci-ports = 16"), "`pci-ports` is 16\n  try: 15 at most");
}

#[test]
fn virtio_disks_have_a_queue_for_each_cpu() {
    let queues = |cpus: u32| {
        let text = format!("cpus = {cpus}\ndisk = ['a,format=raw,device=virtio-blk']");
        finished(&text).unwrap().disk[0].queues
    };
    assert_eq!((queues(1), queues(6), queues(100)), (Some(1), Some(6), Some(16)));
}

#[test]
fn what_has_a_vhost_user_backend_makes_memory_shared() {
    let text = "memory = '1G'\ndevice = ['fs,socket=a,tag=one', 'fs,socket=b,tag=two,id=fs0', 'rng=false']";
    let config = finished(text).unwrap();
    assert_eq!((config.memory.shared, config.of_a_backend()), (true, Some("fs1")));
    assert_eq!(places(&config), ["fs1 root:1", "fs0 root:2", "rng none"]);
    assert!(!finished("memory = '1G'\ndevice = ['balloon']").unwrap().memory.shared);
    let again = Config::from_toml(&config.to_toml().unwrap(), Path::new("again.toml"), ArchKind::X86_64).unwrap();
    let mut absolute = config.clone();
    for device in &mut absolute.device {
        if let crate::DeviceKind::Fs { socket, .. } = &mut device.kind {
            *socket = std::path::absolute(&*socket).unwrap();
        }
    }
    assert_eq!(again, absolute);
    let disk = finished("cpus = 4\ndisk = ['vhost-user=s']").unwrap();
    assert_eq!((disk.memory.shared, disk.disk[0].queues, &disk.disk[0].serial), (true, Some(1), &None));
    let again = Config::from_toml(&disk.to_toml().unwrap(), Path::new("again.toml"), ArchKind::X86_64).unwrap();
    assert!(again.disk[0].source.is_vhost_user());
    let plugged = disk.with_disk("vhost-user=other".parse().unwrap()).unwrap_err();
    assert_eq!(plugged, Conflict::PluggedBackend);
    let net = finished("cpus = 4\nnet = ['vhost-user=s,queues=2']").unwrap();
    assert_eq!((net.memory.shared, net.of_a_backend()), (true, Some("net0")));
    let again = Config::from_toml(&net.to_toml().unwrap(), Path::new("again.toml"), ArchKind::X86_64).unwrap();
    assert_eq!(again.net[0].vhost_user, std::path::absolute("s").ok());
    assert_eq!(again.net[0].mac, net.net[0].mac);
    let plugged = net.with_net("vhost-user=other".parse().unwrap()).unwrap_err();
    assert_eq!(plugged, Conflict::PluggedBackend);
    let said = finished("device = ['fs,socket=a,tag=t,id=x', 'fs,socket=b,tag=t,id=x']").unwrap_err().to_string();
    assert!(said.starts_with("two devices are called `x`"), "{said}");
}

#[test]
fn what_firmware_boots_has_one_order() {
    let refused = |text: &str| finished(text).unwrap_err().to_string();
    let disks = "disk = ['a,format=raw,bootindex=1', 'b,format=raw,bootindex=0']\nnet = ['user,bootindex=1']";
    assert_eq!(
        refused(disks),
        "`bootindex` is given without `boot.firmware`\n  try: give `boot.firmware` too, or leave `bootindex` out"
    );
    assert_eq!(
        refused(&format!("{disks}\nboot = {{ firmware = 'f' }}")),
        "`disk0` and `net0` both have bootindex 1\n  try: another `bootindex` for one of them, or none"
    );
    let config = finished("disk = ['a,format=raw,bootindex=1']\nboot = { firmware = 'f' }").unwrap();
    assert_eq!(config.disk[0].bootindex, Some(1));
    let late = config.with_net("user,bootindex=3".parse().unwrap());
    assert_eq!(late.unwrap_err(), Conflict::LateBootIndex);
}
