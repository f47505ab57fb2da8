use super::*;

#[test]
fn figures_are_found_between_what_else_is_said() {
    let said = b"[    1.0] kvm\r\nstate: saved, in all: 1500\r\nstate: migrated, standstill: \r\n";
    assert_eq!(told(said, MARK), [("saved, in all".to_owned(), 1500.0)]);
}

#[test]
fn each_figure_is_one_that_the_script_tells() {
    for what in FIGURES {
        assert!(SCRIPT.contains(&format!("'{what}'")), "{what}");
    }
    assert!(THEIRS.iter().all(|what| FIGURES.contains(what)));
}
