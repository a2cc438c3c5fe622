//! Runs a stage on a thread of its own, with a bounded queue behind it.

use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::Feed;
use crate::error::{Error, Kind, Result};

/// How many pieces may wait. Pieces are between a few KiB and 1 MiB, so a queue holds a few MiB at most.
const QUEUE: usize = 8;

/// A feed that is pulled ahead by its own thread. Dropping it ends the thread at its next piece.
pub struct Pump {
    pieces: Receiver<Result<Bytes>>,
    done: bool,
}

impl Pump {
    /// Starts to pull `feed`. `name` names the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(name: &str, feed: impl Feed + 'static) -> Result<Self> {
        let (sender, pieces) = crossbeam_channel::bounded(QUEUE);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || pull(feed, &sender))
            .map_err(|e| Error::io(format!("starting the thread {name}"), e))?;
        Ok(Self { pieces, done: false })
    }
}

fn pull(mut feed: impl Feed, sender: &Sender<Result<Bytes>>) {
    loop {
        let (piece, last) = match feed.next() {
            Ok(Some(bytes)) => (Ok(bytes), false),
            Ok(None) => return finish(sender),
            Err(error) => (Err(error), true),
        };
        if sender.send(piece).is_err() || last {
            return;
        }
    }
}

/// An empty piece is the end: a closed channel alone could also be a thread that panicked.
fn finish(sender: &Sender<Result<Bytes>>) {
    // The receiver may be gone already, and then nobody waits for the end.
    drop(sender.send(Ok(Bytes::new())));
}

impl Feed for Pump {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.done {
            return Ok(None);
        }
        match self.pieces.recv() {
            Ok(Ok(bytes)) if bytes.is_empty() => {
                self.done = true;
                Ok(None)
            }
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(Kind::Internal, "a stage of the pipeline ended without saying why")),
        }
    }
}
