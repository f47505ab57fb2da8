//! Status (Base 3.3.3.2.1).

/// A completion's status field, without the phase tag: code in bits 7:0, type in 10:8, do not retry in 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

const DO_NOT_RETRY: u16 = 1 << 14;

impl Status {
    /// A status that another try would meet again.
    const fn lasting(kind: u16, code: u16) -> Self {
        Self(DO_NOT_RETRY | kind << 8 | code)
    }

    /// A status that another try may not meet.
    const fn passing(kind: u16, code: u16) -> Self {
        Self(kind << 8 | code)
    }

    pub(crate) const SUCCESS: Self = Self(0);

    // Generic.
    pub(crate) const INVALID_OPCODE: Self = Self::lasting(0, 0x01);
    pub(crate) const INVALID_FIELD: Self = Self::lasting(0, 0x02);
    pub(crate) const DATA_TRANSFER_ERROR: Self = Self::lasting(0, 0x04);
    pub(crate) const INTERNAL_ERROR: Self = Self::passing(0, 0x06);
    pub(crate) const ABORT_REQUESTED: Self = Self::passing(0, 0x07);
    pub(crate) const ABORTED_BY_DELETION: Self = Self::passing(0, 0x08);
    pub(crate) const INVALID_NAMESPACE: Self = Self::lasting(0, 0x0b);
    pub(crate) const COMMAND_SEQUENCE: Self = Self::lasting(0, 0x0c);
    pub(crate) const SGL_SEGMENT_INVALID: Self = Self::lasting(0, 0x0d);
    pub(crate) const SGL_COUNT_INVALID: Self = Self::lasting(0, 0x0e);
    pub(crate) const SGL_LENGTH_INVALID: Self = Self::lasting(0, 0x0f);
    pub(crate) const SGL_TYPE_INVALID: Self = Self::lasting(0, 0x11);
    pub(crate) const PRP_OFFSET_INVALID: Self = Self::lasting(0, 0x13);
    pub(crate) const WRITE_PROTECTED: Self = Self::lasting(0, 0x20);
    pub(crate) const LBA_OUT_OF_RANGE: Self = Self::lasting(0, 0x80);
    pub(crate) const CAPACITY_EXCEEDED: Self = Self::lasting(0, 0x81);
    pub(crate) const FORMAT_IN_PROGRESS: Self = Self::passing(0, 0x84);

    // Command specific.
    pub(crate) const COMPLETION_QUEUE_INVALID: Self = Self::lasting(1, 0x00);
    pub(crate) const INVALID_QUEUE_ID: Self = Self::lasting(1, 0x01);
    pub(crate) const INVALID_QUEUE_SIZE: Self = Self::lasting(1, 0x02);
    pub(crate) const ABORT_LIMIT: Self = Self::passing(1, 0x03);
    pub(crate) const EVENT_LIMIT: Self = Self::lasting(1, 0x05);
    pub(crate) const INVALID_VECTOR: Self = Self::lasting(1, 0x08);
    pub(crate) const INVALID_LOG: Self = Self::lasting(1, 0x09);
    pub(crate) const INVALID_FORMAT: Self = Self::lasting(1, 0x0a);
    pub(crate) const INVALID_QUEUE_DELETION: Self = Self::lasting(1, 0x0c);
    pub(crate) const NOT_SAVEABLE: Self = Self::lasting(1, 0x0d);
    pub(crate) const NOT_NAMESPACE_SPECIFIC: Self = Self::lasting(1, 0x0f);

    // Media and data integrity.
    pub(crate) const WRITE_FAULT: Self = Self::passing(2, 0x80);
    pub(crate) const READ_ERROR: Self = Self::passing(2, 0x81);
    pub(crate) const COMPARE_FAILURE: Self = Self::lasting(2, 0x85);

    /// Whether the command did what it was asked.
    pub(crate) fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}
