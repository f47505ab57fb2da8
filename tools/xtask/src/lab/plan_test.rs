use super::{Program, quoted, script};
use std::process::Command;
use std::time::Duration;

#[test]
fn the_shell_reads_back_what_was_quoted() {
    for word in ["plain", "two words", "it's", "$HOME `id` \\ \" * \n end", ""] {
        let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}

#[test]
fn programs_are_run_in_order_with_environment_and_limit() {
    let programs =
        [Program::new(["/lab/a", "one two"]).env("K", "v w").limit(Duration::from_secs(7)), Program::new(["true"])];
    let text = script("word", &programs, true, true);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "word=word beat=yes");
    assert_eq!(lines[2..], ["run 0 7 env 'K=v w' '/lab/a' 'one two'", "run 1 600 'true'", "give_back"]);
}
