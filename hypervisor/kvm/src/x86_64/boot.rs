//! What firmware leaves on the bootstrap processor before an operating system runs: a direct boot has no firmware that did it.

use kvm_bindings::{Msrs, kvm_msr_entry};
use skep_hypervisor::VcpuError;
use skep_hypervisor::x86_64::BootState;

use super::convert;
use super::vcpu::X86Vcpu;

/// IA32_APIC_BASE of the bootstrap processor at power-on: enabled, at its usual place (SDM 3A section 11.4.4).
const APIC_BASE: u64 = 0xfee0_0900;
/// IA32_MTRR_DEF_TYPE: MTRRs on, and all memory write-back (SDM 3A section 12.11.2.1). Without them Linux uses no PAT.
const MTRR_DEF_TYPE: kvm_msr_entry = kvm_msr_entry { index: 0x2ff, reserved: 0, data: 0x806 };

/// Virtual wire mode (MultiProcessor Specification 1.4, section 3.6.2.2): the PIC's INTR by LINT0, NMI by LINT1. By offset in the local APIC.
const VIRTUAL_WIRE: [(usize, u32); 3] = [
    // Spurious vector 15, APIC on: an APIC that is off masks what follows.
    (0xf0, 0x10f),
    // ExtINT.
    (0x350, 0x700),
    // NMI.
    (0x360, 0x400),
];

/// Sets the bootstrap processor, in its power-on state, to `state` as a boot protocol hands it over.
pub(super) fn boot(vcpu: &X86Vcpu, state: &BootState) -> Result<(), VcpuError> {
    let core = &vcpu.core;
    core.fd
        .set_sregs(&convert::to_sregs(&state.system, APIC_BASE))
        .map_err(core.failed("set segments and control registers"))?;
    core.fd.set_regs(&convert::to_regs(&state.general)).map_err(core.failed("set general registers"))?;
    let mut apic = core.fd.get_lapic().map_err(core.failed("read the local APIC"))?;
    for (offset, value) in VIRTUAL_WIRE {
        for (at, byte) in apic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
            *at = byte as libc::c_char;
        }
    }
    core.fd.set_lapic(&apic).map_err(core.failed("set the local APIC to virtual wire mode"))?;
    let msrs = Msrs::from_entries(&[MTRR_DEF_TYPE]).expect("one entry fits");
    match core.fd.set_msrs(&msrs) {
        // A CPU shown without MTRRs has nothing to set.
        Ok(_) => Ok(()),
        Err(e) => Err(core.call_failed("turn the MTRRs on", e)),
    }
}
