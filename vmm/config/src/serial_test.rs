use super::*;

fn read(text: &str) -> Result<Serial, String> {
    text.parse().map_err(|problem: crate::Problem| problem.to_string())
}

#[test]
fn reads_each_place() {
    assert_eq!(read("stdio"), Ok(Serial::Stdio));
    assert_eq!(read("none"), Ok(Serial::None));
    assert_eq!(read("file=a/b.log"), Ok(Serial::File("a/b.log".into())));
    assert_eq!(read("file=a,,b=c.log"), Ok(Serial::File("a,b=c.log".into())));
    assert_eq!(read("pty"), Ok(Serial::Pty { link: None }));
    assert_eq!(read("pty,link=/run/vm"), Ok(Serial::Pty { link: Some("/run/vm".into()) }));
    assert_eq!(read("socket=/run/vm"), Ok(Serial::Socket("/run/vm".into())));
}

#[test]
fn refuses_none_and_several() {
    let refuse = |text: &str| read(text).unwrap_err();
    let one = "exactly one of stdio, file=FILE, pty, socket=PATH and none is needed";
    assert_eq!(refuse("stdio=false"), one);
    assert_eq!(refuse("stdio,none"), one);
    assert_eq!(refuse("file=a,socket=b"), one);
    assert_eq!(refuse("stdio,link=a"), "`link` goes with `pty` only");
    assert_eq!(refuse("file="), "`file` is empty: a path is needed");
    assert_eq!(refuse("socket="), "`socket` is empty: a path is needed");
    assert_eq!(refuse("pty,link="), "`link` is empty: a path is needed");
    assert_eq!(refuse("stdoi"), "unknown key `stdoi`: did you mean `stdio`?");
    assert_eq!(refuse(""), "unknown key ``: the keys here are stdio, file, pty, link, socket, none");
}
