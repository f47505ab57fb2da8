use super::*;

fn refused(text: &str) -> String {
    text.parse::<Net>().unwrap_err().to_string()
}

#[test]
fn a_card_is_what_it_is_connected_to() {
    let net: Net = "tap=tap0,queues=4,mac=02:00:00:00:00:aB,id=lan".parse().unwrap();
    let expected = Net {
        tap: Some("tap0".to_owned()),
        user: false,
        vhost_user: None,
        device: NetDevice::VirtioNet,
        queues: 4,
        id: Some("lan".to_owned()),
        mac: Some(Mac([2, 0, 0, 0, 0, 0xab])),
        poll: None,
        rx_packets: None,
        rx_bandwidth: None,
        tx_packets: None,
        tx_bandwidth: None,
        romfile: None,
        place: None,
        bootindex: None,
    };
    assert_eq!(net, expected);
    let net: Net = "user,poll=0,rx-packets=10,rx-bandwidth=1M,tx-packets=20/30,tx-bandwidth=2M/3M".parse().unwrap();
    let limited = Net {
        tap: None,
        user: true,
        vhost_user: None,
        device: NetDevice::VirtioNet,
        queues: 1,
        id: None,
        mac: None,
        poll: "0".parse().ok(),
        rx_packets: "10/1".parse().ok(),
        rx_bandwidth: "1M".parse().ok(),
        tx_packets: "20/30".parse().ok(),
        tx_bandwidth: "2M/3M".parse().ok(),
        romfile: None,
        place: None,
        bootindex: None,
    };
    assert_eq!(net, limited);
    let net = expected;
    assert_eq!(net.mac.unwrap().to_string(), "02:00:00:00:00:ab");
    for (text, message) in [
        ("id=x", "exactly one of tap=NAME, user and vhost-user=SOCKET is needed"),
        ("tap", "`tap`: found `true`, expected a text"),
        ("user,tap=t", "exactly one of tap=NAME, user and vhost-user=SOCKET is needed"),
        ("user,queues=2", "`queues` goes with `tap` and `vhost-user` only"),
        ("tap=t,device=ne2k_pci,queues=2", "`queues` goes with device=virtio-net only"),
        ("user,device=ne2k_pci,poll=0", "rates and `poll` go with device=virtio-net only"),
        ("user,device=ne2k_pci,tx-bandwidth=1M", "rates and `poll` go with device=virtio-net only"),
        ("tap=t,queues=0", "`queues` must be 1 to 256"),
        ("tap=t,queue=2", "unknown key `queue`: did you mean `queues`?"),
        (
            "user,mac=01:00:00:00:00:00",
            "`mac`: `01:00:00:00:00:00` can't be a card's own address: the lowest bit of its first byte must be 0",
        ),
        (
            "user,poll=20ms",
            "`poll`: `20ms` is not how long to poll: write whole microseconds such as `32us`, 10ms at most, or 0 for never",
        ),
        ("user,mac=1:2", "`mac`: `1:2` is no Ethernet address: write it as 52:54:00:12:34:56"),
    ] {
        assert_eq!(refused(text), message, "{text}");
    }
}

#[test]
fn a_cards_frames_may_be_another_programs() {
    let mut net: Net = "vhost-user=s.sock,queues=2,mac=02:00:00:00:00:07".parse().unwrap();
    assert_eq!((net.vhost_user.as_deref(), net.queues), (Some(std::path::Path::new("s.sock")), 2));
    net.fill();
    assert_eq!((net.mac, net.poll), (Some(Mac([2, 0, 0, 0, 0, 7])), None));
    for (text, message) in [
        ("tap=t,vhost-user=s", "exactly one of tap=NAME, user and vhost-user=SOCKET is needed"),
        ("vhost-user=", "`vhost-user` needs the backend's socket: vhost-user=SOCKET"),
        ("vhost-user=s,device=ne2k_pci", "`vhost-user` goes with device=virtio-net only"),
        ("vhost-user=s,poll=0", "rates and `poll` do not go with vhost-user=SOCKET: the backend moves the frames"),
        (
            "vhost-user=s,tx-packets=1",
            "rates and `poll` do not go with vhost-user=SOCKET: the backend moves the frames",
        ),
    ] {
        assert_eq!(refused(text), message, "{text}");
    }
}

#[test]
fn a_card_can_be_an_old_one_and_have_an_option_rom() {
    let net: Net = "user,device=ne2k_pci,romfile=/boot/pxe.rom".parse().unwrap();
    assert_eq!((net.device, net.romfile), (NetDevice::Ne2kPci, Some("/boot/pxe.rom".into())));
    assert!(refused("user,device=e1000").contains("ne2k_pci"));
}

#[test]
fn an_address_follows_from_the_network() {
    let mac = |text: &str| {
        let mut net: Net = text.parse().unwrap();
        net.fill();
        net.mac.unwrap()
    };
    assert_eq!(mac("tap=tap0"), mac("tap=tap0,id=other"));
    assert_ne!(mac("tap=tap0"), mac("tap=tap1"));
    let whole = std::path::absolute("s").unwrap();
    assert_eq!(mac("vhost-user=s,id=a"), mac(&format!("vhost-user={},id=b", whole.display())));
    assert_ne!(mac("vhost-user=s"), mac("vhost-user=t"));
    assert_eq!(mac("tap=tap0").0[..3], [0x52, 0x54, 0]);
}
