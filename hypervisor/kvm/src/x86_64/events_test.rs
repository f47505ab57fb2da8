use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn events_go_to_kvm_and_back(
        exception in proptest::option::of(0_u8..32), injected: bool, error_code: Option<u32>, payload: Option<u64>,
        interrupt: Option<u8>, soft: bool, nmi_pending in 0_u8..3, flags: [bool; 5]
    ) {
        let [nmi_injected, nmi_masked, sti_shadow, mov_ss_shadow, triple_fault] = flags;
        let before = Events {
            exception,
            error_code: error_code.filter(|_| exception.is_some()),
            // Once it is being delivered its payload is in the register.
            payload: payload.filter(|_| exception.is_some() && !injected),
            exception_injected: injected && exception.is_some(),
            interrupt,
            soft_interrupt: soft && interrupt.is_some(),
            nmi_pending, nmi_injected, nmi_masked, sti_shadow, mov_ss_shadow, sipi_vector: None, triple_fault,
        };
        prop_assert_eq!(from_kvm(&to_kvm(&before, true)), before);
    }
}

#[test]
fn a_triple_fault_is_told_only_where_it_is_known() {
    let events = Events { triple_fault: true, ..Events::default() };
    assert_eq!(to_kvm(&events, false).flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0);
    assert_eq!(to_kvm(&Events { sipi_vector: Some(8), ..events }, true).sipi_vector, 8);
}

#[test]
fn running_states_go_to_kvm_and_back() {
    for (_, state) in MP_STATES {
        assert_eq!(mp_from_kvm(mp_to_kvm(state)), Some(state));
    }
    assert_eq!(mp_from_kvm(9), None, "AP_RESET_HOLD is of confidential guests");
}
