//! Saving and restoring a vCPU.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_MP_STATE_SUSPENDED, KVM_REG_SIZE_MASK, KVM_REG_SIZE_U32,
    kvm_mp_state, kvm_vcpu_events,
};
use skep_hypervisor::aarch64::{PowerState, SimdRegisters, SystemRegister, VcpuIdentity, VcpuState};
use skep_hypervisor::{GuestClock, VcpuError};

use super::register::{self, Kind};
use super::vcpu::KvmVcpu;
use super::{clock, ioctl};

/// The name under which the set of SVE vector lengths is kept: bit n is set where the vCPU has the length of (n + 1) * 128 bits.
const SVE_LENGTHS: &str = "sve-vector-lengths";
/// Bytes in which KVM passes an SVE vector, and a predicate.
const VECTOR: usize = 256;
const PREDICATE: usize = 32;
/// The part of an SError's syndrome that KVM takes.
const ISS: u64 = 0xff_ffff;

/// The registers that only a list of KVM's tells of.
#[derive(Default)]
struct Listed {
    system: Vec<SystemRegister>,
    /// Names, and KVM's.
    named: Vec<(String, u64)>,
}

impl KvmVcpu {
    fn listed(&self) -> Result<Listed, VcpuError> {
        let ids = ioctl::register_list(&self.core.fd).map_err(self.core.failed("list its registers"))?;
        let mut listed = Listed::default();
        for id in ids {
            match register::kind(id) {
                Kind::Core | Kind::Sve | Kind::Counter => {}
                Kind::System(register) => listed.system.push(register),
                Kind::Named(name) => listed.named.push((name, id)),
                Kind::Unknown => {
                    let reason = "this kernel's KVM has a kind of register that skep does not know";
                    return Err(self.core.misfit(format!("KVM's register {id:#x}"), reason));
                }
            }
        }
        listed.system.retain(|register| !register::PMU_CLEAR.contains(register));
        listed.system.sort_unstable();
        Ok(listed)
    }

