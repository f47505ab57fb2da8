//! The state of a vCPU: saved, restored, reset.

use skep_hypervisor::x86_64::{Events, GeneralRegisters, MpState, VcpuState, XsaveComponent};
use skep_hypervisor::{Exit, Powers, VcpuError};
use skep_state::{Record, State};

use crate::guest;
use crate::machine::{Device, Machine, capabilities, has_hardware};

/// The power-on state of a first vCPU.
fn power_on() -> VcpuState {
    Machine::new().save()
}

/// Restored into a VM that was just made, and saved there.
fn through(state: &VcpuState) -> VcpuState {
    state.check().unwrap();
    let mut machine = Machine::new();
    machine.vcpu().restore(state).unwrap();
    machine.save()
}

fn without_tsc(state: &VcpuState) -> VcpuState {
    VcpuState { tsc: 0, ..state.clone() }
}

#[test]
fn what_a_guest_has_filled_goes_to_another_vm_exactly() {
    let mut machine = Machine::new();
    let mut device = machine.boot(guest::fill(), GeneralRegisters::default());
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let saved = machine.save();
    assert_eq!(machine.save(), saved, "saving changes nothing, and time stands");
    assert_eq!((saved.general.rbx, saved.general.rflags & 1), (0xb2, 1));
    assert_eq!((saved.debug[0], saved.debug[3]), (0x1122_3344, 0x5566_7788));
    assert!(saved.msrs.contains(&(0x277, 0x0007_0405_0007_0406)) && saved.msrs.contains(&(0x174, 8)));
    assert_eq!(saved.apic.registers[8], 0x20, "the task priority");
    assert_eq!(saved.system.cr8, 2);
    assert_eq!(through(&saved), saved);
    assert_eq!(Record::of(&saved).open::<VcpuState>().unwrap(), saved);
}

#[test]
fn every_kind_of_state_goes_through() {
    let base = power_on();
    let mut cases = vec![("power-on", base.clone())];
    let mut case = |name, change: &dyn Fn(&mut VcpuState)| {
        let mut state = base.clone();
        change(&mut state);
        cases.push((name, state));
    };
    case("a TSC of its own", &|s| s.tsc = 0x1234_5678_9abc);
    case("halted", &|s| s.mp = MpState::Halted);
    case("waiting for INIT", &|s| s.mp = MpState::Uninitialized);
    case("waiting for SIPI", &|s| s.mp = MpState::InitReceived);
    case("an exception", &|s| {
        s.events = Events { exception: Some(13), error_code: Some(8), exception_injected: true, ..Events::default() };
    });
    case("a page fault with its payload", &|s| {
        s.events = Events { exception: Some(14), error_code: Some(2), payload: Some(0xdead_b000), ..Events::default() };
    });
    case("an interrupt", &|s| s.events = Events { interrupt: Some(0x30), ..Events::default() });
    case("NMIs", &|s| s.events = Events { nmi_pending: 1, nmi_masked: true, ..Events::default() });
    case("a shadow of STI", &|s| s.events = Events { sti_shadow: true, ..Events::default() });
    case("x87", &|s| s.xsave = vec![XsaveComponent { number: 0, data: (0..152).map(|n| n % 7).collect() }]);
    case("SSE", &|s| {
        let data = [&[0x80, 0x3f, 0, 0][..], &[5; 256]].concat();
        s.xsave = vec![XsaveComponent { number: 1, data }];
    });
    case("AVX", &|s| {
        s.xcr0 = 7;
        s.xsave = vec![XsaveComponent { number: 2, data: vec![9; 256] }];
    });
    case("MTRRs and PAT", &|s| {
        for (index, value) in
            [(0x2ff, 0xc06), (0x200, 0xc000_0000), (0x201, 0x3f_c000_0800), (0x250, 0x0606_0606_0606_0606)]
        {
            s.msrs.retain(|(number, _)| *number != index);
            s.msrs.push((index, value));
        }
    });
    case("x2APIC with a deadline timer", &|s| {
        s.apic.base |= 1 << 10;
        s.apic.registers[2] = 0;
        s.apic.registers[0xf] = 0x1ff;
        // LVT timer: deadline mode, vector 0xec, masked so that it stays what it is.
        s.apic.registers[0x32] = 2 << 17 | 1 << 16 | 0xec;
        s.apic.tsc_deadline = u64::MAX / 4;
    });
    case("interrupts that wait", &|s| {
        s.apic.registers[0xf] = 0x1ff;
        s.apic.registers[0x21] = 1 << 17;
        s.apic.registers[0x19] = 1 << 17;
        s.apic.registers[0x11] = 1 << 3;
    });
    for (name, state) in cases {
        let mut state = state;
        let mut after = through(&state);
        // Order is no part of it.
        state.msrs.sort_unstable();
        after.msrs.sort_unstable();
        // AMD's CPUs tell no shadow from the other; KVM shows both.
        if state.events.sti_shadow {
            assert!(after.events.sti_shadow || after.events.mov_ss_shadow, "{name}");
            (after.events.sti_shadow, after.events.mov_ss_shadow) = (true, false);
        }
        // The x2APIC's logical id follows from the id.
        if state.apic.base & 1 << 10 != 0 {
            state.apic.registers[0xd] = after.apic.registers[0xd];
        }
        // The priority follows from what is in service.
        state.apic.registers[0xa] = after.apic.registers[0xa];
        assert_eq!(after, state, "{name}");
    }
}

