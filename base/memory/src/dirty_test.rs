use super::*;
use crate::{Backing, BusMaster, RamOptions, RequesterId};

/// A backend whose vCPUs write the pages that a test names.
#[derive(Default)]
struct Backend {
    logging: Mutex<bool>,
    written: Mutex<Vec<u64>>,
}

impl DirtySource for Backend {
    fn set_logging(&self, on: bool) -> Result<(), String> {
        *self.logging.lock().unwrap() = on;
        Ok(())
    }
    fn take(&self, region: &Region, into: &mut [u64]) -> Result<(), String> {
        self.written.lock().unwrap().retain(|gpa| {
            let here = (region.gpa()..region.gpa() + region.size()).contains(gpa);
            if here {
                let page = (gpa - region.gpa()) / PAGE_SIZE;
                into[(page / 64) as usize] |= 1 << (page % 64);
            }
            !here
        });
        Ok(())
    }
}

#[test]
fn every_consumer_sees_every_page_once() {
    let map = MemoryMap::new();
    for gpa in [0, 0x100_0000] {
        let backing = Arc::new(Backing::new(0x10_0000, &RamOptions::default()).unwrap());
        map.add(Region::new("ram", RegionKind::Ram, gpa, 0x10_0000, backing, 0).unwrap()).unwrap();
    }
    let dma = map.dma(RequesterId(0), BusMaster::always());
    let backend = Arc::new(Backend::default());
    let log = DirtyLog::new(map, backend.clone());
    dma.write(0x5000, &[1]).unwrap();

    let migration = log.subscribe("migration").unwrap();
    assert!(*backend.logging.lock().unwrap());
    assert_eq!(log.take(migration).unwrap(), [], "what was written before is not its business");
    // Two pages by a device at once, one by a vCPU.
    dma.write(0x3fff, &[1, 2]).unwrap();
    backend.written.lock().unwrap().push(0x100_0000 + 65 * PAGE_SIZE);
    let snapshot = log.subscribe("snapshot").unwrap();
    assert_eq!(log.consumers(), ["migration", "snapshot"]);
    backend.written.lock().unwrap().push(0);

    let first = log.take(migration).unwrap();
    assert_eq!(first.len(), 2);
    assert_eq!((first[0].0, first[0].1[0]), (0, 0b1_1001));
    assert_eq!((first[1].0, first[1].1[1]), (0x100_0000, 0b10));
    assert_eq!(log.take(migration).unwrap(), []);
    let second = log.take(snapshot).unwrap();
    assert_eq!((second.len(), second[0].1[0]), (1, 1));

    log.unsubscribe(migration).unwrap();
    assert!(*backend.logging.lock().unwrap());
    log.unsubscribe(snapshot).unwrap();
    assert!(!*backend.logging.lock().unwrap());
}
