//! PCI as both machines have it: a root complex, its root ports, and what is decoded now.

use std::sync::Arc;

use skep_arch::layout::AddressRange;
use skep_bus::AddressSpace;
use skep_hypervisor::{Arch, Vm};
use skep_irq::{IrqLine, MsiTarget};
use skep_memory::MemoryMap;
use skep_pci::{Decoder, IoSpace, Mapping, RootComplex, RootComplexConfig, Spaces, Window};

use super::platform::Ejected;

/// The hierarchy, and the address spaces' view of it.
pub(super) struct Pci<A: Arch> {
    pub(super) root: Arc<RootComplex>,
    decoder: Decoder,
    /// Doorbells are its optional power.
    vm: Arc<dyn Vm<A>>,
}

impl<A: Arch> Pci<A> {
    /// A root complex with nothing on its bus. `ejected` is told of each device that a guest has let go.
    pub(super) fn new(
        vm: Arc<dyn Vm<A>>,
        memory: MemoryMap,
        messages: Arc<dyn MsiTarget>,
        lines: Vec<IrqLine>,
        ejected: Ejected,
    ) -> Self {
        let root = Arc::new(RootComplex::new(RootComplexConfig { memory, messages, lines, ejected }));
        Self { root, decoder: Decoder::new(), vm }
    }

    /// The part of `ecam` that tables tell the guest of: that of the buses that there can be. Linux on x86_64 looks into every place of every bus that
    /// it is told of, by two accesses each.
    pub(super) fn buses(&self, ecam: AddressRange) -> AddressRange {
        AddressRange::new(ecam.base, ((1 + self.root.ports().len() as u64) << 20).min(ecam.size))
    }

    /// Maps what the registers of all functions say. What `fixed` answers comes before: what the chipset's own registers place.
    pub(super) fn update(&self, memory: &AddressSpace, io: IoSpace<'_>, fixed: impl FnOnce() -> Vec<Mapping>) {
        let spaces = Spaces { memory, io, doorbells: self.vm.doorbells() };
        self.decoder.update(&spaces, || fixed().into_iter().chain(self.root.mappings()).collect());
    }
}

/// A layout's range as a window of PCI.
pub(super) fn window(range: AddressRange) -> Window {
    Window { base: range.base, size: range.size }
}
