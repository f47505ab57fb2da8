//! What CPUID shows the guest (SDM volume 2A, APM volume 3 appendix E): what the backend can show of the host, with
//! the guest's own topology, and without what skep does not offer.
//!
//! Hidden always: each register that [`leaves`] does not know, so those of later CPUs as well; nested virtualization, SGX,
//! processor trace, resource control, thermal and power management, MONITOR, debug store, SMX, memory encryption. Hidden
//! unless asked for: the performance monitor. Leaf 0x15 tells the TSC's frequency where its 32-bit ratio to the APIC
//! timer's is exact.

use skep_hypervisor::x86_64::{Capabilities, Cpuid, CpuidEntry, VcpuConfig};

use super::apic_id::{ApicIds, LAST_XAPIC_ID};
use super::leaves::{self, Register};
use crate::topology::Topology;

/// Frequency of the APIC timer's clock under KVM, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Leaf with the hypervisor's signature.
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_FEATURES: u32 = HYPERVISOR + 1;
/// Leaf with the frequencies of TSC and APIC timer.
const HYPERVISOR_FREQUENCIES: u32 = HYPERVISOR + 0x10;

/// What the guest is shown, besides what the backend offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How the CPUs are arranged.
    pub topology: Topology,
    /// Whether there is a performance monitor.
    pub pmu: bool,
    /// Whether there is machine check architecture. Without it a kernel need not set its banks up.
    pub machine_check: bool,
}

/// The topology needs APIC ids that can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// More than the backend has.
    #[error(
        "the CPUs need APIC ids up to {needed}, and the hypervisor allows {allowed} of them; take fewer CPUs, or numbers of cores and threads that are powers of two"
    )]
    ApicIds {
        /// The highest id.
        needed: u64,
        /// How many there may be.
        allowed: u32,
    },
    /// More than interrupts can be sent to.
    #[error("APIC ids up to {0} are needed, and this hypervisor's interrupts reach {LAST_XAPIC_ID}; take fewer CPUs")]
    Unreachable(u64),
}

/// What CPUID shows on all of a machine's CPUs.
#[derive(Clone, Debug)]
pub struct Identity {
    common: Cpuid,
    arch_capabilities: u64,
    ids: ApicIds,
    amd: bool,
}

impl Identity {
    /// Makes the guest's CPUs of what a backend offers.
    ///
    /// # Errors
    /// [`IdentityError`] if there are not as many APIC ids.
    pub fn new(capabilities: &Capabilities, options: &Options) -> Result<Self, IdentityError> {
        let ids = ApicIds::new(options.topology);
        let allowed = capabilities.apic_ids;
        let last = ids.count().map_or(u64::MAX, |count| u64::from(count) - 1);
        if last >= u64::from(allowed) {
            return Err(IdentityError::ApicIds { needed: last, allowed });
        }
        if last > u64::from(LAST_XAPIC_ID) && !capabilities.extended_msi_destinations {
            return Err(IdentityError::Unreachable(last));
        }
        let vendor = capabilities.cpuid.get(0, 0).map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
        let amd =
            [*b"AuthenticAMD", *b"HygonGenuine"].iter().any(|name| vendor.map(u32::to_le_bytes).as_flattened() == name);
        let (common, arch_capabilities) = (capabilities.cpuid.clone(), capabilities.arch_capabilities);
        let mut identity = Self { common, arch_capabilities, ids, amd };
        identity.hide(options);
        identity.topology();
        identity.hypervisor(capabilities);
        identity.frequencies(capabilities.tsc_khz);
        identity.limits();
        Ok(identity)
    }

    /// The APIC ids.
    pub fn apic_ids(&self) -> ApicIds {
        self.ids
    }

    /// What vCPU `index` is made with.
    pub fn vcpu(&self, index: u32) -> VcpuConfig {
        let apic_id = self.ids.id(index);
        let mut cpuid = self.common.clone();
        for entry in &mut cpuid.0 {
            match entry.leaf {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | (apic_id & 0xff) << 24,
                0xb | 0x1f => entry.edx = apic_id,
                0x8000_001e if self.amd => {
                    let topology = self.ids.topology();
                    let place = topology.place(index);
                    entry.eax = apic_id;
                    entry.ebx = (topology.threads - 1).min(0xff) << 8 | place.core & 0xff;
                    entry.ecx = place.socket & 0xff;
                }
                _ => {}
            }
        }
        let arch_capabilities = cpuid.shows_arch_capabilities().then_some(self.arch_capabilities);
        VcpuConfig { apic_id, cpuid, arch_capabilities }
    }

