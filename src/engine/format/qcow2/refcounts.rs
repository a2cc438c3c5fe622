//! Host clusters in the order in which they are given out, and their refcounts.
//!
//! Clusters are only ever given out at the end of the file, so a refcount block is final once the end has passed what it
//! covers: it is written and forgotten, and memory stays at a block or two, whatever the file's length.

use std::collections::VecDeque;

use bytes::Bytes;

use super::MAX_REFCOUNT_TABLE;
use crate::{
    error::{Error, Kind, Result},
    format::Write,
};

/// Bytes in a refcount: `refcount_order` 4, the only width that version 2 readers know.
const WIDTH: usize = 2;
const WIDTH_IN_FILE: u64 = WIDTH as u64;

/// Gives out host clusters and counts who uses them.
#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_size: u64,
    /// First host cluster that is not given out.
    next: u64,
    /// Host cluster of every refcount block.
    blocks: Vec<u64>,
    /// The blocks that are not final: their refcounts, big-endian.
    open: VecDeque<Vec<u8>>,
    /// Number of the first open block.
    first_open: u64,
}

impl Refcounts {
    /// Nothing given out yet.
    pub(super) fn new(cluster_size: u64) -> Self {
        Self { cluster_size, next: 0, blocks: Vec::new(), open: VecDeque::new(), first_open: 0 }
    }

    /// First byte past everything given out.
    pub(super) fn end(&self) -> u64 {
        self.next.saturating_mul(self.cluster_size)
    }

    /// Clusters that one block counts.
    fn per_block(&self) -> u64 {
        self.cluster_size / WIDTH_IN_FILE
    }

    /// Gives out `count` clusters in a row, each used once; their first byte.
    pub(super) fn reserve(&mut self, count: u64) -> u64 {
        let start = self.end();
        self.take(count);
        // The block that counts these lies behind them, where it may need a block of its own.
        while self.covered() < self.next {
            self.blocks.push(self.next);
            self.take(1);
        }
        start
    }

    fn covered(&self) -> u64 {
        (self.blocks.len() as u64).saturating_mul(self.per_block())
    }

    fn take(&mut self, count: u64) {
        let from = self.next;
        self.next = from.saturating_add(count);
        for cluster in from..self.next {
            let (block, at) = self.locate(cluster);
            while self.open.len() <= block {
                self.open.push_back(vec![0; usize::try_from(self.cluster_size).unwrap_or(0)]);
            }
            if let Some(slot) = self.slot(block, at) {
                *slot = 1_u16.to_be_bytes();
            }
        }
    }

    /// Which open block counts `cluster`, and where in it.
    fn locate(&self, cluster: u64) -> (usize, usize) {
        let number = cluster.checked_div(self.per_block()).unwrap_or(0).saturating_sub(self.first_open);
        let index = cluster.checked_rem(self.per_block()).unwrap_or(0);
        (usize::try_from(number).unwrap_or(usize::MAX), usize::try_from(index).unwrap_or(0).saturating_mul(WIDTH))
    }

    fn slot(&mut self, block: usize, at: usize) -> Option<&mut [u8; WIDTH]> {
        self.open.get_mut(block)?.get_mut(at..)?.first_chunk_mut()
    }

    /// Counts one more user of the cluster at byte `host`; `false` if its count is written already, or full.
    pub(super) fn share(&mut self, host: u64) -> bool {
        let cluster = host.checked_div(self.cluster_size).unwrap_or(0);
        if cluster < self.first_open.saturating_mul(self.per_block()) {
            return false;
        }
        let (block, at) = self.locate(cluster);
        let Some(slot) = self.slot(block, at) else { return false };
        let count = u16::from_be_bytes(*slot);
        *slot = count.saturating_add(1).to_be_bytes();
        count < u16::MAX
    }

    /// The blocks that became final.
    pub(super) fn settle(&mut self, writes: &mut Vec<Write>) {
        while self.first_open.saturating_add(1).saturating_mul(self.per_block()) <= self.next {
            if !self.close_first(writes) {
                return;
            }
        }
    }

