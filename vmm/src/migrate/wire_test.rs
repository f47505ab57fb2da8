use proptest::prelude::*;

use super::*;

const ALL: [Kind; 11] = KINDS;

fn frame(kind: Kind, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    send(&mut bytes, kind, parts).unwrap();
    bytes
}

#[test]
fn kinds_have_their_numbers_for_ever() {
    let numbers: Vec<_> = ALL.iter().map(|kind| *kind as u32).collect();
    assert_eq!(numbers, (0..11).collect::<Vec<_>>());
    assert_eq!((Kind::Pages as u32, Kind::Go as u32, Kind::Answer as u32), (2, 6, 10));
    assert_eq!(frame(Kind::Answer, &[&[1]]), *b"SKPM\x0a\0\0\0\x01\0\0\0\0\0\0\0\x01");
}

#[test]
fn what_is_no_frame_is_refused() {
    let mut payload = Vec::new();
    let mut refusal = |bytes: &[u8]| receive(bytes, &mut payload).unwrap_err().to_string();
    assert!(refusal(b"GET / HTTP/1.1\r\n\r\n").contains("begins with something else"));
    assert!(refusal(&frame(Kind::Go, &[&[1]])).contains("larger than any"));
    assert!(refusal(&frame(Kind::Hello, &[&[0; 100]])[..60]).contains("has hung up"));
    let mut endless = frame(Kind::State, &[]);
    endless[8..].fill(0xff);
    assert!(refusal(&endless).contains("larger than any"));
    let mut payload = Vec::new();
    let text = expect(frame(Kind::Refused, &[b"no room"]).as_slice(), Kind::Accept, &mut payload).unwrap_err();
    assert_eq!(text.to_string(), "the other side refuses: no room");
    let text = expect(frame(Kind::Go, &[]).as_slice(), Kind::Accept, &mut payload).unwrap_err().to_string();
    assert!(text.contains("does not belong here (Go)"), "{text}");
    // Nor is it read.
    let text = expect(&frame(Kind::State, &[&[0; 9]])[..16], Kind::Hello, &mut payload).unwrap_err().to_string();
    assert!(text.contains("does not belong here (State)"), "{text}");
    let mut long = Vec::new();
    refuse(&mut long, &"ä".repeat(4000));
    assert_eq!(receive(long.as_slice(), &mut payload).unwrap(), Kind::Refused);
    assert_eq!(String::from_utf8(payload).unwrap(), "ä".repeat(2048));
}

#[test]
fn no_machine_has_stood_for_centuries() {
    let open = |stood_nanos| {
        let state = State { records: Records::default(), stood_nanos, paused: false };
        State::open(&encode(&state)).map(|state| state.stood_nanos).map_err(|error| error.to_string())
    };
    assert_eq!([0, 1 << 62].map(open), [Ok(0), Ok(1 << 62)]);
    for nanos in [(1 << 62) + 1, u64::MAX] {
        let text = open(nanos).unwrap_err();
        assert!(text.ends_with(&format!("it says that the machine has stood for {nanos} ns, centuries")), "{text}");
    }
}

proptest! {
    #[test]
    fn any_frame_arrives_as_it_was_sent(kind in 0_usize..11, parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
        let (kind, sent) = (ALL[kind], parts.concat());
        prop_assume!(sent.len() <= kind.most());
        let bytes = frame(kind, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut payload = vec![7];
        prop_assert_eq!(receive(bytes.as_slice(), &mut payload).unwrap(), kind);
        prop_assert_eq!(payload, sent);
    }

    #[test]
    fn fuzz_any_bytes_are_a_frame_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..120), magic in any::<bool>()) {
        if magic && bytes.len() >= 16 {
            bytes[..4].copy_from_slice(b"SKPM");
            bytes[5..8].fill(0);
            bytes[9..16].fill(0);
        }
        let mut payload = Vec::new();
        if receive(bytes.as_slice(), &mut payload).is_ok() {
            prop_assert!(payload.len() + 16 <= bytes.len());
            let _ = decode::<Hello>(&payload);
            let _ = State::open(&payload);
        }
    }
}
