use super::*;

#[test]
fn addresses_are_requesters() {
    let address = Address::from_bits(0x12fd);
    assert_eq!(address, Address { bus: 0x12, device: 31, function: 5 });
    assert_eq!((address.requester(), address.to_string()), (RequesterId(0x12fd), "12:1f.5".to_owned()));
    for bits in 0..=u16::MAX {
        assert_eq!(Address::from_bits(bits).requester().0, u32::from(bits));
    }
}

#[test]
fn places_are_read_as_they_are_written() {
    for place in [PciPlace::Root(0), PciPlace::Root(31), PciPlace::Port(0), PciPlace::Port(255)] {
        assert_eq!(place.to_string().parse::<PciPlace>().unwrap(), place);
    }
    for text in ["root:32", "port:256", "port", "slot:1", "root:-1", ""] {
        let error = text.parse::<PciPlace>().unwrap_err().to_string();
        assert!(error.contains(&format!("`{text}`")), "{error}");
    }
}
