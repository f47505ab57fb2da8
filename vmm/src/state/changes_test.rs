use proptest::prelude::*;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, DirtySource, MemoryMap, RamOptions, RegionKind};

use super::*;

/// A backend whose vCPUs write nothing.
struct Still;

impl DirtySource for Still {
    fn set_logging(&self, _on: bool) -> Result<(), String> {
        Ok(())
    }

    fn take(&self, _region: &Region, _into: &mut [u64]) -> Result<(), String> {
        Ok(())
    }
}

fn origin(name: &str) -> Origin {
    Origin { folder: name.into(), header: Checksum(1) }
}

#[test]
fn what_is_not_in_a_snapshot_yet_is_in_the_next() {
    let map = MemoryMap::new();
    for gpa in [0, 1 << 32] {
        let backing = Arc::new(Backing::new(70 * PAGE_SIZE, &RamOptions::default()).unwrap());
        map.add(Region::new("RAM", RegionKind::Ram, gpa, 70 * PAGE_SIZE, backing, 0).unwrap()).unwrap();
    }
    let ram = map.regions();
    let touch = |gpa: u64| map.ram().write_slice(&[1], GuestAddress(gpa)).unwrap();
    touch(0);
    let tracker = Tracker::begin(Arc::new(DirtyLog::new(map.clone(), Arc::new(Still))), None).unwrap();
    touch(69 * PAGE_SIZE);
    touch(1 << 32);
    touch(64 * PAGE_SIZE);
    touch(63 * PAGE_SIZE);
    let changes = tracker.take().unwrap();
    assert_eq!((changes.runs(&ram), &changes.origin), (vec![63..65, 69..70, 70..71], &None));
    // The snapshot comes to nothing, and meanwhile the guest goes on.
    touch(5 * PAGE_SIZE);
    drop(changes);
    let changes = tracker.take().unwrap();
    assert_eq!(changes.runs(&ram), [5..6, 63..65, 69..70, 70..71]);
    changes.saved(origin("one"));
    let changes = tracker.take().unwrap();
    assert_eq!((changes.runs(&ram), changes.origin.clone()), (vec![], Some(origin("one"))));
}

proptest! {
    #[test]
    fn any_runs_are_read_as_they_were_written(lengths in prop::collection::vec((0_u64..5, 1_u64..5), 0..20)) {
        let mut at = 0;
        let one = |(gap, count): (u64, u64)| {
            let start = at + gap;
            at = start + count;
            start..at
        };
        let runs: Runs = lengths.into_iter().map(one).collect();
        prop_assert_eq!(decode(&encode(&runs), at), Ok(runs.clone()));
        prop_assert_eq!(decode(&encode(&runs), at.saturating_sub(1)).is_err(), !runs.is_empty());
    }

    #[test]
    fn any_bytes_are_runs_in_order_or_refused(numbers in prop::collection::vec(prop_oneof![0_u64..40, any::<u64>()], 0..8), cut in 0_usize..3) {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(runs) = decode(&bytes, 64) {
            prop_assert!(runs.iter().all(|run| run.start < run.end && run.end <= 64));
            prop_assert!(runs.is_sorted_by(|one, next| one.end <= next.start));
        }
    }
}
