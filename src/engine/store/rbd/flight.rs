//! The writes of one image that are under way: how many, how much memory they hold, and the first that failed.
//!
//! Knows nothing of what carries them out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Kind, Result};

/// Writes under way at once. Each goes to another OSD, as a rule, and takes milliseconds: this many keep a cluster busy over a link
/// with 10 ms of delay at 6 GiB/s. Measured on one OSD, four are as fast as more.
pub(super) const WRITES: usize = 16;
/// Bytes that those of all images of a store hold at most: half of the writes of one may be as long as an object. librbd copies what it
/// is given, so it is twice this.
const MEMORY: usize = 32 << 20;
/// A write counts at least this much, so that a flood of tiny ones is bounded too.
const MIN_COST: usize = 4096;

/// The memory of the writes under way, shared by all images that are written to one store. Each write ends by itself, so whoever waits
/// for its part gets it.
#[derive(Clone)]
pub(super) struct Hold(Arc<Semaphore>);

impl Hold {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MEMORY)))
    }
}

/// The writes under way.
pub(super) struct Flight {
    count: Arc<Semaphore>,
    hold: Hold,
    state: Mutex<State>,
    /// For threads that wait until nothing is under way.
    quiet: Condvar,
    /// For tasks that wait until a stretch is free.
    landed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Start and end of each.
    running: BTreeMap<u64, (u64, u64)>,
    /// The most there were at once.
    peak: usize,
    failure: Option<(Kind, String)>,
}

/// One write's place among them, given back when it has ended.
pub(super) struct Seat {
    flight: Arc<Flight>,
    number: u64,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Flight {
    /// None yet; their memory is that of `hold`.
    pub(super) fn new(hold: &Hold) -> Self {
        Self {
            count: Arc::new(Semaphore::new(WRITES)),
            hold: hold.clone(),
            state: Mutex::default(),
            quiet: Condvar::new(),
            landed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `start..end` may be written: until there is room, and until no other write to any of these bytes is under way, for
    /// of two at once either may win.
    pub(super) async fn board(self: &Arc<Self>, start: u64, end: u64) -> Result<Seat> {
        let cost = usize::try_from(end.saturating_sub(start)).unwrap_or(MEMORY).clamp(MIN_COST, MEMORY);
        let closed = |_| Error::new(Kind::Internal, "a queue that is never closed is closed; report this");
        let memory = Arc::clone(&self.hold.0).acquire_many_owned(u32::try_from(cost).unwrap_or(u32::MAX)).await;
        let count = Arc::clone(&self.count).acquire_owned().await;
        let permits = [memory.map_err(closed)?, count.map_err(closed)?];
        loop {
            let mut landed = std::pin::pin!(self.landed.notified());
            landed.as_mut().enable();
            if let Some(number) = self.try_enter(start, end) {
                return Ok(Seat { flight: Arc::clone(self), number, _permits: permits });
            }
            landed.await;
        }
    }

    /// Waits until none is under way and none can begin.
    pub(super) async fn land(&self) {
        // Never closed, so nothing can go wrong; the permits are given back at once.
        let _ = self.count.acquire_many(u32::try_from(WRITES).unwrap_or(u32::MAX)).await;
    }

    fn try_enter(&self, start: u64, end: u64) -> Option<u64> {
        let mut state = self.lock();
        if state.running.values().any(|(from, to)| *from < end && start < *to) {
            return None;
        }
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.running.insert(number, (start, end));
        state.peak = state.peak.max(state.running.len());
        Some(number)
    }

    /// The error that ended the writing, told again to everybody who asks.
    pub(super) fn check(&self) -> Result<()> {
        match &self.lock().failure {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }

    /// Ends the writing with an error. The first one stays.
    pub(super) fn fail(&self, error: &Error) {
        self.lock().failure.get_or_insert_with(|| (error.kind(), error.to_string()));
    }

    /// The most writes that were under way at once.
    pub(super) fn peak(&self) -> usize {
        self.lock().peak
    }

    /// Waits until nothing is under way; false if it took longer than `patience`. Blocks.
    pub(super) fn wait_quiet(&self, patience: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.lock();
        while !state.running.is_empty() {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            (state, _) = self.quiet.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flight.lock().running.remove(&self.number);
        self.flight.quiet.notify_all();
        self.flight.landed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_writes_to_the_same_bytes_are_never_under_way_together() {
        let flight = Arc::new(Flight::new(&Hold::new()));
        let first = flight.board(0, 100).await.unwrap();
        let beside = flight.board(100, 200).await.unwrap();
        let mut second = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.board(99, 101).await.map(drop) }
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut second).await.is_err());
        drop((first, beside));
        second.await.unwrap().unwrap();
        assert_eq!(flight.peak(), 2);
    }

    #[tokio::test]
    async fn count_and_memory_are_bounded() {
        let flight = Arc::new(Flight::new(&Hold::new()));
        let mut seats = Vec::new();
        for number in 0..WRITES as u64 {
            seats.push(flight.board(number, number + 1).await.unwrap());
        }
        let more = |start, end| tokio::time::timeout(Duration::from_millis(20), flight.board(start, end));
        assert!(more(1000, 1001).await.is_err());
        seats.clear();
        let _large = flight.board(0, MEMORY as u64).await.unwrap();
        assert!(more(1 << 40, (1 << 40) + 1).await.is_err());
        assert!(!flight.wait_quiet(Duration::from_millis(5)));
    }

    #[tokio::test]
    async fn images_of_a_store_share_the_memory_of_their_writes() {
        let hold = Hold::new();
        let flights = [(); 2].map(|()| Arc::new(Flight::new(&hold)));
        let half = MEMORY as u64 / 2;
        let first = flights[0].board(0, half).await.unwrap();
        let _second = flights[1].board(0, half).await.unwrap();
        let mut third = tokio::spawn(async move { flights[1].board(half, half + 1).await.map(drop) });
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        drop(first);
        third.await.unwrap().unwrap();
    }

    #[test]
    fn the_first_error_stays() {
        let flight = Flight::new(&Hold::new());
        flight.fail(&Error::new(Kind::NoSpace, "full"));
        flight.fail(&Error::new(Kind::Io, "later"));
        assert_eq!(flight.check().unwrap_err().kind(), Kind::NoSpace);
        assert!(flight.wait_quiet(Duration::ZERO));
    }
}
