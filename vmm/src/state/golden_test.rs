//! Records that earlier versions have saved are read for ever.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, X86_64, aarch64, x86_64};
use skep_memory::PAGE_SIZE;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_state::testing::with_unknown_field;

use super::records::{DISKS, INTERRUPTS, MACHINE, vcpu};
use super::testing::{CONTENT, GOLDEN, PAGES, again, file, machine, made, services};
use super::{DisksState, HEADER, Header, MEMORY, NamedRecord, RECORDS, Records, Snapshot, inspect};
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
    Machine::<A>::could_inherit(&config, &Fake::default(), &hello.cpus, &hello.ram()).unwrap();
    let payload = frame("state", Kind::State);
    let state = State::open(&payload).unwrap();
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

/// A snapshot of a machine on a real KVM, in which the guest of `native_snapshot` has driven its disks: its memory is not kept.
fn of_kvm(name: &str) -> (tempfile::TempDir, Snapshot) {
    let folder = tempfile::tempdir().unwrap();
    for file in [HEADER, RECORDS] {
        std::fs::copy(root().join(GOLDEN).join(name).join(file), folder.path().join(file)).unwrap();
    }
    let header: Header = serde_json::from_slice(&std::fs::read(folder.path().join(HEADER)).unwrap()).unwrap();
    File::create(folder.path().join(MEMORY)).unwrap().set_len(header.memory.size).unwrap();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    (folder, snapshot)
}

/// Each of its records is sound, is told, and is the same bytes when it is written, and saved, again.
fn what_kvm_has_saved_is_read<A: Saved>(name: &str) -> Snapshot
where
    Fake<A>: Hypervisor<A> + Default,
{
    let (folder, snapshot) = of_kvm(name);
    inspect::check(&snapshot).unwrap();
    assert!(snapshot.records.bytes() == std::fs::read(folder.path().join(RECORDS)).unwrap());
    let mut config = snapshot.config().unwrap();
    let disks: DisksState = snapshot.records.open(DISKS).unwrap();
    assert_eq!((config.disk.len(), disks.disks.len()), (2, 2));
    for (disk, known) in config.disk.iter_mut().zip(&disks.disks) {
        *disk.source.path_mut() = folder.path().join(&known.id);
        File::create(disk.source.path_mut()).unwrap().set_len(known.size).unwrap();
    }
    let (machine, text) = (made::<A>(&config, services()), inspect::text(&snapshot));
    // Components are told the time that they were saved at.
    let own = snapshot.machine().unwrap();
    machine.clock().set(own.guest_nanos);
    machine.clock().set_wall(own.wall_nanos.into());
    for NamedRecord { name, record, .. } in &snapshot.records.records {
        assert!(text.contains(&format!("\n{name} ({}, version {}): ", record.id, record.version)), "{name}");
        let found = again(&machine, name, record).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == *record, "{name} is another one when it is saved again");
    }
    snapshot
}

#[test]
fn what_kvm_has_saved_is_read_on_any_host() {
    let pc = what_kvm_has_saved_is_read::<X86_64>("kvm-x86_64").records;
    let [first, second] = [0, 1].map(|index| pc.open::<x86_64::VcpuState>(&vcpu(index)).unwrap());
    assert_eq!((first.tsc_khz, first.tsc, first.general.rip), (Some(2_299_998), 5_210_563_440_206, 0x102249));
    assert_eq!((first.system.efer, first.system.cr0, first.mp), (0x500, 0x8001_0033, x86_64::MpState::Running));
    assert_eq!((first.apic.base, first.apic.registers[0x35]), (0xfee0_0900, 0x700));
    assert_eq!((second.mp, second.general.rip), (x86_64::MpState::Uninitialized, 0xfff0));
    // One of its CPU is no CPU of the fake's.
    let (folder, snapshot) = of_kvm("kvm-x86_64");
    let refused = Machine::could_restore(&snapshot.config().unwrap(), &Fake::<X86_64>::new(), &snapshot);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.ends_with("the guest was shown one of `GenuineIntel`, and this is one of `fakefakefake`"),
        "{refused}"
    );
    drop(folder);
}

/// Of each generation of the GIC, from boards with other CPUs.
#[test]
fn what_kvm_has_saved_on_arm64_is_read_on_any_host() {
    use aarch64::registers::MIDR_EL1;
    let pc = 0x4000_0000 + 0x1e6c;
    for (board, midr, counter) in [("gicv3", 0x414f_d0c1, 289_136_629), ("gicv2", 0x410f_d083, 294_498_304)] {
        let saved = what_kvm_has_saved_is_read::<Aarch64>(&format!("kvm-aarch64-{board}")).records;
        let [first, second] = [0, 1].map(|index| saved.open::<aarch64::VcpuState>(&vcpu(index)).unwrap());
        assert_eq!((first.pc, first.counter, first.counter_hz), (pc, counter, 62_500_000), "{board}");
        assert_eq!((first.register(MIDR_EL1), first.power), (Some(midr), aarch64::PowerState::On), "{board}");
        assert_eq!((second.power, second.register(MIDR_EL1)), (aarch64::PowerState::Off, Some(midr)), "{board}");
        assert!(first.firmware.contains(&("psci".to_owned(), 0x1_0001)), "{board}");
        let gic: aarch64::GicState = saved.open(INTERRUPTS).unwrap();
        let interface = (gic.cpus[0].interface.len(), gic.cpus[0].memory_interface.len());
        match &gic.its {
            Some(its) => {
                assert_eq!((gic.version, gic.spis, interface), (3, 32, (9, 0)));
                // Quiescent, with a table of devices and one of collections.
                assert!(its.registers.contains(&(0, 1 << 31)), "{its:x?}");
                assert!(its.registers.contains(&(0x100, 0x1907_0000_0000_0600)), "{its:x?}");
                assert_eq!(its.tables, "kvm-its-0");
            }
            None => assert_eq!((gic.version, gic.spis, interface), (2, 256, (0, 8))),
        }
    }
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
