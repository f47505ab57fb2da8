//! An image whose end nobody waits for.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{
    BlockError, Completion, Disk, DiskInfo, DiskQueue, ImageDisk, Request, ResizeListener, ResizeSubscription,
};

#[cfg(test)]
#[path = "closing_test.rs"]
mod test;

/// The image, which is closed by a thread of its own when nobody has it any more.
struct Last(Option<Arc<dyn ImageDisk>>);

impl Last {
    fn image(&self) -> &Arc<dyn ImageDisk> {
        self.0.as_ref().expect("an image is there until it is dropped")
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        let image = self.0.take();
        let closing = std::thread::Builder::new().name("close".to_owned());
        if let Err(error) = closing.spawn(move || drop(image)) {
            tracing::warn!("an image is closed by who used it last, who may have to wait: {error}");
        }
    }
}

/// An image that may have much to write when it is closed, to a host that hangs: whoever drops it, or a queue of its, last goes on at once.
/// [`ImageDisk::on_release`] tells when it has been closed.
pub struct ClosingDisk(Arc<Last>);

impl ClosingDisk {
    /// Takes charge of `image`, of which nobody else has a share.
    #[must_use]
    pub fn new(image: Arc<dyn ImageDisk>) -> Arc<Self> {
        Arc::new(Self(Arc::new(Last(Some(image)))))
    }
}

impl Disk for ClosingDisk {
    fn info(&self) -> DiskInfo {
        self.0.image().info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let queue = self.0.image().open_queue(depth)?;
        Ok(Box::new(Queue { queue, _last: self.0.clone() }))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.0.image().on_resize(listener)
    }
}

impl ImageDisk for ClosingDisk {
    fn refresh(&self) -> Result<u64, BlockError> {
        self.0.image().refresh()
    }

    fn on_release(&self, tell: Box<dyn FnOnce() + Send>) {
        self.0.image().on_release(tell);
    }

    fn settle(&self) -> Result<(), BlockError> {
        self.0.image().settle()
    }

    fn hold(&self, held: bool) -> Result<(), BlockError> {
        self.0.image().hold(held)
    }
}

struct Queue {
    // What it has of the image goes before its share in it.
    queue: Box<dyn DiskQueue>,
    _last: Arc<Last>,
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.queue.submit(request)
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.queue.reap(done);
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.queue.event()
    }

    fn cancel(&mut self, tag: u64) {
        self.queue.cancel(tag);
    }
}
