use proptest::prelude::*;
use skep_bus::Device;
use skep_chipset::fw_cfg::{MEMORY_REGION, NamedItem};
use skep_clock::Clock;
use skep_memory::RamOptions;

use super::*;

/// Where RAM is: two parts with a hole between them, and memory that a guest can only read at the end of the second.
const RAM: [(u64, u64); 2] = [(0, 1 << 20), (2 << 20, 1 << 20)];
const ROM: (u64, u64) = (3 << 20, 64 << 10);

fn memory() -> MemoryMap {
    let memory = MemoryMap::new();
    let add = |name, kind, (base, size)| {
        let backing = Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
        memory.add(Region::new(name, kind, base, size, backing, 0).unwrap()).unwrap();
    };
    RAM.into_iter().for_each(|part| add("RAM", RegionKind::Ram, part));
    add("ROM", RegionKind::ReadOnly, ROM);
    memory
}

/// What a part of memory that is not zero lies between.
fn changed(memory: &MemoryMap) -> Option<(u64, u64)> {
    let mut bytes = vec![0; 1 << 20];
    let mut found: Option<(u64, u64)> = None;
    for region in memory.regions() {
        let bytes = &mut bytes[..region.size() as usize];
        region.read_slice(bytes, skep_memory::vm_memory::MemoryRegionAddress(0)).unwrap();
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            let gpa = region.gpa() + at as u64;
            let (first, _) = found.unwrap_or((gpa, gpa));
            found = Some((first, gpa));
        }
    }
    found
}

/// Has the guest say by DMA that its page is there.
fn say(fw_cfg: &FwCfg, memory: &MemoryMap, page: u64) {
    let first_file = u32::from(key::FIRST_FILE);
    let request = [&(first_file << 16 | 0x18).to_be_bytes()[..], &8u32.to_be_bytes(), &0x20u64.to_be_bytes()].concat();
    memory.ram().write_slice(&request, GuestAddress(0)).unwrap();
    memory.ram().write_slice(&page.to_le_bytes(), GuestAddress(0x20)).unwrap();
    let _ = fw_cfg.write(MEMORY_REGION, 16, &[0; 8]);
    memory.ram().write_slice(&[0; 0x28], GuestAddress(0)).unwrap();
}

fn address() -> impl Strategy<Value = u64> {
    let edges = [0, 1 << 20, 2 << 20, 3 << 20, (3 << 20) + (64 << 10), u64::MAX];
    let near = (prop::sample::select(edges.to_vec()), 0..200u64)
        .prop_map(|(edge, off)| edge.wrapping_add(off).wrapping_sub(100));
    prop_oneof![near, 0..4u64 << 20, any::<u64>()]
}

proptest! {
    /// Whatever a guest says is its page, the id goes there if that is RAM, and else nowhere.
    #[test]
    fn fuzz_a_generation_id_goes_nowhere_but_to_its_place(page in address()) {
        let memory = memory();
        let files = vec![NamedItem::new(file::GENERATION_ADDRESS, Content::Written(8))];
        let dma = memory.dma(RequesterId(0), BusMaster::always());
        let fw_cfg = FwCfg::new(FwCfgConfig { dma, items: Vec::new(), files });
        prop_assert!(!renew_generation(&fw_cfg, &memory).unwrap(), "nobody has said where");
        say(&fw_cfg, &memory, page);
        prop_assert_eq!(fw_cfg.written(file::GENERATION_ADDRESS).unwrap(), page.to_le_bytes());

        let told = renew_generation(&fw_cfg, &memory).unwrap();
        let start = u128::from(page) + GENERATION_OFFSET as u128;
        let fits = |(base, size): (u64, u64)| (u128::from(base)..=u128::from(base + size - 16)).contains(&start);
        prop_assert_eq!(told, page != 0 && RAM.into_iter().any(fits));
        match changed(&memory) {
            // An id of nothing but zeroes does not come.
            Some((first, last)) => prop_assert!(told && u128::from(first) >= start && u128::from(last) < start + 16),
            None => prop_assert!(!told),
        }
    }
}

/// What a backend was told of posted writes.
#[derive(Default)]
struct Posting(Mutex<Vec<(bool, Range<u64>)>>);

impl PostedWrites for Posting {
    fn attach(&self, range: Range<u64>) -> Result<(), skep_hypervisor::HypervisorError> {
        self.0.lock().unwrap().push((true, range));
        Ok(())
    }

    fn detach(&self, range: Range<u64>) -> Result<(), skep_hypervisor::HypervisorError> {
        self.0.lock().unwrap().push((false, range));
        Ok(())
    }
}

/// A bank is memory, or has its writes posted, or neither: as its mode is, after each write that says so.
#[test]
fn writes_to_flash_are_posted_while_a_buffer_is_filled() {
    const BASE: u64 = 64 << 20;
    let backing = |size| Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
    let variables = Variables { content: backing(1 << 20), file: None };
    let flash = vars_bank(variables, BASE, flash::Geometry::VIRT, &Clock::manual(0)).unwrap();
    let (memory, posting, code) = (MemoryMap::new(), Arc::<Posting>::default(), backing(64 << 10));
    let overlay = Overlay::new(memory.clone(), Some(posting.clone()));
    let bank = BASE..BASE + (1 << 20);
    let is_memory = || memory.regions().iter().any(|region| region.gpa() == BASE);
    let put = |value: u32| {
        let action = flash.write(0, 0, &value.to_le_bytes());
        if action == skep_bus::Action::Remap {
            overlay.update(|| reach(Piece::rom("firmware", 0, &code), Some(&flash)));
        }
        (is_memory(), std::mem::take(&mut *posting.0.lock().unwrap()))
    };
    overlay.update(|| reach(Piece::rom("firmware", 0, &code), Some(&flash)));
    assert!(is_memory());
    assert_eq!(put(0x00e8_00e8), (false, vec![]));
    assert_eq!(put(0x0001_0001), (false, vec![(true, bank.clone())]), "two words come");
    assert_eq!(put(0x1234_5678), (false, vec![]));
    assert_eq!(put(0x1234_5678), (false, vec![]));
    assert_eq!(put(0x00d0_00d0), (false, vec![(false, bank.clone())]));
    assert_eq!(put(0x00ff_00ff), (true, vec![]));
    // A machine that is reset in the midst of it.
    assert_eq!(put(0x00e8_00e8), (false, vec![]));
    assert_eq!(put(0x0001_0001), (false, vec![(true, bank.clone())]));
    overlay.update(|| reach(Piece::rom("firmware", 0, &code), None));
    assert_eq!(*posting.0.lock().unwrap(), [(false, bank)]);
}
