//! The bytes of a layer, out of an archive that several read from, unpacked and held against what they must be.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::index::{Layer, differs};
use crate::{
    error::{Error, Kind, Result},
    io::{Feed, Forward, Peeked, Pump, Window},
    model::{Digest, Limits, Rule, Violation},
    pipeline::expansion::nonzero,
    unpack::{self, HEAD, Packing, UnpackLimits, tar},
    verify::DigestSet,
};

/// Bytes asked of the archive at once.
const PIECE: u64 = 512 << 10;

/// An archive that is read here and there.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Window<Box<dyn Feed>>>>);

impl Shared {
    pub fn new(archive: Window<Box<dyn Feed>>) -> Self {
        Self(Arc::new(Mutex::new(archive)))
    }

    /// Lets all of it pass. To be called when nothing is read any more.
    ///
    /// # Errors
    /// What the archive says.
    pub fn finish(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).finish()
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<Bytes>> {
        let mut archive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        archive.read_pieces(offset, usize::try_from(length).unwrap_or(usize::MAX))
    }
}

/// How much came out of how much, over all layers.
#[derive(Clone, Copy, Default)]
pub(super) struct Weight {
    packed: u64,
    data: u64,
}

impl Weight {
    fn add(&mut self, piece: &[u8], limits: &Limits) -> Result<(), Violation> {
        self.data = self.data.saturating_add(nonzero(piece));
        let most = limits.expansion_floor.max(self.packed.saturating_mul(limits.max_expansion));
        if self.data <= most {
            return Ok(());
        }
        let found = format!("{} bytes of data from {} bytes", self.data, self.packed);
        let message = format!(
            "layers that unpack to more than {}:1 are never of an ordinary image: raise max-expansion if this one is meant to be",
            limits.max_expansion
        );
        Err(Violation::new(Rule::Bomb, "expansion", found, message))
    }
}

/// The layer's archive, as it is.
///
/// # Errors
/// A violation if it is packed in a way that is not read, else what the archive says.
pub(super) fn open(archive: &Shared, layer: &Layer, limits: &Limits) -> Result<Forward<Box<dyn Feed>>> {
    Ok(Forward::new(unpacked(Box::new(Blob::new(archive, layer)), limits)?))
}

/// The same, held against its digests and weighed together with the layers before. An error comes at the end at the latest.
///
/// # Errors
/// As `open`.
pub(super) fn open_proved(archive: &Shared, layer: &Layer, limits: &Limits, weight: Weight) -> Result<Forward<Proved>> {
    let blob: Box<dyn Feed> = Box::new(Blob::new(archive, layer));
    let blob = match &layer.digest {
        Some(digest) => Box::new(Proved::new(blob, "digest", digest, None)),
        None => blob,
    };
    let weight = Weight { packed: weight.packed.saturating_add(layer.member.size), ..weight };
    let weighed = Some((weight, limits.clone()));
    Ok(Forward::new(Proved::new(unpacked(blob, limits)?, "diff_ids", &layer.diff, weighed)))
}

fn unpacked(blob: Box<dyn Feed>, limits: &Limits) -> Result<Box<dyn Feed>> {
    let feed = Peeked::new(blob, HEAD)?;
    match unpack::detect(feed.head()) {
        None => Ok(Box::new(feed)),
        Some(packing @ (Packing::Gzip | Packing::Zstd)) => {
            let unpacker = unpack::unpacker(packing, Box::new(feed), UnpackLimits::new(limits));
            Ok(Box::new(Pump::start("vitrine-layer", unpacker)?))
        }
        Some(other) => {
            let message = "layers are tar archives, as they are or packed with gzip or zstd: save the image again";
            Err(Violation::new(Rule::UnsupportedFormat, "mediaType", other, message).into())
        }
    }
}

/// The bytes of one member.
struct Blob {
    archive: Shared,
    at: u64,
    end: u64,
    name: String,
    pieces: VecDeque<Bytes>,
}

impl Blob {
    fn new(archive: &Shared, layer: &Layer) -> Self {
        let member = &layer.member;
        Self {
            archive: archive.clone(),
            at: member.offset,
            end: member.offset.saturating_add(member.size),
            name: member.name.clone(),
            pieces: VecDeque::new(),
        }
    }
}

impl Feed for Blob {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Ok(Some(piece));
        }
        let length = self.end.saturating_sub(self.at).min(PIECE);
        if length == 0 {
            return Ok(None);
        }
        let pieces = self.archive.read(self.at, length)?;
        let got: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if got < length {
            return Err(tar::truncated(self.at.saturating_add(got), &self.name).into());
        }
        self.at = self.at.saturating_add(got);
        self.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        Ok(self.pieces.pop_front())
    }
}

/// A feed with a digest.
pub(super) struct Proved {
    inner: Box<dyn Feed>,
    field: &'static str,
    expected: Digest,
    digests: Option<DigestSet>,
    weight: Option<(Weight, Limits)>,
}

impl Proved {
    fn new(inner: Box<dyn Feed>, field: &'static str, expected: &Digest, weight: Option<(Weight, Limits)>) -> Self {
        let digests = Some(DigestSet::new([expected.algorithm()]));
        Self { inner, field, expected: expected.clone(), digests, weight }
    }

    /// What has been weighed.
    pub fn into_weight(self) -> Weight {
        self.weight.map(|(weight, _)| weight).unwrap_or_default()
    }
}

impl Feed for Proved {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.inner.next()? {
            if let Some((weight, limits)) = &mut self.weight {
                weight.add(&piece, limits)?;
            }
            if let Some(digests) = &mut self.digests {
                digests.update(&piece);
            }
            return Ok(Some(piece));
        }
        let digests = self.digests.take().ok_or_else(|| Error::new(Kind::Internal, "a layer was read past its end"))?;
        match digests.finish().digests.pop() {
            Some(found) if found == self.expected => Ok(None),
            found => {
                let found = found.map_or_else(String::new, |found| found.to_string());
                Err(differs(self.field, &self.expected, &found).into())
            }
        }
    }
}
