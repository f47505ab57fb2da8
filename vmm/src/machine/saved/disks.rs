//! The images behind the disks: flushed before a save is whole, and known again after it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use skep_block::image::{self, ImageFormat};
use skep_block::{Buffer, ImageDisk, Operation, Request};
use skep_config::{Config, Disk, DiskSource, Format};

use crate::firmware::hold_vars;
use crate::machine::devices::Devices;
use crate::state::{BackingReference, DiskReference, DisksState, MOST_BEHIND, SnapshotError, Wanted};

#[cfg(test)]
#[path = "disks_test.rs"]
mod test;

/// An image that its machine may let go of.
pub(crate) type WeakImage = (PathBuf, Weak<dyn ImageDisk>);

fn looking(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Host { what: "look at", path, source }
}

fn flushing(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Host { what: "flush the disk's image", path, source }
}

/// The images of a machine.
#[derive(Clone)]
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
        let mut disks = self.describe()?;
        for (reference, (disk, path, _)) in disks.disks.iter_mut().zip(&self.disks) {
            let format = image(disk).map(|(_, format)| format).unwrap_or(Format::Raw);
            reference.behind = Some(behind(path, format)?);
        }
        Ok(disks)
    }

    /// The same, as long as it is `wanted`: a host that hangs keeps nobody.
    ///
    /// # Errors
    /// Those of [`DiskImages::flush`], and why it is not wanted.
    pub(crate) fn flush_while(&self, wanted: &Wanted) -> Result<DisksState, SnapshotError> {
        let images = self.clone();
        wait(wanted, move || images.flush())
    }

    /// The same of images that are still written: what reaches the medium now need not do so later.
    ///
    /// # Errors
    /// Those of [`DiskImages::flush_while`].
    pub(crate) fn flush_early(images: Vec<WeakImage>, wanted: &Wanted) -> Result<(), SnapshotError> {
        wait(wanted, move || {
            for (path, image) in images {
                // A disk that was removed is not waited for.
                if let Some(image) = image.upgrade() {
                    flush(&*image).map_err(flushing(&path))?;
                }
            }
            Ok(())
        })
    }

    /// Those that may be written, without keeping them.
    pub(crate) fn weak(&self) -> Vec<WeakImage> {
        let written = self.disks.iter().filter(|(disk, ..)| !disk.readonly);
        written.map(|(_, path, image)| (path.clone(), Arc::downgrade(image))).collect()
    }

    /// What the images are, and not what is behind them.
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
                changed_nanos: changed(path).map_err(looking(path))?,
                behind: None,
            })
        });
        Ok(DisksState { disks: disks.collect::<Result<_, _>>()? })
    }

    /// Refuses an image whose disk, now that it is open, is of another size than the guest knows.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub(super) fn check_sizes(&self, saved: &DisksState) -> Result<(), SnapshotError> {
        self.disks.iter().try_for_each(|(disk, path, file)| {
            let id = disk.id.as_deref().unwrap_or_default();
            let reference = saved.disks.iter().find(|reference| reference.id == id);
            reference.map_or(Ok(()), |reference| check_size(reference, path, file.info().size))
        })
    }
}

/// The clock by which files get their times.
fn file_clock() -> i64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

