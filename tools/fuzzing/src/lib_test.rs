use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

fn numbers() -> impl Strategy<Value = (Vec<u16>, u64)> {
    (proptest::collection::vec(any::<u16>(), 0..20), 3u64..9)
}

#[test]
fn the_same_bytes_are_the_same_case_and_other_bytes_another() {
    let case = |bytes: &[u8]| {
        let seen = RefCell::new(None);
        Source::Bytes(bytes).drive(&numbers(), |value| {
            *seen.borrow_mut() = Some(value);
            Ok(())
        });
        seen.into_inner().unwrap()
    };
    let bytes: Vec<u8> = (0..=255).map(|byte: u8| byte.wrapping_mul(37)).collect();
    assert_eq!(case(&bytes), case(&bytes));
    assert_ne!(case(&bytes), case(&bytes[9..]));
    // None are a case as well.
    for bytes in [&[][..], &[0; 4096], &[0xff; 4096]] {
        assert!((3..9).contains(&case(bytes).1));
    }
}

#[test]
#[should_panic(expected = "too large")]
fn what_fails_for_bytes_panics() {
    Source::Bytes(&[0xff; 64]).drive(&any::<u64>(), |_| Err(TestCaseError::fail("too large")));
}

#[test]
#[should_panic(expected = "minimal failing input: 100")]
fn a_seeded_case_that_fails_is_made_small() {
    Source::Seeded(None).drive(&(0u32..1_000_000), |value| {
        prop_assert!(value < 100);
        Ok(())
    });
}

#[test]
#[should_panic(expected = "holds no file")]
fn a_corpus_without_files_is_a_failure() {
    Source::Corpus("no-such-target", env!("CARGO_MANIFEST_DIR")).drive(&any::<u8>(), |_| Ok(()));
}
