use std::fs;
use std::path::Path;

use skep_clock::Clock;
use skep_config::{Config, Size};
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Arch, Powers, VmRequest, X86_64};
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{MemoryMap, PAGE_SIZE};
use skep_state::testing::spoilt;

use super::*;
use crate::run::Requests;
use crate::state::changes::Changes;
use crate::state::records::DISKS;
use crate::state::{
    CONTAINER, DisksState, Draft, Header, MAGIC, MEMORY, Progress, RECORDS, REQUIRES_BASE, RecordsFile, Wanted, inspect,
};

#[path = "cpus_test.rs"]
mod cpus;
#[path = "firmware_test.rs"]
mod firmware;

fn services() -> Services {
    Services {
        clock: Clock::manual(1_000_000),
        requests: skep_chipset::Requests::new(|_| ()),
        serial: Box::new(()),
        memory: MemoryMap::new(),
        firmware: None,
    }
}

/// A machine with a device of each kind that needs nothing of the host but files.
fn config(kind: skep_config::ArchKind, folder: &Path) -> Config {
    for name in ["a", "b", "c", "d"] {
        if !folder.join(name).exists() {
            fs::write(folder.join(name), vec![0; 1 << 20]).unwrap();
        }
    }
    let folder = folder.display();
    let mut config = Config::new(kind);
    config.memory.size = Size(64 << 20);
    config.cpus.count = 2;
    config.cpus.max = 2;
    config.cpus.cores = 2;
    let disk = |text: &str| format!("{folder}/{text}").parse().unwrap();
    config.disk = vec![
        disk("a,format=raw,readonly"),
        disk("b,format=raw,readonly,device=virtio-blk,id=data"),
        disk("c,format=raw,readonly,controller=both,id=first,place=port:0"),
        disk("d,format=raw,readonly,controller=both,id=second"),
    ];
    config.device = vec!["balloon".parse().unwrap()];
    config.pci_ports = 1;
    config
}

fn stop<A: Saved>(machine: &Machine<A>) {
    let (done, stopped) = channel();
    machine.begin_stop(move || done.send(()).unwrap());
    stopped.recv().unwrap();
}

fn fresh<A: Saved>(folder: &Path) -> Machine<A>
where
    Fake<A>: Hypervisor<A> + Default,
{
    fresh_on(&Fake::<A>::default(), folder)
}

fn fresh_on<A: Saved>(host: &Fake<A>, folder: &Path) -> Machine<A>
where
    Fake<A>: Hypervisor<A>,
{
    let config = config(A::KIND, folder);
    let machine = Machine::new(&config, host, Arc::default(), services()).unwrap();
    stop(&machine);
    machine
}

/// Writes a snapshot of these records, with the memory of `machine`.
fn write<A: Saved>(machine: &Machine<A>, records: Records, target: &Path) -> Snapshot {
    write_changes(machine, records, None, target)
}

/// The same, of what has changed where that is the difference to another.
fn write_changes<A: Saved>(
    machine: &Machine<A>,
    mut records: Records,
    changes: Option<Changes>,
    target: &Path,
) -> Snapshot {
    let draft = Draft::begin(target).unwrap();
    let disks = machine.disk_images().flush().unwrap();
    records.records.push(NamedRecord::new(DISKS, Record::of(&disks)));
    let bytes = records.bytes();
    draft.write(RECORDS, &bytes).unwrap();
    let file = draft.create(MEMORY).unwrap();
    let differs = changes.as_ref().and_then(|changes| changes.difference(&machine.ram()));
    let runs = differs.as_ref().map(|(_, runs)| runs.as_slice());
    let memory = crate::state::memory::write(&machine.ram(), runs, &file, &Progress::default(), || true).unwrap();
    let header = Header {
        magic: MAGIC.to_owned(),
        container: CONTAINER,
        skep: "test".to_owned(),
        machine: machine.config().machine.to_string(),
        architecture: machine.config().arch().to_string(),
        saved: 0,
        requires: differs.iter().map(|_| REQUIRES_BASE.to_owned()).collect(),
        base: differs.map(|(origin, runs)| draft.base(&origin, &runs).unwrap()),
        records: RecordsFile::of(&bytes),
        memory,
    };
    let origin = draft.finish(&header, &Wanted::default()).unwrap();
    if let Some(changes) = changes {
        changes.saved(origin);
    }
    Snapshot::open(target).unwrap()
}

fn restore<A: Saved>(snapshot: &Snapshot) -> Result<Machine<A>, Error>
where
    Fake<A>: Hypervisor<A> + Default,
{
    restore_on(&Fake::default(), snapshot)
}

fn restore_on<A: Saved>(host: &dyn Hypervisor<A>, snapshot: &Snapshot) -> Result<Machine<A>, Error> {
    let config = snapshot.config()?;
    let policy = ClockPolicy::Continue;
    Machine::of_snapshot(&config, host, Arc::default(), services(), snapshot, policy, true)
}

/// The records but for the host's own time.
fn comparable(records: Records) -> Vec<NamedRecord> {
    let still = |mut named: NamedRecord| {
        if named.name == MACHINE {
            let state: MachineState = named.record.open().unwrap();
            named.record = Record::of(&MachineState { host_nanos: 0, guest_clock: 0, ..state });
        }
        named
    };
    records.records.into_iter().filter(|named| named.name != DISKS).map(still).collect()
}

