use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use skep_arch::x86_64::layout::{ECAM, IOAPIC, port};
use skep_config::Size;
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, MemoryIo, X86_64};
use skep_pci::{Bar, Endpoint, EndpointConfig, Function, Identity, Interrupts, Msix, PciPlace, Pin, Unplug};
use skep_state::Record;

use super::*;

/// What both machines are tested with.
trait Tested: Platform {
    fn fake() -> Box<dyn Hypervisor<Self>>;
    fn ecam(plan: &Plan<Self>) -> u64;
    /// Reads and writes memory as vCPU 0 does.
    fn with_memory<R>(io: &mut crate::run::BoxedIo<Self>, call: impl FnOnce(&mut dyn MemoryIo) -> R) -> R;
}

impl Tested for X86_64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }
    fn ecam(_plan: &Plan<Self>) -> u64 {
        ECAM.base
    }
    fn with_memory<R>(io: &mut crate::run::BoxedIo<Self>, call: impl FnOnce(&mut dyn MemoryIo) -> R) -> R {
        call(&mut **io)
    }
}

impl Tested for Aarch64 {
    fn fake() -> Box<dyn Hypervisor<Self>> {
        Box::new(Fake::new())
    }
    fn ecam(plan: &Plan<Self>) -> u64 {
        plan.layout.ecam.base
    }
    fn with_memory<R>(io: &mut crate::run::BoxedIo<Self>, call: impl FnOnce(&mut dyn MemoryIo) -> R) -> R {
        call(&mut **io)
    }
}

struct Rig<A: Platform> {
    machine: Machine<A>,
    io: crate::run::BoxedIo<A>,
}

impl<A: Tested> Rig<A> {
    fn new() -> Self {
        let mut config = Config::new(A::KIND);
        config.memory.size = Size(64 << 20);
        config.pci_ports = 4;
        config.device = vec![skep_config::Device::rng(false)];
        let services = Services {
            clock: Clock::manual(0),
            requests: skep_chipset::Requests::new(|_| ()),
            serial: Box::new(()),
            memory: MemoryMap::new(),
            firmware: None,
        };
        let machine = Machine::new(&config, &*A::fake(), Arc::new(Gate::default()), services).unwrap();
        let io = A::io(&machine.board, 0);
        Self { machine, io }
    }

    fn place(&self) {
        A::place(&self.machine.plan, &self.machine.board).unwrap();
    }

    fn read(&mut self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        A::with_memory(&mut self.io, |io| io.memory_read(gpa, &mut data));
        u32::from_le_bytes(data)
    }

    fn write(&mut self, gpa: u64, value: u32) {
        A::with_memory(&mut self.io, |io| io.memory_write(gpa, &value.to_le_bytes()));
    }

    /// Where a register of a function is in ECAM.
    fn config(&self, bus: u64, device: u64, register: u64) -> u64 {
        A::ecam(&self.machine.plan) + (bus << 20 | device << 15 | register)
    }

    fn insert(&self, place: PciPlace) -> Arc<Registers> {
        self.insert_with_pin(place).0
    }

    fn insert_with_pin(&self, place: PciPlace) -> (Arc<Registers>, Arc<Interrupts>) {
        let registers = Arc::new(Registers::default());
        let msix = Msix::in_bar(2, 2);
        let config = EndpointConfig {
            identity: Identity {
                vendor: 0x1b36,
                device: 0x0010,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
                class: 0x01_0802,
                revision: 0,
            },
            bars: [Some(Bar::memory64(0x4000)), None, Some(Bar::memory32(msix.own_bar_size())), None, None, None],
            msix: Some(msix),
            msi: 0,
            pin: Some(Pin::A),
            capabilities: Vec::new(),
            rom: None,
        };
        let socket = self.machine.pci().socket(place).unwrap();
        let interrupts = OnceLock::new();
        let endpoint = Endpoint::new(&socket, &config, |attachment| {
            interrupts.set(attachment.interrupts.clone()).unwrap();
            registers.clone()
        });
        self.machine.pci().insert(endpoint).unwrap();
        (registers, interrupts.into_inner().unwrap())
    }
}