/// By the flag of kvmclock's structure that Linux's watchdog looks at (Documentation/virt/kvm/x86/msr.rst).
#[test]
fn a_guest_with_kvmclock_is_told_that_it_stood_still() {
    const CLOCK: u64 = 0x3000;
    const FLAGS: u64 = CLOCK + 29;
    const STOPPED: u8 = 1 << 1;
    let mut machine = Machine::new();
    // One that has no kvmclock is none the worse.
    machine.vcpu().stood_still().unwrap();
    let general = GeneralRegisters { rdi: 0x8000, ..GeneralRegisters::default() };
    let mut device = machine.boot(guest::memory(), general);
    let mut state = machine.save();
    state.msrs.push((0x4b56_4d01, CLOCK | 1));
    machine.vcpu().restore(&state).unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(machine.read(FLAGS, 1)[0] & STOPPED, 0, "nobody has said so");
    assert_ne!(machine.read(CLOCK, 29), [0; 29], "KVM tells of the clock");
    machine.vcpu().restore(&state).unwrap();
    machine.vcpu().stood_still().unwrap();
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(machine.read(FLAGS, 1)[0] & STOPPED, STOPPED);
}

#[test]
fn counters_of_several_vcpus_keep_their_distance() {
    let mut machine = Machine::with(Powers::all(), &[0, 1, 2]);
    let mut states = Vec::new();
    for (vcpu, ahead) in machine.parts.vcpus.iter_mut().zip([0, 1000, 1]) {
        let mut device = Device::of(&**vcpu);
        let state = VcpuState { tsc: 0x10_0000_0000 + ahead, ..vcpu.save(&mut device).unwrap() };
        vcpu.restore(&state).unwrap();
        states.push(state);
    }
    let mut device = machine.boot(guest::memory(), GeneralRegisters { rdi: 0x8000, ..Default::default() });
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let tscs: Vec<_> = machine.parts.vcpus.iter_mut().map(|vcpu| vcpu.save(&mut device).unwrap().tsc).collect();
    assert!(tscs[0] > states[0].tsc, "time went on while a vCPU ran");
    let apart = [tscs[1].wrapping_sub(tscs[0]), tscs[2].wrapping_sub(tscs[0])];
    // A KVM without hardware virtualization shows the host's counter; one whose host has no stable TSC moves those of its guests.
    let sources = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    let stable = std::fs::read_to_string(sources).unwrap().split_whitespace().any(|name| name.starts_with("tsc"));
    assert_eq!(apart == [1000, 1], stable && has_hardware(), "{apart:?}");
}

