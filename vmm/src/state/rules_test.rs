//! Each field of each record has a rule that refuses something, or is declared to hold any value; docs/state.md says which.

use std::collections::{BTreeMap, BTreeSet};

use skep_config::ArchKind;

use super::*;
use crate::state::testing::file;
use crate::state::{NamedRecord, Records};

/// A CBOR item of the kinds that state types have.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Int(i128),
    Bool(bool),
    Null,
    Text(String),
    Bytes(Vec<u8>),
    Array(Vec<Item>),
    Map(Vec<(u32, Item)>),
}

impl Item {
    fn read(decoder: &mut Decoder<'_>) -> Self {
        match decoder.datatype().unwrap() {
            Type::Bool => Self::Bool(decoder.bool().unwrap()),
            Type::Null => {
                decoder.null().unwrap();
                Self::Null
            }
            Type::String => Self::Text(decoder.str().unwrap().to_owned()),
            Type::Bytes => Self::Bytes(decoder.bytes().unwrap().to_vec()),
            Type::Array => {
                let count = decoder.array().unwrap().unwrap();
                Self::Array((0..count).map(|_| Self::read(decoder)).collect())
            }
            Type::Map => {
                let count = decoder.map().unwrap().unwrap();
                Self::Map((0..count).map(|_| (decoder.u32().unwrap(), Self::read(decoder))).collect())
            }
            _ => Self::Int(decoder.int().unwrap().into()),
        }
    }

    fn write(&self, encoder: &mut minicbor::Encoder<&mut Vec<u8>>) {
        match self {
            Self::Int(value) => drop(encoder.int((*value).try_into().unwrap()).unwrap()),
            Self::Bool(value) => drop(encoder.bool(*value).unwrap()),
            Self::Null => drop(encoder.null().unwrap()),
            Self::Text(text) => drop(encoder.str(text).unwrap()),
            Self::Bytes(bytes) => drop(encoder.bytes(bytes).unwrap()),
            Self::Array(items) => {
                encoder.array(items.len() as u64).unwrap();
                items.iter().for_each(|item| item.write(encoder));
            }
            Self::Map(fields) => {
                encoder.map(fields.len() as u64).unwrap();
                for (number, item) in fields {
                    encoder.u32(*number).unwrap();
                    item.write(encoder);
                }
            }
        }
    }

    fn at(&mut self, place: &[usize]) -> &mut Self {
        let Some((first, rest)) = place.split_first() else { return self };
        match self {
            Self::Array(items) => items[*first].at(rest),
            Self::Map(fields) => fields[*first].1.at(rest),
            _ => panic!("nothing is within {self:?}"),
        }
    }

    /// What may stand in its place.
    fn spoilt(&self) -> Vec<Self> {
        let numbers = [0, 1, 2, 3, 7, 0x10, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, (1 << 31) - 1, (1 << 32) - 1];
        let large = [(1 << 63) - 1, (1 << 64) - 1, -1, -(1 << 40), -(1 << 63)];
        match self {
            Self::Int(_) => numbers.into_iter().chain(large).map(Self::Int).collect(),
            Self::Bool(value) => vec![Self::Bool(!value)],
            Self::Null => Vec::new(),
            Self::Text(_) => ["", "x"]
                .map(str::to_owned)
                .into_iter()
                .chain([5000, (1 << 20) + 1].map(|n| "x".repeat(n)))
                .map(Self::Text)
                .collect(),
            Self::Bytes(bytes) => {
                let more = bytes.iter().copied().chain([0]).collect();
                [Vec::new(), more, vec![0xff; bytes.len()], vec![0; (4 << 20) + 1]].map(Self::Bytes).into()
            }
            Self::Array(items) => {
                let reversed = items.iter().rev().cloned().collect();
                let many = items.iter().cycle().take(if items.is_empty() { 0 } else { 5000 }).cloned().collect();
                [Vec::new(), reversed, [items.as_slice(), items].concat(), many].map(Self::Array).into()
            }
            // Its fields are looked at each by itself.
            Self::Map(_) => vec![Self::Null],
        }
    }
}

