// A VM of aarch64 has no routes before its GIC: there the conformance suite tests them.
#![cfg(target_arch = "x86_64")]

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};

use super::*;

const PINS: u32 = 24;

fn translate(message: MsiMessage, requester: Option<RequesterId>) -> Result<KvmMsi, IrqError> {
    let MsiMessage { address, data } = message;
    let device = requester.map(|requester| requester.0);
    if address == 0 { Err(IrqError::NoMsiTarget { address, data }) } else { Ok(KvmMsi { address, data, device }) }
}

fn routes() -> Routes {
    let vm = kvm_ioctls::Kvm::new().expect("this test needs /dev/kvm").create_vm().unwrap();
    let args = [PINS.into(), 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args, ..Default::default() }).unwrap();
    Routes::new(Arc::new(vm), PINS, translate)
}

fn change(route: Route, address: u64) -> RouteChange {
    let message = MsiMessage { address, data: 0x41 };
    RouteChange { route, message: (address != 1).then_some(message), requester: None }
}

const MASKED: u64 = 1;
const NOWHERE: u64 = 0;
const APIC: u64 = 0xfee0_0000;

#[test]
fn gsis_follow_the_pins_are_finite_and_used_again() {
    let routes = routes();
    let (first, _fd) = routes.allocate().unwrap();
    let (second, _fd) = routes.allocate().unwrap();
    assert_eq!((first, second), (Route(PINS), Route(PINS + 1)));
    routes.free(first);
    assert_eq!(routes.allocate().unwrap().0, first);
    routes.limit.set(PINS + 2).expect_err("the limit is KVM's own");
    // As if all but two were taken.
    routes.lock().used = routes.limit() - PINS;
    let error = routes.allocate().unwrap_err();
    assert!(format!("{error}").contains("allocate an interrupt route: KVM's"), "{error}");
}

#[test]
fn an_eventfd_is_attached_while_its_message_leads_somewhere() {
    let routes = routes();
    let (route, _fd) = routes.allocate().unwrap();
    let (other, _fd) = routes.allocate().unwrap();
    let attached = |route| routes.lock().irqfds[&route].attached;
    routes.update(&[change(route, APIC), change(other, APIC)]).unwrap();
    assert!(attached(route) && attached(other));
    routes.update(&[change(route, MASKED)]).unwrap();
    assert!(!attached(route) && attached(other));
    let error = routes.update(&[change(other, NOWHERE), change(route, APIC)]).unwrap_err();
    assert!(matches!(error, IrqError::NoMsiTarget { .. }), "{error}");
    assert!(attached(route) && !attached(other), "one that leads nowhere does not keep the other up");
    routes.free(route);
    assert!(routes.update(&[change(route, APIC)]).is_err(), "it was given back");
}

#[test]
fn the_table_is_set_only_where_it_changes() {
    let routes = routes();
    let (route, _fd) = routes.allocate().unwrap();
    routes.update(&[change(route, APIC)]).unwrap();
    let table = || {
        let table = routes.lock();
        (table.fixed.clone(), table.messages.clone())
    };
    let before = table();
    // An irqfd that is already attached would be refused, and so would one that is not there.
    routes.update(&[change(route, APIC)]).unwrap();
    routes.update(&[change(route, MASKED), change(route, MASKED)]).unwrap();
    assert_eq!(table(), before, "a masked one keeps its entry");
    let pin = Destination::Msi(KvmMsi { address: APIC, data: 0x8042, device: None });
    routes.set_fixed(BTreeMap::from([(5, pin)])).unwrap();
    routes.set_fixed(BTreeMap::from([(5, pin)])).unwrap();
    assert_eq!(table().0.len(), 1);
}

#[test]
fn what_kvm_refuses_leaves_the_table_as_it_was() {
    let routes = routes();
    let nowhere = Destination::Msi(KvmMsi { address: APIC, data: 0x8042, device: None });
    let error = routes.set_fixed(BTreeMap::from([(1 << 20, nowhere)])).unwrap_err();
    assert!(error.to_string().contains("set the interrupt routes"), "{error}");
    assert!(routes.lock().fixed.is_empty());
}
