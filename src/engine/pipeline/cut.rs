//! Walks the guest's disk in order and collects what each chunk is made of.
//!
//! Does all reading and no computing: unpacking and hashing happen where the pieces go.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    error::Result,
    format::{Codec, DiskMap, Mapping, Place},
    io::{Feed, ReadAt, Window},
    model::{CHUNK_SIZE, Limits, Rule, Violation},
};

/// Where a disk map and its data are read from.
pub trait Input: Send {
    /// Resolves the guest range at `guest` with `map`, reading tables as this input does it best.
    fn resolve(&mut self, map: &mut dyn DiskMap, guest: u64, most: u64) -> Result<Mapping>;

    /// Up to `length` bytes of data at `offset`; fewer only at the input's end.
    fn read(&mut self, offset: u64, length: usize) -> Result<Bytes>;

    /// The same for a long stretch, in as many pieces as it comes.
    fn read_pieces(&mut self, offset: u64, length: usize) -> Result<Vec<Bytes>>;

    /// Has `map` look at what stands behind the disk's last byte.
    fn close(&mut self, map: &mut dyn DiskMap) -> Result<()>;

    /// Called once, after the last read: lets pass what nobody asked for.
    fn finish(&mut self) -> Result<()>;

    /// Whether the disk goes on elsewhere after a failure: then what is missing is to be resolved anew, from the same place of the guest's
    /// disk on.
    fn goes_on(&self) -> bool {
        false
    }
}

impl<F: Feed> Input for Window<F> {
    fn resolve(&mut self, map: &mut dyn DiskMap, guest: u64, most: u64) -> Result<Mapping> {
        map.resolve(&mut self.tables(), guest, most)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        self.read_up_to(offset, length)
    }

    fn read_pieces(&mut self, offset: u64, length: usize) -> Result<Vec<Bytes>> {
        Self::read_pieces(self, offset, length)
    }

    fn close(&mut self, map: &mut dyn DiskMap) -> Result<()> {
        map.finish(&mut self.tables())
    }

    fn finish(&mut self) -> Result<()> {
        Self::finish(self)
    }
}

/// An input with random access of its own, such as a file.
pub struct Direct<R>(pub R);

impl<R: ReadAt> Input for Direct<R> {
    fn resolve(&mut self, map: &mut dyn DiskMap, guest: u64, most: u64) -> Result<Mapping> {
        map.resolve(&mut self.0, guest, most)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        self.0.read_up_to(offset, length)
    }

    fn read_pieces(&mut self, offset: u64, length: usize) -> Result<Vec<Bytes>> {
        Ok(vec![self.0.read_up_to(offset, length)?])
    }

    fn close(&mut self, map: &mut dyn DiskMap) -> Result<()> {
        map.finish(&mut self.0)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What one chunk is made of. What no segment covers is zero.
#[derive(Debug)]
pub struct Unit {
    /// Number of the chunk.
    pub index: u64,
    /// Length of the chunk in bytes: `CHUNK_SIZE` except at the disk's end.
    pub length: usize,
    /// Ascending, not overlapping.
    pub segments: Vec<Segment>,
}

/// A part of a chunk.
#[derive(Debug)]
pub struct Segment {
    /// Offset within the chunk, in bytes.
    pub at: usize,
    /// Length within the chunk, in bytes.
    pub length: usize,
    /// The file's bytes for it.
    pub bytes: Bytes,
    /// How `bytes` become the guest's; `None` if they are already.
    pub packed: Option<Packed>,
}

/// A segment that is part of a compressed cluster.
#[derive(Debug)]
pub struct Packed {
    /// How to unpack.
    pub codec: Arc<dyn Codec>,
    /// Length of the whole cluster in bytes.
    pub unpacked_length: usize,
    /// Where in the cluster the segment begins.
    pub skip: usize,
}

/// Cuts a disk into units.
pub struct Cutter<'a> {
    map: &'a mut dyn DiskMap,
    input: &'a mut dyn Input,
    limits: &'a Limits,
    at: u64,
    unit: Option<Unit>,
}

impl<'a> Cutter<'a> {
    /// Cuts the disk that `map` describes.
    pub fn new(map: &'a mut dyn DiskMap, input: &'a mut dyn Input, limits: &'a Limits) -> Self {
        Self { map, input, limits, at: 0, unit: None }
    }

    /// Gives every chunk that is not known to be zero to `take`, in order, until it returns false. The answer is the virtual
    /// size, or `None` if `take` did.
    ///
    /// # Errors
    /// Violations of the format, and what the input says.
    pub fn run(&mut self, take: &mut dyn FnMut(Unit) -> bool) -> Result<Option<u64>> {
        loop {
            match self.step(take) {
                Ok(Followed::On) => {}
                Ok(Followed::End) => break,
                Ok(Followed::Stopped) => return Ok(None),
                // What was taken stays: of what failed, nothing was.
                Err(_) if self.input.goes_on() => {}
                Err(error) => return Err(error),
            }
        }
        let size = self.map.virtual_size().unwrap_or(self.at);
        if let Some(mut unit) = self.unit.take() {
            unit.length = chunk_length(unit.index, size);
            if !take(unit) {
                return Ok(None);
            }
        }
        Ok(Some(size))
    }

