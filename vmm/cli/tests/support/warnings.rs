//! What a guest's kernel warns of.

use super::Finished;

/// The words of its command line that let its warnings come on the console, nothing else of its log, and one of the test's own among them.
pub const SHOWN: &str = "loglevel=5 skep.warn";

/// What a line has in it, in small letters, that finds fault with the machine: whatever is said of ACPI is. An emulated host adds warnings of its own,
/// about time and XSAVE.
const FAULTS: [&str; 7] = ["acpi", "cacheinfo", "firmware bug", "bug:", "nobody cared", "irq ", "of: "];

/// That a kernel with the words [`SHOWN`] has found no fault with the machine.
#[track_caller]
pub fn expect_no_fault(end: &Finished) {
    end.expect_console("a warning of the test's own");
    let finds_fault = |line: &&str| {
        let line = line.trim_start().to_lowercase();
        line.starts_with('[') && FAULTS.iter().any(|words| line.contains(words))
    };
    let faults: Vec<&str> = end.console.lines().filter(finds_fault).collect();
    assert!(faults.is_empty(), "the kernel warns: {faults:#?}");
}
