//! What is said of images: to people, and to programs.

use std::fmt::Write;

use skep_block::image::{CheckReport, ImageInfo, Qcow2Info};
use skep_config::Size;

#[cfg(test)]
#[path = "describe_test.rs"]
mod test;

/// Paragraphs, one for each image.
pub(super) fn text(images: &[ImageInfo]) -> String {
    images.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

fn paragraph(info: &ImageInfo) -> String {
    let mut lines = vec![
        ("file", info.file.display().to_string()),
        ("format", info.format.name().to_owned()),
        ("virtual size", size(info.size)),
        ("allocated", size(info.allocated)),
    ];
    if let Some(qcow2) = &info.qcow2 {
        lines[1].1 = format!("qcow2, version {}", qcow2.version);
        lines.push(("cluster size", size(qcow2.cluster_size)));
        if let Some(backing) = &qcow2.backing {
            let format = backing.format.as_deref().unwrap_or("a format that is not named");
            lines.push(("backing file", format!("{} ({format})", backing.file.display())));
        }
        if !qcow2.snapshots.is_empty() {
            lines.push(("snapshots", format!("{} ({})", qcow2.snapshots.len(), qcow2.snapshots.join(", "))));
        }
        let marks: Vec<_> = flags(qcow2).into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
        if !marks.is_empty() {
            lines.push(("flags", marks.join(", ")));
        }
    }
    lines.into_iter().map(|(name, value)| format!("{:<14}{}\n", format!("{name}:"), printable(&value))).collect()
}

fn flags(qcow2: &Qcow2Info) -> [(&'static str, bool); 4] {
    [
        ("dirty", qcow2.dirty),
        ("corrupt", qcow2.corrupt),
        ("lazy-refcounts", qcow2.lazy_refcounts),
        ("bitmaps", qcow2.bitmaps),
    ]
}

fn size(bytes: u64) -> String {
    match Size(bytes).to_string() {
        short if short.ends_with('B') => format!("{bytes} bytes"),
        short => format!("{short} ({bytes} bytes)"),
    }
}

/// Names come from images: what would move a terminal's cursor is left out.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A list of images.
pub(super) fn json(images: &[ImageInfo]) -> String {
    let images: Vec<_> = images.iter().map(object).collect();
    format!("[\n{}\n]\n", images.join(",\n"))
}

fn object(info: &ImageInfo) -> String {
    let mut fields = vec![
        ("file", string(&info.file.to_string_lossy())),
        ("format", string(info.format.name())),
        ("virtual-size", info.size.to_string()),
        ("allocated", info.allocated.to_string()),
    ];
    if let Some(qcow2) = &info.qcow2 {
        fields.push(("version", qcow2.version.to_string()));
        fields.push(("cluster-size", qcow2.cluster_size.to_string()));
        fields.push(("refcount-bits", qcow2.refcount_bits.to_string()));
        if let Some(backing) = &qcow2.backing {
            fields.push(("backing-file", string(&backing.file.to_string_lossy())));
            fields.push(("backing-format", backing.format.as_deref().map_or("null".to_owned(), string)));
        }
        let snapshots: Vec<_> = qcow2.snapshots.iter().map(|name| string(name)).collect();
        fields.push(("snapshots", format!("[{}]", snapshots.join(", "))));
        fields.extend(flags(qcow2).map(|(name, set)| (name, set.to_string())));
    }
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("    \"{name}\": {value}")).collect();
    format!("  {{\n{}\n  }}", fields.join(",\n"))
}

/// A string of JSON (RFC 8259 section 7).
fn string(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        // Writing to a string does not fail.
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            c if c.is_control() => write!(quoted, "\\u{:04x}", u32::from(c)),
            c => write!(quoted, "{c}"),
        };
    }
    quoted + "\""
}

/// What a check has found, and what is left after it has mended something.
pub(super) fn report(before: &CheckReport, after: Option<&CheckReport>) -> String {
    let mut text = String::new();
    for message in &before.messages {
        let _ = writeln!(text, "error: {message}");
    }
    let told = before.messages.len() as u64;
    if before.errors > told && told > 0 {
        let _ = writeln!(text, "and more");
    }
    let line = |report: &CheckReport| match (report.errors, report.leaks) {
        (0, 0) => "no errors".to_owned(),
        (errors, leaks) => {
            let lost = Size(leaks.saturating_mul(report.cluster_size));
            format!("{errors} errors, {leaks} lost clusters ({lost})")
        }
    };
    let used = Size(before.used.saturating_mul(before.cluster_size));
    let _ = writeln!(text, "{}; {} clusters are used ({used})", line(before), before.used);
    match after {
        Some(after) => {
            let _ = writeln!(text, "after mending: {}", line(after));
        }
        None if before.errors + before.leaks > 0 => text.push_str("`--repair` mends what can be mended\n"),
        None => {}
    }
    text
}
