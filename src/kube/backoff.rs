//! How long to wait before trying again.

use std::time::Duration;

/// A delay that doubles with each failure up to a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub base: Duration,
    /// Never more than this.
    pub limit: Duration,
}

impl Backoff {
    /// The delay after the `failures`th failure in a row, counted from 1.
    pub fn delay(&self, failures: i64) -> Duration {
        let doublings = u32::try_from(failures.saturating_sub(1).max(0)).unwrap_or(u32::MAX);
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX).max(1);
        self.base.saturating_mul(factor).min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let backoff = Backoff { base: Duration::from_secs(5), limit: Duration::from_secs(300) };
        let delays: Vec<_> = (1..=8).map(|n| backoff.delay(n).as_secs()).collect();
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.delay(i64::MAX).as_secs(), 300);
        assert_eq!(backoff.delay(33).as_secs(), 300);
        assert_eq!(backoff.delay(0).as_secs(), 5);
    }
}
