use super::*;

const RDCL_NO: u64 = 1 << 0;
const RSBA: u64 = 1 << 2;
const MDS_NO: u64 = 1 << 5;
const RRSBA: u64 = 1 << 19;

#[test]
fn bits_have_the_names_of_the_manual() {
    for (bit, expected) in [
        (0, "rdcl-no"),
        (6, "pschange-mc-no"),
        (13, "sbdr-ssdp-no"),
        (16, "16"),
        (17, "fb-clear"),
        (19, "rrsba"),
        (24, "pbrsb-no"),
        (28, "rfds-clear"),
        (29, "29"),
        (62, "its-no"),
        (63, "63"),
    ] {
        assert_eq!(name(bit), format!("arch-capabilities.{expected}"));
    }
    let mut all: Vec<_> = (0..64).map(name).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 64);
}

#[test]
fn a_host_has_what_was_shown_and_no_weakness_that_was_not() {
    let outcome = |shown, here| compare(shown, here).err().unwrap_or_default();
    for (shown, here) in [(0, 0), (0, MDS_NO), (RDCL_NO | MDS_NO, RDCL_NO | MDS_NO), (RSBA | RRSBA, 0), (RSBA, RSBA)] {
        assert_eq!(outcome(shown, here), "", "{shown:#x} {here:#x}");
    }
    let lacks = "the guest was shown what it does not have: arch-capabilities.";
    assert_eq!(outcome(RDCL_NO | MDS_NO, RDCL_NO), format!("{lacks}mds-no"));
    assert_eq!(outcome(RDCL_NO | 1 << 40, 0), format!("{lacks}rdcl-no, arch-capabilities.40"));
    let untold = "it has what the guest was not told of: arch-capabilities.";
    assert_eq!(outcome(0, RSBA | MDS_NO), format!("{untold}rsba"));
    assert_eq!(outcome(RSBA, RSBA | RRSBA), format!("{untold}rrsba"));
    assert_eq!(outcome(MDS_NO, RSBA), format!("{lacks}mds-no"), "the one that is lacking comes first");
}

#[test]
fn what_hosts_have_in_common_suits_both() {
    assert_eq!(common(RDCL_NO | MDS_NO | RSBA, MDS_NO | RRSBA), MDS_NO | RSBA | RRSBA);
    let values: Vec<u64> = (0..16)
        .map(|at| {
            [RDCL_NO, RSBA, MDS_NO, RRSBA]
                .iter()
                .enumerate()
                .filter(|(bit, _)| at >> bit & 1 == 1)
                .map(|(_, value)| value)
                .sum()
        })
        .collect();
    for one in &values {
        for other in &values {
            let both = common(*one, *other);
            assert_eq!(both, common(*other, *one));
            for host in [*one, *other] {
                assert_eq!((compare(both, host), could_show(both, host)), (Ok(()), Ok(())), "{one:#x} {other:#x}");
            }
        }
    }
}

#[test]
fn values_are_hexadecimal() {
    assert_eq!(
        (parse("0xc00e16d"), parse("0x0"), parse("0xffffffffffffffff")),
        (Some(0xc00e16d), Some(0), Some(u64::MAX))
    );
    for wrong in ["", "0x", "12", "0x1ffffffffffffffff", "0xg", "x1"] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
}
