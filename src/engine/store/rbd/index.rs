//! Who may publish what: one entry per key in the map of one RADOS object, changed only by atomic compare-and-swap.
//!
//! An entry is a line of text: version, state, attempt, token, image id, time. It decides alone: an image is published when its key's
//! entry says so and names its id, whatever the image is called.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{super::token::Token, ffi::Errno, layout::INDEX, place::Place};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// First word of every entry. Another one was written by a later version.
const VERSION: &str = "v1";
/// Stands for nothing.
const NONE: &str = "-";

/// How far a key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The sink with the token may publish.
    Writing,
    /// The image is published.
    Published,
    /// Only a later attempt may publish; what the token's sink had is being removed, or is gone.
    Deleted,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// The highest attempt that has begun or deleted.
    pub(super) attempt: u32,
    /// The sink whose image it is about.
    pub(super) token: Option<Token>,
    /// The id of that image, which stays when it is renamed.
    pub(super) image: Option<String>,
    /// When this was written, in seconds since 1970 by the writer's clock.
    pub(super) since: u64,
}

impl Entry {
    /// An entry of now.
    pub(super) fn new(state: State, attempt: u32, token: Option<Token>, image: Option<String>) -> Self {
        Self { state, attempt, token, image, since: now() }
    }

    /// The same key one state further.
    pub(super) fn next(&self, state: State, attempt: u32) -> Self {
        Self { state, attempt, since: now(), ..self.clone() }
    }

    /// Seconds since it was written; 0 if that is in the future.
    pub(super) fn age(&self) -> u64 {
        now().saturating_sub(self.since)
    }

    /// Whether it says that this image is published.
    pub(super) fn publishes(&self, image: &str) -> bool {
        self.state == State::Published && self.image.as_deref() == Some(image)
    }

    fn text(&self) -> String {
        let state = match self.state {
            State::Writing => "writing",
            State::Published => "published",
            State::Deleted => "deleted",
        };
        let token = self.token.map_or_else(|| NONE.to_owned(), |token| token.to_string());
        let image = self.image.as_deref().unwrap_or(NONE);
        format!("{VERSION} {state} {} {token} {image} {}", self.attempt, self.since)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        let (version, state, attempt, token, image, since) = (next()?, next()?, next()?, next()?, next()?, next()?);
        let state = match state {
            "writing" => State::Writing,
            "published" => State::Published,
            "deleted" => State::Deleted,
            _ => return None,
        };
        let token = if token == NONE { None } else { Some(Token::parse(token)?) };
        let image = (image != NONE).then(|| image.to_owned());
        let entry = Self { state, attempt: attempt.parse().ok()?, token, image, since: since.parse().ok()? };
        (version == VERSION && words.next().is_none()).then_some(entry)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What is known of `key`.
pub(super) fn get(place: &Place, key: &ObjectKey) -> Result<Option<Entry>> {
    match place.pool().value(INDEX, &key.to_string()) {
        Ok(Some(value)) => parse(place, &key.to_string(), &value).map(Some),
        Ok(None) | Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(place.error(format!("looking for {key} in {INDEX}"), errno)),
    }
}

/// All there is.
pub(super) fn all(place: &Place) -> Result<Vec<(ObjectKey, Entry)>> {
    let values = match place.pool().values(INDEX) {
        Ok(values) => values,
        Err(Errno::NOENT) => Vec::new(),
        Err(errno) => return Err(place.error(format!("reading {INDEX}"), errno)),
    };
    let ours = values.into_iter().filter_map(|(name, value)| Some((ObjectKey::parse(&name)?, name, value)));
    ours.map(|(key, name, value)| Ok((key, parse(place, &name, &value)?))).collect()
}

fn parse(place: &Place, name: &str, value: &[u8]) -> Result<Entry> {
    std::str::from_utf8(value).ok().and_then(Entry::parse).ok_or_else(|| {
        let message = format!(
            "store {}, pool {}: the entry of {name} in {INDEX} cannot be read ({:?}): it is damaged, or a newer Vitrine wrote it, which \
             is to be used then",
            place.name(),
            place.spec(),
            String::from_utf8_lossy(value)
        );
        Error::new(Kind::Io, message)
    })
}

/// Puts `new` in the place of `old`; none is no entry. False if something else than `old` was there.
///
/// # Errors
/// After an error it is not known whether it was done.
pub(super) fn swap(place: &Place, key: &ObjectKey, old: Option<&Entry>, new: Option<&Entry>) -> Result<bool> {
    let (before, after) = (old.map(Entry::text), new.map(Entry::text));
    let (before, after) = (before.as_ref().map(String::as_bytes), after.as_ref().map(String::as_bytes));
    match place.pool().swap(INDEX, &key.to_string(), before, after) {
        Ok(()) => Ok(true),
        Err(Errno::CANCELED) => Ok(false),
        // It may have been done all the same, and then nobody must act as if it had not been.
        Err(Errno::TIMEDOUT) if get(place, key)?.as_ref() == new => Ok(true),
        Err(errno) => Err(place.error(format!("writing the entry of {key} in {INDEX}"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let token = Some(Token { attempt: 3, nonce: u64::MAX });
        for state in [State::Writing, State::Published, State::Deleted] {
            for entry in [Entry::new(state, 7, token, Some("10ab".to_owned())), Entry::new(state, 0, None, None)] {
                assert_eq!(Entry::parse(&entry.text()), Some(entry));
            }
        }
    }

    #[test]
    fn what_is_not_an_entry_is_not_taken_for_one() {
        let good = Entry::new(State::Writing, 1, None, None).text();
        for text in [String::new(), good.replace("v1", "v2"), good.replace("writing", "baking"), format!("{good} more")]
        {
            assert_eq!(Entry::parse(&text), None, "{text}");
        }
    }
}
