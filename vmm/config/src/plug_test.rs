use std::path::Path;

use super::*;
use crate::ArchKind;

fn finished(text: &str) -> Config {
    let mut config = Config::from_toml(text, Path::new("vm.toml"), ArchKind::X86_64).unwrap();
    config.finish().unwrap();
    config
}

fn disk(text: &str) -> Disk {
    text.parse().unwrap()
}

#[test]
fn what_is_plugged_is_complete_and_behind_a_free_port() {
    let config = finished("pci-ports = 3\ndisk = ['a,format=raw,place=port:1', 'b,format=raw']\nnet = ['user']");
    let next = config.with_disk(disk("c,format=raw")).unwrap();
    let plugged = next.disk.last().unwrap();
    assert_eq!((plugged.id.as_deref(), plugged.place), (Some("disk2"), Some(Place::Port(0))));
    assert_eq!((plugged.serial.as_deref(), plugged.queues), (Some("disk2"), Some(64)));
    let next = next.with_net("tap=t,id=lan".parse().unwrap()).unwrap();
    let card = next.net.last().unwrap();
    assert_eq!((card.id.as_deref(), card.place), (Some("lan"), Some(Place::Port(2))));
    assert!(card.mac.is_some());
    // All that was there has stayed as it was.
    assert_eq!((&next.disk[..2], &next.net[..1], &next.device), (&config.disk[..], &config.net[..], &config.device));
    let mut again = next.clone();
    again.finish().unwrap();
    assert_eq!(again, next);
}

#[test]
fn what_cant_be_plugged_is_told_why() {
    let said = |config: &Config, text: &str| config.with_disk(disk(text)).unwrap_err().to_string();
    let none = finished("");
    assert_eq!(
        said(&none, "a,format=raw"),
        "no root port is free: this machine has none\n  try: start it with some, by --pci-ports N"
    );
    let full = finished("pci-ports = 2\ndisk = ['a,format=raw,place=port:1']\nnet = ['user,place=port:0']");
    assert_eq!(
        said(&full, "b,format=raw"),
        "no root port is free: port:0 has `net0`, port:1 has `disk0`\n  \
         try: remove one of them; or start the machine with more, by --pci-ports N"
    );
    assert_eq!(said(&full, "b,format=raw,place=port:1").lines().next(), Some("`disk0` and `disk1` are both at port:1"));
    let free = finished("pci-ports = 1\ndisk = ['a,format=raw']");
    assert_eq!(
        said(&free, "b,format=raw,place=root:7"),
        "place root:7 takes no device while the guest runs\n  try: place=port:NUMBER, or no place, for the first free port"
    );
    assert_eq!(said(&free, "b,format=raw,id=disk0").lines().next(), Some("two devices are called `disk0`"));
    assert!(said(&free, "b,format=raw,place=port:1").starts_with("`disk1` is at port:1, which is no free place"));
    let net = free.with_net("user,id=disk0".parse().unwrap());
    assert_eq!(net, Err(Conflict::SameId { id: "disk0".to_owned() }));
}

#[test]
fn a_disk_joins_the_controller_that_it_names() {
    let config = finished("disk = ['a,format=raw,controller=c']");
    let next = config.with_disk(disk("b,format=raw,controller=c")).unwrap();
    assert_eq!((next.disk[1].place, next.disk[1].queues), (None, None));
    let own = config.with_disk(disk("b,format=raw,controller=c,place=port:0")).unwrap_err();
    assert_eq!(own, Conflict::ControllersOwn { id: "disk1".into(), key: "place", controller: "c".into() });
    // A controller of its own needs a port.
    let other = config.with_disk(disk("b,format=raw,controller=d")).unwrap_err();
    assert!(matches!(other, Conflict::NoFreePort { .. }));
}

#[test]
fn what_has_gone_is_forgotten() {
    let text = "pci-ports = 2\ndisk = ['a,format=raw,controller=c,serial=S,queues=2', 'b,format=raw', 'd,format=raw,controller=c']\n\
                net = ['user,id=lan']\ndevice = ['balloon', 'rng,place=port:0']";
    let mut config = finished(text);
    let same = config.clone();
    config.retain_devices(|_| true);
    assert_eq!(config, same);
    config.retain_devices(|id| id != "rng" && id != "lan" && id != "disk0");
    let ids: Vec<_> = config.disk.iter().filter_map(|disk| disk.id.as_deref()).collect();
    assert_eq!((ids, config.net.len()), (vec!["disk1", "disk2"], 0));
    let heir = &config.disk[1];
    assert_eq!((heir.place, heir.serial.as_deref(), heir.queues), (same.disk[0].place, Some("S"), Some(2)));
    let mut again = config.clone();
    again.finish().unwrap();
    assert_eq!(again, config, "it does not come back");
    assert_eq!(config.with_disk(disk("e,format=raw")).unwrap().disk[2].place, Some(Place::Port(0)));
}
