use super::*;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_reading_is_found_among_other_lines() {
    let resident = Resident { overhead: 520, anonymous: 4, guest: 6144 };
    let counters = vec![("exits".to_owned(), 7), ("io_exits".to_owned(), 3)];
    let reading = Reading { time: Duration::from_nanos(1_234_567), resident, counters };
    assert_eq!(reading.counter("io_exits"), 3);
    assert_eq!(reading.counter("halt_exits"), 0);
    assert_eq!(Reading::find(&format!("some words\n{reading}\r\nothers\n")), Some(reading));
    assert_eq!(Reading::find("stopwatch: 1 2 3"), None);
}

#[test]
fn text_is_found_wherever_it_is_cut() {
    assert!(wait_for("its guest says hello".as_bytes(), b"says").is_ok());
    let error = wait_for("its guest".as_bytes(), b"says").unwrap_err();
    assert!(error.to_string().contains("its guest"), "{error}");
}

#[test]
fn a_program_is_timed_and_weighed() {
    // Any mapping will do for a guest's memory of one page.
    let reading = measure(Command::new("sh").args(["-c", "echo up; kill -STOP $$"]), "up", 4096, LIMIT).unwrap();
    assert!(reading.resident.guest > 0);
    let silent = measure(&mut Command::new("true"), "up", 4096, LIMIT).unwrap_err();
    assert_eq!(silent.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_program_that_says_nothing_is_ended() {
    // The shortest is over before the program has started.
    for limit in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(100)] {
        let silent = measure(Command::new("tail").args(["-f", "/dev/null"]), "up", 4096, limit).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::UnexpectedEof);
    }
}
