use super::*;
use crate::{ArchKind, Config, Disk};

#[test]
fn it_is_written_as_it_is_read() {
    for (text, us, shown) in [("32us", 32, "32us"), ("0", 0, "0"), ("0us", 0, "0"), ("2ms", 2000, "2000us")] {
        let poll: Poll = text.parse().unwrap();
        assert_eq!((poll.duration(), poll.to_string().as_str()), (Duration::from_micros(us), shown));
        assert_eq!(shown.parse(), Ok(poll));
    }
    assert_eq!(Poll::default().to_string(), "32us");
}

#[test]
fn what_is_no_such_time_says_what_would_be() {
    for text in ["", "32", "us", "-1us", "+1us", "1.5us", "1s", "11ms", "10001us", "4294968ms", "9999999999us"] {
        assert_eq!(
            text.parse::<Poll>().unwrap_err().to_string(),
            format!(
                "`{text}` is not how long to poll: write whole microseconds such as `32us`, 10ms at most, or 0 for never"
            )
        );
    }
}

#[test]
fn a_file_may_say_zero_as_a_number() {
    let polls =
        |text: &str| Config::from_toml(text, "vm.toml".as_ref(), ArchKind::X86_64).map(|config| config.disk[0].poll);
    let disk = |poll: &str| format!("[[disk]]\nfile = 'a'\nformat = 'raw'\npoll = {poll}\n");
    assert_eq!(polls(&disk("0")).unwrap(), Some(Poll(0)));
    assert_eq!(polls(&disk("'1ms'")).unwrap(), Some(Poll(1000)));
    for wrong in ["32", "-1", "true"] {
        assert!(polls(&disk(wrong)).is_err(), "{wrong}");
    }
    assert_eq!("a,format=raw,poll=0".parse::<Disk>().unwrap().poll, Some(Poll(0)));
}
