use super::*;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Connection::new(1, ours), theirs)
}

fn lines(connection: &mut Connection) -> Vec<String> {
    let text = |input| match input {
        Input::Line(line) => String::from_utf8(line).unwrap(),
        Input::TooLong => "TOO LONG".to_owned(),
    };
    std::iter::from_fn(|| connection.next()).map(text).collect()
}

/// Reads until there is nothing, with the lines that come of it.
fn read_all(connection: &mut Connection) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let before = connection.input.len();
        connection.read();
        let new = lines(connection);
        if new.is_empty() && connection.input.len() == before {
            return all;
        }
        all.extend(new);
    }
}

#[test]
fn lines_come_whole() {
    let (mut connection, mut client) = pair();
    client.write_all(b"one\n\n  \ntw").unwrap();
    assert_eq!(read_all(&mut connection), ["one"]);
    client.write_all(b"o\r\nthree").unwrap();
    assert_eq!(read_all(&mut connection), ["two\r"]);
    drop(client);
    assert_eq!(read_all(&mut connection), [""; 0], "half a request is none");
    assert_eq!(connection.wanted(), None);
}

#[test]
fn a_line_has_a_longest_length() {
    for (length, expected) in [(MOST_LINE, "x".repeat(MOST_LINE)), (MOST_LINE + 1, "TOO LONG".to_owned())] {
        for end in ["\nnext\n", ""] {
            let (mut connection, mut client) = pair();
            let text = "x".repeat(length) + end;
            let writer = std::thread::spawn(move || client.write_all(text.as_bytes()).map(|()| client));
            let mut all = Vec::new();
            while all.is_empty() && !(writer.is_finished() && connection.input.len() == length) {
                all = read_all(&mut connection);
            }
            assert!(connection.input.len() <= MOST_LINE + CHUNK);
            match (end, length > MOST_LINE) {
                ("", false) => assert!(all.is_empty()),
                _ => assert_eq!(all.first(), Some(&expected)),
            }
            if length > MOST_LINE {
                assert_eq!(connection.wanted(), None, "nothing follows");
            }
            drop(connection);
            let _ = writer.join().unwrap();
        }
    }
}

#[test]
fn few_requests_are_under_way() {
    let (mut connection, mut client) = pair();
    client.write_all("x\n".repeat(MOST_PENDING + 5).as_bytes()).unwrap();
    connection.read();
    let mut taken = 0;
    while connection.next().is_some() {
        connection.begin();
        taken += 1;
    }
    assert_eq!(taken, MOST_PENDING);
    assert_eq!(connection.wanted(), Some(EventSet::empty()), "nothing is read");
    connection.finish();
    assert_eq!(connection.wanted(), Some(EventSet::IN));
    assert!(connection.next().is_some());
}

#[test]
fn who_does_not_read_is_not_listened_to() {
    let (mut connection, mut client) = pair();
    client.write_all(b"x\n").unwrap();
    connection.read();
    let mut written = 0;
    while connection.output.len() < MOST_OUTPUT {
        connection.write(&[b'y'; 1000]);
        written += 1000;
    }
    assert_eq!((connection.wanted(), connection.next()), (Some(EventSet::OUT), None));
    let mut all = vec![0; written];
    let mut read = 0;
    while read < written {
        read += client.read(&mut all[read..]).unwrap();
        connection.flush();
    }
    assert_eq!((connection.wanted(), lines(&mut connection)), (Some(EventSet::IN), vec!["x".to_owned()]));
    drop(client);
    connection.write(b"z");
    assert_eq!(connection.wanted(), Some(EventSet::IN), "what it has said is heard");
    assert_eq!(read_all(&mut connection), [""; 0]);
    assert_eq!(connection.wanted(), None, "nobody is there");
}
