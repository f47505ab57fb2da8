//! What a machine's ACPI tables tell firmware, whatever the guest has done before it asks for them.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use skep_arch::acpi::loader::file;
use skep_arch::acpi::loader::testing::{Loaded, adds_up, number, run};
use skep_arch::{aarch64, x86_64};
use skep_chipset::fw_cfg::key;
use skep_config::Size;
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, X86_64};
use skep_memory::RamOptions;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_pci::{Address, Space};

use super::*;
use crate::firmware::FirmwareFiles;
use crate::run::BoxedIo;

/// A machine as its firmware sees it.
trait Guest: Platform {
    fn fake() -> Box<dyn Hypervisor<Self>>;
    /// Selects an item of fw_cfg.
    fn select(io: &mut BoxedIo<Self>, number: u16);
    /// Reads a byte of it.
    fn data(io: &mut BoxedIo<Self>) -> u8;
    /// Has the request at an address carried out.
    fn request(io: &mut BoxedIo<Self>, gpa: u64);
    /// Where firmware has put things, by the chipset's registers.
    fn placed(machine: &Machine<Self>) -> Placed;
}

/// Where firmware has put things.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    /// The base of the PM block, on machines that have one.
    pm: Option<u16>,
    ecam: AddressRange,
    /// Where BARs may be below 4 GiB.
    windows32: Vec<AddressRange>,
    /// The only place above, on machines where firmware has no choice.
    window64: Option<AddressRange>,
    /// BARs that are decoded.
    bars: Vec<Range<u64>>,
}

fn register(pci: &RootComplex, device: u8, offset: u16) -> u32 {
    let mut data = [0; 4];
    pci.config_read(Address::new(0, device), offset, &mut data);
    u32::from_le_bytes(data)
}

fn bars(pci: &RootComplex) -> Vec<Range<u64>> {
    let memory = pci.mappings().into_iter().filter(|mapping| mapping.space == Space::Memory);
    memory.map(|mapping| mapping.base..mapping.base.saturating_add(mapping.size)).collect()
}

impl Guest for X86_64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }

    fn select(io: &mut BoxedIo<Self>, number: u16) {
        io.port_write(0x510, &number.to_le_bytes());
    }

    fn data(io: &mut BoxedIo<Self>) -> u8 {
        let mut byte = [0xff];
        io.port_read(0x511, &mut byte);
        byte[0]
    }

    fn request(io: &mut BoxedIo<Self>, gpa: u64) {
        io.port_write(0x514, &((gpa >> 32) as u32).to_be_bytes());
        io.port_write(0x518, &(gpa as u32).to_be_bytes());
    }

    fn placed(machine: &Machine<Self>) -> Placed {
        let pci = machine.pci();
        let pm = (register(pci, 31, 0x44) & 0x80 != 0).then_some(register(pci, 31, 0x40) as u16 & 0xff80);
        let (low, high) = (register(pci, 0, 0x60), register(pci, 0, 0x64));
        let size = [256 << 20, 128 << 20, 64 << 20, 0][low as usize >> 1 & 3];
        let ecam = match low & 1 {
            1 if size > 0 => AddressRange::new((u64::from(high) << 32 | u64::from(low)) & !(size - 1), size),
            _ => x86_64::layout::ECAM,
        };
        let windows32 = x86_64::layout::pci_mmio32_around(machine.plan.layout.low_ram(), ecam);
        Placed {
            pm: Some(pm.filter(|base| *base != 0).unwrap_or(0x600)),
            ecam,
            windows32,
            window64: None,
            bars: bars(pci),
        }
    }
}

impl Guest for Aarch64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }

    fn select(io: &mut BoxedIo<Self>, number: u16) {
        io.memory_write(aarch64::layout::FW_CFG.base + 8, &number.to_be_bytes());
    }

    fn data(io: &mut BoxedIo<Self>) -> u8 {
        let mut byte = [0xff];
        io.memory_read(aarch64::layout::FW_CFG.base, &mut byte);
        byte[0]
    }

    fn request(io: &mut BoxedIo<Self>, gpa: u64) {
        io.memory_write(aarch64::layout::FW_CFG.base + 16, &gpa.to_be_bytes());
    }

    fn placed(machine: &Machine<Self>) -> Placed {
        let layout = &machine.plan.layout;
        let (windows32, window64) = (vec![aarch64::layout::PCI_MMIO32], Some(layout.pci_mmio64));
        Placed { pm: None, ecam: layout.ecam, windows32, window64, bars: bars(machine.pci()) }
    }
}

