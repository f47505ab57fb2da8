//! `skep image`: makes, looks at, converts and checks disk images.

mod describe;
pub(crate) mod progress;

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum, ValueHint};
use skep_block::BlockError;
use skep_block::image::{self, Backing, CheckReport, CreateOptions, ImageFormat, ImageInfo, NewImage};
use skep_config::Size;

use crate::exit::{Exit, Failure};
use crate::{pages, report};

use progress::Progress;

/// Images behind one another that are described.
const MOST_BEHIND: usize = 64;
/// What a cluster of a new image has.
const CLUSTER: Size = Size::kib(64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Byte by byte
    Raw,
    /// QEMU's copy on write format
    Qcow2,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image that reads as zeroes, or as its backing file
    Create {
        /// The image
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// How its content is stored
        #[arg(long)]
        format: Format,
        /// The disk's size, such as 20G; that of the backing file where it is left out
        #[arg(long, required_unless_present = "backing")]
        size: Option<Size>,
        /// A qcow2 image shows this file where it has not been written; a relative name is looked for in the image's folder
        #[arg(long, value_name = "FILE", requires = "backing_format", value_hint = ValueHint::FilePath)]
        backing: Option<PathBuf>,
        /// How the backing file's content is stored
        #[arg(long, value_name = "FORMAT", requires = "backing")]
        backing_format: Option<Format>,
        /// Bytes of a qcow2 image's cluster: a power of two from 512B to 2M
        #[arg(long, value_name = "SIZE", default_value_t = CLUSTER)]
        cluster_size: Size,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Say what an image is, and what is behind it
    Info {
        /// The image
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// How its content is stored
        #[arg(long)]
        format: Format,
        /// Print JSON: a list of images, each before the one behind it
        #[arg(long)]
        json: bool,
    },
    /// Write a disk into a new image, without what is behind it and without zeroes
    ///
    /// The new image is written beside its place under another name (.NAME.PID.part), and has its own when it is whole.
    Convert {
        /// The image that is there
        #[arg(value_hint = ValueHint::FilePath)]
        source: PathBuf,
        /// How its content is stored
        #[arg(long, value_name = "FORMAT")]
        from: Format,
        /// The new image
        #[arg(value_hint = ValueHint::FilePath)]
        target: PathBuf,
        /// How its content is to be stored
        #[arg(long, value_name = "FORMAT")]
        to: Format,
        /// Bytes of a qcow2 image's cluster: a power of two from 512B to 2M
        #[arg(long, value_name = "SIZE", default_value_t = CLUSTER)]
        cluster_size: Size,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Look for contradictions and lost clusters in a qcow2 image
    ///
    /// Exit codes: 0 where there are none, or all are mended; 20 for errors; 21 for lost clusters alone, which only take space; 1 where the
    /// image can't be checked.
    Check {
        /// The image, which nobody may use meanwhile
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// How its content is stored
        #[arg(long)]
        format: Format,
        /// Mend what can be mended: counts and marks; keep a copy of an image that matters
        #[arg(long)]
        repair: bool,
    },
}

/// Does it.
pub(crate) fn image(command: ImageCommand) -> Result<Exit, Failure> {
    match command {
        ImageCommand::Create { file, format, size, backing, backing_format, cluster_size, force } => {
            let backing = backing.map(|file| {
                let format = backing_format.map(|format| ImageFormat::from(format).name().to_owned());
                Backing { file, format }
            });
            let qcow2 = CreateOptions { cluster_size: cluster_size.bytes(), backing };
            image::create(&file, format.into(), size.map(Size::bytes), &NewImage { qcow2, force })?;
            Ok(Exit::Done)
        }
        ImageCommand::Info { file, format, json } => {
            let (images, failed) = chain(image::info(&file, format.into())?);
            pages::print(if json { describe::json(&images) } else { describe::text(&images) }.as_bytes())?;
            failed.map_or(Ok(Exit::Done), |error| Err(error.into()))
        }
        ImageCommand::Convert { source, from, target, to, cluster_size, force } => {
            let qcow2 = CreateOptions { cluster_size: cluster_size.bytes(), backing: None };
            let mut progress = Progress::new();
            let done = image::convert(
                (&source, from.into()),
                (&target, to.into()),
                &NewImage { qcow2, force },
                &mut |done, of| progress.show(done, of, None),
            );
            progress.end();
            done?;
            Ok(Exit::Done)
        }
        ImageCommand::Check { format: Format::Raw, .. } => {
            Err(Failure::ImageUsage("a raw image has no tables to check\n  try: fsck on the file systems in it"))
        }
        ImageCommand::Check { file, format: Format::Qcow2, repair } => {
            let (before, after) = image::check(&file, repair)?;
            pages::print(describe::report(&before, after.as_ref()).as_bytes())?;
            Ok(verdict(after.as_ref().unwrap_or(&before)))
        }
    }
}

fn verdict(report: &CheckReport) -> Exit {
    match (report.errors, report.leaks) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::ImageLeaks,
        _ => Exit::ImageErrors,
    }
}

/// The image and those behind it, as far as they can be followed, and why no farther.
fn chain(first: ImageInfo) -> (Vec<ImageInfo>, Option<BlockError>) {
    let mut images = vec![first];
    while let Some(last) = images.last() {
        if images.len() > MOST_BEHIND {
            let reason = format!("more than {MOST_BEHIND} images are behind one another, or it is behind itself");
            let path = last.file.clone();
            return (images, Some(BlockError::Unusable { path, reason }));
        }
        match image::behind(last) {
            Ok(Some(behind)) => images.push(behind),
            Ok(None) => break,
            Err(error) => return (images, Some(error)),
        }
    }
    (images, None)
}

/// Writes to standard error.
fn say(text: &str) {
    report::say(text);
}
