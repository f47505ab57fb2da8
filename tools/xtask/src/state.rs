//! `cargo xtask state`: writes docs/state.md, the specification of saved state, from the types.

use crate::paths;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(test)]
#[path = "state_test.rs"]
mod test;

/// Write docs/state.md from the types of saved state
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Where the page is.
pub(crate) const PAGE: &str = "docs/state.md";

/// Where types of saved state are.
const FOLDERS: [&str; 4] = ["base", "hypervisor/api/src", "devices", "vmm/src"];

/// How a field's description ends where no value is refused.
const ANY: &str = "Any value.";

const INTRODUCTION: &str = "\
# Saved state

Written by `cargo xtask state` from the types; a test holds it up to date.

A snapshot's records are CBOR maps (RFC 8949) with the fields' numbers as keys, by the rules of `base/state`: a number is never used again, a new field is optional, a
reader passes over fields that it does not know. `vmm/src/state` says what the container is. `skep snapshot inspect` prints a snapshot's records.

What arrives is refused where a rule does not hold, by the field's name. A field without a rule of its own has that of the field that it is in; a `bool`, or a choice, has one of
its values.

";

/// A type's field, or one of an enum's variants.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    number: u32,
    name: String,
    kind: String,
    meaning: String,
    /// Every value of its type is one that it can have.
    any: bool,
}

/// A rule by which a value is refused: the arguments of a call of `ensure`.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    /// The type whose function calls.
    owner: Option<String>,
    file: PathBuf,
    field: String,
    text: String,
}

/// A type that is encoded.
#[derive(Debug, PartialEq, Eq)]
struct Type {
    name: String,
    file: PathBuf,
    meaning: String,
    is_enum: bool,
    fields: Vec<Field>,
}

/// All that is read.
#[derive(Default)]
struct Found {
    types: Vec<Type>,
    roots: BTreeMap<String, Root>,
    rules: Vec<Rule>,
}

/// A record's type: its identity and its version.
struct Root {
    id: String,
    version: u32,
    name: String,
    file: PathBuf,
}

/// Writes the page.
pub(crate) fn main(_: &Args) -> Result<()> {
    let path = paths::workspace().join(PAGE);
    fs::write(&path, page()?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Whether the page is what the types say.
pub(crate) fn is_up_to_date() -> Result<bool> {
    // One that is not there is not.
    Ok(fs::read_to_string(paths::workspace().join(PAGE)).unwrap_or_default() == page()?)
}

/// The page as it should be.
fn page() -> Result<String> {
    let mut found = Found::default();
    for folder in FOLDERS {
        collect(&paths::workspace(), Path::new(folder), &mut found)?;
    }
    let Found { types, roots, .. } = &found;
    let mut text = INTRODUCTION.to_owned();
    for root in roots.values() {
        let Some(at) = find(types, &root.name, &root.file) else { continue };
        let rules = rules_within(&found, root, at);
        // Writing to a string does not fail.
        let _ = writeln!(text, "## `{}`, version {}\n", root.id, root.version);
        describe(types, at, &rules, &mut text);
        let mut told = BTreeSet::from([at]);
        let mut waiting = inside(types, at);
        while let Some(next) = waiting.pop() {
            if told.insert(next) {
                let _ = writeln!(text, "### {}\n", types[next].name);
                describe(types, next, &rules, &mut text);
                waiting.extend(inside(types, next));
            }
        }
    }
    Ok(text.trim_end().to_owned() + "\n")
}

/// Reads the Rust files of a folder, but for tests.
fn collect(root: &Path, folder: &Path, found: &mut Found) -> Result<()> {
    let failed = || format!("cannot read {}", folder.display());
    let mut entries: Vec<_> = fs::read_dir(root.join(folder)).with_context(failed)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = folder.join(&name);
        if entry.file_type()?.is_dir() {
            if !matches!(name.as_str(), "tests" | "testing" | "target" | "fake" | "conformance") {
                collect(root, &path, found)?;
            }
        } else if name.ends_with(".rs") && !name.ends_with("_test.rs") && name != "testing.rs" {
            let text =
                fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
            let (types, roots) = (types_of(&text, &path), roots_of(&text, &path));
            if !types.is_empty() {
                found.rules.extend(rules_of(&text, &path));
            }
            found.types.extend(types);
            found.roots.extend(roots.into_iter().map(|root| (root.id.clone(), root)));
        }
    }
    Ok(())
}

/// The text of a doc comment's line.
fn doc(line: &str) -> Option<&str> {
    line.strip_prefix("///").map(str::trim)
}

/// A field's number, of an attribute.
fn number(line: &str) -> Option<u32> {
    line.strip_prefix("#[n(")?.strip_suffix(")]")?.parse().ok()
}

/// The types that are encoded, in text as rustfmt leaves it.
fn types_of(text: &str, file: &Path) -> Vec<Type> {
    let mut types = Vec::new();
    let (mut meaning, mut encoded) = (Vec::new(), false);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(doc) = doc(line) {
            meaning.push(doc);
        } else if line.starts_with("#[") {
            encoded |= line.starts_with("#[derive(") && line.contains("Encode");
        } else {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            let kind = words.find(|word| matches!(*word, "struct" | "enum"));
            if let (true, Some(kind), Some(name)) = (encoded, kind, words.next()) {
                let fields = if line.ends_with('{') { fields_of(&mut lines) } else { inline(line) };
                types.push(Type {
                    name: name.to_owned(),
                    file: file.to_owned(),
                    meaning: meaning.join(" "),
                    is_enum: kind == "enum",
                    fields,
                });
            }
            (meaning, encoded) = (Vec::new(), false);
        }
    }
    types
}

