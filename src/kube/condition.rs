//! Conditions by kstatus' rules, from one value, so that no combination arises that means nothing.
//!
//! kstatus (sigs.k8s.io/cli-utils) reads: another observed generation or `Reconciling=True` is in progress, `Stalled=True` is failed, and
//! else `Ready` decides. So `Reconciling` and `Stalled` are there only while they are true.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::condition::{reasons, types};

/// Longest message kept: the API allows 32768; a person reads less, and it is repeated in three conditions.
const MAX_MESSAGE: usize = 2048;

/// Where an object stands between what is and what spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// What spec says is there.
    Current(String),
    /// Work is going on.
    Progressing(String),
    /// Work is going on, but something stands in the way that is expected to pass: why, by reason.
    Hindered(&'static str, String),
    /// Nothing goes on until something is changed: why, by reason.
    Stalled(&'static str, String),
    /// The object is going away; the reason is `Deleting` unless something holds it.
    Deleting(&'static str, String),
}

impl Health {
    /// What is to be said of it.
    pub fn message(&self) -> &str {
        match self {
            Self::Current(message)
            | Self::Progressing(message)
            | Self::Hindered(_, message)
            | Self::Stalled(_, message)
            | Self::Deleting(_, message) => message,
        }
    }

    /// `Ready`, and as they hold `Reconciling` and `Stalled`; transition times are kept from `before` where the status is the same.
    pub fn conditions(&self, generation: i64, before: &[Condition], now: Timestamp) -> Vec<Condition> {
        let (ready, reason, second) = match self {
            Self::Current(_) => ("True", reasons::SUCCEEDED, None),
            Self::Progressing(_) => ("Unknown", reasons::PROGRESSING, Some(types::RECONCILING)),
            Self::Hindered(reason, _) | Self::Deleting(reason, _) => ("False", *reason, Some(types::RECONCILING)),
            Self::Stalled(reason, _) => ("False", *reason, Some(types::STALLED)),
        };
        let make = |type_, status| condition(type_, status, reason, self.message(), generation, before, now);
        let mut all = vec![make(types::READY, ready)];
        all.extend(second.map(|type_| make(type_, "True")));
        all
    }
}

/// One condition; its transition time is kept from `before` where the status is the same.
pub fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: i64,
    before: &[Condition],
    now: Timestamp,
) -> Condition {
    let same = before.iter().find(|c| c.type_ == type_ && c.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: shorten(message),
        observed_generation: Some(generation),
        last_transition_time: same.map_or(Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// `meta/v1` times have whole seconds; keeping more would make what is written differ from what is read.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Cut at a character, not in one.
fn shorten(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => message.get(..end).map(|text| format!("{text}…")).unwrap_or_default(),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kstatus makes of conditions when the generation is observed and the object is not deleted.
    fn kstatus(conditions: &[Condition]) -> &'static str {
        let is = |type_, status: &str| find(conditions, type_).is_some_and(|c| c.status == status);
        match () {
            () if is(types::RECONCILING, "True") => "InProgress",
            () if is(types::STALLED, "True") => "Failed",
            () if is(types::READY, "True") => "Current",
            () => "InProgress",
        }
    }

    #[test]
    fn every_health_reads_right_in_kstatus() {
        let now = Timestamp::now();
        let cases = [
            (Health::Current("m".into()), "Current", "True"),
            (Health::Progressing("m".into()), "InProgress", "Unknown"),
            (Health::Hindered(reasons::WAITING, "m".into()), "InProgress", "False"),
            (Health::Stalled(reasons::INVALID_CONFIGURATION, "m".into()), "Failed", "False"),
            (Health::Deleting(reasons::DELETING, "m".into()), "InProgress", "False"),
        ];
        for (health, expected, ready) in cases {
            let conditions = health.conditions(3, &[], now);
            assert_eq!(kstatus(&conditions), expected, "{health:?}");
            assert_eq!(find(&conditions, types::READY).unwrap().status, ready, "{health:?}");
            assert!(conditions.iter().all(|c| c.observed_generation == Some(3) && c.message == "m"));
        }
    }

    #[test]
    fn transition_times_change_with_the_status_only() {
        let (then, now) = (Timestamp::from_second(1000).unwrap(), Timestamp::from_second(2000).unwrap());
        let before = Health::Progressing("one".into()).conditions(1, &[], then);
        let same = Health::Progressing("two".into()).conditions(2, &before, now);
        assert!(same.iter().all(|c| c.last_transition_time == Time(then) && c.message == "two"));
        let other = Health::Current("done".into()).conditions(2, &same, now);
        assert_eq!(other.len(), 1);
        assert_eq!(other[0].last_transition_time, Time(now));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let health = Health::Current("ä".repeat(5000));
        assert_eq!(health.conditions(1, &[], Timestamp::now())[0].message.chars().count(), MAX_MESSAGE + 1);
    }
}
