//! Disk formats: turning a file's bytes into the guest's disk and back.
//!
//! A format *resolves*: it says where in the file a guest range lies, and the caller moves the bytes. No code here opens a
//! file or follows a name it finds in one.
//!
//! ```text
//! detect (magic bytes) ─► open ─► raw | qcow2::map ─► resolve … resolve        reading
//!                              └► inspect: the same, to the end, without moving data
//! encoder ─► encode (parallel) ─► layout.place (serial) ─► layout.finish       writing
//! ```
//!
//! All bytes read here come from outside: arithmetic on them is checked or saturating, and the compiler holds that.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "tests build their own bytes and may panic"))]

mod amazon;
mod ambiguity;
mod blocks;
mod claims;
mod detect;
mod encoder;
mod fields;
mod inspect;
mod open;
mod ploop;
mod qcow2;
mod raw;
mod stated;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use ambiguity::{LOOK, TAIL, check_layer, check_tail};
pub use encoder::encoder;
pub use inspect::{inspect, inspect_as};
pub use open::{open, open_as};
pub use ploop::ploop_block;
pub use vmdk::{Extent, ExtentKind, NamedExtent, named_extents};

use std::{fmt::Display, sync::Arc};

use bytes::Bytes;

use crate::{
    error::Result,
    io::ReadAt,
    model::{Chunk, DiskFormat, OutputFormat, Rule, Violation},
};

/// The guest's disk as one file describes it.
pub trait DiskMap: Send {
    /// The format found.
    fn format(&self) -> DiskFormat;

    /// Size of the guest's disk in bytes; `None` for a stream whose length is not known yet and decides: then `resolve` settles it
    /// when it sees the end, or it is as long as the input.
    fn virtual_size(&self) -> Option<u64>;

    /// Whether two answers may lie on the same bytes of the file.
    fn may_read_twice(&self) -> bool;

    /// Whether it may turn out in the middle of a stream that the file has to be read by its tables, which `NeedsSpill` says.
    fn may_need_tables(&self) -> bool {
        false
    }

    /// Whether opening it has checked all that its tables say, so that resolving the whole disk would show nothing more.
    fn is_checked(&self) -> bool {
        false
    }

    /// Where the guest range that begins at `guest` lies. The answer covers at least one byte and at most `most` bytes, and
    /// never goes past the virtual size. Callers ask in ascending order, each time where the last answer ended, so an
    /// implementation keeps at most one table in memory and reads each once.
    ///
    /// # Errors
    /// A violation (`Kind::Refused`) if a table or entry breaks a rule, else what `input` says.
    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping>;

    /// Holds everything resolved so far against the input's `length` in bytes. To be called after the last `resolve` when
    /// the length was not known from the start: only then can a stream be told to have been cut, or its tables to lie.
    ///
    /// # Errors
    /// A violation (`Kind::Refused`) if something that the file names lies past its end.
    fn check_length(&self, length: u64) -> Result<()>;

    /// Reads and checks what stands behind the last guest byte: trailing tables, footers. To be called once, after the last
    /// `resolve`.
    ///
    /// # Errors
    /// A violation (`Kind::Refused`) if it contradicts what was resolved, else what `input` says.
    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let _ = input;
        Ok(())
    }
}

/// How a disk lies in the bytes that are its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// They are one file, and say what they are.
    Whole,
    /// They are the files of a vmdk's extents, one behind the other.
    Extents(Vec<Extent>),
    /// They are kept as they are, whatever they hold.
    Opaque,
}

/// How a file is best read. Formats that hold their tables once in the way of the data and once behind it can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From its beginning to its end, once. A map that finds out that this file cannot be read so answers `NeedsSpill`.
    Stream,
    /// Here and there: the tables first.
    Tables,
}

/// What a stretch of the guest's disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Length in guest bytes, at least 1.
    pub length: u64,
    /// Where it lies.
    pub place: Place,
}

/// Where guest bytes lie in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: the guest reads zeros (unallocated or explicit zeros).
    Zero,
    /// As they are, at this offset of the file. With an unknown input length, up to `length` bytes or the input's end.
    Raw {
        /// File offset in bytes.
        host: u64,
    },
    /// Inside a compressed cluster.
    Packed {
        /// File offset of the compressed bytes.
        host: u64,
        /// How many bytes to read at most; the stream may end earlier, and the file may end inside the last sector.
        host_length: u32,
        /// How to unpack them.
        codec: Arc<dyn Codec>,
        /// Length of the whole cluster once unpacked, in bytes.
        unpacked_length: u32,
        /// Where in the unpacked cluster this mapping begins.
        skip: u32,
    },
}

/// Unpacks one compressed cluster. Called on many threads at once.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// Fills `output`, the whole cluster, from `input`, which may have bytes left over at its end.
    ///
    /// # Errors
    /// A violation if `input` does not unpack to exactly `output.len()` bytes.
    fn unpack(&self, input: &[u8], output: &mut [u8]) -> Result<()>;
}

impl PartialEq for dyn Codec {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

impl Eq for dyn Codec {}

/// The parallel half of writing a format: turns a chunk into bytes for the file, on any thread, in any order.
pub trait Encoder: Send + Sync {
    /// The form in which the chunk goes into the file.
    ///
    /// # Errors
    /// If compression fails, which no input makes it do.
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk>;

    /// The serial half, for one file. `virtual_size` is given if known at the start.
    ///
    /// # Errors
    /// If the size cannot be expressed in the format.
    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>>;

    /// What this encoder writes.
    fn output(&self) -> OutputFormat;

    /// Whether the writes of a layout made for this `virtual_size` follow one another, so that the file can go into a pipe.
    fn is_forward(&self, virtual_size: Option<u64>) -> bool {
        let _ = virtual_size;
        false
    }
}

/// A chunk in the form of the output format: pieces of the guest's disk, each with its bytes, ascending.
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// Number of the chunk.
    pub index: u64,
    /// The pieces.
    pub pieces: Vec<EncodedPiece>,
}

/// One piece of an encoded chunk: a run of raw bytes or one compressed cluster.
#[derive(Clone, Debug)]
pub struct EncodedPiece {
    /// Guest offset in bytes.
    pub guest: u64,
    /// The bytes for the file.
    pub bytes: Bytes,
    /// Whether `bytes` is a compressed cluster.
    pub packed: bool,
}

/// The serial half of writing a format: gives every piece its place. Chunks come in ascending order; missing ones are zeros.
pub trait Layout: Send {
    /// The writes that put `chunk` into the file, and those of tables that became complete.
    ///
    /// # Errors
    /// If the file would outgrow its format.
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>>;

    /// The remaining writes (tables, header) and the file's final length. `virtual_size` in bytes is now known.
    ///
    /// # Errors
    /// If the size cannot be expressed in the format.
    fn finish(self: Box<Self>, virtual_size: u64) -> Result<Finish>;
}

/// Bytes and where they go.
#[derive(Clone, Debug)]
pub struct Write {
    /// File offset in bytes.
    pub offset: u64,
    /// What to write.
    pub bytes: Bytes,
}

/// The end of a file.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The last writes.
    pub writes: Vec<Write>,
    /// Length of the whole file in bytes; what was not written reads as zeros.
    pub length: u64,
}

/// What to say of a disk that is larger than `most` bytes. `value` is what `field` of its header says, in the unit of that field.
fn oversized(field: &str, value: impl Display, most: u64) -> Violation {
    let message = format!("disks of up to {most} bytes are accepted: raise max-virtual-size if this one is wanted");
    Violation::new(Rule::VirtualSizeLimit, field, value, message)
}
