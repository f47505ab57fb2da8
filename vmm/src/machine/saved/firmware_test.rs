//! Machines with firmware.

use std::sync::mpsc;

use skep_bus::Device;
use skep_config::{ArchKind, FirmwareVars};
use skep_memory::vm_memory::MemoryRegionAddress;

use super::*;
use crate::firmware::make_saved;
use crate::firmware::test::{arm, pc, variables};

/// A machine with firmware, and variables that last in `vars`, or with what firmware comes with.
fn config_with(kind: ArchKind, folder: &Path, vars: bool) -> Config {
    let mut config = config(kind, folder);
    let (code, file) = (folder.join("code.fd"), folder.join("vars.fd"));
    let (bytes, size) = match kind {
        ArchKind::X86_64 => (pc(0x1_0000), 0x4000),
        ArchKind::Aarch64 => (arm(), 64 << 20),
    };
    fs::write(&code, bytes).unwrap();
    fs::write(&file, variables(0x4000)).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
    config.boot.firmware = Some(code);
    config.boot.firmware_vars = vars.then_some(FirmwareVars { file, template: None });
    config
}

fn fresh_with<A: Saved>(config: &Config) -> Machine<A>
where
    Fake<A>: Hypervisor<A> + Default,
{
    let firmware = BootFiles::open(&config.boot.source().unwrap(), A::KIND, Locking::Now).unwrap().split().1;
    let services = Services { firmware, ..services() };
    let mut machine = Machine::new(config, &Fake::<A>::default(), Arc::default(), services).unwrap();
    machine.load(None).unwrap();
    stop(&machine);
    machine
}

/// All of RAM is saved, also what firmware does not show just now.
fn a_machine_with_firmware_goes_on<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    for vars in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut one = fresh_with::<A>(&config_with(A::KIND, folder.path(), vars));
        let put = |machine: &Machine<A>, text: &[u8]| {
            for region in machine.ram() {
                region.write_slice(text, MemoryRegionAddress(0x3000)).unwrap();
            }
        };
        put(&one, b"whole");
        let tracker = one.track(None).unwrap();
        let (saved, changes) = (one.save().unwrap(), tracker.take().unwrap());
        let whole = write_changes(&one, saved.clone(), Some(changes), &path("whole"));
        inspect::check(&whole).unwrap();
        let hidden: u64 =
            one.ram().iter().filter(|ram| ram.kind() != skep_memory::RegionKind::Ram).map(|ram| ram.size()).sum();
        assert_eq!(hidden, if A::KIND == ArchKind::X86_64 { 0x6_0000 } else { 0 });
        put(&one, b"later");
        let (records, changes) = (one.save().unwrap(), tracker.take().unwrap());
        let difference = write_changes(&one, records.clone(), Some(changes), &path("difference"));
        drop(one);

        for (snapshot, text, saved) in [(&whole, b"whole", saved), (&difference, b"later", records)] {
            let mut two = restore::<A>(snapshot).unwrap();
            for region in two.ram() {
                let mut found = [0; 5];
                region.read_slice(&mut found, MemoryRegionAddress(0x3000)).unwrap();
                assert_eq!(&found, text, "at {:#x}", region.gpa());
            }
            for (one, other) in comparable(two.save().unwrap()).into_iter().zip(comparable(saved)) {
                assert!(one == other, "{} is not {}", one.name, other.name);
            }
        }
    }
}

#[test]
fn a_machine_with_firmware_goes_on_on_both_machines() {
    a_machine_with_firmware_goes_on::<X86_64>();
    a_machine_with_firmware_goes_on::<Aarch64>();
}

fn firmware_and_variables_are_known_again<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut one = fresh_with::<A>(&config_with(A::KIND, folder.path(), true));
    let saved = one.save().unwrap();
    let snapshot = write(&one, saved, &path("snapshot"));
    let refusal = || restore::<A>(&snapshot).map(drop).unwrap_err().to_string();
    assert!(refusal().contains("another machine uses it"), "{}", refusal());
    drop(one);

    // A guest's variables are in its memory as well.
    let good = fs::read(path("vars.fd")).unwrap();
    let mut other = good.clone();
    other[0x2345] = 7;
    fs::write(path("vars.fd"), &other).unwrap();
    assert!(refusal().contains("--firmware-vars FILE"), "{}", refusal());
    drop(make_saved(&path("again.fd"), &snapshot).unwrap());
    assert!(!path("again.fd").exists());
    make_saved(&path("again.fd"), &snapshot).unwrap().keep();
    assert!(fs::read(path("again.fd")).unwrap() == good);
    let error = make_saved(&path("again.fd"), &snapshot).unwrap_err().to_string();
    assert!(error.contains("File exists"), "{error}");
    let mut config = snapshot.config().unwrap();
    config.boot.firmware_vars.as_mut().unwrap().file = path("again.fd");
    let host = Fake::<A>::default();
    let policy = ClockPolicy::Continue;
    drop(Machine::of_snapshot(&config, &host, Arc::default(), services(), &snapshot, policy, false).unwrap());

    fs::write(path("vars.fd"), &good).unwrap();
    drop(restore::<A>(&snapshot).unwrap());
    let mut code = fs::read(path("code.fd")).unwrap();
    code[0x4000] ^= 1;
    fs::write(path("code.fd"), &code).unwrap();
    assert!(refusal().contains("code.fd` is not the firmware that the guest has"), "{}", refusal());
}

