use super::*;

fn watched(command: &mut Command, worked: Duration) -> Qemu {
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let since = Instant::now().checked_sub(REST).unwrap();
    Qemu { child, console: None, start: Instant::now(), worked: (since, worked) }
}

#[test]
fn a_host_that_does_nothing_is_lost() {
    let mut resting = watched(Command::new("sleep").arg("1000"), Duration::ZERO);
    let error = resting.look_whether_it_works().unwrap_err();
    assert!(error.downcast_ref::<HostLost>().is_some(), "{error}");
    // It has been looked at just now.
    resting.look_whether_it_works().unwrap();
}

#[test]
fn work_is_what_a_process_does_and_waits_to_do() {
    let working = watched(Command::new("sh").args(["-c", "while :; do :; done"]), Duration::ZERO);
    while work(working.child.id()) < Duration::from_millis(50) {
        std::thread::yield_now();
    }
    let id = working.child.id();
    drop(working);
    assert_eq!(work(id), Duration::ZERO, "it has ended");
    let second = Duration::from_secs(1);
    assert!(stands_still(second * 19, second * 100) && !stands_still(second * 20, second * 100));
}
