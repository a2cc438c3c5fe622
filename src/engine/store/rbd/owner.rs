//! Whose the pool, or the namespace in it, is: an entry of the index that the first one who may write leaves there.

use super::{super::owner::another_s, ffi::Errno, layout::INDEX, place::Place};
use crate::error::Result;

/// The name of the entry: no key is called so.
const OWNER: &str = "owner";

/// Makes the pool that of the place's owner, if it is nobody's.
///
/// # Errors
/// `Denied` if it is another one's.
pub(super) fn claim(place: &Place) -> Result<()> {
    if let Some(own) = place.owner()
        && read(place)?.is_none()
    {
        match place.pool().swap(INDEX, OWNER, None, Some(own.as_bytes())) {
            Ok(()) | Err(Errno::CANCELED) => {}
            Err(errno) => return Err(place.error(format!("marking {INDEX}"), errno)),
        }
    }
    check(place)
}

/// Makes sure that the pool is not another one's; one that is nobody's stays so.
///
/// # Errors
/// `Denied` if it is.
pub(super) fn check(place: &Place) -> Result<()> {
    let Some(own) = place.owner() else { return Ok(()) };
    match read(place)? {
        Some(found) if found != own => {
            let namespace = place.namespace().map_or_else(String::new, |namespace| format!(" --namespace {namespace}"));
            let command = format!("rados --pool {}{namespace} rmomapkey {INDEX} {OWNER}", place.pool_name());
            Err(another_s(place.name(), &format!("pool {}", place.spec()), &found, &command))
        }
        _ => Ok(()),
    }
}

fn read(place: &Place) -> Result<Option<String>> {
    match place.pool().value(INDEX, OWNER) {
        Ok(found) => Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(place.error(format!("looking whose {INDEX} is"), errno)),
    }
}
