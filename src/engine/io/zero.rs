//! Finding zeros, so that they are neither sent nor stored nor hashed.

use std::ops::Range;

/// Granularity in which zeros are looked for, in bytes: the block size of common file systems; a smaller hole saves nothing.
const BLOCK: usize = 4096;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Comparing with a constant block becomes a vectorised memcmp, several times faster than a loop over bytes.
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut blocks = bytes.chunks_exact(BLOCK);
    blocks.by_ref().all(|block| block == ZEROS.as_slice()) && blocks.remainder().iter().all(|b| *b == 0)
}

/// The parts of `bytes` that hold something else than zeros, in units of 4096 bytes: ascending, not touching, never empty.
pub fn nonzero_runs(bytes: &[u8]) -> Vec<Range<u32>> {
    let mut runs = NonzeroRuns::default();
    runs.add(bytes);
    runs.finish()
}

/// The same for bytes that come in parts, of which all but the last are a multiple of 4096 long.
#[derive(Debug, Default)]
pub struct NonzeroRuns {
    runs: Vec<Range<u32>>,
    at: u32,
}

impl NonzeroRuns {
    /// Takes the next part.
    pub fn add(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            let start = self.at;
            self.at = start.saturating_add(u32::try_from(block.len()).unwrap_or(u32::MAX));
            if !is_zero(block) {
                match self.runs.last_mut() {
                    Some(last) if last.end == start => last.end = self.at,
                    _ => self.runs.push(start..self.at),
                }
            }
        }
    }

    /// The parts that hold something.
    pub fn finish(self) -> Vec<Range<u32>> {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_blocks_that_hold_something() {
        let mut bytes = vec![0_u8; 5 * BLOCK + 100];
        assert!(nonzero_runs(&bytes).is_empty());
        bytes[BLOCK] = 1;
        bytes[2 * BLOCK + 7] = 1;
        bytes[5 * BLOCK + 99] = 1;
        let block = u32::try_from(BLOCK).unwrap();
        assert_eq!(nonzero_runs(&bytes), vec![block..3 * block, 5 * block..5 * block + 100]);
    }

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        for position in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 1] {
            let mut bytes = vec![0_u8; 2 * BLOCK + 2];
            assert!(is_zero(&bytes));
            bytes[position] = 0x80;
            assert!(!is_zero(&bytes), "{position}");
        }
    }
}
