//! How far a transfer is, readable from another thread at any moment.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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
    /// The name in status and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Transferring => "Transferring",
            Self::Publishing => "Publishing",
        }
    }
}

/// Counters that the stages of one transfer share.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicU8,
    received: AtomicU64,
    total: AtomicU64,
    written: AtomicU64,
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
        let number = match stage {
            Stage::Connecting => 0,
            Stage::Transferring => 1,
            Stage::Publishing => 2,
        };
        if stage == Stage::Connecting {
            self.received.store(0, Ordering::Relaxed);
            self.written.store(0, Ordering::Relaxed);
        }
        self.stage.store(number, Ordering::Relaxed);
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
