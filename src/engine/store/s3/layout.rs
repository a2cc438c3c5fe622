//! The names in a bucket, and what each of them is. Pure.
//!
//! Everything that is not an entry is below a folder whose name begins with a dot, which no object key does. A folder's name carries the
//! whole key, so that what is found can be told whose it is even if nothing else is left of it.

use object_store::path::Path;

use super::super::token::Token;
use crate::model::ObjectKey;

const DATA: &str = ".data";
const READERS: &str = ".readers";
const RECORD: &str = "record";
const LEASE: &str = "lease";
const OWNER: &str = ".owner";

/// The names below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: Path,
}

impl Layout {
    /// Those below `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: Path::from(prefix) }
    }

    /// Where everything is.
    pub(super) fn root(&self) -> &Path {
        &self.prefix
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &ObjectKey) -> Path {
        self.prefix.clone().join(key.to_string())
    }

    /// Where the folders of all sinks are.
    pub(super) fn data(&self) -> Path {
        self.prefix.clone().join(DATA)
    }

    /// The folder of one sink.
    pub(super) fn folder(&self, key: &ObjectKey, token: Token) -> Path {
        self.data().join(folder_name(key, token))
    }

    /// The piece with this number.
    pub(super) fn piece(&self, key: &ObjectKey, token: Token, number: u64) -> Path {
        self.folder(key, token).join(format!("{number:08x}"))
    }

    /// The record of what a sink wrote.
    pub(super) fn record(&self, key: &ObjectKey, token: Token) -> Path {
        self.folder(key, token).join(RECORD)
    }

    /// What a sink gives its signs of life with.
    pub(super) fn lease(&self, key: &ObjectKey, token: Token) -> Path {
        self.folder(key, token).join(LEASE)
    }

    /// Where the signs of life of all readers are.
    pub(super) fn all_readers(&self) -> Path {
        self.prefix.clone().join(READERS)
    }

    /// Where those of one published object's readers are.
    pub(super) fn readers(&self, key: &ObjectKey, token: Token) -> Path {
        self.all_readers().join(folder_name(key, token))
    }

    /// What one reader gives its signs of life with.
    pub(super) fn reader(&self, key: &ObjectKey, token: Token, nonce: u64) -> Path {
        self.readers(key, token).join(format!("{nonce:016x}"))
    }

    /// An object for trying something out.
    pub(super) fn trial(&self, nonce: u64) -> Path {
        self.prefix.clone().join(format!(".trial-{nonce:016x}"))
    }

    /// Whose all of it is.
    pub(super) fn owner(&self) -> Path {
        self.prefix.clone().join(OWNER)
    }

    /// The key whose entry this is.
    pub(super) fn key_of(path: &Path) -> Option<ObjectKey> {
        let name = path.filename()?;
        ObjectKey::parse(name).filter(|key| key.to_string() == name)
    }

    /// Whether it is something that was tried out.
    pub(super) fn is_trial(path: &Path) -> bool {
        path.filename().is_some_and(|name| name.starts_with(".trial-"))
    }

    /// Whether it says whose all of it is.
    pub(super) fn is_owner(path: &Path) -> bool {
        path.filename() == Some(OWNER)
    }

    /// Whose folder this is, or the folder in which this is.
    pub(super) fn owner_of(&self, path: &Path) -> Option<(ObjectKey, Token)> {
        let mut rest = path.prefix_match(&self.data())?;
        let name = rest.next()?;
        parse_folder(name.as_ref())
    }

    /// Whether this is the sign of life of a sink.
    pub(super) fn is_lease(path: &Path) -> bool {
        path.filename() == Some(LEASE)
    }
}

/// The name of a sink's folder.
fn folder_name(key: &ObjectKey, token: Token) -> String {
    format!("{key}-{token}")
}

fn parse_folder(text: &str) -> Option<(ObjectKey, Token)> {
    let (rest, nonce) = text.rsplit_once('-')?;
    let (key, attempt) = rest.rsplit_once('-')?;
    let key = ObjectKey::parse(key).filter(|parsed| parsed.to_string() == key)?;
    Some((key, Token::parse(&format!("{attempt}-{nonce}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_as_what_it_is() {
        for prefix in ["", "images/here"] {
            let layout = Layout::new(prefix);
            // A uid that looks like the rest of a name must not confuse the reader.
            for uid in ["7d1f", "a-a3-0000000000000000", "x-r5-a1"] {
                let (key, token) = (ObjectKey::new(uid, 12).unwrap(), Token { attempt: 3, nonce: 0xabc });
                assert_eq!(Layout::key_of(&layout.entry(&key)), Some(key.clone()));
                let owner = Some((key.clone(), token));
                assert_eq!(layout.owner_of(&layout.folder(&key, token)), owner);
                assert_eq!(layout.owner_of(&layout.piece(&key, token, 7)), owner);
                assert_eq!(layout.owner_of(&layout.reader(&key, token, 7)), None);
                assert!(Layout::is_lease(&layout.lease(&key, token)) && !Layout::is_lease(&layout.record(&key, token)));
            }
        }
    }

    #[test]
    fn other_names_are_nobodys() {
        let layout = Layout::new("images");
        for name in ["images/x-r01", "images/notes.txt"] {
            assert_eq!(Layout::key_of(&Path::from(name)), None, "{name}");
        }
        for name in
            ["images/.data/x-r1", "images/.data/x-r1-a01-000000000000abcd/record", ".data/x-r1-a1-000000000000abcd"]
        {
            assert_eq!(layout.owner_of(&Path::from(name)), None, "{name}");
        }
    }
}
