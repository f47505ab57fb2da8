//! Counters driven by an oscillator of their own.

use skep_clock::GuestNanos;

const NANOS: u128 = 1_000_000_000;

/// An oscillator that has run since its tick 0. It never stops and never drifts against guest time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oscillator {
    hz: u64,
    /// Guest time of tick 0. It may lie before guest time began, so all arithmetic on it wraps.
    origin: GuestNanos,
}

impl Oscillator {
    /// An oscillator whose tick 0 was `nanos` before `now`.
    pub(crate) fn running_for(hz: u64, nanos: u64, now: GuestNanos) -> Self {
        Self { hz, origin: now.wrapping_sub(nanos) }
    }

    /// Nanoseconds since tick 0.
    pub(crate) fn nanos(&self, now: GuestNanos) -> u64 {
        now.wrapping_sub(self.origin)
    }

    /// Ticks since tick 0.
    pub(crate) fn ticks(&self, now: GuestNanos) -> u64 {
        (u128::from(self.nanos(now)) * u128::from(self.hz) / NANOS) as u64
    }

    /// When `tick` comes; `now` where it has come.
    pub(crate) fn time_of(&self, tick: u64, now: GuestNanos) -> GuestNanos {
        let nanos = (u128::from(tick) * NANOS).div_ceil(u128::from(self.hz));
        let left = nanos.saturating_sub(u128::from(self.nanos(now)));
        now.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tick_comes_at_its_time_and_not_before(
            hz in 1u64..100_000_000,
            nanos in 0u64..1 << 50,
            now in 0u64..1 << 50,
            ahead in 1u64..1 << 20,
        ) {
            let oscillator = Oscillator::running_for(hz, nanos, now);
            prop_assert_eq!(oscillator.nanos(now), nanos);
            let tick = oscillator.ticks(now) + ahead;
            let time = oscillator.time_of(tick, now);
            prop_assert_eq!((oscillator.ticks(time), oscillator.ticks(time - 1)), (tick, tick - 1));
            prop_assert_eq!(oscillator.time_of(tick, time + 5), time + 5);
        }
    }
}
