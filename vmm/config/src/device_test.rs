use super::*;

#[test]
fn a_device_is_one_of_the_kinds() {
    assert_eq!("rng".parse(), Ok(Device::rng(true)));
    assert_eq!("rng=false".parse(), Ok(Device::rng(false)));
    let balloon = Device { kind: DeviceKind::Balloon { deflate_on_oom: true }, place: Some(Place::Root(7)) };
    assert_eq!("balloon,deflate-on-oom,place=root:7".parse(), Ok(balloon));
    let vsock = |cid| Device { kind: DeviceKind::Vsock { socket: "s".into(), cid }, place: None };
    assert_eq!("vsock=s".parse(), Ok(vsock(3)));
    assert_eq!("vsock=s,cid=9".parse(), Ok(vsock(9)));
    let console = |ports: &[&str]| {
        let ports = ports.iter().map(|name| (*name).to_owned()).collect();
        Device { kind: DeviceKind::Console { socket: "c".into(), ports }, place: None }
    };
    assert_eq!("console=c".parse(), Ok(console(&[])));
    assert_eq!("console=c,ports=org.qemu.guest_agent.0:log".parse(), Ok(console(&["org.qemu.guest_agent.0", "log"])));
    let many: String = (0..31).map(|number| format!("p{number}:")).collect();
    assert_eq!(
        format!("console=c,ports={}", &many[..many.len() - 1]).parse::<Device>().unwrap_err().to_string(),
        "`ports` are 30 at most"
    );
    let fs = |queues, id: Option<&str>| {
        let (socket, tag) = ("s".into(), "host".to_owned());
        Device { kind: DeviceKind::Fs { socket, tag, queues, id: id.map(str::to_owned) }, place: None }
    };
    assert_eq!("fs,socket=s,tag=host".parse(), Ok(fs(1, None)));
    assert_eq!("fs,socket=s,tag=host,queues=4,id=home".parse(), Ok(fs(4, Some("home"))));
    let long = format!("fs,socket=s,tag={}", "t".repeat(37));
    for (text, message) in [
        ("fs,tag=t", "`fs` needs the backend's socket: fs,socket=SOCKET,tag=TAG"),
        ("fs,socket=s", "`fs` needs a tag, by which the guest mounts it: fs,socket=SOCKET,tag=TAG"),
        ("fs,socket=s,tag=", "`` is no tag: 1 to 36 bytes"),
        (&long, "`ttttttttttttttttttttttttttttttttttttt` is no tag: 1 to 36 bytes"),
        ("fs,socket=s,tag=t,queues=0", "`queues` must be 1 to 64"),
        ("fs,socket=s,tag=t,id=a b", "`a b` is no name: 1 to 20 letters, digits, `-`, `_` and `.`"),
        ("balloon,tag=t", "`tag` goes with `fs` only"),
        ("vsock=s,queues=2", "`queues` goes with `fs` only"),
        ("place=root:1", "exactly one of rng, balloon, vsock=SOCKET, console=SOCKET and fs is needed"),
        ("rng,balloon", "exactly one of rng, balloon, vsock=SOCKET, console=SOCKET and fs is needed"),
        ("rng,cid=5", "`cid` goes with `vsock` only"),
        ("rng,deflate-on-oom", "`deflate-on-oom` goes with `balloon` only"),
        ("vsock=s,cid=2", "`cid` must be 3 to 4294967294"),
        ("balloon,ports=a", "`ports` goes with `console` only"),
        ("console=c,ports=a::b", "`` is no port's name: 1 to 64 letters, digits, `-`, `_` and `.`"),
        ("console=c,ports=a/b", "`a/b` is no port's name: 1 to 64 letters, digits, `-`, `_` and `.`"),
        ("console=c,ports=a:b:a", "two ports are called `a`"),
        ("rng=false,place=root:1", "`place` is of no use to a device that is not there"),
        ("baloon", "unknown key `baloon`: did you mean `balloon`?"),
    ] {
        assert_eq!(text.parse::<Device>().unwrap_err().to_string(), message, "{text}");
    }
}
