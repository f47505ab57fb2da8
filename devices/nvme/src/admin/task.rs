//! What the admin worker asks of disks: a flush at shutdown, a format.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_block::{Buffer, DiskQueue, IoError, Operation, Request};
use skep_worker::EventSet;

use super::{Admin, Pending};
use crate::namespace::Namespace;
use crate::spec::Status;

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A shutdown of the controller.
    Shutdown,
    /// A Format command.
    Format {
        /// Its id.
        command: u16,
    },
}

/// One request to a namespace's disk, which has a queue of its own.
pub(super) struct Task {
    pub(super) purpose: Purpose,
    namespace: Arc<Namespace>,
    queue: Box<dyn DiskQueue>,
}

impl Task {
    pub(super) fn cancel(&mut self) {
        self.queue.cancel(0);
    }
}

impl Admin {
    /// Begins a task. Where that fails, it has ended.
    pub(super) fn begin_task(&mut self, namespace: Arc<Namespace>, purpose: Purpose) {
        let (size, operation) = (namespace.blocks() << namespace.shift, Operation::Flush);
        let operation = match purpose {
            Purpose::Shutdown => operation,
            Purpose::Format { .. } => {
                namespace.formatting.store(true, Ordering::Release);
                Operation::WriteZeroes { offset: 0, len: size, may_discard: true, fua: true }
            }
        };
        let mut queue = match namespace.disk.open_queue(1) {
            Ok(queue) => queue,
            Err(error) => {
                tracing::warn!("NVMe namespace {}: {error}", namespace.id);
                return self.end_task(purpose, &namespace, Err(IoError::Host(0)));
            }
        };
        let request = Request { tag: 0, operation, buffer: Buffer::empty() };
        let watched = self.sources.as_ref().map_or(Ok(()), |sources| sources.add(&queue.event(), 1, EventSet::IN));
        if watched.is_err() || queue.submit(request).is_err() {
            return self.end_task(purpose, &namespace, Err(IoError::Host(0)));
        }
        self.tasks.push(Task { purpose, namespace, queue });
    }

    /// Lets tasks go on; says whether one has ended.
    pub(super) fn run_tasks(&mut self) -> bool {
        let mut ended = Vec::new();
        self.tasks.retain_mut(|task| {
            let mut done = Vec::new();
            task.queue.kick();
            task.queue.reap(&mut done);
            let Some(completion) = done.pop() else { return true };
            ended.push((task.purpose, task.namespace.clone(), completion.result));
            false
        });
        let any = !ended.is_empty();
        for (purpose, namespace, result) in ended {
            self.end_task(purpose, &namespace, result);
        }
        any
    }

    fn end_task(&mut self, purpose: Purpose, namespace: &Namespace, result: Result<(), IoError>) {
        match purpose {
            Purpose::Shutdown => {
                if let Err(error) = result {
                    tracing::warn!("NVMe namespace {}: its cache can't be written: {error}", namespace.id);
                }
                self.look_at_shutdown();
            }
            Purpose::Format { command } => {
                namespace.formatting.store(false, Ordering::Release);
                let status = match result {
                    Ok(()) => Status::SUCCESS,
                    Err(IoError::Cancelled) => Status::ABORT_REQUESTED,
                    Err(_) => Status::INTERNAL_ERROR,
                };
                self.complete(command, status, 0);
                let aborted = status == Status::ABORT_REQUESTED;
                self.end_pending(|pending| match pending {
                    Pending::AbortFormat { command: abort, format } if *format == command => {
                        Some((*abort, (!aborted).into()))
                    }
                    _ => None,
                });
            }
        }
    }
}
