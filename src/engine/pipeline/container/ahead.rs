//! What the files of a package have to be digested with, looked up before they pass.
//!
//! Their manifest mostly stands behind them, or is not there at all, and every digest costs as much as all that is done with a file's
//! bytes otherwise. What is found here is no proof: the manifest that passes is the one that counts.

use super::{
    contents::{has_extension, is_read},
    manifest,
};
use crate::{
    error::Result,
    io::ReadAt,
    model::DigestAlgorithm,
    unpack::tar::{Scan, next_member},
};

/// Headers that are looked at, a request each. Packages have some files for each disk.
const MAX_MEMBERS: usize = 32;

/// The algorithms of the manifest in `archive`, none if it has no manifest; `None` where that takes too long to find out.
///
/// # Errors
/// A violation if the archive breaks a rule, else what `archive` says.
pub(super) fn algorithms(archive: &mut dyn ReadAt) -> Result<Option<Vec<DigestAlgorithm>>> {
    let mut scan = Scan::default();
    for _ in 0..MAX_MEMBERS {
        let Some(member) = next_member(&mut scan, archive)? else { return Ok(Some(Vec::new())) };
        if is_manifest(&member.name) && is_read(&member)? {
            let text = archive.read_up_to(member.offset, usize::try_from(member.size).unwrap_or(usize::MAX))?;
            return Ok(manifest::algorithms(&text));
        }
    }
    Ok(None)
}

/// Whether a member is the manifest of the others.
pub(super) fn is_manifest(name: &str) -> bool {
    has_extension(name, "mf")
}
