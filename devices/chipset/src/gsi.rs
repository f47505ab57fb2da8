//! The interrupt lines of a PC.

use std::sync::Arc;

use skep_irq::{EoiListener, EoiSubscription, LineTarget};

use crate::i8259::{self, I8259};
use crate::ioapic::IoApic;

/// The timer's interrupt, 0 at the PIC, is pin 2 of the I/O APIC.
const TIMER_GSI: u32 = 2;

/// The lines of a PC by their global system interrupts, which are the pins of the I/O APIC. Those of ISA go to the PIC as well; which of the two
/// interrupts is the guest's choice.
///
/// It is the [`LineTarget`] of a machine's [`skep_irq::LineTable`], with the lines from 0 on.
pub struct GsiLines {
    pic: Arc<I8259>,
    ioapic: Arc<IoApic>,
}

impl GsiLines {
    /// Lines to both controllers.
    #[must_use]
    pub fn new(pic: Arc<I8259>, ioapic: Arc<IoApic>) -> Self {
        Self { pic, ioapic }
    }

    /// The PIC's line of a global system interrupt.
    fn isa(gsi: u32) -> Option<u32> {
        match gsi {
            TIMER_GSI => Some(0),
            // Pin 0 has no device.
            0 => None,
            _ => (gsi < i8259::LINES).then_some(gsi),
        }
    }
}

impl LineTarget for GsiLines {
    fn set_level(&self, line: u32, asserted: bool) {
        if let Some(isa) = Self::isa(line) {
            self.pic.set_level(isa, asserted);
        }
        self.ioapic.set_level(line, asserted);
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        let ioapic = self.ioapic.on_eoi(line, listener.clone())?;
        match Self::isa(line) {
            Some(isa) => Some(Box::new((ioapic, self.pic.on_eoi(isa, listener)?))),
            None => Some(ioapic),
        }
    }
}

#[cfg(test)]
#[path = "gsi_test.rs"]
mod test;
