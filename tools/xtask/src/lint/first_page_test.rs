use super::super::source::Source;
use super::check_one;

fn found(text: &str) -> bool {
    check_one(&Source { path: "a/src/lib.rs".into(), text: text.to_owned() }).is_some()
}

#[test]
fn a_first_page_says_something() {
    let page = "//! One two three four five six seven eight nine ten.\n//!\n".repeat(3);
    assert!(!found(&format!("{page}\nuse a;\n")));
    assert!(found(&format!("use a;\n{page}")));
    assert!(found("//! (to be written)\n"));
    assert!(found(""));
}
