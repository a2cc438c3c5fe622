//! What of each kind is shown: rows of a list, and the sheet of a single one.

pub mod event;
pub mod image;
pub mod store;
pub mod task;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;

use super::text::age;

/// A kind that lists show.
pub trait Shown: Resource<DynamicType = ()> {
    /// The headings, in order, and of a wide list.
    fn headings(wide: bool) -> Vec<&'static str>;

    /// What stands below them.
    fn cells(&self, wide: bool, now: Timestamp) -> Vec<String>;

    /// Its name as `-o name` has it: `image.vitrine.dev/debian`.
    fn full_name(&self) -> String {
        let kind = Self::kind(&()).to_lowercase();
        format!("{kind}.{}/{}", Self::group(&()), self.meta().name.as_deref().unwrap_or_default())
    }
}

/// How old an object is.
fn age_of(object: &impl Resource<DynamicType = ()>, now: Timestamp) -> String {
    object.meta().creation_timestamp.as_ref().map(|made| age(made.0, now)).unwrap_or_default()
}

/// The condition of a type.
fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    crate::kube::condition::find(conditions, type_)
}

/// A condition's status, reason and message in one line.
fn condition_line(condition: &Condition) -> String {
    let Condition { type_, status, reason, message, .. } = condition;
    format!("{type_}={status} {reason}: {message}")
}

/// A word of the API as it stands in manifests.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
