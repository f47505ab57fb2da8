use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::disk::Releases;
use crate::testing::MemoryDisk;

/// An image whose host hangs when it is closed.
struct Hanging {
    disk: Arc<MemoryDisk>,
    closing: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    // After the rest, as in an image.
    releases: Releases,
}

impl Disk for Hanging {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }
    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        self.disk.open_queue(depth)
    }
    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.disk.on_resize(listener)
    }
}

impl ImageDisk for Hanging {
    fn refresh(&self) -> Result<u64, BlockError> {
        Ok(self.disk.info().size)
    }
    fn on_release(&self, tell: Box<dyn FnOnce() + Send>) {
        self.releases.add(tell);
    }

    fn hold(&self, _held: bool) -> Result<(), BlockError> {
        Ok(())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.closing.send(()).unwrap();
        self.go_on.get_mut().unwrap_or_else(PoisonError::into_inner).recv().unwrap();
    }
}

#[test]
fn nobody_waits_for_a_host_that_hangs_when_an_image_is_closed() {
    let (begun, closing) = channel();
    let (go_on, hangs) = channel();
    let (tell, told) = channel();
    let disk = MemoryDisk::new(1 << 20, 512);
    let image = Hanging { disk, closing: begun, go_on: Mutex::new(hangs), releases: Releases::default() };
    let image = ClosingDisk::new(Arc::new(image));
    image.on_release(Box::new(move || tell.send(()).unwrap()));
    let queue = image.open_queue(4).unwrap();
    drop(image);
    assert!(closing.try_recv().is_err(), "a queue has it still");
    // This returns, though nobody lets the image go on.
    drop(queue);
    closing.recv().unwrap();
    assert!(told.try_recv().is_err(), "it is not closed yet");
    go_on.send(()).unwrap();
    told.recv().unwrap();
}
