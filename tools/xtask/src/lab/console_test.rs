use super::{Console, Event};

const STREAM: &[u8] =
    b"boot\r\n\x1eword start 0\nhello\nno new\x1eword alive\nline\x1eword exit 0 3\n\x1eother exit 1 0\n\x1eword nonsense\n\x1eword end\nPower down\n";

fn expected() -> Vec<Event> {
    vec![
        Event::Output(b"boot\r\n".to_vec()),
        Event::Start(0),
        Event::Output(b"hello\nno new".to_vec()),
        Event::Alive,
        Event::Output(b"line".to_vec()),
        Event::Exit(0, 3),
        Event::Output(b"\x1eother exit 1 0\n\x1eword nonsense\n".to_vec()),
        Event::End,
        Event::Output(b"Power down\n".to_vec()),
    ]
}

#[test]
fn marks_are_told_from_output() {
    assert_eq!(Console::new("word").feed(STREAM), expected());
}

#[test]
fn it_does_not_matter_how_the_bytes_come() {
    for size in 1..STREAM.len() {
        let mut console = Console::new("word");
        let mut joined: Vec<Event> = Vec::new();
        for event in STREAM.chunks(size).flat_map(|chunk| console.feed(chunk)) {
            match (joined.last_mut(), event) {
                (Some(Event::Output(before)), Event::Output(more)) => before.extend(more),
                (_, event) => joined.push(event),
            }
        }
        assert_eq!(joined, expected(), "in pieces of {size}");
        assert!(console.rest().is_empty());
    }
}

#[test]
fn a_prompt_without_a_newline_comes_through_at_once() {
    assert_eq!(Console::new("word").feed(b"login: "), [Event::Output(b"login: ".to_vec())]);
}

#[test]
fn a_mark_cut_off_is_given_back_in_the_end() {
    let mut console = Console::new("word");
    assert_eq!(console.feed(b"\x1eword exi"), []);
    assert_eq!(console.rest(), b"\x1eword exi");
}
