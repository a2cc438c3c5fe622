//! What is recorded of an object, in one object of its own: its facts, its chunk digests, and where in its pieces the bytes are.
//!
//! ```text
//! length of the facts, facts, digests
//! length of a piece, length of all pieces, number of extents, extents: place on the disk, length, place in the pieces
//! BLAKE3 of the last two lines' bytes
//! ```
//! All numbers are 64 bits, little-endian. It is written before the object is published, under a name that holds the sink's token, so
//! nobody else writes it and what is published never changes. What facts and digests mean is the business of `store::record`.

use std::io;

use bytes::Bytes;

use super::{
    super::record::{ENTRY, Facts, MAX_FACTS, damaged, entry, parse_entry},
    super::token::Token,
    extents::{Extent, Table},
    place::Place,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ChunkDigest, ObjectKey, StoredImage},
};

/// Length of a number.
const NUMBER: usize = 8;
/// Length of an extent.
const EXTENT: usize = 3 * NUMBER;
/// Length of the digest at the end.
const DIGEST: usize = 32;
const PLACE: &str = "the record";

/// An object's record.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) image: StoredImage,
    pub(super) table: Table,
    /// Length of every piece but the last.
    pub(super) object_size: u64,
    /// Length of all pieces.
    pub(super) stored: u64,
}

/// Writes the record.
pub(super) async fn write(place: &Place, key: &ObjectKey, token: Token, record: &Record) -> Result<()> {
    let path = place.layout().record(key, token);
    let bytes = to_bytes(record).map_err(|error| failed(place, key, "writing", error))?;
    place.put(&path, bytes, &format!("writing the record of {key} ({path})")).await
}

/// Reads the record; nothing if it is not there.
pub(super) async fn read(place: &Place, key: &ObjectKey, token: Token) -> Result<Option<Record>> {
    let path = place.layout().record(key, token);
    let Some((_, bytes)) = place.get(&path, &format!("reading the record of {key} ({path})")).await? else {
        return Ok(None);
    };
    parse(&bytes).map(Some).map_err(|error| failed(place, key, "reading", error))
}

fn to_bytes(record: &Record) -> io::Result<Bytes> {
    let facts = Facts::of(&record.image).to_bytes()?;
    let mut bytes = (facts.len() as u64).to_le_bytes().to_vec();
    bytes.extend(facts);
    bytes.extend(record.image.manifest.chunks.iter().flat_map(entry));
    let extents = record.table.extents();
    let numbers = [record.object_size, record.stored, extents.len() as u64];
    let numbers =
        numbers.into_iter().chain(extents.iter().flat_map(|extent| [extent.offset, extent.length, extent.at]));
    bytes.extend(numbers.flat_map(u64::to_le_bytes));
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    Ok(bytes.into())
}

fn parse(bytes: &[u8]) -> io::Result<Record> {
    let (bytes, digest) = bytes.split_last_chunk::<DIGEST>().ok_or_else(short)?;
    if blake3::hash(bytes).as_bytes() != digest {
        return Err(damaged(PLACE, "its bytes are not those that were written"));
    }
    let mut rest = bytes;
    let length = number(&mut rest)?;
    if length > MAX_FACTS {
        return Err(damaged(PLACE, &format!("its facts would have {length} bytes")));
    }
    let facts = Facts::parse(take(&mut rest, length)?, PLACE)?;
    let digests = take(&mut rest, facts.digests_length().ok_or_else(short)?)?;
    let chunks: Vec<ChunkDigest> = digests.chunks_exact(ENTRY).filter_map(parse_entry).collect();
    let image = facts.with_digests(chunks, PLACE)?;
    let (object_size, stored, count) = (number(&mut rest)?, number(&mut rest)?, number(&mut rest)?);
    if count.checked_mul(EXTENT as u64) != Some(rest.len() as u64) || object_size == 0 {
        return Err(damaged(PLACE, &format!("it does not hold the {count} extents recorded")));
    }
    let table = Table::new(rest.chunks_exact(EXTENT).filter_map(extent).collect(), image.length, stored);
    let table = table.ok_or_else(|| damaged(PLACE, "its extents lie across each other, or outside"))?;
    Ok(Record { image, table, object_size, stored })
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> io::Result<&'a [u8]> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let (taken, left) = rest.split_at_checked(length).ok_or_else(short)?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> io::Result<u64> {
    let bytes = take(rest, NUMBER as u64)?.first_chunk::<NUMBER>().ok_or_else(short)?;
    Ok(u64::from_le_bytes(*bytes))
}

fn extent(mut bytes: &[u8]) -> Option<Extent> {
    let mut next = || number(&mut bytes).ok();
    Some(Extent { offset: next()?, length: next()?, at: next()? })
}

fn short() -> io::Error {
    damaged(PLACE, "it ends early")
}

fn failed(place: &Place, key: &ObjectKey, doing: &str, error: io::Error) -> Error {
    let message = format!(
        "store {}, bucket {}: {doing} the record of {key}; delete the object and import it again",
        place.name(),
        place.bucket()
    );
    Error::with_source(Kind::Io, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContainerFormat, ContentManifest, DiskFormat, OutputFormat};

    fn record() -> Record {
        let image = StoredImage {
            format: OutputFormat::RAW,
            length: 1000,
            source_size: 7,
            source_digests: vec![],
            source_format: DiskFormat::Raw,
            container_format: ContainerFormat::Bare,
            properties: std::collections::BTreeMap::new(),
            request: Some("a".to_owned()),
            manifest: ContentManifest { virtual_size: 1000, chunks: vec![ChunkDigest { index: 0, digest: [7; 32] }] },
        };
        let extents = vec![Extent { offset: 5, length: 10, at: 0 }, Extent { offset: 100, length: 20, at: 10 }];
        Record { image, table: Table::new(extents, 1000, 30).unwrap(), object_size: 1 << 20, stored: 30 }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let (record, bytes) = (record(), to_bytes(&record()).unwrap());
        let read = parse(&bytes).unwrap();
        assert_eq!((read.image, read.table), (record.image, record.table));
        assert_eq!((read.object_size, read.stored), (record.object_size, record.stored));
    }

    #[test]
    fn any_damage_is_noticed() {
        let bytes = to_bytes(&record()).unwrap();
        for position in 0..bytes.len() {
            let mut other = bytes.to_vec();
            other[position] ^= 1;
            assert!(parse(&other).is_err(), "byte {position}");
            assert!(parse(&bytes[..position]).is_err(), "cut at {position}");
        }
    }
}