fn what_is_restored_is_what_was_saved<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let mut one = fresh::<A>(folder.path());
    // A controller whose first disk has gone: the other one keeps its number.
    one.unplug("first", false, None).unwrap();
    let base = one.ram()[0].gpa();
    one.memory().ram().write_slice(b"what a guest has in memory", GuestAddress(base + 0x12_3456)).unwrap();
    let saved = one.save().unwrap();
    let snapshot = write(&one, saved.clone(), &folder.path().join("snapshot"));
    let own = snapshot.machine().unwrap();
    assert!(own.namespaces.contains(&NamedNumber { name: "second".to_owned(), number: 2 }), "{own:?}");
    inspect::check(&snapshot).unwrap();
    snapshot.verify_memory().unwrap();
    drop(one);

    let mut two = restore::<A>(&snapshot).unwrap();
    let mut bytes = [0; 26];
    two.memory().ram().read_slice(&mut bytes, GuestAddress(base + 0x12_3456)).unwrap();
    assert_eq!(&bytes, b"what a guest has in memory");
    assert_eq!(comparable(two.save().unwrap()), comparable(saved));
    let records = two.save().unwrap();
    let again = write(&two, records, &folder.path().join("again"));
    assert_eq!(again.header.memory, snapshot.header.memory);
    two.resume();
    stop(&two);
}

#[test]
fn what_is_restored_is_what_was_saved_on_both_machines() {
    what_is_restored_is_what_was_saved::<X86_64>();
    what_is_restored_is_what_was_saved::<Aarch64>();
}

/// Memory of a chain of differences is what it was at its end, in this process and the next.
fn differences_add_up<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut machine = fresh::<A>(folder.path());
    let base = machine.ram()[0].gpa();
    let put = |machine: &Machine<A>, page: u64, text: &[u8]| {
        machine.memory().ram().write_slice(text, GuestAddress(base + page * PAGE_SIZE)).unwrap();
    };
    let tracker = machine.track(None).unwrap();
    for page in 100..110 {
        put(&machine, page, b"whole");
    }
    let (records, changes) = (machine.save().unwrap(), tracker.take().unwrap());
    let whole = write_changes(&machine, records, Some(changes), &path("whole"));
    assert_eq!(whole.header.base, None);
    put(&machine, 100, b"first");
    put(&machine, 101, &[0; 8]);
    put(&machine, 102, b"first");
    let (records, changes) = (machine.save().unwrap(), tracker.take().unwrap());
    let first = write_changes(&machine, records, Some(changes), &path("first"));
    assert_eq!(first.header.memory.data, 2 * PAGE_SIZE, "one of three is zeroes");
    drop(machine);

    // It goes on elsewhere, and is followed from there.
    let mut machine = restore::<A>(&first).unwrap();
    put(&machine, 102, b"second");
    let tracker = machine.tracker().unwrap();
    let (records, changes) = (machine.save().unwrap(), tracker.take().unwrap());
    let second = write_changes(&machine, records, Some(changes), &path("second"));
    let expected =
        crate::state::memory::write(&machine.ram(), None, &tempfile::tempfile().unwrap(), &Progress::default(), || {
            true
        });
    assert!(second.header.memory.data < whole.header.memory.data);
    second.verify_memory().unwrap();
    drop((machine, whole, first, second));
    // All of them may move, together.
    let moved = tempfile::tempdir().unwrap();
    for name in ["whole", "first", "second"] {
        std::fs::rename(path(name), moved.path().join(name)).unwrap();
    }
    let path = |name: &str| moved.path().join(name);
    let machine = restore::<A>(&Snapshot::open(&path("second")).unwrap()).unwrap();
    let page = |number: u64| {
        let mut text = [0; 6];
        machine.memory().ram().read_slice(&mut text, GuestAddress(base + number * PAGE_SIZE)).unwrap();
        text
    };
    assert_eq!([100, 101, 102, 103].map(page), [*b"first\0", [0; 6], *b"second", *b"whole\0"]);
    let again = tempfile::tempfile().unwrap();
    let found = crate::state::memory::write(&machine.ram(), None, &again, &Progress::default(), || true);
    assert_eq!(found.unwrap(), expected.unwrap());
    drop(machine);

    // What one of them is the difference to is that, whole, and there.
    let refusal = || Snapshot::open(&path("second")).unwrap_err().to_string();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path("first").join(name), bytes).unwrap();
    let header = std::fs::read(path("first").join("header.json")).unwrap();
    write("header.json", &[&header[..], b" "].concat());
    assert!(refusal().contains("first`: that is another snapshot now\n  try: "), "{}", refusal());
    write("header.json", &header);
    let changed = std::fs::read(path("first").join("changed")).unwrap();
    write("changed", &changed[..changed.len() - 1]);
    assert!(refusal().contains("its file `changed` is damaged"), "{}", refusal());
    write("changed", &changed);
    let memory = std::fs::File::options().write(true).open(path("first").join("memory")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&memory, b"F", 100 * PAGE_SIZE).unwrap();
    let damaged = Snapshot::open(&path("second")).unwrap().verify_memory().unwrap_err().to_string();
    assert!(damaged.contains("first`: its file `memory` is damaged"), "{damaged}");
    std::fs::remove_dir_all(path("whole")).unwrap();
    assert!(refusal().contains("whole/header.json`: No such file"), "{}", refusal());
}

