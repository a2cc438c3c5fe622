//! A blocking feed of what an asynchronous stream brings.

use std::{
    pin::pin,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Feed;
use crate::error::{Error, Kind, Result};

/// What the pump sends; the end is a message of its own, so that a pump that died is never taken for it.
type Message = Result<Option<Bytes>>;

/// Reads `stream` on `handle`'s runtime, at most `capacity` bytes ahead of whoever takes them from the feed on a thread
/// that may block. Cancelling `token` ends a `next` that waits. Dropping the feed drops the stream.
///
/// A piece longer than `capacity` waits until nothing else is on the way.
pub fn feed_from(
    stream: impl Stream<Item = Result<Bytes>> + Send + 'static,
    handle: &Handle,
    capacity: usize,
    token: CancellationToken,
) -> impl Feed + 'static {
    // Permits count KiB: tokio's semaphore takes no more than 2^32 of them at once.
    let room = Arc::new(Semaphore::new(in_permits(capacity) as usize));
    let (sender, receiver) = channel();
    let pump = pump(stream, sender, Arc::clone(&room), in_permits(capacity), token.clone());
    StreamFeed {
        receiver,
        room,
        capacity: in_permits(capacity),
        token,
        _pump: AbortOnDropHandle::new(handle.spawn(pump)),
    }
}

fn in_permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4)
}

async fn pump(
    stream: impl Stream<Item = Result<Bytes>> + Send,
    sender: Sender<Message>,
    room: Arc<Semaphore>,
    capacity: u32,
    token: CancellationToken,
) {
    let mut stream = pin!(stream);
    loop {
        let next = async {
            let item = stream.next().await.transpose();
            let length = item.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
            // A closed semaphore means that the feed is gone; sending fails then, too.
            if let Ok(permits) = room.acquire_many(in_permits(length).min(capacity)).await {
                permits.forget();
            }
            item
        };
        let message = token.run_until_cancelled(next).await.unwrap_or_else(|| Err(cancelled()));
        let last = !matches!(message, Ok(Some(_)));
        if sender.send(message).is_err() || last {
            return;
        }
    }
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "reading the source was cancelled")
}

struct StreamFeed {
    receiver: Receiver<Message>,
    room: Arc<Semaphore>,
    capacity: u32,
    token: CancellationToken,
    _pump: AbortOnDropHandle<()>,
}

impl Feed for StreamFeed {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.token.is_cancelled() {
            return Err(cancelled());
        }
        let message = self.receiver.recv().unwrap_or_else(|_| {
            Err(Error::new(Kind::Internal, "the task that reads the source ended before the source did"))
        });
        if let Ok(Some(piece)) = &message {
            self.room.add_permits(in_permits(piece.len()).min(self.capacity) as usize);
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::stream;

    use super::*;

    fn pieces(count: usize, length: usize, made: Arc<AtomicUsize>) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::iter(0..count).map(move |_| {
            made.fetch_add(1, Ordering::SeqCst);
            Ok(Bytes::from(vec![7; length]))
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_bytes_come_and_never_more_than_fits_is_read_ahead() {
        let made = Arc::new(AtomicUsize::new(0));
        let mut feed =
            feed_from(pieces(100, 10_240, made.clone()), &Handle::current(), 40_960, CancellationToken::new());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(made.load(Ordering::SeqCst), 5, "four on the way and one waiting for room");
        let total = tokio::task::spawn_blocking(move || {
            let mut total = 0;
            while let Some(piece) = feed.next().unwrap() {
                total += piece.len();
            }
            total
        });
        assert_eq!(total.await.unwrap(), 1_024_000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_piece_larger_than_the_room_passes() {
        let mut feed = feed_from(pieces(3, 10_000, Arc::default()), &Handle::current(), 10, CancellationToken::new());
        let count = tokio::task::spawn_blocking(move || (0..4).filter(|_| feed.next().unwrap().is_some()).count());
        assert_eq!(count.await.unwrap(), 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cancelling_ends_a_wait() {
        let token = CancellationToken::new();
        let mut feed = feed_from(stream::pending(), &Handle::current(), 10, token.clone());
        let (done, ended) = tokio::sync::oneshot::channel();
        // A thread that the runtime does not wait for: if nothing ended the wait, the test shall fail and not hang.
        std::thread::spawn(move || done.send(feed.next().map(drop).map_err(|e| e.kind())));
        tokio::time::sleep(Duration::from_millis(20)).await;
        token.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap().unwrap();
        assert_eq!(ended, Err(Kind::Cancelled));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn errors_pass_and_a_dead_pump_is_not_the_end() {
        let failing = stream::iter([Ok(Bytes::from_static(b"x")), Err(Error::new(Kind::Changed, "y"))]);
        let mut feed = feed_from(failing, &Handle::current(), 10, CancellationToken::new());
        let kinds =
            tokio::task::spawn_blocking(move || (feed.next().unwrap().unwrap(), feed.next().unwrap_err().kind()));
        assert_eq!(kinds.await.unwrap(), (Bytes::from_static(b"x"), Kind::Changed));
        let dying = stream::once(async { std::panic::resume_unwind(Box::new("the stream panics")) });
        let mut feed = feed_from(dying, &Handle::current(), 10, CancellationToken::new());
        let kind = tokio::task::spawn_blocking(move || feed.next().unwrap_err().kind());
        assert_eq!(kind.await.unwrap(), Kind::Internal);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropping_the_feed_drops_the_stream() {
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let stream = stream::pending().map(move |()| {
            let _ = &alive;
            Ok(Bytes::new())
        });
        drop(feed_from(stream, &Handle::current(), 10, CancellationToken::new()));
        assert!(tokio::time::timeout(Duration::from_secs(5), dropped).await.unwrap().is_err());
    }
}
