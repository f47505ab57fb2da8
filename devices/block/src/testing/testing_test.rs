use std::sync::Arc;

use super::*;
use crate::{Buffer, Completion, Disk, DiskQueue, IoError, Operation, Request};

fn buffer(byte: u8, len: usize) -> Buffer {
    let buffer = Buffer::zeroed(len);
    buffer.copy_in(0, &vec![byte; len]);
    buffer
}

fn submit(queue: &mut dyn DiskQueue, tag: u64, operation: Operation, buffer: Buffer) {
    queue.submit(Request { tag, operation, buffer }).unwrap();
}

fn reap(queue: &mut dyn DiskQueue) -> Vec<Completion> {
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    done
}

fn results(done: &[Completion]) -> Vec<(u64, Result<(), IoError>)> {
    done.iter().map(|completion| (completion.tag, completion.result)).collect()
}

const WRITE: Operation = Operation::Write { offset: 512, fua: false };

#[test]
fn a_memory_disk_remembers_what_is_durable() {
    let disk = MemoryDisk::new(4096, 512);
    let mut queue = disk.open_queue(4).unwrap();
    submit(&mut *queue, 1, WRITE, buffer(7, 512));
    assert_eq!(results(&reap(&mut *queue)), [(1, Ok(()))]);
    assert_eq!((disk.content()[512], disk.durable()[512]), (7, 0));
    submit(&mut *queue, 2, Operation::Write { offset: 0, fua: true }, buffer(9, 512));
    reap(&mut *queue);
    assert_eq!((disk.durable()[0], disk.durable()[512]), (9, 0), "only what was forced");
    submit(&mut *queue, 3, Operation::Flush, Buffer::empty());
    reap(&mut *queue);
    assert_eq!(disk.durable(), disk.content());
    assert_eq!(disk.counts(), Counts { writes: 2, fua: 1, flushes: 1, kicks: 3, ..Counts::default() });
}

#[test]
fn what_a_disk_could_never_do_fails() {
    let disk = MemoryDisk::new(4096, 512);
    let mut queue = disk.open_queue(8).unwrap();
    submit(&mut *queue, 1, Operation::Read { offset: 4096 }, buffer(0, 512));
    submit(&mut *queue, 2, Operation::Read { offset: u64::MAX }, buffer(0, 512));
    submit(&mut *queue, 3, Operation::Read { offset: 8 }, buffer(0, 512));
    submit(&mut *queue, 4, Operation::Discard { offset: 512, len: u64::MAX }, Buffer::empty());
    let expected = [(1, Err(IoError::OutOfRange)), (2, Err(IoError::OutOfRange)), (3, Err(IoError::Unsupported))];
    let done = results(&reap(&mut *queue));
    assert_eq!(done[..3], expected);
    assert_eq!(done[3], (4, Err(IoError::OutOfRange)));
}

#[test]
fn a_full_queue_gives_the_request_back() {
    let disk = MemoryDisk::new(4096, 512);
    let mut queue = disk.open_queue(1).unwrap();
    submit(&mut *queue, 1, WRITE, buffer(7, 512));
    let refused = queue.submit(Request { tag: 2, operation: WRITE, buffer: buffer(7, 512) }).unwrap_err();
    assert_eq!((refused.tag, refused.buffer.len()), (2, 512));
    assert_eq!(queue.in_flight(), 1);
}

#[test]
fn faults_are_what_the_rule_says() {
    let memory = MemoryDisk::new(4096, 512);
    let disk = FaultDisk::new(memory.clone());
    let mut faults = vec![
        Some(Fault::Fail(IoError::NoSpace)),
        Some(Fault::Partial { blocks: 1, error: IoError::Host(libc::EIO) }),
        Some(Fault::Delay(1)),
        None,
    ]
    .into_iter();
    disk.set_rule(move |_| faults.next().flatten());
    let mut queue = disk.open_queue(8).unwrap();
    submit(&mut *queue, 1, WRITE, buffer(1, 1024));
    assert_eq!(results(&reap(&mut *queue)), [(1, Err(IoError::NoSpace))]);
    assert_eq!(memory.counts().writes, 0);
    submit(&mut *queue, 2, WRITE, buffer(2, 1024));
    let done = reap(&mut *queue);
    assert_eq!((results(&done), done[0].buffer.len()), (vec![(2, Err(IoError::Host(libc::EIO)))], 1024));
    assert_eq!((memory.content()[512], memory.content()[1024]), (2, 0), "torn");
    submit(&mut *queue, 3, WRITE, buffer(3, 512));
    submit(&mut *queue, 4, WRITE, buffer(4, 512));
    assert_eq!(results(&reap(&mut *queue)), [(4, Ok(())), (3, Ok(()))], "the delayed one is later");
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn what_hangs_is_released_or_cancelled() {
    let disk = FaultDisk::new(MemoryDisk::new(4096, 512));
    disk.set_rule(|_| Some(Fault::Hang));
    let mut queue = disk.open_queue(8).unwrap();
    disk.release();
    submit(&mut *queue, 1, WRITE, buffer(1, 512));
    submit(&mut *queue, 2, WRITE, buffer(2, 512));
    disk.wait_hanging(2);
    // The releases before are none of theirs.
    assert_eq!((reap(&mut *queue).len(), queue.in_flight()), (0, 2));
    queue.cancel(1);
    assert_eq!(results(&reap(&mut *queue)), [(1, Err(IoError::Cancelled))]);
    let releaser = Arc::clone(&disk);
    let thread = std::thread::spawn(move || releaser.release());
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(queue.event(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
    thread.join().unwrap();
    assert_eq!(results(&reap(&mut *queue)), [(2, Ok(()))]);
}