    fn bytes<const N: usize>(&self, id: u64) -> Result<[u8; N], VcpuError> {
        let mut bytes = [0; N];
        let failed = |e: kvm_ioctls::Error| self.core.call_failed(format!("read KVM's register {id:#x}"), e);
        self.core.fd.get_one_reg(id, &mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn set_bytes(&self, id: u64, bytes: &[u8]) -> Result<(), VcpuError> {
        let failed = |e: kvm_ioctls::Error| self.core.call_failed(format!("write KVM's register {id:#x}"), e);
        self.core.fd.set_one_reg(id, bytes).map(drop).map_err(failed)
    }

    /// A named value, which has 32 bits or 64.
    fn named(&self, id: u64) -> Result<u64, VcpuError> {
        if id & KVM_REG_SIZE_MASK == KVM_REG_SIZE_U32 {
            return Ok(u32::from_le_bytes(self.bytes(id)?).into());
        }
        self.get(id)
    }

    fn set_named(&self, id: u64, value: u64) -> Result<(), VcpuError> {
        // A value of 32 bits is the low half.
        self.set_bytes(id, &value.to_le_bytes())
    }

    /// The set of SVE vector lengths, and the longest, in bits.
    fn sve_lengths(&self) -> Result<(u64, u16), VcpuError> {
        let set: [u8; 64] = self.bytes(register::SVE_LENGTHS)?;
        // The architecture ends at 16 times 128 bits.
        let set = u64::from(u16::from_le_bytes([set[0], set[1]]));
        let longest = u16::try_from(64 - set.leading_zeros()).unwrap_or_default();
        Ok((set, longest * 128))
    }

    pub(super) fn save_state(&self) -> Result<VcpuState, VcpuError> {
        let listed = self.listed()?;
        let mut x = [0; 31];
        for (n, value) in x.iter_mut().enumerate() {
            *value = self.get(register::x(n))?;
        }
        let mut spsr = [0; 5];
        for (n, value) in spsr.iter_mut().enumerate() {
            *value = self.get(register::spsr(n))?;
        }
        let system = listed.system.into_iter().map(|r| Ok((r, self.get(register::id(r))?)));
        let registers = system.collect::<Result<_, VcpuError>>()?;
        let firmware = self.save_named(listed.named)?;
        Ok(VcpuState {
            x,
            sp_el0: self.get(register::SP_EL0)?,
            sp_el1: self.get(register::SP_EL1)?,
            pc: self.get(register::PC)?,
            pstate: self.get(register::PSTATE)?,
            elr_el1: self.get(register::ELR_EL1)?,
            spsr,
            simd: self.save_simd()?,
            registers,
            power: self.power()?,
            serror: self.serror()?,
            counter: self.get(register::COUNTER)?,
            counter_hz: clock::frequency(),
            firmware,
        })
    }

    fn save_simd(&self) -> Result<SimdRegisters, VcpuError> {
        let mut simd = SimdRegisters {
            v: Vec::with_capacity(512),
            fpsr: u32::from_le_bytes(self.bytes(register::FPSR)?),
            fpcr: u32::from_le_bytes(self.bytes(register::FPCR)?),
            ..SimdRegisters::default()
        };
        if !self.features.sve {
            for n in 0..32 {
                simd.v.extend(self.bytes::<16>(register::v(n))?);
            }
            return Ok(simd);
        }
        let (_, bits) = self.sve_lengths()?;
        let (vector, predicate) = (usize::from(bits) / 8, usize::from(bits) / 64);
        let mut sve = Vec::new();
        for n in 0..32 {
            let bytes: [u8; VECTOR] = self.bytes(register::z(n))?;
            simd.v.extend(&bytes[..16]);
            sve.extend(&bytes[..vector]);
        }
        for id in (0..16).map(register::p).chain([register::FFR]) {
            sve.extend(&self.bytes::<PREDICATE>(id)?[..predicate]);
        }
        simd.sve = Some(sve);
        simd.sve_bits = Some(bits);
        Ok(simd)
    }

    fn power(&self) -> Result<PowerState, VcpuError> {
        let state = self.core.fd.get_mp_state().map_err(self.core.failed("read whether it runs"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_STOPPED => PowerState::Off,
            KVM_MP_STATE_SUSPENDED => PowerState::Suspended,
            _ => PowerState::On,
        })
    }

    fn serror(&self) -> Result<Option<u64>, VcpuError> {
        let events = self.core.fd.get_vcpu_events().map_err(self.core.failed("read pending exceptions"))?;
        Ok((events.exception.serror_pending != 0).then_some(events.exception.serror_esr & ISS))
    }

    pub(super) fn restore_state(&self, state: &VcpuState) -> Result<(), VcpuError> {
        if state.counter_hz != clock::frequency() {
            let reason = format!("it is {}, and {} on this host", state.counter_hz, clock::frequency());
            return Err(self.core.misfit("counter_hz", reason));
        }
        self.adopt_identity(&state.identity())?;
        self.power_on()?;
        for (register, value) in state.registers.iter().filter(|(register, _)| !register.is_identity()) {
            ioctl::set_register(&self.core.fd, register::id(*register), *value).map_err(|e| {
                self.core.misfit(register.to_string(), format!("KVM refuses the value {value:#x} ({e})"))
            })?;
        }
        let core = [
            (register::SP_EL0, state.sp_el0),
            (register::SP_EL1, state.sp_el1),
            (register::PC, state.pc),
            (register::PSTATE, state.pstate),
            (register::ELR_EL1, state.elr_el1),
        ];
        let general = state.x.iter().enumerate().map(|(n, value)| (register::x(n), *value));
        let saved = state.spsr.iter().enumerate().map(|(n, value)| (register::spsr(n), *value));
        core.into_iter().chain(general).chain(saved).try_for_each(|(id, value)| self.set(id, value))?;
        self.restore_simd(&state.simd)?;
        self.restore_serror(state.serror)?;
        let mp_state = match state.power {
            PowerState::Off => KVM_MP_STATE_STOPPED,
            // A suspended CPU may wake at any time, and one on KVM waits by itself.
            PowerState::On | PowerState::Suspended => KVM_MP_STATE_RUNNABLE,
        };
        self.core.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(self.core.failed("set whether it runs"))?;
        self.clock.set(state.counter).map_err(|e| self.core.misfit("counter", e.to_string()))
    }

    /// The values that KVM tells of by names of its own, and SVE's.
    fn save_named(&self, listed: Vec<(String, u64)>) -> Result<Vec<(String, u64)>, VcpuError> {
        let named = listed.into_iter().map(|(name, id)| Ok((name, self.named(id)?)));
        let mut named = named.collect::<Result<Vec<_>, VcpuError>>()?;
        if self.features.sve {
            named.push((SVE_LENGTHS.to_owned(), self.sve_lengths()?.0));
        }
        Ok(named)
    }

    fn sve_bits(&self) -> Result<Option<u16>, VcpuError> {
        if self.features.sve { Ok(Some(self.sve_lengths()?.1)) } else { Ok(None) }
    }

    pub(super) fn read_identity(&self) -> Result<VcpuIdentity, VcpuError> {
        let listed = self.listed()?;
        let told = |r: SystemRegister| Ok((r, r.is_identity().then(|| self.get(register::id(r))).transpose()?));
        Ok(VcpuIdentity {
            registers: listed.system.into_iter().map(told).collect::<Result<_, VcpuError>>()?,
            sve_bits: self.sve_bits()?,
            firmware: self.save_named(listed.named)?,
        })
    }

    /// What the CPU is can't be changed: a state of another CPU does not fit.
    pub(super) fn adopt_identity(&self, identity: &VcpuIdentity) -> Result<(), VcpuError> {
        let listed = self.listed()?;
        let misfit = |what: String, reason| Err(self.core.misfit(what, reason));
        let (saved, here) = (identity.sve_bits, self.sve_bits()?);
        if saved != here {
            let text = |bits: Option<u16>| bits.map_or("none".to_owned(), |bits| format!("{bits} bits"));
            let reason = format!("SVE vectors: {} in the state, {} here", text(saved), text(here));
            return misfit("simd.sve_bits".to_owned(), reason);
        }
        for (register, value) in &identity.registers {
            if !listed.system.contains(register) {
                return misfit(register.to_string(), "this vCPU has no such register".to_owned());
            }
            let Some(value) = value.filter(|_| register.is_identity()) else { continue };
            let here = self.get(register::id(*register))?;
            if here != value {
                return misfit(register.to_string(), format!("it is {value:#x}, and {here:#x} on this host"));
            }
        }
        self.restore_named(&identity.firmware, &listed)
    }

    /// What is known by name only may differ where KVM takes the state's value.
    fn restore_named(&self, named: &[(String, u64)], listed: &Listed) -> Result<(), VcpuError> {
        for (name, value) in named {
            if name == SVE_LENGTHS {
                let here = if self.features.sve { self.sve_lengths()?.0 } else { 0 };
                if here != *value {
                    return Err(self.core.misfit(name, format!("it is {value:#x}, and {here:#x} on this host")));
                }
                continue;
            }
            let Some((_, id)) = listed.named.iter().find(|(known, _)| known == name) else {
                return Err(self.core.misfit(name, "this vCPU has no such value"));
            };
            let here = self.named(*id)?;
            if here != *value && self.set_named(*id, *value).is_err() {
                let reason = format!("it is {value:#x}, and {here:#x} on this host, which can't be changed");
                return Err(self.core.misfit(name, reason));
            }
        }
        Ok(())
    }

    fn restore_simd(&self, simd: &SimdRegisters) -> Result<(), VcpuError> {
        self.set_bytes(register::FPSR, &simd.fpsr.to_le_bytes())?;
        self.set_bytes(register::FPCR, &simd.fpcr.to_le_bytes())?;
        let (Some(sve), Some(bits)) = (&simd.sve, simd.sve_bits) else {
            let vectors = simd.v.chunks_exact(16).take(32).enumerate();
            return vectors.into_iter().try_for_each(|(n, bytes)| self.set_bytes(register::v(n), bytes));
        };
        let (vector, predicate) = (usize::from(bits) / 8, usize::from(bits) / 64);
        let (vectors, predicates) = sve.split_at(sve.len().min(32 * vector));
        for (n, bytes) in vectors.chunks_exact(vector).enumerate() {
            self.set_bytes(register::z(n), &padded::<VECTOR>(bytes))?;
        }
        let ids = (0..16).map(register::p).chain([register::FFR]);
        for (id, bytes) in ids.zip(predicates.chunks_exact(predicate)) {
            self.set_bytes(id, &padded::<PREDICATE>(bytes))?;
        }
        Ok(())
    }

    fn restore_serror(&self, serror: Option<u64>) -> Result<(), VcpuError> {
        let Some(syndrome) = serror else { return Ok(()) };
        // Asked of this vCPU: KVM refuses a syndrome where the CPU can't take one.
        let here = self.core.fd.get_vcpu_events().map_err(self.core.failed("read pending exceptions"))?;
        let mut events = kvm_vcpu_events::default();
        events.exception.serror_pending = 1;
        events.exception.serror_has_esr = here.exception.serror_has_esr;
        if here.exception.serror_has_esr != 0 {
            events.exception.serror_esr = syndrome & ISS;
        }
        self.core.fd.set_vcpu_events(&events).map_err(self.core.failed("make an SError pending"))
    }
}

fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    padded
}