#[test]
fn differences_add_up_on_both_machines() {
    differences_add_up::<X86_64>();
    differences_add_up::<Aarch64>();
}

fn records_that_dont_fit_are_named<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<A>(folder.path());
    let saved = machine.save().unwrap();
    let mut number = 0;
    let mut outcome = |edit: &dyn Fn(&mut Vec<NamedRecord>)| {
        let mut records = saved.clone();
        edit(&mut records.records);
        number += 1;
        let snapshot = write(&machine, records, &folder.path().join(number.to_string()));
        restore::<A>(&snapshot).map(drop).map_err(|error| error.to_string())
    };
    outcome(&|_| ()).unwrap();
    let stranger = |optional| {
        let record = Record { id: "warp-drive".to_owned(), version: 1, body: vec![0xa0] };
        NamedRecord { optional, ..NamedRecord::new("device/warp", record) }
    };
    outcome(&|records| records.push(stranger(true))).unwrap();
    let text = outcome(&|records| records.push(stranger(false))).unwrap_err();
    assert!(text.starts_with("it has a record `device/warp` (of type `warp-drive`), which is of nothing in"), "{text}");
    for name in ["device/data/transport", "vcpu/1", "board/pci", CPUS] {
        let text = outcome(&|records| records.retain(|record| record.name != name)).unwrap_err();
        assert_eq!(text, format!("it has no record `{name}`, which this machine needs"));
    }
    let later = |records: &mut Vec<NamedRecord>| {
        records.iter_mut().filter(|record| record.name == "device/disk0").for_each(|record| record.record.version = 9);
    };
    let text = outcome(&later).unwrap_err();
    assert!(text.starts_with("its record `device/disk0` is refused: record `nvme` has version 9, and"), "{text}");
}

#[test]
fn records_that_dont_fit_are_named_on_both_machines() {
    records_that_dont_fit_are_named::<X86_64>();
    records_that_dont_fit_are_named::<Aarch64>();
}

/// Each value of each record that is the machine's own, in turn, is another one: a refusal or a machine, and no panic.
fn hostile_records_do_no_harm<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<A>(folder.path());
    let saved = machine.save().unwrap();
    let own = |snapshot: &Snapshot| {
        // What is refused is refused by name.
        match restore::<A>(snapshot) {
            Ok(machine) => stop(&machine),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    };
    let mut snapshot = write(&machine, saved, &folder.path().join("snapshot"));
    drop(machine);
    for name in [MACHINE, CPUS, INTERRUPTS] {
        let Some(at) = snapshot.records.records.iter().position(|record| record.name == name) else { continue };
        let whole = snapshot.records.records[at].record.clone();
        // One in 37: others of the same kind are no different.
        for record in spoilt(&whole).step_by(if name == MACHINE { 1 } else { 37 }) {
            snapshot.records.records[at].record = record;
            own(&snapshot);
        }
        snapshot.records.records[at].record = whole;
    }
    own(&snapshot);
}

#[test]
fn fuzz_hostile_records_do_no_harm_on_both_machines() {
    hostile_records_do_no_harm::<X86_64>();
    hostile_records_do_no_harm::<Aarch64>();
}

#[test]
fn a_cpu_that_is_not_the_guests_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<X86_64>(folder.path());
    let mut saved = machine.save().unwrap();
    let cpus = saved.records.iter_mut().find(|record| record.name == CPUS).unwrap();
    let mut state: X86CpusState = cpus.record.open().unwrap();
    let leaf = state.first.iter_mut().find(|leaf| leaf.leaf == 1).unwrap();
    leaf.registers[2] |= 1 << 12;
    cpus.record = Record::of(&state);
    let snapshot = write(&machine, saved, &folder.path().join("snapshot"));
    let error = restore::<X86_64>(&snapshot).err().unwrap().to_string();
    assert_eq!(error, "this host's CPU is not one for the guest: the guest was shown what it does not have: fma");
}

/// Edits the first vCPU's record.
fn edit_first<S: skep_state::State>(records: &mut Records, edit: impl FnOnce(&mut S)) {
    let first = records.records.iter_mut().find(|record| record.name == vcpu(0)).unwrap();
    let mut state: S = first.record.open().unwrap();
    edit(&mut state);
    first.record = Record::of(&state);
}

/// Before the VM is made, with both figures.
#[test]
fn a_counter_of_another_frequency_is_refused_unless_it_can_be_scaled() {
    use skep_hypervisor::{aarch64, x86_64};
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<X86_64>(folder.path());
    let mut saved = machine.save().unwrap();
    edit_first(&mut saved, |state: &mut x86_64::VcpuState| state.tsc_khz = Some(2_500_000));
    let snapshot = write(&machine, saved, &folder.path().join("snapshot"));
    let host = |khz, scaling| {
        let mut host = Fake::<X86_64>::new();
        (host.capabilities.arch.tsc_khz, host.capabilities.arch.tsc_scaling) = (khz, scaling);
        restore_on(&host, &snapshot).map(drop).map_err(|error| error.to_string())
    };
    // As near as hosts of one model are; where nobody knows, the vCPU is asked.
    for (khz, scaling) in [(Some(2_500_625), false), (None, false), (Some(2_400_000), true)] {
        host(khz, scaling).unwrap();
    }
    for khz in [2_500_626, 2_400_000] {
        let text = host(Some(khz), false).unwrap_err();
        assert!(text.ends_with(&format!("was 2500000 kHz, and is {khz} kHz here, which can't scale it")), "{text}");
    }

    let mut machine = fresh::<Aarch64>(folder.path());
    let mut saved = machine.save().unwrap();
    edit_first(&mut saved, |state: &mut aarch64::VcpuState| state.counter_hz = 19_200_000);
    let snapshot = write(&machine, saved, &folder.path().join("other"));
    let mut host = Fake::<Aarch64>::new();
    let text = restore_on(&host, &snapshot).err().unwrap().to_string();
    assert!(text.contains("the counter's frequency was 19200000 Hz, and is "), "{text}");
    host.capabilities.arch.counter_hz = 19_200_000;
    restore_on(&host, &snapshot).unwrap();
}

