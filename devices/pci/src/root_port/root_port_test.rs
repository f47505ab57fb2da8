use skep_state::Component;

use super::*;
use crate::testing::*;
use crate::{Mch, PciError, PciPlace};

/// Offsets in the PCI Express capability.
const LINK: u16 = 0x12;
const SLOT_CTL: u16 = 0x18;
const SLOT_STA: u16 = 0x1a;
/// Slot status.
const BUTTON: u16 = 1 << 0;
const PRESENCE: u16 = 1 << 3;
const COMPLETED: u16 = 1 << 4;
const OCCUPIED: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
/// Slot control with all events on: of a slot that is on, and of one that is off.
const ON: u32 = 0x11f9 & !0x0300 | 0x0100;
const OFF: u32 = 0x17f9;

const EMPTY: Address = Address::new(0, FIRST_PORT + 1);

struct Hotplug {
    rig: Rig,
}

impl Hotplug {
    fn new() -> Self {
        Self { rig: placed() }
    }

    fn at(&self, port: Address, register: u16) -> u16 {
        self.rig.capability(port, 0x10) + register
    }

    fn status(&self, port: Address) -> u16 {
        self.rig.read16(port, self.at(port, SLOT_STA))
    }

    fn control(&self, port: Address, value: u32) {
        self.rig.write(port, self.at(port, SLOT_CTL), 2, value);
    }

    fn clear(&self, port: Address) {
        self.rig.write(port, self.at(port, SLOT_STA), 2, 0xffff);
    }

    fn link_is_up(&self, port: Address) -> bool {
        self.rig.read16(port, self.at(port, LINK)) & 1 << 13 != 0
    }

    /// MSI of a port on, to address 0xfee00000 and with its device number as data.
    fn enable_msi(&self, port: Address) {
        let msi = self.rig.capability(port, 5);
        self.rig.write(port, msi + 4, 4, 0xfee0_0000);
        self.rig.write(port, msi + 12, 2, port.device.into());
        self.rig.write(port, msi + 2, 2, 1);
    }

    fn plug(&self, name: &'static str, number: u8) -> Arc<Probe> {
        let socket = self.rig.root.socket(PciPlace::Port(number)).unwrap();
        let (endpoint, probe) = probe(&socket, &self.rig.log, name, &config());
        self.rig.root.plug(endpoint).unwrap();
        self.rig.update();
        probe
    }
}

#[test]
fn a_slot_tells_what_is_in_it() {
    let it = Hotplug::new();
    let capabilities = |port| it.rig.read(port, it.at(port, 0x14));
    assert_eq!((capabilities(PORT) >> 19, capabilities(EMPTY) >> 19), (1, 2));
    assert_eq!(capabilities(PORT) & 0x7f, 0b101_1011, "button, power, both indicators, hot-plug, no surprise");
    assert_eq!((it.status(PORT), it.status(EMPTY)), (OCCUPIED, 0));
    assert_eq!(it.rig.read16(PORT, it.at(PORT, SLOT_CTL)), 0x01c0);
    assert_eq!(it.rig.read16(EMPTY, it.at(EMPTY, SLOT_CTL)), 0x07c0);
    assert_eq!(it.rig.read16(PORT, it.at(PORT, LINK)), 0x3044, "active, 16 GT/s, 4 lanes");
    assert_eq!(it.rig.read16(EMPTY, it.at(EMPTY, LINK)), 0x1001);
}

