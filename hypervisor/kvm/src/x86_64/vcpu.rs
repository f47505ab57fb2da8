//! The vCPU: making it, and running guest code.
#![allow(unsafe_code)] // The page shared with the kernel.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state,
    kvm_msr_entry,
};
use skep_hypervisor::x86_64::{BootState, Io, VcpuConfig, VcpuState};
use skep_hypervisor::{Exit, ExitCounts, HypervisorError, Kick, Vcpu, VcpuError, X86_64};

use super::vm::Shared;
use super::{boot, convert, cpuid, msrs, state};
use crate::vcpu::{Core, Entered};

/// IA32_MISC_ENABLE at power-on: fast strings (which KVM leaves out, and Linux then does without), no branch trace store, no PEBS.
const MISC_ENABLE: kvm_msr_entry = kvm_msr_entry { index: 0x1a0, reserved: 0, data: 0x1801 };

/// A vCPU.
pub(super) struct X86Vcpu {
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) config: VcpuConfig,
    /// The PIC's INTR leads here.
    takes_external: bool,
    /// No access is under way and guest code stands between two instructions, so that an interrupt can be queued.
    between_instructions: bool,
    /// The TSC runs at another frequency than the host's.
    pub(super) tsc_scaled: bool,
    /// The TSC as it was last saved or restored, and the standstill's moment for which that holds.
    pub(super) tsc_at_rest: Option<(u64, u64)>,
    /// What a reset restores, once it is known.
    pub(super) power_on: Option<Box<VcpuState>>,
}

impl X86Vcpu {
    /// A vCPU in its power-on state.
    pub(super) fn new(shared: &Arc<Shared>, index: u32, config: &VcpuConfig) -> Result<Self, HypervisorError> {
        let core = Core::new(&shared.vm, &shared.slots, &shared.posted, index, config.apic_id.into())?;
        let failed = |what: &str, source| HypervisorError::call(format!("vCPU {index}: {what}"), source);
        let leaves = cpuid::to_kvm(&config.cpuid).map_err(|e| failed("CPUID has too many leaves", e))?;
        core.fd.set_cpuid2(&leaves).map_err(|e| failed("KVM refuses its CPUID", e.into()))?;
        let msrs = Msrs::from_entries(&[MISC_ENABLE]).expect("one entry fits");
        core.fd.set_msrs(&msrs).map_err(|e| failed("set IA32_MISC_ENABLE", e.into()))?;
        show_arch_capabilities(&core, config, shared.capabilities.arch.arch_capabilities)
            .map_err(|e| failed("show what its CPU has", io::Error::other(e)))?;
        Ok(Self {
            core,
            shared: shared.clone(),
            config: config.clone(),
            takes_external: config.apic_id == shared.boot_cpu,
            between_instructions: false,
            tsc_scaled: false,
            tsc_at_rest: None,
            power_on: None,
        })
    }

    pub(super) fn boxed(
        shared: &Arc<Shared>,
        index: u32,
        config: &VcpuConfig,
    ) -> Result<Box<dyn Vcpu<X86_64>>, HypervisorError> {
        Ok(Box::new(Self::new(shared, index, config)?))
    }

    /// Takes the PIC's interrupt where the guest can, or asks KVM to come back when it can.
    ///
    /// The vector is put among the vCPU's events, where it is part of its state, and not given by `KVM_INTERRUPT`: what that holds until the
    /// next entry can't be read back, so a save in between would lose it.
    fn external_interrupt(&mut self, io: &mut dyn Io) -> Result<(), VcpuError> {
        let page = self.core.page();
        let mut waits = io.external_interrupt();
        // SAFETY: fields of the page, which the kernel writes in `KVM_RUN` only.
        let ready = unsafe { (*page).ready_for_interrupt_injection } != 0;
        if waits && ready && self.between_instructions {
            if let Some(vector) = io.acknowledge_interrupt() {
                self.queue_interrupt(vector)?;
            }
            // One at a time: the next one waits for a window.
            waits = io.external_interrupt();
        }
        // SAFETY: as above.
        unsafe { (*page).request_interrupt_window = u8::from(waits) };
        Ok(())
    }

    fn queue_interrupt(&mut self, vector: u8) -> Result<(), VcpuError> {
        let core = &self.core;
        let mut events = core.fd.get_vcpu_events().map_err(core.failed("read pending events"))?;
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        events.flags = 0;
        core.fd.set_vcpu_events(&events).map_err(core.failed("queue an external interrupt"))?;
        // A CPU in HLT wakes: KVM would only look for what its own controllers hold.
        let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        core.fd.set_mp_state(running).map_err(core.failed("wake a halted vCPU"))?;
        self.between_instructions = false;
        Ok(())
    }

    /// What the page tells of the last run holds no longer: the state was set.
    pub(super) fn forget_run(&mut self) {
        self.between_instructions = false;
    }

    /// `KVM_EXIT_IO`: one access, or the units of a string instruction.
    fn port_access(&mut self, io: &mut dyn Io) {
        // SAFETY: the exit's reason says that this variant is the one.
        let access = unsafe { (*self.core.page()).__bindgen_anon_1.io };
        let (size, count) = (usize::from(access.size), access.count as usize);
        let is_read = u32::from(access.direction) == KVM_EXIT_IO_IN;
        let exits = &mut self.core.exits;
        *(if is_read { &mut exits.port_reads } else { &mut exits.port_writes }) += 1;
        let data = self.core.bytes(access.data_offset, size * count).expect("KVM's data lies in its page");
        for unit in data.chunks_exact_mut(size) {
            if is_read {
                io.port_read(access.port, unit);
            } else {
                io.port_write(access.port, unit);
            }
        }
    }

