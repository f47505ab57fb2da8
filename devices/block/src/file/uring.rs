//! Requests by io_uring.
#![allow(unsafe_code)] // The kernel is given addresses of memory that the queue owns until the request completes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::Target;
use super::job::{Job, Step};
use crate::now::Now;
use crate::{BlockError, Completion, DiskQueue, Request};

/// The user data of what cancels; slots are far below.
const CANCEL: u64 = u64::MAX;

/// Whether the host lets us have all that a queue uses. A host that has said yes is not asked again.
pub(super) fn probe() -> io::Result<()> {
    static PROBED: OnceLock<()> = OnceLock::new();
    if PROBED.get().is_none() {
        ask()?;
        let _ = PROBED.set(());
    }
    Ok(())
}

fn ask() -> io::Result<()> {
    let ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let codes = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::AsyncCancel::CODE,
    ];
    let complete = codes.iter().all(|code| probe.is_supported(*code)) && ring.params().is_feature_nodrop();
    if complete { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// A queue that is a ring of its own.
pub(super) struct Queue {
    ring: IoUring,
    target: Arc<Target>,
    /// The ring knows the file, so that it need not look it up for each request.
    registered: bool,
    /// Boxed, so that what the kernel points to stays where it is.
    slots: Vec<Option<Box<Job>>>,
    free: Vec<u32>,
    /// Slots of those that were submitted since the last kick.
    fresh: Vec<u32>,
    /// Those that need nothing (more) of the host.
    #[expect(clippy::vec_box, reason = "a job moves between slots and lists with its box")]
    done: Vec<Box<Job>>,
    /// Jobs whose memory is used again: no more than there are slots.
    #[expect(clippy::vec_box, reason = "as above")]
    spare: Vec<Box<Job>>,
    /// How many entries the kernel has not been given yet.
    pending: usize,
    now: Now,
}

/// Up to so many reads are tried without the ring: a larger batch is cheaper by it.
const FEW: usize = 2;

impl Queue {
    pub(super) fn new(target: Arc<Target>, depth: u16) -> Result<Self, BlockError> {
        let made = IoUring::builder().setup_clamp().dontfork().build(u32::from(depth).next_power_of_two());
        let ring = made.map_err(|source| BlockError::Queue { what: "make an io_uring", source })?;
        let registered = ring.submitter().register_files(&[target.file.as_raw_fd()]).is_ok();
        let slots = (0..depth).map(|_| None).collect();
        Ok(Self {
            ring,
            target,
            registered,
            slots,
            free: (0..depth.into()).rev().collect(),
            fresh: Vec::new(),
            done: Vec::new(),
            spare: Vec::new(),
            pending: 0,
            now: Now::default(),
        })
    }

    /// Gives the next step of the job in `slot` to the ring, or ends it.
    fn go_on(&mut self, slot: u32) {
        let Some(job) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        // The first file that it knows, or a descriptor.
        let fd = types::Fd(if self.registered { 0 } else { self.target.file.as_raw_fd() });
        let flags = if self.registered { squeue::Flags::FIXED_FILE } else { squeue::Flags::empty() };
        let entry = match job.step() {
            None => None,
            Some(Step::Read { iovecs, offset }) => {
                Some(opcode::Readv::new(fd, iovecs.as_ptr().cast(), iovecs.len() as u32).offset(offset).build())
            }
            Some(Step::Write { iovecs, offset, dsync }) => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(fd, iovecs.as_ptr().cast(), iovecs.len() as u32);
                Some(write.offset(offset).rw_flags(flags).build())
            }
            Some(Step::Sync) => Some(opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()),
            Some(Step::Allocate { mode, offset, len }) => {
                Some(opcode::Fallocate::new(fd, len).offset(offset).mode(mode.bits() as i32).build())
            }
        };
        match entry {
            Some(entry) => self.push(&entry.flags(flags).user_data(slot.into())),
            None => {
                if let Some(job) = self.slots.get_mut(slot as usize).and_then(Option::take) {
                    self.free.push(slot);
                    self.done.push(job);
                }
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to belongs to a job in its slot, which stays there until the ring has completed it.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit();
        }
        self.pending += 1;
    }

    fn submit(&mut self) {
        // What a full completion queue or a signal holds up is still in the submission queue, and goes with the next call.
        match self.ring.submit() {
            Ok(taken) => self.pending = self.pending.saturating_sub(taken),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self.collect(),
            Err(error) => tracing::debug!("io_uring takes nothing for now: {error}"),
        }
    }

    /// Takes what the ring has completed, and gives it the next steps.
    fn collect(&mut self) {
        let found: Vec<_> = self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in found {
            let Ok(slot) = u32::try_from(slot) else { continue };
            if let Some(job) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
                job.advance(result.into(), &self.target);
                self.go_on(slot);
            }
        }
    }
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.slots.len() {
            return Err(request);
        }
        let Some(slot) = self.free.pop() else { return Err(request) };
        let job = match self.spare.pop() {
            Some(mut job) => {
                job.renew(request, &self.target);
                job
            }
            None => Box::new(Job::new(request, &self.target)),
        };
        self.slots[slot as usize] = Some(job);
        self.fresh.push(slot);
        Ok(())
    }

    fn kick(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        let few = fresh.len() <= FEW;
        for slot in fresh.drain(..) {
            if let Some(job) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
                // One that has ended has no next step, and leaves its slot.
                job.try_now(&self.target, &mut self.now, few);
            }
            self.go_on(slot);
        }
        self.fresh = fresh;
        if self.pending > 0 {
            Self::submit(self);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.collect();
        if self.pending > 0 {
            Self::submit(self);
        }
        done.extend(self.done.iter_mut().map(|job| job.take_completion()));
        self.spare.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor stays open for as long as the ring, which is borrowed for the result's lifetime.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn cancel(&mut self, tag: u64) {
        let found = self.slots.iter().position(|job| job.as_ref().is_some_and(|job| job.tag() == tag));
        let Some(slot) = found else { return };
        if let Some(job) = &mut self.slots[slot] {
            job.cancel();
        }
        if self.fresh.contains(&(slot as u32)) {
            // The host has not seen it; its end comes with the next kick.
            return;
        }
        self.push(&opcode::AsyncCancel::new(slot as u64).build().user_data(CANCEL));
        Self::submit(self);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The host has seen nothing of these.
        for slot in self.fresh.drain(..) {
            self.slots[slot as usize] = None;
            self.free.push(slot);
        }
        while self.free.len() < self.slots.len() {
            if let Err(error) = self.ring.submit_and_wait(1)
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
            {
                tracing::error!("an io_uring can't be waited for, and its memory is left to it: {error}");
                self.slots.drain(..).for_each(std::mem::forget);
                return;
            }
            self.collect();
        }
    }
}