#[test]
fn a_device_is_plugged_in() {
    let it = Hotplug::new();
    it.enable_msi(EMPTY);
    it.control(EMPTY, OFF);
    it.clear(EMPTY);
    it.rig.log.take();
    let probe = it.plug("new", 1);
    assert_eq!(it.rig.log.take(), ["MSI 0048 fee00000 9"]);
    assert_eq!(it.status(EMPTY), OCCUPIED | PRESENCE | BUTTON, "no power, so no link");
    assert_eq!(it.rig.read(Address::new(2, 0), 0), u32::MAX);
    it.clear(EMPTY);
    it.control(EMPTY, ON);
    assert_eq!(it.rig.log.take(), ["MSI 0048 fee00000 9"], "once for both events");
    assert_eq!(it.status(EMPTY), OCCUPIED | COMPLETED | LINK_CHANGED);
    assert!(it.link_is_up(EMPTY));
    assert_eq!(it.rig.read(Address::new(2, 0), 0), 0x1042_1af4);
    assert_eq!(probe.attachment.dma.requester().0, 0x0200);
    assert!(matches!(it.rig.root.socket(PciPlace::Port(1)), Err(PciError::PlaceTaken(_))));
}

#[test]
fn a_device_goes_when_the_guest_has_agreed() {
    let it = Hotplug::new();
    it.enable_msi(PORT);
    it.control(PORT, ON);
    it.clear(PORT);
    it.rig.log.take();
    assert_eq!(it.rig.root.unplug(PciPlace::Port(0)).unwrap(), Unplug::Asked);
    assert_eq!((it.status(PORT), it.rig.log.take()), (OCCUPIED | BUTTON, vec!["MSI 0040 fee00000 8".to_owned()]));
    it.clear(PORT);
    // The power first, as Linux does: the device stays until the indicator is off.
    it.control(PORT, ON | 1 << 10);
    let log = it.rig.log.take();
    assert!(log.contains(&"two reset".to_owned()), "{log:?}");
    assert!(!it.link_is_up(PORT) && it.status(PORT) & OCCUPIED != 0);
    assert_eq!((it.rig.read(TWO, 0), it.rig.ejected.lock().unwrap().len()), (u32::MAX, 0));
    assert!(!it.rig.mapped().iter().any(|row| row.starts_with("port:0")));
    it.control(PORT, OFF);
    assert_eq!(*it.rig.ejected.lock().unwrap(), [PciPlace::Port(0)]);
    assert_eq!(it.status(PORT) & (OCCUPIED | PRESENCE), PRESENCE);
    assert!(matches!(it.rig.root.unplug(PciPlace::Port(0)), Err(PciError::PlaceEmpty(_))));
    it.plug("again", 0);
    it.control(PORT, ON);
    assert_eq!(it.rig.read(TWO, 0), 0x1042_1af4);
}

#[test]
fn power_and_indicator_may_go_at_once() {
    let it = Hotplug::new();
    it.rig.root.unplug(PciPlace::Port(0)).unwrap();
    it.control(PORT, OFF);
    assert_eq!(*it.rig.ejected.lock().unwrap(), [PciPlace::Port(0)]);
    assert!(it.rig.log.take().contains(&"two reset".to_owned()));
}

#[test]
fn a_device_in_a_slot_without_power_goes_at_once() {
    let it = Hotplug::new();
    it.plug("new", 1);
    assert_eq!(it.rig.root.unplug(PciPlace::Port(1)).unwrap(), Unplug::Done);
    assert_eq!(*it.rig.ejected.lock().unwrap(), [PciPlace::Port(1)]);
}

#[test]
fn a_guest_that_switches_a_slot_off_finds_the_device_again() {
    let it = Hotplug::new();
    it.control(PORT, OFF);
    assert!(it.rig.ejected.lock().unwrap().is_empty());
    assert_eq!(it.status(PORT) & OCCUPIED, OCCUPIED);
    it.control(PORT, ON);
    assert_eq!(it.rig.read(TWO, 0), 0x1042_1af4);
    assert_eq!(it.rig.read(TWO, 0x10), 0xc, "as at power-on");
    // Disabling the link is the same for the device.
    let link = it.at(PORT, 0x10);
    it.rig.write(PORT, link, 2, 1 << 4);
    assert_eq!(it.rig.read(TWO, 0), u32::MAX);
    it.rig.write(PORT, link, 2, 0);
    assert_eq!(it.rig.read(TWO, 0), 0x1042_1af4);
}

