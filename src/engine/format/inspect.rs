//! Inspection: everything that would refuse an image at import and can be seen without moving its data.
//!
//! Knows what import does with tables; must not unpack more than the one stream that the file's end may have cut.

use crate::{
    error::{Error, Result},
    format::{
        DiskMap, Place,
        detect::{Found, HEAD_LENGTH, Reader, detect, settle},
        qcow2::{Header, Qcow2Map},
        raw::RawMap,
    },
    io::ReadAt,
    model::{ContainerFormat, DiskFormat, Inspection, Limits, Rule, Verdict, Violation},
};

/// How many compressed clusters at the file's end are unpacked to see whether they are whole. In a good file it is one.
const TAIL_CLUSTERS: u32 = 16;

/// What `input` is, and every reason to refuse it that its tables show.
///
/// # Errors
/// Only if it could not be told: what `input` says, never a violation.
pub fn inspect(input: &mut dyn ReadAt, declared: Option<DiskFormat>, limits: &Limits) -> Result<Inspection> {
    let head = input.read_up_to(0, HEAD_LENGTH)?;
    let found = detect(&head);
    let mut inspection = Inspection {
        disk_format: match found {
            Found::Disk(format) => Some(format),
            Found::Other { .. } => None,
        },
        container_format: ContainerFormat::Bare,
        virtual_size: None,
        size: None,
        verdict: Verdict::Accepted,
        reasons: Vec::new(),
    };
    match settle(found, declared) {
        Err(violation) => inspection.reasons.push(violation),
        Ok(Reader::Flat(format)) => inspect_flat(input, format, limits, &mut inspection)?,
        Ok(Reader::Qcow2) => inspect_qcow2(input, &head, limits, &mut inspection)?,
    }
    inspection.size = input.length();
    if !inspection.reasons.is_empty() {
        inspection.verdict = Verdict::Refused;
    }
    Ok(inspection)
}

fn inspect_flat(
    input: &mut dyn ReadAt,
    format: DiskFormat,
    limits: &Limits,
    inspection: &mut Inspection,
) -> Result<()> {
    inspection.disk_format = Some(format);
    inspection.virtual_size = input.length();
    match RawMap::new(format, input.length(), limits) {
        Ok(_) => Ok(()),
        Err(error) => keep(error, inspection),
    }
}

fn inspect_qcow2(input: &mut dyn ReadAt, head: &[u8], limits: &Limits, inspection: &mut Inspection) -> Result<()> {
    let header = match Header::parse(head, input.length(), limits) {
        Ok(header) => header,
        Err(violations) => {
            inspection.reasons = violations;
            return Ok(());
        }
    };
    inspection.virtual_size = Some(header.virtual_size());
    let walked = Qcow2Map::with_header(input, header, limits).and_then(|mut map| walk(input, &mut map));
    walked.or_else(|error| keep(error, inspection))
}

/// Resolves the whole disk, and unpacks what the file's end may have cut.
fn walk(input: &mut dyn ReadAt, map: &mut dyn DiskMap) -> Result<()> {
    let size = map.virtual_size().unwrap_or(0);
    let (mut guest, mut tail) = (0_u64, 0_u32);
    while guest < size {
        let mapping = map.resolve(input, guest, size.saturating_sub(guest))?;
        guest = guest.saturating_add(mapping.length);
        if let Place::Packed { host, host_length, codec, unpacked_length, .. } = mapping.place {
            let end = host.saturating_add(u64::from(host_length));
            if tail < TAIL_CLUSTERS && input.length().is_some_and(|length| end > length) {
                tail = tail.saturating_add(1);
                let packed = input.read_up_to(host, usize::try_from(host_length).unwrap_or(usize::MAX))?;
                let mut unpacked = vec![0; usize::try_from(unpacked_length).unwrap_or(0)];
                codec.unpack(&packed, &mut unpacked).map_err(|_| cut(host, packed.len()))?;
            }
        }
    }
    input.length().map_or(Ok(()), |length| map.check_length(length))
}

fn cut(host: u64, length: usize) -> Error {
    let message = format!("the file ends {length} bytes into a compressed cluster: the download was cut short");
    Violation::new(Rule::Truncated, "compressed_cluster", format!("{host:#x}"), message).into()
}

/// Keeps a violation as a reason; other errors go on.
fn keep(error: Error, inspection: &mut Inspection) -> Result<()> {
    match error.violation() {
        Some(violation) => {
            inspection.reasons.push(violation.clone());
            Ok(())
        }
        None => Err(error),
    }
}
