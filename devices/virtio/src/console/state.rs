//! The console's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::port::{MAX_PORTS, News};

/// A port as its driver knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PortState {
    /// The driver has opened it.
    #[n(0)]
    pub guest_open: bool,
    /// The host has it open.
    #[n(1)]
    pub host_open: bool,
    /// What the driver is still to be told, as bits.
    #[n(2)]
    pub news: u8,
    /// Bytes of the next chain to be transmitted that the host has already taken. Any value.
    #[n(3)]
    pub sent: u32,
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ConsoleState {
    /// Columns of the terminal. Any value.
    #[n(0)]
    pub columns: u16,
    /// Rows of the terminal. Any value.
    #[n(1)]
    pub rows: u16,
    /// The ports.
    #[n(2)]
    pub ports: Vec<PortState>,
}

impl State for ConsoleState {
    const ID: &'static str = "virtio-console";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let count = self.ports.len();
        ensure((1..=MAX_PORTS).contains(&count), Self::ID, "ports", count, "a console has 1 to 31 ports")?;
        for port in &self.ports {
            ensure(News::from_bits(port.news).is_some(), Self::ID, "news", port.news, "there are five kinds of news")?;
        }
        Ok(())
    }
}