    fn close_first(&mut self, writes: &mut Vec<Write>) -> bool {
        let number = usize::try_from(self.first_open).unwrap_or(usize::MAX);
        let (Some(cluster), Some(counts)) = (self.blocks.get(number), self.open.pop_front()) else { return false };
        writes.push(Write { offset: cluster.saturating_mul(self.cluster_size), bytes: counts.into() });
        self.first_open = self.first_open.saturating_add(1);
        true
    }

    /// Clusters that the refcount table needs, itself counted.
    fn table_clusters(&self) -> u64 {
        let mut clusters = 1;
        loop {
            let (mut next, mut blocks) = (self.next.saturating_add(clusters), self.blocks.len() as u64);
            while blocks.saturating_mul(self.per_block()) < next {
                next = next.saturating_add(1);
                blocks = blocks.saturating_add(1);
            }
            let needed = blocks.saturating_mul(8).div_ceil(self.cluster_size.max(1));
            if needed <= clusters {
                return clusters;
            }
            clusters = needed;
        }
    }

    /// All remaining blocks and the table; the table's offset in bytes and length in clusters. Gives out nothing afterwards.
    ///
    /// # Errors
    /// If the file has more clusters than a refcount table may count.
    pub(super) fn finish(&mut self, writes: &mut Vec<Write>) -> Result<(u64, u64)> {
        let clusters = self.table_clusters();
        if clusters.saturating_mul(self.cluster_size) > MAX_REFCOUNT_TABLE.max(self.cluster_size) {
            let message =
                format!("a qcow2 of {} bytes needs clusters of more than {} bytes", self.end(), self.cluster_size);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let offset = self.reserve(clusters);
        while self.close_first(writes) {}
        let table: Vec<u8> =
            self.blocks.iter().flat_map(|block| block.saturating_mul(self.cluster_size).to_be_bytes()).collect();
        writes.push(Write { offset, bytes: Bytes::from(table) });
        Ok((offset, clusters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every refcount, as a reader would find it.
    fn counts(writes: &[Write], table: u64) -> Vec<u16> {
        let at = |offset| writes.iter().find(|w| w.offset == offset).expect("written").bytes.clone();
        let blocks = at(table);
        blocks
            .chunks(8)
            .flat_map(|entry| at(u64::from_be_bytes(entry.try_into().unwrap())).to_vec())
            .collect::<Vec<u8>>()
            .chunks(2)
            .map(|c| u16::from_be_bytes(c.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn every_cluster_is_counted_once_and_shared_ones_more() {
        for first in [0, 1, 200, 254, 255, 256, 257, 1000, 70_000] {
            let (mut refcounts, mut writes) = (Refcounts::new(512), Vec::new());
            for _ in 0..300 {
                refcounts.reserve(1);
                refcounts.settle(&mut writes);
            }
            refcounts.reserve(first);
            let shared = refcounts.reserve(1);
            assert!(refcounts.share(shared) && refcounts.share(shared));
            assert!(!refcounts.share(0), "its block is written");
            let (table, _) = refcounts.finish(&mut writes).unwrap();
            let counts = counts(&writes, table);
            let used = usize::try_from(refcounts.end() / 512).unwrap();
            let shared = usize::try_from(shared / 512).unwrap();
            for (cluster, count) in counts.iter().enumerate() {
                let expected = if cluster == shared { 3 } else { u16::from(cluster < used) };
                assert_eq!(*count, expected, "cluster {cluster} of {used}");
            }
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_file() {
        let (mut refcounts, mut writes) = (Refcounts::new(512), Vec::new());
        for _ in 0..100_000 {
            refcounts.reserve(3);
            refcounts.settle(&mut writes);
            assert!(refcounts.open.len() <= 2);
        }
        assert_eq!(writes.len() + refcounts.open.len(), refcounts.blocks.len());
    }

    #[test]
    fn a_full_count_is_not_shared() {
        let mut refcounts = Refcounts::new(512);
        refcounts.reserve(1);
        assert_eq!((0..70_000).filter(|_| refcounts.share(0)).count(), usize::from(u16::MAX) - 1);
    }
}
