//! The saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use crate::chip::BUFFER_SIZE;
use crate::registers::{CONFIG_ENABLE, DATA_ALL, TRANSMIT_ALL, command, interrupt, receive};

/// The controller's registers and its buffer memory. A transmission that has begun is begun again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ne2kState {
    /// CR.
    #[n(0)]
    pub command: u8,
    /// ISR.
    #[n(1)]
    pub interrupts: u8,
    /// IMR.
    #[n(2)]
    pub mask: u8,
    /// PSTART and PSTOP: the ring's pages.
    #[n(3)]
    pub ring_start: u8,
    /// See [`Self::ring_start`].
    #[n(4)]
    pub ring_stop: u8,
    /// BNRY: the first page that the driver has not read.
    #[n(5)]
    pub boundary: u8,
    /// CURR: where the next frame comes.
    #[n(6)]
    pub current: u8,
    /// TPSR.
    #[n(7)]
    pub transmit_page: u8,
    /// TBCR.
    #[n(8)]
    pub transmit_count: u16,
    /// TSR.
    #[n(9)]
    pub transmit_status: u8,
    /// CRDA.
    #[n(10)]
    pub remote_address: u16,
    /// RBCR, what is left of it.
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
    /// CNTR2.
    #[n(16)]
    pub missed: u8,
    /// PAR.
    #[n(17)]
    pub address: [u8; 6],
    /// MAR.
    #[n(18)]
    pub groups: [u8; 8],
    /// 9346CR.
    #[n(19)]
    pub config_enable: u8,
    /// CONFIG2 and CONFIG3.
    #[n(20)]
    pub config: [u8; 2],
    /// The buffer memory.
    #[n(21)]
    #[cbor(with = "minicbor::bytes")]
    pub buffer: Vec<u8>,
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
        }
    }
}

impl State for Ne2kState {
    const ID: &'static str = "ne2k";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let bits = |field, value: u8, all: u8| ensure(value & !all == 0, Self::ID, field, value, "it has no such bits");
        bits("mask", self.mask, !interrupt::STOPPED)?;
        bits("receive_config", self.receive_config, receive::ALL)?;
        bits("transmit_config", self.transmit_config, TRANSMIT_ALL)?;
        bits("data_config", self.data_config, DATA_ALL)?;
        bits("config_enable", self.config_enable, CONFIG_ENABLE)?;
        let length = self.buffer.len();
        ensure(length == BUFFER_SIZE, Self::ID, "buffer", length, "the card has 32 KiB")
    }
}
