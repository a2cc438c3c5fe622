//! What a bucket holds, and collecting what killed writers and removers left in it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use object_store::{ObjectMeta, path::Path};

use super::{
    super::ObjectEntry,
    super::token::Token,
    index::{self, Entry, Found, Index, State},
    layout::Layout,
    lease,
    place::{Place, Put},
    removal,
    step::Step,
    uploads::{self, Upload},
};
use crate::{error::Result, model::ObjectKey};

/// What sinks left or are writing: whose, and their uploads.
type Folders = BTreeMap<(ObjectKey, Token), Vec<Upload>>;

/// Everything there is: folders first and the entries then, so that what is published in between shows as published.
async fn look(place: &Place, uploads: Vec<Upload>) -> Result<(Folders, Vec<ObjectMeta>, Index)> {
    let layout = place.layout();
    let mut folders = Folders::new();
    for path in place.list_level(&layout.data(), "listing objects").await?.common_prefixes {
        if let Some(owner) = layout.owner_of(&path) {
            folders.entry(owner).or_default();
        }
    }
    for upload in uploads {
        if let Some(owner) = layout.owner_of(&upload.path) {
            folders.entry(owner).or_default().push(upload);
        }
    }
    let listed = place.list_level(layout.root(), "listing entries").await?.objects;
    let index = index::all(place, &listed).await?;
    folders.retain(|(key, token), _| !index.get(key).is_some_and(|found| found.entry.publishes(*token)));
    Ok((folders, listed, index))
}

/// All there is just below the prefix, also what Vitrine did not put there, and what is not published.
pub(super) async fn list(place: &Place) -> Result<Vec<ObjectEntry>> {
    let (folders, listed, index) = look(place, Vec::new()).await?;
    let mut entries = Vec::new();
    let age = |changed: u64| index::now().saturating_sub(changed);
    let is_own = |path: &Path| Layout::is_trial(path) || Layout::is_owner(path);
    for meta in listed.iter().filter(|meta| !is_own(&meta.location)) {
        let name = meta.location.filename().unwrap_or_default().to_owned();
        let key = Layout::key_of(&meta.location);
        let published =
            key.as_ref().and_then(|key| index.get(key)).is_some_and(|found| found.entry.state == State::Published);
        if published || key.is_none() {
            entries.push(ObjectEntry { key, name, published, age_seconds: age(index::changed(meta)) });
        }
    }
    for (key, token) in folders.into_keys() {
        let folder = place.layout().folder(&key, token);
        let objects = place.list(&folder, "listing what is not published").await?;
        let Some(newest) = objects.iter().map(index::changed).max() else { continue };
        let name = format!(".data/{}", folder.filename().unwrap_or_default());
        entries.push(ObjectEntry { key: Some(key), name, published: false, age_seconds: age(newest) });
    }
    Ok(entries)
}

/// Removes leftovers that were not changed for `older_than`; returns their names. One that cannot be removed does not keep the others;
/// the error is told at the end.
pub(super) async fn sweep(place: &Place, older_than: Duration) -> Result<Vec<String>> {
    let uploads = uploads::list(place, &place.layout().data()).await?;
    let (now, grace) = (uploads.now, older_than.as_secs());
    let (folders, listed, index) = look(place, uploads.uploads).await?;
    let (mut removed, mut failures, mut left) = (Vec::new(), Vec::new(), HashSet::new());
    for ((key, token), uploads) in &folders {
        let leftover = Leftover { place, key, token: *token, uploads, now };
        match leftover.sweep(index.get(key), grace).await {
            Ok(true) => removed.push(format!(".data/{key}-{token}")),
            Ok(false) => drop(left.insert(key.clone())),
            Err(error) => {
                left.insert(key.clone());
                failures.push(error);
            }
        }
    }
    failures.extend(sweep_signs(place, &listed, now, grace).await.err());
    let needless = index.iter().filter(|(key, found)| {
        found.entry.state != State::Published && now.saturating_sub(found.changed) >= grace && !left.contains(*key)
    });
    for (key, found) in needless {
        failures.extend(forget(place, key, found).await.err());
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(removed),
        Some(first) => Err(first.context(format!("{count} leftovers could not be removed, the first"))),
    }
}

/// What a sink left, or is writing.
struct Leftover<'a> {
    place: &'a Place,
    key: &'a ObjectKey,
    token: Token,
    uploads: &'a [Upload],
    now: u64,
}

impl Leftover<'_> {
    /// Whether it was removed.
    async fn sweep(&self, found: Option<&Found>, grace: u64) -> Result<bool> {
        let Self { place, key, token, now, .. } = *self;
        let folder = place.layout().folder(key, token);
        let objects = place.list(&folder, &format!("listing {folder}")).await?;
        if objects.iter().any(|meta| Layout::is_lease(&meta.location) && lease::counts(place, meta, now)) {
            return Ok(false);
        }
        let changed = objects.iter().map(index::changed).chain(self.uploads.iter().map(|upload| upload.begun));
        let young = changed.max().is_some_and(|newest| now.saturating_sub(newest) < grace);
        if young || removal::is_read(place, key, token, now).await? {
            return Ok(false);
        }
        if let Some(found) = found.filter(|found| found.entry.lets_publish(token)) {
            // Its writer may be cut off from the server and come back: first it is fenced off.
            let fenced = Entry::new(State::Writing, found.entry.attempt, None);
            if !swap(place, key, found, &fenced).await? {
                return Ok(false);
            }
        }
        removal::empty_folder(place, key, token, self.uploads).await?;
        place.steps.done(Step::Removed);
        Ok(true)
    }
}

async fn swap(place: &Place, key: &ObjectKey, old: &Found, new: &Entry) -> Result<bool> {
    match index::swap(place, key, Some(old), new).await {
        Ok(swapped) => Ok(swapped),
        Err(Put::Unfulfilled) => Ok(false),
        Err(put) => Err(put.into_error(place, &format!("sweeping {key}"))),
    }
}

/// Removes the signs of life of readers that are gone, and what was tried out by who was killed.
async fn sweep_signs(place: &Place, listed: &[ObjectMeta], now: u64, grace: u64) -> Result<()> {
    let doing = "sweeping signs of life";
    let readers = place.list(&place.layout().all_readers(), doing).await?;
    let gone = readers.iter().filter(|meta| !lease::counts(place, meta, now));
    let trials = listed.iter().filter(|meta| Layout::is_trial(&meta.location));
    // What is being tried out takes no longer than a lease.
    let trials = trials.filter(|meta| !lease::counts(place, meta, now));
    let old = |meta: &&ObjectMeta| now.saturating_sub(index::changed(meta)) >= grace;
    place.remove(gone.chain(trials).filter(old).map(|meta| meta.location.clone()).collect(), doing).await
}

/// Removes the entry of a key of which there is nothing else. An entry outlives its object, so that a writer from before a deletion
/// cannot come back; after the grace period nobody can. It says first that it is about to be removed: nobody else writes it then.
async fn forget(place: &Place, key: &ObjectKey, found: &Found) -> Result<()> {
    if found.entry.state == State::Closing && removal::check_closing(place, key, &found.entry).is_err() {
        return Ok(());
    }
    let closing = Entry::new(State::Closing, found.entry.attempt, None);
    if swap(place, key, found, &closing).await? {
        place.remove(vec![place.layout().entry(key)], &format!("forgetting {key}")).await?;
    }
    Ok(())
}
