use proptest::prelude::*;

use super::*;
use crate::{Cpus, Memory, Serial};

#[test]
fn doubled_commas_are_commas() {
    assert_eq!(split("a"), ["a"]);
    assert_eq!(split("a,b"), ["a", "b"]);
    assert_eq!(split("a,,b"), ["a,b"]);
    assert_eq!(split("a,,,b"), ["a,", "b"]);
    assert_eq!(split("a,,,,b"), ["a,,b"]);
    assert_eq!(split(",a,"), ["", "a", ""]);
    assert_eq!(split(""), [""]);
}

proptest! {
    #[test]
    fn a_path_with_doubled_commas_comes_back(path in "\\PC{1,20}") {
        let text = format!("file={}", path.replace(',', ",,"));
        prop_assert_eq!(text.parse::<Serial>().unwrap(), Serial::File(path.into()));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9=,MG]{0,24}") {
        let _ = text.parse::<Serial>();
        let _ = text.parse::<Memory>();
        let _ = text.parse::<Cpus>();
    }
}
