use super::*;

#[test]
fn the_moment_stands_until_a_vcpu_runs() {
    let standstill = Standstill::default();
    let first = standstill.moment();
    assert_eq!(standstill.moment(), first);
    standstill.end();
    assert!(standstill.moment() > first);
}

#[test]
fn frequencies_of_one_model_are_the_same() {
    assert!(is_same_frequency(2_500_000, 2_500_000));
    assert!(is_same_frequency(2_500_000, 2_500_625));
    assert!(!is_same_frequency(2_500_000, 2_500_626));
    assert!(!is_same_frequency(2_500_000, 2_400_000));
}
