//! The sizes past which an image is refused or a task gives up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds on one import. Every value has a default that is safe on an ordinary node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Largest accepted guest disk, in bytes. 16 TiB: the largest volume common clouds offer is 16 or 32 TiB; a tiny
    /// file that claims more is an attack far more often than an image.
    pub max_virtual_size: u64,
    /// Largest accepted number of bytes as received.
    pub max_size: u64,
    /// Largest accepted ratio of guest data bytes (zeros that are not stored do not count) to bytes received, applied
    /// once more than `expansion_floor` bytes have come out. Deflate cannot exceed 1032:1, so a higher ratio is made on purpose.
    pub max_expansion: u64,
    /// Bytes of output below which `max_expansion` is not applied.
    pub expansion_floor: u64,
    /// Largest accepted memory for the tables of one image, in bytes.
    pub max_table_memory: u64,
    /// Memory for unpacking a stream that is packed as a whole, in bytes.
    pub unpack_memory: u64,
    /// Memory for received bytes that wait for their place, in bytes.
    pub window_memory: u64,
    /// Memory for chunks on their way to the stores, in bytes. One chunk is enough for all to get there.
    pub chunk_memory: u64,
    /// Size to which the spill file may grow, in bytes.
    pub max_spill: u64,
    /// How long a store may take for one step, a write of a few MiB or a read, before it counts as stalled.
    pub store_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_virtual_size: 16 << 40,
            max_size: 4 << 40,
            max_expansion: 1100,
            expansion_floor: 64 << 20,
            max_table_memory: 32 << 20,
            // `xz -9` has a dictionary of 64 MiB and needs 1 MiB more; `zstd -19` has a window of 8 MiB. Both fit, and with the pieces on
            // their way through the rest of an import they stay within 128 MiB. `zstd --ultra -22` and `--long` make windows of 128 MiB,
            // which do not.
            unpack_memory: 66 << 20,
            window_memory: 16 << 20,
            // Enough for the cores of an ordinary node, and beside what unpacking takes within 128 MiB.
            chunk_memory: 56 << 20,
            max_spill: 64 << 30,
            // For ever: a pipe waits for its reader, and a person who waits can stop it. Agents have a limit.
            store_stall: Duration::MAX,
        }
    }
}
