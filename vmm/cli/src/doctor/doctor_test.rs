use super::*;

#[test]
fn findings_are_lined_up_with_their_mends() {
    let findings = [
        Finding::new("kvm", "API version 12", Verdict::Ok),
        Finding::new("huge pages", "none\nat all", Verdict::Missing).mend("set some aside"),
    ];
    let expected = "ok       kvm         API version 12\n\
                    missing  huge pages  none\n                     at all\n                     try: set some aside\n\
                    \nThis host runs guests (0 limited, 1 missing).\n";
    assert_eq!(text(&findings), expected);
}

#[test]
fn what_is_fatal_is_summed_up() {
    let findings = [Finding::new("kvm", "no /dev/kvm", Verdict::Fatal)];
    assert_eq!(fatal(&findings), 1);
    assert!(text(&findings).ends_with("\nThis host runs no guest yet: mend what is fatal (1) first.\n"));
}
