use super::{APPLETS, GUEST_INIT, HOST_INIT};

#[test]
fn applets_are_named_once_and_in_order() {
    let names: Vec<_> = APPLETS.split_whitespace().collect();
    assert!(names.len() > 50);
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
}

#[test]
fn scripts_pass_the_shells_own_check() {
    for script in [GUEST_INIT, HOST_INIT] {
        let status = std::process::Command::new("sh").args(["-n", "-c", script]).status().unwrap();
        assert!(status.success());
    }
}
