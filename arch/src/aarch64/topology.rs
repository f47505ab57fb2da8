//! CPU identities.

use skep_hypervisor::aarch64::GicVersion;

/// CPUs that one GICv3 software-generated interrupt reaches by its target list, and so those that share an Aff1.
const CLUSTER_GICV3: u32 = 16;
/// Those of a GICv2.
const CLUSTER_GICV2: u32 = 8;

/// Affinity of CPU `index`, as in MPIDR_EL1: Aff0 in bits 7:0, Aff1 in 15:8, Aff2 in 23:16, Aff3 in 39:32.
pub fn mpidr(gic: GicVersion, index: u32) -> u64 {
    let cluster = match gic {
        GicVersion::V2 => CLUSTER_GICV2,
        GicVersion::V3 => CLUSTER_GICV3,
    };
    let above = u64::from(index / cluster);
    u64::from(index % cluster) | (above & 0xff) << 8 | (above >> 8 & 0xff) << 16 | (above >> 16 & 0xff) << 32
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn affinities_are_those_of_the_controllers_clusters() {
        assert_eq!(mpidr(GicVersion::V3, 15), 0x00f);
        assert_eq!(mpidr(GicVersion::V3, 16), 0x100);
        assert_eq!(mpidr(GicVersion::V3, 4095), 0xff0f);
        assert_eq!(mpidr(GicVersion::V3, 4096), 0x1_0000);
        assert_eq!(mpidr(GicVersion::V3, 1 << 20), 0x1_0000_0000);
        assert_eq!(mpidr(GicVersion::V2, 7), 7);
        let all: std::collections::HashSet<_> = (0..10_000).map(|index| mpidr(GicVersion::V3, index)).collect();
        assert_eq!(all.len(), 10_000);
    }
}
