use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use skep_clock::Clock;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, BusMaster, MemoryMap, RamOptions, Region, RegionKind, RequesterId};

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

const RAM: u64 = 2 << 20;
const LATE: &str = "etc/acpi/tables";
const ADDRESS: &str = "etc/vmgenid_addr";

fn memory() -> MemoryMap {
    let memory = MemoryMap::new();
    let backing = Arc::new(Backing::new(RAM, &RamOptions::default()).unwrap());
    memory.add(Region::new("RAM", RegionKind::Ram, 0, RAM, backing, 0).unwrap()).unwrap();
    memory
}

fn device(memory: &MemoryMap) -> FwCfg {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a kernel").unwrap();
    let config = FwCfgConfig {
        dma: memory.dma(RequesterId(0), BusMaster::always()),
        items: vec![(key::CPU_COUNT, vec![2, 0].into()), (key::KERNEL_DATA, Content::File { file, size: 8 })],
        files: vec![
            NamedItem::new(ADDRESS, Content::Written(8)),
            NamedItem::new(LATE, Content::Late(6)),
            NamedItem::new("bootorder", b"/rom@x\0".to_vec()),
        ],
    };
    let device = FwCfg::new(config);
    device.set_late(Box::new(|| vec![b"late".to_vec()]));
    device
}

fn rig() -> Rig<FwCfg> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let memory = memory();
    let device = Arc::new(device(&memory));
    // Requests that make sense, at an address where random accesses find them too.
    let target = device.clone();
    let poke = Box::new(move |value: u64| {
        let request = request((value as u32 & 0x3f_001f) | 8, (value >> 24) as u32 & 0x1ffff, value >> 44);
        memory.ram().write_slice(&request, GuestAddress(0)).unwrap();
        let _ = target.write(MEMORY_REGION, memory::DMA, &[0; 8]);
    });
    Rig { device, clock, log, regions: &[(PORTS_REGION, 12), (MEMORY_REGION, 24)], poke }
}

device_properties!("chipset-fw-cfg", rig);

fn request(control: u32, length: u32, address: u64) -> Vec<u8> {
    let mut bytes = control.to_be_bytes().to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.extend(address.to_be_bytes());
    bytes
}

/// By DMA at ports: the answer, and what is at 0x1000 then.
fn dma(device: &FwCfg, memory: &MemoryMap, control: u32, length: u32, address: u64) -> u32 {
    let ram = memory.ram();
    ram.write_slice(&request(control, length, address), GuestAddress(0x800)).unwrap();
    let _ = device.write(PORTS_REGION, port::DMA, &[0; 4]);
    let _ = device.write(PORTS_REGION, port::DMA + 4, &0x800u32.to_be_bytes());
    let mut answer = [0; 4];
    ram.read_slice(&mut answer, GuestAddress(0x800)).unwrap();
    u32::from_be_bytes(answer)
}

fn at(memory: &MemoryMap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.ram().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn read(device: &FwCfg, number: u16, length: usize) -> Vec<u8> {
    let _ = device.write(PORTS_REGION, port::SELECTOR, &number.to_le_bytes());
    let mut bytes = vec![0xff; length];
    bytes.iter_mut().for_each(|byte| device.read(PORTS_REGION, port::DATA, std::slice::from_mut(byte)));
    bytes
}

/// The number and the size that the directory gives a file.
fn find(device: &FwCfg, name: &str) -> (u16, u32) {
    let directory = read(device, key::FILE_DIRECTORY, 4 + 3 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 3]);
    let entry = directory[4..].chunks(64).find(|entry| entry[8..].starts_with(name.as_bytes())).unwrap();
    (u16::from_be_bytes([entry[4], entry[5]]), u32::from_be_bytes(entry[..4].try_into().unwrap()))
}

