//! Saving, restoring and resetting a vCPU.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_XSAVE2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_xcr, kvm_xcrs,
};
use skep_hypervisor::x86_64::{Cpuid, LocalApic, VcpuState, XsaveComponent, is_same_frequency};
use skep_hypervisor::{HypervisorError, VcpuError};
use skep_memory::Region;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};

use super::vcpu::X86Vcpu;
use super::vm::{Shared, capability, enable};
use super::xsave::Layout;
use super::{convert, events, ioctl, msrs};
use crate::vcpu::Core;

/// The size of the area that every KVM gives, in bytes.
const XSAVE_SIZE: usize = 4096;

/// What saving and restoring need to know of the host, asked for when it is first done.
pub(super) struct Support {
    /// The MSRs there are, in the order in which they are written.
    msrs: Vec<u32>,
    xsave: Layout,
    /// XCR0's bits.
    xcr0: u64,
    /// TSC offsets can be read and set, and stay: on a host whose TSC is not stable KVM changes them as it likes.
    tsc_offsets: bool,
    triple_faults: bool,
}

impl Support {
    pub(super) fn new(shared: &Shared, vcpu: &kvm_ioctls::VcpuFd) -> Result<Self, HypervisorError> {
        let vm = &shared.vm;
        // From here on exceptions show their payload apart from the register that it will go to.
        enable(vm, KVM_CAP_EXCEPTION_PAYLOAD, 1).map_err(|e| HypervisorError::call("see payloads of exceptions", e))?;
        let cpuid = &shared.capabilities.arch.cpuid;
        let size = (capability(vm, KVM_CAP_XSAVE2) as usize).max(XSAVE_SIZE);
        Ok(Self {
            msrs: msrs::of_host(&shared.kvm.system, vcpu)?,
            xsave: Layout::new(cpuid, size),
            xcr0: xcr0(cpuid),
            tsc_offsets: matches!((ioctl::tsc_offset(vcpu), ioctl::tsc_offset(vcpu)), (Ok(a), Ok(b)) if a == b),
            triple_faults: enable(vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1).is_ok(),
        })
    }
}

fn xcr0(cpuid: &Cpuid) -> u64 {
    cpuid.get(0xd, 0).map_or(1, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax))
}

/// A local APIC's registers, one every 16 bytes.
fn apic_registers(page: &kvm_lapic_state) -> Vec<u32> {
    let registers =
        page.regs.chunks_exact(16).map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]].map(|b| b as u8)));
    registers.collect()
}

fn apic_page(registers: &[u32]) -> kvm_lapic_state {
    let mut page = kvm_lapic_state::default();
    for (at, register) in page.regs.chunks_exact_mut(16).zip(registers) {
        for (at, byte) in at.iter_mut().zip(register.to_le_bytes()) {
            *at = byte as libc::c_char;
        }
    }
    page
}

/// The whole state. No access is under way: `run` returns only after KVM has completed the last one.
pub(super) fn save(vcpu: &mut X86Vcpu) -> Result<VcpuState, VcpuError> {
    let shared = vcpu.shared.clone();
    let support = support(&shared, &vcpu.core)?;
    let tsc = read_tsc(vcpu, support)?;
    let core = &vcpu.core;
    // First: it takes in an INIT or SIPI that waits, which changes the rest.
    let mp = core.fd.get_mp_state().map_err(core.failed("read whether it runs"))?.mp_state;
    let mp =
        events::mp_from_kvm(mp).ok_or_else(|| core.misfit("running state", format!("KVM's {mp} is none of x86's")))?;
    let events = core.fd.get_vcpu_events().map_err(core.failed("read pending events"))?;
    let regs = core.fd.get_regs().map_err(core.failed("read general registers"))?;
    let sregs = core.fd.get_sregs().map_err(core.failed("read segments and control registers"))?;
    let debug = core.fd.get_debug_regs().map_err(core.failed("read debug registers"))?;
    let apic = core.fd.get_lapic().map_err(core.failed("read the local APIC"))?;
    let mut msrs = msrs::read(core, &support.msrs)?;
    // An MSR that is left out is 0.
    msrs.retain(|(_, value)| *value != 0);
    Ok(VcpuState {
        general: convert::general(&regs),
        system: convert::system(&sregs),
        debug: [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7],
        xcr0: read_xcr0(vcpu)?,
        xsave: read_xsave(vcpu, support)?,
        msrs,
        tsc,
        tsc_khz: core.fd.get_tsc_khz().ok(),
        apic: LocalApic {
            registers: apic_registers(&apic),
            base: sregs.apic_base,
            tsc_deadline: read_msr(vcpu, msrs::TSC_DEADLINE)?,
        },
        events: events::from_kvm(&events),
        mp,
    })
}

