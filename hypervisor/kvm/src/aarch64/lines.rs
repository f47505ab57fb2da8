//! The GIC's shared peripheral interrupts as lines, and the ITS as what takes MSIs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};
use kvm_ioctls::VmFd;
use skep_hypervisor::Powers;
use skep_irq::{EoiListener, EoiSubscription, IrqError, LineTarget, MsiMessage, MsiRoutes, MsiTarget, RequesterId};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::resample::Resampler;
use crate::routes::{Destination, KvmMsi, Routes};

/// INTID of the first SPI.
pub(super) const FIRST_SPI: u32 = 32;

/// The SPIs of one VM, by INTID. KVM's GSIs below their number are their pins, in order.
pub(super) struct Lines {
    vm: Arc<VmFd>,
    powers: Powers,
    routes: Arc<Routes>,
    /// What each line is driven to, one bit each: the first SPI in bit 0 of word 0.
    levels: Box<[AtomicU32]>,
    /// The pins that an eventfd raises.
    pins: Mutex<BTreeSet<u32>>,
    resampler: OnceLock<Option<Resampler>>,
}

impl Lines {
    pub(super) fn new(vm: Arc<VmFd>, spis: u32, powers: Powers, routes: Arc<Routes>) -> Self {
        let levels = (0..spis.div_ceil(32)).map(|_| AtomicU32::new(0)).collect();
        Self { vm, powers, routes, levels, pins: Mutex::default(), resampler: OnceLock::new() }
    }

    /// The word and the bit of a line's level.
    fn level(&self, line: u32) -> Option<(&AtomicU32, u32)> {
        let pin = line.checked_sub(FIRST_SPI)?;
        Some((self.levels.get((pin / 32) as usize)?, 1 << (pin % 32)))
    }

    fn drive(&self, line: u32, asserted: bool) {
        let irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | line;
        if let Err(e) = self.vm.set_irq_line(irq, asserted) {
            tracing::error!("KVM refuses to drive SPI {line}: {e}");
        }
    }

    /// Drives a line to its level again: KVM has lowered it at the end of an interrupt.
    pub(super) fn drive_again(&self, line: u32) {
        let Some((word, bit)) = self.level(line) else { return };
        loop {
            let asserted = word.load(Ordering::SeqCst) & bit != 0;
            self.drive(line, asserted);
            // Whoever changes the level notes it before driving the line: a change that this loop has not seen drives the line later.
            if (word.load(Ordering::SeqCst) & bit != 0) == asserted {
                return;
            }
        }
    }

    /// What the lines are driven to, INTID 32 in bit 0 of word 0.
    pub(super) fn levels(&self) -> Vec<u32> {
        self.levels.iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// Notes what restored lines are driven to, and drives them where the GIC's own state does not hold it.
    pub(super) fn restore(&self, levels: &[u32], drive: bool) {
        for (word, level) in self.levels.iter().zip(levels) {
            word.store(*level, Ordering::SeqCst);
        }
        let lines = FIRST_SPI..FIRST_SPI + 32 * self.levels.len() as u32;
        for line in lines.filter(|_| drive) {
            self.drive_again(line);
        }
    }

    /// Lets an eventfd raise a line's pin.
    fn route(&self, line: u32) -> io::Result<u32> {
        let pin = line - FIRST_SPI;
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.insert(pin) {
            let fixed: BTreeMap<_, _> = pins.iter().map(|pin| (*pin, Destination::Pin(*pin))).collect();
            self.routes.set_fixed(fixed).map_err(io::Error::other)?;
        }
        Ok(pin)
    }

    fn attach(&self, line: u32) -> io::Result<EventFd> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.vm.register_irqfd(&fd, self.route(line)?)?;
        Ok(fd)
    }

    /// Two eventfds for a line: the first raises it, the second is signalled at each end of an interrupt, when KVM has lowered it.
    pub(super) fn attach_resample(&self, line: u32) -> io::Result<(EventFd, EventFd)> {
        let raise = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ended = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.vm.register_irqfd_with_resample(&raise, &ended, self.route(line)?)?;
        Ok((raise, ended))
    }

    pub(super) fn detach(&self, line: u32, raise: &EventFd) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(raise, line - FIRST_SPI)?)
    }
}

/// [`Lines`] as the machine sees them.
pub(super) struct Spis(pub(super) Arc<Lines>);

impl LineTarget for Spis {
    fn set_level(&self, line: u32, asserted: bool) {
        let Some((word, bit)) = self.0.level(line) else { return };
        if asserted {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
        self.0.drive(line, asserted);
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        if !self.0.powers.contains(Powers::RESAMPLE) {
            return None;
        }
        self.0.level(line)?;
        let start = || match Resampler::new(&self.0) {
            Ok(resampler) => Some(resampler),
            Err(e) => {
                tracing::warn!("no ends of interrupt are reported: {e}");
                None
            }
        };
        match self.0.resampler.get_or_init(start).as_ref()?.subscribe(line, listener) {
            Ok(subscription) => Some(subscription),
            Err(e) => {
                tracing::warn!("ends of interrupt of SPI {line} are not reported: {e}");
                None
            }
        }
    }

    fn eventfd(&self, line: u32) -> Option<EventFd> {
        if !self.0.powers.contains(Powers::INTERRUPT_EVENTFDS) {
            return None;
        }
        self.0.level(line)?;
        self.0.attach(line).inspect_err(|e| tracing::warn!("SPI {line} has no eventfd: {e}")).ok()
    }
}

/// A message as an ITS takes it: it translates by the device that sends.
pub(super) fn to_kvm(message: MsiMessage, requester: Option<RequesterId>) -> Result<KvmMsi, IrqError> {
    let Some(RequesterId(device)) = requester else {
        let source =
            io::Error::new(io::ErrorKind::InvalidInput, "an ITS translates by the sender's id, and it is not known");
        return Err(IrqError::Backend { what: "send an MSI to the ITS", source });
    };
    Ok(KvmMsi { address: message.address, data: message.data, device: Some(device) })
}

/// The ITS as the machine sees it.
pub(super) struct ItsTarget {
    vm: Arc<VmFd>,
    powers: Powers,
    routes: Arc<Routes>,
    /// GITS_TRANSLATER, the only address that takes messages.
    translater: u64,
}

impl ItsTarget {
    pub(super) fn new(vm: Arc<VmFd>, its: u64, powers: Powers, routes: Arc<Routes>) -> Self {
        Self { vm, powers, routes, translater: its + 0x1_0040 }
    }
}

impl MsiTarget for ItsTarget {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        if message.address != self.translater {
            return Err(IrqError::NoMsiTarget { address: message.address, data: message.data });
        }
        // A message that the guest has mapped to nothing is dropped, as the architecture says.
        let delivered = to_kvm(message, requester)?.signal(&self.vm);
        delivered.map(drop).map_err(|source| IrqError::Backend { what: "send an MSI to the ITS", source })
    }

    fn routes(&self) -> Option<&dyn MsiRoutes> {
        self.powers.contains(Powers::INTERRUPT_EVENTFDS).then_some(&*self.routes as &dyn MsiRoutes)
    }
}
