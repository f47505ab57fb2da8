//! The controller.

use crate::registers::{
    CONFIG_ENABLE, DATA, DATA_ALL, ID, ID_PAGE_3, LONG_ADDRESS, LOOPBACK, RESET, TRANSMIT_ALL, TRANSMIT_OK, WORDS,
    command, interrupt, receive, received,
};
use crate::state::Ne2kState;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "chip_test.rs"]
pub(crate) mod test;

/// Bytes of a page, in which the ring is counted.
pub(crate) const PAGE: usize = 256;
/// Where the buffer memory begins in the controller's address space, and how large it is.
pub(crate) const BUFFER_START: u16 = 0x4000;
pub(crate) const BUFFER_SIZE: usize = 0x8000;
/// The address PROM, each byte twice.
const PROM: usize = 32;

/// Bytes before a frame in the ring: status, next page, length.
const FRAME_HEADER: usize = 4;
/// Bytes of a frame's checksum, which count but are not there.
const CRC: usize = 4;
/// The shortest frame, and the longest, with a VLAN tag; without checksum.
const SHORTEST: usize = 60;
pub(crate) const LONGEST: usize = 1518;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It is in the ring.
    Taken,
    /// Nobody wants it.
    Refused,
    /// The ring has no room for it yet.
    None,
}

/// The controller with its buffer memory and its PROM.
pub struct Chip {
    prom: [u8; PROM],
    state: Ne2kState,
}

impl Chip {
    /// A controller in its power-on state, with that address in its PROM.
    #[must_use]
    pub fn new(mac: [u8; 6]) -> Self {
        let mut prom = [0; PROM];
        for (pair, byte) in prom.chunks_exact_mut(2).zip(mac.into_iter().chain([0; 8]).chain(*b"WW")) {
            pair.fill(byte);
        }
        Self { prom, state: Ne2kState::default() }
    }

    /// The power-on state, but for the PROM.
    pub fn power_on(&mut self) {
        self.state = Ne2kState::default();
    }