/// The same where a machine is to migrate, before any of it is sent.
#[test]
fn a_counter_of_another_frequency_is_refused_to_a_machine_that_is_to_come() {
    let folder = tempfile::tempdir().unwrap();
    let machine = fresh::<X86_64>(folder.path());
    let told = X86_64::cpus(&machine.plan, Some(2_500_000), None);
    let could = |khz, scaling| {
        let mut host = Fake::<X86_64>::new();
        (host.capabilities.arch.tsc_khz, host.capabilities.arch.tsc_scaling) = (khz, scaling);
        Machine::<X86_64>::could_inherit(&machine.config, &host, &told, &machine.ram_ranges())
            .map_err(|error| error.to_string())
    };
    for (khz, scaling) in [(Some(2_500_625), false), (None, false), (Some(2_400_000), true)] {
        could(khz, scaling).unwrap();
    }
    let text = could(Some(2_400_000), false).unwrap_err();
    assert!(text.ends_with("was 2500000 kHz, and is 2400000 kHz here, which can't scale it"), "{text}");

    // What it tells of itself is what its guest sees: that of the host that it began on.
    let mut first = Fake::<Aarch64>::new();
    first.capabilities.arch.counter_hz = 19_200_000;
    let mut machine = fresh_on::<Aarch64>(&first, folder.path());
    let hello = machine.leave(Address::Unix(folder.path().join("nowhere")), Duration::ZERO).unwrap().hello;
    Machine::<Aarch64>::could_inherit(&machine.config, &first, &hello.cpus, &hello.ram()).unwrap();
    let text = Machine::<Aarch64>::could_inherit(&machine.config, &Fake::new(), &hello.cpus, &hello.ram())
        .unwrap_err()
        .to_string();
    assert!(text.contains("the counter's frequency was 19200000 Hz, and is "), "{text}");
}

/// Its pieces of RAM are compared before any of them is sent.
fn other_memory_is_refused_to_a_machine_that_is_to_come<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<A>(folder.path());
    let hello = machine.leave(Address::Unix(folder.path().join("nowhere")), Duration::ZERO).unwrap().hello;
    let could = |edit: &dyn Fn(&mut Vec<RamRange>)| {
        let mut ram = hello.ram();
        edit(&mut ram);
        let fits = Machine::<A>::could_inherit(&machine.config, &Fake::default(), &hello.cpus, &ram);
        fits.map_err(|error| error.to_string())
    };
    could(&|_| ()).unwrap();
    let spoil: [fn(&mut Vec<RamRange>); 4] = [
        |ram| ram[0].size += PAGE_SIZE,
        |ram| ram[0].address += PAGE_SIZE,
        Vec::clear,
        |ram| ram.push(RamRange { address: 1 << 40, size: PAGE_SIZE }),
    ];
    for edit in spoil {
        assert!(could(&edit).unwrap_err().contains("its pieces of RAM are not those of its config on this host"));
    }
}

#[test]
fn other_memory_is_refused_to_a_machine_that_is_to_come_on_both_machines() {
    other_memory_is_refused_to_a_machine_that_is_to_come::<X86_64>();
    other_memory_is_refused_to_a_machine_that_is_to_come::<Aarch64>();
}

/// A guest has it where the host does, unless it is to have none; and goes on with what it was shown.
#[test]
fn a_performance_monitor_is_the_hosts_and_then_the_guests() {
    let folder = tempfile::tempdir().unwrap();
    let request = VmRequest { max_vcpus: 2, highest_gpa: 1 << 36, powers: Powers::empty() };
    let mut host = Fake::<Aarch64>::new().builder(&request).unwrap().capabilities().clone();
    let mut config = config(Aarch64::KIND, folder.path());
    let plan = |config: &Config, host: &_| Aarch64::plan(config, "a fake", host);
    let has = |plan: &Plan<Aarch64>| plan.vcpus.iter().map(|vcpu| vcpu.features.pmu).collect::<Vec<_>>();
    let vcpus = config.cpus.max as usize;
    let without = plan(&config, &host).unwrap();
    assert_eq!(has(&without), vec![false; vcpus]);
    host.arch.pmu = true;
    let with = plan(&config, &host).unwrap();
    assert_eq!(has(&with), vec![true; vcpus]);

    let adopted = |saved: &Plan<Aarch64>, host: &_| {
        let mut plan = plan(&config, host).unwrap();
        let adopted = Aarch64::adopt(&mut plan, host, &Aarch64::cpus(saved, None, None), None);
        adopted.map(|()| has(&plan)).map_err(|error| error.to_string())
    };
    assert_eq!(adopted(&with, &host), Ok(vec![true; vcpus]));
    assert_eq!(adopted(&without, &host), Ok(vec![false; vcpus]));
    host.arch.pmu = false;
    let text = adopted(&with, &host).unwrap_err();
    assert!(text.ends_with("the guest was shown a performance monitor (PMUv3), which it does not have"), "{text}");

    config.cpu_features.pmu = Some(true);
    let text = plan(&config, &host).unwrap_err().to_string();
    assert!(text.contains("performance monitor (PMUv3)") && text.contains("cpu-features"), "{text}");
    host.arch.pmu = true;
    config.cpu_features.pmu = Some(false);
    assert_eq!(has(&plan(&config, &host).unwrap()), vec![false; vcpus]);
}

