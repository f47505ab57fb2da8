//! What golden records are made of, and read by: on any host, a machine of either architecture with a device of each kind, and what no such machine has.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use skep_chipset::flash::{BlockState, ContentState, FlashState};
use skep_chipset::fw_cfg::FwCfgState;
use skep_clock::Clock;
use skep_config::{ArchKind, Config, Size};
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Hypervisor, aarch64, x86_64};
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, MemoryMap, PAGE_SIZE, RamOptions};
use skep_ne2k::Ne2kState;
use skep_state::{Record, State, StateError};
use skep_virtio::net::NetState;
use skep_virtio::vhost_user::VhostUserState;

use super::records::DISKS;
use super::{
    CONTAINER, DiskReference, DisksState, Draft, FirmwareState, Header, MAGIC, MEMORY, MachineState, NamedRecord,
    Progress, RECORDS, REQUIRES_BASE, Records, RecordsFile, memory,
};
use crate::firmware::{FirmwareFiles, Variables};
use crate::machine::{Aarch64CpusState, Machine, Saved, Services, X86CpusState};
use crate::migrate::Address;
use crate::migrate::wire::{self, Kind};

/// The folder of what is golden.
pub const GOLDEN: &str = "vmm/src/state/golden";

/// A type that is no component's alone.
type Again = fn(&Record) -> Result<Record, StateError>;

const fn plain<S: State>() -> (&'static str, Again) {
    (S::ID, |record| Ok(Record::of(&record.open::<S>()?)))
}

const PLAIN: [(&str, Again); 13] = [
    plain::<MachineState>(),
    plain::<DisksState>(),
    plain::<FirmwareState>(),
    plain::<X86CpusState>(),
    plain::<Aarch64CpusState>(),
    plain::<x86_64::VcpuState>(),
    plain::<aarch64::VcpuState>(),
    plain::<aarch64::GicState>(),
    plain::<NetState>(),
    plain::<Ne2kState>(),
    plain::<VhostUserState>(),
    plain::<FlashState>(),
    plain::<FwCfgState>(),
];

/// A machine that stands still, with disks in `folder`.
///
/// # Panics
/// Where the host refuses a file or memory.
#[must_use]
pub fn machine<A: Saved>(folder: &Path) -> Machine<A>
where
    Fake<A>: Hypervisor<A> + Default,
{
    for name in ["a", "b", "c"] {
        std::fs::write(folder.join(name), vec![0; 1 << 20]).expect("the host takes a file");
    }
    let path = folder.display();
    let disk = |text: &str| format!("{path}/{text}").parse().expect("a disk");
    let mut config = Config::new(A::KIND);
    config.memory.size = Size(64 << 20);
    config.cpus = "2".parse().expect("CPUs");
    config.boot.firmware = Some("code.fd".into());
    config.disk = vec![
        disk("a,format=raw,readonly,queues=2,id=nvme"),
        disk("b,format=raw,readonly,device=virtio-blk,queues=1,id=blk"),
        disk("c,format=raw,readonly,queues=1,id=plugged,place=port:0"),
    ];
    let devices = ["balloon".to_owned(), format!("vsock={path}/vsock"), format!("console={path}/console")];
    config.device = devices.iter().map(|text| text.parse().expect("a device")).collect();
    config.pci_ports = 1;
    let bank = |size| Arc::new(Backing::new(size, &RamOptions::default()).expect("the host has memory"));
    let firmware = FirmwareFiles {
        path: "code.fd".into(),
        code: bank(256 << 10),
        vars: Some(Variables { content: bank(512 << 10), file: None }),
        kernel: None,
        initrd: None,
        cmdline: Vec::new(),
    };
    let services = Services { firmware: Some(firmware), ..services() };
    made(&config, services)
}

/// What a machine needs of whoever makes it.
#[must_use]
pub fn services() -> Services {
    Services {
        clock: Clock::manual(1_000_000),
        requests: skep_chipset::Requests::new(|_| ()),
        serial: Box::new(()),
        memory: MemoryMap::new(),
        firmware: None,
    }
}

/// A machine of that config, which stands still.
///
/// # Panics
/// Where the host refuses a file or memory.
#[must_use]
pub fn made<A: Saved>(config: &Config, services: Services) -> Machine<A>
where
    Fake<A>: Hypervisor<A> + Default,
{
    let machine = Machine::new(config, &Fake::<A>::default(), Arc::default(), services).expect("a machine");
    let (done, stopped) = channel();
    machine.begin_stop(move || {
        // Nobody has gone.
        let _ = done.send(());
    });
    stopped.recv().expect("the devices stop");
    machine
}

/// The page of RAM that a golden snapshot has something in, and the one that its difference has.
pub const PAGES: [u64; 2] = [3, 300];

/// What is there, over and over.
pub const CONTENT: [&[u8; 16]; 2] = [b"as it was saved ", b"and changed then"];