/// What a guest does before it wants all tables.
#[derive(Debug, Clone)]
enum Step {
    /// Reads so many bytes of one of the tables' files by the data register.
    Read(usize, usize),
    /// Writes a register of a function on bus 0.
    Write(usize, u16, u32),
}

const FILES: [&str; 4] = [file::RSDP, file::TABLES, file::SCRIPT, "etc/system-states"];

/// Of host bridge, LPC bridge, and what else there may be on bus 0: commands, BARs, windows, PMBASE, PCIEXBAR.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let read = (0..FILES.len(), 0usize..200).prop_map(|(file, length)| Step::Read(file, length));
    let base = prop_oneof![
        // A command; what may be the base of something.
        Just(7u32),
        (0u32..64).prop_map(|n| n << 26 | 1),
        (0u32..512).prop_map(|n| n << 7 | 1),
        0u32..64,
        any::<u32>(),
    ];
    let registers = vec![0x04u16, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x40, 0x44, 0x60, 0x64];
    let write = (0usize..6, prop::sample::select(registers), base);
    let write = write.prop_map(|(device, register, value)| Step::Write(device, register, value));
    // Most are of what is most often there.
    let placed = prop::sample::select(vec![
        Step::Write(1, 0x44, 0x80),
        Step::Write(1, 0x40, 0xb001),
        Step::Write(0, 0x60, 0xe000_0001),
        Step::Write(0, 0x60, 0xf000_0001),
        Step::Write(0, 0x60, 0xb000_0001),
        Step::Write(0, 0x64, 0),
    ]);
    prop::collection::vec(prop_oneof![1 => read, 8 => write, 3 => placed], 0..40)
}

struct Rig<A: Guest> {
    machine: Machine<A>,
    io: BoxedIo<A>,
    /// Where things were when the tables were made.
    told: Option<Placed>,
}

impl<A: Guest> Rig<A> {
    fn new() -> Self {
        let mut config = Config::new(A::KIND);
        config.memory.size = Size(64 << 20);
        config.pci_ports = 2;
        let code = Arc::new(Backing::new(64 << 10, &RamOptions::default()).unwrap());
        let (path, cmdline) = (std::path::PathBuf::new(), Vec::new());
        let firmware = FirmwareFiles { path, code, vars: None, kernel: None, initrd: None, cmdline };
        let services = Services {
            clock: Clock::manual(0),
            requests: skep_chipset::Requests::new(|_| ()),
            serial: Box::new(()),
            memory: MemoryMap::new(),
            firmware: Some(firmware),
        };
        let mut machine = Machine::new(&config, &*A::fake(), Arc::new(Gate::default()), services).unwrap();
        machine.load(None).unwrap();
        let io = A::io(&machine.board, 0);
        Self { machine, io, told: None }
    }

    /// Selects an item; the first of the tables' files has them made.
    fn select(&mut self, number: u16, name: &str) {
        if FILES[..3].contains(&name) {
            self.told.get_or_insert(A::placed(&self.machine));
        }
        A::select(&mut self.io, number);
    }

