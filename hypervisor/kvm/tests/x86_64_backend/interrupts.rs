//! Interrupts: the PIC's, messages, eventfds, ends of interrupt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use skep_hypervisor::x86_64::{DescriptorTable, GeneralRegisters};
use skep_hypervisor::{Exit, Powers};
use skep_irq::{IrqError, Msi, MsiMessage, MsiTarget, RouteChange};

use crate::guest;
use crate::machine::{Access, CODE, Device, Machine, flat};

/// What a local APIC takes: vector 0x31, fixed, to the APIC with id 0.
const EDGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x31 };
/// The same, level triggered and asserted.
const LEVEL: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0xc031 };

const GDT: u64 = 0x7000;
const IDT: u64 = 0x6000;
const IDT_POINTER: u64 = 0x6ff0;

/// A machine whose guest waits for interrupts with handlers for 0x30 (the PIC's) and 0x31 (the local APIC's); each writes its number to port
/// 0x80, which kicks.
fn waiting(powers: Powers) -> (Machine, Device) {
    with_handlers(powers, guest::wait())
}

fn with_handlers(powers: Powers, code: &[u8]) -> (Machine, Device) {
    let mut machine = Machine::with(powers, &[0]);
    for vector in [0x30, 0x31] {
        let begin = [0xb0, vector, 0xe6, 0x80];
        let handler = code.windows(4).position(|bytes| bytes == begin).expect("the handler is there");
        let handler = CODE + handler as u64;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        machine.write(IDT + u64::from(vector) * 8, &gate.to_le_bytes());
    }
    machine.write(IDT_POINTER, &[&0x7ff_u16.to_le_bytes()[..], &(IDT as u32).to_le_bytes()].concat());
    let descriptors = [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    machine.write(GDT, &descriptors.map(u64::to_le_bytes).concat());
    machine.write(CODE, code);
    let mut state = flat(GeneralRegisters { rdi: IDT_POINTER, ..Default::default() });
    state.system.gdt = DescriptorTable { base: GDT, limit: 0x17 };
    machine.vcpu().boot(&state).unwrap();
    let mut device = Device::of(machine.vcpu());
    device.kicking_port = Some(0x80);
    (machine, device)
}

#[test]
fn the_pics_interrupt_waits_for_a_window_and_is_acknowledged_once() {
    let (mut machine, mut device) = waiting(Powers::all());
    device.external.lock().unwrap().push_back(0x30);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!((device.external.lock().unwrap().len(), device.written(0x80, 0x30)), (0, 1));
    assert_eq!(machine.vcpu().exits().interrupt_windows, 1, "the guest had interrupts off when it came");
}

#[test]
fn the_pics_interrupt_wakes_a_guest_in_halt() {
    let (mut machine, mut device) = waiting(Powers::all());
    device.kicking_port = None;
    let (sender, handled) = mpsc::channel();
    device.listener = Some(sender);
    let (external, kicker) = (device.external.clone(), device.kicker.clone());
    let done = Arc::new(AtomicBool::new(false));
    let runner = {
        let done = done.clone();
        thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                assert_eq!(machine.run(&mut device), Exit::Kicked);
            }
            device.written(0x80, 0x30)
        })
    };
    for _ in 0..100 {
        external.lock().unwrap().push_back(0x30);
        kicker.kick();
        handled.recv().expect("the guest handles it");
    }
    done.store(true, Ordering::SeqCst);
    kicker.kick();
    assert_eq!(runner.join().unwrap(), 100);
}

#[test]
fn an_acknowledged_vector_is_part_of_the_state() {
    let (mut machine, mut device) = with_handlers(Powers::all(), guest::busy());
    device.kicking_port = Some(0x82);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    // The guest has interrupts on. It is kicked before its code goes on: the vector has gone from the PIC, and was not delivered yet.
    device.external.lock().unwrap().push_back(0x30);
    device.kicker.kick();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!((device.external.lock().unwrap().len(), device.written(0x80, 0x30)), (0, 0));
    let saved = machine.save();
    assert_eq!(saved.events.interrupt, Some(0x30));

    let (mut other, mut device) = with_handlers(Powers::all(), guest::busy());
    other.vcpu().restore(&saved).unwrap();
    assert_eq!(other.run(&mut device), Exit::Kicked);
    assert_eq!(device.accesses, [Access::Out(0x80, 1, 0x30)]);
}

#[test]
fn a_message_reaches_the_local_apic() {
    let (mut machine, mut device) = waiting(Powers::all());
    let apics = machine.parts.interrupts.apics.clone();
    apics.signal(EDGE, None).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(device.accesses, [Access::Out(0x80, 1, 0x31)]);
    apics
        .signal(MsiMessage { address: 0xfee0_5000, ..EDGE }, None)
        .expect("nobody has that id: it is lost, as on a machine");
    let nowhere = apics.signal(MsiMessage { address: 0xd000_0000, ..EDGE }, None);
    assert!(matches!(nowhere, Err(IrqError::NoMsiTarget { address: 0xd000_0000, data: 0x31 })));
}

#[test]
fn the_end_of_a_level_interrupt_is_told_and_that_of_an_edge_is_not() {
    let (mut machine, mut device) = waiting(Powers::all());
    let apics = machine.parts.interrupts.apics.clone();
    let mut pins = vec![None; 24];
    pins[5] = Some(LEVEL);
    apics.set_pin_routes(&pins).unwrap();
    apics.signal(LEVEL, None).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    apics.signal(EDGE, None).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let handler = Access::Out(0x80, 1, 0x31);
    assert_eq!(device.accesses, [handler, Access::EndOfInterrupt(0x31), handler]);
    assert_eq!(machine.vcpu().exits().interrupt_ends, 1);
}

#[test]
fn eventfds_raise_messages_while_they_are_not_masked() {
    let (mut machine, mut device) = waiting(Powers::all());
    let apics: Arc<dyn MsiTarget> = machine.parts.interrupts.apics.clone();
    let msi = Msi::new(apics.clone(), None);
    let fd = msi.eventfd().unwrap().expect("KVM has eventfds");
    fd.write(1).unwrap();
    assert!(msi.state().pending, "masked: it waits");
    msi.configure(EDGE, false).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    fd.write(1).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(device.written(0x80, 0x31), 2);
    drop(msi);

    let routes = apics.routes().unwrap();
    let (route, fd) = routes.allocate().unwrap();
    let (bad, _) = routes.allocate().unwrap();
    let to = |route, message| RouteChange { route, message: Some(message), requester: None };
    let result = routes.update(&[to(bad, MsiMessage::default()), to(route, EDGE)]);
    assert!(matches!(result, Err(IrqError::NoMsiTarget { address: 0, .. })), "{result:?}");
    fd.write(1).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(device.written(0x80, 0x31), 3, "a message that leads nowhere keeps no other up");
}

#[test]
fn what_is_not_allowed_is_not_offered() {
    let (mut machine, _) = waiting(Powers::empty());
    assert!(machine.parts.interrupts.apics.routes().is_none());
    assert!(machine.parts.vm.doorbells().is_none());
    assert!(machine.parts.vm.dirty_source().is_none());
    assert_eq!(machine.vcpu().index(), 0);
}
