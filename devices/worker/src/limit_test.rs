use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn requests(per_second: u64, burst: u64) -> Limits {
    Limits { requests: Some(Limit { per_second, burst }), bytes: None }
}

fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits { requests: None, bytes: Some(Limit { per_second, burst }) }
}

#[test]
fn a_burst_passes_and_then_the_rate_does() {
    let limiter = Limiter::by_hand(requests(1000, 3));
    for _ in 0..3 {
        assert_eq!(limiter.admit(512), Ok(()));
    }
    let wait = limiter.admit(512).unwrap_err();
    assert!(wait <= MILLISECOND, "{wait:?}");
    limiter.advance(MILLISECOND);
    assert_eq!(limiter.admit(512), Ok(()));
    assert!(limiter.admit(512).is_err());
    limiter.advance(HOUR);
    let passed = (0..10).filter(|_| limiter.admit(512).is_ok()).count();
    assert_eq!(passed, 3, "a long rest earns no more than the burst");
}

#[test]
fn a_large_request_passes_and_is_made_up_for() {
    let limiter = Limiter::by_hand(bytes(1 << 20, 4096));
    assert_eq!(limiter.admit(1 << 20), Ok(()));
    assert_eq!(limiter.admit(0), Ok(()), "a flush moves nothing");
    let wait = limiter.admit(512).unwrap_err();
    assert!(wait > Duration::from_millis(990) && wait < Duration::from_secs(1), "{wait:?}");
    limiter.advance(wait);
    assert_eq!(limiter.wait(), Duration::ZERO);
    assert_eq!(limiter.admit(512), Ok(()));
}

#[test]
fn the_largest_numbers_pass() {
    let limiter = Limiter::by_hand(bytes(u64::MAX, u64::MAX));
    for _ in 0..4 {
        limiter.take(u64::MAX);
    }
    assert!(limiter.admit(1).is_err());
    limiter.advance(HOUR);
    assert_eq!(limiter.admit(1), Ok(()));
    let slow = Limiter::by_hand(bytes(0, 0));
    slow.take(u64::MAX);
    assert_eq!(slow.wait(), Duration::from_nanos(u64::MAX));
}

#[test]
fn a_timer_tells_when_there_has_been_enough_waiting() {
    let ready = |timer: &LimitTimer, wait: bool| {
        let timeout = if wait { None } else { Some(&Timespec { tv_sec: 0, tv_nsec: 0 }) };
        poll(&mut [PollFd::new(timer, PollFlags::IN)], timeout).unwrap() == 1
    };
    let limiter = Limiter::by_hand(requests(1000, 1));
    let timer = LimitTimer::new(&limiter).unwrap();
    limiter.take(0);
    timer.set(limiter.wait()).unwrap();
    limiter.advance(MILLISECOND / 2);
    assert!(!ready(&timer, false) && !limiter.wait().is_zero());
    limiter.advance(MILLISECOND);
    assert!(ready(&timer, false) && limiter.wait().is_zero());
    timer.quiet();
    assert!(!ready(&timer, false));

    let limiter = Limiter::new(requests(1000, 1));
    let timer = LimitTimer::new(&limiter).unwrap();
    limiter.take(0);
    timer.set(MILLISECOND).unwrap();
    assert!(ready(&timer, true));
    timer.quiet();
    assert!(!ready(&timer, false));
}

proptest! {
    /// In no stretch of time does more pass than the rate and one burst, but for the last request.
    #[test]
    fn no_more_passes_than_the_limit(
        per_second in 1u64..1_000_000,
        burst in 1u64..100_000,
        requests in proptest::collection::vec((0u64..2_000_000, 1u64..50_000), 1..100),
    ) {
        let limiter = Limiter::by_hand(bytes(per_second, burst));
        let (mut passed, mut moved) = (Duration::ZERO, 0u128);
        for (micros, bytes) in requests {
            let micros = Duration::from_micros(micros);
            limiter.advance(micros);
            passed += micros;
            let allowed = u128::from(burst) + passed.as_nanos() * u128::from(per_second) / SECOND;
            if limiter.admit(bytes).is_ok() {
                prop_assert!(moved <= allowed);
                moved += u128::from(bytes);
            }
        }
    }
}
