use super::twice;

#[test]
fn two_versions_of_one_crate_are_found() {
    let packages =
        [("vm-memory", "0.17.0"), ("vm-memory", "0.18.0"), ("vhost", "0.18.0"), ("syn", "2.0.0"), ("syn", "3.0.0")];
    let found = twice(packages.into_iter());
    assert_eq!(found.len(), 1);
    assert!(found[0].message.contains("vm-memory is there as 0.17.0 and 0.18.0"), "{}", found[0]);
}
