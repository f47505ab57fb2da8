//! What the CPU is about to deliver, between KVM's form and skep's; its running state.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};
use skep_hypervisor::x86_64::{Events, MpState};

#[cfg(test)]
#[path = "events_test.rs"]
mod test;

/// From KVM's.
pub(super) fn from_kvm(from: &kvm_vcpu_events) -> Events {
    let exception = from.exception.pending != 0 || from.exception.injected != 0;
    let interrupt = from.interrupt.injected != 0;
    let shadow = u32::from(from.interrupt.shadow);
    Events {
        exception: exception.then_some(from.exception.nr),
        error_code: (exception && from.exception.has_error_code != 0).then_some(from.exception.error_code),
        payload: (exception && from.exception_has_payload != 0).then_some(from.exception_payload),
        exception_injected: from.exception.injected != 0,
        interrupt: interrupt.then_some(from.interrupt.nr),
        soft_interrupt: interrupt && from.interrupt.soft != 0,
        nmi_pending: from.nmi.pending,
        nmi_injected: from.nmi.injected != 0,
        nmi_masked: from.nmi.masked != 0,
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0,
        mov_ss_shadow: shadow & KVM_X86_SHADOW_INT_MOV_SS != 0,
        // KVM shows a SIPI that has come by the running state alone.
        sipi_vector: None,
        triple_fault: from.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT != 0 && from.triple_fault.pending != 0,
    }
}

/// To KVM's, with all that it can be told; a triple fault only where it knows of them (Linux 6.1).
pub(super) fn to_kvm(from: &Events, triple_faults: bool) -> kvm_vcpu_events {
    let mut to = kvm_vcpu_events::default();
    let pending = from.exception.is_some() && !from.exception_injected;
    to.exception.injected = u8::from(from.exception.is_some() && from.exception_injected);
    to.exception.pending = u8::from(pending);
    to.exception.nr = from.exception.unwrap_or(0);
    to.exception.has_error_code = u8::from(from.error_code.is_some());
    to.exception.error_code = from.error_code.unwrap_or(0);
    to.exception_has_payload = u8::from(pending && from.payload.is_some());
    to.exception_payload = from.payload.unwrap_or(0);
    to.interrupt.injected = u8::from(from.interrupt.is_some());
    to.interrupt.nr = from.interrupt.unwrap_or(0);
    to.interrupt.soft = u8::from(from.soft_interrupt);
    let shadow = if from.sti_shadow { KVM_X86_SHADOW_INT_STI } else { 0 }
        | if from.mov_ss_shadow { KVM_X86_SHADOW_INT_MOV_SS } else { 0 };
    to.interrupt.shadow = shadow as u8;
    to.nmi.injected = u8::from(from.nmi_injected);
    to.nmi.pending = from.nmi_pending;
    to.nmi.masked = u8::from(from.nmi_masked);
    to.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
    if let Some(vector) = from.sipi_vector {
        to.sipi_vector = vector.into();
        to.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    }
    if triple_faults {
        to.triple_fault.pending = u8::from(from.triple_fault);
        to.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    to
}

/// KVM's number of each running state.
const MP_STATES: [(u32, MpState); 5] = [
    (KVM_MP_STATE_RUNNABLE, MpState::Running),
    (KVM_MP_STATE_UNINITIALIZED, MpState::Uninitialized),
    (KVM_MP_STATE_INIT_RECEIVED, MpState::InitReceived),
    (KVM_MP_STATE_HALTED, MpState::Halted),
    (KVM_MP_STATE_SIPI_RECEIVED, MpState::SipiReceived),
];

/// From KVM's, if it is one that an x86 CPU can be in.
pub(super) fn mp_from_kvm(number: u32) -> Option<MpState> {
    MP_STATES.iter().find(|(kvm, _)| *kvm == number).map(|(_, state)| *state)
}

/// To KVM's.
pub(super) fn mp_to_kvm(state: MpState) -> u32 {
    MP_STATES.iter().find(|(_, mp)| *mp == state).map_or(KVM_MP_STATE_RUNNABLE, |(kvm, _)| *kvm)
}
