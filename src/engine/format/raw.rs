//! Raw disks, read and written: guest byte n is file byte n. So it is in a fixed vhd, which is told by the footer behind its disk.
//!
//! Knows offsets, and asks `vhd` about the last bytes of the file; never looks at the content.

use std::ops::Range;

use crate::{
    error::{Error, Kind, Result},
    format::{
        DiskMap, EncodedChunk, EncodedPiece, Encoder, Finish, Layout, Mapping, Place, Write,
        ambiguity::check_tail,
        oversized,
        vhd::{CYLINDER, FOOTER_LENGTH, Footer, Tail},
    },
    io::ReadAt,
    model::{CHUNK_SIZE, Chunk, DiskFormat, Limits, OutputFormat, Rule, Violation},
};

/// How many bytes at a stream's end are looked at before they are given out: the footer, and what of the file may lie behind the
/// disk in front of it. So nothing has to be taken back when the end turns out to be no part of the disk.
const LOOK_AHEAD: u64 = CYLINDER + FOOTER_LENGTH;

/// The longest answer, in bytes, while the end is not known: all of it, and what is looked ahead, is kept in memory.
const MOST: u64 = CHUNK_SIZE;

/// A raw disk, or an optical disc kept as one, or a fixed vhd.
#[derive(Debug)]
pub(super) struct RawMap {
    format: DiskFormat,
    declared: Option<DiskFormat>,
    /// Of the disk in bytes, once the end of the file was looked at.
    size: Option<u64>,
    longest: u64,
}

impl RawMap {
    /// A map of `input`, whose first bytes are of `format`. Looks at its last bytes now if they can be read before the others, else
    /// when they come.
    ///
    /// # Errors
    /// `VirtualSizeLimit`; `FormatMismatch` if there is a footer and a raw disk was declared, or the other way around; the
    /// violations of the footer; what `input` says.
    pub(super) fn open(
        input: &mut dyn ReadAt,
        format: DiskFormat,
        declared: Option<DiskFormat>,
        limits: &Limits,
    ) -> Result<Self> {
        let mut map = Self { format, declared, size: None, longest: limits.max_virtual_size };
        if let Some(length) = input.length() {
            map.check_size(length.saturating_sub(FOOTER_LENGTH))?;
            if let Some(tail) = input.read_ahead(length.saturating_sub(FOOTER_LENGTH), usize_of(FOOTER_LENGTH))? {
                map.settle(&tail, length)?;
            }
        }
        Ok(map)
    }

    /// Decides what a file of `length` bytes is by its last ones, and so how large the disk in it is.
    fn settle(&mut self, tail: &[u8], length: u64) -> Result<()> {
        let size = match (Tail::of(tail), self.declared) {
            (Tail::Footer, None) if self.format == DiskFormat::Iso => {
                check_tail(tail, DiskFormat::Iso).map(|()| length)?
            }
            (Tail::Footer | Tail::Broken, None | Some(DiskFormat::Vhd)) => {
                self.format = DiskFormat::Vhd;
                Footer::parse(tail)?.fixed_size(length)?
            }
            (Tail::Footer, Some(declared)) => return Err(mismatch(declared, DiskFormat::Vhd).into()),
            (Tail::Other, Some(DiskFormat::Vhd)) => return Err(mismatch(DiskFormat::Vhd, self.format).into()),
            (Tail::Other | Tail::Broken, _) => length,
        };
        self.check_size(size)?;
        self.size = Some(size);
        Ok(())
    }

    /// The disk's size, if the input ends so soon behind `wanted` bytes at `guest` that it can be told, and has to be.
    fn look_for_end(&mut self, input: &mut dyn ReadAt, guest: u64, wanted: u64) -> Result<Option<u64>> {
        let enough = usize_of(wanted.saturating_add(LOOK_AHEAD));
        let there = input.available(guest, enough)?;
        if there < enough {
            let length = guest.saturating_add(there as u64);
            let tail = input.read_up_to(length.saturating_sub(FOOTER_LENGTH), usize_of(FOOTER_LENGTH.min(length)))?;
            self.settle(&tail, length)?;
        }
        Ok(self.size)
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size <= self.longest {
            return Ok(());
        }
        Err(oversized("length", size, self.longest).into())
    }
}

fn mismatch(declared: DiskFormat, found: DiskFormat) -> Violation {
    let message = match declared {
        DiskFormat::Vhd => format!("vhd was declared, and the file has no vhd footer: declare {found}, or `auto`"),
        _ => format!(
            "{declared} was declared, and the file is a fixed vhd by its last 512 bytes: declare vhd, or `auto`"
        ),
    };
    Violation::new(Rule::FormatMismatch, "diskFormat", found, message)
}

/// Lengths here are at most a chunk and what is looked ahead.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl DiskMap for RawMap {
    fn format(&self) -> DiskFormat {
        self.format
    }

    fn virtual_size(&self) -> Option<u64> {
        self.size
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let mut size = self.size;
        if size.is_none() {
            // One byte past the limit may be asked for; that it exists is for the caller to find, or for the next call.
            let left = self.longest.saturating_add(1).saturating_sub(guest);
            if left == 0 {
                self.check_size(guest)?;
            }
            size = self.look_for_end(input, guest, most.min(left).min(MOST))?;
        }
        let end = size.unwrap_or_else(|| guest.saturating_add(MOST).min(self.longest.saturating_add(1)));
        let length = most.min(end.saturating_sub(guest));
        if length == 0 {
            return Err(Error::new(Kind::Internal, format!("raw: resolve of {most} bytes at byte {guest}")));
        }
        Ok(Mapping { length, place: Place::Raw { host: guest } })
    }

    fn check_length(&self, length: u64) -> Result<()> {
        self.check_size(self.size.unwrap_or(length))
    }
}