#[test]
fn the_pin_is_at_the_level_of_the_events() {
    let it = Hotplug::new();
    it.control(EMPTY, OFF);
    assert_eq!(it.rig.log.take(), ["INTx 1+"], "command completed, by pin A of device 9 on eight lines");
    assert_eq!(it.rig.read(EMPTY, 4) >> 19 & 1, 1);
    it.clear(EMPTY);
    assert_eq!(it.rig.log.take(), ["INTx 1-"]);
    it.control(EMPTY, OFF & !(1 << 5));
    it.plug("new", 1);
    assert!(it.rig.log.take().is_empty(), "hot-plug interrupts are off");
    it.control(EMPTY, OFF);
    assert_eq!(it.rig.log.take(), ["INTx 1+"]);
    it.enable_msi(EMPTY);
    assert_eq!(it.rig.log.take(), ["INTx 1-"]);
    it.clear(EMPTY);
    it.control(EMPTY, OFF);
    assert_eq!(it.rig.log.take(), ["MSI 0048 fee00000 9"]);
    it.control(EMPTY, OFF);
    assert!(it.rig.log.take().is_empty(), "the condition holds already");
}

#[test]
fn a_bus_reset_resets_what_is_behind() {
    let it = Hotplug::new();
    it.rig.write(PORT, 0x3e, 2, 0x40);
    assert_eq!(it.rig.log.take(), ["two reset"]);
    it.rig.write(PORT, 0x3e, 2, 0x40);
    it.rig.write(PORT, 0x3e, 2, 0);
    assert!(it.rig.log.take().is_empty(), "once");
    assert_eq!(it.rig.read(TWO, 0x10), 0xc);
    assert!(!it.rig.mapped().iter().any(|row| row.starts_with("port:0")));
}

#[test]
fn a_reset_machine_has_power_in_its_slots() {
    let it = Hotplug::new();
    it.plug("new", 1);
    it.rig.root.unplug(PciPlace::Port(0)).unwrap();
    it.rig.root.reset();
    for port in [PORT, EMPTY] {
        assert_eq!((it.status(port), it.link_is_up(port)), (OCCUPIED, true));
    }
    it.control(PORT, OFF);
    assert!(it.rig.ejected.lock().unwrap().is_empty(), "the wish is forgotten");
}

#[test]
fn a_removal_that_was_asked_for_survives_saving() {
    let it = Hotplug::new();
    it.rig.root.unplug(PciPlace::Port(0)).unwrap();
    let other = Hotplug::new();
    other.rig.root.restore(&it.rig.root.save()).unwrap();
    other.control(PORT, OFF);
    assert_eq!(*other.rig.ejected.lock().unwrap(), [PciPlace::Port(0)]);
}

#[test]
fn a_state_of_another_slot_is_refused() {
    let it = Hotplug::new();
    let ports = it.rig.root.ports();
    let occupied = ports[0].save();
    let error = ports[1].restore(&occupied).unwrap_err().to_string();
    assert!(error.contains("`occupied`"), "{error}");
    it.control(PORT, OFF);
    let mut off = ports[0].save();
    let link = it.at(PORT, 0x10);
    off.config.registers.iter_mut().filter(|it| it.offset == link).for_each(|it| it.value |= 1 << 29);
    let error = ports[0].restore(&off).unwrap_err().to_string();
    assert!(error.contains("`link`"), "{error}");
}

