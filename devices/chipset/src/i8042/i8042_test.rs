use std::collections::VecDeque;
use std::sync::Arc;

use skep_clock::Clock;

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses, requests};

fn rig() -> Rig<I8042> {
    let log = Log::default();
    let device = Arc::new(I8042::new(I8042Config {
        keyboard_irq: log.line("irq1"),
        auxiliary_irq: log.line("irq12"),
        requests: requests(&log),
    }));
    let poked = device.clone();
    Rig {
        device,
        clock: Clock::manual(0),
        log,
        regions: &[(DATA, 1), (COMMAND, 1)],
        poke: Box::new(move |_| poked.poll()),
    }
}

/// Has things to send, and echoes what it is sent.
#[derive(Clone, Default)]
struct Echo(Arc<Mutex<VecDeque<u8>>>);

impl Echo {
    fn press(&self, codes: &[u8]) {
        self.0.lock().unwrap().extend(codes);
    }
}

impl Ps2Port for Echo {
    fn receive(&mut self, byte: u8) {
        self.press(&[byte]);
    }
    fn send(&mut self) -> Option<u8> {
        self.0.lock().unwrap().pop_front()
    }
}

impl Rig<I8042> {
    fn command(&self, command: u8) {
        self.write(COMMAND, 0, command);
    }
    fn ask(&self, command: u8) -> u8 {
        self.command(command);
        self.read(DATA, 0)
    }
    fn tell(&self, command: u8, value: u8) {
        self.command(command);
        self.write(DATA, 0, value);
    }
    fn status(&self) -> u8 {
        self.read(COMMAND, 0)
    }
}

device_properties!("chipset-i8042", rig);

#[test]
fn the_controller_tests_itself_as_drivers_ask() {
    let rig = rig();
    assert_eq!(rig.status(), 0xd0, "empty, unlocked, without a keyboard");
    rig.command(0xaa);
    assert_eq!((rig.status(), rig.read(DATA, 0), rig.status()), (0x1d, 0x55, 0xdc));
    assert_eq!([rig.ask(0xab), rig.ask(0xa9), rig.ask(0xa4), rig.ask(0xc0)], [0, 0, 0xf1, 0xa0]);
    assert_eq!(rig.ask(0x20), 0x44);
    rig.tell(0x60, 0x65);
    assert_eq!(rig.ask(0x20), 0x65);
    rig.log.take();
    rig.tell(0x7f, 0x99);
    assert_eq!((rig.ask(0x3f), rig.ask(0x21)), (0x99, 0));
    assert_eq!(rig.log.take(), ["irq1+", "irq1-", "irq1+", "irq1-"], "interrupts are on now, for answers as well");
}

#[test]
fn the_auxiliary_interface_passes_linux_probe() {
    let rig = rig();
    rig.tell(0xd3, 0x5a);
    assert_eq!((rig.status() & 0x21, rig.read(DATA, 0)), (0x21, 0x5a));
    rig.command(0xa7);
    assert_eq!(rig.ask(0x20) & 0x20, 0x20);
    rig.command(0xa8);
    assert_eq!(rig.ask(0x20) & 0x20, 0);
    rig.tell(0x60, 0x02);
    rig.tell(0xd3, 0xa5);
    assert_eq!(rig.log.take(), ["irq12+"]);
    assert_eq!(rig.read(DATA, 0), 0xa5);
    assert_eq!(rig.log.take(), ["irq12-"]);
    rig.tell(0x60, 0x01);
    rig.tell(0xd2, 0x1c);
    assert_eq!((rig.log.take(), rig.read(DATA, 0)), (vec!["irq1+".to_owned()], 0x1c));
}

