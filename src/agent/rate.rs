//! How fast and how long still: pure arithmetic over a sliding window.

use std::{collections::VecDeque, time::Duration};
use vitrine_engine::pipeline::{Snapshot, Stage};

use crate::api::Progress;

/// How far back the rate looks. Long enough to smooth a server's bursts, short enough that a stall shows.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples kept at most; the oldest go first. One is taken with each status write, so the window holds far fewer.
const SAMPLES: usize = 64;

/// The last seconds of a transfer.
#[derive(Debug, Default)]
pub struct Meter {
    samples: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// Takes note of `snapshot` at `now` (any clock that only grows), and says what to report.
    pub fn measure(&mut self, now: Duration, snapshot: &Snapshot) -> Progress {
        if self.samples.back().is_some_and(|(_, bytes)| *bytes > snapshot.received) {
            // The transfer began all over.
            self.samples.clear();
        }
        self.samples.push_back((now, snapshot.received));
        while self.samples.len() > SAMPLES || self.second_is_old_enough(now) {
            self.samples.pop_front();
        }
        let rate = (snapshot.stage == Stage::Transferring).then(|| self.rate()).flatten();
        Progress {
            stage: snapshot.stage.name().to_owned(),
            bytes_done: signed(snapshot.received),
            bytes_total: snapshot.total.map(signed),
            rate: rate.map(signed),
            eta_seconds: rate.zip(snapshot.total).and_then(|(rate, total)| eta(rate, total, snapshot.received)),
        }
    }

    /// Whether the window is still covered without the oldest sample.
    fn second_is_old_enough(&self, now: Duration) -> bool {
        self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW)
    }

    /// Bytes per second from the oldest sample to the newest; nothing from one sample alone.
    fn rate(&self) -> Option<u64> {
        let ((from, first), (to, last)) = (self.samples.front()?, self.samples.back()?);
        let milliseconds = to.checked_sub(*from)?.as_millis();
        let bytes = u128::from(last.saturating_sub(*first));
        u64::try_from(bytes.saturating_mul(1000).checked_div(milliseconds)?).ok()
    }
}

/// Seconds until `total`, rounded up; nothing while nothing moves.
fn eta(rate: u64, total: u64, done: u64) -> Option<i64> {
    let left = total.checked_sub(done)?;
    (rate > 0).then(|| signed(left.div_ceil(rate)))
}

/// Kubernetes knows signed integers only; no image comes near the limit.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stage: Stage, received: u64, total: Option<u64>) -> Snapshot {
        Snapshot { stage, received, total, written: 0 }
    }

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        let total = Some(10_000);
        let mut last = meter.measure(seconds(0), &at(Stage::Transferring, 0, total));
        assert_eq!((last.rate, last.eta_seconds), (None, None), "one sample tells nothing");
        for second in 1..=20_u64 {
            last = meter.measure(seconds(second), &at(Stage::Transferring, second * 100, total));
            assert_eq!(last.rate, Some(100), "{second}");
        }
        assert_eq!((last.bytes_done, last.bytes_total, last.eta_seconds), (2000, total.map(signed), Some(80)));
        for second in 21..=29_u64 {
            last = meter.measure(seconds(second), &at(Stage::Transferring, 2000, total));
        }
        assert_eq!(last.rate, Some(10), "one of the last ten seconds moved something");
        last = meter.measure(seconds(31), &at(Stage::Transferring, 2000, total));
        assert_eq!((last.rate, last.eta_seconds), (Some(0), None), "stalled");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut meter = Meter::default();
        meter.measure(seconds(0), &at(Stage::Transferring, 0, None));
        let progress = meter.measure(seconds(2), &at(Stage::Transferring, 50, None));
        assert_eq!((progress.bytes_total, progress.rate, progress.eta_seconds), (None, Some(25), None));
        let publishing = meter.measure(seconds(4), &at(Stage::Publishing, 100, Some(100)));
        assert_eq!((publishing.stage.as_str(), publishing.rate), ("Publishing", None));
    }

    #[test]
    fn a_fresh_start_forgets_the_old_rate() {
        let mut meter = Meter::default();
        meter.measure(seconds(0), &at(Stage::Transferring, 0, None));
        meter.measure(seconds(2), &at(Stage::Transferring, 1000, None));
        assert_eq!(meter.measure(seconds(4), &at(Stage::Transferring, 10, None)).rate, None);
        assert_eq!(meter.measure(seconds(6), &at(Stage::Transferring, 30, None)).rate, Some(10));
    }

    #[test]
    fn nothing_overflows() {
        let mut meter = Meter::default();
        meter.measure(seconds(0), &at(Stage::Transferring, 0, Some(u64::MAX)));
        let progress = meter.measure(Duration::from_millis(1), &at(Stage::Transferring, u64::MAX, Some(u64::MAX)));
        assert_eq!((progress.bytes_done, progress.rate), (i64::MAX, None), "a rate that does not fit is not told");
    }
}
