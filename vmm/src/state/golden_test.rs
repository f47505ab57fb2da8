//! Records that earlier versions have saved are read for ever.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, X86_64};
use skep_memory::PAGE_SIZE;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_state::testing::with_unknown_field;

use super::records::{DISKS, MACHINE};
use super::testing::{CONTENT, GOLDEN, PAGES, again, file, machine, services};
use super::{NamedRecord, Records, Snapshot, inspect};
use crate::machine::{ClockPolicy, Machine, Saved};
use crate::migrate::wire::{self, Hello, Kind, State};

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

/// Nothing of what follows is left out of a snapshot that is restored and saved again, but for clocks.
fn a_golden_snapshot_goes_on<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let golden = root().join(GOLDEN);
    for (name, changed) in [("snapshot", false), ("difference", true)] {
        let snapshot = Snapshot::open(&golden.join(format!("{}-{name}", A::KIND))).unwrap();
        snapshot.verify_memory().unwrap();
        inspect::check(&snapshot).unwrap();
        assert_eq!((snapshot.header.container, snapshot.header.saved), (1, 1_790_000_000));
        assert_eq!((snapshot.header.base.is_some(), snapshot.header.memory.data), (changed, PAGE_SIZE));
        let (config, host, policy) = (snapshot.config().unwrap(), Fake::<A>::default(), ClockPolicy::Continue);
        let machine = Machine::of_snapshot(&config, &host, Arc::default(), services(), &snapshot, policy, false);
        let mut machine = machine.unwrap();
        let mut ram = Vec::new();
        for region in machine.ram() {
            let start = ram.len();
            ram.resize(start + region.size() as usize, 0);
            region.read_slice(&mut ram[start..], MemoryRegionAddress(0)).unwrap();
        }
        for (number, page) in ram.chunks(PAGE_SIZE as usize).enumerate() {
            let known = PAGES.iter().position(|known| *known == number as u64).filter(|one| changed || *one == 0);
            let expected = known.map_or([0; 16], |one| *CONTENT[one]);
            assert!(page.chunks(16).all(|bytes| bytes == expected), "page {number}");
        }
        let again = machine.save().unwrap();
        for NamedRecord { name, record, .. } in &snapshot.records.records {
            if name != MACHINE && name != DISKS && !name.starts_with("vcpu/") {
                assert!(again.get(name).unwrap() == record, "{name} is another one when it is saved again");
            }
        }
    }
}

#[test]
fn golden_snapshots_are_restored_on_any_host() {
    a_golden_snapshot_goes_on::<X86_64>();
    a_golden_snapshot_goes_on::<Aarch64>();
}

/// What a source of this version has said is understood, and said by the same bytes.
fn golden_frames_are_understood<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let frame = |end: &str, kind: Kind| {
        let bytes = std::fs::read(root().join(GOLDEN).join(format!("{}.{end}", A::KIND))).unwrap();
        assert_eq!(&bytes[..4], b"SKPM");
        let (mut rest, mut payload) = (bytes.as_slice(), Vec::new());
        assert_eq!(wire::receive(&mut rest, &mut payload).unwrap(), kind);
        assert!(rest.is_empty());
        payload
    };
    let payload = frame("hello", Kind::Hello);
    let hello: Hello = wire::decode(&payload).unwrap();
    assert!(wire::encode(&hello) == payload);
    assert_eq!((hello.protocol, hello.architecture.as_str()), (1, A::KIND.name()));
    assert_eq!((hello.requires.len(), hello.disks.disks.len()), (0, 0));
    assert_eq!(hello.ram.iter().map(|(_, size)| size).sum::<u64>(), 2 << 20);
    let mut config = skep_config::Config::from_toml(&hello.config, "config".as_ref(), A::KIND).unwrap();
    config.finish().unwrap();
    Machine::<A>::could_inherit(&config, &Fake::default(), &hello.cpus).unwrap();
    let payload = frame("state", Kind::State);
    let state: State = wire::decode(&payload).unwrap();
    assert!(wire::encode(&state) == payload);
    assert_eq!((state.stood_nanos, state.paused), (1_234_567, true));
    let snapshot = Snapshot::open(&root().join(GOLDEN).join(format!("{}-snapshot", A::KIND))).unwrap();
    assert!(state.records == snapshot.records);
}

#[test]
fn golden_frames_are_understood_on_any_host() {
    golden_frames_are_understood::<X86_64>();
    golden_frames_are_understood::<Aarch64>();
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
