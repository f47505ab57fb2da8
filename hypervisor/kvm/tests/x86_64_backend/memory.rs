//! Guest memory: read-only regions, doorbells, the dirty log.

use std::sync::Arc;

use skep_hypervisor::x86_64::GeneralRegisters;
use skep_hypervisor::{Doorbell, DoorbellSpace, Exit, X86_64};
use skep_memory::{Backing, DirtyLog, RamOptions, Region, RegionKind};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest;
use crate::machine::{Access, DEVICE, Device, Machine};

fn region(name: &str, kind: RegionKind, gpa: u64, size: u64) -> Region {
    let backing = Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
    Region::new(name, kind, gpa, size, backing, 0).unwrap()
}

fn again(machine: &mut Machine, code: &[u8], registers: GeneralRegisters) -> Device {
    machine.vcpu().reset().unwrap();
    let mut device = machine.boot(code, registers);
    assert_eq!(machine.run(&mut device), Exit::Kicked);
    device
}

#[test]
fn writes_to_read_only_memory_reach_the_device_and_reads_do_not() {
    let mut machine = Machine::new();
    machine.memory.add(region("ROM", RegionKind::ReadOnly, DEVICE, 0x1000)).unwrap();
    let registers = GeneralRegisters { rax: 0x4433_2211, rdi: DEVICE, ..Default::default() };
    let device = again(&mut machine, guest::memory(), registers);
    let writes = [(1, 0x11), (2, 0x2211), (4, 0x4433_2211)].map(|(width, value)| Access::Write(DEVICE, width, value));
    assert_eq!(device.accesses, writes);
    assert_eq!(machine.save().general.rdx, 0, "the ROM is as it was");

    machine.memory.remove(DEVICE).unwrap();
    let device = again(&mut machine, guest::memory(), registers);
    assert_eq!(device.accesses.len(), 6);
}

#[test]
fn the_dirty_log_has_exactly_the_pages_written() {
    let mut machine = Machine::new();
    // Beyond one step in which KVM forgets what was read.
    let size = 600 << 20;
    machine.memory.add(region("more RAM", RegionKind::Ram, 0x1000_0000, size)).unwrap();
    let touch = |machine: &mut Machine, address, pages| {
        again(machine, guest::touch(), GeneralRegisters { rdi: address, rcx: pages, ..Default::default() })
    };
    touch(&mut machine, 0x1000_0000, 4);

    let log = DirtyLog::new(machine.memory.clone(), machine.parts.vm.dirty_source().unwrap());
    let consumer = log.subscribe("test").unwrap();
    touch(&mut machine, 0x1000_3000, 2);
    touch(&mut machine, 0x1000_0000 + size - 0x3000, 3);
    let pages = |log: &DirtyLog| -> Vec<u64> {
        let taken = log.take(consumer).unwrap();
        let bits = taken.into_iter().find(|(gpa, _)| *gpa == 0x1000_0000).map(|(_, bits)| bits).unwrap_or_default();
        (0..size / 0x1000)
            .filter(|page| bits.get(*page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1))
            .collect()
    };
    let last = size / 0x1000;
    assert_eq!(pages(&log), [3, 4, last - 3, last - 2, last - 1]);
    assert_eq!(pages(&log), [0; 0], "each page is seen once");
    touch(&mut machine, 0x1000_4000, 1);
    assert_eq!(pages(&log), [4]);
    log.unsubscribe(consumer).unwrap();
}

#[test]
fn an_attached_doorbell_makes_no_callback() {
    let mut machine = Machine::new();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = |width, value| Doorbell { space: DoorbellSpace::Memory, address: DEVICE, width, value };
    let vm = machine.parts.vm.clone();
    let bells = skep_hypervisor::Vm::<X86_64>::doorbells(&*vm).unwrap();
    let registers = GeneralRegisters { rax: 0x4433_2211, rdi: DEVICE, ..Default::default() };

    bells.attach(bell(Some(2), Some(0x2211)), &fd).unwrap();
    let device = again(&mut machine, guest::memory(), registers);
    assert_eq!((device.accesses.len(), fd.read().unwrap()), (5, 1), "only the write of that width and value");
    bells.detach(bell(Some(2), Some(0x2211)), &fd).unwrap();

    bells.attach(bell(None, None), &fd).unwrap();
    let device = again(&mut machine, guest::memory(), registers);
    assert_eq!((device.accesses.len(), fd.read().unwrap()), (3, 3), "all writes, and no read");
    bells.detach(bell(None, None), &fd).unwrap();
    let device = again(&mut machine, guest::memory(), registers);
    assert_eq!(device.accesses.len(), 6);

    let error = bells.detach(bell(None, None), &fd).unwrap_err().to_string();
    assert!(error.contains("doorbell at Memory 0xd0000000 (there is none)"), "{error}");
    assert!(bells.attach(bell(None, Some(1)), &fd).is_err(), "a value needs a width");

    let port = Doorbell { space: DoorbellSpace::Port, address: 0x200, width: Some(1), value: None };
    bells.attach(port, &fd).unwrap();
    let device = again(&mut machine, guest::ports(), GeneralRegisters { rsi: 0x8000, rdi: 0x9000, ..registers });
    assert_eq!((device.written(0x200, 0x11), fd.read().unwrap()), (0, 1));
}
