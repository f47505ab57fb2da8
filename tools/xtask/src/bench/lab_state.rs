//! `cargo xtask bench lab-state`: save, restore and migration of the guest that is built in, in labs whose clocks count instructions.
//!
//! The guest is halted, and has used little of its memory. Both monitors tell what they took themselves: skep in microseconds, QEMU in milliseconds. A first round, which
//! fills the lab's page cache, is not counted.

use super::figures::{Table, median, told};
use super::{InLabs, MEMORY, qemu};
use crate::arch::Arch;
use crate::lab::{LAB, Program, Progress};
use crate::paths::Scratch;
use anyhow::{Context, Result, bail};
use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

#[cfg(test)]
#[path = "lab_state_test.rs"]
mod test;

/// Measure save, restore and migration, in labs whose clocks count instructions
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    labs: InLabs,
}

/// What one round does there.
const SCRIPT: &str = include_str!("lab_state.sh");
/// What its lines with figures begin with; these are microseconds.
const MARK: &str = "state";
const LIMIT: Duration = Duration::from_secs(3600);

/// Figures that a monitor tells, in the order of the table's columns.
const FIGURES: [&str; 5] = [
    "saved, standstill",
    "saved, in all",
    "restored, to the first instruction",
    "migrated, standstill",
    "migrated, in all",
];
/// QEMU does not tell the others.
const THEIRS: [&str; 3] = ["saved, in all", "migrated, standstill", "migrated, in all"];

/// A monitor's name, its command in the lab, and what it is to tell.
struct Contender {
    name: String,
    command: Vec<String>,
    tells: &'static [&'static str],
}

pub(super) fn main(args: &Args) -> Result<()> {
    args.labs.print(|arch| measure(arch, args))
}

fn measure(arch: Arch, args: &Args) -> Result<Table> {
    let (names, lab) = args.labs.lab(arch)?;
    let scratch = Scratch::new()?;
    let file = |name: &str, content: &[u8]| -> Result<_> {
        let path = scratch.path().join(name);
        fs::write(&path, content)?;
        Ok(path)
    };
    let hello = if arch == Arch::X86_64 { HELLO_X86_64 } else { HELLO_AARCH64 };
    let lab = lab
        .icount(true)
        .carry(file("state.sh", SCRIPT.as_bytes())?, "state.sh")
        .carry(file("hello", hello)?, "hello")
        .limit(LIMIT);
    let contenders = contenders(arch, &names);
    let one = |contender: &Contender| Program::new(contender.command.clone());
    let programs: Vec<Program> = (0..=args.labs.rounds).flat_map(|_| contenders.iter().map(one)).collect();
    let outcomes = lab.run(&programs, &mut |progress| {
        if let Progress::End(number, outcome) = progress {
            let (round, which) = (number / contenders.len(), number % contenders.len());
            let output = String::from_utf8_lossy(&outcome.output);
            eprintln!(
                "bench: round {round} of {}, {}:\n{}",
                args.labs.rounds,
                contenders[which].name,
                output.trim_end()
            );
        }
    })?;
    let mut figures: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        let (round, which) = (number / contenders.len(), number % contenders.len());
        let (contender, told) = (&contenders[which], told(&outcome.output, MARK));
        if told.iter().map(|(what, _)| what.as_str()).ne(contender.tells.iter().copied()) {
            bail!("{} ended with code {}, and did not tell {:?}", contender.name, outcome.code, contender.tells);
        }
        for (what, us) in told.into_iter().filter(|_| round > 0) {
            figures.entry((which, what)).or_default().push(us / 1e3);
        }
    }
    let heading = ["monitor, virtual ms"].iter().chain(&FIGURES).map(|&text| text.to_owned());
    let mut table = Table::of(heading.collect());
    for (which, contender) in contenders.iter().enumerate() {
        let cell = |what: &&str| match figures.get(&(which, (*what).to_owned())) {
            Some(values) => median(values.iter().copied()).map(|ms| format!("{ms:.1}")).context("a figure has values"),
            None => Ok("-".to_owned()),
        };
        let cells = FIGURES.iter().map(cell).collect::<Result<Vec<String>>>()?;
        table.add([vec![contender.name.clone()], cells].concat());
    }
    Ok(table)
}

fn contenders(arch: Arch, skeps: &[String]) -> Vec<Contender> {
    let run = ["sh".to_owned(), format!("{LAB}/state.sh")];
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut contenders: Vec<Contender> = skeps
        .iter()
        .map(|name| Contender {
            name: name.clone(),
            command: [&run[..], &words(&["skep", MEMORY, &format!("{LAB}/bin/{name}")])].concat(),
            tells: &FIGURES,
        })
        .collect();
    let machine = if arch == Arch::X86_64 { "q35" } else { "virt,gic-version=3" };
    let guest = qemu::arguments(machine, &format!("{LAB}/hello"), "first end=halt");
    contenders.push(Contender {
        name: format!("QEMU {}", machine.split(',').next().unwrap_or(machine)),
        command: [&run[..], &words(&["qemu"]), &qemu::command(arch, &format!("{LAB}/qemu")), &guest].concat(),
        tells: &THEIRS,
    });
    contenders
}
