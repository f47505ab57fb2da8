//! Each guest is there, in its format, and small.

use super::*;

/// What a guest may have, in bytes.
const SMALL: usize = 64 << 10;

#[test]
fn probes_begin_with_code() {
    for probe in [PROBE_X86_64, PROBE_AARCH64] {
        assert!(probe.len() < SMALL, "{} bytes", probe.len());
        assert_ne!(&probe[..4], b"\x7fELF");
    }
    // CLI, CLD.
    assert_eq!(PROBE_X86_64[..2], [0xfa, 0xfc]);
    // MOV X19, X0.
    assert_eq!(PROBE_AARCH64[..4], 0xaa00_03f3_u32.to_le_bytes());
}
