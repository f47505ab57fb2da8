use super::*;

fn feed(bytes: &[u8]) -> Vec<Step> {
    let mut escape = Escape::default();
    bytes.iter().map(|byte| escape.feed(*byte)).collect()
}

#[test]
fn plain_input_is_the_guests() {
    let all: Vec<u8> = (0..=255).filter(|byte| *byte != KEY).collect();
    assert_eq!(feed(&all), all.iter().map(|byte| Step::Pass(*byte)).collect::<Vec<_>>());
}

#[test]
fn the_key_begins_a_command() {
    let command = |key: u8| feed(&[KEY, key, b'x'])[1..].to_vec();
    assert_eq!(command(b'q'), [Step::Do(Command::Quit), Step::Pass(b'x')]);
    assert_eq!(command(b'Z'), [Step::Do(Command::Suspend), Step::Pass(b'x')]);
    assert_eq!(command(b'b'), [Step::Do(Command::Break), Step::Pass(b'x')]);
    assert_eq!(command(b'h'), [Step::Do(Command::Help), Step::Pass(b'x')]);
    assert_eq!(command(b'?'), [Step::Do(Command::Help), Step::Pass(b'x')]);
}

#[test]
fn the_key_twice_is_the_key() {
    assert_eq!(feed(&[KEY, KEY, KEY, b'q']), [Step::Wait, Step::Pass(KEY), Step::Wait, Step::Do(Command::Quit)]);
    assert_eq!(feed(&[KEY]), [Step::Wait]);
}
