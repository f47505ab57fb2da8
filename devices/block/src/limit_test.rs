use rustix::event::{PollFd, PollFlags, poll};
use skep_worker::{Limit, Limits};

use super::*;
use crate::testing::MemoryDisk;
use crate::{Buffer, Operation};

fn reads(queue: &mut dyn DiskQueue, tags: std::ops::Range<u64>) {
    for tag in tags {
        let operation = Operation::Read { offset: tag * 512 };
        queue.submit(Request { tag, operation, buffer: Buffer::zeroed(512) }).unwrap();
    }
    queue.kick();
}

/// How many have been done, when `passed` more have passed.
fn done_after(limiter: &Limiter, queues: &mut [Box<dyn DiskQueue>], passed: Duration) -> usize {
    limiter.advance(passed);
    let mut done = Vec::new();
    for queue in queues {
        queue.kick();
        queue.reap(&mut done);
    }
    assert!(done.iter().all(|one| one.result.is_ok()));
    done.len()
}

#[test]
fn requests_are_counted_over_all_queues() {
    let memory = MemoryDisk::new(1 << 20, 512);
    let limit = Limit { per_second: 100, burst: 10 };
    let limiter = Limiter::by_hand(Limits { requests: Some(limit), bytes: None });
    let disk = LimitedDisk::new(memory.clone(), limiter.clone());
    let mut queues = [disk.open_queue(64).unwrap(), disk.open_queue(64).unwrap()];
    queues.iter_mut().for_each(|queue| reads(queue.as_mut(), 0..50));
    let counts: Vec<_> = [0, 10, 100, 1000, 10_000]
        .map(|millis| done_after(&limiter, &mut queues, Duration::from_millis(millis)))
        .into();
    // A burst, then what falls in the time, and never more than a burst at once.
    assert_eq!(counts, [10, 1, 10, 10, 10]);
    assert_eq!(memory.counts().reads, 41);
    assert_eq!(queues.iter().map(|queue| queue.in_flight()).sum::<usize>(), 59);
}

#[test]
fn bytes_are_counted_and_a_flush_has_none() {
    let memory = MemoryDisk::new(1 << 20, 512);
    let limit = Limit { per_second: 51_200, burst: 512 };
    let limiter = Limiter::by_hand(Limits { requests: None, bytes: Some(limit) });
    let disk = LimitedDisk::new(memory.clone(), limiter.clone());
    let mut queues = [disk.open_queue(64).unwrap(), disk.open_queue(64).unwrap()];
    reads(queues[0].as_mut(), 0..20);
    queues[1].submit(Request { tag: 0, operation: Operation::Flush, buffer: Buffer::empty() }).unwrap();
    assert_eq!(done_after(&limiter, &mut queues, Duration::ZERO), 2);
    for _ in 0..5 {
        assert_eq!(done_after(&limiter, &mut queues, Duration::from_millis(10)), 1);
    }
    assert_eq!((memory.counts().reads, memory.counts().flushes), (6, 1));
}

#[test]
fn what_waits_is_done_when_its_time_comes_or_is_cancelled() {
    let memory = MemoryDisk::new(1 << 20, 512);
    let limits = Limits { requests: Some(Limit { per_second: 2000, burst: 4 }), bytes: None };
    let disk = LimitedDisk::new(memory.clone(), Limiter::new(limits));
    let mut queue = disk.open_queue(32).unwrap();
    for tag in 0..32 {
        let operation = Operation::Read { offset: tag * 512 };
        queue.submit(Request { tag, operation, buffer: Buffer::zeroed(512) }).unwrap();
    }
    assert!(queue.submit(Request { tag: 32, operation: Operation::Flush, buffer: Buffer::empty() }).is_err());
    queue.cancel(31);
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    assert!(done.len() < 32 && queue.in_flight() == 32 - done.len());
    while queue.in_flight() > 0 {
        poll(&mut [PollFd::from_borrowed_fd(queue.event(), PollFlags::IN)], None).unwrap();
        queue.kick();
        queue.reap(&mut done);
    }
    let failed: Vec<_> = done.iter().filter(|one| one.result.is_err()).map(|one| (one.tag, one.result)).collect();
    assert_eq!((done.len(), failed), (32, vec![(31, Err(IoError::Cancelled))]));
    assert_eq!(memory.counts().reads, 31);
}
