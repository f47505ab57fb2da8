use super::*;

const BOUND: Duration = Duration::from_micros(32);

#[test]
fn it_opens_by_doubling_and_is_small_again_at_once() {
    const LEAST: Duration = Duration::from_micros(4);
    let mut window = PollWindow::new(BOUND);
    assert_eq!(window.length(), LEAST);
    let lengths: Vec<_> = (0..5)
        .map(|_| {
            window.slept(Duration::from_micros(20));
            window.length().as_micros()
        })
        .collect();
    assert_eq!(lengths, [8, 16, 32, 32, 32]);
    window.slept(Duration::from_millis(4));
    assert_eq!(window.length(), LEAST);
}

#[test]
fn zero_turns_it_off() {
    let mut window = PollWindow::new(Duration::ZERO);
    window.slept(Duration::ZERO);
    window.slept(Duration::from_nanos(1));
    assert_eq!(window.length(), Duration::ZERO);
}

proptest::proptest! {
    #[test]
    fn it_stays_within_its_bound(bound in 0u64..1 << 40, sleeps: Vec<u64>) {
        let bound = Duration::from_nanos(bound);
        let mut window = PollWindow::new(bound);
        for sleep in sleeps {
            window.slept(Duration::from_nanos(sleep));
            assert!(window.length() <= bound);
        }
    }
}
