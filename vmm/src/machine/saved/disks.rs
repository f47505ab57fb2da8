//! The images behind the disks: flushed before a save is whole, and known again after it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustix::event::{PollFd, PollFlags, poll};
use skep_block::{Buffer, ImageDisk, Operation, Request};
use skep_config::{Config, Disk, DiskSource, Format};

use crate::firmware::hold_vars;
use crate::machine::devices::Devices;
use crate::state::{DiskReference, DisksState, SnapshotError};

/// An image that its machine may let go of.
pub(crate) type WeakImage = (PathBuf, Weak<dyn ImageDisk>);

fn flushing(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Host { what: "flush the disk's image", path, source }
}

/// The images of a machine.
pub struct DiskImages {
    disks: Vec<(Disk, PathBuf, Arc<dyn ImageDisk>)>,
    /// The file of its firmware's variables.
    variables: Option<Arc<File>>,
}

impl DiskImages {
    pub(super) fn new(config: &Config, devices: &Devices, variables: Option<Arc<File>>) -> Self {
        let files = devices.images();
        let find = |disk: &Disk| {
            let id = disk.id.as_deref().unwrap_or_default();
            files
                .iter()
                .find(|(name, _)| name == id)
                .and_then(|(_, file)| Some((disk.clone(), image(disk)?.0.to_owned(), file.clone())))
        };
        Self { disks: config.disk.iter().filter_map(find).collect(), variables }
    }

    /// Makes all that was written last, and says what the images are then. No queue of a device's runs.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub fn flush(&self) -> Result<DisksState, SnapshotError> {
        for (disk, path, file) in &self.disks {
            if !disk.readonly {
                flush(&**file).map_err(flushing(path))?;
                file.settle()?;
            }
        }
        self.describe()
    }

    /// The same of images that are still written: what reaches the medium now need not do so later.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub(crate) fn flush_early(images: &[WeakImage]) -> Result<(), SnapshotError> {
        for (path, image) in images {
            // A disk that was removed is not waited for.
            if let Some(image) = image.upgrade() {
                flush(&*image).map_err(flushing(path))?;
            }
        }
        Ok(())
    }

    /// Those that may be written, without keeping them.
    pub(crate) fn weak(&self) -> Vec<WeakImage> {
        let written = self.disks.iter().filter(|(disk, ..)| !disk.readonly);
        written.map(|(_, path, image)| (path.clone(), Arc::downgrade(image))).collect()
    }

    /// What the images are.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub(crate) fn describe(&self) -> Result<DisksState, SnapshotError> {
        let disks = self.disks.iter().map(|(disk, path, file)| {
            Ok::<_, SnapshotError>(DiskReference {
                id: disk.id.clone().unwrap_or_default(),
                path: path.display().to_string(),
                format: image(disk).map_or("", |(_, format)| name(format)).to_owned(),
                size: file.info().size,
                changed_nanos: changed(path).map_err(flushing(path))?,
            })
        });
        Ok(DisksState { disks: disks.collect::<Result<_, _>>()? })
    }
}

impl DiskImages {
    /// Takes the images' locks, or gives them away, after [`DiskImages::flush`].
    ///
    /// # Errors
    /// [`SnapshotError::Image`] and [`SnapshotError::Host`] where somebody else has taken one.
    pub(crate) fn hold(&self, held: bool) -> Result<(), SnapshotError> {
        if let Some(file) = &self.variables {
            let (what, path) = ("lock", "the firmware's variables".into());
            hold_vars(file, held).map_err(|source| SnapshotError::Host { what, path, source })?;
        }
        Ok(self.disks.iter().try_for_each(|(_, _, image)| image.hold(held))?)
    }
}

/// The image of a disk that has one: not of another program's.
fn image(disk: &Disk) -> Option<(&Path, Format)> {
    match &disk.source {
        DiskSource::Image { file, format } => Some((file, *format)),
        DiskSource::VhostUser { .. } => None,
    }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

/// By a queue of its own, as any device would.
fn flush(file: &dyn ImageDisk) -> io::Result<()> {
    let mut queue = file.open_queue(1).map_err(io::Error::other)?;
    let refused = || io::Error::other("the disk takes no request");
    queue.submit(Request { tag: 0, operation: Operation::Flush, buffer: Buffer::default() }).map_err(|_| refused())?;
    let mut done = Vec::new();
    loop {
        queue.kick();
        queue.reap(&mut done);
        if let Some(completion) = done.pop() {
            return completion.result.map_err(io::Error::other);
        }
        let event = queue.event();
        match poll(&mut [PollFd::new(&event, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// When a file was last changed. Of a device that can't be known.
fn changed(path: &Path) -> io::Result<Option<i64>> {
    let data = std::fs::metadata(path)?;
    Ok(data.is_file().then(|| nanos(&data)))
}

fn nanos(data: &Metadata) -> i64 {
    data.mtime().saturating_mul(1_000_000_000).saturating_add(data.mtime_nsec())
}

/// Refuses a disk of `config` that is not what the snapshot refers to. One that the user has put in place of another (`replaced`) must only have its size.
///
/// # Errors
/// [`SnapshotError::Disk`].
pub fn check_disks(
    config: &Config,
    saved: &DisksState,
    replaced: &[String],
    trusted: bool,
) -> Result<(), SnapshotError> {
    for disk in &config.disk {
        let Some((file, format)) = image(disk) else { continue };
        let id = disk.id.as_deref().unwrap_or_default();
        let refuse = |reason: String, mend: String| Err(SnapshotError::Disk { id: id.to_owned(), reason, mend });
        let Some(reference) = saved.disks.iter().find(|reference| reference.id == id) else {
            return refuse(
                "the snapshot does not say what it was".to_owned(),
                "another copy of the snapshot".to_owned(),
            );
        };
        if reference.format != name(format) {
            let reason = format!("it was {}, and is {} now", reference.format, name(format));
            return refuse(reason, format!("--disk {id}=FILE of that format"));
        }
        let size = std::fs::metadata(file).ok().filter(|data| data.is_file() && format == Format::Raw);
        if let Some(data) = &size
            && data.len() != reference.size
        {
            let reason = format!("`{}` has {} bytes, and had {}", file.display(), data.len(), reference.size);
            return refuse(reason, format!("--disk {id}=FILE with what it held when the snapshot was saved"));
        }
        if trusted || replaced.iter().any(|name| name == id) {
            continue;
        }
        let now = changed(file).ok().flatten();
        if let (Some(saved), Some(now)) = (reference.changed_nanos, now)
            && saved != now
        {
            let reason = format!("`{}` has been written since the snapshot was saved", file.display());
            let mend = format!(
                "--disk {id}=FILE with a copy made then; or --trust-disks if you know that it holds what it held then"
            );
            return refuse(reason, mend);
        }
    }
    Ok(())
}
