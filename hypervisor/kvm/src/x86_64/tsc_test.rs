use super::*;

#[test]
fn the_moment_stands_until_a_vcpu_runs() {
    let standstill = Standstill::default();
    let first = standstill.moment();
    assert_eq!(standstill.moment(), first);
    standstill.end();
    assert!(standstill.moment() > first);
}