#[test]
fn a_slot_has_a_state() {
    let it = Hotplug::new();
    let state = |number| it.rig.root.slot_state(PciPlace::Port(number));
    assert_eq!((state(0), state(1), state(9)), (Some(SlotState::On), Some(SlotState::Empty), None));
    assert_eq!(it.rig.root.slot_state(PciPlace::Root(3)), None);
    it.plug("new", 1);
    assert_eq!(state(1), Some(SlotState::Off));
    it.control(EMPTY, ON);
    assert_eq!(state(1), Some(SlotState::On));
    it.rig.root.unplug(PciPlace::Port(1)).unwrap();
    assert_eq!(state(1), Some(SlotState::Leaving));
    it.control(EMPTY, OFF);
    assert_eq!(state(1), Some(SlotState::Empty));
    it.rig.root.unplug(PciPlace::Port(0)).unwrap();
    it.rig.root.reset_component();
    assert_eq!(state(0), Some(SlotState::On), "it must be asked for again");
}

/// What the host and the guest do to the slots: which, at which port, and a value.
type HotStep = (u8, u8, u16);

impl Hotplug {
    /// A machine that has devices behind these ports.
    fn with(ports: &[u8]) -> Self {
        Self { rig: rig_with(Arc::new(Mch::default()), ports).placed() }
    }

    fn children(&self) -> Vec<u8> {
        let ports = self.rig.root.ports().into_iter().filter(|port| port.child().is_some());
        ports.map(|port| port.number()).collect()
    }

    /// Does a step, and says all that can be seen of the slots.
    fn step(&self, (kind, number, value): HotStep) -> (Vec<String>, Vec<String>) {
        let (number, place) = (number % 3, PciPlace::Port(number % 3));
        let port = Address::new(0, FIRST_PORT + number);
        match kind % 10 {
            0 | 1 if self.rig.root.socket(place).is_ok() => drop(self.plug(BEHIND[usize::from(number)], number)),
            2 | 3 => self.rig.log.note(format!("{:?}", self.rig.root.unplug(place).ok())),
            4 => self.control(port, [ON, OFF, ON | 1 << 10][usize::from(value) % 3]),
            5 => self.control(port, value.into()),
            6 => self.rig.write(port, self.at(port, SLOT_STA), 2, value.into()),
            7 => self.enable_msi(port),
            // MSI off, or masked by the command register, or the pin.
            8 => self.rig.write(port, self.rig.capability(port, 5) + 2, 2, u32::from(value & 1)),
            _ => self.rig.write(port, 4, 2, 3 | u32::from(value & 0x404)),
        }
        let seen = self.rig.root.ports().into_iter().map(|port| {
            let at = Address::new(0, port.device());
            let registers = [LINK, SLOT_CTL, SLOT_STA].map(|register| self.rig.read16(at, self.at(at, register)));
            let behind = port.buses().map(|(bus, _)| self.rig.read(Address::new(bus, 0), 0));
            format!("{registers:x?} {behind:x?} {:?} {:x}", port.slot_state(), self.rig.read(at, 4))
        });
        let seen = seen.chain(self.rig.mapped()).chain([format!("{:?}", self.children())]).collect();
        (seen, self.rig.log.take())
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// With slots that are empty, full, on and off, and requests under way.
    #[test]
    fn slots_saved_and_restored_behave_the_same(
        before in proptest::collection::vec(proptest::prelude::any::<HotStep>(), 0..40),
        after in proptest::collection::vec(proptest::prelude::any::<HotStep>(), 1..40),
    ) {
        let one = Hotplug::with(&[0]);
        before.iter().for_each(|step| drop(one.step(*step)));
        let record = one.rig.root.save_record();
        let two = Hotplug::with(&one.children());
        two.rig.root.restore_record(&record).unwrap();
        two.rig.update();
        two.rig.log.take();
        proptest::prop_assert_eq!(&two.rig.root.save_record(), &record, "what is restored is what is saved");
        for step in &after {
            proptest::prop_assert_eq!(one.step(*step), two.step(*step), "{:?}", step);
        }
        let ejected = |it: &Hotplug| it.rig.ejected.lock().unwrap().len();
        proptest::prop_assert!(ejected(&one) >= ejected(&two));
        proptest::prop_assert_eq!(one.rig.root.save_record(), two.rig.root.save_record());
    }
}