    /// The level of the interrupt pin.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.state.interrupts & self.state.mask & !interrupt::STOPPED != 0
    }

    /// All of it.
    #[must_use]
    pub fn state(&self) -> &Ne2kState {
        &self.state
    }

    /// Takes on a state that has been checked.
    pub fn set_state(&mut self, state: Ne2kState) {
        self.state = state;
    }

    /// Reads `data` at a port; some registers change by it.
    pub fn read(&mut self, port: u64, data: &mut [u8]) {
        match port {
            DATA..RESET => self.read_data(data),
            RESET.. => {
                self.reset();
                data.fill(0);
            }
            _ => {
                for (byte, register) in data.iter_mut().zip(port..DATA) {
                    *byte = self.read_register(register as u8);
                }
            }
        }
    }

    /// Writes `data` at a port.
    pub fn write(&mut self, port: u64, data: &[u8]) {
        match port {
            DATA..RESET => self.write_data(data),
            // The reset ends.
            RESET.. => {}
            _ => {
                for (byte, register) in data.iter().zip(port..DATA) {
                    self.write_register(register as u8, *byte);
                }
            }
        }
    }

    /// What the reset port does (DP8390D section 11): registers that it does not name keep their values.
    fn reset(&mut self) {
        let state = &mut self.state;
        state.command = command::STOP | command::ABORT;
        state.interrupts = interrupt::STOPPED;
        state.mask = 0;
        state.data_config &= !(WORDS | LONG_ADDRESS);
        state.transmit_config &= !LOOPBACK;
    }

    fn page(&self) -> u8 {
        self.state.command >> command::PAGE_SHIFT
    }

    fn read_register(&mut self, register: u8) -> u8 {
        let state = &mut self.state;
        let low = |word: u16| word as u8;
        let high = |word: u16| (word >> 8) as u8;
        match (state.command >> command::PAGE_SHIFT, register) {
            (_, 0) => state.command,
            // The local DMA's address: it rests at the page of the frame that comes next.
            (0, 1) => 0,
            (0, 2) => state.current,
            (0, 3) => state.boundary,
            (0, 4) => state.transmit_status,
            // Collisions, and the FIFO.
            (0, 5 | 6) => 0,
            (0, 7) => state.interrupts,
            (0, 8) => low(state.remote_address),
            (0, 9) => high(state.remote_address),
            (0, 0xa) => ID[0],
            (0, 0xb) => ID[1],
            (0, 0xc) => {
                let disabled = if state.receive_config & receive::MONITOR != 0 { received::DISABLED } else { 0 };
                state.receive_status | disabled
            }
            // Counters of errors: reading clears them.
            (0, 0xf) => std::mem::take(&mut state.missed),
            (0, _) => 0,
            (1, 7) => state.current,
            (1, at @ 1..=6) => state.address.get(usize::from(at) - 1).copied().unwrap_or_default(),
            (1, at) => state.groups.get(usize::from(at & 7)).copied().unwrap_or_default(),
            (2, 1) => state.ring_start,
            (2, 2) => state.ring_stop,
            (2, 3) => state.current,
            (2, 4) => state.transmit_page,
            (2, 0xc) => state.receive_config,
            (2, 0xd) => state.transmit_config,
            (2, 0xe) => state.data_config,
            (2, 0xf) => state.mask,
            (2, _) => 0,
            (_, 1) => state.config_enable,
            (_, 5) => state.config[0],
            (_, 6) => state.config[1],
            (_, 0xe) => ID_PAGE_3[0],
            (_, 0xf) => ID_PAGE_3[1],
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let page = self.page();
        let state = &mut self.state;
        let low = |word: u16| word & 0xff00 | u16::from(value);
        let high = |word: u16| word & 0x00ff | u16::from(value) << 8;
        match (page, register) {
            (_, 0) => self.write_command(value),
            (0, 1) => state.ring_start = value,
            (0, 2) => state.ring_stop = value,
            (0, 3) => state.boundary = value,
            (0, 4) => state.transmit_page = value,
            (0, 5) => state.transmit_count = low(state.transmit_count),
            (0, 6) => state.transmit_count = high(state.transmit_count),
            (0, 7) => state.interrupts &= !value | interrupt::STOPPED,
            (0, 8) => state.remote_address = low(state.remote_address),
            (0, 9) => state.remote_address = high(state.remote_address),
            (0, 0xa) => state.remote_count = low(state.remote_count),
            (0, 0xb) => state.remote_count = high(state.remote_count),
            (0, 0xc) => state.receive_config = value & receive::ALL,
            (0, 0xd) => state.transmit_config = value & TRANSMIT_ALL,
            (0, 0xe) => state.data_config = value & DATA_ALL,
            (0, _) => state.mask = value & !interrupt::STOPPED,
            (1, 7) => state.current = value,
            (1, at @ 1..=6) => {
                if let Some(byte) = state.address.get_mut(usize::from(at) - 1) {
                    *byte = value;
                }
            }
            (1, at) => {
                if let Some(byte) = state.groups.get_mut(usize::from(at & 7)) {
                    *byte = value;
                }
            }
            (3, 1) => state.config_enable = value & CONFIG_ENABLE,
            (3, 5 | 6) if state.config_enable == CONFIG_ENABLE => {
                if let Some(byte) = state.config.get_mut(usize::from(register) - 5) {
                    *byte = value;
                }
            }
            // Page 2 is for the maker's tests, and read in practice.
            _ => {}
        }
    }

    fn write_command(&mut self, value: u8) {
        let state = &mut self.state;
        // Writing 0 leaves a transmission alone: it ends by itself.
        state.command = value | state.command & command::TRANSMIT;
        if value & command::STOP != 0 {
            state.interrupts |= interrupt::STOPPED;
            state.command &= !command::TRANSMIT;
            return;
        }
        if value & command::START != 0 {
            state.interrupts &= !interrupt::STOPPED;
        }
        match value & command::REMOTE {
            command::SEND_PACKET => {
                // The frame at the boundary, as long as its header says.
                let header = u16::from(state.boundary) << 8;
                let [low, high] = [2, 3].map(|at| self.peek(header.wrapping_add(at)));
                self.state.remote_address = header;
                self.state.remote_count = u16::from_le_bytes([low, high]);
            }
            command::REMOTE_READ | command::REMOTE_WRITE if state.remote_count == 0 => {
                state.interrupts |= interrupt::REMOTE_DONE;
            }
            _ => {}
        }
    }

    /// A byte of the controller's address space.
    fn peek(&self, address: u16) -> u8 {
        let buffer = address.checked_sub(BUFFER_START).and_then(|at| self.state.buffer.get(usize::from(at)));
        buffer.or_else(|| self.prom.get(usize::from(address))).copied().unwrap_or(0xff)
    }

    fn poke(&mut self, address: u16, value: u8) {
        let at = address.checked_sub(BUFFER_START);
        if let Some(byte) = at.and_then(|at| self.state.buffer.get_mut(usize::from(at))) {
            *byte = value;
        }
    }

    /// Bytes of a transfer of the data port, each with its place in the access: all in byte mode; in word mode a byte's access takes a whole word.
    fn unit(&self) -> u16 {
        if self.state.data_config & WORDS != 0 { 2 } else { 1 }
    }

    /// Goes on by a unit, from the ring's end to its beginning.
    fn advance(&mut self, unit: u16) {
        let state = &mut self.state;
        let next = state.remote_address.wrapping_add(unit);
        let at_end = next == u16::from(state.ring_stop) << 8;
        state.remote_address = if at_end { u16::from(state.ring_start) << 8 } else { next };
        state.remote_count = state.remote_count.saturating_sub(unit);
        if state.remote_count == 0 {
            state.interrupts |= interrupt::REMOTE_DONE;
            if state.command & command::REMOTE == command::SEND_PACKET {
                let header = u16::from(state.boundary) << 8;
                self.state.boundary = self.peek(header.wrapping_add(1));
            }
        }
    }

    /// A word's first byte: words are aligned.
    fn remote_address(&self, unit: u16) -> u16 {
        self.state.remote_address & !(unit - 1)
    }

    fn read_data(&mut self, data: &mut [u8]) {
        let unit = self.unit();
        for piece in data.chunks_mut(usize::from(unit)) {
            let reads = matches!(self.state.command & command::REMOTE, command::REMOTE_READ | command::SEND_PACKET);
            if !reads || self.state.remote_count == 0 {
                piece.fill(0xff);
                continue;
            }
            let address = self.remote_address(unit);
            for (byte, at) in piece.iter_mut().zip(0..) {
                *byte = self.peek(address.wrapping_add(at));
            }
            self.advance(unit);
        }
    }

    fn write_data(&mut self, data: &[u8]) {
        let unit = self.unit();
        for piece in data.chunks(usize::from(unit)) {
            let writes = self.state.command & command::REMOTE == command::REMOTE_WRITE;
            if !writes || self.state.remote_count == 0 {
                return;
            }
            let address = self.remote_address(unit);
            for (byte, at) in piece.iter().zip(0..) {
                self.poke(address.wrapping_add(at), *byte);
            }
            self.advance(unit);
        }
    }

    /// Whether there is a frame that the driver wants to be sent.
    #[must_use]
    pub fn is_transmitting(&self) -> bool {
        self.is_running() && self.state.command & command::TRANSMIT != 0
    }

    /// The frame that the driver wants to be sent, if there is one. It is sent until [`Self::transmitted`] says that it was.
    #[must_use]
    pub fn transmits(&self) -> Option<Vec<u8>> {
        let start = u16::from(self.state.transmit_page) << 8;
        self.is_transmitting().then(|| {
            // What is longer goes nowhere.
            let length = usize::from(self.state.transmit_count).min(LONGEST + 1);
            (0..length as u16).map(|at| self.peek(start.wrapping_add(at))).collect()
        })
    }

    /// The frame has gone.
    pub fn transmitted(&mut self) {
        self.state.command &= !command::TRANSMIT;
        self.state.transmit_status = TRANSMIT_OK;
        self.state.interrupts |= interrupt::TRANSMITTED;
    }

    /// Whether a frame that is sent goes onto the cable: not if it is none, or in loopback.
    #[must_use]
    pub fn is_sendable(&self, frame: &[u8]) -> bool {
        (1..=LONGEST).contains(&frame.len()) && self.state.transmit_config & LOOPBACK == 0
    }

    /// Whether it has been started, and not been stopped since: a command without either bit, as Linux's interrupt handler writes it, changes nothing
    /// (DP8390D section 10.3, CR and ISR's RST).
    fn is_running(&self) -> bool {
        self.state.interrupts & interrupt::STOPPED == 0
    }

    /// Whether frames from the cable are looked at.
    #[must_use]
    pub fn receives(&self) -> bool {
        self.is_running() && self.state.transmit_config & LOOPBACK == 0
    }

    /// Whether a frame's address is one that the driver wants.
    fn wants(&self, frame: &[u8]) -> bool {
        let config = self.state.receive_config;
        let Some(address) = frame.first_chunk::<6>() else { return false };
        match address {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => config & receive::BROADCAST != 0,
            [first, ..] if first & 1 != 0 => {
                let hash = (group_hash(address) >> 26) as usize;
                let chosen = self.state.groups.get(hash / 8).is_some_and(|byte| byte >> (hash % 8) & 1 != 0);
                config & receive::MULTICAST != 0 && chosen
            }
            own => config & receive::PROMISCUOUS != 0 || *own == self.state.address,
        }
    }

    /// Pages of the ring, if it lies within the buffer.
    fn ring(&self) -> Option<(u8, u8)> {
        let (start, stop) = (self.state.ring_start, self.state.ring_stop);
        let first = (BUFFER_START >> 8) as u8;
        let last = first + (BUFFER_SIZE / PAGE) as u8;
        let current = (start..stop).contains(&self.state.current);
        (first <= start && start < stop && stop <= last && current).then_some((start, stop))
    }

    /// Whether the driver has an interrupt to acknowledge for frames in the ring. The next ones stay on the cable until then: drivers look where the ring ends, acknowledge
    /// the interrupt when they have read up to there, and would hear nothing of a frame that comes between. One that is masked counts as long as something is
    /// unread: Linux masks all while it fills a frame in, and those who poll acknowledge nothing.
    #[must_use]
    pub fn has_told(&self) -> bool {
        let state = &self.state;
        let pending = self.receives() && state.interrupts & interrupt::RECEIVED != 0;
        pending && (state.mask & interrupt::RECEIVED != 0 || !self.is_read())
    }

    /// Whether the driver has read all: its boundary is where the next frame comes, or, as most have it, a page behind.
    fn is_read(&self) -> bool {
        let Some((start, stop)) = self.ring() else { return true };
        let Ne2kState { boundary, current, .. } = self.state;
        let next = if boundary.checked_add(1).is_none_or(|next| next >= stop) { start } else { boundary + 1 };
        boundary == current || next == current
    }

    /// A frame comes from the network, and waits here where the ring has no room for it. None waits already.
    pub fn offer(&mut self, frame: &[u8]) -> Room {
        let room = self.receive(frame);
        if room == Room::None {
            self.state.held = Some(frame.to_vec());
        }
        room
    }

    /// Whether a frame waits for room.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.state.held.is_some()
    }

    /// Tries again to take the frame that waits. Says what became of it, if there was one.
    pub fn retry(&mut self) -> Option<Room> {
        let frame = self.state.held.take()?;
        Some(self.offer(&frame))
    }

    /// A frame comes from the cable.
    pub fn receive(&mut self, frame: &[u8]) -> Room {
        if !self.receives() || frame.len() > LONGEST || !self.wants(frame) {
            return Room::Refused;
        }
        let group = if frame.first().is_some_and(|first| first & 1 != 0) { received::GROUP } else { 0 };
        if self.state.receive_config & receive::MONITOR != 0 {
            self.state.missed = self.state.missed.saturating_add(1);
            self.state.receive_status = received::INTACT | received::MISSED | group;
            return Room::Refused;
        }
        let Some((start, stop)) = self.ring() else { return Room::Refused };
        let length = frame.len().max(SHORTEST);
        let pages = (FRAME_HEADER + length + CRC).div_ceil(PAGE);
        let size = usize::from(stop - start);
        // The ring is full when the frame's last page would be the boundary's: were they equal, it would look empty.
        if pages >= size {
            return Room::Refused;
        }
        let (current, boundary) = (usize::from(self.state.current), usize::from(self.state.boundary));
        let free = if current < boundary { boundary - current } else { size.saturating_sub(current - boundary) };
        if pages >= free {
            return Room::None;
        }
        let next = usize::from(start) + (current - usize::from(start) + pages) % size;
        let status = received::INTACT | group;
        let count = ((length + FRAME_HEADER) as u16).to_le_bytes();
        let header = [status, next as u8, count[0], count[1]];
        let padding = std::iter::repeat_n(0, length - frame.len());
        let mut address = u16::from(self.state.current) << 8;
        for byte in header.into_iter().chain(frame.iter().copied()).chain(padding) {
            self.poke(address, byte);
            address = address.wrapping_add(1);
            if address == u16::from(stop) << 8 {
                address = u16::from(start) << 8;
            }
        }
        self.state.current = next as u8;
        self.state.receive_status = status;
        self.state.interrupts |= interrupt::RECEIVED;
        Room::Taken
    }
}

/// The CRC of Ethernet over an address, most significant bit first: its upper 6 bits choose a bit of the group filter (DP8390D section 10.5).
fn group_hash(address: &[u8; 6]) -> u32 {
    address.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc, |crc, bit| {
            let carry = crc >> 31 ^ u32::from(*byte >> bit & 1);
            crc << 1 ^ if carry != 0 { 0x04c1_1db7 } else { 0 }
        })
    })
}