#[test]
fn firmware_and_variables_are_known_again_on_both_machines() {
    firmware_and_variables_are_known_again::<X86_64>();
    firmware_and_variables_are_known_again::<Aarch64>();
}

/// The guest erases the first block of its flash, and programs its first word by a buffer.
fn rewrite<A: Saved>(machine: &Machine<A>) {
    let flash = A::flash(&machine.board).unwrap();
    let width = if A::KIND == ArchKind::X86_64 { 1 } else { 4 };
    for value in [0x0020_0020u32, 0x00d0_00d0, 0x00e8_00e8, 0, 0x0005_0005, 0x00d0_00d0, 0x00ff_00ff] {
        let _ = flash.write(0, 0, &value.to_le_bytes()[..width]);
    }
}

/// A machine that ends while a block of its flash is held: what its guest has set is in the file.
fn a_machine_that_ends_keeps_its_variables<A: Saved>()
where
    Fake<A>: Hypervisor<A> + Default,
{
    let folder = tempfile::tempdir().unwrap();
    let machine = fresh_with::<A>(&config_with(A::KIND, folder.path(), true));
    rewrite(&machine);
    let (tell, told) = mpsc::channel();
    assert!(machine.settle(true, move || tell.send(()).unwrap()));
    told.recv().unwrap();
    let content = fs::read(folder.path().join("vars.fd")).unwrap();
    assert_eq!((content[0], content[40]), (5, 0xff), "{}", A::KIND);
    drop(machine);
    let forgetful = fresh_with::<A>(&config_with(A::KIND, folder.path(), false));
    assert!(!forgetful.settle(true, || ()));
}

#[test]
fn a_machine_that_ends_keeps_its_variables_on_both_machines() {
    a_machine_that_ends_keeps_its_variables::<X86_64>();
    a_machine_that_ends_keeps_its_variables::<Aarch64>();
}

/// A machine that goes on with a block of its flash held, after a save as after a restore: the file has it at its end, and before that where it does not.
#[test]
fn a_machine_that_goes_on_keeps_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    let end = |machine: Machine<Aarch64>| {
        let (tell, told) = mpsc::channel();
        assert!(machine.settle(true, move || tell.send(()).unwrap()));
        told.recv().unwrap();
        drop(machine);
        fs::read(folder.path().join("vars.fd")).unwrap()[0]
    };
    let mut one = fresh_with::<Aarch64>(&config_with(ArchKind::Aarch64, folder.path(), true));
    rewrite(&one);
    let saved = one.save().unwrap();
    let snapshot = write(&one, saved, &folder.path().join("snapshot"));
    assert_ne!(end(one), 5, "it is the snapshot's");
    assert_ne!(end(restore(&snapshot).unwrap()), 5, "it has not gone on");
    let mut two = restore::<Aarch64>(&snapshot).unwrap();
    two.resume();
    stop(&two);
    two.save().unwrap();
    two.resume();
    stop(&two);
    assert_eq!(end(two), 5);
}

/// Each value of what tells of firmware is another one, in turn: a refusal or a machine, and no panic.
#[test]
fn fuzz_hostile_records_of_firmware_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = fresh_with::<X86_64>(&config_with(ArchKind::X86_64, folder.path(), true));
    let saved = one.save().unwrap();
    let mut snapshot = write(&one, saved, &folder.path().join("snapshot"));
    drop(one);
    let made = folder.path().join("made.fd");
    for (name, step) in [(FIRMWARE, 1), ("board/flash", 211), ("board/fw_cfg", 97)] {
        let at = snapshot.records.records.iter().position(|record| record.name == name).unwrap();
        let whole = snapshot.records.records[at].record.clone();
        for record in spoilt(&whole).step_by(step) {
            snapshot.records.records[at].record = record;
            // What is refused is refused by name.
            let refused = restore::<X86_64>(&snapshot).map(drop).err();
            assert!(refused.is_none_or(|error| !error.to_string().is_empty()));
            if let Ok(_made) = make_saved(&made, &snapshot) {
                assert!(made.metadata().unwrap().len() <= 64 << 20);
            }
            assert!(!made.exists());
        }
        snapshot.records.records[at].record = whole;
    }
    drop(restore::<X86_64>(&snapshot).unwrap());
}
