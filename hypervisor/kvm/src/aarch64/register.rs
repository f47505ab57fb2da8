//! KVM's names for a vCPU's registers (Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG), and what each is to skep.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_REG_ARM_COPROC_MASK, KVM_REG_ARM_CORE, KVM_REG_ARM_DEMUX, KVM_REG_ARM_FW, KVM_REG_ARM_FW_FEAT_BMAP,
    KVM_REG_ARM64, KVM_REG_ARM64_SVE, KVM_REG_ARM64_SVE_FFR_BASE, KVM_REG_ARM64_SVE_PREG_BASE, KVM_REG_ARM64_SYSREG,
    KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128, KVM_REG_SIZE_U256, KVM_REG_SIZE_U512, KVM_REG_SIZE_U2048,
    kvm_regs, user_fpsimd_state, user_pt_regs,
};
use skep_hypervisor::aarch64::{SystemRegister, registers};

const fn core(offset: usize, size: u64) -> u64 {
    KVM_REG_ARM64 | size | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

const fn general(offset: usize) -> u64 {
    core(offset_of!(kvm_regs, regs) + offset, KVM_REG_SIZE_U64)
}

const fn floating(offset: usize, size: u64) -> u64 {
    core(offset_of!(kvm_regs, fp_regs) + offset, size)
}

pub(super) const SP_EL0: u64 = general(offset_of!(user_pt_regs, sp));
pub(super) const PC: u64 = general(offset_of!(user_pt_regs, pc));
pub(super) const PSTATE: u64 = general(offset_of!(user_pt_regs, pstate));
pub(super) const SP_EL1: u64 = core(offset_of!(kvm_regs, sp_el1), KVM_REG_SIZE_U64);
pub(super) const ELR_EL1: u64 = core(offset_of!(kvm_regs, elr_el1), KVM_REG_SIZE_U64);
pub(super) const FPSR: u64 = floating(offset_of!(user_fpsimd_state, fpsr), KVM_REG_SIZE_U32);
pub(super) const FPCR: u64 = floating(offset_of!(user_fpsimd_state, fpcr), KVM_REG_SIZE_U32);

/// X0 to X30.
pub(super) const fn x(n: usize) -> u64 {
    general(offset_of!(user_pt_regs, regs) + 8 * n)
}

/// SPSR_EL1, SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq.
pub(super) const fn spsr(n: usize) -> u64 {
    core(offset_of!(kvm_regs, spsr) + 8 * n, KVM_REG_SIZE_U64)
}

/// V0 to V31, of a vCPU without SVE.
pub(super) const fn v(n: usize) -> u64 {
    floating(offset_of!(user_fpsimd_state, vregs) + 16 * n, KVM_REG_SIZE_U128)
}

const SVE: u64 = KVM_REG_ARM64 | KVM_REG_ARM64_SVE as u64;

/// Z0 to Z31, of a vCPU with SVE: 2048 bits, whatever the vector length.
pub(super) const fn z(n: usize) -> u64 {
    SVE | KVM_REG_SIZE_U2048 | (n as u64) << 5
}

/// P0 to P15: 256 bits.
pub(super) const fn p(n: usize) -> u64 {
    SVE | KVM_REG_SIZE_U256 | KVM_REG_ARM64_SVE_PREG_BASE as u64 | (n as u64) << 5
}

/// FFR: 256 bits.
pub(super) const FFR: u64 = SVE | KVM_REG_SIZE_U256 | KVM_REG_ARM64_SVE_FFR_BASE as u64;
/// The vector lengths that the vCPU has: 512 bits, the first for 128 bits, the second for 256, and so on.
pub(super) const SVE_LENGTHS: u64 = SVE | KVM_REG_SIZE_U512 | 0xffff;

const fn system(register: SystemRegister) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | register.0 as u64
}

const CNTVCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 2);
const CNTPCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 1);

/// The virtual counter. KVM has exchanged its name with that of CNTV_CVAL_EL0.
pub(super) const COUNTER: u64 = system(registers::CNTV_CVAL_EL0);
const TIMER_VALUE: u64 = system(CNTVCT_EL0);

/// The registers PMCNTENCLR_EL0, PMINTENCLR_EL1 and PMOVSCLR_EL0 show what their SET counterparts show.
pub(super) const PMU_CLEAR: [SystemRegister; 3] =
    [SystemRegister::new(3, 3, 9, 12, 2), SystemRegister::new(3, 0, 9, 14, 2), SystemRegister::new(3, 3, 9, 12, 3)];

/// What a register of KVM's list is to skep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// One of those that are always there.
    Core,
    /// SVE's.
    Sve,
    /// A counter, which runs on.
    Counter,
    /// A system register.
    System(SystemRegister),
    /// A value of the CPU's or the firmware's that has a name only. Its size follows from KVM's.
    Named(String),
    /// Nothing that is known.
    Unknown,
}

/// What the register `id` is.
pub(super) fn kind(id: u64) -> Kind {
    let number = id & 0xffff;
    match u32::try_from(id & u64::from(KVM_REG_ARM_COPROC_MASK)).unwrap_or_default() {
        KVM_REG_ARM_CORE => Kind::Core,
        KVM_REG_ARM64_SVE => Kind::Sve,
        KVM_REG_ARM64_SYSREG if id == COUNTER || id == system(CNTPCT_EL0) => Kind::Counter,
        KVM_REG_ARM64_SYSREG if id == TIMER_VALUE => Kind::System(registers::CNTV_CVAL_EL0),
        KVM_REG_ARM64_SYSREG => Kind::System(SystemRegister(number as u16)),
        KVM_REG_ARM_DEMUX => Kind::Named(format!("ccsidr-{number}")),
        KVM_REG_ARM_FW => Kind::Named(match number {
            0 => "psci".to_owned(),
            n @ 1..=3 => format!("smccc-arch-workaround-{n}"),
            n => format!("kvm-firmware-{n}"),
        }),
        KVM_REG_ARM_FW_FEAT_BMAP => Kind::Named(match number {
            0 => "smccc-standard-services".to_owned(),
            1 => "smccc-standard-hypervisor-services".to_owned(),
            2 => "smccc-vendor-hypervisor-services".to_owned(),
            n => format!("kvm-services-{n}"),
        }),
        _ => Kind::Unknown,
    }
}

/// KVM's name for a system register.
pub(super) fn id(register: SystemRegister) -> u64 {
    if register == registers::CNTV_CVAL_EL0 { TIMER_VALUE } else { system(register) }
}
