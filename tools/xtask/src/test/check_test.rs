use super::check;
use super::report::Counts;

#[test]
fn a_program_without_tests_fails() {
    let mut counts = Counts::default();
    check(&mut counts, false);
    assert_eq!(counts.failed, 1);

    let mut filtered = Counts::default();
    check(&mut filtered, true);
    assert_eq!(filtered.failed, 0);
}

#[test]
fn an_ignored_test_fails() {
    let mut counts = Counts { passed: 3, ignored: 2, ..Counts::default() };
    check(&mut counts, false);
    assert_eq!((counts.passed, counts.failed), (3, 2));
}
