//! A plain reference decoder: walks a map to its end and unpacks cluster by cluster, one after the other.

use std::ops::Range;

use bytes::Bytes;
use vitrine_engine::{
    error::Result,
    format::{self, Order, Place},
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// An image in memory; `streamed` hides its length, as a stream does until its end.
pub struct Memory {
    pub bytes: Bytes,
    pub streamed: bool,
}

impl Memory {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), streamed: false }
    }
}

impl ReadAt for Memory {
    fn length(&self) -> Option<u64> {
        (!self.streamed).then_some(self.bytes.len() as u64)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(length).min(self.bytes.len());
        Ok(self.bytes.slice(start..end))
    }

    fn is_near(&self) -> bool {
        !self.streamed
    }
}

/// Calls `data` for every stretch that is not a hole, ascending; the virtual size. `most` is what is asked for at once.
pub fn walk(input: &mut dyn ReadAt, most: u64, limits: &Limits, data: impl FnMut(u64, &[u8])) -> Result<u64> {
    walk_data(input, most, limits, |at| at..u64::MAX, data)
}

/// As `walk`, where `stretch` tells the first stretch of the file at or after an offset that is no hole.
pub fn walk_data(
    input: &mut dyn ReadAt,
    most: u64,
    limits: &Limits,
    stretch: impl Fn(u64) -> Range<u64>,
    mut data: impl FnMut(u64, &[u8]),
) -> Result<u64> {
    let told = input.length().is_some();
    let mut map = format::open(input, None, limits, Order::Tables)?;
    let mut guest = 0;
    'disk: while map.virtual_size().is_none_or(|size| guest < size) {
        let mapping = map.resolve(input, guest, most)?;
        assert!(mapping.length > 0 && mapping.length <= most);
        match mapping.place {
            Place::Zero => {}
            Place::Raw { host } => {
                let (mut done, mut host) = (0, host);
                while done < mapping.length {
                    let next = stretch(host);
                    let hole = next.start.saturating_sub(host).min(mapping.length - done);
                    (done, host) = (done + hole, host + hole);
                    let wanted = (mapping.length - done).min(next.end - host).min(1 << 20);
                    if wanted == 0 {
                        continue;
                    }
                    let bytes = input.read_up_to(host, usize::try_from(wanted).unwrap())?;
                    if bytes.is_empty() && map.virtual_size().is_none() {
                        guest += done;
                        break 'disk;
                    } else if bytes.is_empty() {
                        assert!(!told, "resolve named bytes past a known end: {host}");
                        return Err(Violation::new(Rule::Truncated, "data", host, "the stream ended before").into());
                    }
                    data(guest + done, &bytes);
                    done += bytes.len() as u64;
                    host += bytes.len() as u64;
                }
            }
            Place::Packed { host, host_length, codec, unpacked_length, skip } => {
                let packed = input.read_up_to(host, host_length as usize)?;
                let mut cluster = vec![0; unpacked_length as usize];
                codec.unpack(&packed, &mut cluster)?;
                data(guest, &cluster[skip as usize..][..usize::try_from(mapping.length).unwrap()]);
            }
        }
        guest += mapping.length;
    }
    map.finish(input)?;
    map.check_length(end(input))?;
    Ok(map.virtual_size().unwrap_or(guest))
}

/// Length of the input, which is all here, whether it tells or not. A stream tells once its end was seen.
fn end(input: &mut dyn ReadAt) -> u64 {
    input.read_up_to(u64::MAX - 1, 1).unwrap();
    input.length().unwrap_or_else(|| input.read_up_to(0, usize::MAX).unwrap().len() as u64)
}

/// All of the disk in memory; for small ones. `most` is what is asked for at once.
pub fn content(input: &mut dyn ReadAt, most: u64) -> Result<Vec<u8>> {
    let mut disk = Vec::new();
    let size = walk(input, most, &Limits::default(), |guest, bytes| {
        let start = usize::try_from(guest).unwrap();
        disk.resize(start, 0);
        disk.extend_from_slice(bytes);
    })?;
    disk.resize(usize::try_from(size).unwrap(), 0);
    Ok(disk)
}

/// The rule by which `inspect` refuses an image, if it does.
pub fn refusals(input: &mut dyn ReadAt, declared: Option<DiskFormat>) -> Vec<String> {
    let inspection = format::inspect(input, declared, &Limits::default()).unwrap();
    inspection.reasons.iter().map(|v| v.rule.to_string()).collect()
}