/// What a host fixes of its CPUs is compared before any of a machine is sent.
#[test]
fn another_arm64_cpu_is_refused_to_a_machine_that_is_to_come() {
    use skep_hypervisor::aarch64::registers::{MIDR_EL1, MPIDR_EL1, SCTLR_EL1};
    use skep_hypervisor::aarch64::{SystemRegister, VcpuIdentity};
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<Aarch64>(folder.path());
    let cpus = machine.leave(Address::Unix(folder.path().join("nowhere")), Duration::ZERO).unwrap().hello.cpus;
    let told: Aarch64CpusState = cpus.open().unwrap();
    let identity = told.identity.clone().unwrap();
    let values: Vec<_> = identity.registers.iter().filter(|(_, value)| value.is_some()).map(|(r, _)| *r).collect();
    assert_eq!(values, [MIDR_EL1, MPIDR_EL1]);
    assert!(identity.registers.contains(&(SCTLR_EL1, None)));
    let could = |identity: Option<VcpuIdentity>| {
        let cpus = Record::of(&Aarch64CpusState { identity, ..told.clone() });
        let fits = Machine::<Aarch64>::could_inherit(&machine.config, &Fake::new(), &cpus, &machine.ram_ranges());
        fits.map_err(|error| error.to_string())
    };
    let spoilt = |spoil: &dyn Fn(&mut VcpuIdentity)| {
        let mut identity = identity.clone();
        spoil(&mut identity);
        could(Some(identity)).unwrap_err()
    };
    could(Some(identity.clone())).unwrap();
    // Of a source that does not say, the vCPUs' states are compared when they have come.
    could(None).unwrap();
    let text = spoilt(&|identity| identity.registers[0].1 = Some(0x410f_d0b0));
    assert!(text.starts_with("this host's CPU is not one for the guest: vCPU 0: "), "{text}");
    assert!(text.ends_with("MIDR_EL1: it is 0x410fd0b0, and 0x410fd0c1 on this host"), "{text}");
    let text = spoilt(&|identity| identity.registers.push((SystemRegister(u16::MAX), None)));
    assert!(text.ends_with("this CPU has other system registers"), "{text}");
    let text = spoilt(&|identity| identity.registers.reverse());
    assert!(text.contains("field `identity.registers`"), "{text}");
    let text = spoilt(&|identity| identity.firmware = vec![("psci".to_owned(), 1); 65]);
    assert!(text.contains("field `identity.firmware`"), "{text}");
}

/// The same of a snapshot, before memory is mapped or a device made.
#[test]
fn another_arm64_cpu_is_refused_before_anything_is_made() {
    use skep_hypervisor::aarch64::VcpuState;
    use skep_hypervisor::aarch64::registers::MIDR_EL1;
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<Aarch64>(folder.path());
    let mut saved = machine.save().unwrap();
    let snapshot = write(&machine, saved.clone(), &folder.path().join("same"));
    Machine::could_restore(&snapshot.config().unwrap(), &Fake::<Aarch64>::new(), &snapshot).unwrap();
    edit_first(&mut saved, |state: &mut VcpuState| {
        state.registers.iter_mut().filter(|(register, _)| *register == MIDR_EL1).for_each(|(_, value)| *value = 7);
    });
    let snapshot = write(&machine, saved, &folder.path().join("other"));
    let (config, host, services) = (snapshot.config().unwrap(), Fake::<Aarch64>::new(), services());
    let (policy, memory) = (ClockPolicy::Continue, services.memory.clone());
    let restored = Machine::of_snapshot(&config, &host, Arc::default(), services, &snapshot, policy, false);
    let told = Machine::could_restore(&config, &host, &snapshot).unwrap_err().to_string();
    assert!(told.starts_with("this host's CPU is not one for the guest: vCPU 0: "), "{told}");
    assert!(told.ends_with("MIDR_EL1: it is 0x7, and 0x410fd0c1 on this host"), "{told}");
    assert_eq!(restored.err().unwrap().to_string(), told);
    assert_eq!(memory.regions().len(), 0, "nothing has been made");
}