/// A field as docs/state.md has it.
struct Field {
    number: u32,
    name: String,
    kind: String,
    rule: String,
}

/// The types of a record by their names, its own by none; choices have no fields.
type Types = BTreeMap<String, Vec<Field>>;

fn specified() -> BTreeMap<String, Types> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/state.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (mut records, mut id, mut name) = (BTreeMap::<_, Types>::new(), String::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("## `") {
            (id, name) = (rest.split('`').next().unwrap().to_owned(), String::new());
            records.entry(id.clone()).or_default().insert(String::new(), Vec::new());
        } else if let Some(rest) = line.strip_prefix("### ") {
            name = rest.to_owned();
            records.get_mut(&id).unwrap().insert(name.clone(), Vec::new());
        }
        let cells: Vec<_> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        if let ([first, field, kind, _, rule], Ok(number)) = (&cells[..], cells[0].parse::<u32>()) {
            assert_eq!(*first, number.to_string());
            let plain = |cell: &str| cell.trim_matches('`').to_owned();
            let field = Field { number, name: plain(field), kind: plain(kind), rule: (*rule).to_owned() };
            records.get_mut(&id).unwrap().get_mut(&name).unwrap().push(field);
        }
    }
    records
}

/// The type with fields of its own that a field's type names.
fn inner<'a>(types: &'a Types, kind: &str) -> Option<&'a Vec<Field>> {
    let mut words = kind.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    words.find_map(|word| types.get(word).filter(|fields| fields.iter().any(|field| !field.name.is_empty())))
}

/// What is known of a field, by the names that lead to it.
#[derive(Debug, Default)]
struct Seen {
    rule: String,
    /// Its type leaves nothing to refuse: a flag, a choice, or a type whose fields are looked at.
    free: bool,
    /// A spoilt value was refused by its own name, or by that of what it is in, or that is in it.
    own: bool,
    other: bool,
    /// It was refused when this or another value was spoilt.
    named: bool,
    /// It had a value to spoil.
    spoilt: bool,
}

/// Where a value stands in a record, and of which field it is.
fn places(
    types: &Types,
    fields: &[Field],
    item: &Item,
    path: &str,
    place: &[usize],
    all: &mut Vec<(String, Vec<usize>)>,
) {
    match item {
        Item::Map(values) => {
            for (at, (number, value)) in values.iter().enumerate() {
                let field = fields.iter().find(|field| field.number == *number);
                let field = field.unwrap_or_else(|| panic!("{path}: {number} is not specified"));
                let (path, place) = (format!("{path}.{}", field.name), [place, &[at]].concat());
                match inner(types, &field.kind) {
                    Some(fields) => {
                        all.push((path.clone(), place.clone()));
                        places(types, fields, value, &path, &place, all);
                    }
                    None => leaves(value, &path, &place, all),
                }
            }
        }
        Item::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                places(types, fields, item, path, &[place, &[at]].concat(), all);
            }
        }
        _ => {}
    }
}

/// A field's own values; of many, the first and the last.
fn leaves(item: &Item, path: &str, place: &[usize], all: &mut Vec<(String, Vec<usize>)>) {
    all.push((path.to_owned(), place.to_vec()));
    if let Item::Array(items) = item {
        for (at, item) in items.iter().enumerate().filter(|(at, _)| *at < 3 || at + 1 == items.len()) {
            leaves(item, path, &[place, &[at]].concat(), all);
        }
    }
}

fn declared(types: &Types, fields: &[Field], path: &str, all: &mut BTreeMap<String, Seen>) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        let within = inner(types, &field.kind);
        let choice = types.get(field.kind.trim_start_matches("Option<").trim_end_matches('>'));
        let free = matches!(&*field.kind, "bool") || choice.is_some();
        all.insert(path.clone(), Seen { rule: field.rule.clone(), free, ..Seen::default() });
        if let Some(within) = within {
            declared(types, within, &path, all);
        }
    }
}

