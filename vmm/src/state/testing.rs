//! What golden records are made of, and read by: on any host, a machine of either architecture with a device of each kind, and what no such machine has.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use skep_chipset::flash::{BlockState, ContentState, FlashState};
use skep_chipset::fw_cfg::FwCfgState;
use skep_clock::Clock;
use skep_config::{ArchKind, Config, Size};
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Hypervisor, aarch64, x86_64};
use skep_memory::{Backing, MemoryMap, RamOptions};
use skep_ne2k::Ne2kState;
use skep_state::{Record, State, StateError};
use skep_virtio::net::NetState;
use skep_virtio::vhost_user::VhostUserState;

use super::records::DISKS;
use super::{DiskReference, DisksState, FirmwareState, MachineState, NamedRecord, Records};
use crate::firmware::{FirmwareFiles, Variables};
use crate::machine::{Aarch64CpusState, Machine, Saved, Services, X86CpusState};

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
    let services = Services {
        clock: Clock::manual(1_000_000),
        requests: skep_chipset::Requests::new(|_| ()),
        serial: Box::new(()),
        memory: MemoryMap::new(),
        firmware: Some(firmware),
    };
    let machine = Machine::new(&config, &Fake::<A>::default(), Arc::default(), services).expect("a machine");
    let (done, stopped) = channel();
    machine.begin_stop(move || {
        // Nobody has gone.
        let _ = done.send(());
    });
    stopped.recv().expect("the devices stop");
    machine
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
        reached: Some(0x900),
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
    format!("vmm/src/state/golden/{arch}.cbor")
}
