use std::sync::atomic::{AtomicU32, Ordering};

use clap::{Arg, Parser};

use super::*;

static DESCRIBED: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
struct Counted(String);

impl Args for Counted {
    fn augment_args(command: Command) -> Command {
        DESCRIBED.fetch_add(1, Ordering::SeqCst);
        command.arg(Arg::new("word").required(true))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Counted {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Ok(Self(matches.get_one::<String>("word").cloned().unwrap_or_default()))
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), Error> {
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum Either {
    Described(Later<Counted>),
    Other,
}

#[derive(Debug, Parser)]
struct Whole {
    #[command(subcommand)]
    command: Either,
}

#[test]
fn what_is_not_used_is_not_described() {
    assert!(matches!(Whole::try_parse_from(["whole", "other"]).unwrap().command, Either::Other));
    assert_eq!(DESCRIBED.load(Ordering::SeqCst), 0);
    let Either::Described(Later(Counted(word))) =
        Whole::try_parse_from(["whole", "described", "a word"]).unwrap().command
    else {
        panic!("another subcommand");
    };
    assert_eq!((word.as_str(), DESCRIBED.load(Ordering::SeqCst)), ("a word", 1));
    let refused = Whole::try_parse_from(["whole", "described"]).unwrap_err();
    assert!(refused.to_string().contains("<word>"), "{refused}");
}
