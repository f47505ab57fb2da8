//! The interrupt routing table, its one owner, and the eventfds that raise what it routes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_IRQ_ROUTING, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use skep_irq::{IrqError, MsiMessage, MsiRoutes, RequesterId, Route, RouteChange};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[cfg(test)]
#[path = "routes_test.rs"]
mod test;

/// A message as KVM takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvmMsi {
    /// The address; on x86_64 its high half holds bits 31:8 of the destination.
    pub(crate) address: u64,
    pub(crate) data: u32,
    /// Who sends, where the controller wants to know (an ITS).
    pub(crate) device: Option<u32>,
}

impl KvmMsi {
    /// Delivers it now. The answer is whether a CPU took it.
    pub(crate) fn signal(self, vm: &VmFd) -> io::Result<bool> {
        let msi = kvm_msi {
            address_lo: self.address as u32,
            address_hi: (self.address >> 32) as u32,
            data: self.data,
            flags: self.flags(),
            devid: self.device.unwrap_or(0),
            ..Default::default()
        };
        Ok(vm.signal_msi(msi)? > 0)
    }

    fn flags(self) -> u32 {
        if self.device.is_some() { KVM_MSI_VALID_DEVID } else { 0 }
    }
}

/// Where a GSI leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A message.
    Msi(KvmMsi),
    /// A pin of an interrupt controller of KVM's own.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "the split irqchip has no pins of KVM's"))]
    Pin(u32),
}

impl Destination {
    fn entry(self, gsi: u32) -> kvm_irq_routing_entry {
        let (type_, flags, u) = match self {
            Self::Msi(msi) => {
                let devid = kvm_irq_routing_msi__bindgen_ty_1 { devid: msi.device.unwrap_or(0) };
                let entry = kvm_irq_routing_msi {
                    address_lo: msi.address as u32,
                    address_hi: (msi.address >> 32) as u32,
                    data: msi.data,
                    __bindgen_anon_1: devid,
                };
                (KVM_IRQ_ROUTING_MSI, msi.flags(), kvm_irq_routing_entry__bindgen_ty_1 { msi: entry })
            }
            Self::Pin(pin) => {
                let irqchip = kvm_irq_routing_irqchip { irqchip: 0, pin };
                (KVM_IRQ_ROUTING_IRQCHIP, 0, kvm_irq_routing_entry__bindgen_ty_1 { irqchip })
            }
        };
        kvm_irq_routing_entry { gsi, type_, flags, u, ..Default::default() }
    }
}

/// An MSI's route.
struct Irqfd {
    fd: EventFd,
    attached: bool,
}

#[derive(Default)]
struct Table {
    /// What lies below the MSIs: pins.
    fixed: BTreeMap<u32, Destination>,
    /// The messages of the MSIs that are not masked.
    messages: BTreeMap<u32, Destination>,
    irqfds: BTreeMap<Route, Irqfd>,
    free: Vec<u32>,
    /// How many GSIs of MSIs were ever used.
    used: u32,
}

/// How an architecture's messages become KVM's.
pub(crate) type Translate = fn(MsiMessage, Option<RequesterId>) -> Result<KvmMsi, IrqError>;

/// The routing table of one VM: the only one who sets it.
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    translate: Translate,
    /// The first GSI for MSIs.
    first: u32,
    limit: OnceLock<u32>,
    table: Mutex<Table>,
}

fn backend(what: &'static str) -> impl Fn(io::Error) -> IrqError {
    move |source| IrqError::Backend { what, source }
}

