//! Every operation goes through its bytes and back, and nothing else is taken for one.

use crate::*;

/// The highest number of an operation.
const LAST: u16 = code::TRIPLE_FAULT;

/// One of each operation, and one of each of its forms, with arguments that all differ.
fn samples() -> impl Iterator<Item = Operation> {
    use Operation::*;
    let (address, value, table) = (0xa1a2_a3a4_a5a6_a7a8, 0xb1b2_b3b4_b5b6_b7b8, 0xc1c2_c3c4_c5c6_c7c8);
    let plain = [
        End { doorbell: address },
        TouchPages { address, pages: 3, value },
        Repeat { back: 2, times: 100 },
        ReadMsr { index: 0xc000_0080 },
        WriteMsr { index: 0x10, value },
        ReadCpuid { leaf: 0x8000_0008, subleaf: 7, address },
        ReadSystemRegister { register: system_register(3, 3, 14, 0, 2) },
        WriteSystemRegister { register: system_register(3, 0, 13, 0, 4), value },
        FirmwareCall { address },
        ReadCounter,
        InitLocalApic { base: address, table },
        InitX2Apic { table },
        InitGic { gic: Gic::V2, distributor: address, interface: value, table },
        InitGic { gic: Gic::V3, distributor: address, interface: value, table },
        EnableIntid { irq: 33, trigger: Trigger::Edge },
        EnableIntid { irq: 34, trigger: Trigger::Level },
        DisableIntid { irq: 35 },
        InitIts { base: address, tables: table },
        MapMsi { device: 8, event: 9, irq: 8192 },
        OnIrqWrite { irq: 36, address, value },
        WaitIrq { irq: 37, count: 4 },
        SetInterrupts { on: true },
        SetInterrupts { on: false },
        SendIpi { cpu: 300, irq: 38 },
        Halt,
        StartCpu { cpu: 301, list: address, stack: table },
        TripleFault,
    ];
    let wide = Width::ALL.into_iter().flat_map(move |width| {
        [
            ReadMemory { address, width },
            WriteMemory { address, value, width },
            AddMemory { address, value, width },
            SpinUntil { address, value, width },
            ReadPort { port: 0xcfc, width },
            WritePort { port: 0xcf8, value, width },
            ReadPortString { port: 0x1f0, address, count: 256, width },
            WritePortString { port: 0x3f8, address, count: 16, width },
        ]
    });
    let held = RegisterSet::ALL.map(|set| HoldRegisters { set, pattern: value, doorbell: address, area: table });
    plain.into_iter().chain(wide).chain(held)
}

#[test]
fn every_operation_survives_its_bytes() {
    let mut seen = [false; LAST as usize + 1];
    for operation in samples() {
        let op = operation.encode();
        seen[usize::from(op.code)] = true;
        assert_eq!(op.outcome(), Some(Status::Pending));
        assert_eq!(Op::from_bytes(&op.to_bytes()), op);
        assert_eq!(Operation::decode(&op), Ok(operation));
    }
    // There is no operation 0: memory that was never written is no list.
    let missing = seen.iter().enumerate().filter(|&(_, seen)| !seen);
    assert!(missing.map(|(code, _)| code).eq([0]), "an operation without a sample");
}

#[test]
fn status_and_result_do_not_change_the_operation() {
    for operation in samples() {
        let op = Op { status: Status::Faulted as u32, result: u64::MAX, ..operation.encode() };
        assert_eq!(Operation::try_from(op), Ok(operation));
        assert_eq!(op.outcome(), Some(Status::Faulted));
    }
}

#[test]
fn the_layout_is_fixed() {
    let op = Op { code: 0x0102, variant: 0x0304, status: 0x0506_0708, a: 0x11, b: 0x22, c: 0x33, result: 0x4400 };
    let bytes = op.to_bytes();
    assert_eq!(bytes[..8], [2, 1, 4, 3, 8, 7, 6, 5]);
    assert_eq!((bytes[8], bytes[16], bytes[24], bytes[33]), (0x11, 0x22, 0x33, 0x44));
    assert_eq!((Op::SIZE, Op::STATUS_OFFSET, Op::RESULT_OFFSET), (40, 4, 32));
    assert_eq!(IRQ_TABLE_SIZE, 0x1_0000);
}

#[test]
fn unknown_numbers_forms_and_arguments_are_refused() {
    let refused = |op: Op| assert_eq!(Operation::decode(&op), Err(MalformedOp { code: op.code, variant: op.variant }));
    refused(Op::default());
    refused(Op { code: LAST + 1, ..Op::default() });
    refused(Op { code: u16::MAX, ..Op::default() });
    for bytes in [0, 3, 5, 16] {
        refused(Op { code: code::READ_MEMORY, variant: bytes, ..Op::default() });
    }
    refused(Op { code: code::READ_PORT, variant: 1, a: 0x1_0000, ..Op::default() });
    refused(Op { code: code::READ_MSR, a: 1 << 32, ..Op::default() });
    refused(Op { code: code::INIT_GIC, variant: 4, ..Op::default() });
    refused(Op { code: code::ENABLE_INTID, variant: 2, ..Op::default() });
    refused(Op { code: code::HOLD_REGISTERS, variant: 3, ..Op::default() });
}

#[test]
fn statuses_and_widths_have_one_number_each() {
    for raw in 0..=4 {
        assert_eq!(Status::from_raw(raw).map(|status| status as u32), Some(raw));
    }
    assert_eq!(Status::from_raw(5), None);
    assert_eq!(Width::ALL.map(|width| Width::from_bytes(width.bytes())), Width::ALL.map(Some));
    assert_eq!(Width::ALL.map(|width| width.truncate(u64::MAX)), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
}

#[test]
fn interrupts_have_a_slot_each() {
    assert_eq!([0, 255, 1023, 8192, 9215].map(irq_slot), [0, 255, 1023, 1024, 2047].map(Some));
    assert_eq!([1024, 8191, 9216, u64::MAX].map(irq_slot), [None; 4]);
}

#[test]
fn system_registers_have_the_architectures_encoding() {
    // CNTVCT_EL0 is S3_3_C14_C0_2: MRS Xt has bits 19:5 of the instruction so.
    assert_eq!(0xd530_0000 | (u32::from(system_register(3, 3, 14, 0, 2) & 0x7fff) << 5), 0xd53b_e040);
    assert_eq!(system_register(3, 3, 14, 0, 2), 0xdf02);
}

#[test]
fn held_values_differ() {
    let mut values = [0; 64];
    for (index, value) in values.iter_mut().enumerate() {
        *value = held_value(0x0123_4567_89ab_cdef, index as u64);
    }
    values.sort_unstable();
    assert!(values.windows(2).all(|pair| pair[0] != pair[1]));
}
