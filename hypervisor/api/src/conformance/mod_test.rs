//! A case that no list names would never run.

#[test]
fn every_case_is_listed() {
    let lists = include_str!("mod.rs").split_once("macro_rules! conformance_suite").expect("the macro is there").1;
    let modules = [
        include_str!("aarch64.rs"),
        include_str!("interrupts.rs"),
        include_str!("memory.rs"),
        include_str!("powers.rs"),
        include_str!("state.rs"),
        include_str!("vcpu.rs"),
        include_str!("x86_64.rs"),
    ];
    let listed: Vec<_> = lists.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut cases = 0;
    for function in modules.iter().flat_map(|text| text.split("\npub fn ").skip(1)) {
        let (name, _) = function.split_once(['<', '(']).expect("a function has arguments");
        assert!(listed.contains(&name), "{name}");
        cases += 1;
    }
    assert!(cases > 40, "{cases} cases");
}