/// Takes a state on. What does not fit is found before anything is changed, as far as KVM tells it without trying.
pub(super) fn restore(vcpu: &mut X86Vcpu, state: &VcpuState) -> Result<(), VcpuError> {
    let shared = vcpu.shared.clone();
    let support = support(&shared, &vcpu.core)?;
    let area = check(vcpu, support, state)?;
    let rescaled = check_frequency(vcpu, &shared, state)?;

    let core = &vcpu.core;
    // An INIT or SIPI that waits is taken in now rather than later.
    core.fd.get_mp_state().map_err(core.failed("read whether it runs"))?;
    if let Some(khz) = rescaled {
        core.fd.set_tsc_khz(khz).map_err(core.failed("set the TSC's frequency"))?;
    }
    // The APIC's mode, in its base, comes before its registers; CR4 and EFER before the MSRs.
    let sregs = convert::to_sregs(&state.system, state.apic.base);
    core.fd.set_sregs(&sregs).map_err(core.failed("set segments and control registers"))?;
    core.fd.set_regs(&convert::to_regs(&state.general)).map_err(core.failed("set general registers"))?;
    if support.xcr0 != 1 {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.xcr0, ..Default::default() };
        core.fd.set_xcrs(&xcrs).map_err(core.failed("set XCR0"))?;
    }
    ioctl::set_xsave(&core.fd, &area).map_err(core.failed("set the extended state"))?;
    vcpu.tsc_scaled |= rescaled.is_some();
    write_tsc(vcpu, support, state.tsc)?;
    let core = &vcpu.core;
    let value = |index: &u32| state.msrs.iter().find(|(number, _)| number == index).map_or(0, |(_, value)| *value);
    let values: Vec<_> = support.msrs.iter().map(|index| (*index, value(index))).collect();
    // KVM writes the time of the guest's boot anew when it is told where; the guest's memory is to stay what it is.
    let boot_time = BootTime::read(&shared, value(&msrs::WALL_CLOCK));
    msrs::write(core, &values)?;
    boot_time.write();
    core.fd.set_lapic(&apic_page(&state.apic.registers)).map_err(core.failed("set the local APIC"))?;
    // Only after the APIC, whose timer's mode says whether there is a deadline, and after the TSC.
    msrs::write(core, &[(msrs::TSC_DEADLINE, state.apic.tsc_deadline)])?;
    let [d0, d1, d2, d3, dr6, dr7] = state.debug;
    let debug = kvm_debugregs { db: [d0, d1, d2, d3], dr6, dr7, ..Default::default() };
    core.fd.set_debug_regs(&debug).map_err(core.failed("set debug registers"))?;
    let pending = events::to_kvm(&state.events, support.triple_faults);
    core.fd.set_vcpu_events(&pending).map_err(core.failed("set pending events"))?;
    let mp = kvm_mp_state { mp_state: events::mp_to_kvm(state.mp) };
    core.fd.set_mp_state(mp).map_err(core.failed("set whether it runs"))?;
    vcpu.forget_run();
    Ok(())
}

/// The power-on state, in place: that of a vCPU which was never run, taken from one of the same configuration, with the TSC at 0.
pub(super) fn reset(vcpu: &mut X86Vcpu) -> Result<(), VcpuError> {
    if vcpu.power_on.is_none() {
        let what = |error: HypervisorError| {
            vcpu.core.call_failed("make a vCPU in its power-on state", std::io::Error::other(error))
        };
        let mut fresh = vcpu
            .shared
            .spare()
            .and_then(|spare| X86Vcpu::new(&spare, vcpu.core.index(), &vcpu.config))
            .map_err(what)?;
        vcpu.power_on = Some(Box::new(VcpuState { tsc: 0, ..save(&mut fresh)? }));
    }
    let power_on = vcpu.power_on.take().expect("it was just made");
    let result = restore(vcpu, &power_on);
    vcpu.power_on = Some(power_on);
    result
}

/// What kvmclock tells the guest of the time of its boot: 12 bytes of guest memory (Documentation/virt/kvm/x86/msr.rst).
struct BootTime(Option<(Arc<Region>, u64, [u8; 12])>);

impl BootTime {
    fn read(shared: &Shared, gpa: u64) -> Self {
        let read = |(region, offset): (Arc<Region>, u64)| {
            let mut bytes = [0; 12];
            region.read_slice(&mut bytes, MemoryRegionAddress(offset)).ok()?;
            Some((region, offset, bytes))
        };
        // A guest without kvmclock has 0 there.
        Self((gpa != 0).then(|| shared.slots.find(gpa)).flatten().and_then(read))
    }

    fn write(&self) {
        if let Some((region, offset, bytes)) = &self.0 {
            // It could be read.
            let _ = region.write_slice(bytes, MemoryRegionAddress(*offset));
        }
    }
}

