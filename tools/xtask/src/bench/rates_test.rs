use super::*;

#[test]
fn all_that_is_sent_comes() {
    assert!(loopback(3 * PIECE + 5).unwrap() > 0.0);
    assert!(memory(PIECE) > 0.0);
}