    /// Reads an item by DMA.
    fn read(&mut self, number: u16, name: &str, length: usize) -> Vec<u8> {
        self.select(number, name);
        let (memory, base) = (self.machine.memory().ram(), self.machine.plan.ram[0].base);
        let data = base + 0x10_0000;
        let request = [&2u32.to_be_bytes()[..], &(length as u32).to_be_bytes(), &data.to_be_bytes()].concat();
        memory.write_slice(&request, GuestAddress(base)).unwrap();
        A::request(&mut self.io, base);
        let mut answer = [0xff; 4];
        memory.read_slice(&mut answer, GuestAddress(base)).unwrap();
        assert_eq!(answer, [0; 4]);
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(data)).unwrap();
        bytes
    }

    /// Numbers and sizes of files by their names.
    fn directory(&mut self) -> BTreeMap<String, (u16, usize)> {
        let count = u32::from_be_bytes(self.read(key::FILE_DIRECTORY, "", 4).try_into().unwrap());
        let entries = self.read(key::FILE_DIRECTORY, "", 4 + count as usize * 64);
        let entry = |entry: &[u8]| {
            let name = entry[8..].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
            let size = u32::from_be_bytes(entry[..4].try_into().unwrap()) as usize;
            (name, (u16::from_be_bytes([entry[4], entry[5]]), size))
        };
        entries[4..].chunks(64).map(entry).collect()
    }

    fn step(&mut self, step: &Step, directory: &BTreeMap<String, (u16, usize)>) {
        match *step {
            Step::Read(file, length) => {
                let name = FILES[file];
                self.select(directory[name].0, name);
                for _ in 0..length {
                    let _ = A::data(&mut self.io);
                }
            }
            Step::Write(device, register, value) => {
                let others = self.machine.pci().endpoints();
                let other = others.iter().find_map(|endpoint| match endpoint.place() {
                    skep_pci::PciPlace::Root(device) => Some(device),
                    skep_pci::PciPlace::Port(_) => None,
                });
                let ports: Vec<_> = self.machine.pci().ports().iter().map(|port| port.device()).collect();
                let device = [0, 31, other.unwrap(), other.unwrap(), ports[0], ports[1]][device];
                let value = match register {
                    // A guest that puts something before fw_cfg locks itself out.
                    0x40 if value & 0xff80 == 0x500 => return,
                    0x10..0x28 if device != 0 => value | 0x4000_0000,
                    _ => value,
                };
                let action = self.machine.pci().config_write(Address::new(0, device), register, &value.to_le_bytes());
                if action == skep_bus::Action::Relocate {
                    self.machine.relocate();
                }
            }
        }
    }

    /// Has all tables loaded, from files that are read in this order, and says how they were and what they tell.
    fn load(&mut self, order: &[usize], places: &[u64]) -> (Loaded, Placed) {
        let directory = self.directory();
        let mut files = BTreeMap::new();
        for name in order.iter().map(|at| FILES[*at]).chain([file::GENERATION]) {
            let (number, size) = directory[name];
            files.insert(name.to_owned(), self.read(number, name, size));
        }
        let loaded = run(&files[file::SCRIPT], &files, places);
        (loaded, self.told.clone().unwrap())
    }
}

/// Windows for memory in the DSDT's resources (ACPI 6.5, section 6.4.3.5): of 32 bits, and of 64.
fn windows(dsdt: &[u8]) -> [Vec<AddressRange>; 2] {
    [(&[0x87, 0x17, 0, 0], 4), (&[0x8a, 0x2b, 0, 0], 8)].map(|(tag, width): (&[u8; 4], usize)| {
        let starts = (0..dsdt.len() - 46).filter(|at| dsdt[*at..].starts_with(tag));
        let window = |at: usize| {
            let field = |index: usize| number(&dsdt[at + 6 + index * width..][..width]);
            let (first, last, translation, length) = (field(1), field(2), field(3), field(4));
            assert!(first <= last && length == (last - first).wrapping_add(1) && translation == 0);
            AddressRange::new(first, length)
        };
        starts.map(window).collect()
    })
}

