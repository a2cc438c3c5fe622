//! What is recorded of an image, in RADOS objects of its own: length of the facts, facts, digests.
//!
//! It is written before the image is published, under a name that holds the sink's token, so nobody else writes it and what is published
//! never changes. Knows where the bytes are; what they mean is the business of `store::record`.

use std::io;

use super::{
    super::record::{ENTRY, Facts, MAX_FACTS, damaged, entry, parse_entry},
    super::token::Token,
    ffi::Errno,
    layout,
    place::Place,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ChunkDigest, ObjectKey, StoredImage},
};

/// Bytes that one RADOS object takes: far below the limit of 128 MiB (`osd_max_object_size`). 10 MiB are the digests of 1 TiB.
const PART: usize = 32 << 20;
/// Bytes of one operation: far below the limit of 90 MiB (`osd_max_write_size`), and little enough that others are not held up.
const OPERATION: usize = 4 << 20;
/// Length of what says how long the facts are, in bytes.
const PREFIX: usize = 8;

/// Writes the record.
pub(super) fn write(place: &Place, key: &ObjectKey, token: Token, image: &StoredImage) -> Result<()> {
    let facts = Facts::of(image).to_bytes().map_err(|e| failed(place, key, "writing", e))?;
    let mut bytes = (facts.len() as u64).to_le_bytes().to_vec();
    bytes.extend(facts);
    bytes.extend(image.manifest.chunks.iter().flat_map(entry));
    for (number, part) in (0..).zip(bytes.chunks(PART)) {
        let object = layout::record(key, token, number);
        for (position, piece) in (0_u64..).zip(part.chunks(OPERATION)) {
            let offset = position.saturating_mul(OPERATION as u64);
            let written = place.pool().write(&object, piece, offset);
            written.map_err(|errno| place.error(format!("writing the record of {key} ({object})"), errno))?;
        }
    }
    Ok(())
}

/// Reads the record.
pub(super) fn read(place: &Place, key: &ObjectKey, token: Token) -> Result<StoredImage> {
    let bytes = read_bytes(place, key, token)?;
    parse(&bytes).map_err(|error| failed(place, key, "reading", error))
}

fn read_bytes(place: &Place, key: &ObjectKey, token: Token) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for number in 0.. {
        let object = layout::record(key, token, number);
        let start = bytes.len();
        loop {
            let offset = bytes.len().saturating_sub(start);
            let piece = match place.pool().read(&object, OPERATION, offset as u64) {
                Ok(piece) => piece,
                Err(Errno::NOENT) if number > 0 => return Ok(bytes),
                Err(errno) => return Err(place.error(format!("reading the record of {key} ({object})"), errno)),
            };
            bytes.extend_from_slice(&piece);
            if piece.len() < OPERATION {
                break;
            }
        }
        // A part that is not full is the last one.
        if bytes.len().saturating_sub(start) < PART {
            break;
        }
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> io::Result<StoredImage> {
    const PLACE: &str = "the record";
    let short = || damaged(PLACE, "it ends early");
    let (length, rest) = bytes.split_first_chunk::<PREFIX>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_FACTS {
        return Err(damaged(PLACE, &format!("its facts would have {length} bytes")));
    }
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let (facts, digests) = rest.split_at_checked(length).ok_or_else(short)?;
    let facts = Facts::parse(facts, PLACE)?;
    if facts.digests_length() != Some(digests.len() as u64) {
        return Err(damaged(PLACE, &format!("it does not hold the {} digests recorded", facts.chunks())));
    }
    let chunks: Vec<ChunkDigest> = digests.chunks_exact(ENTRY).filter_map(parse_entry).collect();
    facts.with_digests(chunks, PLACE)
}

/// Removes the record. What is not there is removed already.
pub(super) fn remove(place: &Place, key: &ObjectKey, token: Token) -> Result<()> {
    let mut parts = 1;
    while place.pool().changed(&layout::record(key, token, parts)).is_ok() {
        parts = parts.saturating_add(1);
    }
    // From the end, so that what is left when this stops halfway is found by the next.
    for number in (0..parts).rev() {
        let object = layout::record(key, token, number);
        match place.pool().remove_object(&object) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(place.error(format!("removing the record of {key} ({object})"), errno)),
        }
    }
    Ok(())
}

fn failed(place: &Place, key: &ObjectKey, doing: &str, error: io::Error) -> Error {
    let message = format!(
        "store {}, pool {}: {doing} the record of {key}; delete the object and import it again",
        place.name(),
        place.spec()
    );
    Error::with_source(Kind::Io, message, error)
}
