//! What the node's stores hold, a page at a time, for the operator to hold against what Images know.
//!
//! Names and ages only; whose they are, the operator knows. Local stores are listed by their node, others by the node that their
//! ImageStore names.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use vitrine_engine::{error::Result, store::ObjectEntry};

use super::{
    probe::Subject,
    rate::signed,
    stores::{Place, Stores},
};
use crate::api::{Held, Listing};

/// How many objects a page has, by the schema of NodeCache: 64 stores with a page each are one object of the API.
const PAGE: usize = 64;
/// How soon the next page follows when there is one.
const NEXT_PAGE: Duration = Duration::from_secs(30);

/// The listings of all stores.
pub struct Listings {
    interval: Duration,
    states: BTreeMap<String, State>,
    answers: JoinSet<(String, Result<Vec<ObjectEntry>>)>,
}

#[derive(Default)]
struct State {
    page: Option<Listing>,
    /// The last name of the last page; nothing after the last one.
    after: Option<(String, u64)>,
    begun: Option<Instant>,
    task: Option<AbortHandle>,
}

impl Listings {
    /// Lists every store each `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, states: BTreeMap::new(), answers: JoinSet::new() }
    }

    /// The last page of a store.
    pub fn page(&self, store: &str) -> Option<Listing> {
        self.states.get(store)?.page.clone()
    }

    /// Begins to list what is due of `subjects`, and forgets others. One that hangs is not begun again.
    pub fn begin(&mut self, stores: &Arc<Stores>, subjects: &[&Subject]) {
        self.states.retain(|name, _| subjects.iter().any(|subject| subject.name == *name));
        for subject in subjects {
            let state = self.states.entry(subject.name.clone()).or_default();
            let pause = if state.after.is_some() { self.interval.min(NEXT_PAGE) } else { self.interval };
            let resting = state.begun.is_some_and(|begun| begun.elapsed() < pause);
            if resting || state.task.as_ref().is_some_and(|task| !task.is_finished()) {
                continue;
            }
            state.begun = Some(Instant::now());
            let (stores, subject) = (stores.clone(), (*subject).clone());
            state.task = Some(self.answers.spawn(async move { (subject.name.clone(), list(&stores, &subject).await) }));
        }
    }

    /// Waits for the next answer and takes it over; nothing if none is waited for.
    pub async fn next(&mut self) -> Option<()> {
        let (name, entries) = self.answers.join_next().await?.ok()?;
        let state = self.states.get_mut(&name)?;
        match entries {
            Ok(entries) => {
                let (page, after) = page(entries, state.after.as_ref());
                (state.page, state.after) = (Some(page), after);
            }
            Err(error) => tracing::debug!(store = name, %error, "what it holds cannot be listed now"),
        }
        Some(())
    }
}

async fn list(stores: &Stores, subject: &Subject) -> Result<Vec<ObjectEntry>> {
    let Subject { name, backend, id, .. } = subject;
    match stores.open_existing(Place { name, backend, id: id.as_deref() }).await? {
        Some(store) => store.list().await,
        None => Ok(Vec::new()),
    }
}

/// The published objects after `after`, and where the page behind begins, if there is one.
fn page(entries: Vec<ObjectEntry>, after: Option<&(String, u64)>) -> (Listing, Option<(String, u64)>) {
    let published = entries.into_iter().filter(|entry| entry.published);
    let mut all: Vec<_> = published
        .filter_map(|entry| entry.key.map(|key| ((key.uid().to_owned(), key.revision()), entry.age_seconds)))
        .collect();
    all.sort();
    let objects = all.len();
    let mut rest = all.into_iter().filter(|(name, _)| after.is_none_or(|after| name > after));
    let page: Vec<_> = rest.by_ref().take(PAGE).collect();
    let last = rest.next().and_then(|_| page.last().map(|(name, _)| name.clone()));
    let held = |((uid, revision), age): ((String, u64), u64)| Held {
        uid,
        revision: signed(revision),
        age_seconds: signed(age),
    };
    let listing = Listing {
        taken_at: Time(Timestamp::now()),
        objects: i64::try_from(objects).unwrap_or(i64::MAX),
        entries: page.into_iter().map(held).collect(),
    };
    (listing, last)
}

#[cfg(test)]
mod tests {
    use vitrine_engine::model::ObjectKey;

    use super::*;

    fn entry(uid: &str, published: bool) -> ObjectEntry {
        let key = ObjectKey::new(uid, 1);
        ObjectEntry { name: uid.to_owned(), key, published, age_seconds: 5 }
    }

    #[test]
    fn pages_follow_each_other_and_then_begin_again() {
        let all = || (0..150).map(|n| entry(&format!("u{n:03}"), true)).chain([entry("x", false)]).collect::<Vec<_>>();
        let mut foreign = all();
        foreign.push(ObjectEntry { key: None, ..entry("lost+found", true) });
        let (first, after) = page(foreign, None);
        let (second, after) = page(all(), after.as_ref());
        let (third, end) = page(all(), after.as_ref());
        let lengths = [first.entries.len(), second.entries.len(), third.entries.len()];
        assert_eq!((lengths, end, first.objects), ([64, 64, 22], None, 150));
        assert_eq!((first.entries[0].uid.as_str(), third.entries[21].uid.as_str()), ("u000", "u149"));
    }
}
