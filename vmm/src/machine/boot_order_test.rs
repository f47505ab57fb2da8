use std::path::Path;

use skep_config::ArchKind;

use super::*;

fn order(text: &str) -> Option<String> {
    let text = format!("boot = {{ firmware = 'f' }}\npci-ports = 2\n{text}");
    let mut config = Config::from_toml(&text, Path::new("vm.toml"), ArchKind::X86_64).unwrap();
    config.finish().unwrap();
    list(&config, "pci@i0cf8").map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn the_least_index_is_first() {
    assert_eq!(order("disk = ['a,format=raw']\nnet = ['user']"), None);
    let disks = "disk = ['a,format=raw', 'b,format=raw,device=virtio-blk,bootindex=7', 'c,format=raw,bootindex=2,place=root:11']";
    assert_eq!(
        order(&format!("{disks}\nnet = ['user,bootindex=0,place=port:1', 'tap=t']")).unwrap(),
        "/pci@i0cf8/pci-bridge@11/ethernet@0/ethernet-phy@0\n/pci@i0cf8/pci8086,5845@b/namespace@1,0\n/pci@i0cf8/scsi@2/disk@0,0\0"
    );
}

#[test]
fn disks_of_a_controller_are_its_namespaces() {
    let disks = "disk = ['a,format=raw,controller=x', 'b,format=raw', 'c,format=raw,controller=x,bootindex=1', 'd,format=raw,controller=x,bootindex=0']";
    assert_eq!(
        order(disks).unwrap(),
        "/pci@i0cf8/pci8086,5845@1/namespace@3,0\n/pci@i0cf8/pci8086,5845@1/namespace@2,0\0"
    );
}