/// Writes snapshots and frames of a small machine into `golden`: `ARCH-snapshot`, `ARCH-difference`, `ARCH.hello`, `ARCH.state`.
///
/// # Panics
/// Where the host refuses, or they are there already.
pub fn freeze<A: Saved>(golden: &Path)
where
    Fake<A>: Hypervisor<A> + Default,
{
    let mut config = Config::new(A::KIND);
    config.memory.size = Size(2 << 20);
    config.cpus = "2".parse().expect("CPUs");
    let mut machine = made::<A>(&config, services());
    let path = |end: &str| golden.join(format!("{}{end}", A::KIND));
    let frame = |end: &str, kind, payload: Vec<u8>| {
        let mut bytes = Vec::new();
        wire::send(&mut bytes, kind, &[&payload]).expect("a Vec takes all");
        std::fs::write(path(end), bytes).expect("the file can be written");
    };
    let nowhere = Address::Unix("nowhere".into());
    let hello = machine.leave(nowhere, Duration::ZERO).expect("it can go").hello;
    frame(".hello", Kind::Hello, wire::encode(&hello));
    let mut records = machine.save().expect("it can be saved");
    records.records.push(NamedRecord::new(DISKS, Record::of(&DisksState { disks: Vec::new() })));
    let state = wire::State { records: records.clone(), stood_nanos: 1_234_567, paused: true };
    frame(".state", Kind::State, wire::encode(&state));
    let bytes = records.bytes();
    let mut origin = None;
    for ((name, page), content) in ["-snapshot", "-difference"].into_iter().zip(PAGES).zip(CONTENT) {
        let mut left = page * PAGE_SIZE;
        let ram = machine.ram();
        for region in &ram {
            if left < region.size() {
                let text = content.repeat(PAGE_SIZE as usize / content.len());
                region.write_slice(&text, MemoryRegionAddress(left)).expect("it is RAM");
                break;
            }
            left -= region.size();
        }
        let draft = Draft::begin(&path(name)).expect("nothing is there");
        draft.write(RECORDS, &bytes).expect("it can be written");
        let file = draft.create(MEMORY).expect("it can be made");
        let runs = origin.is_some().then(|| std::iter::once(page..page + 1).collect::<Vec<_>>());
        let memory = memory::write(&ram, runs.as_deref(), &file, &Progress::default(), || true);
        let base = origin.as_ref().zip(runs.as_ref()).map(|(origin, runs)| draft.base(origin, runs).expect("a base"));
        let header = Header {
            magic: MAGIC.to_owned(),
            container: CONTAINER,
            skep: env!("CARGO_PKG_VERSION").to_owned(),
            machine: machine.config().machine.to_string(),
            architecture: A::KIND.to_string(),
            saved: 1_790_000_000,
            requires: base.iter().map(|_| REQUIRES_BASE.to_owned()).collect(),
            base,
            records: RecordsFile::of(&bytes),
            memory: memory.expect("it can be written"),
        };
        origin = Some(draft.finish(&header, &super::Wanted::default()).expect("it gets its name"));
    }
}

/// What it saves, and records of what it does not have.
///
/// # Panics
/// Where it can't be saved.
pub fn records<A: Saved>(machine: &mut Machine<A>) -> Records {
    let mut records = machine.save().expect("it can be saved");
    let disk = DiskReference {
        id: "disk0".to_owned(),
        path: "/disk.img".to_owned(),
        format: "raw".to_owned(),
        size: 1 << 20,
        changed_nanos: Some(1),
        behind: None,
    };
    let block = |number, byte| BlockState { number, bytes: vec![byte; 0x1000].into() };
    let flash = FlashState {
        mode: 8,
        status: 0x80,
        locked: vec![1, 7],
        expected: 3,
        window: Some(0x800),
        astray: true,
        buffer: vec![0x5a; 2048].into(),
        changed: vec![block(2, 0xa5)],
        content: Some(ContentState { size: 0x8000, block: 0x1000, blocks: vec![block(1, 0x33), block(6, 0xff)] }),
        held: Some(block(4, 0x77)),
    };
    let fw_cfg = FwCfgState {
        selected: 0x22,
        offset: 17,
        dma_high: 1,
        written: vec![vec![0x10; 8].into()],
        late: Some(vec![vec![1; 36].into(), vec![2; 100].into()]),
    };
    let net = NetState { mac: [2, 1, 2, 3, 4, 5], pairs: 2, offloads: Some(1 << 1), announce: true };
    let others = [
        (DISKS, Record::of(&DisksState { disks: vec![disk] })),
        ("other/flash", Record::of(&flash)),
        ("other/fw_cfg", Record::of(&fw_cfg)),
        ("other/net", Record::of(&net)),
        ("other/ne2k", Record::of(&Ne2kState::default())),
        ("other/vhost-user", Record::of(&VhostUserState { device: 2, writeback: Some(1) })),
    ];
    records.records.extend(others.map(|(name, record)| NamedRecord::new(name, record)));
    records
}

/// The record restored, by the component of that name if the machine has it, and saved again.
///
/// # Errors
/// Why it is refused.
///
/// # Panics
/// If it is of no known type.
pub fn again<A: Saved>(machine: &Machine<A>, name: &str, record: &Record) -> Result<Record, StateError> {
    let inner = name.strip_prefix("board/").or(name.strip_prefix("device/"));
    if let Some((_, component)) = machine.components().iter().find(|(known, _)| Some(known.as_str()) == inner) {
        component.restore_record(record)?;
        return Ok(component.save_record());
    }
    let known = PLAIN.iter().find(|(id, _)| *id == record.id);
    let (_, again) = known.unwrap_or_else(|| panic!("`{name}` is of no known type"));
    again(record)
}

/// The file's name of an architecture's golden records.
#[must_use]
pub fn file(arch: ArchKind) -> String {
    format!("{GOLDEN}/{arch}.cbor")
}
