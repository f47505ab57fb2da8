use super::*;

#[test]
fn a_rate_is_a_number_and_a_burst() {
    let requests = |text: &str| text.parse::<Rate<Requests>>().map(|rate| rate.to_string());
    let bytes = |text: &str| text.parse::<Rate<Bytes>>().map(|rate| rate.to_string());
    for (text, shown) in [("1000", "1000/100"), ("1000/5000", "1000/5000"), ("1", "1/1")] {
        assert_eq!(requests(text).as_deref(), Ok(shown));
        assert_eq!(requests(shown).as_deref(), Ok(shown), "what is shown is read again");
    }
    for (text, shown) in [("100M", "100M/10M"), ("64KiB/2G", "64K/2G"), ("1B", "1B/1B")] {
        assert_eq!(bytes(text).as_deref(), Ok(shown));
        assert_eq!(bytes(shown).as_deref(), Ok(shown));
    }
}

#[test]
fn what_is_no_rate_says_how_to_write_one() {
    let requests = |text: &str| text.parse::<Rate<Requests>>().unwrap_err();
    let bytes = |text: &str| text.parse::<Rate<Bytes>>().unwrap_err();
    let how = "written as `1000`, or `1000/5000` with 5000 at once after a rest";
    for text in ["", "x", "-1", "+1", "1.5", "1/2/3", "1000/", "18446744073709551616"] {
        assert!(requests(text).ends_with(how), "{text}: {}", requests(text));
    }
    assert_eq!(
        requests("0"),
        "a rate must be at least 1: write it as `1000`, or `1000/5000` with 5000 at once after a rest"
    );
    assert_eq!(
        bytes("100"),
        "size `100` has no unit: write `100M` for mebibytes, or `100B` for bytes; a rate in a second is written as \
         `100M`, or `100M/1G` with 1 GiB at once after a rest"
    );
    assert_eq!(
        bytes("1M/0B"),
        "a rate must be at least 1: write it as `100M`, or `100M/1G` with 1 GiB at once after a rest"
    );
}
