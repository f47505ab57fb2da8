use std::sync::atomic::{AtomicU32, Ordering};

use skep_irq::testing::Log;
use skep_state::{Component, Persist};

use super::*;
use crate::chipset::LpcBridge;
use crate::node::ConfigFunction;

/// The first of the I/O APIC's inputs.
const FIRST: u32 = 16;
const A_TO_D: u16 = 0x60;
const E_TO_H: u16 = 0x68;

/// Both controllers: notes levels, and has listeners of each line.
struct Controllers {
    log: Log,
    listeners: Mutex<Vec<(u32, EoiListener)>>,
}

impl LineTarget for Controllers {
    fn set_level(&self, line: u32, asserted: bool) {
        self.log.note(format!("{line}{}", if asserted { '+' } else { '-' }));
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        self.listeners.lock().unwrap().push((line, listener));
        Some(Box::new(()))
    }
}

impl Controllers {
    fn end(&self, line: u32) {
        let here: Vec<_> = self.listeners.lock().unwrap().iter().filter(|(of, _)| *of == line).cloned().collect();
        here.iter().for_each(|(_, listener)| listener());
    }
}

struct Rig {
    controllers: Arc<Controllers>,
    table: LineTable,
    bridge: LpcBridge,
    /// One handle to each PIRQ.
    pirqs: Vec<IrqLine>,
}

impl Rig {
    fn new() -> Self {
        let controllers = Arc::new(Controllers { log: Log::default(), listeners: Mutex::default() });
        let table = LineTable::new(controllers.clone(), 0..=23);
        let router = Arc::new(PirqRouter::new(&table, FIRST).unwrap());
        let pirqs = router.lines();
        Self { controllers, table, bridge: LpcBridge::new(None, router), pirqs }
    }

    /// As firmware does: a byte of a register.
    fn route(&self, pirq: u16, value: u32) {
        let (register, lane) = if pirq < 4 { (A_TO_D, pirq) } else { (E_TO_H, pirq - 4) };
        let _ = self.bridge.config_write(register, 0xff << (8 * lane), value << (8 * lane));
    }

    fn seen(&self) -> Vec<String> {
        self.controllers.log.take()
    }
}

#[test]
fn nothing_goes_to_the_pic_before_it_is_routed() {
    let rig = Rig::new();
    for pirq in 0..8 {
        rig.pirqs[pirq].assert();
        rig.pirqs[pirq].deassert();
        assert_eq!(rig.seen(), [format!("{}+", 16 + pirq), format!("{}-", 16 + pirq)]);
        assert_eq!(rig.pirqs[pirq].description().number, FIRST + pirq as u32);
    }
}

#[test]
fn every_pirq_has_its_register() {
    let rig = Rig::new();
    for (pirq, irq) in (0..8).zip([3, 4, 5, 6, 7, 9, 14, 15]) {
        rig.route(pirq, irq);
    }
    for (pirq, irq) in (0..8).zip([3, 4, 5, 6, 7, 9, 14, 15]) {
        rig.pirqs[pirq].assert();
        assert_eq!(rig.seen(), [format!("{}+", 16 + pirq), format!("{irq}+")]);
    }
}

#[test]
fn two_on_one_interrupt_share_it_with_what_is_there() {
    let rig = Rig::new();
    rig.route(0, 10);
    rig.route(6, 10);
    let other = rig.table.line(10, Trigger::Level, Polarity::Low).unwrap();
    rig.pirqs[0].assert();
    rig.pirqs[6].assert();
    assert_eq!(rig.seen(), ["16+", "10+", "22+"]);
    rig.pirqs[0].deassert();
    assert_eq!(rig.seen(), ["16-"]);
    other.assert();
    rig.pirqs[6].deassert();
    assert_eq!(rig.seen(), ["22-"]);
    other.deassert();
    assert_eq!(rig.seen(), ["10-"]);
}

#[test]
fn a_device_that_shares_a_pirq_holds_it() {
    let rig = Rig::new();
    rig.route(2, 11);
    let other = rig.pirqs[2].share();
    rig.pirqs[2].assert();
    other.assert();
    rig.pirqs[2].deassert();
    assert_eq!(rig.seen(), ["18+", "11+"]);
    drop(other);
    assert_eq!(rig.seen(), ["18-", "11-"]);
}

