use super::*;

fn refused(text: &str) -> String {
    text.parse::<Disk>().unwrap_err().to_string()
}

#[test]
fn a_disk_is_its_file_and_what_is_said_of_it() {
    let disk: Disk = "a.img,format=raw".parse().unwrap();
    let plain = Disk {
        source: DiskSource::Image { file: "a.img".into(), format: Format::Raw },
        device: DiskDevice::Nvme,
        id: None,
        serial: None,
        readonly: false,
        direct: false,
        block_size: Some(512),
        queues: None,
        poll: None,
        iops: None,
        bandwidth: None,
        controller: None,
        place: None,
        bootindex: None,
    };
    assert_eq!(disk, plain);
    let qcow2 = DiskSource::Image { file: "a.img".into(), format: Format::Qcow2 };
    assert_eq!("a.img,format=qcow2".parse::<Disk>().unwrap().source, qcow2);
    let text = "a,,b.img,format=raw,device=virtio-blk,id=root,serial=X1,readonly,direct,queues=4,poll=8us,iops=1000/2000,bandwidth=100M,place=port:1,bootindex=2";
    let expected = Disk {
        source: DiskSource::Image { file: "a,b.img".into(), format: Format::Raw },
        device: DiskDevice::VirtioBlk,
        id: Some("root".to_owned()),
        serial: Some("X1".to_owned()),
        readonly: true,
        direct: true,
        block_size: None,
        queues: Some(4),
        poll: "8us".parse().ok(),
        iops: "1000/2000".parse().ok(),
        bandwidth: "100M".parse().ok(),
        place: Some(Place::Port(1)),
        bootindex: Some(2),
        ..plain
    };
    assert_eq!(text.parse::<Disk>(), Ok(expected));
}

#[test]
fn a_disk_may_be_another_programs() {
    let disk: Disk = "vhost-user=s.sock,queues=2,id=data,place=port:1".parse().unwrap();
    assert_eq!(disk.source, DiskSource::VhostUser { socket: "s.sock".into() });
    assert_eq!((disk.device, disk.queues, disk.place), (DiskDevice::VirtioBlk, Some(2), Some(Place::Port(1))));
    let own = |key| format!("`{key}` does not go with vhost-user=SOCKET: the backend has the disk");
    for (text, message) in [
        ("a,vhost-user=s", own("a file")),
        ("vhost-user=s,format=raw", own("format")),
        ("vhost-user=s,readonly", own("readonly")),
        ("vhost-user=s,device=nvme", own("device=nvme")),
        ("vhost-user=s,poll=0", own("poll")),
        ("vhost-user=s,controller=c", "`controller` goes with device=nvme only".to_owned()),
        ("vhost-user=", "`vhost-user` needs the backend's socket: vhost-user=SOCKET".to_owned()),
    ] {
        assert_eq!(refused(text), message, "{text}");
    }
}

#[test]
fn what_is_no_disk_says_why() {
    assert_eq!(
        refused("a.img"),
        "`a.img`: the format is never guessed, since its guest writes what a guess looks at: add format=raw or format=qcow2"
    );
    for (text, message) in [
        ("format=raw", "a disk needs a file: FILE,format=raw; or a backend: vhost-user=SOCKET"),
        (",format=raw", "a disk needs a file: FILE,format=raw; or a backend: vhost-user=SOCKET"),
        ("a,format=raw,queues=0", "`queues` must be 1 to 256"),
        ("a,format=raw,block-size=1024", "`block-size` must be 512 or 4096"),
        ("a,format=raw,device=virtio-blk,block-size=512", "`block-size` goes with device=nvme only"),
        ("a,format=raw,device=virtio-blk,controller=c", "`controller` goes with device=nvme only"),
        ("a,format=raw,id=a b", "`a b` is no name: 1 to 20 letters, digits, `-`, `_` and `.`"),
        (
            "a,format=raw,serial=012345678901234567890",
            "`012345678901234567890` is no serial number: 1 to 20 characters of ASCII without spaces",
        ),
        ("a,format=raw,read-only", "unknown key `read-only`: did you mean `readonly`?"),
        ("a,format=row", "`format`: `row` is not one of the choices: did you mean `raw`?"),
        ("a,format=raw,device=nvmr", "`device`: `nvmr` is not one of the choices: did you mean `nvme`?"),
        ("a,format=raw,place=x", "`place`: `x` is no place: write root:DEVICE or port:NUMBER"),
    ] {
        assert_eq!(refused(text), message, "{text}");
    }
}
