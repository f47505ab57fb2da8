//! One 8259A.

use super::state::{I8259ChipState, Initialisation};

/// One chip. Its state is what is saved of it.
pub(super) struct Chip {
    pub(super) state: I8259ChipState,
    /// Inputs that can be levels.
    levels: u8,
    /// The input that another chip is cascaded on.
    cascade: u8,
}

/// First command word: marks it, says that word 4 follows, and that there is no cascade.
const ICW1: u8 = 1 << 4;
const ICW1_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
/// Word 4: automatic end of interrupt, special fully nested mode.
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_NESTED: u8 = 1 << 4;
/// Marks operation command word 3, and its fields.
const OCW3: u8 = 1 << 3;
const OCW3_POLL: u8 = 1 << 2;

impl Chip {
    pub(super) fn new(levels: u8, cascade: u8) -> Self {
        Self { state: Self::power_on(0), levels, cascade }
    }

    fn power_on(inputs: u8) -> I8259ChipState {
        I8259ChipState {
            inputs,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            vectors: 0,
            lowest: 7,
            initialisation: Initialisation::PowerOn,
            icw4_follows: false,
            single: false,
            special_mask: false,
            poll: false,
            reads_isr: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
        }
    }

    /// The power-on state. What the inputs are driven by is not ours: their levels stay.
    pub(super) fn reset(&mut self) {
        self.state = Self::power_on(self.state.inputs);
    }

    pub(super) fn set_input(&mut self, input: u8, high: bool) {
        let (s, bit) = (&mut self.state, 1 << input);
        if !high {
            s.inputs &= !bit;
            // An edge stays latched, a level is gone.
            s.irr &= !(bit & s.elcr);
        } else if s.inputs & bit == 0 {
            s.inputs |= bit;
            s.irr |= bit;
        }
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        let s = &mut self.state;
        let elcr = value & self.levels;
        let changed = s.elcr ^ elcr;
        s.elcr = elcr;
        s.irr = s.irr & !changed | s.inputs & elcr & changed;
    }

    /// The input of the highest priority among `set`.
    fn highest(&self, set: u8) -> Option<u8> {
        let first = self.state.lowest + 1;
        let turned = set.rotate_right(u32::from(first));
        (turned != 0).then(|| (turned.trailing_zeros() as u8 + first) & 7)
    }

    /// How far an input is from the highest priority.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.state.lowest + 1) & 7
    }

    /// The input that the chip requests an interrupt for.
    pub(super) fn request(&self) -> Option<u8> {
        let s = &self.state;
        if s.initialisation != Initialisation::Done {
            return None;
        }
        let input = self.highest(s.irr & !s.imr)?;
        let mut serving = s.isr;
        if s.special_mask {
            serving &= !s.imr;
        }
        if s.special_fully_nested {
            // The slave settles the priorities of its own inputs, so its input doesn't hold itself up.
            serving &= !self.cascade;
        }
        self.highest(serving).is_none_or(|served| self.rank(input) < self.rank(served)).then_some(input)
    }

    /// Takes a request into service. Answers the input and whether it ended at once; input 7, not in service, where the request has gone.
    pub(super) fn acknowledge(&mut self) -> (u8, bool) {
        let Some(input) = self.request() else { return (7, false) };
        let (s, bit) = (&mut self.state, 1 << input);
        s.irr &= !(bit & !s.elcr);
        if !s.auto_eoi {
            s.isr |= bit;
        } else if s.rotate_on_auto_eoi {
            s.lowest = input;
        }
        (input, s.auto_eoi)
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.state.vectors | input
    }

    /// Reads the even port. A poll acknowledges: answers the input which that took into service.
    pub(super) fn read_even(&mut self) -> (u8, Option<(u8, bool)>) {
        if std::mem::take(&mut self.state.poll) {
            return match self.request() {
                None => (0, None),
                Some(input) => (0x80 | input, Some(self.acknowledge())),
            };
        }
        (if self.state.reads_isr { self.state.isr } else { self.state.irr }, None)
    }

    /// Writes the even port: initialisation command word 1, operation command words 2 and 3. Answers the inputs whose interrupts ended.
    pub(super) fn write_even(&mut self, value: u8) -> u8 {
        if value & ICW1 != 0 {
            let s = &mut self.state;
            *s = I8259ChipState {
                // Edges must be made anew.
                irr: s.inputs & s.elcr,
                elcr: s.elcr,
                vectors: s.vectors,
                initialisation: Initialisation::Icw2,
                icw4_follows: value & ICW1_ICW4 != 0,
                single: value & ICW1_SINGLE != 0,
                ..Self::power_on(s.inputs)
            };
            0
        } else if value & OCW3 != 0 {
            let s = &mut self.state;
            match value >> 5 & 3 {
                2 => s.special_mask = false,
                3 => s.special_mask = true,
                _ => {}
            }
            s.poll = value & OCW3_POLL != 0;
            match value & 3 {
                2 => s.reads_isr = false,
                3 => s.reads_isr = true,
                _ => {}
            }
            0
        } else {
            self.write_ocw2(value)
        }
    }

    /// Ends of interrupt and rotation: bits 7:5 are rotate, specific, end.
    fn write_ocw2(&mut self, value: u8) -> u8 {
        let named = value & 7;
        match value >> 5 {
            0b000 => self.state.rotate_on_auto_eoi = false,
            0b100 => self.state.rotate_on_auto_eoi = true,
            0b110 => self.state.lowest = named,
            0b010 => {}
            command => {
                let specific = command & 0b010 != 0;
                // In special mask mode an unspecific end leaves out what is masked.
                let hidden = if self.state.special_mask { self.state.imr } else { 0 };
                let ended = if specific { Some(named) } else { self.highest(self.state.isr & !hidden) };
                let Some(input) = ended else { return 0 };
                let was_served = self.state.isr & 1 << input;
                self.state.isr &= !was_served;
                if command & 0b100 != 0 {
                    self.state.lowest = input;
                }
                return was_served;
            }
        }
        0
    }

    /// Writes the odd port: initialisation command words 2 to 4, operation command word 1.
    pub(super) fn write_odd(&mut self, value: u8) {
        use Initialisation::{Done, Icw2, Icw3, Icw4, PowerOn};
        let s = &mut self.state;
        let after_cascade = if s.icw4_follows { Icw4 } else { Done };
        s.initialisation = match s.initialisation {
            waiting @ (PowerOn | Done) => {
                s.imr = value;
                waiting
            }
            Icw2 => {
                s.vectors = value & 0xf8;
                if s.single { after_cascade } else { Icw3 }
            }
            // The cascade is wired.
            Icw3 => after_cascade,
            Icw4 => {
                s.auto_eoi = value & ICW4_AUTO_EOI != 0;
                s.special_fully_nested = value & ICW4_NESTED != 0;
                Done
            }
        };
    }
}
