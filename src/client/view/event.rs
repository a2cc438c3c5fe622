//! Events, in the order in which they happened.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;

use crate::client::text::age;

/// When it happened last.
pub fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = || event.last_timestamp.as_ref().map(|time| time.0);
    let first = || event.event_time.as_ref().map(|time| time.0);
    series.or_else(last).or_else(first).or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// One line.
pub fn line(event: &Event, now: Timestamp) -> String {
    let ago = time(event).map_or_else(|| "?".to_owned(), |then| age(then, now));
    let often = event.series.as_ref().and_then(|series| series.count).or(event.count).filter(|count| *count > 1);
    let often = often.map(|count| format!(" (x{count})")).unwrap_or_default();
    let (kind, reason) = (event.type_.as_deref().unwrap_or("Normal"), event.reason.as_deref().unwrap_or("-"));
    format!("{ago} ago  {kind}  {reason}{often}: {}", event.message.as_deref().unwrap_or_default())
}
