use super::*;

fn line(message: &str, fields: &str) -> Line {
    Line { head: "[ 0.5 warn  vmm]".to_owned(), message: message.to_owned(), fields: fields.to_owned() }
}

#[test]
fn lines_end_as_the_terminal_wants_them() {
    assert_eq!(line("text", " a=1").finish(false), "[ 0.5 warn  vmm] text a=1\n");
    assert_eq!(line("text", "").finish(true), "[ 0.5 warn  vmm] text\r\n");
    assert_eq!(line("two\nlines", "").finish(true), "[ 0.5 warn  vmm] two\r\n    lines\r\n");
}

#[test]
fn control_characters_are_shown_not_obeyed() {
    assert_eq!(line("a\x1b[2Jb\rc\td", "").finish(false), "[ 0.5 warn  vmm] a\\u{1b}[2Jb\\rc\td\n");
}

#[test]
fn levels_are_filtered() {
    for (level, shown) in
        [(LogLevel::Off, 0), (LogLevel::Error, 1), (LogLevel::Warn, 2), (LogLevel::Debug, 4), (LogLevel::Trace, 5)]
    {
        let levels = [
            tracing::Level::ERROR,
            tracing::Level::WARN,
            tracing::Level::INFO,
            tracing::Level::DEBUG,
            tracing::Level::TRACE,
        ];
        assert_eq!(levels.into_iter().filter(|one| *one <= filter(level)).count(), shown, "{level:?}");
    }
}
