//! Raw disks, read and written: guest byte n is file byte n.
//!
//! Knows offsets only; never looks at the content.

use std::ops::Range;

use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, EncodedChunk, EncodedPiece, Encoder, Finish, Layout, Mapping, Place, Write},
    io::ReadAt,
    model::{Chunk, DiskFormat, Limits, OutputFormat, Rule, Violation},
};

/// A raw disk, or an optical disc kept as one.
#[derive(Debug)]
pub(super) struct RawMap {
    format: DiskFormat,
    /// Length of the input once known, in bytes.
    length: Option<u64>,
    longest: u64,
}

impl RawMap {
    /// A map of an input of `length` bytes, if that is known.
    ///
    /// # Errors
    /// `VirtualSizeLimit`.
    pub(super) fn new(format: DiskFormat, length: Option<u64>, limits: &Limits) -> Result<Self> {
        let map = Self { format, length, longest: limits.max_virtual_size };
        map.check_length(length.unwrap_or(0))?;
        Ok(map)
    }
}

impl DiskMap for RawMap {
    fn format(&self) -> DiskFormat {
        self.format
    }

    fn virtual_size(&self) -> Option<u64> {
        self.length
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        if let Some(length) = input.length() {
            self.check_length(length)?;
            self.length = Some(length);
        }
        // One byte past the limit may be asked for; that it exists is for `check_length` to find.
        let end = self.length.unwrap_or_else(|| self.longest.saturating_add(1));
        let length = most.min(end.saturating_sub(guest));
        if length == 0 {
            return match self.length {
                Some(_) => {
                    Err(Error::new(Kind::Internal, format!("raw: resolve past the disk's end, at byte {guest}")))
                }
                None => Err(self.check_length(guest).err().unwrap_or_else(|| {
                    Error::new(Kind::Internal, format!("raw: resolve of no bytes at byte {guest}"))
                })),
            };
        }
        Ok(Mapping { length, place: Place::Raw { host: guest } })
    }

    fn check_length(&self, length: u64) -> Result<()> {
        if length <= self.longest {
            return Ok(());
        }
        let message =
            format!("disks of up to {} bytes are accepted: raise the limit if this one is wanted", self.longest);
        Err(Violation::new(Rule::VirtualSizeLimit, "length", length, message).into())
    }
}

/// Writes raw disks: the runs of each chunk, where they are; holes stay holes.
#[derive(Debug)]
pub(super) struct RawEncoder;

impl Encoder for RawEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let piece = |run: &Range<u32>| EncodedPiece {
            guest: chunk.offset().saturating_add(u64::from(run.start)),
            bytes: chunk.data.slice(run.start as usize..run.end as usize),
            packed: false,
        };
        Ok(EncodedChunk { index: chunk.index, pieces: chunk.runs.iter().map(piece).collect() })
    }

    fn layout(&self, _virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(Box::new(RawLayout))
    }

    fn output(&self) -> OutputFormat {
        OutputFormat::RAW
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

    struct Stream(Option<u64>);
    impl ReadAt for Stream {
        fn length(&self) -> Option<u64> {
            self.0
        }
        fn read_up_to(&mut self, _: u64, _: usize) -> Result<Bytes> {
            unreachable!("a raw disk has no tables")
        }
    }

    #[test]
    fn grows_until_the_end_is_seen() {
        let limits = Limits { max_virtual_size: 1000, ..Limits::default() };
        let mut map = RawMap::new(DiskFormat::Raw, None, &limits).unwrap();
        let mut input = Stream(None);
        let first = map.resolve(&mut input, 0, 600).unwrap();
        assert_eq!(first, Mapping { length: 600, place: Place::Raw { host: 0 } });
        assert_eq!(map.virtual_size(), None);
        input.0 = Some(700);
        assert_eq!(map.resolve(&mut input, 600, 600).unwrap().length, 100);
        assert_eq!(map.virtual_size(), Some(700));
    }

    #[test]
    fn too_long_is_refused_whenever_it_is_seen() {
        let limits = Limits { max_virtual_size: 1000, ..Limits::default() };
        assert!(RawMap::new(DiskFormat::Raw, Some(1001), &limits).is_err());
        let mut map = RawMap::new(DiskFormat::Raw, None, &limits).unwrap();
        assert_eq!(map.resolve(&mut Stream(None), 600, 600).unwrap().length, 401);
        let error = map.resolve(&mut Stream(None), 1001, 600).unwrap_err();
        assert_eq!(error.violation().unwrap().rule, Rule::VirtualSizeLimit);
        assert!(map.resolve(&mut Stream(Some(2000)), 600, 600).is_err());
    }
}
