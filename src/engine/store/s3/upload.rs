//! Uploading one piece: in one request if it is short, else in parts, several of them at once.
//!
//! Knows the bytes of the parts, and nothing of what they mean.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use object_store::{
    PutPayload,
    multipart::{MultipartStore as _, PartId},
    path::Path,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver};

use super::{place::Place, step::Step};
use crate::error::Result;

/// Length of every part but a piece's last, in bytes. S3 takes 5 MiB and more.
pub(super) const PART: usize = 8 << 20;
/// Parts that a sink holds at once, the one that is being filled among them: 32 MiB.
pub(super) const PARTS: usize = 4;

/// What a piece is made of.
pub(super) enum Message {
    /// Its next bytes.
    Part {
        /// The bytes.
        bytes: Bytes,
        /// Whether they are its last.
        last: bool,
        /// Held until they are uploaded.
        room: OwnedSemaphorePermit,
    },
    /// There is no more.
    End,
}

/// Uploads what comes as the piece `path`. If it breaks off before the end, nothing is left of it.
pub(super) async fn upload(place: Arc<Place>, path: Path, mut messages: UnboundedReceiver<Message>) -> Result<()> {
    let Some(Message::Part { bytes, last, room }) = messages.recv().await else { return Ok(()) };
    let doing = format!("uploading {path}");
    if last {
        place.put(&path, bytes, &doing).await?;
        drop(room);
        return Ok(());
    }
    let id = place.bounded(&doing, place.client().create_multipart(&path)).await;
    let id = id.map_err(|fault| place.fault(&doing, &fault))?;
    let parts = upload_parts(&place, &path, &id, (bytes, room), &mut messages).await;
    let completed = match parts {
        Ok(Some(parts)) => {
            let completed = place.bounded(&doing, place.client().complete_multipart(&path, &id, parts)).await;
            completed.map(|_| true).map_err(|fault| place.fault(&doing, &fault))
        }
        Ok(None) => Ok(false),
        Err(error) => Err(error),
    };
    // Its sink looks for what is left, too, but not everybody may list it.
    if !matches!(completed, Ok(true))
        && let Err(fault) = place.bounded(&doing, place.client().abort_multipart(&path, &id)).await
    {
        tracing::info!(store = place.name(), %path, ?fault, "an unfinished upload stays until it is swept");
    }
    completed.map(drop)
}

/// The parts, or nothing if there was no end.
async fn upload_parts(
    place: &Place,
    path: &Path,
    id: &String,
    first: (Bytes, OwnedSemaphorePermit),
    messages: &mut UnboundedReceiver<Message>,
) -> Result<Option<Vec<PartId>>> {
    let upload = async |number: usize, bytes: Bytes, room: OwnedSemaphorePermit| {
        let doing = format!("uploading part {} of {path}", number.saturating_add(1));
        let put = place.client().put_part(path, id, number, PutPayload::from_bytes(bytes));
        let part = place.bounded(&doing, put).await;
        drop(room);
        place.steps.done(Step::Part);
        part.map(|part| (number, part)).map_err(|fault| place.fault(&doing, &fault))
    };
    let (mut under_way, mut done) = (FuturesUnordered::new(), Vec::new());
    under_way.push(upload(0, first.0, first.1));
    let (mut count, mut ended, mut whole) = (1_usize, false, false);
    while !(ended && under_way.is_empty()) {
        tokio::select! {
            message = messages.recv(), if !ended => match message {
                Some(Message::Part { bytes, last, room }) => {
                    under_way.push(upload(count, bytes, room));
                    count = count.saturating_add(1);
                    (ended, whole) = (last, last);
                }
                Some(Message::End) => (ended, whole) = (true, true),
                None => ended = true,
            },
            Some(part) = under_way.next() => done.push(part?),
        }
    }
    done.sort_by_key(|(number, _)| *number);
    Ok(whole.then(|| done.into_iter().map(|(_, part)| part).collect()))
}
