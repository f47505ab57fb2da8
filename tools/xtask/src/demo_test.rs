use super::{Show, Watch};

#[test]
fn the_greeting_is_seen_however_the_bytes_come() {
    let console = b"[    0.1] Linux\r\nskep: hello from Debian guest init: Linux 6.1\r\nskep: cpus 1\r\n";
    for size in 1..console.len() {
        let mut watch = Watch::new(Show::Init.mark());
        console.chunks(size).for_each(|chunk| watch.see(chunk));
        assert_eq!(watch.seen.expect("a greeting").0, "Linux 6.1");
    }
}

#[test]
fn words_like_it_are_no_greeting() {
    let mut watch = Watch::new(Show::Init.mark());
    watch.see(b"skep: hello from nobody\nskep: hello from Debian guest init: no line end");
    assert!(watch.seen.is_none());
}
