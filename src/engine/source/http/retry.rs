//! When to try again: exponential waits, shortened at random, and a server's own word on it.

use std::time::Duration;

use rand::Rng;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::{
    config::{MIN_PROGRESS, Patience},
    fault::Fault,
};
use crate::error::{Error, Result};

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Attempts {
    patience: Patience,
    failed: u32,
    /// Position at the last failure.
    position: u64,
}

impl Attempts {
    pub fn new(patience: Patience, position: u64) -> Self {
        Self { patience, failed: 0, position }
    }

    /// Notes a failure at `position` and says how long to wait before the next try.
    ///
    /// # Errors
    /// The fault's own error, if there shall be no next try.
    pub fn failed(&mut self, fault: Fault, what: &str, position: u64) -> Result<Duration> {
        let (error, after) = match fault {
            Fault::Passing { error, after } => (error, after),
            Fault::Final(_) | Fault::NoRanges => return Err(fault.into_error(what)),
        };
        if position.saturating_sub(self.position) >= MIN_PROGRESS {
            self.failed = 0;
        }
        self.position = position;
        self.failed = self.failed.saturating_add(1);
        metrics::counter!("vitrine_source_interruptions_total").increment(1);
        if self.failed >= self.patience.attempts {
            return Err(give_up(error, &format!("gave up after {} tries", self.failed)));
        }
        match after {
            Some(after) if after > self.patience.longest_retry_after => {
                Err(give_up(error, &format!("it asks to come back in {} s only", after.as_secs())))
            }
            Some(after) => Ok(after.max(self.wait())),
            None => Ok(self.wait()),
        }
    }

    fn wait(&self) -> Duration {
        let doublings = self.failed.saturating_sub(1).min(16);
        let full = self.patience.first_wait.saturating_mul(1 << doublings).min(self.patience.longest_wait);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

fn give_up(error: Error, why: &str) -> Error {
    error.context(why)
}

/// What `Retry-After` says (RFC 9110, section 10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = http_date(text)?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// An HTTP date in the one form that servers still send (RFC 9110, section 5.6.7).
pub(super) fn http_date(text: &str) -> Option<jiff::Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn patience() -> Patience {
        Patience {
            attempts: 5,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_millis(300),
            ..Patience::default()
        }
    }

    #[test]
    fn waits_double_up_to_a_limit_and_then_it_is_over() {
        let mut attempts = Attempts::new(patience(), 0);
        for most in [100, 200, 300, 300] {
            let wait = attempts.failed(Fault::passing("cut"), "x", 0).unwrap().as_millis();
            assert!((most / 2..=most).contains(&wait), "{wait} of {most}");
        }
        let error = attempts.failed(Fault::passing("cut"), "x", 0).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Unavailable, "gave up after 5 tries: cut"));
    }

    #[test]
    fn only_real_progress_starts_the_count_anew() {
        let mut attempts = Attempts::new(patience(), 0);
        let mut position = 0;
        for _ in 0..100 {
            position += MIN_PROGRESS;
            attempts.failed(Fault::passing("cut"), "x", position).unwrap();
        }
        let crawl = (0..100).find(|step| attempts.failed(Fault::passing("cut"), "x", position + step).is_err());
        assert_eq!(crawl, Some(3));
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let fault = |seconds| Fault::Passing {
            error: Error::new(Kind::Unavailable, "busy"),
            after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(Attempts::new(patience(), 0).failed(fault(7), "x", 0).unwrap(), Duration::from_secs(7));
        let error = Attempts::new(patience(), 0).failed(fault(3600), "x", 0).unwrap_err();
        assert_eq!(error.to_string(), "it asks to come back in 3600 s only: busy");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))]);
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_mins(1)));
        assert_eq!(read("Sun, 06 Nov 1994 08:48:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