/// The list of features is a file of the source's.
#[test]
fn a_machine_of_a_feature_list_goes_where_the_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (host, list) = (Fake::<X86_64>::new(), folder.path().join("list"));
    let mut config = config(skep_config::ArchKind::X86_64, folder.path());
    let all = Machine::common_features(&config, &host, &[]).unwrap();
    fs::write(&list, all.replace(" xsave ", " ")).unwrap();
    config.cpu = Some(list.to_str().unwrap().to_owned());
    let mut machine = Machine::new(&config, &host, Arc::default(), services()).unwrap();
    stop(&machine);
    let hello = machine.leave(Address::Unix(folder.path().join("nowhere")), Duration::ZERO).unwrap().hello;
    fs::remove_file(&list).unwrap();
    let come = |text: &str| {
        let mut config = Config::from_toml(text, "config".as_ref(), skep_config::ArchKind::X86_64).unwrap();
        config.finish().unwrap();
        Machine::<X86_64>::could_inherit(&config, &host, &hello.cpus, &hello.ram()).map(|()| config.cpu)
    };
    assert_eq!(come(&hello.config).unwrap(), None);
    // One of an older skep's, that has told its file's name.
    assert_eq!(come(&config.to_toml().unwrap()).unwrap(), config.cpu);
    let cpus: X86CpusState = hello.cpus.open().unwrap();
    let features = cpus.first.iter().find(|leaf| leaf.leaf == 1).unwrap().registers[2];
    assert_eq!(features >> 26 & 1, 0, "what it is shown is what the list let through");
}

fn vcpus_hear_that_they_stood_still<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let host = Fake::<A>::default();
    let mut machine = fresh_on(&host, folder.path());
    let saved = machine.save().unwrap();
    let snapshot = write(&machine, saved, &folder.path().join("snapshot"));
    drop(machine);
    let (config, gate) = (snapshot.config().unwrap(), Arc::new(Gate::default()));
    let policy = ClockPolicy::Continue;
    let mut machine = Machine::of_snapshot(&config, &host, gate.clone(), services(), &snapshot, policy, true).unwrap();
    machine.vcpus_mut().start(&Arc::new(Requests::new(gate.clone()).unwrap())).unwrap();
    // Lets them run until each has been told so often.
    let run = |told| {
        gate.open();
        while [0, 1].iter().any(|vcpu| host.standstills(*vcpu) < told) {
            std::thread::yield_now();
        }
        gate.close_and_wait();
        assert_eq!([0, 1].map(|vcpu| host.standstills(vcpu)), [told, told]);
    };
    machine.resume();
    assert_eq!([0, 1].map(|vcpu| host.standstills(vcpu)), [0, 0], "they hear of it when they run");
    // It stands still once, and the gate closes often.
    (0..100).for_each(|_| run(1));
    stop(&machine);
    machine.resume();
    run(2);
    stop(&machine);
}

#[test]
fn vcpus_hear_that_they_stood_still_on_both_machines() {
    vcpus_hear_that_they_stood_still::<X86_64>();
    vcpus_hear_that_they_stood_still::<Aarch64>();
}

fn opened<S: skep_state::State>(records: &Records, name: &str) -> S {
    records.open(name).unwrap()
}

/// A periodic interrupt that has come due since the clock stands is in the controllers as well as in the clock: a guest that is not told never reads register C, and
/// no other comes.
#[test]
fn a_timer_that_is_due_when_a_pc_is_saved_interrupts_where_it_is_restored() {
    use skep_arch::x86_64::layout::{IOAPIC, gsi};
    use skep_chipset::{i8259::I8259State, ioapic::IoApicState, rtc::RtcState};
    use skep_hypervisor::x86_64::VcpuState;
    const VECTOR: u8 = 0x51;
    const PERIODIC: u8 = 1 << 6;
    let (pin, mask) = (gsi::RTC as usize, 1 << (VECTOR % 32));
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<X86_64>(folder.path());
    // A local APIC that is on.
    for mut slot in machine.vcpus.paused() {
        let slot = &mut *slot;
        let mut state = slot.vcpu.save(&mut *slot.io).unwrap();
        state.apic.registers[0xf] |= 1 << 8;
        slot.vcpu.restore(&state).unwrap();
    }
    let rtc = |machine: &Machine<X86_64>, register: u8, value: u8| {
        let mut io = X86_64::io(&machine.board, 0);
        io.port_write(0x70, &[register]);
        io.port_write(0x71, &[value]);
    };
    let taken = |machine: &Machine<X86_64>| {
        let (mut io, mut flags) = (X86_64::io(&machine.board, 0), [0]);
        io.port_write(0x70, &[0x0c]);
        io.port_read(0x71, &mut flags);
        flags[0]
    };
    let mut io = X86_64::io(&machine.board, 0);
    for (register, value) in [(0x11 + 2 * gsi::RTC, 0), (0x10 + 2 * gsi::RTC, u32::from(VECTOR))] {
        io.memory_write(IOAPIC.base, &register.to_le_bytes());
        io.memory_write(IOAPIC.base + 0x10, &value.to_le_bytes());
    }
    // 1024 times a second.
    rtc(&machine, 0x0a, 0x26);
    rtc(&machine, 0x0b, 0x02 | PERIODIC);
    taken(&machine);
    let told = |records: &Records| {
        let (ioapic, pic): (IoApicState, I8259State) =
            (opened(records, "board/ioapic"), opened(records, "board/i8259"));
        let (clock, first): (RtcState, VcpuState) = (opened(records, "board/rtc"), opened(records, "vcpu/0"));
        let pending = first.apic.registers[0x20 + usize::from(VECTOR) / 32] & mask != 0;
        (clock.flags & PERIODIC != 0, ioapic.asserted[pin], pic.slave.irr & 1 != 0, pending)
    };
    assert_eq!(told(&machine.save().unwrap()), (false, false, false, false));
    machine.pass_time(4_000_000);
    let saved = machine.save().unwrap();
    assert_eq!(told(&saved), (true, true, true, true));
    let snapshot = write(&machine, saved.clone(), &folder.path().join("snapshot"));
    drop(machine);

    let mut machine = restore::<X86_64>(&snapshot).unwrap();
    assert_eq!(comparable(machine.save().unwrap()), comparable(saved));
    assert_eq!(taken(&machine) & 0xc0, 0xc0);
    assert_eq!(told(&machine.save().unwrap()), (false, false, true, true), "they keep what they have latched");
    machine.clock().advance(1_000_000);
    assert_eq!(told(&machine.save().unwrap()), (true, true, true, true), "it goes on");
}

