//! The keyboard controller's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{Origin, RAM_SIZE, port2};

/// What the next byte written to the data port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Expects {
    /// The keyboard.
    #[n(0)]
    Keyboard,
    /// The controller's memory, at this place; place 0 is the command byte.
    #[n(1)]
    Memory(#[n(0)] u8),
    /// The output port.
    #[n(2)]
    OutputPort,
    /// The output buffer, as if it came from the keyboard.
    #[n(3)]
    KeyboardLoop,
    /// The output buffer, as if it came from the auxiliary device.
    #[n(4)]
    AuxiliaryLoop,
    /// The auxiliary device.
    #[n(5)]
    Auxiliary,
}

/// A byte in the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OutputByte {
    /// The byte. Any value.
    #[n(0)]
    pub value: u8,
    /// Where it came from.
    #[n(1)]
    pub origin: Origin,
    /// It stands for an answer that did not come.
    #[n(2)]
    pub timeout: bool,
}

/// The registers and the memory of a keyboard controller.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct I8042State {
    /// The output buffer.
    #[n(0)]
    pub output: Option<OutputByte>,
    /// What the data port gives while the buffer is empty: the last byte that was in it. Any value.
    #[n(1)]
    pub last: u8,
    /// What the next byte written to the data port is for.
    #[n(2)]
    pub expects: Expects,
    /// The last write was to the command port.
    #[n(3)]
    pub command: bool,
    /// The memory; its first byte is the command byte.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub memory: Vec<u8>,
    /// The output port's bits that are kept: A20.
    #[n(5)]
    pub output_port: u8,
    /// The keyboard has sent the prefix of a release, which the translation holds back.
    #[n(6)]
    pub release: bool,
}

impl State for I8042State {
    const ID: &'static str = "i8042";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        let place = match self.expects {
            Expects::Memory(place) => usize::from(place),
            _ => 0,
        };
        ensure(place < RAM_SIZE, id, "expects", place, "the memory has 32 bytes")?;
        ensure(self.memory.len() == RAM_SIZE, id, "memory", self.memory.len(), "it has 32 bytes")?;
        let kept = self.output_port & !port2::A20 == 0;
        ensure(kept, id, "output_port", self.output_port, "only bit 1 is kept")
    }
}
