//! The routing of PCI's interrupts to those of ISA, as the LPC bridge of ICH9 does it.
//!
//! Follows Intel 316972: PIRQ A to H are the I/O APIC's inputs 16 to 23, always, and beside that each is the interrupt of the PIC that its
//! PIRQ*n*_ROUT register names (sections 13.1.24 to 13.1.27), while bit 7 of it is clear. Several may be the same interrupt, and share it with what else
//! is on its line (section 5.8.6). They are active low on the wire and turned over on their way to the PIC; lines here are logical. That the PIC
//! takes the interrupt as a level is firmware's work, by the ELCR.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_irq::{EoiListener, EoiSubscription, IrqError, IrqLine, LineTable, LineTarget, Polarity, Trigger};

#[cfg(test)]
#[path = "pirq_test.rs"]
mod test;

/// PIRQ A to H.
pub(crate) const PIRQS: usize = 8;
/// Interrupts that one can be; the others are reserved.
const ROUTABLE: [u8; 11] = [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15];
/// PIRQ*n*_ROUT: the PIC doesn't get it; else which of its interrupts it is, in bits 3:0.
const NOT_ROUTED: u8 = 1 << 7;
const ROUTE: u8 = 0xf;

/// Which PIRQs go where, and which are asserted.
#[derive(Debug)]
struct Routing {
    routes: [u8; PIRQS],
    asserted: [bool; PIRQS],
}

impl Routing {
    fn goes_to(&self, pirq: usize, irq: u8) -> bool {
        self.routes.get(pirq).is_some_and(|route| route & (NOT_ROUTED | ROUTE) == irq)
    }

    /// What all of them together give to an interrupt of ISA.
    fn level(&self, irq: u8) -> bool {
        self.asserted.iter().enumerate().any(|(pirq, asserted)| *asserted && self.goes_to(pirq, irq))
    }
}

/// What stands between the lines of PCI's interrupt pins and the controllers. It is behind the lines that [`Self::lines`] answers, and drives those
/// of a [`LineTable`].
///
/// A routed PIRQ drives the line of ISA, which in a PC goes to the PIC and to the I/O APIC's input of that number. The datasheet speaks of the PIC
/// alone; QEMU drives both, and SeaBIOS's MP table relies on it: it sends who has no ACPI to the input that a function's Interrupt Line register
/// names. Who has ACPI and uses the I/O APIC has no use for that input, and leaves it masked, or masks it at the first edge that nobody claims.
pub struct PirqRouter {
    /// Inputs of the I/O APIC, for PIRQ A to H.
    inputs: Vec<IrqLine>,
    /// Interrupts of ISA.
    isa: Vec<(u8, IrqLine)>,
    routing: Arc<Mutex<Routing>>,
}

fn lock(routing: &Mutex<Routing>) -> MutexGuard<'_, Routing> {
    routing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PirqRouter {
    /// A router to `lines`: those of ISA by their numbers, and eight from `first` on. It shares lines that others have already, so that those say
    /// how tables call them.
    ///
    /// # Errors
    /// Where the table lacks one.
    pub fn new(lines: &LineTable, first: u32) -> Result<Self, IrqError> {
        let line = |number| lines.line(number, Trigger::Level, Polarity::Low);
        let inputs = (first..).take(PIRQS).map(line).collect::<Result<_, _>>()?;
        let isa = ROUTABLE.into_iter().map(|irq| Ok((irq, line(irq.into())?))).collect::<Result<_, _>>()?;
        let routing = Routing { routes: [NOT_ROUTED; PIRQS], asserted: [false; PIRQS] };
        Ok(Self { inputs, isa, routing: Arc::new(Mutex::new(routing)) })
    }

    /// PIRQ A to H, for a root complex. Tables call them as the I/O APIC's inputs.
    #[must_use]
    pub fn lines(self: &Arc<Self>) -> Vec<IrqLine> {
        self.inputs.iter().map(|input| IrqLine::to(self.clone(), input.description())).collect()
    }

    /// Which of them has that number.
    fn pirq(&self, number: u32) -> Option<usize> {
        self.inputs.iter().position(|input| input.description().number == number)
    }

    /// Takes on the registers PIRQA_ROUT to PIRQH_ROUT.
    pub(crate) fn route(&self, routes: [u8; PIRQS]) {
        self.change(|routing| routing.routes = routes, IrqLine::set);
    }

    /// Takes on restored ones: no line makes an edge.
    pub(crate) fn restore_routes(&self, routes: [u8; PIRQS]) {
        self.change(|routing| routing.routes = routes, IrqLine::restore);
    }

    /// Changes something, and then by `tell` the lines of ISA. What a line is given stays as long as one asserted PIRQ goes there.
    fn change(&self, change: impl FnOnce(&mut Routing), tell: fn(&IrqLine, bool)) {
        let mut routing = lock(&self.routing);
        change(&mut routing);
        for (irq, line) in &self.isa {
            tell(line, routing.level(*irq));
        }
    }

    fn assert(&self, number: u32, asserted: bool, tell: fn(&IrqLine, bool)) {
        let Some(pirq) = self.pirq(number) else { return };
        if let Some(input) = self.inputs.get(pirq) {
            tell(input, asserted);
        }
        let note = |routing: &mut Routing| {
            if let Some(level) = routing.asserted.get_mut(pirq) {
                *level = asserted;
            }
        };
        self.change(note, tell);
    }
}

impl LineTarget for PirqRouter {
    fn set_level(&self, line: u32, asserted: bool) {
        self.assert(line, asserted, IrqLine::set);
    }

    fn restore_level(&self, line: u32, asserted: bool) {
        self.assert(line, asserted, IrqLine::restore);
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        let pirq = self.pirq(line)?;
        let mut all = vec![self.inputs.get(pirq)?.on_eoi(listener.clone())?];
        for (irq, line) in &self.isa {
            // Where it goes may change: it is asked at each end.
            let (irq, routing, listener) = (*irq, self.routing.clone(), listener.clone());
            all.push(line.on_eoi(Arc::new(move || {
                let goes_there = lock(&routing).goes_to(pirq, irq);
                if goes_there {
                    listener();
                }
            }))?);
        }
        Some(Box::new(all))
    }
}

impl fmt::Debug for PirqRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PirqRouter").field("routing", &*lock(&self.routing)).finish_non_exhaustive()
    }
}