/// Refuses what this host's KVM has no place for; the answer is the XSAVE area.
fn check(vcpu: &X86Vcpu, support: &Support, state: &VcpuState) -> Result<Vec<u8>, VcpuError> {
    let core = &vcpu.core;
    let foreign = state.xcr0 & !support.xcr0;
    if foreign != 0 {
        return Err(core.misfit("XCR0", format!("its bits {foreign:#x} are not of this host's CPU")));
    }
    if let Some((index, value)) = state.msrs.iter().find(|(index, value)| *value != 0 && !support.msrs.contains(index))
    {
        return Err(
            core.misfit(msrs::name(*index), format!("it holds {value:#x}, and this host's KVM does not have it"))
        );
    }
    support
        .xsave
        .join(&state.xsave)
        .map_err(|misfit| core.misfit(format!("XSAVE component {}", misfit.component), misfit.reason))
}

/// The frequency that the TSC must be set to, where it differs from this vCPU's.
fn check_frequency(vcpu: &X86Vcpu, shared: &Shared, state: &VcpuState) -> Result<Option<u32>, VcpuError> {
    match (state.tsc_khz, vcpu.core.fd.get_tsc_khz().ok()) {
        (Some(saved), Some(here)) if !is_same_frequency(saved, here) => {
            if shared.capabilities.arch.tsc_scaling {
                return Ok(Some(saved));
            }
            let reason = format!("it was {saved} kHz, and is {here} kHz on this host, which can't scale it");
            Err(vcpu.core.misfit("TSC frequency", reason))
        }
        _ => Ok(None),
    }
}

fn read_msr(vcpu: &X86Vcpu, index: u32) -> Result<u64, VcpuError> {
    Ok(msrs::read(&vcpu.core, &[index])?.first().map_or(0, |(_, value)| *value))
}

fn read_xcr0(vcpu: &X86Vcpu) -> Result<u64, VcpuError> {
    let xcrs = vcpu.core.fd.get_xcrs().map_err(vcpu.core.failed("read XCR0"))?;
    let xcr0 = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0);
    // A host without XSAVE has x87 and SSE, always on.
    Ok(xcr0.map_or(1, |xcr| xcr.value))
}

fn read_xsave(vcpu: &X86Vcpu, support: &Support) -> Result<Vec<XsaveComponent>, VcpuError> {
    let mut area = vec![0; support.xsave.size()];
    ioctl::xsave(&vcpu.core.fd, &mut area).map_err(vcpu.core.failed("read the extended state"))?;
    Ok(support.xsave.split(&area))
}

/// Once known it stands until a vCPU runs, or the machine is saved anew. It is known by its offset from the host's at one moment for all vCPUs, or, where that can't be had, as
/// it reads now.
fn read_tsc(vcpu: &mut X86Vcpu, support: &Support) -> Result<u64, VcpuError> {
    let moment = vcpu.shared.standstill.moment();
    let tsc = match vcpu.tsc_at_rest {
        Some((known_at, tsc)) if known_at == moment => tsc,
        _ if support.tsc_offsets && !vcpu.tsc_scaled => {
            let offset = ioctl::tsc_offset(&vcpu.core.fd).map_err(vcpu.core.failed("read the TSC's offset"))?;
            moment.wrapping_add(offset)
        }
        _ => read_msr(vcpu, msrs::TSC)?,
    };
    vcpu.tsc_at_rest = Some((moment, tsc));
    Ok(tsc)
}

fn write_tsc(vcpu: &mut X86Vcpu, support: &Support, tsc: u64) -> Result<(), VcpuError> {
    let moment = vcpu.shared.standstill.moment();
    vcpu.tsc_at_rest = Some((moment, tsc));
    let core = &vcpu.core;
    if !support.tsc_offsets || vcpu.tsc_scaled {
        // KVM takes writes of several vCPUs that come close together for one, and keeps their counters in step.
        return msrs::write(core, &[(msrs::TSC, tsc)]);
    }
    let (what, offset) = ("set the TSC's offset", tsc.wrapping_sub(moment));
    ioctl::set_tsc_offset(&core.fd, offset).map_err(core.failed(what))?;
    // A KVM without hardware virtualization answers well and does nothing.
    if ioctl::tsc_offset(&core.fd).map_err(core.failed(what))? != offset {
        vcpu.shared.tsc_told.call_once(|| {
            tracing::warn!("the guest sees the host's TSC, which jumps: this host's KVM can't offset it");
        });
    }
    Ok(())
}

fn support<'a>(shared: &'a Shared, core: &Core) -> Result<&'a Support, VcpuError> {
    let what = "find out what can be saved";
    shared.support(&core.fd).map_err(|e| core.call_failed(what, std::io::Error::other(e)))
}