    fn edit(&mut self, leaf: u32, change: impl Fn(&mut CpuidEntry)) {
        self.common.0.iter_mut().filter(|entry| entry.leaf == leaf).for_each(change);
    }

    /// Takes out what skep does not offer.
    fn hide(&mut self, options: &Options) {
        self.common.0.retain_mut(|entry| {
            let Some(known) = leaves::registers(entry) else { return false };
            let values = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
            let hidden = values.into_iter().zip(known).filter(|(_, register)| *register == Register::Hidden);
            hidden.for_each(|(value, _)| *value = 0);
            true
        });
        // How many subleaves there are.
        let last = self.common.0.iter().filter(|entry| entry.leaf == 7).map(|entry| entry.subleaf).max().unwrap_or(0);
        self.edit(7, |leaf| {
            if leaf.subleaf == 0 {
                leaf.eax = last;
            }
        });
        self.edit(0x24, |leaf| leaf.eax = 0);
        self.edit(1, |leaf| {
            // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG; OSXSAVE follows CR4.
            leaf.ecx &= !bits(&[2, 3, 4, 5, 6, 7, 8, 11, 27]);
            // DS, ACPI, TM, PBE.
            leaf.edx &= !bits(&[21, 22, 29, 31]);
            // x2APIC, and that there is a hypervisor.
            leaf.ecx |= bits(&[21, 31]);
        });
        // The APIC timer runs in every sleep state (ARAT); nothing else of thermal and power management.
        self.common.remove(6);
        self.common.set(CpuidEntry { leaf: 6, eax: bits(&[2]), ..CpuidEntry::default() });
        self.edit(7, |leaf| {
            if leaf.subleaf == 0 {
                // SGX, RDT-M, RDT-A, processor trace.
                leaf.ebx &= !bits(&[2, 12, 15, 25]);
                // TME, SGX launch control.
                leaf.ecx &= !bits(&[13, 30]);
                // PCONFIG, architectural LBRs.
                leaf.edx &= !bits(&[18, 19]);
            }
        });
        self.edit(0x8000_0001, |leaf| {
            // SVM, IBS, SKINIT, WDT, LWP, node id, MONITORX.
            leaf.ecx &= !bits(&[2, 10, 12, 13, 15, 19, 29]);
        });
        // Of power management, that the TSC is invariant.
        self.edit(0x8000_0007, |leaf| {
            *leaf = CpuidEntry { leaf: leaf.leaf, edx: leaf.edx & bits(&[8]), ..CpuidEntry::default() };
        });
        if !options.pmu {
            self.common.remove(0xa);
            self.common.remove(0x23);
            self.common.remove(0x8000_0022);
            // PDCM.
            self.edit(1, |leaf| leaf.ecx &= !bits(&[15]));
            // Performance counter extensions.
            self.edit(0x8000_0001, |leaf| leaf.ecx &= !bits(&[23, 24, 26, 28]));
        }
        if !options.machine_check {
            // MCE, MCA.
            self.edit(1, |leaf| leaf.edx &= !bits(&[7, 14]));
            self.edit(0x8000_0001, |leaf| leaf.edx &= !bits(&[7, 14]));
        }
    }

