//! A request on its way through the host, step by step: what both engines run.

use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;

use super::{Target, host};
use crate::buffer::IoVecs;
use crate::now::Now;
use crate::threads::{self, Serve};
use crate::{Buffer, Completion, IoError, Operation, Request};

/// What the kernel takes in one call (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;
/// Direct I/O of guest memory that is not aligned goes through this much at once.
const BOUNCE: usize = 256 << 10;
/// Zeroes that are written where the host has no better way: so many bytes, so many times in one call.
const ZEROES: usize = 64 << 10;
const ZEROES_AT_ONCE: usize = 16;

/// One call to the host.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Read { iovecs: &'a [libc::iovec], offset: u64 },
    Write { iovecs: &'a [libc::iovec], offset: u64, dsync: bool },
    Sync,
    Allocate { mode: FallocateFlags, offset: u64, len: u64 },
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Moving the buffer.
    Move,
    /// Asking the file system to deallocate the range.
    Punch,
    /// Asking it for zeroes.
    ZeroRange,
    /// Writing zeroes.
    Fill,
    Sync,
    Done,
}

/// A request, and how far it has come.
pub(super) struct Job {
    request: Request,
    stage: Stage,
    /// Bytes moved or zeroed.
    done: u64,
    result: Result<(), IoError>,
    /// The kernel reads this list while a step is in flight.
    iovecs: IoVecs,
    /// Aligned memory that stands in for the request's, or zeroes.
    own: Option<Buffer>,
    cancelled: bool,
}

impl Job {
    /// A job for `request`, which has been checked if `checked` is `Ok`, and has failed otherwise.
    pub(super) fn new(request: Request, target: &Target) -> Self {
        let buffer = request.buffer.len();
        let checked = request.operation.check(buffer as u64, &target.info());
        let empty = request.operation.range(buffer as u64).is_some_and(|(_, len)| len == 0);
        let stage = match request.operation {
            _ if checked.is_err() || empty => Stage::Done,
            Operation::Read { .. } | Operation::Write { .. } => Stage::Move,
            Operation::Flush if target.read_only => Stage::Done,
            Operation::Flush => Stage::Sync,
            Operation::Discard { .. } if !target.discard => Stage::Done,
            Operation::Discard { .. } => Stage::Punch,
            Operation::WriteZeroes { may_discard, .. } => {
                if may_discard && target.discard && !target.no_punch.load(Ordering::Relaxed) {
                    Stage::Punch
                } else {
                    zero_stage(target)
                }
            }
        };
        let mut own = None;
        if stage == Stage::Move && !request.buffer.is_aligned(target.memory_alignment) {
            own = Some(Buffer::zeroed(buffer.min(BOUNCE)));
        }
        Self { request, stage, done: 0, result: checked, iovecs: IoVecs::default(), own, cancelled: false }
    }

    /// The same for another request, in the memory of a job whose completion has been taken.
    pub(super) fn renew(&mut self, request: Request, target: &Target) {
        let iovecs = std::mem::take(&mut self.iovecs);
        *self = Self { iovecs, ..Self::new(request, target) };
    }

    pub(super) fn tag(&self) -> u64 {
        self.request.tag
    }

    /// Does at once what can be done at once: reads of what is cached, if `read`, and writes into the cache. Says whether the job has ended.
    pub(super) fn try_now(&mut self, target: &Target, now: &mut Now, read: bool) -> bool {
        loop {
            // Zeroes may be so many that even the page cache takes its time.
            if target.direct || self.stage != Stage::Move {
                return self.stage == Stage::Done;
            }
            let result = match self.step() {
                None => return true,
                Some(Step::Read { iovecs, offset }) if read => {
                    let result = host::read_now(&target.file, iovecs, offset);
                    // Of an end of file, a refusal or a wait the engine finds out.
                    if result <= 0 {
                        return false;
                    }
                    result
                }
                Some(step @ Step::Write { dsync: false, .. }) => {
                    let Some(result) = now.write(|| host::run(&target.file, &step)) else { return false };
                    result
                }
                Some(_) => return false,
            };
            self.advance(result, target);
        }
    }

    /// Ends the job after the step that it is in.
    pub(super) fn cancel(&mut self) {
        self.cancelled = true;
    }