/// The one field of `struct Name(#[n(0)] pub u16);`.
fn inline(line: &str) -> Vec<Field> {
    let inner = line.split_once("(#[n(0)] ").and_then(|(_, rest)| rest.strip_suffix(");"));
    let kind = inner.map(|kind| kind.trim_start_matches("pub(crate) ").trim_start_matches("pub ").to_owned());
    let field = |kind| Field { number: 0, name: String::new(), kind, meaning: String::new(), any: false };
    kind.map(field).into_iter().collect()
}

/// The fields or variants up to the end of the type.
fn fields_of<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Field> {
    let (mut fields, mut meaning, mut found) = (Vec::new(), Vec::new(), None);
    for line in lines.take_while(|line| !line.starts_with('}')).map(str::trim) {
        if let Some(doc) = doc(line) {
            meaning.push(doc);
        } else if let Some(number) = number(line) {
            found = Some(number);
        } else if !line.starts_with("#[") && !line.is_empty() {
            let plain =
                line.trim_start_matches("pub(crate) ").trim_start_matches("pub ").trim_end_matches([',', '{', ' ']);
            let (name, kind) = match (plain.split_once(": "), plain.split_once('(')) {
                (Some((name, kind)), _) => (name, kind),
                (None, Some((name, rest))) => (name, rest.trim_start_matches("#[n(0)] ").trim_end_matches(')')),
                (None, None) => (plain, ""),
            };
            if let Some(number) = found.take() {
                let (name, kind) = (name.to_owned(), kind.to_owned());
                let whole = meaning.join(" ");
                let (meaning, any) =
                    whole.strip_suffix(ANY).map_or((whole.as_str(), false), |rest| (rest.trim(), true));
                fields.push(Field { number, name, kind, meaning: meaning.to_owned(), any });
            }
            meaning.clear();
        }
    }
    fields
}

/// The records' types: what implements `State`.
fn roots_of(text: &str, file: &Path) -> Vec<Root> {
    let constant = |name: &str| {
        let line = text.lines().find(|line| line.contains(&format!("const {name}: &str =")))?;
        line.split('"').nth(1).map(str::to_owned)
    };
    let after = |line: &str, what: &str| {
        line.trim().strip_prefix(what).map(|rest| rest.trim_end_matches(';').trim().to_owned())
    };
    let mut roots = Vec::new();
    let (mut name, mut id) = (None, None);
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("impl State for ") {
            name = Some(found.trim_end_matches([' ', '{']).to_owned());
        }
        if let Some(found) = after(line, "const ID: &'static str =") {
            let plain = found.strip_prefix('"').and_then(|found| found.strip_suffix('"')).map(str::to_owned);
            id = plain.or_else(|| constant(&found));
        }
        let version = after(line, "const VERSION: u16 =").and_then(|version| version.parse().ok());
        if let Some(version) = version
            && let (Some(name), Some(id)) = (name.take(), id.take())
        {
            roots.push(Root { id, version, name, file: file.to_owned() });
        }
    }
    roots
}

/// The string literal that an argument is.
fn literal(argument: &str) -> Option<&str> {
    argument.trim().strip_prefix('"')?.strip_suffix('"')
}

/// The arguments of a call, of the text that follows its parenthesis.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut begin, mut arguments) = (0u32, false, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(&text[begin..at]);
                break;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    arguments.retain(|argument| !argument.trim().is_empty());
    arguments
}

