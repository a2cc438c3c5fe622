//! Whose the bucket, or the prefix in it, is: an object that the first one who may write leaves there.

use bytes::Bytes;

use super::{
    super::owner::another_s,
    place::{Condition, Place, Put},
};
use crate::error::Result;

/// Makes the prefix that of the place's owner, if it is nobody's.
///
/// # Errors
/// `Denied` if it is another one's.
pub(super) async fn claim(place: &Place) -> Result<()> {
    if let Some(own) = &place.options().owner
        && read(place).await?.is_none()
    {
        place.trial().pass(place).await?;
        let (path, doing) = (place.layout().owner(), "marking whose it is");
        match place.put_if(&path, Bytes::from(own.clone()), Condition::Absent, doing).await {
            // Of two that come at once one wins; which, the next look tells.
            Ok(()) | Err(Put::Unfulfilled) => {}
            Err(put) => return Err(put.into_error(place, doing)),
        }
    }
    check(place).await
}

/// Makes sure that the prefix is not another one's; one that is nobody's stays so.
///
/// # Errors
/// `Denied` if it is.
pub(super) async fn check(place: &Place) -> Result<()> {
    let Some(own) = &place.options().owner else { return Ok(()) };
    match read(place).await? {
        Some(found) if found != *own => {
            let url = place.url_of(&place.layout().owner());
            let command =
                format!("aws --endpoint-url {} s3 rm {url}", place.options().endpoint.as_str().trim_end_matches('/'));
            Err(another_s(place.name(), &place.url_of(place.layout().root()), &found, &command))
        }
        _ => Ok(()),
    }
}

async fn read(place: &Place) -> Result<Option<String>> {
    let found = place.get(&place.layout().owner(), "looking whose it is").await?;
    Ok(found.map(|(_, bytes)| String::from_utf8_lossy(&bytes).trim_end().to_owned()))
}
