//! A vCPU.
#![allow(unsafe_code)] // The page shared with the kernel.

use std::fmt::Write;
use std::sync::Arc;

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_EXIT_ARM_NISV, KVM_EXIT_MMIO, KVM_EXIT_SYSTEM_EVENT,
    kvm_vcpu_init,
};
use skep_hypervisor::aarch64::{BootState, Features, Io, SystemRegister, VcpuIdentity, VcpuState, registers};
use skep_hypervisor::{Aarch64, Exit, ExitCounts, Kick, Vcpu, VcpuError};

use super::clock::Clock;
use super::{ioctl, register};
use crate::NAME;
use crate::vcpu::{Core, Entered};

/// A vCPU on KVM. WFI, PSCI and the timers are KVM's: [`Vcpu::run`] returns for what they mean to the machine.
///
/// An access is under way only inside [`Vcpu::run`], which enters guest code after each: KVM then completes it, even where a kick keeps it
/// from running any. So there is none to finish before state is taken.
pub(super) struct KvmVcpu {
    pub(super) core: Core,
    init: kvm_vcpu_init,
    pub(super) features: Features,
    /// Its affinity, where it is not the one that KVM gives by itself.
    affinity: Option<u64>,
    pub(super) clock: Arc<Clock>,
}

/// What KVM is told to make a vCPU of.
pub(super) fn init(target: u32, index: u32, features: Features) -> kvm_vcpu_init {
    let wanted = [
        (KVM_ARM_VCPU_PSCI_0_2, true),
        // PSCI's CPU_ON starts all but the first.
        (KVM_ARM_VCPU_POWER_OFF, index > 0),
        (KVM_ARM_VCPU_SVE, features.sve),
        (KVM_ARM_VCPU_PTRAUTH_ADDRESS, features.pointer_authentication),
        (KVM_ARM_VCPU_PTRAUTH_GENERIC, features.pointer_authentication),
        (KVM_ARM_VCPU_PMU_V3, features.pmu),
    ];
    let bits = wanted.into_iter().filter(|(_, on)| *on).fold(0, |bits, (bit, _)| bits | 1 << bit);
    let mut init = kvm_vcpu_init { target, ..Default::default() };
    init.features[0] = bits;
    init
}

impl KvmVcpu {
    /// A vCPU that has been initialised by `init`.
    pub(super) fn new(
        core: Core,
        init: kvm_vcpu_init,
        features: Features,
        affinity: Option<u64>,
        clock: Arc<Clock>,
    ) -> Self {
        Self { core, init, features, affinity, clock }
    }

    /// Sets its affinity after a reset.
    pub(super) fn set_affinity(&self) -> Result<(), VcpuError> {
        /// MPIDR_EL1's RES1 bit.
        const RES1: u64 = 1 << 31;
        let Some(affinity) = self.affinity else { return Ok(()) };
        let id = register::id(registers::MPIDR_EL1);
        self.set(id, RES1 | affinity)?;
        match self.get(id)? & !RES1 {
            now if now == affinity => Ok(()),
            now => Err(self.core.misfit("MPIDR_EL1", format!("it stays {now:#x}"))),
        }
    }

    pub(super) fn get(&self, id: u64) -> Result<u64, VcpuError> {
        ioctl::register(&self.core.fd, id).map_err(|e| self.core.call_failed(format!("read KVM's register {id:#x}"), e))
    }

    pub(super) fn set(&self, id: u64, value: u64) -> Result<(), VcpuError> {
        let failed = |e| self.core.call_failed(format!("write {value:#x} to KVM's register {id:#x}"), e);
        ioctl::set_register(&self.core.fd, id, value).map_err(failed)
    }

    /// The registers as they are after power-on.
    pub(super) fn power_on(&self) -> Result<(), VcpuError> {
        self.core.fd.vcpu_init(&self.init).map_err(self.core.failed("reset it"))?;
        // A kernel that keeps these across a reset was seen (6.1).
        [register::SP_EL1, register::ELR_EL1, register::spsr(0)].into_iter().try_for_each(|id| self.set(id, 0))?;
        self.set_affinity()
    }