/// The same of what a serial port's input and a clock's alarm wait for.
#[test]
fn timers_that_are_due_when_an_arm64_machine_is_saved_interrupt_where_it_is_restored() {
    use skep_arch::aarch64::layout::{RTC, UART, spi};
    use skep_chipset::{pl011::Pl011State, pl031::Pl031State};
    use skep_hypervisor::aarch64::GicState;
    const TIMEOUT: u16 = 1 << 6;
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<Aarch64>(folder.path());
    let store = |at: u64, value: u32| Aarch64::io(&machine.board, 0).memory_write(at, &value.to_le_bytes());
    // The receiver and its FIFO are on, with the timeout's interrupt; the alarm is a second from now.
    store(UART.base + 0x2c, 1 << 4);
    store(UART.base + 0x30, 1 << 9 | 1 << 0);
    store(UART.base + 0x38, TIMEOUT.into());
    assert_eq!(Aarch64::serial(&machine.board).receive(b"a"), 1);
    store(RTC.base + 0x04, 1_000_001);
    store(RTC.base + 0x10, 1);
    let told = |records: &Records| {
        let gic: GicState = opened(records, INTERRUPTS);
        let (uart, rtc): (Pl011State, Pl031State) = (opened(records, "board/pl011"), opened(records, "board/pl031"));
        let is_high = |line: u32| gic.levels[(line / 32) as usize] >> (line % 32) & 1 != 0;
        [(uart.ris & TIMEOUT != 0, is_high(spi::UART)), (rtc.raised, is_high(spi::RTC))]
    };
    assert_eq!(told(&machine.save().unwrap()), [(false, false); 2]);
    machine.pass_time(1_000_000_000);
    let saved = machine.save().unwrap();
    assert_eq!(told(&saved), [(true, true); 2]);
    let snapshot = write(&machine, saved.clone(), &folder.path().join("snapshot"));
    drop(machine);

    let mut machine = restore::<Aarch64>(&snapshot).unwrap();
    assert_eq!(comparable(machine.save().unwrap()), comparable(saved));
    let mut data = [0; 4];
    Aarch64::io(&machine.board, 0).memory_read(UART.base, &mut data);
    Aarch64::io(&machine.board, 0).memory_write(RTC.base + 0x1c, &[1, 0, 0, 0]);
    assert_eq!(told(&machine.save().unwrap()), [(false, false); 2], "what the guest has seen is over");
}

/// Ticks of the clock that the guest reads without an exit, in an hour.
fn clocks_continue_or_jump_by<A: Saved>(hour_ticks: u64)
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh::<A>(folder.path());
    machine.clock().set(5_000_000_000);
    let saved = machine.save().unwrap();
    let mut snapshot = write(&machine, saved, &folder.path().join("snapshot"));
    drop(machine);
    // Saved an hour ago.
    let hour = 3_600_000_000_000;
    let own = snapshot.machine().unwrap();
    let earlier = MachineState { host_nanos: own.host_nanos - hour, ..own.clone() };
    let at = snapshot.records.records.iter().position(|record| record.name == MACHINE).unwrap();
    snapshot.records.records[at].record = Record::of(&earlier);
    let make = |policy| {
        let config = snapshot.config().unwrap();
        let host = Fake::<A>::default();
        let machine = Machine::of_snapshot(&config, &host, Arc::default(), services(), &snapshot, policy, false);
        let machine = machine.unwrap();
        (machine.clock().now(), machine.clock().wall(), machine.vm().clock().get().unwrap())
    };
    let (now, wall, counter) = make(ClockPolicy::Continue);
    assert_eq!((now, wall), (5_000_000_000, own.wall_nanos.into()));
    assert!((own.guest_clock..own.guest_clock + hour_ticks / 2).contains(&counter), "{counter}");
    let (later, later_wall, later_counter) = make(ClockPolicy::Jump);
    assert!(later >= now + hour as u64 && later_wall >= wall + i128::from(hour), "{later} {later_wall}");
    assert!(later_counter >= own.guest_clock + hour_ticks, "{counter} {later_counter}");
}

#[test]
fn clocks_continue_or_jump_on_both_machines() {
    clocks_continue_or_jump_by::<X86_64>(3_600_000_000_000);
    clocks_continue_or_jump_by::<Aarch64>(3600 * u64::from(Fake::<Aarch64>::new().capabilities.arch.counter_hz));
}