/// Of what golden records lack, by numbers; `bytes:N` is N bytes.
fn more() -> Vec<(&'static str, Value)> {
    let queue = |id: u16| json!({"0": id, "1": 4096, "2": 4, "3": 0, "4": 0, "5": true, "6": id});
    let submission = |id: u16| json!([{"0": id, "1": id, "2": 4096, "3": 4, "4": 0, "5": 0}]);
    let error = |number: u64| json!({"0": number, "1": 0, "2": 5, "3": 0x4002, "4": 9, "5": 1});
    let counter = json!({"0": 2, "1": false, "2": 3, "3": 9, "4": 5, "5": 9, "7": 1, "8": false, "9": 1, "10": 1});
    let held = json!({"0": 0, "1": false, "2": 1, "3": 9, "6": 5, "8": false});
    let block = |number: u32| json!({"0": number, "1": "bytes:4096"});
    let virtio = json!({"0": 256, "1": 0, "2": true, "3": false, "4": 0, "5": 0, "6": 0, "7": {"0": 5, "1": false}});
    vec![
        (
            "nvme",
            json!({
                "6": {"0": queue(0), "1": submission(0)},
                "7": [{"0": queue(1), "1": submission(1)}],
                "8": {"0": 4096, "1": 8192},
                "9": {"8": [1, 2], "15": vec![0; 32]},
                "10": [1, 2],
                "11": [0x10000],
                "13": [1, 2],
                "14": {"8": 2},
                "15": [error(2), error(1)],
                "16": 1,
            }),
        ),
        ("nvme", json!({"6": {"0": queue(0), "1": submission(0)}, "8": {"0": 4096, "1": 8192}})),
        ("gic", json!({"4": [{"0": 0, "1": {"0": [], "1": 0}, "2": [], "3": []}]})),
        ("aarch64-vcpu", json!({"7": {"3": "bytes:546", "4": 128}, "10": 5})),
        (
            "aarch64-cpus",
            json!({"1": 1000, "4": {"0": [[1, 2], [3, null]], "1": 128, "2": [["psci", 65538]]}, "5": true}),
        ),
        ("gic", json!({"4": [{"0": 0, "1": {"0": [[0, 1]], "1": 0}, "2": [[1, 1]], "3": [[0, 1]]}]})),
        ("ne2k", json!({"22": "bytes:60"})),
        ("i8042", json!({"0": {"0": 1, "1": 0, "2": false}, "2": [1, 5]})),
        ("i8254", json!({"0": [counter, counter, held]})),
        ("ich9-pm", json!({"0": 0x600})),
        ("pl011", json!({"4": 0x10, "10": [0x41, 0x142], "11": 1000})),
        ("uart16550", json!({"1": 1, "8": [0x41, 0x42], "10": 1000})),
        (
            "skep-disks",
            json!({"0": [{"0": "disk0", "1": "/disk", "2": "qcow2", "3": 512, "4": 1, "5": [{"0": "/below", "1": 1}]}]}),
        ),
        ("skep-machine", json!({"6": [{"0": "nvme", "1": 3}]})),
        ("virtio-pci", json!({"2": 1u64 << 32, "4": 0xf, "9": [virtio]})),
        ("x86_64-cpus", json!({"2": 1000, "3": 0x2b})),
        (
            "x86_64-vcpu",
            json!({
                "4": [{"0": 1, "1": "bytes:8"}, {"0": 2, "1": "bytes:8"}],
                "7": 1000,
                "9": {"0": 3, "1": 1, "2": 1, "4": 32, "11": 1},
            }),
        ),
        (
            "cfi-flash",
            json!({"7": [block(1), block(2)], "8": {"0": 0x8000, "1": 0x1000, "2": [block(1), block(2)]}, "9": block(3)}),
        ),
    ]
}