    /// The next call to the host, or `None` at the end. The step's memory stays where it is until the job is advanced.
    pub(super) fn step(&mut self) -> Option<Step<'_>> {
        if self.cancelled && self.stage != Stage::Done {
            self.end(Err(IoError::Cancelled));
        }
        let buffer = self.request.buffer.len() as u64;
        let (offset, len) = self.request.operation.range(buffer).unwrap_or((0, 0));
        let (at, left) = (offset + self.done, len - self.done);
        match self.stage {
            Stage::Done => None,
            Stage::Sync => Some(Step::Sync),
            Stage::Punch => Some(Step::Allocate { mode: host::punch(), offset, len }),
            Stage::ZeroRange => Some(Step::Allocate { mode: host::zero_range(), offset, len }),
            Stage::Fill => {
                self.zeroes(left);
                Some(Step::Write { iovecs: &self.iovecs.0, offset: at, dsync: false })
            }
            Stage::Move => {
                self.pieces(left as usize);
                Some(match self.request.operation {
                    Operation::Write { fua, .. } => Step::Write { iovecs: &self.iovecs.0, offset: at, dsync: fua },
                    _ => Step::Read { iovecs: &self.iovecs.0, offset: at },
                })
            }
        }
    }

    /// Lists the memory of the next step of a read or a write.
    fn pieces(&mut self, left: usize) {
        let skip = self.done as usize;
        let Some(own) = &self.own else {
            self.request.buffer.iovecs(skip, &mut self.iovecs, MOST_PIECES);
            return;
        };
        if self.request.operation.writes() {
            copy(&self.request.buffer, skip, own, 0, own.len().min(left));
        }
        own.iovecs(0, &mut self.iovecs, 1);
        for piece in &mut self.iovecs.0 {
            piece.iov_len = piece.iov_len.min(left);
        }
    }

    /// Lists zeroes, as many as are left or as go at once.
    fn zeroes(&mut self, mut left: u64) {
        let own = self.own.get_or_insert_with(|| Buffer::zeroed(ZEROES));
        own.iovecs(0, &mut self.iovecs, 1);
        let Some(zeroes) = self.iovecs.0.pop() else { return };
        while left > 0 && self.iovecs.0.len() < ZEROES_AT_ONCE {
            let len = left.min(ZEROES as u64);
            self.iovecs.0.push(libc::iovec { iov_len: len as usize, ..zeroes });
            left -= len;
        }
    }

    /// Takes the result of the last step, as the kernel gave it.
    pub(super) fn advance(&mut self, result: i64, target: &Target) {
        match result {
            // Nothing of it is done; it is tried again.
            _ if result == -i64::from(libc::EINTR) || result == -i64::from(libc::EAGAIN) => {}
            0.. => self.advanced(result as u64, target),
            _ => {
                let error = IoError::from_errno(i32::try_from(-result).unwrap_or(libc::EIO));
                self.failed(error, target);
            }
        }
    }

    fn advanced(&mut self, moved: u64, target: &Target) {
        match self.stage {
            Stage::Move | Stage::Fill => {
                if moved == 0 {
                    // The file has become shorter than the disk is.
                    return self.end(Err(IoError::OutOfRange));
                }
                if let (Operation::Read { .. }, Some(own)) = (self.request.operation, &self.own) {
                    copy(own, 0, &self.request.buffer, self.done as usize, moved as usize);
                }
                self.done += moved;
                let total = self.request.operation.range(self.request.buffer.len() as u64).map_or(0, |(_, len)| len);
                if self.done >= total {
                    self.settle(target);
                }
            }
            Stage::Punch | Stage::ZeroRange => self.settle(target),
            Stage::Sync | Stage::Done => self.end(Ok(())),
        }
    }

    /// The content is as asked; what is left is to make it last.
    fn settle(&mut self, target: &Target) {
        let last = match self.request.operation {
            // A write is forced by the call that makes it.
            Operation::Write { fua, .. } => target.write_through && !fua,
            Operation::WriteZeroes { fua, .. } => fua || target.write_through,
            _ => false,
        };
        if last { self.stage = Stage::Sync } else { self.end(Ok(())) }
    }

    fn failed(&mut self, error: IoError, target: &Target) {
        match (self.stage, self.request.operation, error) {
            // A discard is a hint.
            (Stage::Punch, Operation::Discard { .. }, IoError::Unsupported) => self.end(Ok(())),
            (Stage::Punch, _, IoError::Unsupported) => {
                target.no_punch.store(true, Ordering::Relaxed);
                self.stage = zero_stage(target);
            }
            (Stage::ZeroRange, _, IoError::Unsupported) => {
                target.no_zero_range.store(true, Ordering::Relaxed);
                self.stage = Stage::Fill;
            }
            _ => self.end(Err(error)),
        }
    }

    fn end(&mut self, result: Result<(), IoError>) {
        self.stage = Stage::Done;
        self.result = result;
    }

    /// What its submitter gets.
    pub(super) fn complete(mut self) -> Completion {
        self.take_completion()
    }

    /// The same, once; the job's memory may serve another request then.
    pub(super) fn take_completion(&mut self) -> Completion {
        if matches!(self.request.operation, Operation::Read { .. }) && self.done > 0 {
            self.request.buffer.mark_dirty();
        }
        self.own = None;
        let buffer = std::mem::take(&mut self.request.buffer);
        Completion { tag: self.request.tag, result: self.result, buffer }
    }
}

impl threads::Job for Job {
    fn tag(&self) -> u64 {
        self.tag()
    }

    fn cancel(&mut self) {
        Job::cancel(self);
        // Without a step left it is at its end.
        let _ = self.step();
    }

    fn complete(self) -> Completion {
        Job::complete(self)
    }
}

impl Serve for Target {
    type Job = Job;

    fn begin(&self, request: Request) -> Job {
        Job::new(request, self)
    }

    fn try_now(&self, job: &mut Job, now: &mut Now) -> bool {
        job.try_now(self, now, true)
    }

    fn run(&self, job: &mut Job) {
        while let Some(step) = job.step() {
            let result = host::run(&self.file, &step);
            job.advance(result, self);
        }
    }
}

fn zero_stage(target: &Target) -> Stage {
    if target.no_zero_range.load(Ordering::Relaxed) { Stage::Fill } else { Stage::ZeroRange }
}

/// Copies between buffers.
fn copy(from: &Buffer, from_offset: usize, to: &Buffer, to_offset: usize, len: usize) {
    let mut bytes = [0; 4096];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(bytes.len());
        from.copy_out(from_offset + at, &mut bytes[..part]);
        to.copy_in(to_offset + at, &bytes[..part]);
        at += part;
    }
}