/// One register, at every offset.
#[derive(Default)]
struct Registers(Mutex<Vec<u8>>);

impl Function for Registers {
    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.0.lock().unwrap().iter()) {
            *to = *from;
        }
    }
    fn write(&self, _bar: u8, _offset: u64, data: &[u8]) {
        *self.0.lock().unwrap() = data.to_vec();
    }
    fn reset(&self) {
        self.0.lock().unwrap().clear();
    }
}

fn a_device_is_reached_where_it_is<A: Tested>() {
    let mut rig = Rig::<A>::new();
    let registers = rig.insert(PciPlace::Port(0));
    rig.place();
    let port = rig.config(0, 0x10, 0);
    assert_eq!(rig.read(port), 0x000c_1b36);
    assert_eq!(rig.read(port + 0x18), 0x0001_0100);
    let device = rig.config(1, 0, 0);
    assert_eq!(rig.read(device), 0x0010_1b36);
    let (low, high) = (rig.read(device + 0x10), rig.read(device + 0x14));
    let bar = u64::from(high) << 32 | u64::from(low & !0xf);
    assert!(high != 0, "above 4 GiB");
    rig.write(bar + 0x10, 0x1234_5678);
    assert_eq!(*registers.0.lock().unwrap(), 0x1234_5678u32.to_le_bytes());
    assert_eq!(rig.read(bar + 0x20), 0x1234_5678);
    // The guest moves it.
    rig.write(device + 0x10, low + 0x4000);
    assert_eq!((rig.read(bar), rig.read(bar + 0x4000)), (u32::MAX, 0x1234_5678));
    // A reset takes it away, and the machine places it again where it was.
    rig.machine.reset().unwrap();
    assert_eq!(rig.read(bar + 0x4000), u32::MAX);
    rig.place();
    assert_eq!(rig.read(device), 0x0010_1b36);
    rig.write(bar, 7);
    assert_eq!(*registers.0.lock().unwrap(), [7, 0, 0, 0]);
    // It goes with the guest's consent: power and indicator off.
    assert_eq!(rig.machine.pci().unplug(PciPlace::Port(0)).unwrap(), Unplug::Asked);
    let mut at = rig.read(port + 0x34) & 0xff;
    while rig.read(port + u64::from(at)) & 0xff != 0x10 {
        at = rig.read(port + u64::from(at)) >> 8 & 0xff;
    }
    rig.write(port + u64::from(at) + 0x18, 0x7c0);
    assert_eq!((rig.read(device), rig.read(bar)), (u32::MAX, u32::MAX));
    assert!(rig.machine.pci().endpoints().is_empty());
}

#[test]
fn a_device_is_reached_where_it_is_on_both_machines() {
    a_device_is_reached_where_it_is::<X86_64>();
    a_device_is_reached_where_it_is::<Aarch64>();
}

#[test]
fn a_pc_has_its_bridges() {
    let mut rig = Rig::<X86_64>::new();
    assert_eq!(rig.read(ECAM.base), u32::MAX, "PCIEXBAR is off at power-on");
    rig.place();
    assert_eq!(rig.read(ECAM.base), 0x29c0_8086);
    let lpc = rig.config(0, 31, 0);
    assert_eq!(rig.read(lpc), 0x2918_8086);
    // Configuration mechanism 1, and the reset control register within it.
    let (address, data) = (port::PCI_CONFIG.base as u16, port::PCI_CONFIG.base as u16 + 4);
    rig.io.port_write(address, &0x8000_f800u32.to_le_bytes());
    let mut word = [0; 4];
    rig.io.port_read(data, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x2918_8086);
    rig.io.port_write(port::RESET_CONTROL, &[0x02]);
    let mut byte = [0];
    rig.io.port_read(port::RESET_CONTROL, &mut byte);
    assert_eq!(byte, [0x02]);
    rig.io.port_read(address, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x8000_f800);
}

