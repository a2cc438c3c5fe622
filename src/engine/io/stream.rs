//! A blocking feed of what an asynchronous stream brings.

use std::{
    pin::pin,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Feed, Pool, PoolBuffer};
use crate::error::{Error, Kind, Result};

/// What the pump sends; the end is a message of its own, so that a pump that died is never taken for it.
/// Bytes in a block: fits the processor's cache, and is large enough that handing it on costs nothing.
const BLOCK: usize = 256 << 10;
/// Free blocks that are kept, 4 MiB: a chunk of the disk lets go of as many at once.
const FREE_BLOCKS: usize = 16;
/// When a stream has paused for so long, what came is handed on, so that whoever watches a slow source sees it move.
const PAUSE: Duration = Duration::from_millis(500);

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
    let mut blocks = pin!(blocks(stream));
    loop {
        let next = async {
            let item = blocks.next().await.transpose();
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

/// The bytes of `stream` in blocks of its own. A connection hands out its receive buffer, and needs a new one each time while the
/// old one is held; copied, while it is still in the processor's cache, it can be used again. Fewer and larger pieces are also
/// cheaper for all that follows.
fn blocks(stream: impl Stream<Item = Result<Bytes>> + Send) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::unfold((Box::pin(stream), Filling::new()), |(mut stream, mut filling)| async move {
        let item = filling.next(&mut stream).await?;
        Some((item, (stream, filling)))
    })
}

/// A block being filled.
struct Filling {
    pool: Arc<Pool>,
    block: Option<PoolBuffer>,
    filled: usize,
    /// What did not fit into the last block.
    rest: Bytes,
    /// How the stream ended, if that is to be told after the last block.
    ended: Option<Result<()>>,
}

impl Filling {
    fn new() -> Self {
        Self { pool: Pool::new(FREE_BLOCKS), block: None, filled: 0, rest: Bytes::new(), ended: None }
    }

    /// The next full block, or what there is of it when the stream pauses or ends.
    async fn next(&mut self, stream: &mut (impl Stream<Item = Result<Bytes>> + Unpin)) -> Option<Result<Bytes>> {
        loop {
            if self.add() == BLOCK {
                return self.take().map(Ok);
            }
            if let Some(end) = &mut self.ended {
                return match self.filled {
                    0 => std::mem::replace(end, Ok(())).err().map(Err),
                    _ => self.take().map(Ok),
                };
            }
            let next = if self.filled == 0 {
                stream.next().await
            } else {
                match tokio::time::timeout(PAUSE, stream.next()).await {
                    Ok(next) => next,
                    Err(_) => return self.take_copy().map(Ok),
                }
            };
            match next {
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => self.ended = Some(Err(error)),
                None => self.ended = Some(Ok(())),
            }
        }
    }

    /// Fills the block from the rest; gives how full it is.
    fn add(&mut self) -> usize {
        let pool = &self.pool;
        if !self.rest.is_empty() {
            let block = self.block.get_or_insert_with(|| pool.take(BLOCK)).bytes_mut();
            let room = block.get_mut(self.filled..).unwrap_or_default();
            let now = self.rest.split_to(room.len().min(self.rest.len()));
            let (target, _) = room.split_at_mut(now.len());
            target.copy_from_slice(&now);
            self.filled = self.filled.saturating_add(now.len());
        }
        self.filled
    }

    /// The block as far as it is filled.
    fn take(&mut self) -> Option<Bytes> {
        let filled = std::mem::take(&mut self.filled);
        let block = self.block.take()?.freeze();
        Some(block.slice(..filled))
    }

    /// The same, without holding on to a whole block for a few bytes.
    fn take_copy(&mut self) -> Option<Bytes> {
        let filled = std::mem::take(&mut self.filled);
        self.block.as_ref()?.as_ref().get(..filled).map(Bytes::copy_from_slice)
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
            feed_from(pieces(100, BLOCK, made.clone()), &Handle::current(), 4 * BLOCK, CancellationToken::new());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(made.load(Ordering::SeqCst), 5, "four on the way and one waiting for room");
        let total = tokio::task::spawn_blocking(move || {
            let mut total = 0;
            while let Some(piece) = feed.next().unwrap() {
                total += piece.len();
            }
            total
        });
        assert_eq!(total.await.unwrap(), 100 * BLOCK);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_piece_larger_than_the_room_passes() {
        let mut feed = feed_from(pieces(3, 10_000, Arc::default()), &Handle::current(), 10, CancellationToken::new());
        let read = || (feed.next().unwrap().unwrap().len(), feed.next().unwrap());
        assert_eq!(tokio::task::block_in_place(read), (30_000, None));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pieces_become_blocks_with_the_same_bytes() {
        for length in [1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            let pieces: Vec<_> = (0..5_u8).map(|n| Bytes::from(vec![n; length])).collect();
            let expected: Vec<u8> = pieces.concat();
            let blocks: Vec<_> = blocks(stream::iter(pieces.into_iter().map(Ok))).map(Result::unwrap).collect().await;
            assert!(blocks.concat() == expected, "{length}");
            assert!(blocks.iter().rev().skip(1).all(|block| block.len() == BLOCK), "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_pause_does_not_wait_for_its_end() {
        let pausing = stream::iter([Ok(Bytes::from_static(b"abc"))]).chain(stream::pending());
        let mut blocks = pin!(blocks(pausing));
        assert_eq!(blocks.next().await.unwrap().unwrap(), "abc");
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
