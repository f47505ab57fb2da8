use super::*;

#[test]
fn a_place_is_read_as_it_is_written() {
    for place in [Place::Root(1), Place::Root(31), Place::Port(0), Place::Port(14)] {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    for text in ["", "root", "root:", "root:256", "slot:1", "1", "port:-1"] {
        let error = text.parse::<Place>().unwrap_err();
        assert_eq!(error, format!("`{text}` is no place: write root:DEVICE or port:NUMBER"));
    }
}

#[test]
fn the_chipset_and_the_ports_keep_their_places() {
    let mut places = Places::new(MachineVersion::Q35V1, 2).unwrap();
    for place in [Place::Root(0), Place::Root(16), Place::Root(17), Place::Root(31), Place::Root(32), Place::Port(2)] {
        assert!(matches!(places.take(place, "x"), Err(Conflict::NoPlace { .. })), "{place}");
    }
    let all: Vec<_> = std::iter::from_fn(|| places.next("x").ok()).collect();
    let expected: Vec<_> = (1..16).chain(18..31).map(Place::Root).collect();
    assert_eq!(all, expected);
    assert_eq!(places.next("y"), Err(Conflict::NoPlaceLeft { id: "y".to_owned() }));
    let mut board = Places::new(MachineVersion::VirtV1, 15).unwrap();
    assert_eq!(board.take(Place::Root(31), "x"), Ok(()));
    assert_eq!(board.take(Place::Port(14), "x"), Ok(()));
    assert!(matches!(Places::new(MachineVersion::VirtV1, 16), Err(Conflict::Ports { ports: 16, most: 15 })));
}
