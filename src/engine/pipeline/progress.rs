//! How far a transfer is, readable from another thread at any moment.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{Span, info_span};

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Contacting the source.
    Connecting,
    /// Receiving, unpacking, converting and writing, all at once.
    Transferring,
    /// Everything has come; making it durable and giving it its name.
    Publishing,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Connecting, Self::Transferring, Self::Publishing];

    const fn number(self) -> u8 {
        match self {
            Self::Connecting => 0,
            Self::Transferring => 1,
            Self::Publishing => 2,
        }
    }

    /// The name in status and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Transferring => "Transferring",
            Self::Publishing => "Publishing",
        }
    }
}

/// Counters that the stages of one transfer share. Each stage is a span, below the one that is current where this is made.
#[derive(Debug)]
pub struct Progress {
    span: Span,
    stage: AtomicU8,
    received: AtomicU64,
    total: AtomicU64,
    written: AtomicU64,
    clock: Mutex<Clock>,
}

/// How long each stage took.
#[derive(Debug, Default)]
struct Clock {
    current: Option<(Stage, Instant, Span)>,
    spent: [Duration; 3],
}

impl Clock {
    /// Counts the stage that goes on up to `now`, and goes on with `next`, whose span is below the one given.
    fn turn(&mut self, now: Instant, next: Option<(Stage, &Span)>) {
        if let Some((stage, since, _)) = self.current.take()
            && let Some(spent) = self.spent.get_mut(usize::from(stage.number()))
        {
            *spent = spent.saturating_add(now.saturating_duration_since(since));
        }
        let span = |stage: Stage, parent| info_span!(parent: parent, "stage", stage = stage.name());
        self.current = next.map(|(stage, parent)| (stage, now, span(stage, parent)));
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done.
    pub stage: Stage,
    /// Bytes received from the source so far.
    pub received: u64,
    /// Bytes the source said it has; `None` if it did not say.
    pub total: Option<u64>,
    /// Bytes handed to sinks so far; with several stores, to each of them.
    pub written: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            span: Span::current(),
            stage: AtomicU8::default(),
            received: AtomicU64::default(),
            total: AtomicU64::default(),
            written: AtomicU64::default(),
            clock: Mutex::default(),
        }
    }
}

impl Progress {
    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let stage = match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Connecting,
            1 => Stage::Transferring,
            _ => Stage::Publishing,
        };
        let total = self.total.load(Ordering::Relaxed);
        Snapshot {
            stage,
            received: self.received.load(Ordering::Relaxed),
            total: (total > 0).then_some(total),
            written: self.written.load(Ordering::Relaxed),
        }
    }

    /// Begins `stage`. Connecting starts all over.
    pub fn enter(&self, stage: Stage) {
        if stage == Stage::Connecting {
            self.received.store(0, Ordering::Relaxed);
            self.written.store(0, Ordering::Relaxed);
        }
        self.stage.store(stage.number(), Ordering::Relaxed);
        let next = Some((stage, &self.span));
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).turn(Instant::now(), next);
    }

    /// Ends the last stage; how long each took that was entered, all of its times together.
    pub fn end(&self) -> impl Iterator<Item = (Stage, Duration)> + use<> {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.turn(Instant::now(), None);
        Stage::ALL.into_iter().zip(clock.spent).filter(|(_, spent)| !spent.is_zero())
    }

    /// The source says how much it has.
    pub fn expect(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes went.
    pub fn write(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }
}
