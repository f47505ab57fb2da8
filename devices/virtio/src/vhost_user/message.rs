//! Messages as they are on the socket: a header of three words and a body, all little-endian.

/// What is asked of a backend, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    ResetDevice = 34,
}

impl Request {
    /// The name in the protocol.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GetFeatures => "GET_FEATURES",
            Self::SetFeatures => "SET_FEATURES",
            Self::SetOwner => "SET_OWNER",
            Self::SetMemTable => "SET_MEM_TABLE",
            Self::SetVringNum => "SET_VRING_NUM",
            Self::SetVringAddr => "SET_VRING_ADDR",
            Self::SetVringBase => "SET_VRING_BASE",
            Self::GetVringBase => "GET_VRING_BASE",
            Self::SetVringKick => "SET_VRING_KICK",
            Self::SetVringCall => "SET_VRING_CALL",
            Self::GetProtocolFeatures => "GET_PROTOCOL_FEATURES",
            Self::SetProtocolFeatures => "SET_PROTOCOL_FEATURES",
            Self::GetQueueNum => "GET_QUEUE_NUM",
            Self::SetVringEnable => "SET_VRING_ENABLE",
            Self::SetBackendReqFd => "SET_BACKEND_REQ_FD",
            Self::GetConfig => "GET_CONFIG",
            Self::SetConfig => "SET_CONFIG",
            Self::ResetDevice => "RESET_DEVICE",
        }
    }
}

/// Of a backend's own requests, the one that is known: its configuration has changed.
pub(crate) const CONFIG_CHANGED: u32 = 2;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features.
pub(crate) mod protocol {
    pub(crate) const MQ: u64 = 1 << 0;
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    pub(crate) const CONFIG: u64 = 1 << 9;
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
}

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// The longest body that anybody has reason to send.
pub(crate) const MOST: usize = 4096;
/// Of a header's flags: the version and its mask, and the bits.
pub(crate) const VERSION: u32 = 1;
pub(crate) const VERSION_MASK: u32 = 3;
pub(crate) const REPLY: u32 = 1 << 2;
pub(crate) const NEED_REPLY: u32 = 1 << 3;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) size: u32,
}

impl Header {
    pub(crate) fn read(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| words(bytes).nth(at).unwrap_or_default();
        Self { request: word(0), flags: word(1), size: word(2) }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        [self.request, self.flags, self.size].iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// The 32-bit words of a body.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// A body of 32-bit words.
pub(crate) fn of_words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