impl Routes {
    /// An empty table; GSIs below `first` are pins.
    pub(crate) fn new(vm: Arc<VmFd>, first: u32, translate: Translate) -> Self {
        Self { vm, translate, first, limit: OnceLock::new(), table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets where the pins lead. Without effect if they lead there already: each change stops all interrupts for a while.
    pub(crate) fn set_fixed(&self, fixed: BTreeMap<u32, Destination>) -> Result<(), IrqError> {
        let mut table = self.lock();
        if table.fixed != fixed {
            self.load(&fixed, &table.messages)?;
            table.fixed = fixed;
        }
        Ok(())
    }

    fn load(&self, fixed: &BTreeMap<u32, Destination>, messages: &BTreeMap<u32, Destination>) -> Result<(), IrqError> {
        let failed = backend("set the interrupt routes");
        let entries: Vec<_> = fixed.iter().chain(messages).map(|(gsi, to)| to.entry(*gsi)).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|e| failed(io::Error::other(format!("{e:?}"))))?;
        self.vm.set_gsi_routing(&routing).map_err(|e| failed(e.into()))
    }

    /// How many GSIs KVM has.
    fn limit(&self) -> u32 {
        *self.limit.get_or_init(|| {
            let limit = self.vm.check_extension_raw(u64::from(KVM_CAP_IRQ_ROUTING) as libc::c_ulong);
            u32::try_from(limit).unwrap_or(0)
        })
    }
}

impl MsiRoutes for Routes {
    fn allocate(&self) -> Result<(Route, EventFd), IrqError> {
        let mut table = self.lock();
        let failed = backend("make an eventfd for an interrupt");
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(&failed)?;
        let copy = fd.try_clone().map_err(&failed)?;
        let gsi = match table.free.pop() {
            Some(gsi) => gsi,
            None if self.first + table.used < self.limit() => {
                table.used += 1;
                self.first + table.used - 1
            }
            None => {
                let none_left = io::Error::other(format!("KVM's {} are all taken: use fewer vectors", self.limit()));
                return Err(IrqError::Backend { what: "allocate an interrupt route", source: none_left });
            }
        };
        table.irqfds.insert(Route(gsi), Irqfd { fd, attached: false });
        Ok((Route(gsi), copy))
    }

    fn update(&self, changes: &[RouteChange]) -> Result<(), IrqError> {
        let mut table = self.lock();
        let table = &mut *table;
        let mut messages = table.messages.clone();
        let mut routed = Vec::new();
        let mut result = Ok(());
        for change in changes {
            let msi = change.message.map(|message| (self.translate)(message, change.requester)).transpose();
            if let Ok(Some(msi)) = msi {
                messages.insert(change.route.0, Destination::Msi(msi));
                routed.push(change.route);
            } else {
                // A message that leads nowhere is as good as masked, and keeps none of the others up. The entry stays in the table:
                // nothing raises it, and taking it out would cost a change.
                result = result.and(table.detach(&self.vm, change.route)).and(msi.map(drop));
            }
        }
        if table.messages != messages {
            self.load(&table.fixed, &messages)?;
            table.messages = messages;
        }
        for route in routed {
            result = result.and(table.attach(&self.vm, route));
        }
        result
    }

    fn free(&self, route: Route) {
        let mut table = self.lock();
        // Closing the eventfd would end it as well, if others have closed theirs.
        let _ = table.detach(&self.vm, route);
        table.messages.remove(&route.0);
        if table.irqfds.remove(&route).is_some() {
            table.free.push(route.0);
        }
    }
}

impl Table {
    /// Lets the eventfd raise its GSI; what was signalled before does so at once.
    fn attach(&mut self, vm: &VmFd, route: Route) -> Result<(), IrqError> {
        let irqfd = self.irqfd(route)?;
        if !irqfd.attached {
            vm.register_irqfd(&irqfd.fd, route.0).map_err(|e| backend("attach an interrupt's eventfd")(e.into()))?;
            irqfd.attached = true;
        }
        Ok(())
    }

    /// What is signalled from now on stays in the eventfd.
    fn detach(&mut self, vm: &VmFd, route: Route) -> Result<(), IrqError> {
        let irqfd = self.irqfd(route)?;
        if irqfd.attached {
            vm.unregister_irqfd(&irqfd.fd, route.0).map_err(|e| backend("detach an interrupt's eventfd")(e.into()))?;
            irqfd.attached = false;
        }
        Ok(())
    }

    fn irqfd(&mut self, route: Route) -> Result<&mut Irqfd, IrqError> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("{route:?} was never allocated"));
        self.irqfds.get_mut(&route).ok_or_else(|| backend("find an interrupt's route")(unknown()))
    }
}
