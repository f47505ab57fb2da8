//! Records that earlier versions have saved are read for ever.

use std::collections::BTreeSet;

use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, X86_64};
use skep_state::testing::with_unknown_field;

use super::testing::{again, file, machine};
use super::{NamedRecord, Records};
use crate::machine::Saved;

fn root() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn frozen(arch: skep_config::ArchKind) -> Records {
    let path = root().join(file(arch));
    Records::read(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn golden_records_are_read<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let machine = machine::<A>(folder.path());
    let records = frozen(A::KIND).records;
    assert!(records.len() > 25, "{}", records.len());
    for NamedRecord { name, record, .. } in &records {
        let same = |given| {
            let found = again(&machine, name, given).unwrap_or_else(|error| panic!("{name}: {error}"));
            // A later version's optional fields would be more.
            assert!(found == *record, "{name} is another one when it is saved again");
        };
        same(record);
        same(&with_unknown_field(record));
        let later = skep_state::Record { version: record.version + 1, ..record.clone() };
        let refusal = again(&machine, name, &later).unwrap_err().to_string();
        assert!(refusal.starts_with(&format!("record `{}` has version {}", record.id, later.version)), "{refusal}");
    }
}

#[test]
fn golden_records_are_read_on_any_host() {
    golden_records_are_read::<X86_64>();
    golden_records_are_read::<Aarch64>();
}

/// Each type that docs/state.md specifies is among them, by itself or within another.
#[test]
fn each_type_has_a_golden_record() {
    let page = std::fs::read_to_string(root().join("docs/state.md")).unwrap();
    let ids = page.lines().filter_map(|line| line.strip_prefix("## `")?.split('`').next());
    let records = [skep_config::ArchKind::X86_64, skep_config::ArchKind::Aarch64].map(frozen);
    let bytes = records.iter().map(Records::bytes).collect::<Vec<_>>();
    let missing: BTreeSet<_> = ids
        .filter(|id| !bytes.iter().any(|bytes| bytes.windows(id.len()).any(|window| window == id.as_bytes())))
        .collect();
    assert_eq!(missing, BTreeSet::new());
}
