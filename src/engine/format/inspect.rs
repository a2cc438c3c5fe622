//! Inspection: everything that would refuse an image at import and can be seen without moving its data.
//!
//! Knows what import does with tables; must not unpack more than the one stream that the file's end may have cut.

use crate::{
    error::{Error, Result},
    format::{
        DiskMap, Order, Place, Shape,
        ambiguity::{TAIL, check_head, check_tail},
        detect::{Found, settle},
        open::{Judged, judge, recognise},
        stated::stated_size,
    },
    io::ReadAt,
    model::{DiskFormat, Inspection, Limits, Rule, Verdict, Violation},
};

/// How many compressed clusters at the file's end are unpacked to see whether they are whole. In a good file it is one.
const TAIL_CLUSTERS: u32 = 16;

/// What `input` is, and every reason to refuse it that its tables show.
///
/// # Errors
/// Only if it could not be told: what `input` says, never a violation.
pub fn inspect(input: &mut dyn ReadAt, declared: Option<DiskFormat>, limits: &Limits) -> Result<Inspection> {
    inspect_as(input, &Shape::Whole, declared, limits)
}

/// The same of an input of which it is known how a disk lies in it.
///
/// # Errors
/// As `inspect`.
pub fn inspect_as(
    input: &mut dyn ReadAt,
    shape: &Shape,
    declared: Option<DiskFormat>,
    limits: &Limits,
) -> Result<Inspection> {
    let (head, found) = recognise(input, shape, declared)?;
    let mut inspection = Inspection::new(match found {
        Found::Disk(format) => Some(format),
        Found::Other { .. } => None,
    });
    match settle(found, declared) {
        Err(violation) => inspection.reasons.push(violation),
        Ok(reader) => {
            let Judged { virtual_size, map } = judge(reader, input, shape, &head, limits, Order::Tables)?;
            inspection.virtual_size = virtual_size.or_else(|| stated_size(reader, &head));
            match map {
                Err(violations) => inspection.reasons = violations,
                Ok(map) => look(input, map, &mut inspection)?,
            }
            if let Found::Disk(format) = found {
                inspection.reasons.extend(check_head(&head, format).err());
            }
            if *shape == Shape::Whole {
                look_at_end(input, &mut inspection)?;
            }
        }
    }
    inspection.size = input.length();
    if !inspection.reasons.is_empty() {
        inspection.verdict = Verdict::Refused;
    }
    Ok(inspection)
}

fn look(input: &mut dyn ReadAt, mut map: Box<dyn DiskMap>, inspection: &mut Inspection) -> Result<()> {
    let walked = walk(input, map.as_mut());
    inspection.disk_format = Some(map.format());
    inspection.virtual_size = map.virtual_size();
    match walked {
        Ok(()) => Ok(()),
        Err(error) => match error.violation() {
            Some(violation) => {
                inspection.reasons.push(violation.clone());
                Ok(())
            }
            None => Err(error),
        },
    }
}

/// Looks whether the file ends as one of another format.
fn look_at_end(input: &mut dyn ReadAt, inspection: &mut Inspection) -> Result<()> {
    if let (Some(length), Some(format)) = (input.length(), inspection.disk_format) {
        let tail = input.read_up_to(length.saturating_sub(TAIL as u64), TAIL)?;
        inspection.reasons.extend(check_tail(&tail, format).err());
    }
    Ok(())
}

/// Resolves the whole disk, if that shows anything more, and unpacks what the file's end may have cut.
fn walk(input: &mut dyn ReadAt, map: &mut dyn DiskMap) -> Result<()> {
    let size = if map.is_checked() { 0 } else { map.virtual_size().unwrap_or(0) };
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
    map.finish(input)?;
    input.length().map_or(Ok(()), |length| map.check_length(length))
}

fn cut(host: u64, length: usize) -> Error {
    let message = format!("the file ends {length} bytes into a compressed cluster: the download was cut short");
    Violation::new(Rule::Truncated, "compressed_cluster", format!("{host:#x}"), message).into()
}
