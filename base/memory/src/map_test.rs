use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::RequesterId;
use crate::{Backing, DmaError, RamOptions};

fn region(name: &str, kind: RegionKind, gpa: u64, size: u64) -> Region {
    let backing = Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
    Region::new(name, kind, gpa, size, backing, 0).unwrap()
}

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(char, u64)>>,
    refuse: Option<u64>,
}

impl Listener for Recorder {
    fn name(&self) -> &'static str {
        "the recorder"
    }
    fn added(&self, region: &Arc<Region>) -> Result<(), String> {
        if self.refuse == Some(region.gpa()) {
            return Err("no slot left".into());
        }
        self.seen.lock().unwrap().push(('+', region.gpa()));
        Ok(())
    }
    fn removed(&self, region: &Arc<Region>) -> Result<(), String> {
        self.seen.lock().unwrap().push(('-', region.gpa()));
        Ok(())
    }
}

#[test]
fn listeners_follow_and_a_refusal_changes_nothing() {
    let map = MemoryMap::new();
    map.add(region("low", RegionKind::Ram, 0, 0x1000)).unwrap();
    let (first, second) =
        (Arc::new(Recorder::default()), Arc::new(Recorder { refuse: Some(0x8000), ..Recorder::default() }));
    map.listen(first.clone()).unwrap();
    map.listen(second).unwrap();
    let error = map.add(region("high", RegionKind::Ram, 0x8000, 0x1000)).unwrap_err().to_string();
    assert_eq!(error, "the recorder refuses guest memory `high` at 0x8000: no slot left");
    map.remove(0).unwrap();
    assert_eq!(*first.seen.lock().unwrap(), [('+', 0), ('+', 0x8000), ('-', 0x8000), ('-', 0)]);
    assert!(map.regions().is_empty());
    assert!(matches!(map.remove(0), Err(MemoryError::NoRegion { gpa: 0 })));
}

#[test]
fn dma_reaches_ram_only_and_honours_bus_mastering() {
    let map = MemoryMap::new();
    let master = BusMaster::default();
    let dma = map.dma(RequesterId(0x18), master.clone());
    assert_eq!(dma.write(0x1000, &[1]), Err(DmaError::NotBusMaster { requester: 0x18 }));
    master.set(true);
    assert_eq!(dma.read(0x1000, &mut [0]), Err(DmaError::NotRam { requester: 0x18, gpa: 0x1000, len: 1 }));
    // A view follows the map: the same handle sees RAM that came later.
    map.add(region("ram", RegionKind::Ram, 0x1000, 0x2000)).unwrap();
    map.add(region("flash", RegionKind::ReadOnly, 0x3000, 0x1000)).unwrap();
    map.add(region("bar", RegionKind::Device, 0x4000, 0x1000)).unwrap();
    dma.write_obj(0x2ffc, 0x1234_5678_u32).unwrap();
    assert_eq!(dma.read_obj::<u32>(0x2ffc), Ok(0x1234_5678));
    assert!(dma.write(0x2ffe, &[0; 4]).is_err(), "into flash");
    assert!(dma.write(0x4000, &[0; 4]).is_err(), "into a BAR");
    assert!(dma.read(u64::MAX - 1, &mut [0; 4]).is_err());
    assert_eq!(map.ram().num_regions(), 1);
    assert!(map.ram().read_obj::<u32>(GuestAddress(0x2ffc)).is_ok());
}

#[test]
fn what_is_not_made_of_pages_is_refused() {
    let backing = Arc::new(Backing::new(0x2000, &RamOptions::default()).unwrap());
    let new = |gpa, size, offset| Region::new("r", RegionKind::Ram, gpa, size, backing.clone(), offset).is_ok();
    assert!(new(0x1000, 0x1000, 0x1000));
    assert!(!new(0x1000, 0, 0) && !new(1, 0x1000, 0) && !new(0, 0x1001, 0) && !new(0, 0x1000, 0x10));
    assert!(!new(0, 0x2000, 0x1000) && !new(0, 0x1000, u64::MAX - 0xfff) && !new(u64::MAX - 0xfff, 0x1000, 0));
}

proptest! {
    #[test]
    fn regions_never_overlap(places in proptest::collection::vec((0u64..32, 1u64..8), 1..12)) {
        let map = MemoryMap::new();
        let mut model: Vec<(u64, u64)> = Vec::new();
        for (page, pages) in places {
            let (start, end) = (page * 0x1000, (page + pages) * 0x1000);
            let free = model.iter().all(|(s, e)| end <= *s || *e <= start);
            let added = map.add(region("r", RegionKind::Ram, start, end - start));
            prop_assert_eq!(added.is_ok(), free);
            if free {
                model.push((start, end));
            }
        }
        prop_assert_eq!(map.regions().len(), model.len());
        prop_assert_eq!(map.ram().num_regions(), model.len());
    }
}
