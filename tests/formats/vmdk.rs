//! vmdk: what qemu-img writes read by us, what we write read by qemu-img, streams as VMware writes them, and files made to hurt.

mod hostile;
mod made;
mod mutated;
mod read;
mod streams;
mod written;

use bytes::Bytes;
use vitrine_engine::{
    error::Result,
    format::{self, Order, Place},
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

use crate::disk::Memory;

/// Walks the disk as an import does, `most` bytes at once, and gives every stretch that is not a hole; its virtual size.
pub fn walk(
    input: &mut dyn ReadAt,
    order: Order,
    most: u64,
    limits: &Limits,
    mut data: impl FnMut(u64, &[u8]),
) -> Result<u64> {
    let mut map = format::open(input, Some(DiskFormat::Vmdk), limits, order)?;
    let size = map.virtual_size().unwrap();
    let mut guest = 0;
    while guest < size {
        let mapping = map.resolve(input, guest, most)?;
        assert!(mapping.length > 0 && mapping.length <= most.min(size - guest), "{mapping:?}");
        match mapping.place {
            Place::Zero => {}
            Place::Raw { host } => {
                let mut done = 0;
                while done < mapping.length {
                    let wanted = usize::try_from(mapping.length - done).unwrap().min(1 << 20);
                    let bytes = input.read_up_to(host + done, wanted)?;
                    if bytes.is_empty() {
                        return Err(Violation::new(Rule::Truncated, "data", host, "the stream ended before").into());
                    }
                    data(guest + done, &bytes);
                    done += bytes.len() as u64;
                }
            }
            Place::Packed { host, host_length, codec, unpacked_length, skip } => {
                let packed = input.read_up_to(host, host_length as usize)?;
                let mut grain = vec![0xee; unpacked_length as usize];
                codec.unpack(&packed, &mut grain)?;
                data(guest, &grain[skip as usize..][..usize::try_from(mapping.length).unwrap()]);
            }
        }
        guest += mapping.length;
    }
    map.finish(input)?;
    let end = match input.length() {
        Some(length) => length,
        None => input.read_up_to(0, usize::MAX)?.len() as u64,
    };
    map.check_length(end)?;
    Ok(size)
}

/// All of the disk in memory.
pub fn content(input: &mut dyn ReadAt, order: Order, most: u64) -> Result<Vec<u8>> {
    let mut disk = Vec::new();
    let size = walk(input, order, most, &Limits::default(), |guest, bytes| {
        disk.resize(usize::try_from(guest).unwrap(), 0);
        disk.extend_from_slice(bytes);
    })?;
    disk.resize(usize::try_from(size).unwrap(), 0);
    Ok(disk)
}

/// The same of a file in memory, which as a stream does not tell its length.
pub fn content_of(bytes: &Bytes, order: Order) -> Result<Vec<u8>> {
    content(&mut Memory { bytes: bytes.clone(), streamed: order == Order::Stream }, order, u64::MAX)
}

/// Bytes that compress (`n / 50` in digits) or do not.
pub fn bytes(seed: u32, length: usize, noise: bool) -> Vec<u8> {
    let mut state = seed;
    if noise {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        return (0..length).map(|_| next()).collect();
    }
    (0..).flat_map(|n: u32| (seed + n / 50).to_string().into_bytes()).take(length).collect()
}

/// Where bytes lie on a disk, and the bytes.
pub type Parts = Vec<(u64, Vec<u8>)>;

/// What lies on a disk of `size` bytes: where, and the bytes. One for each pattern.
pub fn patterns(size: u64) -> Vec<(&'static str, Parts)> {
    let clip = |parts: Parts| -> Parts {
        let inside = parts.into_iter().filter(|(at, _)| *at < size);
        inside
            .map(|(at, mut bytes)| {
                bytes.truncate(usize::try_from(size - at).unwrap());
                (at, bytes)
            })
            .collect()
    };
    let scattered = (0..40_u32).map(|n| {
        let at = u64::from(n).wrapping_mul(2_654_435_761) % size;
        (at, bytes(n, 1 + 3001 * n as usize, n % 2 == 0))
    });
    let full = u32::try_from(size.min(9 << 20).div_ceil(1 << 20)).unwrap();
    vec![
        ("empty", Vec::new()),
        ("first", vec![(0, vec![7])]),
        ("last", vec![(size - 1, vec![9])]),
        ("scattered", clip(scattered.collect())),
        ("full", clip((0..full).map(|n| (u64::from(n) << 20, bytes(n + 1, 1 << 20, n % 2 == 1))).collect())),
    ]
}
