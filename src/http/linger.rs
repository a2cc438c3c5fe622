//! The body of a request that may be answered before all of it was taken.
//!
//! Who sends a large body reads the answer when it is sent, or when sending fails; and a connection that is closed with bytes on their way
//! takes the answer with it. So what nobody wants any more is still taken for a moment, in which the other side comes to read why.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};

/// How long: enough for an answer to arrive, and for whoever only sends to notice.
const LINGER: Duration = Duration::from_secs(5);

/// The same body, of which the rest is taken for a moment when it is dropped.
pub fn linger(body: Body) -> Body {
    Body::from_stream(Lingering { rest: Some(body.into_data_stream()) })
}

struct Lingering {
    rest: Option<BodyDataStream>,
}

impl Stream for Lingering {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let next = rest.poll_next_unpin(context);
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            self.rest = None;
        }
        next
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let (Some(mut rest), Ok(runtime)) = (self.rest.take(), tokio::runtime::Handle::try_current()) {
            let drain = async move { while let Some(Ok(_)) = rest.next().await {} };
            runtime.spawn(tokio::time::timeout(LINGER, drain));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    fn counted(pieces: u32, every: Duration) -> (Body, Arc<AtomicU32>) {
        let taken = Arc::new(AtomicU32::new(0));
        let counter = taken.clone();
        let pieces = futures::stream::iter(0..pieces).then(move |_| {
            let counter = counter.clone();
            async move {
                tokio::time::sleep(every).await;
                counter.fetch_add(1, Ordering::Relaxed);
                Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
            }
        });
        (Body::from_stream(pieces), taken)
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_is_taken_for_a_moment_only() {
        for (every, expected) in [(Duration::from_millis(1), 100), (Duration::from_secs(2), 2)] {
            let (body, taken) = counted(100, every);
            drop(linger(body));
            tokio::time::sleep(LINGER * 50).await;
            assert_eq!(taken.load(Ordering::Relaxed), expected);
        }
        let (body, taken) = counted(3, Duration::ZERO);
        assert_eq!(linger(body).into_data_stream().count().await, 3);
        assert_eq!(taken.load(Ordering::Relaxed), 3);
    }
}