impl DiskImages {
    /// Waits until whoever writes to an image gives it another time than the one in `saved`: the clock of files' times stands still for a tick of up to 10 ms (before Linux 6.13,
    /// and on some file systems).
    pub(crate) fn outlast(saved: &DisksState) {
        const TICK_NANOS: i64 = 20_000_000;
        for changed in saved.disks.iter().filter_map(|disk| disk.changed_nanos) {
            // What a host's clock has not reached by far is another's time, or one that somebody has set.
            while (0..TICK_NANOS).contains(&changed.saturating_sub(file_clock())) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Takes the locks of images that were given away. Where one can't be taken none is: whoever the machine is to stay with can take all.
    ///
    /// # Errors
    /// Those of [`DiskImages::hold`].
    pub(crate) fn take(&self) -> Result<(), SnapshotError> {
        let done = self.hold(true);
        if done.is_err() {
            // The first error is what the user is told.
            let _ = self.hold(false);
        }
        done
    }

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

fn image_format(format: Format) -> ImageFormat {
    match format {
        Format::Raw => ImageFormat::Raw,
        Format::Qcow2 => ImageFormat::Qcow2,
    }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

/// What comes of `work`, unless it is given up: then it is left alone, with what it has of the images.
fn wait<T: Send + 'static>(
    wanted: &Wanted,
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    let done = wanted.wait(work).map_err(flushing(Path::new("all of them")))?;
    wanted.check()?;
    // A panic there has been reported.
    done.unwrap_or(Err(SnapshotError::Ended))
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

/// What is behind an image, by the headers.
fn behind(path: &Path, format: Format) -> Result<Vec<BackingReference>, SnapshotError> {
    let mut images = Vec::new();
    let mut next = image::behind(&image::info(path, image_format(format))?)?;
    while let Some(info) = next {
        let changed_nanos = changed(&info.file).map_err(looking(&info.file))?;
        images.push(BackingReference { path: info.file.display().to_string(), changed_nanos });
        // More are not opened: one of them is its own, perhaps.
        next = if images.len() < MOST_BEHIND { image::behind(&info)? } else { None };
    }
    Ok(images)
}

/// When a file was last changed. Of a device that can't be known.
fn changed(path: &Path) -> io::Result<Option<i64>> {
    let data = std::fs::metadata(path)?;
    Ok(data.is_file().then(|| nanos(&data)))
}

fn nanos(data: &Metadata) -> i64 {
    data.mtime().saturating_mul(1_000_000_000).saturating_add(data.mtime_nsec())
}

/// A host's file has what is no whole block, too, which no guest sees; blocks have so many bytes at most.
const LARGEST_BLOCK: u64 = 4096;

fn check_size(reference: &DiskReference, path: &Path, size: u64) -> Result<(), SnapshotError> {
    if size.checked_sub(reference.size).is_some_and(|more| more < LARGEST_BLOCK) {
        return Ok(());
    }
    Err(SnapshotError::Disk {
        id: reference.id.clone(),
        reason: format!("`{}` has {size} bytes, and had {}", path.display(), reference.size),
        mend: format!("--disk {}=FILE with what it held when the snapshot was saved", reference.id),
    })
}

/// Refuses a disk of `config` that is not what the snapshot refers to. One that the user has put in place of another (`replaced`) must only have its size.
///
/// # Errors
/// [`SnapshotError::Disk`], and [`SnapshotError::Image`] for an image that can't be looked at.
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
        check_size(reference, file, image::info(file, image_format(format))?.size)?;
        if trusted || replaced.iter().any(|name| name == id) {
            continue;
        }
        let same = |file: &Path, before: Option<i64>| match (before, changed(file).map_err(looking(file))?) {
            (Some(before), Some(now)) if before == now => Ok(()),
            (Some(_), Some(_)) => {
                let reason = format!("`{}` has been written since the snapshot was saved", file.display());
                let copy = format!("--disk {id}=FILE with a copy made then");
                refuse(reason, format!("{copy}; or --trust-disks if you know that it holds what it held then"))
            }
            // A device has no such time.
            _ => refuse(
                format!(
                    "`{}` is a block device, which does not tell whether it has been written since the snapshot was saved",
                    file.display()
                ),
                "--trust-disks if you know that it holds what it held then".to_owned(),
            ),
        };
        same(file, reference.changed_nanos)?;
        let Some(before) = &reference.behind else { continue };
        let now = behind(file, format)?;
        if now.len() != before.len() {
            let reason = format!("`{}` has {} images behind it, and had {}", file.display(), now.len(), before.len());
            return refuse(reason, format!("--disk {id}=FILE with a copy made then"));
        }
        now.iter().zip(before).try_for_each(|(now, before)| same(Path::new(&now.path), before.changed_nanos))?;
    }
    Ok(())
}
