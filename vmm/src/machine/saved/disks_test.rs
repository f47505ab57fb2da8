use std::thread;

use skep_block::testing::{Fault, FaultDisk, MemoryDisk};
use skep_block::{BlockError, Disk as _, DiskInfo, DiskQueue, ResizeListener, ResizeSubscription};
use skep_config::ArchKind;

use super::*;
use crate::state::Why;

/// An image whose host answers as it is told.
struct Image(Arc<FaultDisk>);

impl skep_block::Disk for Image {
    fn info(&self) -> DiskInfo {
        self.0.info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        self.0.open_queue(depth)
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.0.on_resize(listener)
    }
}

impl ImageDisk for Image {
    fn refresh(&self) -> Result<u64, BlockError> {
        Ok(self.info().size)
    }

    fn on_release(&self, _tell: Box<dyn FnOnce() + Send>) {}

    fn hold(&self, _held: bool) -> Result<(), BlockError> {
        Ok(())
    }
}

/// A host that does not answer a flush keeps neither who saves nor who sends a machine away: the flush is left alone, with its disk, until it has ended.
#[test]
fn a_flush_that_hangs_can_be_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, [0; 4096]).unwrap();
    let memory = MemoryDisk::new(4096, 512);
    let fault = FaultDisk::new(memory.clone());
    let image: Arc<dyn ImageDisk> = Arc::new(Image(fault.clone()));
    let mut config = Config::new(ArchKind::X86_64);
    config.disk = vec![format!("{},format=raw,id=disk0", path.display()).parse().unwrap()];
    let disks = vec![(config.disk.remove(0), path, image)];
    let images = DiskImages { disks, variables: None };
    assert_eq!(images.flush_while(&Wanted::default()).unwrap().disks[0].size, 4096);
    assert_eq!(memory.counts().flushes, 1);
    DiskImages::flush_early(images.weak(), &Wanted::default()).unwrap();
    assert_eq!(memory.counts().flushes, 2);
    fault.set_rule(|_| Some(Fault::HangForGood));
    for (number, early, why) in [(1, false, Why::Cancelled), (2, true, Why::Ended)] {
        let wanted = Arc::<Wanted>::default();
        let (other, images) = (wanted.clone(), images.clone());
        let waits = thread::spawn(move || match early {
            true => DiskImages::flush_early(images.weak(), &other),
            false => images.flush_while(&other).map(drop),
        });
        fault.wait_hanging(number);
        assert!(wanted.give_up(why));
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), SnapshotError::from(why).to_string());
    }
    // Each holds the image for as long as its flush is under way.
    fault.clear_rule();
    let (_, _, image) = &images.disks[0];
    assert_eq!(Arc::strong_count(image), 3);
    fault.release();
    drop(images);
    while Arc::strong_count(&fault) > 1 {
        thread::yield_now();
    }
    assert_eq!(memory.counts().flushes, 4);
}

/// By its time alone it is known that an image was written: also right after a save.
#[test]
fn who_writes_after_a_save_gives_the_image_another_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let saved = |changed_nanos| DisksState {
        disks: vec![DiskReference {
            id: "disk0".to_owned(),
            path: path.display().to_string(),
            format: "raw".to_owned(),
            size: 512,
            changed_nanos,
            behind: None,
        }],
    };
    for round in 0..20 {
        std::fs::write(&path, [round; 512]).unwrap();
        let before = changed(&path).unwrap();
        DiskImages::outlast(&saved(before));
        assert!(before.is_some_and(|before| file_clock() > before));
        std::fs::write(&path, [round; 512]).unwrap();
        assert_ne!(changed(&path).unwrap(), before);
    }
    // Of one without a time, of one of long ago and of one that is to come nobody waits for long.
    for other in [None, Some(0), Some(i64::MAX), Some(i64::MIN)] {
        DiskImages::outlast(&saved(other));
    }
}