/// As the clock that the guest reads by kvmclock has, which nobody stops.
#[test]
fn counters_of_a_machine_that_is_saved_anew_have_gone_on_together() {
    let mut machine = Machine::with(Powers::all(), &[0, 1]);
    let save = |machine: &mut Machine| {
        let vcpus = machine.parts.vcpus.iter_mut();
        let tscs = vcpus.map(|vcpu| {
            let mut device = Device::of(&**vcpu);
            vcpu.save(&mut device).unwrap().tsc
        });
        tscs.collect::<Vec<_>>()
    };
    let first = save(&mut machine);
    assert_eq!(save(&mut machine), first, "one moment is that of a whole save");
    machine.parts.vm.begin_save();
    let second = save(&mut machine);
    assert_eq!(save(&mut machine), second);
    assert!(second[0] > first[0], "{first:?} {second:?}");
    // What only KVM's own reading tells is of no common moment.
    if has_hardware() {
        assert_eq!(second[1].wrapping_sub(first[1]), second[0].wrapping_sub(first[0]));
    }
}

#[test]
fn a_reset_vcpu_is_as_at_power_on() {
    let mut machine = Machine::with(Powers::all(), &[0, 9]);
    let fresh: Vec<_> = machine
        .parts
        .vcpus
        .iter_mut()
        .map(|vcpu| {
            let mut device = Device::of(&**vcpu);
            vcpu.save(&mut device).unwrap()
        })
        .collect();
    assert_eq!((fresh[0].mp, fresh[1].mp), (MpState::Running, MpState::Uninitialized));
    let general = &fresh[0].general;
    assert_eq!((general.rip, general.rflags, fresh[0].system.cs.base), (0xfff0, 2, 0xffff_0000));
    assert_eq!((fresh[0].system.cr0, fresh[0].apic.registers[0x35]), (0x6000_0010, 0x700));

    let mut device = machine.boot(guest::fill(), GeneralRegisters::default());
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    let filled = machine.save();
    let mut other = fresh[1].clone();
    other.mp = MpState::Halted;
    other.events.nmi_pending = 1;
    other.apic.registers[0xf] = 0x1ff;
    other.apic.registers[0x21] = 1;
    machine.parts.vcpus[1].restore(&other).unwrap();

    for round in 0..2 {
        for (vcpu, fresh) in machine.parts.vcpus.iter_mut().zip(&fresh) {
            vcpu.reset().unwrap();
            let after = vcpu.save(&mut device).unwrap();
            assert_eq!(without_tsc(&after), without_tsc(fresh), "round {round}");
            assert_eq!(after.tsc, 0, "all counters begin together");
        }
        machine.vcpu().restore(&filled).unwrap();
    }
    machine.vcpu().reset().unwrap();
    let mut device = machine.boot(guest::fill(), GeneralRegisters::default());
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    assert_eq!(without_tsc(&machine.save()), without_tsc(&filled), "it boots again to the same");
}

#[test]
fn a_triple_fault_can_be_reset() {
    let mut machine = Machine::new();
    let fresh = machine.save();
    let mut device = machine.boot(guest::triple_fault(), GeneralRegisters { rdi: 0x8000, ..Default::default() });
    assert_eq!(machine.run(&mut device), Exit::TripleFault);
    machine.vcpu().reset().unwrap();
    assert_eq!(without_tsc(&machine.save()), without_tsc(&fresh));
}

