//! Saved states of PCI functions.

use minicbor::{Decode, Encode};
use skep_irq::VectorState;
use skep_state::{Record, State, StateError, ensure};

use crate::address::DEVICES;
use crate::interrupts::MAX_VECTORS;
use crate::root_complex::CONFIG_ADDRESS_MASK;

pub(crate) const ENDPOINT_ID: &str = "pci-endpoint";
pub(crate) const ROOT_PORT_ID: &str = "pci-root-port";
pub(crate) const CHIPSET_ID: &str = "pci-chipset";
pub(crate) const ROOT_COMPLEX_ID: &str = "pci-root-complex";

/// A register of configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RegisterState {
    /// Its offset, a multiple of 4.
    #[n(0)]
    pub offset: u16,
    /// Its value: the bits that a guest or the function may change. Any value.
    #[n(1)]
    pub value: u32,
}

/// Configuration space. What is fixed is not saved: it follows from the machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ConfigState {
    /// The registers that may change, by ascending offset.
    #[n(0)]
    pub registers: Vec<RegisterState>,
}

impl ConfigState {
    pub(crate) fn check(&self, id: &'static str) -> Result<(), StateError> {
        let count = self.registers.len();
        ensure(count <= 64, id, "registers", count, "conventional configuration space has 64")?;
        let sound = |register: &&RegisterState| register.offset >= 0x100 || !register.offset.is_multiple_of(4);
        let bad = self.registers.iter().find(sound);
        ensure(bad.is_none(), id, "registers", bad, "offsets are multiples of 4 below 256")?;
        let ascending = self.registers.windows(2).all(|pair| matches!(pair, [a, b] if a.offset < b.offset));
        ensure(ascending, id, "registers", count, "they are in ascending order")
    }
}

/// A function's interrupts; what is on is said by configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct InterruptsState {
    /// The MSI-X table and the pending bits. Without MSI-X, only the pending bits are meant.
    #[n(0)]
    pub vectors: Vec<VectorState>,
    /// The level that the function gives to its pin.
    #[n(1)]
    pub pin: bool,
}

impl InterruptsState {
    pub(crate) fn check(&self, id: &'static str) -> Result<(), StateError> {
        let count = self.vectors.len();
        ensure(count <= usize::from(MAX_VECTORS), id, "vectors", count, "there are 2048 at the most")?;
        let bad = self.vectors.iter().find(|vector| vector.message.address & 3 != 0);
        ensure(bad.is_none(), id, "vectors", bad, "messages go to multiples of 4")
    }
}

/// An endpoint's configuration space and interrupts. What is behind its BARs is the device's.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct EndpointState {
    /// Configuration space.
    #[n(0)]
    pub config: ConfigState,
    /// Interrupts.
    #[n(1)]
    pub interrupts: InterruptsState,
}

impl State for EndpointState {
    const ID: &'static str = ENDPOINT_ID;
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        self.config.check(Self::ID)?;
        self.interrupts.check(Self::ID)
    }
}

/// A root port's configuration space and interrupts. What is in its slot follows from the machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RootPortState {
    /// Configuration space.
    #[n(0)]
    pub config: ConfigState,
    /// Interrupts.
    #[n(1)]
    pub interrupts: InterruptsState,
    /// The guest has been asked to let the device in the slot go.
    #[n(2)]
    pub removal_asked: bool,
}

impl State for RootPortState {
    const ID: &'static str = ROOT_PORT_ID;
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        self.config.check(Self::ID)?;
        self.interrupts.check(Self::ID)
    }
}

/// The configuration space of a host bridge or of the LPC bridge.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChipsetState {
    /// Configuration space.
    #[n(0)]
    pub config: ConfigState,
}

impl State for ChipsetState {
    const ID: &'static str = CHIPSET_ID;
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        self.config.check(Self::ID)
    }
}

/// A function's state, and where the function is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FunctionState {
    /// The device number on bus 0: of the function, or of the root port that it is behind.
    #[n(0)]
    pub device: u8,
    /// Whether it is behind the root port.
    #[n(1)]
    pub behind: bool,
    /// Its state.
    #[n(2)]
    pub record: Record,
}

/// The whole hierarchy: all functions, and the root complex's own register.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RootComplexState {
    /// CONFIG_ADDRESS.
    #[n(0)]
    pub config_address: u32,
    /// The functions: bus 0 by device numbers, then those behind the root ports.
    #[n(1)]
    pub functions: Vec<FunctionState>,
}

impl State for RootComplexState {
    const ID: &'static str = ROOT_COMPLEX_ID;
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let count = self.functions.len();
        ensure(count <= 64, Self::ID, "functions", count, "there are 32 on bus 0, and one behind each")?;
        let bad = self.functions.iter().map(|function| function.device).find(|device| *device >= DEVICES);
        ensure(bad.is_none(), Self::ID, "functions.device", bad, "a bus has 32 devices")?;
        let address = self.config_address;
        let kept = address & !CONFIG_ADDRESS_MASK == 0;
        ensure(kept, Self::ID, "config_address", address, "bits 30:24 and 1:0 are 0")?;
        let order = |pair: &[FunctionState]| match pair {
            [a, b] => (a.behind, a.device) < (b.behind, b.device),
            _ => true,
        };
        let ordered = self.functions.windows(2).all(order);
        ensure(ordered, Self::ID, "functions", count, "they are in order of their places")
    }
}
