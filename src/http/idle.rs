//! A connection that ends when the other side does nothing for too long: neither sends nor takes.
//!
//! While this side works on an answer, the other one has nothing to do, and is not to blame.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How much this side has to do for one connection.
#[derive(Clone, Debug, Default)]
pub struct Work(Arc<AtomicUsize>);

/// Something that this side does; over when it is dropped.
#[derive(Debug)]
pub struct AtWork(Work);

impl Work {
    /// Begins to do something.
    pub fn begin(&self) -> AtWork {
        self.0.fetch_add(1, Ordering::Relaxed);
        AtWork(self.clone())
    }

    fn is_going_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream with that limit.
#[derive(Debug)]
pub struct Idle<S> {
    inner: S,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    work: Work,
}

impl<S> Idle<S> {
    /// `inner`, which fails after `limit` without anything that the other side does.
    pub fn new(inner: S, limit: Duration, work: Work) -> Self {
        Self { inner, limit, timer: Box::pin(tokio::time::sleep(limit)), work }
    }

    fn rewind(&mut self) {
        let next = Instant::now().checked_add(self.limit);
        next.into_iter().for_each(|next| self.timer.as_mut().reset(next));
    }

    /// To be asked when nothing went on.
    fn check(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            if !self.work.is_going_on() {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the other side did nothing for too long"));
            }
            self.rewind();
        }
    }

    /// Passes on what came of reading or writing, and counts it.
    fn note<T>(&mut self, done: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match done {
            Poll::Pending => self.check(context).map(Err),
            done @ Poll::Ready(_) => {
                self.rewind();
                done
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Idle<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.note(done, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note(done, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Flushing a socket is no sign of life from the other side.
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Pending => self.check(cx).map(Err),
            done @ Poll::Ready(_) => done,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_shutdown(cx) {
            Poll::Pending => self.check(cx).map(Err),
            done @ Poll::Ready(_) => done,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.note(done, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_life_does_not() {
        let (mut other, this) = duplex(16);
        let mut this = Idle::new(this, LIMIT, Work::default());
        let speaks = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(LIMIT * 9 / 10).await;
                other.write_all(b"x").await.unwrap();
            }
            other
        });
        let mut byte = [0; 1];
        for _ in 0..5 {
            this.read_exact(&mut byte).await.unwrap();
        }
        let _other = speaks.await.unwrap();
        let began = Instant::now();
        assert_eq!(this.read_exact(&mut byte).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((LIMIT..LIMIT * 2).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_let_go() {
        let (_other, this) = duplex(16);
        let mut this = Idle::new(this, LIMIT, Work::default());
        let error = this.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_this_side_is_not_to_blame() {
        let (_other, this) = duplex(16);
        let work = Work::default();
        let mut this = Idle::new(this, LIMIT, work.clone());
        let began = Instant::now();
        let at_work = work.begin();
        tokio::spawn(async move {
            tokio::time::sleep(LIMIT * 5).await;
            drop(at_work);
        });
        let mut byte = [0; 1];
        assert!(this.read_exact(&mut byte).await.is_err());
        assert!(began.elapsed() >= LIMIT * 5, "{:?}", began.elapsed());
    }
}
