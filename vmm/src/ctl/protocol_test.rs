use std::path::Path;

use proptest::prelude::*;
use skep_config::DiskDevice;

use super::*;

fn command(text: &str) -> Result<Command, Failure> {
    Request::read(text.as_bytes()).command
}

fn refused(text: &str) -> (ErrorKind, String) {
    let failure = command(text).unwrap_err();
    (failure.kind, failure.message)
}

#[test]
fn a_request_has_a_number_a_command_and_its_arguments() {
    let request = Request::read(br#"{"id":7,"command":"device-remove","arguments":{"id":"data"}}"#);
    let remove = DeviceRemove { id: "data".to_owned(), wait: true, again: false };
    assert_eq!(request, Request { id: Some(7), command: Ok(Command::DeviceRemove(remove)) });
    assert_eq!(Request::read(br#"{"command":"quit"}"#), Request { id: None, command: Ok(Command::Quit) });
    for name in COMMANDS {
        let failure = command(&format!("{{\"command\":\"{name}\"}}")).err();
        assert_ne!(failure.map(|failure| failure.kind), Some(ErrorKind::UnknownCommand), "{name}");
    }
}

#[test]
fn devices_are_written_as_in_a_config() {
    let Ok(Command::DiskAdd(text)) =
        command(r#"{"command":"disk-add","arguments":{"disk":"a.img,format=raw,device=virtio-blk,id=x"}}"#)
    else {
        panic!("it is a disk")
    };
    assert_eq!((text.device, text.id.as_deref()), (DiskDevice::VirtioBlk, Some("x")));
    let table =
        r#"{"command":"disk-add","arguments":{"disk":{"file":"a.img","format":"raw","device":"virtio-blk","id":"x"}}}"#;
    assert_eq!(command(table), Ok(Command::DiskAdd(text)));
    // As a client writes them.
    let disk: Disk = "a.img,format=raw,block-size=4096,readonly,place=port:1".parse().unwrap();
    let net: Net = "tap=t,queues=2,mac=02:00:00:00:00:01".parse().unwrap();
    let written =
        |name: &str, arguments: String| command(&format!("{{\"command\":\"{name}\",\"arguments\":{arguments}}}"));
    let arguments = serde_json::to_string(&DiskAdd { disk: disk.clone() }).unwrap();
    assert_eq!(written("disk-add", arguments), Ok(Command::DiskAdd(Box::new(disk))));
    let arguments = serde_json::to_string(&NetAdd { net: net.clone() }).unwrap();
    assert_eq!(written("net-add", arguments), Ok(Command::NetAdd(net)));
}

#[test]
fn sizes_are_written_as_in_a_config() {
    let balloon = |text: &str| command(&format!("{{\"command\":\"balloon\",\"arguments\":{text}}}"));
    assert_eq!(balloon("{}"), Ok(Command::Balloon(BalloonTarget { size: None })));
    let target = BalloonTarget { size: Some(Size(256 << 20)) };
    assert_eq!(balloon(r#"{"size":"256M"}"#), Ok(Command::Balloon(target.clone())));
    assert_eq!(balloon(&serde_json::to_string(&target).unwrap()), Ok(Command::Balloon(target)));
    assert_eq!(balloon(r#"{"size":256}"#).unwrap_err().kind, ErrorKind::BadArguments);
    let resize = r#"{"command":"console-resize","arguments":{"columns":120,"rows":40}}"#;
    assert_eq!(command(resize), Ok(Command::ConsoleResize(ConsoleResize { columns: 120, rows: 40 })));
}

#[test]
fn what_is_no_request_is_told_why() {
    for text in [
        "",
        "x",
        "[]",
        "7",
        "{}",
        "{\"id\":-1,\"command\":\"quit\"}",
        "{\"command\":\"quit\",\"comand\":1}",
        "{\"command\":\"quit\"} {}",
    ] {
        assert_eq!(refused(text).0, ErrorKind::BadRequest, "{text}");
    }
    let (kind, message) = refused(r#"{"command":"device-add"}"#);
    assert_eq!((kind, message.as_str()), (ErrorKind::UnknownCommand, "there is no command `device-add`"));
    for (text, message) in [
        (r#"{"command":"disk-add"}"#, "disk-add: missing field `disk`"),
        (
            r#"{"command":"disk-add","arguments":{"disk":"a.img"}}"#,
            "disk-add: `a.img`: the format is never guessed, since its guest writes what a guess looks at: add format=raw or format=qcow2",
        ),
        (
            r#"{"command":"disk-add","arguments":{"disk":"a,format=raw,fromat=x"}}"#,
            "disk-add: unknown key `fromat`: did you mean `format`?",
        ),
        (
            r#"{"command":"device-remove","arguments":{"id":7}}"#,
            "device-remove: invalid type: integer `7`, expected a string",
        ),
        (
            r#"{"command":"disk-resize","arguments":{"id":"a","size":7}}"#,
            "disk-resize: unknown field `size`, expected `id`",
        ),
    ] {
        assert_eq!(refused(text), (ErrorKind::BadArguments, message.to_owned()), "{text}");
    }
}

#[test]
fn a_response_is_one_line_of_success_or_of_failure() {
    let text = |id, outcome| String::from_utf8(response(id, &outcome)).unwrap();
    assert_eq!(text(Some(3), Ok(Answer::Removed(Removed { gone: true }))), "{\"id\":3,\"result\":{\"gone\":true}}\n");
    assert_eq!(text(Some(4), Ok(Answer::Nothing(Nothing {}))), "{\"id\":4,\"result\":{}}\n");
    let failure = Failure::new(ErrorKind::NotRemovable, "it can't\nleave\n  try: another");
    let expected =
        "{\"id\":null,\"error\":{\"kind\":\"not-removable\",\"message\":\"it can't\\nleave\",\"try\":\"another\"}}\n";
    assert_eq!(text(None, Err(failure.clone())), expected);
    assert_eq!(failure.to_string(), "it can't\nleave\n  try: another");
    let later: Failure = serde_json::from_str(r#"{"kind":"of-tomorrow","message":"no","more":1}"#).unwrap();
    assert_eq!((later.kind, later.mend), (ErrorKind::Other, None));
}

#[test]
fn errors_keep_their_causes_and_what_mends_them() {
    let path = Path::new("/a.img").to_owned();
    let locked = DeviceError::Disk {
        source: BlockError::Locked { path, holder: "process 7 (skep)".to_owned() },
        mend: "\n  try: a copy",
    };
    let failure = Failure::from(Error::Device { id: "data".to_owned(), source: Box::new(locked) });
    assert_eq!(failure.kind, ErrorKind::FileLocked);
    assert_eq!(failure.mend.as_deref(), Some("a copy"));
    let expected = "device `data` can't be made: `/a.img` is in use by process 7 (skep): a disk image has one writer, or any number of readers";
    assert_eq!(failure.message, expected);
}

skep_fuzzing::targets! {
    "control-arguments": fn fuzz_any_arguments_are_a_command_or_a_failure(
        name in prop::sample::select(COMMANDS.to_vec()),
        arguments in "(\\{|\\}|\\[|\\]|\"|:|,|id|disk|net|true|[0-9]|\\\\u00|[a-z=]){0,30}",
    ) {
        let text = format!("{{\"command\":\"{name}\",\"arguments\":{arguments}}}");
        let outcome = Request::read(text.as_bytes()).command;
        let line = response(None, &outcome.map(|_| Answer::Nothing(Nothing {})));
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}

skep_fuzzing::targets! {
    "control-requests": fn fuzz_any_bytes_are_a_request_or_a_failure(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::read(&bytes);
    }
}
