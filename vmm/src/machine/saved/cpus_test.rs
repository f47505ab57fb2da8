//! What a guest was shown in IA32_ARCH_CAPABILITIES, on the way from host to host.

use skep_hypervisor::x86_64::CpuidEntry;

use super::*;

const RDCL_NO: u64 = 1 << 0;
const RSBA: u64 = 1 << 2;
const MDS_NO: u64 = 1 << 5;
const RRSBA: u64 = 1 << 19;

/// What the guest that goes was shown, and that of hosts on which it can go on.
const SHOWN: u64 = RDCL_NO | MDS_NO | RRSBA;
const SUITABLE: [u64; 3] = [SHOWN, SHOWN | 1 << 8, RDCL_NO | MDS_NO];

/// And those on which it can't, by what they are told.
const OTHERS: [(u64, &str); 3] = [
    (RDCL_NO | RRSBA, "the guest was shown what it does not have: arch-capabilities.mds-no"),
    (0, "the guest was shown what it does not have: arch-capabilities.rdcl-no, arch-capabilities.mds-no"),
    (SHOWN | RSBA, "it has what the guest was not told of: arch-capabilities.rsba"),
];

fn host(arch_capabilities: u64) -> Fake<X86_64> {
    let mut host = Fake::<X86_64>::new();
    let arch = &mut host.capabilities.arch;
    arch.cpuid.set(CpuidEntry { leaf: 7, indexed: true, edx: 1 << 29, ..CpuidEntry::default() });
    arch.arch_capabilities = arch_capabilities;
    host
}

fn shown(machine: &Machine<X86_64>) -> Vec<Option<u64>> {
    machine.plan.vcpus.iter().map(|vcpu| vcpu.arch_capabilities).collect()
}

#[test]
fn a_snapshot_goes_where_the_cpu_has_what_was_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh_on(&host(SHOWN), folder.path());
    assert_eq!(shown(&machine), [Some(SHOWN); 2]);
    let saved = machine.save().unwrap();
    let snapshot = write(&machine, saved.clone(), &folder.path().join("snapshot"));
    drop(machine);
    for here in SUITABLE {
        let mut machine = restore_on(&host(here), &snapshot).unwrap();
        assert_eq!(shown(&machine), [Some(SHOWN); 2], "{here:#x}");
        assert_eq!(comparable(machine.save().unwrap()), comparable(saved.clone()));
    }
    for (here, told) in OTHERS {
        let told = format!("this host's CPU is not one for the guest: {told}");
        assert_eq!(restore_on(&host(here), &snapshot).err().unwrap().to_string(), told);
        let could = Machine::could_restore(&snapshot.config().unwrap(), &host(here), &snapshot);
        assert_eq!(could.unwrap_err().to_string(), told);
    }
    // On a host without the MSR it is CPUID's bit that is named.
    let text = restore_on(&Fake::<X86_64>::new(), &snapshot).err().unwrap().to_string();
    assert!(text.ends_with("does not have: arch-capabilities"), "{text}");
}

/// The same of a machine that is to come, before any of it is sent.
#[test]
fn a_machine_goes_where_the_cpu_has_what_was_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh_on(&host(SHOWN), folder.path());
    let hello = machine.leave(Address::Unix(folder.path().join("nowhere")), Duration::ZERO).unwrap().hello;
    let could = |here| {
        Machine::<X86_64>::could_inherit(&machine.config, &host(here), &hello.cpus, &hello.ram())
            .map_err(|error| error.to_string())
    };
    SUITABLE.into_iter().for_each(|here| could(here).unwrap());
    for (here, told) in OTHERS {
        assert_eq!(could(here), Err(format!("this host's CPU is not one for the guest: {told}")));
    }
}

/// Nobody knows what the guest of an older version was shown: the vCPUs are left as the backend makes them, and it is not said later either.
#[test]
fn a_snapshot_that_does_not_tell_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = fresh_on(&host(SHOWN), folder.path());
    let mut saved = machine.save().unwrap();
    let cpus = saved.records.iter_mut().find(|record| record.name == CPUS).unwrap();
    let told: X86CpusState = cpus.record.open().unwrap();
    assert_eq!(told.arch_capabilities, Some(SHOWN));
    cpus.record = Record::of(&X86CpusState { arch_capabilities: None, ..told });
    let snapshot = write(&machine, saved.clone(), &folder.path().join("snapshot"));
    drop(machine);
    for here in [SHOWN, RDCL_NO, RSBA] {
        let mut machine = restore_on(&host(here), &snapshot).unwrap();
        assert_eq!(shown(&machine), [None; 2]);
        assert_eq!(comparable(machine.save().unwrap()), comparable(saved.clone()));
    }
}

/// A guest of a list has the list's value, wherever it is.
#[test]
fn a_list_of_several_hosts_is_what_a_guest_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(skep_config::ArchKind::X86_64, folder.path());
    let list = folder.path().join("list");
    let common =
        |config: &Config, here, lists: &[String]| Machine::common_features(config, &host(here), lists).unwrap();
    fs::write(&list, common(&config, RDCL_NO | MDS_NO, &[])).unwrap();
    let list = list.to_str().unwrap().to_owned();
    fs::write(&list, common(&config, MDS_NO | RSBA, std::slice::from_ref(&list))).unwrap();
    config.cpu = Some(list);
    let make = |here| Machine::new(&config, &host(here), Arc::default(), services());
    for here in [RDCL_NO | MDS_NO, MDS_NO | RSBA] {
        let machine = make(here).unwrap();
        stop(&machine);
        assert_eq!(shown(&machine), [Some(MDS_NO | RSBA); 2]);
    }
    let text = make(RDCL_NO).err().unwrap().to_string();
    assert!(text.starts_with("arch-capabilities.mds-no: "), "{text}");
    config.cpu = None;
    let machine = Machine::new(&config, &host(MDS_NO), Arc::default(), services()).unwrap();
    stop(&machine);
    assert_eq!(shown(&machine), [Some(MDS_NO); 2]);
}
