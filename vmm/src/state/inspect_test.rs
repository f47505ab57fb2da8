use super::*;

#[test]
fn each_type_has_one_name() {
    let mut ids: Vec<_> = KNOWN.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), KNOWN.len());
}

#[test]
fn cbor_is_told_by_numbers() {
    let of = |bytes: &[u8]| value(&mut Decoder::new(bytes), 0).map(|value| value.to_string());
    let text = of(&[0xa3, 0x00, 0x18, 0xff, 0x01, 0x42, 0xab, 0x01, 0x02, 0x83, 0xf5, 0xf6, 0x20]);
    assert_eq!(text.unwrap(), r#"{"0":255,"1":"ab01","2":[true,null,-1]}"#);
    // What ends early, counts too much, or is too deep.
    assert_eq!(of(&[0x82, 0x01]), None);
    assert_eq!(of(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    assert_eq!(of(&[0x81; 100]), None);
    assert_eq!(of(&[0xfb]), None);
}