/// The item with what `more` has in it.
fn with(item: Option<&Item>, more: &Value) -> Item {
    match more {
        Value::Null => Item::Null,
        Value::Bool(value) => Item::Bool(*value),
        Value::Number(number) => Item::Int(number.as_i128().unwrap()),
        Value::String(text) => match text.strip_prefix("bytes:") {
            Some(count) => Item::Bytes(vec![0; count.parse().unwrap()]),
            None => Item::Text(text.clone()),
        },
        Value::Array(items) => Item::Array(items.iter().map(|one| with(None, one)).collect()),
        Value::Object(fields) => {
            let mut all: BTreeMap<u32, Item> = match item {
                Some(Item::Map(known)) => known.iter().cloned().collect(),
                _ => BTreeMap::new(),
            };
            for (number, more) in fields {
                let number = number.parse().unwrap();
                let item = with(all.get(&number), more);
                all.insert(number, item);
            }
            Item::Map(all.into_iter().collect())
        }
    }
}

impl Item {
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.write(&mut minicbor::Encoder::new(&mut body));
        body
    }
}

/// Records of each type, with something in each field.
fn samples() -> Vec<Record> {
    let mut records = Vec::new();
    for arch in [ArchKind::X86_64, ArchKind::Aarch64] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(file(arch));
        let golden = Records::read(&std::fs::read(path).unwrap()).unwrap();
        for NamedRecord { record, .. } in golden.records {
            if let Ok(state) = record.open::<RootComplexState>() {
                records.extend(state.functions.into_iter().map(|function| function.record));
            }
            records.push(record);
        }
    }
    for (id, more) in more() {
        let record = records.iter().find(|record| record.id == id).unwrap();
        let body = with(Some(&Item::read(&mut Decoder::new(&record.body))), &more).body();
        records.push(Record { body, ..record.clone() });
    }
    records
}

#[test]
fn each_field_has_a_rule_or_holds_any_value() {
    let specified = specified();
    let mut seen: BTreeMap<&str, BTreeMap<String, Seen>> = BTreeMap::new();
    for (id, types) in &specified {
        declared(types, &types[""], "", seen.entry(id).or_default());
    }
    assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), KNOWN.iter().map(|(id, _)| *id).collect());
    let mut refused = Vec::new();
    for record in samples() {
        let (_, tell) = KNOWN.iter().find(|(id, _)| *id == record.id).unwrap();
        refused.extend(tell(&record).err());
        let types = &specified[&record.id];
        let whole = Item::read(&mut Decoder::new(&record.body));
        let mut all = Vec::new();
        places(types, &types[""], &whole, "", &[], &mut all);
        let fields = seen.get_mut(&*record.id).unwrap();
        for (path, place) in all {
            let mut spoilt = whole.clone();
            for value in spoilt.clone().at(&place).spoilt() {
                *spoilt.at(&place) = value;
                let error = tell(&Record { body: spoilt.body(), ..record.clone() }).err();
                let field = fields.get_mut(&path).unwrap();
                field.spoilt = true;
                if let Some(StateError::Invalid { field: named, .. }) = error {
                    let named = format!(".{named}");
                    let around = path.match_indices('.').skip(1).any(|(end, _)| path[..end].ends_with(&named));
                    let within = named.starts_with(&format!("{path}.")) || {
                        let last = path.rsplit('.').next().unwrap();
                        named.starts_with(&format!(".{last}."))
                    };
                    field.own |= path.ends_with(&named);
                    field.other |= around || within;
                    for (_, field) in fields.iter_mut().filter(|(path, _)| path.ends_with(&named)) {
                        field.named = true;
                    }
                }
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    let mut wrong = Vec::new();
    for (id, fields) in &seen {
        for (path, field) in fields {
            let composed = fields.keys().any(|other| other.starts_with(&format!("{path}.")));
            let problem = match &*field.rule {
                _ if !(field.spoilt || composed && field.rule.is_empty()) => "no record has it",
                "any value" if field.own => "is refused, and said to hold any value",
                "any value" => continue,
                "" if field.own || field.other || field.free || (composed && !field.spoilt) => continue,
                "" => "has no rule, and is not said to hold any value",
                _ if field.named || field.other => continue,
                _ => "has a rule by which nothing is refused",
            };
            wrong.push(format!("{id}{path} {problem}"));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