    /// An access to no RAM by an instruction that the CPU does not describe, so KVM can't tell what it wants.
    fn undescribed(&mut self) -> VcpuError {
        // SAFETY: the exit's reason says that this variant is the one.
        let access = unsafe { (*self.core.page()).__bindgen_anon_1.arm_nisv };
        let meaning = format!(
            "the guest accesses {:#x}, where no RAM is, by an instruction that the CPU does not describe to KVM (syndrome {:#x}): a \
             pair, a SIMD register, write-back or a cache operation. It has probably jumped or written to the wrong place; \
             a driver must access registers by plain loads and stores",
            access.fault_ipa, access.esr_iss
        );
        let (vcpu, backend, registers) = (self.core.index(), NAME, self.dump());
        let rip = self.get(register::PC).unwrap_or_default();
        VcpuError::Emulation { vcpu, backend, rip, bytes: Vec::new(), meaning, registers }
    }
}

impl Vcpu<Aarch64> for KvmVcpu {
    fn index(&self) -> u32 {
        self.core.index()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.core.kicker()
    }

    fn run(&mut self, io: &mut (dyn Io + 'static)) -> Result<Exit, VcpuError> {
        let _running = self.core.running();
        loop {
            match self.core.enter(io)? {
                Entered::Again => {}
                Entered::Kicked => return Ok(Exit::Kicked),
                Entered::Exit(KVM_EXIT_MMIO) => self.core.memory_access(io),
                Entered::Exit(KVM_EXIT_ARM_NISV) => return Err(self.undescribed()),
                Entered::Exit(reason) => {
                    if reason == KVM_EXIT_SYSTEM_EVENT
                        && let Some(exit) = self.core.system_event()
                    {
                        return Ok(exit);
                    }
                    let (pc, registers) = (self.get(register::PC).unwrap_or_default(), self.dump());
                    return Err(self.core.failure(reason, pc, registers));
                }
            }
        }
    }

    fn boot(&mut self, state: &BootState) -> Result<(), VcpuError> {
        self.set(register::PC, state.pc)?;
        // At power-on they are zero.
        let given = state.x.iter().enumerate().filter(|(_, value)| **value != 0);
        given.into_iter().try_for_each(|(n, value)| self.set(register::x(n), *value))
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        self.power_on()
    }

    fn save(&mut self, _io: &mut (dyn Io + 'static)) -> Result<VcpuState, VcpuError> {
        self.save_state()
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        self.restore_state(state)
    }

    fn identity(&mut self) -> Result<VcpuIdentity, VcpuError> {
        self.read_identity()
    }

    fn adopt(&mut self, identity: &VcpuIdentity) -> Result<(), VcpuError> {
        self.adopt_identity(identity)
    }

    fn exits(&self) -> ExitCounts {
        self.core.exits
    }

    fn dump(&mut self) -> String {
        const SHOWN: [(&str, SystemRegister); 9] = [
            ("SCTLR_EL1", registers::SCTLR_EL1),
            ("TCR_EL1", registers::TCR_EL1),
            ("TTBR0_EL1", registers::TTBR0_EL1),
            ("TTBR1_EL1", registers::TTBR1_EL1),
            ("VBAR_EL1", registers::VBAR_EL1),
            ("ESR_EL1", registers::ESR_EL1),
            ("FAR_EL1", registers::FAR_EL1),
            ("TPIDR_EL1", registers::TPIDR_EL1),
            ("MPIDR_EL1", registers::MPIDR_EL1),
        ];
        let general = (0..31).map(|n| (format!("X{n}"), register::x(n)));
        let special = [
            ("SP_EL0", register::SP_EL0),
            ("SP_EL1", register::SP_EL1),
            ("PC", register::PC),
            ("PSTATE", register::PSTATE),
            ("ELR_EL1", register::ELR_EL1),
            ("SPSR_EL1", register::spsr(0)),
        ];
        let system = SHOWN.map(|(name, register)| (name, register::id(register)));
        let named = special.into_iter().chain(system).map(|(name, id)| (name.to_owned(), id));
        let mut text = String::new();
        for (number, (name, id)) in general.chain(named).enumerate() {
            let value = self.get(id).map_or_else(|_| "?".to_owned(), |value| format!("{value:016x}"));
            let end = if number % 4 == 3 { '\n' } else { ' ' };
            // Writing to a String does not fail.
            let _ = write!(text, "{name:>9} {value:16}{end}");
        }
        text
    }
}
