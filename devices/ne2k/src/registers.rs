//! Offsets and bits of the registers.

/// Ports of the card: 16 registers, the data port, the reset port.
pub(crate) const PORTS: u64 = 32;
pub(crate) const DATA: u64 = 0x10;
pub(crate) const RESET: u64 = 0x18;

/// The command register, at offset 0 of every page.
pub(crate) mod command {
    pub(crate) const STOP: u8 = 1 << 0;
    pub(crate) const START: u8 = 1 << 1;
    pub(crate) const TRANSMIT: u8 = 1 << 2;
    /// Remote DMA: read, write, send packet; abort where the top bit is set.
    pub(crate) const REMOTE: u8 = 7 << 3;
    pub(crate) const REMOTE_READ: u8 = 1 << 3;
    pub(crate) const REMOTE_WRITE: u8 = 2 << 3;
    pub(crate) const SEND_PACKET: u8 = 3 << 3;
    pub(crate) const ABORT: u8 = 4 << 3;
    pub(crate) const PAGE_SHIFT: u32 = 6;
}

/// Interrupt status and mask.
pub(crate) mod interrupt {
    pub(crate) const RECEIVED: u8 = 1 << 0;
    pub(crate) const TRANSMITTED: u8 = 1 << 1;
    pub(crate) const REMOTE_DONE: u8 = 1 << 6;
    /// The controller is stopped: no interrupt, and not cleared by writing.
    pub(crate) const STOPPED: u8 = 1 << 7;
}

/// The receive status register, and the first byte of a frame in the ring.
pub(crate) mod received {
    pub(crate) const INTACT: u8 = 1 << 0;
    pub(crate) const MISSED: u8 = 1 << 4;
    pub(crate) const GROUP: u8 = 1 << 5;
    /// Derived from the configuration.
    pub(crate) const DISABLED: u8 = 1 << 6;
    pub(crate) const KEPT: u8 = INTACT | MISSED | GROUP;
}

/// The receive configuration register.
pub(crate) mod receive {
    pub(crate) const BROADCAST: u8 = 1 << 2;
    pub(crate) const MULTICAST: u8 = 1 << 3;
    pub(crate) const PROMISCUOUS: u8 = 1 << 4;
    pub(crate) const MONITOR: u8 = 1 << 5;
    pub(crate) const ALL: u8 = 0x3f;
}

/// The transmit status register: it went well.
pub(crate) const TRANSMIT_OK: u8 = 1;
/// The transmit configuration register's bits, and those of them that choose a loopback.
pub(crate) const TRANSMIT_ALL: u8 = 0x1f;
pub(crate) const LOOPBACK: u8 = 3 << 1;
/// The data configuration register's bits: word transfers; normal operation.
pub(crate) const DATA_ALL: u8 = 0x7f;
pub(crate) const WORDS: u8 = 1 << 0;
pub(crate) const LONG_ADDRESS: u8 = 1 << 2;

/// What Realtek's chip answers on page 0, where the DP8390 has nothing: `P` and `C`, and on page 3.
pub(crate) const ID: [u8; 2] = [b'P', b'C'];
pub(crate) const ID_PAGE_3: [u8; 2] = [0x29, 0x80];
/// Page 3's 9346CR: configuration registers may be written.
pub(crate) const CONFIG_ENABLE: u8 = 0xc0;
