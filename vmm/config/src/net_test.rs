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
        device: NetDevice::VirtioNet,
        queues: 4,
        id: Some("lan".to_owned()),
        mac: Some(Mac([2, 0, 0, 0, 0, 0xab])),
        romfile: None,
        place: None,
    };
    assert_eq!(net, expected);
    assert_eq!(net.mac.unwrap().to_string(), "02:00:00:00:00:ab");
    for (text, message) in [
        ("id=x", "exactly one of tap=NAME and user is needed"),
        ("tap", "`tap`: found `true`, expected a text"),
        ("user,tap=t", "exactly one of tap=NAME and user is needed"),
        ("user,queues=2", "`queues` goes with `tap` only"),
        ("tap=t,device=ne2k_pci,queues=2", "`queues` goes with device=virtio-net only"),
        ("tap=t,queues=0", "`queues` must be 1 to 256"),
        ("tap=t,queue=2", "unknown key `queue`: did you mean `queues`?"),
        (
            "user,mac=01:00:00:00:00:00",
            "`mac`: `01:00:00:00:00:00` can't be a card's own address: the lowest bit of its first byte must be 0",
        ),
        ("user,mac=1:2", "`mac`: `1:2` is no Ethernet address: write it as 52:54:00:12:34:56"),
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
        net.fill_mac();
        net.mac.unwrap()
    };
    assert_eq!(mac("tap=tap0"), mac("tap=tap0,id=other"));
    assert_ne!(mac("tap=tap0"), mac("tap=tap1"));
    assert_eq!(mac("tap=tap0").0[..3], [0x52, 0x54, 0]);
}
