use super::*;

#[test]
fn figures_are_found_between_what_else_is_said() {
    let said = b"[    1.0] nvme\r\nbench: NVMe, 4 KiB randread, depth 32: 1234\r\nbench: NVMe, 4 KiB randread, depth 1: \r\nbench: x: 0\r\n";
    assert_eq!(readings(said), [("NVMe, 4 KiB randread, depth 32".to_owned(), 1234.0)]);
}

#[test]
fn the_guest_finds_all_that_it_is_to_do() {
    assert!(inside(1000).len() <= 4096);
}
