use super::*;

#[test]
fn the_moment_stands_until_a_vcpu_runs() {
    let standstill = Standstill::default();
    let first = standstill.moment();
    assert_eq!(standstill.moment(), first);
    standstill.end();
    let second = standstill.moment();
    assert!(second > first);
    standstill.renew();
    let third = standstill.moment();
    assert!(third > second);
    assert_eq!(standstill.moment(), third);
}