#[test]
fn bit_7_and_reserved_interrupts_are_no_route() {
    let rig = Rig::new();
    rig.pirqs[3].assert();
    rig.seen();
    for value in [0, 1, 2, 8, 13, 0x8a, 0x80] {
        rig.route(3, value);
        assert!(rig.seen().is_empty(), "{value:#x}");
    }
    rig.route(3, 0x0a);
    assert_eq!(rig.seen(), ["10+"]);
    rig.route(3, 0x8a);
    assert_eq!(rig.seen(), ["10-"]);
}

#[test]
fn a_pirq_that_is_asserted_moves_with_its_route() {
    let rig = Rig::new();
    rig.route(1, 5);
    rig.route(5, 5);
    rig.pirqs[1].assert();
    assert_eq!(rig.seen(), ["17+", "5+"]);
    rig.route(1, 11);
    assert_eq!(rig.seen(), ["5-", "11+"]);
    rig.pirqs[5].assert();
    rig.route(1, 5);
    assert_eq!(rig.seen(), ["21+", "5+", "11-"]);
    rig.route(5, 0x80);
    assert!(rig.seen().is_empty(), "the other one holds it");
    rig.pirqs[1].deassert();
    assert_eq!(rig.seen(), ["17-", "5-"]);
}

#[test]
fn a_reset_ends_the_routing_and_leaves_the_level() {
    let rig = Rig::new();
    rig.route(4, 10);
    rig.pirqs[4].assert();
    rig.seen();
    rig.bridge.reset_component();
    assert_eq!(rig.seen(), ["10-"]);
    rig.route(4, 10);
    assert_eq!(rig.seen(), ["10+"]);
    rig.bridge.bus_reset();
    assert_eq!(rig.seen(), ["10-"]);
    rig.pirqs[4].deassert();
    assert_eq!(rig.seen(), ["20-"]);
}

#[test]
fn a_restored_level_makes_no_edge_and_falls() {
    let one = Rig::new();
    one.route(0, 10);
    one.route(1, 11);
    let state = one.bridge.save();
    // What is restored first doesn't matter.
    for bridge_first in [true, false] {
        let two = Rig::new();
        two.route(1, 3);
        two.pirqs[1].assert();
        two.seen();
        let levels = || {
            two.pirqs[0].restore(true);
            two.pirqs[1].restore(false);
        };
        if bridge_first {
            two.bridge.restore(&state).unwrap();
            levels();
        } else {
            levels();
            two.bridge.restore(&state).unwrap();
        }
        assert!(two.seen().is_empty());
        two.pirqs[0].assert();
        two.pirqs[1].assert();
        assert_eq!(two.seen(), ["17+", "11+"]);
        two.pirqs[0].deassert();
        assert_eq!(two.seen(), ["16-", "10-"]);
        two.pirqs[1].deassert();
        assert_eq!(two.seen(), ["17-", "11-"]);
    }
}

#[test]
fn the_end_of_an_interrupt_is_heard_from_where_it_goes() {
    let rig = Rig::new();
    let heard = Arc::new(AtomicU32::new(0));
    let count = heard.clone();
    let subscription = rig.pirqs[7].on_eoi(Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    assert!(subscription.is_some());
    let ends = |line| {
        let before = heard.load(Ordering::Relaxed);
        rig.controllers.end(line);
        heard.load(Ordering::Relaxed) - before
    };
    assert_eq!([ends(23), ends(22), ends(10), ends(11)], [1, 0, 0, 0]);
    rig.route(7, 10);
    assert_eq!([ends(23), ends(22), ends(10), ends(11)], [1, 0, 1, 0]);
    rig.route(7, 11);
    assert_eq!([ends(23), ends(22), ends(10), ends(11)], [1, 0, 0, 1]);
}

#[test]
fn a_table_must_have_the_lines() {
    let controllers = Rig::new().controllers;
    let table = LineTable::new(controllers, 0..=22);
    assert!(matches!(PirqRouter::new(&table, FIRST), Err(IrqError::NoSuchLine { line: 23, .. })));
}
