//! Guest memory: what is backed, what is not, and what changes.

use skep_guest_protocol::{Operation, Width};
use skep_memory::{Backing, MemoryError, RamOptions, Region, RegionKind};

use super::bus::Space;
use super::rig::{Rig, Stop};
use super::{Subject, Target};

use Operation::{AddMemory, ReadMemory, WriteMemory};

const VALUE: u64 = 0x8182_8384_8586_8788;

/// RAM is read and written in every width without a callback.
pub fn ram_takes_no_callbacks<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let data = rig.allocate(64, 64);
    rig.write_word(data, VALUE);
    let mut operations: Vec<_> = Width::ALL.map(|width| ReadMemory { address: data, width }).into();
    for (place, width) in (1..).zip(Width::ALL) {
        operations.push(WriteMemory { address: data + 8 * place, value: VALUE, width });
    }
    operations.push(AddMemory { address: data + 40, value: 0x1_0000_0001, width: Width::Eight });
    operations.push(AddMemory { address: data + 40, value: u64::MAX, width: Width::Four });
    let results = rig.carry_out(&operations);
    assert_eq!(results[..4], Width::ALL.map(|width| width.truncate(VALUE)));
    let written: Vec<_> = (1..5).map(|place| rig.read_word(data + 8 * place)).collect();
    assert_eq!(written, Width::ALL.map(|width| width.truncate(VALUE)));
    assert_eq!(rig.read_word(data + 40), 0x1_0000_0000, "a 32-bit addition wraps and leaves the upper half");
    assert_eq!(rig.bus.log().len(), 1, "nothing but the list's end has called back");
}

/// Reads and writes of every width where no region is call back, each once, in order, with exact values.
pub fn unbacked_memory_calls_back_with_every_width<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let address = A::DEVICE + 0x10;
    rig.bus.on(Space::Memory, address, |_| VALUE);
    let mut operations = Vec::new();
    for width in Width::ALL {
        operations.push(ReadMemory { address, width });
        operations.push(WriteMemory { address, value: !VALUE, width });
        operations.push(AddMemory { address, value: 1, width });
    }
    let results = rig.carry_out(&operations);
    for (width, results) in Width::ALL.into_iter().zip(results.chunks(3)) {
        assert_eq!(results[0], width.truncate(VALUE), "a read of {width:?}");
    }
    let seen: Vec<_> =
        rig.bus.at(address).iter().map(|a| (a.write, a.width, if a.write { a.value } else { 0 })).collect();
    let expected: Vec<_> = Width::ALL
        .into_iter()
        .flat_map(|width| {
            let len = usize::from(width.bytes());
            let add = [(false, len, 0), (true, len, width.truncate(VALUE + 1))];
            [[(false, len, 0), (true, len, width.truncate(!VALUE))], add].concat()
        })
        .collect();
    assert_eq!(seen, expected);
    let exits = rig.vcpu(0).exits();
    assert_eq!((exits.memory_reads, exits.memory_writes), (8, 9), "the list's end is a write too");
}

/// A region appears and goes while the VM lives: its content is there when it is, and the bus when it is not.
pub fn regions_come_and_go<A: Target>(subject: &Subject<A>) {
    for gpa in A::MORE {
        let mut rig = Rig::new(subject, 1);
        let address = gpa + 0x1238;
        rig.bus.on(Space::Memory, address, |_| VALUE);
        let read = ReadMemory { address, width: Width::Eight };
        let mut operations = vec![read];
        for _ in 0..4 {
            operations.extend(rig.pause());
            operations.push(read);
        }
        let list = rig.list(&operations);
        rig.boot(0, list);
        assert_eq!(rig.run(0), Stop::At(0));
        rig.add_region(RegionKind::Ram, gpa, 16, 0x11);
        assert_eq!(rig.run(0), Stop::At(1));
        rig.map.remove(gpa).expect("the backend lets a region go");
        assert_eq!(rig.run(0), Stop::At(2));
        rig.add_region(RegionKind::Device, gpa, 2, 0x22);
        assert_eq!(rig.run(0), Stop::At(3));
        rig.map.remove(gpa).expect("the backend lets a region go");
        // Elsewhere, and over more than the address.
        rig.add_region(RegionKind::Ram, gpa - 0x1000, 16, 0x33);
        assert_eq!(rig.run(0), Stop::End);
        let results: Vec<_> = rig.results(list).into_iter().step_by(3).collect();
        assert_eq!(results, [VALUE, 0x1111_1111_1111_1111, VALUE, 0x2222_2222_2222_2222, 0x3333_3333_3333_3333]);
        assert_eq!(rig.bus.at(address).len(), 2, "the bus was asked while there was no region");
    }
}

/// Read-only memory is read like RAM; a write to it calls back and changes nothing.
pub fn read_only_memory_is_read_and_not_written<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let gpa = A::MORE[0];
    rig.add_region(RegionKind::ReadOnly, gpa, 4, 0x44);
    let address = gpa + 0x1010;
    let mut operations = Vec::new();
    for width in Width::ALL {
        operations.push(ReadMemory { address, width });
        operations.push(WriteMemory { address, value: VALUE, width });
    }
    operations.push(AddMemory { address, value: 1, width: Width::Four });
    operations.push(ReadMemory { address, width: Width::Eight });
    let results = rig.carry_out(&operations);
    let content = 0x4444_4444_4444_4444;
    for (width, results) in Width::ALL.into_iter().zip(results.chunks(2)) {
        assert_eq!(results[0], width.truncate(content), "a read of {width:?}");
    }
    assert_eq!(results[9], content, "read-only memory is what it was");
    let seen: Vec<_> = rig.bus.at(address).iter().map(|a| (a.write, a.width, a.value)).collect();
    let writes = Width::ALL.map(|width| (true, usize::from(width.bytes()), width.truncate(VALUE)));
    assert_eq!(seen, [&writes[..], &[(true, 4, 0x4444_4445)]].concat());
}

/// What the backend can't map it refuses by the region's name, and goes on.
pub fn bad_regions_are_refused<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let bits = rig.capabilities.address_bits;
    assert!((32..=52).contains(&bits), "{bits} address bits are no CPU's");
    let backing = std::sync::Arc::new(Backing::new(0x1000, &RamOptions::default()).expect("the host gives a page"));
    let beyond = Region::new("beyond", RegionKind::Ram, 1 << bits, 0x1000, backing, 0).expect("it is a whole page");
    match rig.map.add(beyond) {
        Err(MemoryError::Listener { region, gpa, .. }) => assert_eq!((region.as_str(), gpa), ("beyond", 1 << bits)),
        other => panic!("a region beyond {bits} address bits: {other:?}"),
    }
    assert_eq!(rig.map.regions().len(), 1);
    rig.add_region(RegionKind::Ram, A::MORE[0], 1, 0x55);
    let results = rig.carry_out(&[ReadMemory { address: A::MORE[0], width: Width::One }]);
    assert_eq!(results, [0x55]);
}