    /// `KVM_EXIT_X86_RDMSR` and `KVM_EXIT_X86_WRMSR`.
    fn msr_access(&mut self, io: &mut dyn Io, is_read: bool) {
        self.core.exits.register_accesses += 1;
        let page = self.core.page();
        // SAFETY: the exit's reason says that this variant is the one.
        let access = unsafe { (*page).__bindgen_anon_1.msr };
        let answer =
            if is_read { io.msr_read(access.index) } else { io.msr_write(access.index, access.data).map(|()| 0) };
        // SAFETY: as above; KVM reads the fields at the next entry.
        unsafe {
            (*page).__bindgen_anon_1.msr.error = u8::from(answer.is_err());
            (*page).__bindgen_anon_1.msr.data = answer.unwrap_or(0);
        }
    }

    /// `KVM_EXIT_IOAPIC_EOI`.
    fn end_of_interrupt(&mut self, io: &mut dyn Io) {
        self.core.exits.interrupt_ends += 1;
        // SAFETY: the exit's reason says that this variant is the one.
        io.end_of_interrupt(unsafe { (*self.core.page()).__bindgen_anon_1.eoi.vector });
    }

    fn failure(&mut self, reason: u32) -> VcpuError {
        let rip = self.core.fd.get_regs().map_or(0, |regs| regs.rip);
        let registers = self.registers();
        self.core.failure(reason, rip, registers)
    }

    fn registers(&self) -> String {
        match (self.core.fd.get_regs(), self.core.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => convert::dump(&convert::general(&regs), &convert::system(&sregs)),
            (Err(e), _) | (_, Err(e)) => format!("KVM gives no registers: {e}"),
        }
    }
}

/// Gives a vCPU that was just made its IA32_ARCH_CAPABILITIES: once it has run, KVM takes no other value (Linux 6.4). It begins with what KVM `offers`, and
/// some hosts' KVM refuses that very value.
fn show_arch_capabilities(core: &Core, config: &VcpuConfig, offers: u64) -> Result<(), VcpuError> {
    let shown = config.arch_capabilities.filter(|_| config.cpuid.shows_arch_capabilities());
    let Some(value) = shown.filter(|value| *value != offers) else { return Ok(()) };
    let index = msrs::ARCH_CAPABILITIES;
    msrs::write(core, &[(index, value)])?;
    let here = msrs::read(core, &[index])?.first().map_or(0, |(_, here)| *here);
    let ignored = || core.misfit(msrs::name(index), format!("this host's KVM does not take {value:#x} in it"));
    if here == value { Ok(()) } else { Err(ignored()) }
}

impl Vcpu<X86_64> for X86Vcpu {
    fn index(&self) -> u32 {
        self.core.index()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.core.kicker()
    }

    fn run(&mut self, io: &mut (dyn Io + 'static)) -> Result<Exit, VcpuError> {
        let _running = self.core.running();
        self.shared.standstill.end();
        loop {
            if self.takes_external {
                self.external_interrupt(io)?;
            }
            let entered = self.core.enter(io)?;
            self.between_instructions = !matches!(entered, Entered::Exit(reason) if reason != KVM_EXIT_IRQ_WINDOW_OPEN);
            match entered {
                Entered::Exit(KVM_EXIT_IO) => self.port_access(io),
                Entered::Exit(KVM_EXIT_MMIO) => self.core.memory_access(io),
                Entered::Exit(KVM_EXIT_IOAPIC_EOI) => self.end_of_interrupt(io),
                Entered::Exit(KVM_EXIT_IRQ_WINDOW_OPEN) => self.core.exits.interrupt_windows += 1,
                Entered::Exit(KVM_EXIT_X86_RDMSR) => self.msr_access(io, true),
                Entered::Exit(KVM_EXIT_X86_WRMSR) => self.msr_access(io, false),
                Entered::Again => {}
                Entered::Kicked => return Ok(Exit::Kicked),
                Entered::Exit(KVM_EXIT_SHUTDOWN) => {
                    self.core.exits.others += 1;
                    return Ok(Exit::TripleFault);
                }
                Entered::Exit(KVM_EXIT_SYSTEM_EVENT) => {
                    return self.core.system_event().ok_or_else(|| self.failure(KVM_EXIT_SYSTEM_EVENT));
                }
                Entered::Exit(reason) => return Err(self.failure(reason)),
            }
        }
    }

    fn boot(&mut self, state: &BootState) -> Result<(), VcpuError> {
        boot::boot(self, state)
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        state::reset(self)
    }

    fn save(&mut self, _io: &mut (dyn Io + 'static)) -> Result<VcpuState, VcpuError> {
        state::save(self)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        state::restore(self, state)
    }

    /// By kvmclock: Linux's watchdog of soft lockups asks for it.
    fn stood_still(&mut self) -> Result<(), VcpuError> {
        match self.core.fd.kvmclock_ctrl() {
            // The guest does not use it.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(self.core.failed("tell the guest that it stood still")),
        }
    }

    fn identity(&mut self) -> Result<(), VcpuError> {
        Ok(())
    }

    fn adopt(&mut self, (): &()) -> Result<(), VcpuError> {
        Ok(())
    }

    fn exits(&self) -> ExitCounts {
        self.core.exits
    }

    fn dump(&mut self) -> String {
        self.registers()
    }
}
