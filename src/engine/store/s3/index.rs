//! Who may publish what: one small object per key, its entry, changed only by conditional writes.
//!
//! An entry is a line of text: version, state, attempt, token, time, and a random number, so that no two entries are alike. It decides
//! alone: an object is published when its key's entry says so and names the sink that wrote it.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::ObjectMeta;

use super::{
    super::token::Token,
    layout::Layout,
    place::{Condition, Place, Put},
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// First word of every entry. Another one was written by a later version.
const VERSION: &str = "v1";
/// Stands for nothing.
const NONE: &str = "-";
/// Entries that are read at once.
const READS: usize = 16;

/// The entries of a bucket.
pub(super) type Index = HashMap<ObjectKey, Found>;

/// How far a key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The sink with the token may publish.
    Writing,
    /// What the sink wrote is published.
    Published,
    /// Only a later attempt may publish; what the token's sink had is being removed, or is gone.
    Deleted,
    /// The entry is about to be removed. Who did not put this there leaves it alone.
    Closing,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// The highest attempt that has begun or deleted.
    pub(super) attempt: u32,
    /// The sink whose data it is about.
    pub(super) token: Option<Token>,
    /// When this was written, in seconds since 1970 by the writer's clock.
    pub(super) since: u64,
    nonce: u64,
}

/// An entry as it was read, and what the server calls that version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) entry: Entry,
    tag: String,
    /// When it was written, in seconds since 1970 by the server's clock.
    pub(super) changed: u64,
}

impl Entry {
    /// An entry of now.
    pub(super) fn new(state: State, attempt: u32, token: Option<Token>) -> Self {
        Self { state, attempt, token, since: now(), nonce: rand::random() }
    }

    /// Whether it says that what this sink wrote is published.
    pub(super) fn publishes(&self, token: Token) -> bool {
        self.state == State::Published && self.token == Some(token)
    }

    /// Whether it says that this sink may publish.
    pub(super) fn lets_publish(&self, token: Token) -> bool {
        self.state == State::Writing && self.token == Some(token)
    }

    fn text(&self) -> String {
        let state = match self.state {
            State::Writing => "writing",
            State::Published => "published",
            State::Deleted => "deleted",
            State::Closing => "closing",
        };
        let token = self.token.map_or_else(|| NONE.to_owned(), |token| token.to_string());
        format!("{VERSION} {state} {} {token} {} {:016x}\n", self.attempt, self.since, self.nonce)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim_end().split(' ');
        let mut next = || words.next();
        let (version, state, attempt, token, since, nonce) = (next()?, next()?, next()?, next()?, next()?, next()?);
        let state = match state {
            "writing" => State::Writing,
            "published" => State::Published,
            "deleted" => State::Deleted,
            "closing" => State::Closing,
            _ => return None,
        };
        let token = if token == NONE { None } else { Some(Token::parse(token)?) };
        let (attempt, since) = (attempt.parse().ok()?, since.parse().ok()?);
        let entry = Self { state, attempt, token, since, nonce: u64::from_str_radix(nonce, 16).ok()? };
        (version == VERSION && words.next().is_none()).then_some(entry)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// When an object was last written, in seconds since 1970 by the server's clock.
pub(super) fn changed(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp()).unwrap_or_default()
}

/// What is known of `key`.
pub(super) async fn get(place: &Place, key: &ObjectKey) -> Result<Option<Found>> {
    let path = place.layout().entry(key);
    let Some((meta, bytes)) = place.get(&path, &format!("looking for {key}")).await? else { return Ok(None) };
    let tag = meta.e_tag.as_deref().map(|tag| bare(tag).to_owned()).ok_or_else(|| {
        let message = format!("store {}, bucket {}: the server gives {path} no ETag", place.name(), place.bucket());
        Error::new(Kind::InvalidInput, message)
    })?;
    Ok(Some(Found { entry: parse(place, key, &bytes)?, tag, changed: changed(&meta) }))
}

fn parse(place: &Place, key: &ObjectKey, bytes: &[u8]) -> Result<Entry> {
    std::str::from_utf8(bytes).ok().and_then(Entry::parse).ok_or_else(|| {
        let message = format!(
            "store {}, bucket {}: the entry {} cannot be read: it is damaged, none of Vitrine's, or a newer Vitrine wrote it, which is \
             to be used then",
            place.name(),
            place.bucket(),
            place.layout().entry(key)
        );
        Error::new(Kind::Io, message)
    })
}

/// The entries of which a listing tells. Those that have not changed since they were last read are not read again.
pub(super) async fn all(place: &Place, listed: &[ObjectMeta]) -> Result<Index> {
    let known = place.seen();
    let (mut found, mut unknown) = (Index::new(), Vec::new());
    for meta in listed {
        let Some(key) = Layout::key_of(&meta.location) else { continue };
        let tag = meta.e_tag.as_deref().map(bare);
        match known.get(&key).filter(|known| Some(known.tag.as_str()) == tag) {
            Some(known) => drop(found.insert(key, known.clone())),
            None => unknown.push(key),
        }
    }
    let mut read =
        futures::stream::iter(unknown).map(async |key| (get(place, &key).await, key)).buffer_unordered(READS);
    while let Some((read, key)) = read.next().await {
        if let Some(read) = read? {
            found.insert(key, read);
        }
    }
    place.see(found.clone());
    Ok(found)
}

/// An ETag without quotes: servers give it with them in one answer and without in another.
fn bare(tag: &str) -> &str {
    tag.trim_matches('"')
}

/// Puts `new` in the place of what was found; none is no entry. False if something else was there.
///
/// # Errors
/// As in [`Put`]: whether it was done is known only of a refusal.
pub(super) async fn swap(place: &Place, key: &ObjectKey, old: Option<&Found>, new: &Entry) -> Result<bool, Put> {
    let condition = old.map_or(Condition::Absent, |found| Condition::Unchanged(found.tag.clone()));
    let path = place.layout().entry(key);
    let doing = format!("writing the entry of {key}");
    match place.put_if(&path, Bytes::from(new.text()), condition, &doing).await {
        Ok(()) => Ok(true),
        Err(Put::Refused(error)) => Err(Put::Refused(error)),
        // It was there already, or came in between; or it was this very one, and the answer was lost.
        Err(Put::Unfulfilled) => {
            let now = get(place, key).await.map_err(Put::Unknown)?;
            Ok(now.is_some_and(|found| found.entry == *new))
        }
        Err(Put::Unknown(error)) => match get(place, key).await {
            Ok(Some(found)) if found.entry == *new => Ok(true),
            _ => Err(Put::Unknown(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let token = Some(Token { attempt: 3, nonce: u64::MAX });
        for state in [State::Writing, State::Published, State::Deleted, State::Closing] {
            for token in [token, None] {
                let entry = Entry::new(state, 4, token);
                assert_eq!(Entry::parse(&entry.text()), Some(entry));
            }
        }
    }

    #[test]
    fn no_two_entries_are_alike() {
        let made = || Entry::new(State::Writing, 1, None);
        assert_ne!(made().text(), made().text());
    }

    #[test]
    fn entries_of_others_are_not_read() {
        let good = Entry::new(State::Writing, 4, None).text();
        for text in ["", "v1", "v2 writing 4 - 1 0", "v1 gone 4 - 1 0", &format!("{good} more")] {
            assert_eq!(Entry::parse(text), None, "{text}");
        }
    }
}
