//! The file in order: over one connection, or over several where one is slow.
//!
//! A download begins with one plain request: it works with every server and cache, costs one round trip, and on a fast
//! path nothing beats it. Only if that connection turns out to be slower than `Parallel::fast_enough`, counting just the
//! time spent waiting for the network and not the time the rest of the import takes, it is given up for several ranges.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::{
    answer::Version,
    config::Parallel,
    fault::Fault,
    transfer::{Beginning, Transfer},
    wire::Wire,
};
use crate::error::{Error, Kind, Result};

/// A file being downloaded.
pub(super) struct Download {
    wire: Arc<Wire>,
    single: Transfer,
    /// Absent where ranges cannot be used or have turned out not to work.
    pace: Option<Pace>,
    several: Option<Segments>,
}

impl Download {
    pub fn new(wire: Arc<Wire>, beginning: Beginning) -> Self {
        let parallel = wire.config.parallel;
        let possible = parallel.ranges > 1 && can_use_ranges(&beginning);
        Self { wire, single: beginning.transfer, pace: possible.then(|| Pace::new(parallel)), several: None }
    }

    /// The next piece; `None` after the last byte.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(several) = &mut self.several {
            match several.next().await {
                Err(Fault::NoRanges) => {
                    self.single.park(several.position);
                    self.several = None;
                }
                other => return other.map_err(|fault| fault.into_error("")),
            }
        }
        let (begun, interruptions) = (Instant::now(), self.single.interruptions());
        let piece = self.single.next().await.map_err(|fault| fault.into_error(""))?;
        let length = piece.as_ref().map_or(0, Bytes::len) as u64;
        // The time it took to get over a cut says nothing of the connection's speed.
        let smooth = interruptions == self.single.interruptions();
        if smooth && self.pace.as_mut().is_some_and(|pace| pace.is_slow(length, begun.elapsed())) {
            self.split();
        }
        Ok(piece)
    }

    /// Gives the connection up for several ranges, if enough is left to share.
    fn split(&mut self) {
        let (position, parallel) = (self.single.position(), self.wire.config.parallel);
        let Some(end) = self.single.end() else { return };
        if end.saturating_sub(position) <= parallel.segment.saturating_mul(2) {
            return;
        }
        self.pace = None;
        self.single.park(position);
        tracing::debug!(position, ranges = parallel.ranges, "one connection is slow, going on with several");
        self.several = Some(Segments::new(Arc::clone(&self.wire), self.single.version().clone(), position, end));
    }
}

/// Whether parts of the very same file can be asked for.
pub(super) fn can_use_ranges(beginning: &Beginning) -> bool {
    beginning.offers_ranges && beginning.version.length.is_some() && beginning.version.validator().is_some()
}

/// Watches how fast a connection is.
struct Pace {
    parallel: Parallel,
    bytes: u64,
    waited: Duration,
}

impl Pace {
    fn new(parallel: Parallel) -> Self {
        Self { parallel, bytes: 0, waited: Duration::ZERO }
    }

    /// Notes a piece and how long it was waited for. Says whether the trial that it ends was slow.
    fn is_slow(&mut self, length: u64, waited: Duration) -> bool {
        self.bytes = self.bytes.saturating_add(length);
        self.waited = self.waited.saturating_add(waited);
        if self.bytes < self.parallel.trial {
            return false;
        }
        let needed = u128::from(self.bytes).saturating_mul(1_000_000);
        let slow = needed < u128::from(self.parallel.fast_enough).saturating_mul(self.waited.as_micros());
        *self = Self::new(self.parallel);
        slow
    }
}

/// Ranges fetched side by side and delivered in order. Holds at most `Parallel::ranges` segments: those in flight and
/// the one being delivered.
struct Segments {
    wire: Arc<Wire>,
    version: Version,
    /// Where the next segment to ask for begins.
    next: u64,
    end: u64,
    in_flight: VecDeque<AbortOnDropHandle<Result<VecDeque<Bytes>, Fault>>>,
    head: VecDeque<Bytes>,
    /// Where the next byte to deliver stands.
    position: u64,
}

impl Segments {
    fn new(wire: Arc<Wire>, version: Version, position: u64, end: u64) -> Self {
        Self { wire, version, next: position, end, in_flight: VecDeque::new(), head: VecDeque::new(), position }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(piece) = self.head.pop_front() {
                self.position = self.position.saturating_add(piece.len() as u64);
                return Ok(Some(piece));
            }
            self.ask_for_more();
            let Some(first) = self.in_flight.pop_front() else { return Ok(None) };
            self.head = first.await.map_err(|e| {
                Fault::Final(Error::with_source(Kind::Internal, "a task that fetched a range ended on its own", e))
            })??;
        }
    }

    fn ask_for_more(&mut self) {
        let parallel = self.wire.config.parallel;
        while self.in_flight.len() < parallel.ranges && self.next < self.end {
            let end = self.next.saturating_add(parallel.segment).min(self.end);
            let transfer = Transfer::of_range(Arc::clone(&self.wire), self.version.clone(), self.next, end);
            self.in_flight.push_back(AbortOnDropHandle::new(tokio::spawn(collect(transfer))));
            self.next = end;
        }
    }
}

/// All pieces of a stretch.
pub(super) async fn collect(mut transfer: Transfer) -> Result<VecDeque<Bytes>, Fault> {
    let mut pieces = VecDeque::new();
    while let Some(piece) = transfer.next().await? {
        pieces.push_back(piece);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slow_network_is_slow() {
        let parallel = Parallel { trial: 8 << 20, fast_enough: 100 << 20, ..Parallel::default() };
        let trial = |millis| Pace::new(parallel).is_slow(8 << 20, Duration::from_millis(millis));
        assert!(!trial(0));
        assert!(!trial(79)); // 101 MiB/s
        assert!(trial(81));
        let mut pace = Pace::new(parallel);
        assert!(!pace.is_slow(1 << 20, Duration::from_secs(5)), "before the trial is over");
        assert!(pace.is_slow(7 << 20, Duration::ZERO));
        assert!(!pace.is_slow(8 << 20, Duration::from_millis(10)), "each trial is judged for itself");
    }
}
