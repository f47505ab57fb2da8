//! The names of CPU features, by the registers of CPUID that they are bits of.

/// A register of CPUID whose bits are features: leaf, subleaf, the register (0 to 3: EAX, EBX, ECX, EDX), and names from bit 0 on, `-` for none.
pub(super) type Word = (u32, u32, usize, &'static str);

pub(super) const WORDS: [Word; 29] = [
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
    (
        7,
        1,
        0,
        "sha512 sm3 sm4 - avx-vnni avx512bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 hreset avx-ifma \
         - - lam - - - - movrs",
    ),
    (7, 1, 1, "ppin"),
    (7, 1, 2, "- - - - - msr-imm"),
    (
        7,
        1,
        3,
        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchi user-msr - - cet-sss avx10 - apx",
    ),
    (7, 2, 0, "-"),
    (7, 2, 1, "-"),
    (7, 2, 2, "-"),
    (7, 2, 3, "psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no - monitor-mitg-no"),
    (
        0xd,
        0,
        0,
        "xsave-x87 xsave-sse xsave-avx xsave-mpx xsave-mpx-config xsave-avx512 xsave-zmm xsave-zmm16 - xsave-pku \
         - - - - - - - xsave-tile-config xsave-tile-data xsave-apx",
    ),
    (0xd, 0, 3, "-"),
    (0xd, 1, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (0xd, 1, 2, "- - - - - - - - xss-pt - xss-pasid xss-cet-user xss-cet-supervisor xss-hdc xss-uintr xss-lbr xss-hwp"),
    (0xd, 1, 3, "-"),
    // The version of AVX10 (bits 7:0) is a figure.
    (0x24, 0, 1, "- - - - - - - - - - - - - - - - avx10-128 avx10-256 avx10-512"),
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
    (0x8000_0007, 0, 3, "- - - - - - - - invariant-tsc"),
    (
        0x8000_0008,
        0,
        1,
        "clzero - xsave-error-pointer - - - - - - wbnoinvd - - amd-ibpb - amd-ibrs amd-stibp - amd-stibp-always - - - - - - amd-ssbd \
         amd-virt-ssbd amd-ssb-no - amd-psfd amd-btc-no amd-ibpb-ret",
    ),
    (0x8000_001a, 0, 0, "fp128 movu fp256"),
    (
        0x8000_0021,
        0,
        0,
        "no-nested-data-bp fs-gs-base-ns lfence-serializing - - verw-clear null-selector-clears-base - auto-ibrs no-smm-ctl-msr \
         - - - - - - - cpuid-user-disable - - amd-prefetchi - - - eraps - - sbpb ibpb-brtype srso-no srso-user-kernel-no srso-bp-reduce",
    ),
    (0x8000_0021, 0, 2, "- tsa-sq-no tsa-l1-no"),
    (0xc000_0001, 0, 3, "-"),
    (
        0x4000_0001,
        0,
        0,
        "kvmclock-old - - kvmclock kvm-async-pf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-tlb-flush kvm-async-pf-vmexit kvm-pv-ipi \
         kvm-poll-control kvm-sched-yield kvm-async-pf-int kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable",
    ),
    (0x4000_0001, 0, 3, "kvm-realtime"),
];

/// The bits of a register that are features, each by itself.
pub(super) const fn features((leaf, ..): Word) -> u32 {
    if leaf == 0x24 { 0xffff_ff00 } else { u32::MAX }
}

/// A value for each of [`WORDS`].
pub(super) type Bits = [u32; WORDS.len()];

/// A field of CPUID that a guest may rely on up to its value: its name in a list, what it is, leaf, register, the lowest bit (a field has 8 bits).
pub(super) type Figure = (&'static str, &'static str, u32, usize, u32);

/// What a guest is told of how far something goes.
pub(super) const FIGURES: [Figure; 4] = [
    ("phys-bits", "bits of physical addresses", 0x8000_0008, 0, 0),
    ("linear-bits", "bits of linear addresses", 0x8000_0008, 0, 8),
    // 0 where they are those of physical addresses.
    ("guest-phys-bits", "bits of physical addresses that can be mapped", 0x8000_0008, 0, 16),
    ("avx10-version", "as the version of AVX10", 0x24, 1, 0),
];
