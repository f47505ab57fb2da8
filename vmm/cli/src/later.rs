//! Parts of the command line that are described when they are needed: to describe all of it takes longer than to begin a machine.
//!
//! clap's own `#[command(defer = true)]` would let what arguments are documented by replace what their subcommand is, and leaves `help`'s part out of completions.

use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::Resettable;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};

#[cfg(test)]
#[path = "later_test.rs"]
mod test;

/// A subcommand's arguments, which are described when it is the one that is used, or shown.
#[derive(Debug)]
pub(crate) struct Later<T>(pub(crate) T);

/// Whether nothing is left for later: who goes through the whole command line does not ask for each part.
static ALL: AtomicBool = AtomicBool::new(false);

/// Has everything be described at once from now on.
pub(crate) fn describe_all() {
    ALL.store(true, Ordering::Relaxed);
}

impl<T: Args> Args for Later<T> {
    fn augment_args(command: Command) -> Command {
        if ALL.load(Ordering::Relaxed) { T::augment_args(command) } else { command.defer(described::<T>) }
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

/// Adds the arguments, but not what they say they are: their subcommand has said what it is.
fn described<T: Args>(command: Command) -> Command {
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    T::augment_args(command).about(Resettable::from(about)).long_about(Resettable::from(long_about))
}

impl<T: FromArgMatches> FromArgMatches for Later<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }

    fn update_from_arg_matches_mut(&mut self, matches: &mut ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches_mut(matches)
    }
}

/// The arguments of a subcommand that has nothing but subcommands of its own.
#[derive(Debug, Args)]
pub(crate) struct Below<T: Subcommand> {
    #[command(subcommand)]
    pub(crate) command: T,
}
