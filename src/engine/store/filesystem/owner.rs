//! Whose the folder is: a mark that the first one who may write leaves in it.
//!
//! Two installations in one folder would each take the other's objects for leftovers that nobody knows, and remove them.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::{
    super::owner::{self, another_s},
    layout,
    place::{Place, put_once},
    tree,
};
use crate::error::Result;

/// Makes the folder that of the place's owner, if it is nobody's.
///
/// # Errors
/// `Denied` if it is another one's.
pub(super) fn claim(place: &Place, root: &OwnedFd) -> Result<()> {
    if let Some(own) = place.owner()
        && read(place, root)?.is_none()
    {
        put_once(root, layout::OWNER, own.as_bytes()).map_err(|e| place.error("marking the folder", e))?;
    }
    check(place, root)
}

/// Makes sure that the folder is not another one's; one that is nobody's stays so.
///
/// # Errors
/// `Denied` if it is.
pub(super) fn check(place: &Place, root: &OwnedFd) -> Result<()> {
    let Some(own) = place.owner() else { return Ok(()) };
    match read(place, root)? {
        Some(found) if found != own => {
            let command = format!("rm {}", place.path_of(layout::OWNER).display());
            Err(another_s(place.name(), &place.path_of("").display().to_string(), &found, &command))
        }
        _ => Ok(()),
    }
}

fn read(place: &Place, root: &OwnedFd) -> Result<Option<String>> {
    let failed = |errno| place.error(&format!("reading {}", layout::OWNER), errno);
    let file = match tree::open_file(root, layout::OWNER) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, owner::LONGEST), &mut bytes)
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()))
}
