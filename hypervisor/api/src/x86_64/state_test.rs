use proptest::prelude::*;
use skep_state::Record;

use super::*;

fn state() -> VcpuState {
    VcpuState {
        general: GeneralRegisters { rip: 0xfff0, rflags: 2, ..GeneralRegisters::default() },
        system: SystemRegisters { cr0: 0x6000_0010, ..SystemRegisters::default() },
        debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        xcr0: 1,
        xsave: vec![XsaveComponent { number: 0, data: vec![7; 160] }, XsaveComponent { number: 2, data: vec![1; 256] }],
        msrs: vec![(0x10, 5), (0xc000_0081, 6)],
        tsc: 99,
        tsc_khz: Some(2_500_000),
        apic: LocalApic { registers: (0..64).collect(), base: 0xfee0_0900, tsc_deadline: 0 },
        events: Events { exception: Some(14), error_code: Some(2), payload: Some(0x1000), ..Events::default() },
        mp: MpState::Halted,
    }
}

/// A field's name, and what spoils it.
type Case = (&'static str, fn(&mut VcpuState));

#[test]
fn a_round_trip_is_exact() {
    assert_eq!(Record::of(&state()).open::<VcpuState>(), Ok(state()));
}

#[test]
fn what_no_cpu_could_hold_is_refused_by_name() {
    let cases: [Case; 9] = [
        ("rflags", |s| s.general.rflags = 0),
        ("cr8", |s| s.system.cr8 = 16),
        ("cr0", |s| s.system.cr0 = 1 << 31),
        ("efer", |s| s.system.efer = 1 << 10),
        ("xcr0", |s| s.xcr0 = 2),
        ("xsave.number", |s| s.xsave.reverse()),
        ("xsave.number", |s| s.xsave[1].number = 63),
        ("apic.registers", |s| s.apic.registers.truncate(63)),
        ("events.exception", |s| s.events.exception = Some(32)),
    ];
    for (name, spoil) in cases {
        let mut spoilt = state();
        spoil(&mut spoilt);
        match Record::of(&spoilt).open::<VcpuState>() {
            Err(StateError::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

skep_fuzzing::targets! {
    "state-vcpu-x86_64": fn fuzz_records(at in 0usize..600, byte in any::<u8>(), cut in 0usize..600) {
        let mut record = Record::of(&state());
        if let Some(target) = record.body.get_mut(at) {
            *target = byte;
        }
        record.body.truncate(record.body.len().saturating_sub(cut));
        let _ = record.open::<VcpuState>();
    }
}
