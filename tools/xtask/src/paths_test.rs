use super::Scratch;
use std::fs;

#[test]
fn what_a_killed_run_left_goes_and_what_is_in_use_stays() {
    let parent = tempfile::tempdir().unwrap();
    let left = parent.path().join("left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    fs::write(left.join("disk.img"), "large").unwrap();

    let one = Scratch::below(parent.path()).unwrap();
    assert!(!left.exists());
    let two = Scratch::below(parent.path()).unwrap();
    assert!(one.path().exists() && two.path().exists());
    let path = one.path().to_owned();
    drop(one);
    assert!(!path.exists());
}
