use super::*;

#[test]
fn reads_what_it_writes() {
    let text = "01234567-89ab-cdef-0123-456789abcdef";
    let uuid: Uuid = text.parse().unwrap();
    assert_eq!(uuid.0[..5], [0x01, 0x23, 0x45, 0x67, 0x89]);
    assert_eq!(uuid.to_string(), text);
    assert_eq!(text.to_uppercase().parse(), Ok(uuid));
}

#[test]
fn refuses_what_is_none() {
    for text in [
        "",
        "01234567-89ab-cdef-0123-456789abcde",
        "0123456789abcdef0123456789abcdef",
        "g1234567-89ab-cdef-0123-456789abcdef",
    ] {
        let said = text.parse::<Uuid>().unwrap_err();
        assert_eq!(said, format!("`{text}` is no UUID: write it as 01234567-89ab-cdef-0123-456789abcdef"));
    }
    assert!("é1234567-89ab-cdef-0123-456789abcde".parse::<Uuid>().is_err());
}
