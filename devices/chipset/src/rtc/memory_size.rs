//! How CMOS memory tells firmware the size of RAM.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The bytes of CMOS memory that tell a PC's firmware how much RAM there is: `low` bytes below 4 GiB, and `high` bytes from 4 GiB on.
///
/// | places | unit | of |
/// |---|---|---|
/// | 0x15, 0x16 | KiB | conventional memory: 640 |
/// | 0x17, 0x18 and 0x30, 0x31 | KiB | from 1 MiB on, up to 64 MiB |
/// | 0x34, 0x35 | 64 KiB | from 16 MiB on, below 4 GiB |
/// | 0x5b, 0x5c, 0x5d | 64 KiB | from 4 GiB on |
#[must_use]
pub fn memory_size(low: u64, high: u64) -> Vec<(u8, u8)> {
    let above = |from: u64, unit: u64, most: u64| (low.saturating_sub(from) / unit).min(most);
    let extended = above(MIB, KIB, 0xffff);
    let fields = [
        (0x15, 2, 640),
        (0x17, 2, extended),
        (0x30, 2, extended),
        (0x34, 2, above(16 * MIB, 64 * KIB, 0xffff)),
        (0x5b, 3, (high / (64 * KIB)).min(0xff_ffff)),
    ];
    let bytes = |(place, width, value): (u8, u8, u64)| (0..width).map(move |i| (place + i, (value >> (8 * i)) as u8));
    fields.into_iter().flat_map(bytes).collect()
}
