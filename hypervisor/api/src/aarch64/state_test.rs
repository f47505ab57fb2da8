use proptest::prelude::*;
use skep_state::Record;

use super::*;

fn state() -> VcpuState {
    VcpuState {
        x: std::array::from_fn(|i| i as u64),
        sp_el0: 1,
        sp_el1: 2,
        pc: 0x4008_0000,
        pstate: 0x3c5,
        elr_el1: 3,
        spsr: [5; 5],
        simd: SimdRegisters { v: vec![9; 512], ..SimdRegisters::default() },
        registers: vec![(registers::MPIDR_EL1, 0x8000_0000), (registers::SCTLR_EL1, 0x30d0_0800)],
        power: PowerState::On,
        serror: None,
        counter: 42,
        counter_hz: 62_500_000,
        firmware: vec![("psci".into(), 0x1_0000)],
    }
}

/// A field's name, and what spoils it.
type Case = (&'static str, fn(&mut VcpuState));

#[test]
fn a_round_trip_is_exact() {
    assert_eq!(Record::of(&state()).open::<VcpuState>(), Ok(state()));
    let mut sve = state();
    sve.simd.sve_bits = Some(256);
    sve.simd.sve = Some(vec![1; 32 * 32 + 4 * 17]);
    assert_eq!(Record::of(&sve).open::<VcpuState>(), Ok(sve));
}

#[test]
fn encodings_are_the_architectures() {
    assert_eq!(registers::CNTV_CVAL_EL0.0, 0xdf1a);
    assert_eq!(registers::MPIDR_EL1.0, 0xc005);
    assert_eq!(state().register(registers::SCTLR_EL1), Some(0x30d0_0800));
}

#[test]
fn registers_are_named_and_known_by_what_they_tell() {
    let register = SystemRegister::new;
    let cases = [
        (registers::MIDR_EL1, "MIDR_EL1", true),
        (register(3, 0, 0, 6, 0), "ID_AA64ISAR0_EL1", true),
        (register(3, 3, 0, 0, 1), "CTR_EL0", true),
        (register(3, 0, 0, 6, 3), "S3_0_C0_C6_3", true),
        // CSSELR_EL1, which a guest writes.
        (register(3, 2, 0, 0, 0), "S3_2_C0_C0_0", false),
        (registers::SCTLR_EL1, "S3_0_C1_C0_0", false),
        (registers::CNTV_CVAL_EL0, "CNTV_CVAL_EL0", false),
    ];
    for (register, name, is_identity) in cases {
        assert_eq!((register.to_string().as_str(), register.is_identity()), (name, is_identity));
    }
    let identity = VcpuIdentity {
        registers: vec![(registers::MPIDR_EL1, Some(0x8000_0000)), (registers::SCTLR_EL1, None)],
        sve_bits: None,
        firmware: vec![("psci".into(), 0x1_0000)],
    };
    assert_eq!(state().identity(), identity);
}

#[test]
fn what_no_cpu_could_hold_is_refused_by_name() {
    let cases: [Case; 6] = [
        ("pstate", |s| s.pstate = 0x1d),
        ("simd.v", |s| s.simd.v.truncate(511)),
        ("registers", |s| s.registers.reverse()),
        ("simd.sve_bits", |s| s.simd.sve_bits = Some(100)),
        ("simd.sve", |s| s.simd.sve = Some(vec![0; 3])),
        ("counter_hz", |s| s.counter_hz = 0),
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
    "state-vcpu-aarch64": fn fuzz_records(at in 0usize..900, byte in any::<u8>(), cut in 0usize..900) {
        let mut record = Record::of(&state());
        if let Some(target) = record.body.get_mut(at) {
            *target = byte;
        }
        record.body.truncate(record.body.len().saturating_sub(cut));
        let _ = record.open::<VcpuState>();
    }
}
