//! Which CPU features a guest is shown, by name (SDM volume 2A, CPUID; APM volume 3, appendix E; KVM's own leaves): compared with a host's, limited to a
//! list, and what several hosts have in common.
//!
//! A list is names between spaces. A bit without a name is told by its place: `0x7.0.edx.5`.

use skep_hypervisor::x86_64::{Cpuid, CpuidEntry};

#[cfg(test)]
#[path = "features_test.rs"]
mod test;

/// A register of CPUID whose bits are features: leaf, subleaf, the register (0 to 3: EAX, EBX, ECX, EDX), and names from bit 0 on, `-` for none.
type Word = (u32, u32, usize, &'static str);

const WORDS: [Word; 12] = [
    (
        1,
        0,
        2,
        "sse3 pclmulqdq - monitor - - - - - ssse3 - - fma cmpxchg16b - - - pcid - sse4.1 sse4.2 x2apic movbe popcnt \
         tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    ),
    (
        1,
        0,
        3,
        "fpu - - - tsc msr pae - cmpxchg8b apic - sep mtrr pge - cmov pat - - clflush - - - mmx fxsr sse sse2 - ht",
    ),
    (
        7,
        0,
        1,
        "fsgsbase tsc-adjust - bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq rdseed adx smap avx512ifma \
         - clflushopt clwb - - - avx512cd sha avx512bw avx512vl",
    ),
    (
        7,
        0,
        2,
        "- avx512vbmi umip pku - - avx512vbmi2 cet-ss gfni vaes vpclmulqdq avx512vnni avx512bitalg - avx512vpopcntdq - la57 - - \
         - - - rdpid - - - - movdiri movdir64b",
    ),
    (
        7,
        0,
        3,
        "- - - - fsrm - - - - - md-clear - - - serialize - tsxldtrk - - - - - amx-bf16 avx512fp16 amx-tile amx-int8 spec-ctrl \
         stibp flush-l1d arch-capabilities - ssbd",
    ),
    (7, 1, 0, "- - - - avx-vnni avx512bf16 - - - - - - - - - - - - - - - - - avx-ifma"),
    (
        0xd,
        0,
        0,
        "xsave-x87 xsave-sse xsave-avx xsave-mpx xsave-mpx-config xsave-avx512 xsave-zmm xsave-zmm16 - xsave-pku",
    ),
    (0xd, 1, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        0x8000_0001,
        0,
        2,
        "lahf64 - svm - cr8-legacy lzcnt sse4a misalignsse 3dnowprefetch - - - - - - - fma4 - - - - - topoext",
    ),
    (
        0x8000_0001,
        0,
        3,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt 1gb-pages rdtscp - long-mode",
    ),
    (0x8000_0008, 0, 1, "clzero - - - - - - - - wbnoinvd - - amd-ibpb - amd-ibrs amd-stibp - - - - - - - - amd-ssbd"),
    (
        0x4000_0001,
        0,
        0,
        "kvmclock-old - - kvmclock kvm-async-pf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-tlb-flush - kvm-pv-ipi \
         kvm-poll-control kvm-sched-yield kvm-async-pf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable",
    ),
];

/// A value for each of [`WORDS`].
type Bits = [u32; WORDS.len()];

/// Whether there are several processors: the topology's.
const HT: (usize, u32) = (1, 1 << 28);

/// What the levels of the x86-64 psABI (section 3.1.1) promise, the first with what a 64-bit kernel stands on; and, behind `?`, what KVM provides itself on most
/// hosts.
const LEVELS: [(&str, &str); 4] = [
    (
        "x86-64-v1",
        "fpu tsc msr pae cmpxchg8b apic mtrr pge cmov pat clflush mmx fxsr sse sse2 syscall nx long-mode \
         ?sep ?x2apic ?hypervisor ?tsc-deadline ?tsc-adjust ?kvmclock-old ?kvmclock ?kvm-steal-time ?kvm-pv-eoi ?kvm-pv-unhalt \
         ?kvm-tlb-flush ?kvm-pv-ipi ?kvm-poll-control ?kvm-sched-yield ?kvm-msi-ext-dest-id ?kvmclock-stable",
    ),
    ("x86-64-v2", "cmpxchg16b lahf64 popcnt sse3 sse4.1 sse4.2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma lzcnt movbe xsave xsave-x87 xsave-sse xsave-avx"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl xsave-avx512 xsave-zmm xsave-zmm16"),
];

fn registers(entry: Option<&CpuidEntry>) -> [u32; 4] {
    entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

fn bits(cpuid: &Cpuid) -> Bits {
    WORDS.map(|(leaf, subleaf, register, _)| registers(cpuid.get(leaf, subleaf))[register])
}

fn vendor(cpuid: &Cpuid) -> String {
    let [_, b, c, d] = registers(cpuid.get(0, 0));
    String::from_utf8_lossy(&[b, d, c].map(u32::to_le_bytes).concat()).into_owned()
}

fn name((leaf, subleaf, register, names): &Word, bit: u32) -> String {
    let known = names.split(' ').nth(bit as usize).filter(|name| *name != "-");
    let place = || format!("{leaf:#x}.{subleaf}.{}.{bit}", ["eax", "ebx", "ecx", "edx"][*register]);
    known.map_or_else(place, str::to_owned)
}

/// The names of the bits that are set.
fn names(bits: &Bits) -> Vec<String> {
    let of = |(word, value): (&Word, &u32)| {
        let value = *value;
        let word = *word;
        (0..32).filter(move |bit| value >> bit & 1 == 1).map(move |bit| name(&word, bit)).collect::<Vec<_>>()
    };
    WORDS.iter().zip(bits).flat_map(of).collect()
}

/// Those of `left` that are not in `right`.
fn without(left: &Bits, right: &Bits) -> Bits {
    std::array::from_fn(|at| left[at] & !right[at])
}

/// Refuses a host that does not have what the guest was shown: its vendor, and each feature, by name.
pub(super) fn compare(saved: &Cpuid, here: &Cpuid) -> Result<(), String> {
    let vendors = (vendor(saved), vendor(here));
    if vendors.0 != vendors.1 {
        return Err(format!("the guest was shown one of `{}`, and this is one of `{}`", vendors.0, vendors.1));
    }
    match names(&without(&bits(saved), &bits(here))).as_slice() {
        [] => Ok(()),
        names => Err(format!("the guest was shown what it does not have: {}", names.join(", "))),
    }
}

/// A list of features.
#[derive(Default)]
pub(in crate::machine) struct List {
    vendor: Option<String>,
    needed: Bits,
    /// Shown where they are there.
    welcome: Bits,
}

impl List {
    /// A level's.
    pub(in crate::machine) fn level(level: &str) -> Option<Self> {
        let at = LEVELS.iter().position(|(name, _)| *name == level)?;
        let text: Vec<_> = LEVELS.iter().take(at + 1).map(|(_, names)| *names).collect();
        Self::parse(&text.join(" ")).ok()
    }

    /// What `text` names.
    ///
    /// # Errors
    /// The word that is no feature.
    pub(in crate::machine) fn parse(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for word in text.split_whitespace() {
            if let Some(vendor) = word.strip_prefix("vendor=") {
                list.vendor = Some(vendor.to_owned());
                continue;
            }
            let plain = word.strip_prefix('?').unwrap_or(word);
            let bits = if plain == word { &mut list.needed } else { &mut list.welcome };
            let found = WORDS.iter().zip(bits).find_map(|(of, bits)| {
                let bit = (0..32).find(|bit| name(of, *bit) == plain)?;
                *bits |= 1 << bit;
                Some(())
            });
            found.ok_or_else(|| format!("`{plain}` is no CPU feature that is known by name"))?;
        }
        Ok(list)
    }

    /// Lets a guest be shown these alone.
    ///
    /// # Errors
    /// What this CPU does not have.
    pub(in crate::machine) fn limit(&self, cpuid: &mut Cpuid) -> Result<(), String> {
        if self.vendor.as_ref().is_some_and(|wanted| *wanted != vendor(cpuid)) {
            return Err(format!("a CPU of {}", self.vendor.as_deref().unwrap_or_default()));
        }
        let mut needed = self.needed;
        needed[HT.0] &= !HT.1;
        let lacking = names(&without(&needed, &bits(cpuid)));
        if !lacking.is_empty() {
            return Err(lacking.join(", "));
        }
        for (at, (leaf, subleaf, register, _)) in WORDS.iter().enumerate() {
            let kept = needed[at] | self.welcome[at] | if at == HT.0 { HT.1 } else { 0 };
            if let Some(entry) = cpuid.get_mut(*leaf, *subleaf) {
                let [a, b, c, d] = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
                *[a, b, c, d][*register] &= kept;
            }
        }
        limit_xsave(cpuid);
        Ok(())
    }

    /// What is in both.
    pub(in crate::machine) fn common(mut self, other: &Self) -> Result<Self, String> {
        if self.vendor != other.vendor {
            return Err("the hosts' CPUs are of different vendors".to_owned());
        }
        self.needed = without(&self.needed, &without(&self.needed, &other.needed));
        Ok(self)
    }

    /// All that a guest can be shown.
    pub(in crate::machine) fn of(cpuid: &Cpuid) -> Self {
        Self { vendor: Some(vendor(cpuid)), needed: bits(cpuid), welcome: Bits::default() }
    }

    /// As it is read.
    pub(in crate::machine) fn text(&self) -> String {
        format!("vendor={}\n{}\n", self.vendor.as_deref().unwrap_or_default(), names(&self.needed).join(" "))
    }
}

/// Lets leaf 0xd tell of the components alone that are left (SDM 1 section 13.2).
fn limit_xsave(cpuid: &mut Cpuid) {
    const LEAF: u32 = 0xd;
    let has_xsave = registers(cpuid.get(1, 0))[2] >> 26 & 1 == 1;
    let xcr0 = registers(cpuid.get(LEAF, 0))[0];
    let [features, _, supervisor, _] = registers(cpuid.get(LEAF, 1));
    let supervisor = if features >> 3 & 1 == 1 { supervisor } else { 0 };
    let left = |entry: &CpuidEntry| match entry.subleaf {
        0 | 1 => true,
        component => (xcr0 | supervisor).checked_shr(component).unwrap_or(0) & 1 == 1,
    };
    cpuid.0.retain(|entry| entry.leaf != LEAF || has_xsave && left(entry));
    if let Some(entry) = cpuid.get_mut(LEAF, 1) {
        entry.ecx = supervisor;
    }
    // The legacy region and the header, and where the last component ends.
    let ends = (2..32).filter(|component| xcr0 >> component & 1 == 1).map(|component| {
        let [size, offset, ..] = registers(cpuid.get(LEAF, component));
        size.saturating_add(offset)
    });
    let size = ends.fold(576, u32::max);
    if let Some(entry) = cpuid.get_mut(LEAF, 0) {
        (entry.ebx, entry.ecx) = (entry.ebx.min(size), size);
    }
}
