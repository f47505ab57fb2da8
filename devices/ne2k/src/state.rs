//! The saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use crate::chip::{BUFFER_SIZE, LONGEST};
use crate::registers::{CONFIG_ENABLE, DATA_ALL, TRANSMIT_ALL, command, interrupt, receive, received};

/// What has no whole address is taken by nobody.
const SHORTEST_HELD: usize = 6;

/// The controller's registers and its buffer memory. A transmission that has begun is begun again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ne2kState {
    /// CR.
    #[n(0)]
    pub command: u8,
    /// ISR. Its RST says whether the controller is stopped.
    #[n(1)]
    pub interrupts: u8,
    /// IMR.
    #[n(2)]
    pub mask: u8,
    /// PSTART and PSTOP: the ring's pages. Any value.
    #[n(3)]
    pub ring_start: u8,
    /// See [`Self::ring_start`]. Any value.
    #[n(4)]
    pub ring_stop: u8,
    /// BNRY: the first page that the driver has not read. Any value.
    #[n(5)]
    pub boundary: u8,
    /// CURR: where the next frame comes. Any value.
    #[n(6)]
    pub current: u8,
    /// TPSR. Any value.
    #[n(7)]
    pub transmit_page: u8,
    /// TBCR. Any value.
    #[n(8)]
    pub transmit_count: u16,
    /// TSR. Any value.
    #[n(9)]
    pub transmit_status: u8,
    /// CRDA. Any value.
    #[n(10)]
    pub remote_address: u16,
    /// RBCR, what is left of it. Any value.
    #[n(11)]
    pub remote_count: u16,
    /// RCR.
    #[n(12)]
    pub receive_config: u8,
    /// RSR.
    #[n(13)]
    pub receive_status: u8,
    /// TCR.
    #[n(14)]
    pub transmit_config: u8,
    /// DCR.
    #[n(15)]
    pub data_config: u8,
    /// CNTR2. Any value.
    #[n(16)]
    pub missed: u8,
    /// PAR. Any value.
    #[n(17)]
    pub address: [u8; 6],
    /// MAR. Any value.
    #[n(18)]
    pub groups: [u8; 8],
    /// 9346CR.
    #[n(19)]
    pub config_enable: u8,
    /// CONFIG2 and CONFIG3. Any value.
    #[n(20)]
    pub config: [u8; 2],
    /// The buffer memory.
    #[n(21)]
    #[cbor(with = "minicbor::bytes")]
    pub buffer: Vec<u8>,
    /// A frame from the network for which the ring has had no room yet.
    #[n(22)]
    #[cbor(with = "minicbor::bytes")]
    pub held: Option<Vec<u8>>,
}

impl Default for Ne2kState {
    fn default() -> Self {
        Self {
            command: command::STOP | command::ABORT,
            interrupts: interrupt::STOPPED,
            mask: 0,
            ring_start: 0,
            ring_stop: 0,
            boundary: 0,
            current: 0,
            transmit_page: 0,
            transmit_count: 0,
            transmit_status: 0,
            remote_address: 0,
            remote_count: 0,
            receive_config: 0,
            receive_status: 0,
            transmit_config: 0,
            data_config: 0,
            missed: 0,
            address: [0; 6],
            groups: [0; 8],
            config_enable: 0,
            config: [0; 2],
            buffer: vec![0; BUFFER_SIZE],
            held: None,
        }
    }
}

impl State for Ne2kState {
    const ID: &'static str = "ne2k";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        let both = command::STOP | command::TRANSMIT;
        ensure(self.command & both != both, id, "command", self.command, "a controller that is stopped sends nothing")?;
        let bits = (self.command & command::STOP, self.interrupts & interrupt::STOPPED);
        ensure(
            bits.0 == 0 || bits.1 != 0,
            id,
            "interrupts",
            self.interrupts,
            "RST is set while the command is to stop",
        )?;
        ensure(self.mask & interrupt::STOPPED == 0, id, "mask", self.mask, "it has 7 bits")?;
        let value = self.receive_config;
        ensure(value & !receive::ALL == 0, id, "receive_config", value, "it has 6 bits")?;
        let value = self.receive_status;
        ensure(value & !received::KEPT == 0, id, "receive_status", value, "other bits are never kept")?;
        let value = self.transmit_config;
        ensure(value & !TRANSMIT_ALL == 0, id, "transmit_config", value, "it has 5 bits")?;
        ensure(self.data_config & !DATA_ALL == 0, id, "data_config", self.data_config, "it has 7 bits")?;
        let value = self.config_enable;
        ensure(value & !CONFIG_ENABLE == 0, id, "config_enable", value, "only bits 7:6 are kept")?;
        let length = self.buffer.len();
        ensure(length == BUFFER_SIZE, id, "buffer", length, "the card has 32 KiB")?;
        let length = self.held.as_ref().map(Vec::len);
        let fits = length.is_none_or(|length| (SHORTEST_HELD..=LONGEST).contains(&length));
        ensure(fits, id, "held", length, "a frame has an address, and 1518 bytes at most")
    }
}
