use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::testing::MemoryDisk;
use crate::{Buffer, Operation};

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn a_burst_passes_and_then_the_rate_does() {
    let begin = Instant::now();
    let mut buckets = Buckets { requests: Some(Bucket::new(Limit { per_second: 1000, burst: 3 }, begin)), bytes: None };
    for _ in 0..3 {
        assert_eq!(buckets.admit(512, begin), Ok(()));
    }
    let wait = buckets.admit(512, begin).unwrap_err();
    assert!(wait <= MILLISECOND, "{wait:?}");
    assert_eq!(buckets.admit(512, begin + MILLISECOND), Ok(()));
    assert!(buckets.admit(512, begin + MILLISECOND).is_err());
    let late = begin + Duration::from_secs(3600);
    let passed = (0..10).filter(|_| buckets.admit(512, late).is_ok()).count();
    assert_eq!(passed, 3, "a long rest earns no more than the burst");
}

#[test]
fn a_large_request_passes_and_is_made_up_for() {
    let begin = Instant::now();
    let limit = Limit { per_second: 1 << 20, burst: 4096 };
    let mut buckets = Buckets { requests: None, bytes: Some(Bucket::new(limit, begin)) };
    assert_eq!(buckets.admit(1 << 20, begin), Ok(()));
    assert_eq!(buckets.admit(0, begin), Ok(()), "a flush moves nothing");
    let wait = buckets.admit(512, begin).unwrap_err();
    assert!(wait > Duration::from_millis(990) && wait < Duration::from_secs(1), "{wait:?}");
    assert_eq!(buckets.admit(512, begin + wait), Ok(()));
}

#[test]
fn what_waits_is_done_when_its_time_comes_or_is_cancelled() {
    let memory = MemoryDisk::new(1 << 20, 512);
    let limits = Limits { requests: Some(Limit { per_second: 2000, burst: 4 }), bytes: None };
    let disk = LimitedDisk::new(memory.clone(), limits);
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

proptest! {
    /// In no stretch of time does more pass than the rate and one burst, but for the last request.
    #[test]
    fn no_more_passes_than_the_limit(
        per_second in 1u64..1_000_000,
        burst in 1u64..100_000,
        requests in proptest::collection::vec((0u64..2_000_000, 1u64..50_000), 1..100),
    ) {
        let begin = Instant::now();
        let limit = Limit { per_second, burst };
        let mut buckets = Buckets { requests: None, bytes: Some(Bucket::new(limit, begin)) };
        let (mut now, mut passed) = (begin, 0u128);
        for (micros, bytes) in requests {
            now += Duration::from_micros(micros);
            let allowed = u128::from(burst) + (now - begin).as_nanos() * u128::from(per_second) / SECOND;
            if buckets.admit(bytes, now).is_ok() {
                prop_assert!(passed <= allowed);
                passed += u128::from(bytes);
            }
        }
    }
}