    fn topology(&mut self) {
        let (ids, amd) = (self.ids, self.amd);
        let topology = ids.topology();
        let (threads, per_socket) = (topology.threads, topology.per_socket());
        // All ones in a field of this many bits.
        let mask = |width: u32| u32::try_from((1u64 << width.min(32)) - 1).unwrap_or(u32::MAX);
        self.edit(1, |leaf| {
            let addressable =
                if amd { per_socket.min(0xff) } else { mask(ids.socket_shift()).saturating_add(1).min(0x80) };
            leaf.ebx = leaf.ebx & 0x0000_ffff | if per_socket > 1 { addressable << 16 } else { 1 << 16 };
            // HTT: several logical processors in a package.
            leaf.edx = leaf.edx & !bits(&[28]) | u32::from(per_socket > 1) << 28;
        });
        // Caches (Intel): levels 1 and 2 are a core's, others a socket's.
        self.edit(4, |leaf| {
            let width = if leaf.eax >> 5 & 7 <= 2 { ids.thread_bits() } else { ids.socket_shift() };
            if leaf.eax & 0x1f != 0 {
                leaf.eax = leaf.eax & 0x3fff | mask(width).min(0xfff) << 14 | mask(ids.core_bits()).min(0x3f) << 26;
            }
        });
        let extended = if self.common.get(0x1f, 0).is_some() { &[0xb, 0x1f][..] } else { &[0xb] };
        for &leaf in extended {
            const SMT: u32 = 1;
            const CORE: u32 = 2;
            self.common.remove(leaf);
            let level = |subleaf, shift, count: u32, kind| CpuidEntry {
                leaf,
                subleaf,
                indexed: true,
                eax: shift,
                ebx: count.min(0xffff),
                ecx: kind << 8 | subleaf,
                edx: 0,
            };
            self.common.0.extend([
                level(0, ids.thread_bits(), threads, SMT),
                level(1, ids.socket_shift(), per_socket, CORE),
                level(2, 0, 0, 0),
            ]);
        }
        if amd {
            const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
            let extensions = self.common.get(0x8000_0001, 0).is_some_and(|leaf| leaf.ecx & TOPOLOGY_EXTENSIONS != 0);
            if extensions {
                self.common.set(CpuidEntry { leaf: 0x8000_001e, ..CpuidEntry::default() });
            }
            self.edit(0x8000_0001, |leaf| {
                // CmpLegacy: HTT means cores.
                leaf.ecx = leaf.ecx & !bits(&[1]) | u32::from(per_socket > 1) << 1;
            });
            self.edit(0x8000_0008, |leaf| {
                leaf.ecx = leaf.ecx & !0xf0ff | (per_socket - 1).min(0xff) | ids.socket_shift().min(0xf) << 12;
            });
            self.edit(0x8000_001d, |leaf| {
                let sharing = if leaf.eax >> 5 & 7 <= 2 { threads } else { per_socket };
                if leaf.eax & 0x1f != 0 {
                    leaf.eax = leaf.eax & !(0xfff << 14) | (sharing - 1).min(0xfff) << 14;
                }
            });
        } else {
            self.edit(0x8000_0008, |leaf| leaf.ecx &= !0xf0ff);
            self.common.remove(0x8000_001d);
            self.common.remove(0x8000_001e);
        }
    }

    fn hypervisor(&mut self, capabilities: &Capabilities) {
        /// Calls and controls that a guest makes of a monitor, not of KVM: mapping changes, migration control.
        const NOT_OFFERED: [u32; 2] = [16, 17];
        const MSI_EXT_DEST_ID: u32 = 15;
        let extended = u32::from(capabilities.extended_msi_destinations) << MSI_EXT_DEST_ID;
        self.edit(HYPERVISOR_FEATURES, |leaf| {
            leaf.eax = leaf.eax & !bits(&NOT_OFFERED) & !bits(&[MSI_EXT_DEST_ID]) | extended;
        });
        if let (Some(khz), true) = (capabilities.tsc_khz, self.common.get(HYPERVISOR, 0).is_some()) {
            let frequencies =
                CpuidEntry { leaf: HYPERVISOR_FREQUENCIES, eax: khz, ebx: APIC_BUS_KHZ, ..CpuidEntry::default() };
            self.common.set(frequencies);
        }
    }

    /// Leaf 0x15: the core crystal clock, which is the APIC timer's, and the TSC's ratio to it. Linux multiplies kHz
    /// by the numerator in 32 bits, so only a ratio that stays below is given.
    fn frequencies(&mut self, tsc_khz: Option<u32>) {
        self.common.remove(0x15);
        let Some(khz) = tsc_khz.filter(|&khz| khz > 0) else { return };
        let divisor = greatest_common_divisor(khz, APIC_BUS_KHZ);
        let (numerator, denominator) = (khz / divisor, APIC_BUS_KHZ / divisor);
        if APIC_BUS_KHZ.checked_mul(numerator).is_some() {
            self.common.set(CpuidEntry {
                leaf: 0x15,
                eax: denominator,
                ebx: numerator,
                ecx: APIC_BUS_KHZ * 1000,
                ..CpuidEntry::default()
            });
        }
    }

    /// The highest leaf of each range: those that are left.
    fn limits(&mut self) {
        for (first, end) in [(0, HYPERVISOR), (HYPERVISOR, HYPERVISOR + 0x100), (0x8000_0000, 0xc000_0000)] {
            let highest = self.common.0.iter().map(|entry| entry.leaf).filter(|leaf| (first..end).contains(leaf)).max();
            if let Some(highest) = highest {
                self.edit(first, |leaf| leaf.eax = highest);
            }
        }
    }
}

/// The named bits.
fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |bits, number| bits | 1 << number)
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod test;
