//! Tells a bomb by how much more comes out than went in.

use super::Progress;
use crate::{
    error::Result,
    io::NonzeroRuns,
    model::{Limits, Rule, Violation},
};

/// Counts the data that comes out. Zeros that are not stored do not count.
pub struct Expansion<'a> {
    limits: &'a Limits,
    progress: &'a Progress,
    data: u64,
}

impl<'a> Expansion<'a> {
    /// Nothing has come out yet; `progress` knows what came in.
    pub fn new(limits: &'a Limits, progress: &'a Progress) -> Self {
        Self { limits, progress, data: 0 }
    }

    /// Counts `data` bytes more.
    ///
    /// # Errors
    /// A violation if far more came out than went in, once it is so much that small files cannot trip it.
    pub fn add(&mut self, data: u64) -> Result<()> {
        self.data = self.data.saturating_add(data);
        let (received, most) = (self.progress.snapshot().received, self.limits.max_expansion);
        if self.data <= self.limits.expansion_floor || self.data <= received.saturating_mul(most) {
            return Ok(());
        }
        let found = format!("{} bytes of data from {received} bytes", self.data);
        let message =
            format!("more than {most}:1 is never an ordinary image: raise max-expansion if this one is meant to be");
        Err(Violation::new(Rule::Bomb, "expansion", found, message).into())
    }
}

/// Bytes of `piece` that are stored: those in blocks that are not zero.
pub fn nonzero(piece: &[u8]) -> u64 {
    let mut runs = NonzeroRuns::default();
    runs.add(piece);
    runs.finish().iter().map(|run| u64::from(run.end.saturating_sub(run.start))).sum()
}
