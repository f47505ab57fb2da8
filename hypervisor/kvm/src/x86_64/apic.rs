//! The local APICs as KVM's: messages to them, and the pins of whose interrupts they report the end.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use skep_irq::{ApicBus, IrqError, MsiMessage, MsiRoutes, MsiTarget, RequesterId};

use crate::routes::{Destination, KvmMsi, Routes};

#[cfg(test)]
#[path = "apic_test.rs"]
mod test;

/// Bit 15 of a message's data: level triggered (SDM 3A section 11.11.2).
const LEVEL: u32 = 1 << 15;

/// The way to all local APICs of a VM.
pub(super) struct Apics {
    vm: Arc<VmFd>,
    routes: Routes,
    /// Eventfds may raise interrupts.
    eventfds: bool,
}

impl Apics {
    /// GSIs below `pins` are the IOAPIC's.
    pub(super) fn new(vm: Arc<VmFd>, pins: u32, eventfds: bool) -> Self {
        Self { routes: Routes::new(vm.clone(), pins, translate), vm, eventfds }
    }
}

/// A message as KVM takes it. Local APICs take what is written to 0xfeexxxxx (SDM 3A section 11.11.1); bits 11:5 of the address hold bits 14:8
/// of the destination, which KVM takes in the upper half.
fn translate(message: MsiMessage, _requester: Option<RequesterId>) -> Result<KvmMsi, IrqError> {
    let MsiMessage { address, data } = message;
    if address >> 20 != 0xfee {
        return Err(IrqError::NoMsiTarget { address, data });
    }
    let extended = address >> 5 & 0x7f;
    Ok(KvmMsi { address: address & !(0x7f << 5) | extended << 40, data, device: None })
}

impl MsiTarget for Apics {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        let what = "signal an interrupt";
        match translate(message, requester)?.signal(&self.vm) {
            // No CPU has that id, or its APIC is off: on a machine the message is lost as well. KVM says so by -1, which reads as EPERM.
            Ok(_) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(source) => Err(IrqError::Backend { what, source }),
        }
    }

    fn routes(&self) -> Option<&dyn MsiRoutes> {
        self.eventfds.then_some(&self.routes)
    }
}

impl ApicBus for Apics {
    fn set_pin_routes(&self, pins: &[Option<MsiMessage>]) -> Result<(), IrqError> {
        // KVM only wants to know of what vectors to report the end, which edges have not: most of what a guest does to its IOAPIC needs no call.
        let level = (0..).zip(pins).filter_map(|(pin, message)| Some((pin, message.filter(|m| m.data & LEVEL != 0)?)));
        let routes = level.map(|(pin, message)| Ok((pin, Destination::Msi(translate(message, None)?))));
        self.routes.set_fixed(routes.collect::<Result<_, IrqError>>()?)
    }
}
