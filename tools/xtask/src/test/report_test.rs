use super::Counts;

#[test]
fn a_report_is_read() {
    let output = b"\nrunning 3 tests\ntest a ... ok\ntest m::b ... FAILED\n\n\
        test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 1.0s\n";
    let counts = Counts::read(output, 101);
    assert_eq!(counts, Counts { passed: 12, failed: 1, ignored: 2, failures: vec!["m::b".into()] });
}

#[test]
fn an_end_without_a_report_is_a_failure() {
    let counts = Counts::read(b"running 3 tests\ntest a ... ok\n", 139);
    assert_eq!((counts.passed, counts.failed), (0, 1));
    assert!(counts.failures[0].contains("139"));
    let killed = Counts::read(b"", 137);
    assert!(killed.failures[0].contains("too long"));
}

#[test]
fn a_bad_exit_code_after_a_good_report_is_a_failure() {
    let counts = Counts::read(b"test result: ok. 1 passed; 0 failed; 0 ignored\n", 1);
    assert_eq!((counts.passed, counts.failed), (1, 1));
}
