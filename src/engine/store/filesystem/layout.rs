//! The names inside the store's folder, and what each of them is.
//!
//! Pure: knows no files. Everything that Vitrine names for itself begins with a dot, which no object key does.

use crate::model::ObjectKey;

/// The identity marker.
pub(super) const MARKER: &str = ".vitrine-store";
/// The mark of the installation that writes here.
pub(super) const OWNER: &str = ".vitrine-owner";
/// The folder of fences, one file per key.
pub(super) const FENCES: &str = ".fences";
/// What a new ext4 file system contains: not ours, and no reason to call a folder taken.
pub(super) const LOST_AND_FOUND: &str = "lost+found";
/// The object's bytes, in its directory.
pub(super) const DATA: &str = "data";
/// The object's facts, in its directory.
pub(super) const RECORD: &str = "image.json";
/// The object's chunk digests, in its directory.
pub(super) const MANIFEST: &str = "manifest";

/// In the directory of an object that is being written: on which start of which machine.
pub(super) const WRITER: &str = "writer";

const PARTIAL: &str = ".partial-";
const REMOVED: &str = ".removed-";
const SCRATCH: &str = ".scratch-";

/// Which sink may publish a key: the attempt, and a number of its own for the case that one attempt creates two sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// The fencing number the caller gave.
    pub(super) attempt: u32,
    /// Random; tells sinks of one attempt apart.
    pub(super) nonce: u64,
}

/// What an entry of the store's folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A published object.
    Object(ObjectKey),
    /// An object being written, or left behind by a writer that died.
    Partial(ObjectKey),
    /// An object being removed, or left behind by a remover that died.
    Removed(ObjectKey),
    /// A short-lived file of our own.
    Scratch,
    /// What belongs to the store itself.
    Own,
    /// Something Vitrine did not name.
    Foreign,
}

impl Entry {
    /// What `name` is, by its form alone.
    pub(super) fn of(name: &str) -> Self {
        if matches!(name, MARKER | OWNER | FENCES | LOST_AND_FOUND) {
            return Self::Own;
        }
        let known = if let Some(rest) = name.strip_prefix(PARTIAL) {
            parse_partial(rest).map(Self::Partial)
        } else if let Some(rest) = name.strip_prefix(REMOVED) {
            parse_removed(rest).map(Self::Removed)
        } else if let Some(rest) = name.strip_prefix(SCRATCH) {
            parse_nonce(rest).map(|_| Self::Scratch)
        } else {
            parse_key(name).map(Self::Object)
        };
        known.unwrap_or(Self::Foreign)
    }

    /// Whose it is.
    pub(super) fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Object(key) | Self::Partial(key) | Self::Removed(key) => Some(key),
            Self::Scratch | Self::Own | Self::Foreign => None,
        }
    }
}

/// The directory of a published object. This is where a name becomes a path: a key cannot hold what would lead elsewhere.
pub(super) fn object_name(key: &ObjectKey) -> String {
    key.to_string()
}

/// The directory of an object that is being written.
pub(super) fn partial_name(key: &ObjectKey, token: Token) -> String {
    format!("{PARTIAL}{key}-a{}-{:016x}", token.attempt, token.nonce)
}

/// The directory of an object that is being removed.
pub(super) fn removed_name(key: &ObjectKey, nonce: u64) -> String {
    format!("{REMOVED}{key}-{nonce:016x}")
}

/// A file that lives for a moment.
pub(super) fn scratch_name(nonce: u64) -> String {
    format!("{SCRATCH}{nonce:016x}")
}

/// Only the one spelling that `object_name` writes: `x-r01` and `x-r+1` are somebody else's.
fn parse_key(text: &str) -> Option<ObjectKey> {
    ObjectKey::parse(text).filter(|key| key.to_string() == text)
}

fn parse_nonce(text: &str) -> Option<u64> {
    let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn parse_partial(text: &str) -> Option<ObjectKey> {
    let (text, nonce) = text.rsplit_once('-')?;
    let (key, attempt) = text.rsplit_once("-a")?;
    parse_nonce(nonce)?;
    attempt.parse::<u32>().ok()?;
    parse_key(key)
}

fn parse_removed(text: &str) -> Option<ObjectKey> {
    let (key, nonce) = text.rsplit_once('-')?;
    parse_nonce(nonce)?;
    parse_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: &str, revision: u64) -> ObjectKey {
        ObjectKey::new(uid, revision).unwrap()
    }

    #[test]
    fn every_name_is_read_back_as_what_it_is() {
        // A uid that looks like the rest of a name must not confuse the reader.
        for uid in ["7d1f", "a-a3-0000000000000000", "x-r5-a1"] {
            let (key, token) = (key(uid, 12), Token { attempt: 3, nonce: 0xabc });
            assert_eq!(Entry::of(&object_name(&key)), Entry::Object(key.clone()));
            assert_eq!(Entry::of(&partial_name(&key, token)), Entry::Partial(key.clone()));
            assert_eq!(Entry::of(&removed_name(&key, 7)), Entry::Removed(key));
        }
        assert_eq!(Entry::of(&scratch_name(1)), Entry::Scratch);
        assert_eq!((Entry::of(MARKER), Entry::of(OWNER)), (Entry::Own, Entry::Own));
    }

    #[test]
    fn other_names_are_foreign() {
        for name in
            ["x-r01", "x-r+1", "X-r1", "x", ".partial-x-r1-a1-zz", ".partial-", ".removed-x-r1", ".scratch-1", ".git"]
        {
            assert_eq!(Entry::of(name), Entry::Foreign, "{name}");
        }
    }

    #[test]
    fn the_longest_name_fits_a_file_system() {
        let key = key(&"u".repeat(64), u64::MAX);
        assert!(partial_name(&key, Token { attempt: u32::MAX, nonce: u64::MAX }).len() <= 255);
    }
}