#[test]
fn items_are_read_by_registers() {
    let device = device(&memory());
    assert_eq!(read(&device, key::SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(read(&device, key::ID, 4), [3, 0, 0, 0]);
    assert_eq!(read(&device, key::CPU_COUNT, 3), [2, 0, 0]);
    assert_eq!(read(&device, key::KERNEL_DATA, 10), b"a kernel\0\0");
    assert_eq!(read(&device, 0x7777, 2), [0, 0]);
    assert_eq!(find(&device, ADDRESS), (0x22, 8));
    assert_eq!(find(&device, LATE), (0x21, 6));
    assert_eq!(read(&device, find(&device, "bootorder").0, 7), b"/rom@x\0");
    // In memory: a big-endian selector, and data of any width.
    let _ = device.write(MEMORY_REGION, memory::SELECTOR, &[0, 0]);
    let mut data = [0xff; 8];
    device.read(MEMORY_REGION, memory::DATA, &mut data);
    assert_eq!(&data, b"QEMU\0\0\0\0");
    device.read(MEMORY_REGION, memory::DMA, &mut data);
    assert_eq!(&data, b"QEMU CFG");
    let mut half = [0; 4];
    device.read(PORTS_REGION, port::DMA + 4, &mut half);
    assert_eq!(&half, b" CFG");
}

#[test]
fn items_are_read_by_dma() {
    let memory = memory();
    let device = device(&memory);
    let kernel = u32::from(key::KERNEL_DATA) << 16;
    assert_eq!(dma(&device, &memory, kernel | control::SELECT | control::READ, 4, 0x1000), 0);
    assert_eq!(at(&memory, 0x1000, 5), b"a ke\0");
    assert_eq!(dma(&device, &memory, control::SKIP, 1, 0), 0);
    memory.ram().write_slice(&[0xff; 8], GuestAddress(0x1000)).unwrap();
    assert_eq!(dma(&device, &memory, control::READ, 6, 0x1000), 0);
    assert_eq!(at(&memory, 0x1000, 8), b"nel\0\0\0\xff\xff", "zeroes follow its end");
    // More than there is memory for, and more than there is of the item: an error, and nothing is allocated for it, or begun.
    memory.ram().write_slice(&[0xff; 8], GuestAddress(0x1000)).unwrap();
    assert_eq!(dma(&device, &memory, kernel | control::SELECT | control::READ, u32::MAX, 0x1000), control::ERROR);
    assert_eq!(at(&memory, 0x1000, 8), [0xff; 8]);
    assert_eq!(dma(&device, &memory, control::READ, 4, RAM - 2), control::ERROR);
    // A request that is not in RAM is not heard.
    let _ = device.write(MEMORY_REGION, memory::DMA, &u64::MAX.to_be_bytes());
}

/// Many pieces: the item, what is left of its last piece, and zeroes to the end.
#[test]
fn zeroes_follow_an_item_for_as_long_as_they_are_asked_for() {
    let memory = memory();
    let device = device(&memory);
    let length = 5 * PIECE + 77;
    memory.ram().write_slice(&vec![0xff; length + 1], GuestAddress(0x1000)).unwrap();
    let kernel = u32::from(key::KERNEL_DATA) << 16 | control::SELECT | control::READ;
    assert_eq!(dma(&device, &memory, kernel, length as u32, 0x1000), 0);
    let mut wanted = vec![0; length + 1];
    wanted[..8].copy_from_slice(b"a kernel");
    wanted[length] = 0xff;
    assert!(at(&memory, 0x1000, length + 1) == wanted);
    assert_eq!(device.save().offset, length as u64);
    // All of it from beyond the end, and no bytes to nowhere.
    memory.ram().write_slice(&vec![0xff; length], GuestAddress(0x1000)).unwrap();
    assert_eq!(dma(&device, &memory, control::READ, length as u32, 0x1000), 0);
    assert!(at(&memory, 0x1000, length).iter().all(|byte| *byte == 0));
    assert_eq!(dma(&device, &memory, control::READ, 0, RAM), 0);
    assert_eq!(device.save().offset, 2 * length as u64);
}

#[test]
fn only_what_is_there_to_be_written_is_written() {
    let memory = memory();
    let device = device(&memory);
    let select = |name: &str| u32::from(find(&device, name).0) << 16 | control::SELECT;
    memory.ram().write_slice(b"12345678", GuestAddress(0x1000)).unwrap();
    assert_eq!(dma(&device, &memory, select(ADDRESS) | control::WRITE, 9, 0x1000), control::ERROR, "too long");
    assert_eq!(device.written(ADDRESS), Some(vec![0; 8]));
    assert_eq!(dma(&device, &memory, select(ADDRESS) | control::WRITE, 5, 0x1000), 0);
    assert_eq!(dma(&device, &memory, control::WRITE, 3, 0x1000), 0, "from where the last one ended");
    assert_eq!(device.written(ADDRESS), Some(b"12345123".to_vec()));
    assert_eq!(dma(&device, &memory, control::WRITE, 1, 0x1000), control::ERROR, "beyond its end");
    assert_eq!(dma(&device, &memory, select("bootorder") | control::WRITE, 1, 0x1000), control::ERROR);
    assert_eq!(dma(&device, &memory, select(LATE) | control::WRITE, 1, 0x1000), control::ERROR);
    assert_eq!((device.written(LATE), device.written("nothing")), (None, None));
    device.reset();
    assert_eq!(device.written(ADDRESS), Some(vec![0; 8]));
}

#[test]
fn tables_are_made_once_when_first_selected() {
    let memory = memory();
    let device = FwCfg::new(FwCfgConfig {
        dma: memory.dma(RequesterId(0), BusMaster::always()),
        items: Vec::new(),
        files: vec![NamedItem::new("a", Content::Late(4)), NamedItem::new("b", Content::Late(2))],
    });
    let count = Arc::new(AtomicU32::new(0));
    let made = count.clone();
    device.set_late(Box::new(move || {
        let number = made.fetch_add(1, Ordering::Relaxed) as u8;
        vec![vec![number; 3], vec![number + 10; 5]]
    }));
    assert!(device.save().late.is_none());
    assert_eq!(read(&device, 0x21, 3), [10, 10, 0], "cut off at its size");
    assert_eq!(read(&device, 0x20, 5), [0, 0, 0, 0, 0]);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let saved = device.save();
    device.reset();
    assert_eq!(read(&device, 0x20, 4), [1, 1, 1, 0], "and anew after a reset");
    device.restore(&saved).unwrap();
    assert_eq!(read(&device, 0x20, 4), [0, 0, 0, 0], "what was saved holds");
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let device = device(&memory());
    read(&device, 0x21, 1);
    let state = device.save();
    refuses(&state, "late", |s| s.late = Some(vec![vec![0; state::LATE_MAX + 1].into()]));
    let refused = |change: fn(&mut FwCfgState)| {
        let mut state = state.clone();
        change(&mut state);
        device.restore(&state).unwrap_err().to_string()
    };
    assert!(refused(|s| s.written.clear()).contains("`written`"));
    assert!(refused(|s| s.late = Some(vec![])).contains("`late`"));
}

proptest! {
    #[test]
    fn fuzz_requests(requests in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>()), 1..20)) {
        let memory = memory();
        let device = device(&memory);
        for (control, length, address) in requests {
            dma(&device, &memory, control & 0x3f_ffff, length & 0xf_ffff, address & 0x3f_ffff);
        }
    }
}