/// The rules that functions of a file hold, where field and rule stand in the call.
fn rules_of(text: &str, file: &Path) -> Vec<Rule> {
    let (mut rules, mut owner, mut at) = (Vec::new(), None, 0);
    for line in text.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("impl ") {
            let name = rest.strip_prefix("State for ").unwrap_or(rest);
            owner = name.split(' ').next().map(str::to_owned);
        } else if line.starts_with('}') {
            owner = None;
        }
        for (begin, call) in line.match_indices("ensure(") {
            let all = arguments(&text[at + begin + call.len()..]);
            if let [_, _, field, _, rule] = all[..]
                && let (Some(field), Some(rule)) = (literal(field), literal(rule))
            {
                let (field, text) = (field.to_owned(), rule.to_owned());
                rules.push(Rule { owner: owner.clone(), file: file.to_owned(), field, text });
            }
        }
        at += line.len();
    }
    rules
}

/// Each field within a type, by the names that lead to it: the path, the type and the field's place in it.
fn fields_within(types: &[Type], at: usize, path: &str, all: &mut Vec<(String, usize, usize)>) {
    for (number, field) in types[at].fields.iter().enumerate().filter(|_| !types[at].is_enum) {
        let path = format!("{path}.{}", field.name);
        for next in of_kind(types, at, &field.kind) {
            fields_within(types, next, &path, all);
        }
        all.push((path, at, number));
    }
}

/// The rules of the fields of a record's types. One that names a field alone means the record's own where it has one of that name.
fn rules_within<'a>(found: &'a Found, root: &Root, at: usize) -> BTreeMap<(usize, usize), Vec<&'a str>> {
    let Found { types, roots, rules } = found;
    let mut fields = Vec::new();
    fields_within(types, at, "", &mut fields);
    let files: BTreeSet<_> = fields.iter().map(|(_, at, _)| &types[*at].file).collect();
    let others = |name: &String| *name != root.name && roots.values().any(|other| other.name == *name);
    let mut held: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| files.contains(&rule.file) && !rule.owner.as_ref().is_some_and(others)) {
        let end = format!(".{}", rule.field);
        let exact = fields.iter().any(|(path, ..)| *path == end);
        for (path, at, number) in &fields {
            if *path == end || !exact && path.ends_with(&end) {
                let texts = held.entry((*at, *number)).or_default();
                if !texts.contains(&rule.text.as_str()) {
                    texts.push(rule.text.as_str());
                }
            }
        }
    }
    held
}

/// The types that a field's type names.
fn of_kind(types: &[Type], at: usize, kind: &str) -> Vec<usize> {
    let words = kind.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter_map(|name| find(types, name, &types[at].file)).collect()
}

/// The type of that name that a file means: its own, else the nearest.
fn find(types: &[Type], name: &str, file: &Path) -> Option<usize> {
    let near = |other: &Path| file.components().zip(other.components()).take_while(|(a, b)| a == b).count();
    let named = types.iter().enumerate().filter(|(_, one)| one.name == name);
    named.max_by_key(|(_, one)| (one.file == file, near(&one.file))).map(|(at, _)| at)
}

/// The types that a type's fields are of, in reverse.
fn inside(types: &[Type], at: usize) -> Vec<usize> {
    let mut found: Vec<_> = types[at].fields.iter().flat_map(|field| of_kind(types, at, &field.kind)).collect();
    found.reverse();
    found
}

fn describe(types: &[Type], at: usize, rules: &BTreeMap<(usize, usize), Vec<&str>>, text: &mut String) {
    let one = &types[at];
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}\n", one.meaning);
    if one.fields.is_empty() {
        let _ = writeln!(text, "It has no fields.\n");
        return;
    }
    let head = if one.is_enum {
        "| number | value | type | meaning |\n|---:|---|---|---|"
    } else {
        "| number | field | type | meaning | rule |\n|---:|---|---|---|---|"
    };
    let _ = writeln!(text, "{head}");
    for (place, Field { number, name, kind, meaning, any }) in one.fields.iter().enumerate() {
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let (name, kind) = (code(name), code(&kind.replace('|', "\\|")));
        let _ = write!(text, "| {number} | {name} | {kind} | {} |", meaning.replace('|', "\\|"));
        if !one.is_enum {
            let held = rules.get(&(at, place)).into_iter().flatten().copied().chain(any.then_some("any value"));
            let _ = write!(text, " {} |", held.collect::<Vec<_>>().join("; ").replace('|', "\\|"));
        }
        text.push('\n');
    }
    text.push('\n');
}
