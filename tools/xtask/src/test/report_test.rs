use super::{Arch, Counts, went_astray};

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

#[test]
fn a_guest_that_runs_on_is_no_failure_of_another_kind() {
    let output = b"no end within 300s: its guest runs on and says nothing; so far:\n";
    let failed = |failed| Counts { failed, ..Counts::default() };
    assert!(went_astray(Arch::Aarch64, &failed(1), output));
    // One of several may be anything, and so may one that was waited for while its guest slept.
    assert!(!went_astray(Arch::Aarch64, &failed(2), output) && !went_astray(Arch::Aarch64, &failed(0), output));
    assert!(!went_astray(Arch::Aarch64, &failed(1), b"no end within 300s; so far:\n"));
    assert!(!went_astray(Arch::X86_64, &failed(1), output));
}
