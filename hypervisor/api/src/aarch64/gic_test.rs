use skep_state::Record;

use super::*;

fn state() -> GicState {
    let cpu = GicCpuState {
        mpidr: 1,
        redistributor: Redistributor { registers: vec![(0x14, 0), (0x1_0080, 1)], levels: 1 << 27 },
        interface: vec![(SystemRegister::new(3, 0, 4, 6, 0), 0xf0)],
        memory_interface: vec![],
    };
    GicState {
        version: 3,
        spis: 64,
        distributor: vec![(0, 0x12)],
        levels: vec![1, 0],
        cpus: vec![cpu],
        its: Some(ItsState { registers: vec![(0x80, 7)], tables: "kvm-its-0".into() }),
    }
}

/// A field's name, and what spoils it.
type Case = (&'static str, fn(&mut GicState));

#[test]
fn a_round_trip_is_exact() {
    assert_eq!(Record::of(&state()).open::<GicState>(), Ok(state()));
}

#[test]
fn what_no_gic_could_hold_is_refused_by_name() {
    let cases: [Case; 9] = [
        ("version", |s| s.version = 4),
        ("spis", |s| s.spis = 1020),
        ("levels", |s| s.levels.clear()),
        ("distributor", |s| s.distributor[0].0 = 2),
        ("its", |s| s.version = 2),
        ("its.tables", |s| s.its.as_mut().unwrap().tables.clear()),
        ("cpus", |s| s.cpus.clear()),
        ("cpus.interface", |s| (s.version, s.its) = (2, None)),
        ("its.registers", |s| s.its.as_mut().unwrap().registers[0].0 = 1),
    ];
    for (name, spoil) in cases {
        let mut spoilt = state();
        spoil(&mut spoilt);
        match Record::of(&spoilt).open::<GicState>() {
            Err(StateError::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}
