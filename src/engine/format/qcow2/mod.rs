//! qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.rst; section names below are that document's).
//!
//! ```text
//! header, judge ─► map (L1, one L2 at a time) ─► entry (what one L2 entry says)      codec (clusters)
//!                     └► format::claims (who owns which host cluster)
//! encode (clusters of one chunk, packed in parallel) ─► layout (places, L1, L2, header) ─► refcounts
//! ```
//! Refcounts and snapshots are not read: neither changes what the guest sees. A file that needs another file, or whose
//! content cannot be checked, is refused.

mod codec;
mod encode;
mod entry;
mod header;
mod judge;
mod layout;
mod map;
mod pack;
mod refcounts;

pub(super) use encode::Qcow2Encoder;
pub(super) use header::Header;
pub(super) use map::Qcow2Map;

/// `QFI\xfb`, the first bytes of every qcow2.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Incompatible feature: refcounts may be wrong.
const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature: anything may be wrong.
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature: the data lies in another file.
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Incompatible feature: `compression_type` is not zlib.
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Incompatible feature: extended L2 entries.
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// L2 entries: compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bits 9 to 55, the host offset in L1 entries and standard cluster descriptors.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The unit of compressed lengths, in bytes.
const SECTOR: u64 = 512;
/// Largest refcount table, in bytes: QEMU's own limit.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Length of a version 3 header with `compression_type`, in bytes; what follows it, zeros, is the end of the extensions.
const HEADER_LENGTH: u32 = 112;
/// Smallest `cluster_bits`.
const MIN_CLUSTER_BITS: u32 = 9;
/// Largest `cluster_bits`: QEMU's own limit (2 MiB clusters).
const MAX_CLUSTER_BITS: u32 = 21;
/// Largest L1 table, in bytes: QEMU's own limit.
const MAX_L1_LENGTH: u64 = 32 << 20;

/// Bytes in a cluster. `bits` is at most `MAX_CLUSTER_BITS` wherever this is called.
fn cluster_size(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or(u64::MAX)
}