#[test]
fn disks_are_known_again() {
    let folder = tempfile::tempdir().unwrap();
    let machine = fresh::<X86_64>(folder.path());
    let saved = machine.disk_images().flush().unwrap();
    let config = machine.config().clone();
    assert_eq!(saved.disks.len(), 4);
    check_disks(&config, &saved, &[], false).unwrap();
    let refusal = |edit: &dyn Fn(&mut DisksState), replaced: &[String], trusted| {
        let mut saved = saved.clone();
        edit(&mut saved);
        check_disks(&config, &saved, replaced, trusted).map_err(|error| error.to_string())
    };
    let moved_on = |saved: &mut DisksState| saved.disks[1].changed_nanos = Some(7);
    let text = refusal(&moved_on, &[], false).unwrap_err();
    assert!(text.starts_with("disk `data`: `") && text.contains("try: --disk data=FILE"), "{text}");
    refusal(&moved_on, &["data".to_owned()], false).unwrap();
    refusal(&moved_on, &[], true).unwrap();
    let text = refusal(&|saved| saved.disks[0].size = 512, &["disk0".to_owned()], true).unwrap_err();
    assert!(text.contains("has 1048576 bytes, and had 512"), "{text}");
    let text = refusal(&|saved| saved.disks[0].format = "qcow2".to_owned(), &[], true).unwrap_err();
    assert!(text.contains("it was qcow2, and is raw now"), "{text}");
    // Of a block device.
    let text = refusal(&|saved| saved.disks[2].changed_nanos = None, &[], false).unwrap_err();
    assert!(text.starts_with("disk `first`: `") && text.contains("` is a block device, which does not tell"), "{text}");
    assert!(text.ends_with("try: --trust-disks if you know that it holds what it held then"), "{text}");
    refusal(&|saved| saved.disks[2].changed_nanos = None, &[], true).unwrap();
    assert!(refusal(&|saved| saved.disks.truncate(1), &[], true).unwrap_err().contains("does not say what it was"));
}

/// Each file of a chain, and the size that the guest knows, which is in the image.
#[test]
fn what_is_behind_a_disk_is_known_again() {
    use skep_block::image::{Backing, CreateOptions, ImageFormat, NewImage, create};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let make = |name: &str, size: Option<u64>, behind: Option<(&str, ImageFormat)>| {
        let backing =
            behind.map(|(name, format)| Backing { file: name.into(), format: Some(format.name().to_owned()) });
        let options = CreateOptions { backing, ..CreateOptions::default() };
        create(&path(name), ImageFormat::Qcow2, size, &NewImage { qcow2: options, force: true }).unwrap();
    };
    fs::write(path("base"), vec![0; 1 << 20]).unwrap();
    make("middle", None, Some(("base", ImageFormat::Raw)));
    make("top", None, Some(("middle", ImageFormat::Qcow2)));
    make("larger", Some(2 << 20), None);
    let config = |name: &str| {
        let mut config = config(skep_config::ArchKind::X86_64, folder.path());
        config.disk = vec![format!("{},format=qcow2,readonly", path(name).display()).parse().unwrap()];
        config.finish().unwrap();
        config
    };
    let mut machine = Machine::new(&config("top"), &Fake::<X86_64>::default(), Arc::default(), services()).unwrap();
    stop(&machine);
    let records = machine.save().unwrap();
    let snapshot = write(&machine, records, &path("snapshot"));
    drop(machine);
    let saved: DisksState = snapshot.records.open(DISKS).unwrap();
    let names = |saved: &DisksState| saved.disks[0].behind.as_ref().map(|images| images.len());
    assert_eq!(names(&saved), Some(2));
    let check = |trusted| check_disks(&config("top"), &saved, &[], trusted).map_err(|error| error.to_string());
    check(false).unwrap();
    drop(restore::<X86_64>(&snapshot).unwrap());
    let written = |name: &str| {
        let file = fs::File::options().write(true).open(path(name)).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.set_modified(before + Duration::from_secs(1)).unwrap();
        let text = check(false).unwrap_err();
        assert!(text.contains(&format!("{name}` has been written since the snapshot was saved")), "{text}");
        check(true).unwrap();
        file.set_modified(before).unwrap();
        check(false).unwrap();
    };
    ["base", "middle", "top"].into_iter().for_each(written);
    // One that was saved before anybody looked.
    let mut early = saved.clone();
    early.disks[0].behind = None;
    check_disks(&config("top"), &early, &[], false).unwrap();
    let mut shorter = saved.clone();
    shorter.disks[0].behind.as_mut().unwrap().truncate(1);
    let text = check_disks(&config("top"), &shorter, &[], false).unwrap_err().to_string();
    assert!(text.contains("has 2 images behind it, and had 1"), "{text}");
    // Another in its place has its size, whatever its file's is.
    let other = config("larger");
    let id = other.disk[0].id.clone().unwrap();
    let text = check_disks(&other, &saved, &[id], true).unwrap_err().to_string();
    assert!(text.contains("larger` has 2097152 bytes, and had 1048576"), "{text}");
    // It is looked at again once it is open.
    let text = Machine::<X86_64>::of_snapshot(
        &other,
        &Fake::default(),
        Arc::default(),
        services(),
        &snapshot,
        ClockPolicy::Continue,
        false,
    );
    let text = text.err().unwrap().to_string();
    assert!(text.contains("larger` has 2097152 bytes, and had 1048576"), "{text}");
}