#[test]
fn a_pc_has_its_registers_where_its_bridges_say() {
    let mut rig = Rig::<X86_64>::new();
    rig.place();
    let mut timer = [0; 4];
    rig.io.port_read(0x608, &mut timer);
    assert_ne!(timer, [0xff; 4]);
    let lpc = rig.config(0, 31, 0x40);
    rig.write(lpc, 0xb001);
    rig.io.port_read(0x608, &mut timer);
    assert_eq!(timer, [0xff; 4]);
    rig.io.port_read(0xb008, &mut timer);
    assert_ne!(timer, [0xff; 4]);
    rig.write(ECAM.base + 0x60, 0xe000_0001);
    assert_eq!((rig.read(ECAM.base), rig.read(0xe000_0000)), (u32::MAX, 0x29c0_8086));
    rig.machine.reset().unwrap();
    rig.io.port_read(0x608, &mut timer);
    assert_ne!(timer, [0xff; 4]);
    assert_eq!(rig.read(0xe000_0000), u32::MAX);
}

impl Rig<X86_64> {
    /// Two devices whose pins are PIRQ D and PIRQ B, on bus 0 and behind a root port.
    fn with_pins() -> (Self, [Arc<Interrupts>; 2]) {
        let rig = Self::new();
        let pins = [PciPlace::Root(3), PciPlace::Port(1)].map(|place| rig.insert_with_pin(place).1);
        rig.place();
        (rig, pins)
    }

    fn out(&mut self, port: u16, value: u8) {
        self.io.port_write(port, &[value]);
    }

    /// As SeaBIOS does: PIRQ A, B, E and F are interrupt 10, the others 11, both levels; then the PIC is a driver's, with nothing masked.
    fn route_to_the_pic(&mut self) {
        let lpc = self.config(0, 31, 0);
        for register in [0x60, 0x68] {
            self.write(lpc + register, 0x0b0b_0a0a);
        }
        for (chip, vectors, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            for (port, value) in [(chip, 0x11), (chip + 1, vectors), (chip + 1, cascade), (chip + 1, 1), (chip + 1, 0)]
            {
                self.out(port, value);
            }
        }
        self.out(0x4d0, 0);
        self.out(0x4d1, 0x0c);
    }

    fn records(&self) -> BTreeMap<String, Record> {
        self.machine.components().into_iter().map(|(name, component)| (name, component.save_record())).collect()
    }

    fn restore(&self, records: &BTreeMap<String, Record>) {
        for (name, component) in self.machine.components() {
            component.restore_record(&records[&name]).unwrap();
        }
        X86_64::relocate(&self.machine.board);
    }

    fn end_at_the_pic(&mut self) {
        self.out(0xa0, 0x20);
        self.out(0x20, 0x20);
    }

    /// Unmasks an input of the I/O APIC, as a level.
    fn unmask_at_the_ioapic(&mut self, input: u32) {
        self.write(IOAPIC.base, 0x10 + 2 * input);
        self.write(IOAPIC.base + 0x10, 0xa000 | (0x40 + input));
    }

    /// Whether the input has sent its interrupt and awaits the end of it.
    fn is_served_by_the_ioapic(&mut self, input: u32) -> bool {
        self.write(IOAPIC.base, 0x10 + 2 * input);
        self.read(IOAPIC.base + 0x10) >> 14 & 1 != 0
    }
}

