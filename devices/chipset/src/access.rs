//! How an access of any width meets the registers of a device.

/// Reads from a device of byte-wide ports: a wider access becomes one for each port, as the ISA bus splits it.
pub(crate) fn read_ports(offset: u64, data: &mut [u8], mut port: impl FnMut(u64) -> u8) {
    for (offset, byte) in (offset..).zip(data) {
        *byte = port(offset);
    }
}

/// Writes to a device of byte-wide ports.
pub(crate) fn write_ports(offset: u64, data: &[u8], mut port: impl FnMut(u64, u8)) {
    for (offset, byte) in (offset..).zip(data) {
        port(offset, *byte);
    }
}

/// Reads from a device of 32-bit registers, each at a multiple of four. A narrow access takes its lanes of the register; a wide one reads
/// one register after the other.
pub(crate) fn read_words(offset: u64, data: &mut [u8], mut register: impl FnMut(u64) -> u32) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let lane = (at & 3) as usize;
        let take = rest.len().min(4 - lane);
        let (part, tail) = rest.split_at_mut(take);
        let word = register(at & !3).to_le_bytes();
        for (byte, value) in part.iter_mut().zip(word.into_iter().skip(lane)) {
            *byte = value;
        }
        at += take as u64;
        rest = tail;
    }
}

/// Writes to a device of 32-bit registers. The peripheral bus has no byte strobes: a narrow write at a register's address writes all of
/// it, the missing lanes as zeros, and one at a later lane goes nowhere.
pub(crate) fn write_words(offset: u64, data: &[u8], mut register: impl FnMut(u64, u32)) {
    for (at, part) in (offset..).step_by(4).zip(data.chunks(4)) {
        if at & 3 == 0 {
            register(at, skep_bus::value_of(part) as u32);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_are_read_by_lanes_and_written_whole() {
        let mut data = [0; 8];
        read_words(2, &mut data, |register| 0x0302_0100 + 0x0404_0404 * (register as u32 / 4));
        assert_eq!(data, [2, 3, 4, 5, 6, 7, 8, 9]);
        let mut seen = Vec::new();
        write_words(4, &[1, 2, 3, 4, 5], |register, value| seen.push((register, value)));
        write_words(9, &[1, 2], |register, value| seen.push((register, value)));
        assert_eq!(seen, [(4, 0x0403_0201), (8, 5)]);
    }

    #[test]
    fn ports_are_accessed_one_by_one() {
        let mut data = [0; 3];
        read_ports(5, &mut data, |port| port as u8);
        assert_eq!(data, [5, 6, 7]);
        let mut seen = Vec::new();
        write_ports(1, &[9, 8], |port, value| seen.push((port, value)));
        assert_eq!(seen, [(1, 9), (2, 8)]);
    }
}
