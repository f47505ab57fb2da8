//! Shell completions and manual pages, generated from the command line's own description.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap_complete::Shell;

use crate::args;
use crate::exit::{Exit, Failure};

/// Writes a shell's completions to standard output.
pub(crate) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "skep", &mut text);
    print(&text)?;
    Ok(Exit::Done)
}

/// Writes a manual page for the command and for each of its subcommands.
pub(crate) fn man(folder: &Path) -> Result<Exit, Failure> {
    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |source| Failure::Write { what, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    clap_mangen::generate_to(with_socket(args::command()), folder).map_err(failed(folder))?;
    Ok(Exit::Done)
}

/// The command whose `ctl` has the usage that help shows in each of its subcommands: a manual page's synopsis would leave the socket out.
fn with_socket(command: clap::Command) -> clap::Command {
    let mut built = command.clone();
    built.build();
    command.mut_subcommand("ctl", |ctl| {
        ctl.mut_subcommands(|subcommand| {
            let shown = built.find_subcommand_mut("ctl").and_then(|ctl| ctl.find_subcommand_mut(subcommand.get_name()));
            let usage = shown.map(|shown| shown.render_usage().to_string());
            match usage {
                Some(usage) => subcommand.override_usage(usage.trim_start_matches("Usage: ").to_owned()),
                None => subcommand,
            }
        })
    })
}

/// Writes to standard output. A reader that has gone is no error: it has read enough.
pub(crate) fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Write { what: "standard output".to_owned(), source })
        }
        _ => Ok(()),
    }
}
