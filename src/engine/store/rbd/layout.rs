//! The names in a pool, and what each of them is. Pure.
//!
//! Everything that Vitrine names for itself begins with a dot, which no object key does. A name carries the whole key, so that what is
//! found can be told whose it is even if nothing else is left of it.

use super::super::token::Token;
use crate::model::ObjectKey;

/// The snapshot of a published image: the name that Cinder, Nova and glance clone from.
pub(super) const SNAPSHOT: &str = "snap";
/// The RADOS object whose map says of every key who may publish it (see `index`).
pub(super) const INDEX: &str = "vitrine_index";
/// The RADOS object that a probe makes and removes.
pub(super) const PROBE: &str = "vitrine_probe";

/// The RADOS object through which librbd removes images. It is made when the first one is removed, which a full pool does not allow, so
/// it is made before there is anything to remove.
pub(super) const TRASH: &str = "rbd_trash";

const RECORD: &str = "vitrine_record.";
const PARTIAL: &str = ".vitrine-partial-";
const REMOVED: &str = ".vitrine-removed-";

/// What an image is, by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A published one, or one that is being deleted.
    Object(ObjectKey),
    /// One being written, left behind by a writer that died, or published and not yet renamed.
    Partial(ObjectKey, Token),
    /// One being removed, or still read.
    Removed(ObjectKey, Token),
    /// One that Vitrine did not name.
    Foreign,
}

impl Entry {
    /// What `name` is.
    pub(super) fn of(name: &str) -> Self {
        let known = if let Some(rest) = name.strip_prefix(PARTIAL) {
            parse_owned(rest).map(|(key, token)| Self::Partial(key, token))
        } else if let Some(rest) = name.strip_prefix(REMOVED) {
            parse_owned(rest).map(|(key, token)| Self::Removed(key, token))
        } else {
            parse_key(name).map(Self::Object)
        };
        known.unwrap_or(Self::Foreign)
    }

    /// Whose it is.
    pub(super) fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Object(key) | Self::Partial(key, _) | Self::Removed(key, _) => Some(key),
            Self::Foreign => None,
        }
    }
}

/// The public name.
pub(super) fn object(key: &ObjectKey) -> String {
    key.to_string()
}

/// The name of an image that is being written.
pub(super) fn partial(key: &ObjectKey, token: Token) -> String {
    format!("{PARTIAL}{key}-{token}")
}

/// The name of an image that is being removed.
pub(super) fn removed(key: &ObjectKey, token: Token) -> String {
    format!("{REMOVED}{key}-{token}")
}

/// The RADOS object with the record of what a sink writes; it exists from the beginning, and the sink watches it. A long record goes on
/// in further objects, numbered from 1.
pub(super) fn record(key: &ObjectKey, token: Token, part: u64) -> String {
    if part == 0 { format!("{RECORD}{key}-{token}") } else { format!("{RECORD}{key}-{token}.{part}") }
}

fn parse_key(text: &str) -> Option<ObjectKey> {
    ObjectKey::parse(text).filter(|key| key.to_string() == text)
}

fn parse_owned(text: &str) -> Option<(ObjectKey, Token)> {
    let (rest, nonce) = text.rsplit_once('-')?;
    let (key, attempt) = rest.rsplit_once('-')?;
    Some((parse_key(key)?, Token::parse(&format!("{attempt}-{nonce}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_as_what_it_is() {
        // A uid that looks like the rest of a name must not confuse the reader.
        for uid in ["7d1f", "a-a3-0000000000000000", "x-r5-a1"] {
            let (key, token) = (ObjectKey::new(uid, 12).unwrap(), Token { attempt: 3, nonce: 0xabc });
            assert_eq!(Entry::of(&object(&key)), Entry::Object(key.clone()));
            assert_eq!(Entry::of(&partial(&key, token)), Entry::Partial(key.clone(), token));
            assert_eq!(Entry::of(&removed(&key, token)), Entry::Removed(key, token));
        }
    }

    #[test]
    fn other_names_are_foreign() {
        for name in
            ["x-r01", "volume-1", ".vitrine-partial-x-r1", ".vitrine-partial-x-r1-a01-000000000000abcd", ".x-r1"]
        {
            assert_eq!(Entry::of(name), Entry::Foreign, "{name}");
        }
    }
}
