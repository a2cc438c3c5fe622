//! vmdk (VMware, "Virtual Disk Format 5.0"; field names are that document's): monolithicSparse and streamOptimized by themselves, and
//! disks in several files where an archive brings them all.
//!
//! ```text
//! header ─► descriptor ─┬► tables (directory, one grain table at a time) ─► grain (unpacks)
//!                       │      └► occupied (who owns which sectors)
//!                       └► markers (a stream whose tables stand behind its grains)
//! descriptor of an archive ─► extents (flat ones, and sparse ones by their tables)
//! encode (grains of one chunk, packed in parallel) ─► stream | sparse (places, tables, header)
//! ```
//! All numbers are little-endian, all offsets count sectors of 512 bytes. A single file that needs another one, and the sparse forms of
//! ESXi, are refused: it does not bring the extents that a descriptor names.

mod descriptor;
mod encode;
mod extents;
mod grain;
mod header;
mod markers;
mod occupied;
mod sparse;
mod stream;
mod tables;

pub use descriptor::{NamedExtent, named_extents};
pub(super) use encode::VmdkEncoder;
pub(super) use extents::ExtentMap;
pub use extents::{Extent, ExtentKind};
pub(super) use header::Header;
pub(super) use markers::MarkerMap;
pub(super) use tables::TableMap;

use crate::{
    error::{Error, Result},
    io::ReadAt,
    model::{Limits, Rule, Violation},
};

/// The unit of all offsets, in bytes.
const SECTOR: u64 = 512;
/// `KDMV`, the first bytes of every sparse extent.
const MAGIC: [u8; 4] = *b"KDMV";
/// Flag: the four end-of-line characters are there to be compared.
const FLAG_NEWLINES: u32 = 1 << 0;
/// Flag: there is a second grain directory.
const FLAG_REDUNDANT: u32 = 1 << 1;
/// Flag: an entry of 1 in a grain table means a grain of zeros.
const FLAG_ZEROED: u32 = 1 << 2;
/// Flag: grains are compressed.
const FLAG_COMPRESSED: u32 = 1 << 16;
/// Flag: grains and tables have markers before them.
const FLAG_MARKERS: u32 = 1 << 17;
/// `gdOffset` of a stream: the grain directory's place stands in the footer.
const GD_AT_END: u64 = u64::MAX;
/// Grain table entry: a grain of zeros, with `FLAG_ZEROED`.
const ZEROED: u32 = 1;
/// `numGTEsPerGT`: all there is.
const TABLE_ENTRIES: u64 = 512;
/// Length of a grain table, in sectors.
const TABLE_SECTORS: u64 = 4;
/// Length of a grain table, in bytes.
const TABLE_LENGTH: u64 = TABLE_ENTRIES * 4;
/// Length of a marker before the compressed bytes of its grain, in bytes.
const MARKER_LENGTH: u64 = 12;
/// Marker: the end of the stream.
const MARKER_END: u32 = 0;
/// Marker: a grain table follows.
const MARKER_TABLE: u32 = 1;
/// Marker: the grain directory follows.
const MARKER_DIRECTORY: u32 = 2;
/// Marker: the footer follows.
const MARKER_FOOTER: u32 = 3;
/// Value of `compressAlgorithm`: deflate, in the form of RFC 1950.
const DEFLATE: u16 = 1;
/// Grains that we write, in sectors: the default of VMware and the only size of its streams.
const WRITTEN_GRAIN: u64 = 128;
/// The descriptor that we write begins here and is this long, in sectors, as with VMware and QEMU.
const WRITTEN_DESCRIPTOR: (u64, u64) = (1, 20);

/// Exactly `length` bytes of what is called `name`, or `Truncated`.
fn read_exact(input: &mut dyn ReadAt, name: &str, offset: u64, length: u64) -> Result<bytes::Bytes> {
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = input.read_up_to(offset, wanted)?;
    if bytes.len() < wanted { Err(truncated(name, offset, length, bytes.len())) } else { Ok(bytes) }
}

fn truncated(name: &str, offset: u64, wanted: u64, got: usize) -> Error {
    let message =
        format!("{wanted} bytes should stand there, and the file ends after {got}: it was cut off; fetch it again");
    Violation::new(Rule::Truncated, name, format!("byte {offset}"), message).into()
}

/// A sparse extent by its tables. Where that costs little, those of a stream are held against the markers of its grains as well, so that
/// what is refused as a stream is refused here, too.
///
/// # Errors
/// The first violation, or what `input` says.
pub(in crate::format) fn by_tables(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<TableMap> {
    if header.has_tables_at_end() && input.is_near() {
        markers::check_markers(input, &header, limits)?;
    }
    TableMap::open(input, header, limits)
}
