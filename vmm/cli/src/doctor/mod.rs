//! `skep doctor`: what this host can do, and how to mend what is missing.

mod host;
mod io_uring;

use std::fmt::Write;
use std::path::Path;

use skep_config::Config;
use skep_hypervisor::report::{Finding, Verdict};
use skep_vmm::machine::Machine;

use crate::exit::{Exit, Failure};
use crate::{pages, run};

#[cfg(test)]
#[path = "doctor_test.rs"]
mod test;

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print the CPU features alone that guests can be shown here and on the hosts whose lists these files are, for `skep run --cpu FILE` (x86_64)
    #[arg(long, value_name = "FILE", num_args = 0..)]
    cpu_features: Option<Vec<String>>,
}

/// Prints what was found. It fails if no guest can run here.
pub(crate) fn doctor(args: DoctorArgs) -> Result<Exit, Failure> {
    if let Some(lists) = args.cpu_features {
        let config = Config::new(run::host()?);
        let list = Machine::common_features(&config, &skep_kvm::open()?, &lists)?;
        pages::print(list.as_bytes())?;
        return Ok(Exit::Done);
    }
    let mut findings = skep_kvm::report();
    findings.extend(host::findings(Path::new("/")));
    pages::print(text(&findings).as_bytes())?;
    Ok(if fatal(&findings) == 0 { Exit::Done } else { Exit::Failed })
}

fn fatal(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.verdict == Verdict::Fatal).count()
}

/// A line for each finding, what would mend it under it, and a last line that sums up.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.topic.chars().count()).max().unwrap_or(0);
    let indent = format!("{:width$}", "", width = width + 11);
    let mut text = String::new();
    for Finding { topic, text: found, verdict, mend } in findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{verdict:<8} {topic:<width$}  {}", found.replace('\n', &format!("\n{indent}")));
        if let Some(mend) = mend {
            let _ = writeln!(text, "{indent}try: {mend}");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let _ = match fatal(findings) {
        0 => writeln!(
            text,
            "\nThis host runs guests ({} limited, {} missing).",
            count(Verdict::Limited),
            count(Verdict::Missing)
        ),
        fatal => writeln!(text, "\nThis host runs no guest yet: mend what is fatal ({fatal}) first."),
    };
    text
}
