//! Whose a store is, where several installations can reach it: what its mark may be, and what to say of another one's.

use crate::error::{Error, Kind};

/// Longer than any mark, in bytes: they are uids.
pub(super) const LONGEST: u64 = 256;

/// The error for a store in `place` with the mark of `owner`, which is another one. `command` removes the mark.
pub(super) fn another_s(store: &str, place: &str, owner: &str, command: &str) -> Error {
    let message = format!(
        "store {store}: {place} is written to by another cluster, {owner}. Either would take the other's images for data that nobody knows, \
         and remove it: give each cluster a place of its own, or set readOnly here. If that cluster is gone for good, `{command}` hands \
         it over"
    );
    Error::new(Kind::Denied, message)
}
