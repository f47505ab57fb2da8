//! A suite that any backend must pass.
//!
//! Each case is a function of a [`Subject`]: a backend, the `probe` guest for it (`skep-guests`), and the optional [`Powers`] that may be used. It makes
//! VMs, lets the guest carry out lists of operations (`skep-guest-protocol`), and panics with a text that says what is wrong. A backend's own test
//! file takes all of them as tests of its own by [`conformance_suite!`](crate::conformance_suite), each once with every power and once with none: what the guest sees
//! is the same.
//!
//! ```text
//! fn subject(powers: Powers) -> Subject<X86_64> { .. }
//! skep_hypervisor::conformance_suite!(x86_64: crate::subject);
//! ```
//!
//! Nothing here depends on the host. A case whose power a backend lacks asserts that the power is absent; a guest that can't do what its architecture
//! can is a failure, with few exceptions that a subject must own up to ([`Lacks`]).
//!
//! What it does not do: timers of the guest's, NMIs, SMM, emulated instructions other than plain loads and stores, and anything about speed.

pub mod aarch64;
mod bus;
pub mod interrupts;
pub mod memory;
pub mod powers;
mod rig;
pub mod state;
mod target;
pub mod vcpu;
pub mod x86_64;

use crate::{Arch, Hypervisor, Powers};

pub use target::Target;

#[cfg(test)]
#[path = "mod_test.rs"]
mod test;

/// A backend to be tested.
pub struct Subject<A: Arch> {
    /// The backend.
    pub hypervisor: Box<dyn Hypervisor<A>>,
    /// The `probe` guest of the architecture. A backend that carries out the operations itself does without.
    pub probe: &'static [u8],
    /// The optional powers that may be used.
    pub powers: Powers,
    /// What the host is known to lack.
    pub lacks: Lacks,
}

bitflags::bitflags! {
    /// What a host may lack though its architecture has it, and what the cases then do without. Only two kinds of host have an excuse, both
    /// x86_64: a KVM without hardware virtualization, which emulates the probe's kernel-mode code one instruction at a time, and a host that
    /// QEMU emulates.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Lacks: u32 {
        /// The guest can't use SIMD registers: they are saved and restored, but not held by the guest.
        const GUEST_SIMD = 1;
        /// The guest can't use extended registers: XSETBV does not reach the backend (QEMU does not intercept it), or is not emulated.
        const GUEST_XSAVE = 1 << 1;
        /// CPUID leaf 1 shows the guest features that the configuration does not have.
        const EXACT_CPUID = 1 << 2;
    }
}

/// Makes a test of each case, in the modules `all_powers` and `no_powers`. The argument is the architecture and the absolute path of a function
/// that makes a [`Subject`] with given [`Powers`].
#[macro_export]
macro_rules! conformance_suite {
    (x86_64: $subject:path) => {
        $crate::conformance_suite! { @common $subject, {
            x86_64: ports_of_every_width string_io_is_exact msrs_call_back cpuid_is_as_configured a_triple_fault_is_told
                external_interrupts_are_taken only_level_pins_report_their_end apic_ids_beyond_255
                string_io_under_way_is_finished_by_save extended_registers_survive priorities_hold_after_a_restore
                any_state_of_an_x2apic_survives;
        } }
    };
    (aarch64: $subject:path) => {
        $crate::conformance_suite! { @common $subject, {
            aarch64: edge_lines_are_counted a_disabled_interrupt_waits eventfds_are_edges_on_lines
                ends_of_interrupts_are_heard_of level_lines_survive_a_restore power_off_and_reset_are_told
                firmware_calls_are_answered unknown_registers_are_undefined each_gic_has_its_limit
                a_cpu_is_the_same_and_no_other;
        } }
    };
    (@common $subject:path, { $($own:tt)* }) => {
        $crate::conformance_suite! { @powers $subject, {
            memory: ram_takes_no_callbacks unbacked_memory_calls_back_with_every_width regions_come_and_go
                read_only_memory_is_read_and_not_written bad_regions_are_refused;
            vcpu: kicks_before_a_run_are_one no_kick_is_lost a_kick_during_a_callback_lets_the_access_end
                a_kick_ends_a_wait two_cpus sixteen_cpus many_cpus a_vcpu_added_later_is_started_by_the_guest
                limits_are_told_by_name the_clock_is_set;
            state: general_registers_survive simd_registers_survive what_the_guest_holds_survives saving_changes_nothing any_state_of_a_controller_survives
                an_access_under_way_is_finished_by_save what_does_not_fit_is_refused reset_is_the_power_on_state;
            interrupts: messages_are_counted a_message_finds_its_cpu masked_messages_wait eventfds_are_messages
                cpus_interrupt_each_other a_message_ends_a_halt level_lines_interrupt_until_deasserted shared_lines_are_high_while_any_is
                pending_interrupts_survive_a_restore whatever_waits_is_taken_once_after_a_restore;
            powers: powers_are_at_most_what_was_asked_for doorbells_take_the_place_of_callbacks
                posted_writes_come_in_their_order posted_writes_of_another_cpu_come_first posted_writes_outlast_their_range
                the_dirty_log_is_exact;
            $($own)*
        } }
    };
    (@powers $subject:path, $cases:tt) => {
        mod all_powers { $crate::conformance_suite! { @tests all, $subject, $cases } }
        mod no_powers { $crate::conformance_suite! { @tests empty, $subject, $cases } }
    };
    (@tests $powers:ident, $subject:path, { $($module:ident: $($case:ident)+;)+ }) => {
        $(mod $module {
            $(#[test]
            fn $case() {
                $crate::conformance::$module::$case(&$subject($crate::Powers::$powers()));
            })+
        })+
    };
}