#[test]
fn nothing_connected_is_answered_at_once() {
    let rig = rig();
    rig.write(DATA, 0, 0xf2);
    assert_eq!((rig.status(), rig.read(DATA, 0)), (0x51, 0xfe));
    rig.tell(0xd4, 0xf2);
    assert_eq!((rig.status(), rig.read(DATA, 0)), (0x71, 0xfe));
    assert_eq!((rig.status(), rig.read(DATA, 0)), (0xd0, 0xfe), "the port keeps its last byte");
}

#[test]
fn a_keyboard_is_heard_while_its_clock_runs_and_each_byte_makes_an_edge() {
    let rig = rig();
    let keyboard = Echo::default();
    rig.device.connect(Origin::Keyboard, Box::new(keyboard.clone()));
    assert_eq!(rig.status(), 0x10, "empty, unlocked");
    rig.tell(0x60, 0x01);
    keyboard.press(&[0x1c, 0xf0, 0x1c]);
    rig.device.poll();
    assert_eq!(rig.log.take(), ["irq1+"]);
    let codes = [rig.read(DATA, 0), rig.read(DATA, 0), rig.read(DATA, 0)];
    assert_eq!(codes, [0x1c, 0xf0, 0x1c], "untranslated");
    assert_eq!(rig.log.take(), ["irq1-", "irq1+", "irq1-", "irq1+", "irq1-"]);
    rig.command(0xad);
    keyboard.press(&[0x1c]);
    rig.device.poll();
    assert_eq!(rig.status() & 1, 0);
    rig.command(0xae);
    assert_eq!(rig.read(DATA, 0), 0x1c);
    rig.command(0xad);
    rig.write(DATA, 0, 0xee);
    assert_eq!(rig.read(DATA, 0), 0xee, "sending turns the clock on");
    assert_eq!(rig.ask(0x20), 0x01);
}

#[test]
fn scan_codes_are_translated() {
    let rig = rig();
    let keyboard = Echo::default();
    rig.device.connect(Origin::Keyboard, Box::new(keyboard.clone()));
    // A, its release, the right control key and its release, F7, acknowledgement.
    keyboard.press(&[0x1c, 0xf0, 0x1c, 0xe0, 0x14, 0xe0, 0xf0, 0x14, 0x83, 0xf0, 0x83, 0xfa]);
    rig.device.poll();
    let mut codes = Vec::new();
    while rig.status() & 1 != 0 {
        codes.push(rig.read(DATA, 0));
    }
    assert_eq!(codes, [0x1e, 0x9e, 0xe0, 0x1d, 0xe0, 0x9d, 0x41, 0xc1, 0xfa]);
}

#[test]
fn a_mouse_speaks_by_its_own_interrupt() {
    let rig = rig();
    let mouse = Echo::default();
    rig.device.connect(Origin::Auxiliary, Box::new(mouse));
    rig.tell(0x60, 0x03);
    rig.tell(0xd4, 0xf4);
    assert_eq!((rig.log.take(), rig.status() & 0x21, rig.read(DATA, 0)), (vec!["irq12+".to_owned()], 0x21, 0xf4));
}

#[test]
fn reset_and_a20_by_the_output_port() {
    let rig = rig();
    assert_eq!(rig.ask(0xd0), 0xc3);
    rig.command(0xdd);
    assert_eq!(rig.ask(0xd0), 0xc1);
    rig.tell(0xd1, 0xdf);
    assert_eq!((rig.ask(0xd0), rig.log.take().len()), (0xc3, 0));
    rig.tell(0xd1, 0xfe);
    assert_eq!(rig.log.take(), ["Reset"]);
    for command in 0xf0..=0xff {
        rig.command(command);
        assert_eq!(rig.log.take().len(), usize::from(command & 1 == 0), "{command:x}");
    }
    rig.device.reset();
    assert_eq!(rig.device.save(), self::rig().device.save());
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let state = rig().device.save();
    refuses(&state, "expects", |s| s.expects = Expects::Memory(32));
    refuses(&state, "memory", |s| s.memory.truncate(31));
    refuses(&state, "output_port", |s| s.output_port = 1);
}
