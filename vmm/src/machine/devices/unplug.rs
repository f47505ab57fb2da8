//! Devices that leave while the guest runs.
//!
//! A device leaves in steps: the guest is asked, the guest lets go (its slot is off and empty), what the device has in flight ends, and what it
//! used on the host is free. Until the last of them its name and its place are not another's.

use std::sync::Arc;

use skep_block::BlockError;
use skep_pci::{Endpoint, PciError, PciPlace, RootComplex, SlotState, Unplug};

use super::{AtLast, DeviceInfo, DeviceState, Devices, Image, Kind, Placed};

/// Why a device can't leave, or change.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// No device has that name.
    #[error("there is no device `{id}`\n  try: {known}")]
    UnknownId {
        /// The name.
        id: String,
        /// Those that there are.
        known: String,
    },
    /// It is there for good.
    #[error(
        "`{id}` is at {place} and can't leave while the guest runs\n  try: a place behind a root port when the machine starts: place=port:NUMBER"
    )]
    NotRemovable {
        /// The device.
        id: String,
        /// Its place.
        place: PciPlace,
    },
    /// A controller keeps one namespace.
    #[error("`{id}` is the last disk of `{controller}`\n  try: remove `{controller}`")]
    LastNamespace {
        /// The disk.
        id: String,
        /// Its controller.
        controller: String,
    },
    /// The guest knows.
    #[error(
        "the guest has been asked already to let `{id}` go\n  \
         try: wait, Linux takes 5 seconds; or --again for a guest that has not heard (one that has takes it for a change of mind)"
    )]
    AlreadyAsked {
        /// The device.
        id: String,
    },
    /// It has no size.
    #[error("`{id}` is no disk\n  try: {known}")]
    NoDisk {
        /// The device.
        id: String,
        /// The disks that there are.
        known: String,
    },
    /// A restart has made the guest forget.
    #[error("the machine was restarted before its guest let `{id}` go\n  try: remove it again")]
    Restarted {
        /// The device.
        id: String,
    },
    /// There is none of its kind.
    #[error("this machine has no {kind}\n  try: one when it starts, by {flag}")]
    NoDevice {
        /// Which.
        kind: &'static str,
        /// What would have given it one.
        flag: &'static str,
    },
    /// Its slot.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Its image.
    #[error(transparent)]
    Disk(#[from] BlockError),
}

/// How a removal has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The device has gone, and what it used on the host is free.
    Gone,
    /// The machine was restarted before the guest let go.
    Restarted,
}

/// Told of the end of a removal, on any thread.
pub(in crate::machine) type Waiter = Box<dyn FnOnce(Removal) + Send>;

/// What a removal has come to at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine) enum Removing {
    /// The guest has been asked.
    Asked,
    /// The guest has let go, or need not be asked. What is decoded may have changed.
    Going,
}

/// A device that the guest has let go, until what it used is free.
pub(super) struct Going {
    id: String,
    kind: &'static str,
    place: PciPlace,
    /// The disks that go with it.
    disks: Vec<String>,
    waiting: Vec<Waiter>,
}

impl Going {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn describe(&self) -> DeviceInfo {
        DeviceInfo {
            id: self.id.clone(),
            kind: self.kind.to_owned(),
            place: self.place.to_string(),
            state: DeviceState::Stopping,
            removable: true,
            size: None,
            controller: None,
            namespace: None,
        }
    }
}

fn one_of(names: Vec<String>) -> String {
    if names.is_empty() {
        "`device list`: there is none now".to_owned()
    } else {
        format!("one of {}", names.join(", "))
    }
}

