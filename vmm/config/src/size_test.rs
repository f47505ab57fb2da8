use proptest::prelude::*;

use super::*;

#[test]
fn reads_what_people_write() {
    let read = |text: &str| text.parse::<Size>().unwrap().bytes();
    assert_eq!(read("512M"), 512 << 20);
    assert_eq!(read("1G"), 1 << 30);
    assert_eq!(read("2MiB"), 2 << 20);
    assert_eq!(read("2mib"), 2 << 20);
    assert_eq!(read("4k"), 4096);
    assert_eq!(read("65536B"), 65536);
    assert_eq!(read("16T"), 16 << 40);
    assert_eq!(read("0B"), 0);
    assert_eq!(read("15E"), 15 << 60);
}

#[test]
fn refuses_the_rest_and_says_why() {
    let refuse = |text: &str| text.parse::<Size>().unwrap_err();
    assert_eq!(refuse(""), SizeError::NoNumber("".into()));
    assert_eq!(refuse("M"), SizeError::NoNumber("M".into()));
    assert_eq!(refuse("-1M"), SizeError::NoNumber("-1M".into()));
    assert_eq!(refuse(" 1M"), SizeError::NoNumber(" 1M".into()));
    assert_eq!(refuse("512"), SizeError::NoUnit("512".into()));
    assert_eq!(refuse("1.5G"), SizeError::Fraction("1.5G".into()));
    assert_eq!(refuse("16E"), SizeError::TooLarge("16E".into()));
    assert_eq!(refuse("99999999999999999999M"), SizeError::TooLarge("99999999999999999999M".into()));
    for unit in ["MB", "Mi", "X", "M ", "Mib B", "ЖiB", "KЖ", "G1"] {
        assert_eq!(refuse(&format!("1{unit}")), SizeError::UnknownUnit { text: format!("1{unit}"), unit: unit.into() });
    }
    assert_eq!(refuse("512").to_string(), "size `512` has no unit: write `512M` for mebibytes, or `512B` for bytes");
}

#[test]
fn is_written_in_its_largest_whole_unit() {
    assert_eq!(Size::mib(512).to_string(), "512M");
    assert_eq!(Size::mib(1536).to_string(), "1536M");
    assert_eq!(Size::gib(1024).to_string(), "1T");
    assert_eq!(Size(4097).to_string(), "4097B");
    assert_eq!(Size(0).to_string(), "0B");
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(bytes: u64, shift in 0_u32..64) {
        let size = Size(bytes << shift);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }

    #[test]
    fn any_text_is_a_size_or_an_error(text in "\\PC{0,12}", number in "[0-9]{1,22}[a-zA-Zé]{0,4}") {
        let _ = text.parse::<Size>();
        let _ = number.parse::<Size>();
    }
}
