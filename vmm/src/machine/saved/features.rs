//! Which CPU features a guest was shown, by name (SDM volume 2A, CPUID; APM volume 3, appendix E; KVM's own leaves).

use skep_hypervisor::x86_64::{Cpuid, CpuidEntry};

#[cfg(test)]
#[path = "features_test.rs"]
mod test;

/// A register of CPUID whose bits are features.
struct Word {
    leaf: u32,
    subleaf: u32,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    register: usize,
    /// Names by bit; a bit without one is told by its place.
    names: &'static [(u8, &'static str)],
}

const WORDS: [Word; 12] = [
    Word {
        leaf: 1,
        subleaf: 0,
        register: 2,
        names: &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (3, "monitor"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cmpxchg16b"),
            (17, "pcid"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: 3,
        names: &[
            (0, "fpu"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (8, "cmpxchg8b"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (15, "cmov"),
            (16, "pat"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (28, "ht"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: 1,
        names: &[
            (0, "fsgsbase"),
            (1, "tsc-adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: 2,
        names: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512vbmi2"),
            (7, "cet-ss"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: 3,
        names: &[
            (4, "fsrm"),
            (10, "md-clear"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (22, "amx-bf16"),
            (23, "avx512fp16"),
            (24, "amx-tile"),
            (25, "amx-int8"),
            (26, "spec-ctrl"),
            (27, "stibp"),
            (28, "flush-l1d"),
            (29, "arch-capabilities"),
            (31, "ssbd"),
        ],
    },
    Word { leaf: 7, subleaf: 1, register: 0, names: &[(4, "avx-vnni"), (5, "avx512bf16"), (23, "avx-ifma")] },
    Word {
        leaf: 0xd,
        subleaf: 0,
        register: 0,
        names: &[(1, "xsave-sse"), (2, "xsave-avx"), (3, "xsave-mpx"), (5, "xsave-avx512"), (9, "xsave-pku")],
    },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: 0,
        names: &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: 2,
        names: &[
            (0, "lahf64"),
            (2, "svm"),
            (4, "cr8-legacy"),
            (5, "lzcnt"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (16, "fma4"),
            (22, "topoext"),
        ],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: 3,
        names: &[
            (11, "syscall"),
            (20, "nx"),
            (22, "mmxext"),
            (25, "fxsr-opt"),
            (26, "1gb-pages"),
            (27, "rdtscp"),
            (29, "long-mode"),
        ],
    },
    Word {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: 1,
        names: &[
            (0, "clzero"),
            (9, "wbnoinvd"),
            (12, "amd-ibpb"),
            (14, "amd-ibrs"),
            (15, "amd-stibp"),
            (24, "amd-ssbd"),
        ],
    },
    Word {
        leaf: 0x4000_0001,
        subleaf: 0,
        register: 0,
        names: &[
            (0, "kvmclock-old"),
            (3, "kvmclock"),
            (4, "kvm-async-pf"),
            (5, "kvm-steal-time"),
            (6, "kvm-pv-eoi"),
            (7, "kvm-pv-unhalt"),
            (9, "kvm-tlb-flush"),
            (11, "kvm-pv-ipi"),
            (12, "kvm-poll-control"),
            (13, "kvm-sched-yield"),
            (14, "kvm-async-pf-int"),
            (15, "kvm-msi-ext-dest-id"),
            (24, "kvmclock-stable"),
        ],
    },
];

fn registers(entry: Option<&CpuidEntry>) -> [u32; 4] {
    entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// Refuses a host that does not have what the guest was shown: its vendor, and each feature, by name.
pub(super) fn compare(saved: &Cpuid, here: &Cpuid) -> Result<(), String> {
    let vendor = |cpuid: &Cpuid| {
        let [_, b, c, d] = registers(cpuid.get(0, 0));
        String::from_utf8_lossy(&[b, d, c].map(u32::to_le_bytes).concat()).into_owned()
    };
    let vendors = (vendor(saved), vendor(here));
    if vendors.0 != vendors.1 {
        return Err(format!("the guest was shown one of `{}`, and this is one of `{}`", vendors.0, vendors.1));
    }
    let mut lacking = Vec::new();
    for word in &WORDS {
        let bits = |cpuid: &Cpuid| registers(cpuid.get(word.leaf, word.subleaf))[word.register];
        let missing = bits(saved) & !bits(here);
        for bit in (0..32).filter(|bit| missing >> bit & 1 == 1) {
            let name = word.names.iter().find(|(known, _)| *known == bit).map(|(_, name)| (*name).to_owned());
            lacking.push(name.unwrap_or_else(|| {
                let register = ["eax", "ebx", "ecx", "edx"][word.register];
                format!("cpuid {:#x}.{}:{register} bit {bit}", word.leaf, word.subleaf)
            }));
        }
    }
    match lacking.as_slice() {
        [] => Ok(()),
        names => Err(format!("the guest was shown what it does not have: {}", names.join(", "))),
    }
}
