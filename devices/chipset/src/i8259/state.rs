//! The 8259A pair's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{ELCR_MASTER, ELCR_SLAVE};

/// What a chip awaits at its odd port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Initialisation {
    /// Never initialised: it requests nothing.
    #[n(0)]
    PowerOn,
    /// The initialisation command word 2: the vectors.
    #[n(1)]
    Icw2,
    /// Word 3: the cascade.
    #[n(2)]
    Icw3,
    /// Word 4: the modes.
    #[n(3)]
    Icw4,
    /// Nothing: it works.
    #[n(4)]
    Done,
}

/// One chip.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct I8259ChipState {
    /// Levels of the inputs. Any value.
    #[n(0)]
    pub inputs: u8,
    /// Interrupt request register.
    #[n(1)]
    pub irr: u8,
    /// In-service register. Any value.
    #[n(2)]
    pub isr: u8,
    /// Interrupt mask register. Any value.
    #[n(3)]
    pub imr: u8,
    /// Edge or level control: a set bit is level.
    #[n(4)]
    pub elcr: u8,
    /// Vector of input 0.
    #[n(5)]
    pub vectors: u8,
    /// The input of the lowest priority.
    #[n(6)]
    pub lowest: u8,
    /// How far initialisation has come.
    #[n(7)]
    pub initialisation: Initialisation,
    /// Word 1 said that word 4 follows.
    #[n(8)]
    pub icw4_follows: bool,
    /// Word 1 said that there is no cascade.
    #[n(9)]
    pub single: bool,
    /// Special mask mode.
    #[n(10)]
    pub special_mask: bool,
    /// The next read polls.
    #[n(11)]
    pub poll: bool,
    /// Reads give the in-service register.
    #[n(12)]
    pub reads_isr: bool,
    /// Automatic end of interrupt.
    #[n(13)]
    pub auto_eoi: bool,
    /// Rotation at an automatic end of interrupt.
    #[n(14)]
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    #[n(15)]
    pub special_fully_nested: bool,
}

/// Both chips.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct I8259State {
    /// Interrupts 0 to 7.
    #[n(0)]
    pub master: I8259ChipState,
    /// Interrupts 8 to 15.
    #[n(1)]
    pub slave: I8259ChipState,
}

impl State for I8259State {
    const ID: &'static str = "i8259";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        for (chip, levels) in [(&self.master, ELCR_MASTER), (&self.slave, ELCR_SLAVE)] {
            ensure(chip.elcr & !levels == 0, id, "elcr", chip.elcr, "interrupts 0, 1, 2, 8 and 13 are edges")?;
            ensure(chip.vectors & 7 == 0, id, "vectors", chip.vectors, "they begin at a multiple of 8")?;
            ensure(chip.lowest < 8, id, "lowest", chip.lowest, "a chip has 8 inputs")?;
            let lost = chip.irr & chip.elcr & !chip.inputs;
            ensure(lost == 0, id, "irr", chip.irr, "a level that is gone requests nothing")?;
        }
        Ok(())
    }
}