impl Devices {
    /// Begins to remove a device or a namespace. `waiter` is told when it has gone, perhaps before this returns.
    pub(in crate::machine) fn remove(
        &self,
        root: &RootComplex,
        id: &str,
        again: bool,
        waiter: Option<Waiter>,
    ) -> Result<Removing, HotplugError> {
        let place = {
            let mut inner = self.lock();
            if let Some(going) = inner.going.iter_mut().find(|going| going.id == id) {
                going.waiting.extend(waiter);
                return Ok(Removing::Going);
            }
            let Some(device) = inner.placed.iter_mut().find(|device| device.id == id) else {
                drop(inner);
                return self.detach(id, waiter);
            };
            let place = device.place;
            match root.slot_state(place) {
                None => return Err(HotplugError::NotRemovable { id: id.to_owned(), place }),
                Some(SlotState::Leaving) if !again => return Err(HotplugError::AlreadyAsked { id: id.to_owned() }),
                Some(_) => {}
            }
            device.waiting.extend(waiter);
            place
        };
        match root.unplug(place) {
            Ok(Unplug::Asked) => Ok(Removing::Asked),
            // Empty: the guest has let go just now.
            Ok(Unplug::Done) | Err(PciError::PlaceEmpty(_)) => Ok(Removing::Going),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a namespace away from its controller, which tells the guest.
    fn detach(&self, id: &str, waiter: Option<Waiter>) -> Result<Removing, HotplugError> {
        let mut inner = self.lock();
        let has = |device: &&mut Placed| device.images.iter().any(|image| image.id == id);
        let Some(device) = inner.placed.iter_mut().find(has) else {
            drop(inner);
            return Err(HotplugError::UnknownId { id: id.to_owned(), known: one_of(self.names()) });
        };
        let (controller, place) = (device.id.clone(), device.place);
        if device.images.len() == 1 {
            return Err(HotplugError::LastNamespace { id: id.to_owned(), controller });
        }
        let (gone, stay) = std::mem::take(&mut device.images).into_iter().partition(|image| image.id == id);
        device.images = stay;
        let kind = device.kind.clone();
        let gone: Vec<Image> = gone;
        let waiting = waiter.into_iter().collect();
        inner.going.push(Going { id: id.to_owned(), kind: "nvme-namespace", place, disks: Vec::new(), waiting });
        drop(inner);
        let last = self.at_last(id);
        if let Kind::Nvme(nvme) = &kind {
            for number in gone.iter().filter_map(|image| image.namespace) {
                nvme.detach(number);
            }
        }
        gone.iter().for_each(|image| share(&last, image));
        drop(gone);
        Ok(Removing::Going)
    }

    /// The guest has let go of the device that `endpoint` was. What it has in flight may end as it likes: neither a vCPU nor the control thread
    /// waits for it.
    pub(in crate::machine) fn ejected(&self, endpoint: Arc<Endpoint>) {
        let gone = {
            let mut inner = self.lock();
            let at = inner.placed.iter().position(|device| device.place == endpoint.place());
            let Some(mut gone) = at.map(|at| inner.placed.remove(at)) else { return };
            let disks = gone.images.iter().map(|image| image.id.clone()).collect();
            let waiting = std::mem::take(&mut gone.waiting);
            inner.going.push(Going { id: gone.id.clone(), kind: gone.kind.name(), place: gone.place, disks, waiting });
            gone
        };
        tracing::info!("the guest has let `{}` at {} go", gone.id, gone.place);
        let Placed { id, kind, images, .. } = gone;
        let last = self.at_last(&id);
        // A vCPU may still be at its registers.
        let shared = last.clone();
        endpoint.on_release(move || drop(shared));
        drop(endpoint);
        let (done, stopped) = std::sync::mpsc::channel();
        kind.begin_stop(move || {
            // Nobody listens where no thread could be had.
            let _ = done.send(());
        });
        let wait = move || {
            let _ = stopped.recv();
            images.iter().for_each(|image| share(&last, image));
            drop(images);
            drop(kind);
            drop(last);
        };
        if let Err(error) = std::thread::Builder::new().name("eject".to_owned()).spawn(wait) {
            tracing::warn!("`{id}` is let go of at once, with what it has in flight: {error}");
        }
    }

    /// Tells that the device has gone when it is dropped by its last owner.
    fn at_last(&self, id: &str) -> Arc<AtLast> {
        let (this, id) = (self.this.clone(), id.to_owned());
        let tell = move || {
            let Some(devices) = this.upgrade() else { return };
            let waiting = {
                let mut inner = devices.lock();
                let at = inner.going.iter().position(|going| going.id == id);
                at.map(|at| inner.going.remove(at).waiting).unwrap_or_default()
            };
            tracing::info!("`{id}` has gone");
            waiting.into_iter().for_each(|tell| tell(Removal::Gone));
        };
        Arc::new(AtLast(Some(Box::new(tell))))
    }

    /// The machine has been restarted: what the guest was asked for is forgotten.
    pub(in crate::machine) fn restarted(&self) {
        let waiting: Vec<Waiter> =
            self.lock().placed.iter_mut().flat_map(|device| std::mem::take(&mut device.waiting)).collect();
        waiting.into_iter().for_each(|tell| tell(Removal::Restarted));
    }

    /// Whether a device or a disk of that name is there, or has not gone altogether.
    pub(in crate::machine) fn has(&self, id: &str) -> bool {
        let inner = self.lock();
        let placed = |device: &Placed| device.id == id || device.images.iter().any(|image| image.id == id);
        let going = |going: &Going| going.id == id || going.disks.iter().any(|disk| disk == id);
        inner.placed.iter().any(placed) || inner.going.iter().any(going)
    }

    /// Looks at the size of a disk's file again, and tells the guest. Answers it in bytes.
    pub(in crate::machine) fn resize(&self, id: &str) -> Result<u64, HotplugError> {
        let (file, disks) = {
            let inner = self.lock();
            let mut images = inner.placed.iter().flat_map(|device| &device.images);
            let disks: Vec<String> = images.clone().map(|image| image.id.clone()).collect();
            (images.find(|image| image.id == id).map(|image| image.file.clone()), disks)
        };
        let Some(file) = file else {
            let id = id.to_owned();
            return Err(match self.has(&id) {
                true => HotplugError::NoDisk { id, known: one_of(disks) },
                false => HotplugError::UnknownId { id, known: one_of(disks) },
            });
        };
        file.refresh()?;
        Ok(file.info().size)
    }

    /// The names of devices and disks.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for device in &self.lock().placed {
            names.push(device.id.clone());
            names.extend(device.images.iter().map(|image| &image.id).filter(|id| **id != device.id).cloned());
        }
        names
    }
}

/// Keeps `last` until the image is another's to use.
pub(super) fn share(last: &Arc<AtLast>, image: &Image) {
    let share = last.clone();
    image.file.on_release(Box::new(move || drop(share)));
}