#[test]
fn pins_of_pci_reach_the_pic_and_the_ioapic() {
    let (mut rig, [pin, behind]) = Rig::with_pins();
    pin.set_pin(true);
    assert!(!rig.io.external_interrupt(), "nothing is routed at power-on");
    pin.set_pin(false);
    rig.route_to_the_pic();
    assert_eq!(rig.io.acknowledge_interrupt(), None);
    pin.set_pin(true);
    assert_eq!(rig.io.acknowledge_interrupt(), Some(0x3b));
    rig.end_at_the_pic();
    behind.set_pin(true);
    assert_eq!(rig.io.acknowledge_interrupt(), Some(0x3a), "it goes before the other, which is still high");
    behind.set_pin(false);
    rig.end_at_the_pic();
    assert_eq!(rig.io.acknowledge_interrupt(), Some(0x3b));
    pin.set_pin(false);
    rig.end_at_the_pic();
    assert!(!rig.io.external_interrupt());
    // Inputs 19 and 17, and those of the PIC's numbers.
    for input in [19, 17, 18, 11, 10] {
        rig.unmask_at_the_ioapic(input);
    }
    pin.set_pin(true);
    assert_eq!([19, 17, 18, 11, 10].map(|input| rig.is_served_by_the_ioapic(input)), [true, false, false, true, false]);
    behind.set_pin(true);
    assert_eq!([19, 17, 18, 11, 10].map(|input| rig.is_served_by_the_ioapic(input)), [true, true, false, true, true]);
    // What a reset leaves is routed nowhere.
    rig.machine.reset().unwrap();
    rig.place();
    pin.set_pin(true);
    assert!(!rig.io.external_interrupt());
    rig.route_to_the_pic();
    assert_eq!(rig.io.acknowledge_interrupt(), Some(0x3b));
}

#[test]
fn pins_of_pci_are_restored_with_their_routes() {
    let (mut one, [pin, _]) = Rig::with_pins();
    one.route_to_the_pic();
    pin.set_pin(true);
    assert_eq!(one.io.acknowledge_interrupt(), Some(0x3b));
    let records = one.records();
    let (mut two, [pin, behind]) = Rig::with_pins();
    // It was in another state, with the other one asserted.
    two.route_to_the_pic();
    behind.set_pin(true);
    two.restore(&records);
    assert!(!two.io.external_interrupt(), "the interrupt is in service");
    two.end_at_the_pic();
    assert_eq!(two.io.acknowledge_interrupt(), Some(0x3b), "the level is still there");
    pin.set_pin(false);
    two.end_at_the_pic();
    assert!(!two.io.external_interrupt());
    behind.set_pin(true);
    assert_eq!(two.io.acknowledge_interrupt(), Some(0x3a));
}

#[test]
fn what_the_pic_requested_is_requested_in_a_restored_machine() {
    let (mut one, [pin, _]) = Rig::with_pins();
    one.route_to_the_pic();
    pin.set_pin(true);
    let records = one.records();
    let (mut two, _) = Rig::with_pins();
    two.restore(&records);
    assert_eq!(two.io.acknowledge_interrupt(), Some(0x3b));
}

#[test]
fn a_board_has_its_host_bridge() {
    let mut rig = Rig::<Aarch64>::new();
    rig.place();
    let host = rig.config(0, 0, 0);
    assert_eq!((rig.read(host), rig.read(host + 8) >> 8), (0x0008_1b36, 0x06_0000));
    assert_eq!(rig.read(host + (1 << 15)), u32::MAX);
}

#[test]
fn the_hierarchy_is_saved_with_the_machine() {
    fn saved<A: Tested>() {
        let (one, two) = (Rig::<A>::new(), Rig::<A>::new());
        one.place();
        let record = |rig: &Rig<A>| {
            let component = rig.machine.components().into_iter().find(|(name, _)| name == "pci").unwrap();
            (component.1.clone(), component.1.save_record())
        };
        let (_, state) = record(&one);
        let (pci, before) = record(&two);
        assert_ne!(before, state);
        pci.restore_record(&state).unwrap();
        assert_eq!(record(&two).1, state);
    }
    saved::<X86_64>();
    saved::<Aarch64>();
}
