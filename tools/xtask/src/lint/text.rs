//! Rules that a file's text alone shows.

use super::Finding;
use super::source::Source;

/// Files longer than this are hard to read in one sitting.
const LONGEST: usize = 800;

/// Where the host's architecture and KVM's own names may appear, and why.
const HOST_PLACES: [(&str, &str); 3] = [
    ("hypervisor/kvm", "the backend: the one place that knows the host"),
    ("guests/bare", "the embedded guests, built for one architecture each"),
    ("tools", "the lab loads KVM's modules; these rules name what they look for"),
];

/// Checks one file.
pub(super) fn check(file: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    host_names(file, &mut findings);
    if file.is_rust() {
        length(file, &mut findings);
        if !file.is_test() {
            reasons_for_unsafe(file, &mut findings);
        }
        let names_the_rules = file.below("tools/xtask/src/lint");
        if !names_the_rules && (file.is_test() || file.text.contains("#[test]")) {
            tests(file, &mut findings);
        }
    }
    findings
}

fn host_names(file: &Source, findings: &mut Vec<Finding>) {
    if HOST_PLACES.iter().any(|(place, _)| file.below(place)) {
        return;
    }
    // The workspace's own Cargo.toml may say which version of a crate there is.
    let names: &[&str] = if file.path.as_os_str() == "Cargo.toml" {
        &["target_arch"]
    } else {
        &["target_arch", "kvm_", "KVM_", "kvm-bindings", "kvm-ioctls"]
    };
    for (number, code) in file.code() {
        if let Some(name) = names.iter().find(|name| has_word(code, name)) {
            findings.push(Finding::line(
                &file.path,
                number,
                format!("{name} is for hypervisor/kvm alone: ask the backend through a trait, or make the architecture a type"),
            ));
        }
    }
}

/// Whether a word of `code` begins with `start`.
fn has_word(code: &str, start: &str) -> bool {
    code.match_indices(start).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn length(file: &Source, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    if lines > LONGEST && !file.is_test() {
        findings.push(Finding::file(
            &file.path,
            format!("{lines} lines, more than {LONGEST}: split it where the reader would draw breath, at about 600"),
        ));
    }
}

fn reasons_for_unsafe(file: &Source, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = file.text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let Some((_, rest)) = line.split_once("allow(unsafe_code") else { continue };
        if line.trim_start().starts_with("//") || !line.trim_start().starts_with('#') {
            continue;
        }
        let is_comment =
            |line: &str| line.trim_start().strip_prefix("//").is_some_and(|rest| !rest.starts_with(['!', '/']));
        let above = index.checked_sub(1).and_then(|above| lines.get(above)).is_some_and(|line| is_comment(line));
        let below = lines.get(index + 1).is_some_and(|line| is_comment(line));
        if !(rest.contains("reason") || rest.contains("//") || above || below) {
            findings.push(Finding::line(
                &file.path,
                index + 1,
                "unsafe code is allowed without a reason: say why in a comment beside it",
            ));
        }
    }
}

fn tests(file: &Source, findings: &mut Vec<Finding>) {
    for (number, code) in file.code() {
        if code.trim_start().starts_with("#[ignore") {
            findings.push(Finding::line(
                &file.path,
                number,
                "a test that is ignored is forgotten: mend it or delete it",
            ));
        }
        if has_word(code, "sleep(") {
            findings.push(Finding::line(&file.path, number, "a test waits for the event, not for a time: no sleep"));
        }
    }
}

#[cfg(test)]
#[path = "text_test.rs"]
mod test;