    /// Resolves and takes what comes next. At the end of the disk, what stands behind it is looked at.
    fn step(&mut self, take: &mut dyn FnMut(Unit) -> bool) -> Result<Followed> {
        let most = match self.map.virtual_size() {
            Some(size) => size.saturating_sub(self.at),
            None => CHUNK_SIZE,
        };
        let followed = if most == 0 {
            Followed::End
        } else {
            let mapping = self.input.resolve(self.map, self.at, most)?;
            self.follow(&mapping, self.map.virtual_size(), take)?
        };
        if let Followed::End = followed {
            self.input.close(self.map)?;
        }
        Ok(followed)
    }

    /// Takes one mapping apart at chunk borders.
    fn follow(&mut self, mapping: &Mapping, size: Option<u64>, take: &mut dyn FnMut(Unit) -> bool) -> Result<Followed> {
        let start = self.at;
        let end = start.saturating_add(mapping.length);
        if mapping.place == Place::Zero {
            self.at = end;
            return Ok(Followed::On);
        }
        while self.at < end {
            let index = self.at / CHUNK_SIZE;
            if self.unit.as_ref().is_some_and(|unit| unit.index != index)
                && let Some(unit) = self.unit.take()
                && !take(unit)
            {
                return Ok(Followed::Stopped);
            }
            let chunk_end = index.saturating_add(1).saturating_mul(CHUNK_SIZE);
            let length = end.min(chunk_end).saturating_sub(self.at);
            let passed = self.at.saturating_sub(start);
            let segments = self.read(&mapping.place, passed, length, size.is_some())?;
            let got = segments.iter().map(|segment| segment.length as u64).sum();
            if got == 0 {
                return Ok(Followed::End);
            }
            self.push(segments, index, size);
            self.at = self.at.saturating_add(got);
            self.check_size()?;
            if got < length {
                return Ok(Followed::End);
            }
        }
        Ok(Followed::On)
    }

    /// The `length` bytes that lie `passed` bytes into `place`. Fewer only where the input may end.
    fn read(&mut self, place: &Place, passed: u64, length: u64, whole: bool) -> Result<Vec<Segment>> {
        let at = usize_of(self.at % CHUNK_SIZE);
        let wanted = usize_of(length);
        match place {
            Place::Zero => Ok(Vec::new()),
            Place::Raw { host } => {
                let offset = host.saturating_add(passed);
                let segments = in_a_row(at, self.input.read_pieces(offset, wanted)?);
                let got = segments.iter().map(|segment| segment.length).sum();
                if whole && got < wanted {
                    return Err(truncated(offset, wanted, got).into());
                }
                Ok(segments)
            }
            Place::Packed { host, host_length, codec, unpacked_length, skip } => {
                let bytes = self.input.read(*host, usize_of(u64::from(*host_length)))?;
                if bytes.is_empty() {
                    return Err(truncated(*host, usize_of(u64::from(*host_length)), 0).into());
                }
                let skip = usize_of(u64::from(*skip).saturating_add(passed));
                let unpacked_length = usize_of(u64::from(*unpacked_length));
                let packed = Some(Packed { codec: codec.clone(), unpacked_length, skip });
                Ok(vec![Segment { at, length: wanted, bytes, packed }])
            }
        }
    }

    fn push(&mut self, segments: Vec<Segment>, index: u64, size: Option<u64>) {
        let length = size.map_or(usize_of(CHUNK_SIZE), |size| chunk_length(index, size));
        let unit = self.unit.get_or_insert_with(|| Unit { index, length, segments: Vec::new() });
        unit.segments.extend(segments);
    }

    /// A stream of unknown length must not grow past the limit either.
    fn check_size(&self) -> Result<()> {
        let most = self.limits.max_virtual_size;
        if self.at <= most {
            return Ok(());
        }
        let message =
            format!("the disk is larger than the {most} bytes allowed: raise max-virtual-size if it is meant to be");
        Err(Violation::new(Rule::VirtualSizeLimit, "virtual size", format!("more than {most}"), message).into())
    }
}

/// One segment for each piece, the first `at` bytes into the chunk.
fn in_a_row(mut at: usize, pieces: Vec<Bytes>) -> Vec<Segment> {
    let place = |bytes: Bytes| {
        let segment = Segment { at, length: bytes.len(), bytes, packed: None };
        at = at.saturating_add(segment.length);
        segment
    };
    pieces.into_iter().map(place).filter(|segment| segment.length > 0).collect()
}

enum Followed {
    On,
    End,
    Stopped,
}

/// Length in bytes of chunk `index` of a disk of `size` bytes.
fn chunk_length(index: u64, size: u64) -> usize {
    usize_of(size.saturating_sub(index.saturating_mul(CHUNK_SIZE)).min(CHUNK_SIZE))
}

/// Lengths here are at most a chunk or a cluster, which fit; a 32-bit machine would refuse larger ones when it allocates.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn truncated(offset: u64, wanted: usize, got: usize) -> Violation {
    Violation::new(
        Rule::Truncated,
        "file length",
        offset.saturating_add(got as u64),
        format!(
            "{wanted} bytes of the guest's disk should stand at byte {offset}, but the file ends: \
             it was cut off; fetch or make it again"
        ),
    )
}