/// The runs of a chunk as they are, cut where a block of `block` bytes ends.
pub(super) fn pieces(chunk: &Chunk, block: u64) -> Vec<EncodedPiece> {
    let piece = |range: Range<u64>| EncodedPiece {
        guest: chunk.offset().saturating_add(range.start),
        bytes: chunk.data.slice(usize_of(range.start)..usize_of(range.end)),
        packed: false,
    };
    let mut pieces = Vec::with_capacity(chunk.runs.len());
    for run in &chunk.runs {
        let (mut start, end) = (u64::from(run.start), u64::from(run.end));
        while start < end {
            let border = start.saturating_add(1).checked_next_multiple_of(block.max(1)).unwrap_or(end);
            pieces.push(piece(start..border.min(end)));
            start = border;
        }
    }
    pieces
}

/// Writes raw disks: the runs of each chunk, where they are; holes stay holes.
#[derive(Debug)]
pub(super) struct RawEncoder;

impl Encoder for RawEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        Ok(EncodedChunk { index: chunk.index, pieces: pieces(chunk, CHUNK_SIZE) })
    }

    fn layout(&self, _virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(Box::new(RawLayout))
    }

    fn output(&self) -> OutputFormat {
        OutputFormat::RAW
    }

    fn is_forward(&self, _virtual_size: Option<u64>) -> bool {
        true
    }
}

#[derive(Debug)]
struct RawLayout;

impl Layout for RawLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        Ok(chunk.pieces.into_iter().map(|piece| Write { offset: piece.guest, bytes: piece.bytes }).collect())
    }

    fn finish(self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        Ok(Finish { writes: Vec::new(), length: virtual_size })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A stream of zeros of this length, of which nothing but its end is read.
    struct Stream(u64);
    impl ReadAt for Stream {
        fn length(&self) -> Option<u64> {
            None
        }
        fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
            assert!(length as u64 == FOOTER_LENGTH && offset + FOOTER_LENGTH == self.0, "read {length} at {offset}");
            Ok(vec![0; length].into())
        }
        fn available(&mut self, offset: u64, length: usize) -> Result<usize> {
            Ok(usize_of(self.0.saturating_sub(offset)).min(length))
        }
    }

    fn open(length: u64, max_virtual_size: u64) -> (RawMap, Stream) {
        let mut input = Stream(length);
        let limits = Limits { max_virtual_size, ..Limits::default() };
        (RawMap::open(&mut input, DiskFormat::Raw, None, &limits).unwrap(), input)
    }

    #[test]
    fn grows_until_the_end_is_seen() {
        let (mut map, mut input) = open(LOOK_AHEAD + 700, 1 << 30);
        let first = map.resolve(&mut input, 0, 600).unwrap();
        assert_eq!(first, Mapping { length: 600, place: Place::Raw { host: 0 } });
        assert_eq!(map.virtual_size(), None);
        assert_eq!(map.resolve(&mut input, 600, 600).unwrap().length, 600);
        assert_eq!(map.virtual_size(), Some(LOOK_AHEAD + 700));
        assert_eq!(map.resolve(&mut input, 600, u64::MAX).unwrap().length, LOOK_AHEAD + 100);
    }

    #[test]
    fn what_may_be_no_part_of_the_disk_is_not_given_out() {
        let (mut map, mut input) = open(64 << 20, 1 << 30);
        let mut guest = 0;
        while map.virtual_size().is_none() {
            guest += map.resolve(&mut input, guest, u64::MAX).unwrap().length;
            assert!(map.virtual_size().is_some() || guest + LOOK_AHEAD <= 64 << 20);
        }
        assert_eq!(guest, 64 << 20);
    }

    #[test]
    fn too_long_is_refused_whenever_it_is_seen() {
        let limits = Limits { max_virtual_size: 1000, ..Limits::default() };
        let (mut map, mut input) = open(1 << 30, 1000);
        assert_eq!(map.resolve(&mut input, 600, 600).unwrap().length, 401);
        let error = map.resolve(&mut input, 1001, 600).unwrap_err();
        assert_eq!(error.violation().unwrap().rule, Rule::VirtualSizeLimit);
        let (mut map, mut input) = open(1001, 1000);
        assert!(map.resolve(&mut input, 0, 600).is_err());
        assert!(RawMap::open(&mut Known(1001), DiskFormat::Raw, None, &limits).is_err());
        assert!(RawMap::open(&mut Known(1000), DiskFormat::Raw, None, &limits).is_ok());
    }

    /// A file of zeros.
    struct Known(u64);
    impl ReadAt for Known {
        fn length(&self) -> Option<u64> {
            Some(self.0)
        }
        fn read_up_to(&mut self, _: u64, length: usize) -> Result<Bytes> {
            Ok(vec![0; length].into())
        }
    }

    #[test]
    fn pieces_end_where_blocks_do() {
        let data = Bytes::from(vec![1; 10_000]);
        let chunk = Chunk { index: 2, data, runs: vec![10..20, 90..310, 9_999..10_000], digest: [0; 32] };
        let found: Vec<_> = pieces(&chunk, 100).iter().map(|p| (p.guest - chunk.offset(), p.bytes.len())).collect();
        assert_eq!(found, [(10, 10), (90, 10), (100, 100), (200, 100), (300, 10), (9_999, 1)]);
    }
}
