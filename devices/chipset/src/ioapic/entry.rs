//! Entries of the redirection table, and the messages that they make.

use skep_irq::MsiMessage;

/// An entry of the redirection table (82093AA section 3.2.4):
///
/// | bits | |
/// |---|---|
/// | 63:56 | destination: APIC id bits 7:0, or a set of logical ids |
/// | 55:49 | extended destination: APIC id bits 14:8, as KVM and Hyper-V define them for guests without interrupt remapping |
/// | 16 | mask |
/// | 15 | trigger: 1 is level |
/// | 14 | remote IRR (read only): a level interrupt was taken by a local APIC and awaits its end |
/// | 13 | polarity: 1 is active low. Lines here are logical, so it is kept and has no effect |
/// | 12 | delivery status (read only): 0, for a message is delivered at once |
/// | 11 | destination mode: 1 is logical |
/// | 10:8 | delivery mode |
/// | 7:0 | vector |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(pub(super) u64);

const WRITABLE: u64 = 0xfffe_0000_0001_afff;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASK: u64 = 1 << 16;
/// Bits of the low word.
const LOW: u64 = 0xffff_ffff;

/// Delivery modes in which the trigger mode counts; the others are edges whatever it says.
const FIXED: u64 = 0;
const LOWEST_PRIORITY: u64 = 1;
/// Delivery modes that are reserved.
const RESERVED: [u64; 2] = [3, 6];

impl Entry {
    /// Masked, the rest zero.
    pub(super) const POWER_ON: Self = Self(MASK);

    /// Whether an entry can hold this value.
    pub(super) fn is_possible(value: u64) -> bool {
        value & !(WRITABLE | REMOTE_IRR) == 0 && (value & REMOTE_IRR == 0 || Self(value).is_level())
    }

    pub(super) fn vector(self) -> u8 {
        self.0 as u8
    }

    fn delivery_mode(self) -> u64 {
        self.0 >> 8 & 7
    }

    pub(super) fn is_masked(self) -> bool {
        self.0 & MASK != 0
    }

    pub(super) fn is_level(self) -> bool {
        self.0 & LEVEL != 0 && matches!(self.delivery_mode(), FIXED | LOWEST_PRIORITY)
    }

    /// Whether a level interrupt awaits its end.
    pub(super) fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, set: bool) {
        self.0 = self.0 & !REMOTE_IRR | if set { REMOTE_IRR } else { 0 };
    }

    /// The guest writes the entry's low or high word. An entry that becomes an edge loses its remote IRR: it is how drivers of old I/O APICs
    /// end an interrupt by hand.
    pub(super) fn write(&mut self, high: bool, value: u32) {
        let (shift, kept) = if high { (32, LOW) } else { (0, !LOW) };
        let written = u64::from(value) << shift & WRITABLE;
        self.0 = self.0 & (kept | REMOTE_IRR) | written;
        if !self.is_level() {
            self.set_remote_irr(false);
        }
    }

    pub(super) fn word(self, high: bool) -> u32 {
        (if high { self.0 >> 32 } else { self.0 }) as u32
    }

    /// The message that the pin sends (Intel SDM volume 3 section 11.11, with the extended destination in address bits 11:5). `None` for a
    /// delivery mode that is reserved.
    ///
    /// An ExtINT message is passed on as any other: which local APIC asks the PIC is the backend's business.
    pub(super) fn message(self) -> Option<MsiMessage> {
        if RESERVED.contains(&self.delivery_mode()) {
            return None;
        }
        let destination = (self.0 >> 56 & 0xff) << 12 | (self.0 >> 49 & 0x7f) << 5;
        let logical = (self.0 >> 11 & 1) << 2;
        // Level and assert.
        let trigger = if self.is_level() { 1 << 15 | 1 << 14 } else { 0 };
        let data = u32::from(self.vector()) | (self.delivery_mode() as u32) << 8 | trigger;
        Some(MsiMessage { address: 0xfee0_0000 | destination | logical, data })
    }
}