fn check(loaded: &Loaded, told: &Placed) {
    let rsdp = &loaded.blobs[file::RSDP].bytes;
    assert!(rsdp.starts_with(b"RSD PTR ") && adds_up(&rsdp[..20]) && adds_up(rsdp));
    let xsdt = loaded.table(number(&rsdp[24..32])).unwrap();
    let listed: Vec<_> = xsdt[36..].chunks(8).map(|entry| loaded.table(number(entry)).unwrap()).collect();
    assert!(xsdt.starts_with(b"XSDT") && listed.len() > 3);
    let tables = loaded.tables();
    // What edk2 installs are all that there are: what XSDT and FADT name.
    let known = listed.iter().map(|table| &table[..4]).chain([&b"XSDT"[..], b"DSDT", b"FACS"]);
    let mut known: Vec<_> = known.collect();
    known.sort_unstable();
    known.retain(|name| told.pm.is_some() || *name != b"FACS");
    assert_eq!(tables.keys().map(|name| &name[..]).collect::<Vec<_>>(), known);

    let fadt = &tables[b"FACP"];
    assert!(loaded.table(number(&fadt[140..148])).unwrap().starts_with(b"DSDT"));
    if let Some(pm) = told.pm {
        assert!(loaded.table(number(&fadt[36..40])).unwrap().starts_with(b"FACS"));
        assert_eq!(number(&fadt[40..44]), number(&fadt[140..148]));
        let blocks = [56, 64, 76, 80].map(|at| number(&fadt[at..at + 4]));
        assert_eq!(blocks, [0, 4, 8, 0x20].map(|offset| u64::from(pm) + offset));
        let extended = [148, 172, 208, 220].map(|at| (fadt[at], number(&fadt[at + 4..at + 12])));
        assert_eq!(extended, blocks.map(|block| (1, block)));
    }
    let mcfg = &tables[b"MCFG"];
    assert_eq!((number(&mcfg[44..52]), mcfg[54], mcfg[55]), (told.ecam.base, 0, 2));
    let dsdt = &tables[b"DSDT"];
    let page = loaded.blobs[file::GENERATION].address;
    let address = (page as u32 + 40).to_le_bytes();
    assert!(loaded.written[file::GENERATION_ADDRESS] == page && dsdt.windows(4).any(|word| word == address));

    let [windows32, mut windows64] = windows(dsdt);
    assert_eq!(windows32, told.windows32);
    assert!(windows32.iter().all(|window| !window.overlaps(&told.ecam)));
    let ecam = windows64.pop().unwrap();
    assert_eq!((ecam.base, ecam.size), (told.ecam.base, 3 << 20), "the board keeps its buses for itself");
    assert_eq!(windows64.len(), 1);
    if let Some(window) = told.window64 {
        return assert_eq!(windows64, [window]);
    }
    for bar in told.bars.iter().filter(|bar| bar.start >= 1 << 32 && bar.end < 1 << 63) {
        assert!(windows64[0].base <= bar.start && bar.end <= windows64[0].end(), "{bar:x?} {windows64:x?}");
    }
}

fn on<A: Guest>(steps: &[Step], orders: &[Vec<usize>; 2], places: &[u64]) {
    let mut rig = Rig::<A>::new();
    let directory = rig.directory();
    steps.iter().for_each(|step| rig.step(step, &directory));
    let (loaded, told) = rig.load(&orders[0], places);
    check(&loaded, &told);
    // They stay, whatever moves, and are made anew after a reset.
    steps.iter().for_each(|step| rig.step(step, &directory));
    let (again, told) = rig.load(&orders[1], places);
    assert!(again.blobs == loaded.blobs);
    check(&again, &told);
    let (done, stopped) = std::sync::mpsc::channel();
    rig.machine.begin_stop(move || done.send(()).unwrap());
    stopped.recv().unwrap();
    rig.machine.reset().unwrap();
    rig.told = None;
    let (anew, told) = rig.load(&orders[0], places);
    check(&anew, &told);
    assert_eq!(told, A::placed(&Rig::<A>::new().machine));
}

/// QEMU's `etc/system-states`: a byte for each of S0 to S5, bit 7 whether there is such a state, the lower bits its SLP_TYP.
#[test]
fn firmware_is_told_that_of_the_sleep_states_there_is_power_off() {
    fn on<A: Guest>() {
        let mut rig = Rig::<A>::new();
        let (number, size) = rig.directory()["etc/system-states"];
        let states = rig.read(number, "etc/system-states", size);
        assert_eq!(states.len(), 6);
        assert_eq!((0..6).filter(|at| states[*at] & 0x80 != 0).collect::<Vec<_>>(), [0, 5]);
        // SLP_TYP by which the tables say that the machine is powered off.
        assert_eq!(states[5] & 0x7f, 0);
    }
    on::<X86_64>();
    on::<Aarch64>();
}

skep_fuzzing::targets! {
    /// Whatever a guest reads first, and wherever it has put things then, the tables are whole, and tell of that.
    "firmware-tables", 24: fn fuzz_tables_tell_of_what_firmware_has_placed(
        steps in steps(),
        one in Just(vec![0, 1, 2]).prop_shuffle(),
        other in Just(vec![0, 1, 2]).prop_shuffle(),
        places in prop::collection::vec(any::<u64>(), 3),
    ) {
        let orders = [one, other];
        on::<X86_64>(&steps, &orders, &places);
        on::<Aarch64>(&steps, &orders, &places);
    }
}
