//! What each register of CPUID is about (SDM volume 2A, CPUID; APM volume 3, appendix E; KVM's own leaves): a guest is shown none that is not here, so that
//! whoever compares CPUs knows all that one was shown.

use skep_hypervisor::x86_64::CpuidEntry;

/// What a register of CPUID tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Nothing that a guest is shown: 0.
    Hidden,
    /// What a guest can use: a bit for each feature, or a figure that may be less than the host's.
    Features,
    /// What a guest that uses the feature relies on: sizes and places. No other value will do.
    Same,
    /// What the machine is like: its names, caches and topology, and how much of CPUID there is. A guest is right with what it was told wherever it goes on.
    Told,
}

use Register::{Features, Hidden, Same, Told};

/// EAX, EBX, ECX and EDX of a leaf and subleaf; `None` for what a guest is not shown at all.
#[must_use]
pub fn registers(entry: &CpuidEntry) -> Option<[Register; 4]> {
    Some(match (entry.leaf, entry.subleaf) {
        (0 | 2 | 4 | 6 | 0xb | 0x15 | 0x1f, _) => [Told; 4],
        (1, _) => [Told, Told, Features, Features],
        (7, 0) => [Told, Features, Features, Features],
        (7, 1 | 2) => [Features; 4],
        // The performance monitor's.
        (0xa | 0x23 | 0x8000_0022, _) => [Same; 4],
        (0xd, 0) => [Features, Told, Told, Features],
        (0xd, 1) => [Features, Told, Features, Features],
        // A component of XSAVE, and a palette of AMX.
        (0xd | 0x1d, _) => [Same; 4],
        // AMX's multiplier.
        (0x1e, 0) => [Hidden, Same, Hidden, Hidden],
        // AVX10's version and vector lengths.
        (0x24, 0) => [Told, Features, Hidden, Hidden],
        (0x4000_0000 | 0x4000_0010, _) => [Told; 4],
        (0x4000_0001, _) => [Features, Hidden, Hidden, Features],
        (0x8000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001d | 0x8000_001e, _) => [Told; 4],
        (0x8000_0001, _) => [Told, Told, Features, Features],
        (0x8000_0007, _) => [Hidden, Hidden, Hidden, Features],
        // Widths of addresses; features; topology.
        (0x8000_0008, _) => [Features, Features, Told, Hidden],
        (0x8000_001a, _) => [Features, Hidden, Hidden, Hidden],
        // EBX: sizes of microcode and of the return address predictor.
        (0x8000_0021, _) => [Features, Same, Features, Hidden],
        (0xc000_0000, _) => [Told, Hidden, Hidden, Hidden],
        (0xc000_0001, _) => [Hidden, Hidden, Hidden, Features],
        _ => return None,
    })
}
