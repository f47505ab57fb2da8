use super::*;

#[test]
fn reads_what_it_writes() {
    let text = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let seed: RngSeed = text.parse().unwrap();
    assert_eq!(seed.0[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(seed.0[31], 0xff);
    assert_eq!(seed.to_string(), text);
    assert_eq!(text.to_uppercase().parse(), Ok(seed));
}

#[test]
fn refuses_other_lengths_and_letters() {
    let refuse = |text: String| text.parse::<RngSeed>().unwrap_err();
    assert_eq!(refuse("00".repeat(31)), "a seed is 64 hexadecimal digits, and this has 62 characters");
    assert_eq!(refuse("0".repeat(63) + "g"), "a seed is 64 hexadecimal digits, and this has 64 characters");
    assert_eq!(refuse("é".repeat(64)), "a seed is 64 hexadecimal digits, and this has 64 characters");
    assert_eq!(refuse(String::new()), "a seed is 64 hexadecimal digits, and this has 0 characters");
}