#[test]
fn what_does_not_fit_is_named_and_changes_nothing() {
    let base = power_on();
    let mut machine = Machine::new();
    machine.vcpu().restore(&VcpuState { tsc: 77, ..base.clone() }).unwrap();
    let before = machine.save();
    let mut refused = |state: VcpuState| match machine.vcpu().restore(&state) {
        Err(error @ VcpuError::State { vcpu: 0, .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(VcpuState { xcr0: 1 << 62 | 1, ..base.clone() }).contains("XCR0: its bits 0x4000000000000000"));
    let component = |number, size| vec![XsaveComponent { number, data: vec![1; size] }];
    assert!(refused(VcpuState { xsave: component(50, 8), ..base.clone() }).contains("XSAVE component 50"));
    assert!(refused(VcpuState { xsave: component(2, 8), ..base.clone() }).contains("it has 8 bytes, and 256"));
    let msrs = [&base.msrs[..], &[(0xc001_1029, 5)]].concat();
    assert!(refused(VcpuState { msrs, ..base.clone() }).contains("MSR 0xc0011029 (unknown): it holds 0x5"));
    assert_eq!(machine.save(), before);
}

const ARCH_CAPABILITIES: u32 = 0x10a;

/// What a guest reads in IA32_ARCH_CAPABILITIES; `None` where it takes a fault.
fn arch_capabilities(machine: &mut Machine) -> Option<u64> {
    let mut device =
        machine.boot(guest::read_msr(), GeneralRegisters { rcx: ARCH_CAPABILITIES.into(), ..Default::default() });
    if machine.run(&mut device) == Exit::TripleFault {
        return None;
    }
    let general = machine.save().general;
    Some(general.rdx << 32 | general.rax)
}

/// A vCPU shows what it was made with, whatever it has been through since.
#[test]
fn what_the_cpu_has_against_side_channels_stays_as_it_was_shown() {
    let host = capabilities();
    let is_shown = host.cpuid.shows_arch_capabilities();
    let here = is_shown.then_some(host.arch_capabilities);
    assert_eq!(arch_capabilities(&mut Machine::new()), here, "by itself it is the host's");
    let shown = |value| Machine::changed(Powers::all(), &[0], |vcpu| vcpu.arch_capabilities = value);
    assert_eq!(arch_capabilities(&mut shown(here)), here);

    // All but the lowest of the host's bits.
    let fewer = here.map(|here| here & here.wrapping_sub(1));
    assert_eq!(fewer == here, !is_shown);
    let mut machine = shown(fewer);
    for round in ["made", "reset", "reset again"] {
        assert_eq!(arch_capabilities(&mut machine), fewer, "{round}");
        machine.vcpu().reset().unwrap();
    }
    let state = machine.save();
    assert!(state.msrs.iter().all(|(index, _)| *index != ARCH_CAPABILITIES), "it is no state");
    let mut other = shown(fewer);
    for round in ["made", "run"] {
        other.vcpu().restore(&state).unwrap();
        assert_eq!(arch_capabilities(&mut other), fewer, "{round}");
    }

    // Where CPUID shows none, none is given: a guest that reads it all the same takes a fault, or has the host's from a KVM that is not strict.
    let none = 1 << 63;
    let mut without = Machine::changed(Powers::all(), &[0], |vcpu| {
        vcpu.arch_capabilities = Some(none);
        vcpu.cpuid.get_mut(7, 0).into_iter().for_each(|leaf| leaf.edx &= !(1 << 29));
    });
    assert_ne!(arch_capabilities(&mut without), Some(none));
}

#[test]
fn a_value_that_kvm_refuses_is_named() {
    let mut machine = Machine::new();
    let mut state = machine.save();
    state.msrs.retain(|(number, _)| *number != 0x2ff);
    // Memory type 2 is none (SDM 3A table 12-8).
    state.msrs.push((0x2ff, 2));
    let error = machine.vcpu().restore(&state).unwrap_err().to_string();
    assert!(error.contains("MSR 0x2ff (IA32_MTRR_DEF_TYPE): this host's KVM refuses 0x2 in it"), "{error}");
}

#[test]
fn kvmclock_goes_on_from_what_is_set() {
    let machine = Machine::new();
    let clock = machine.parts.vm.clock();
    clock.set(1 << 40).unwrap();
    let now = clock.get().unwrap();
    assert!((1 << 40..1 << 41).contains(&now), "{now}");
    assert!(clock.get().unwrap() >= now);
}
