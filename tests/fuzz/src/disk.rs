//! Disk formats, each read whole: opened, resolved to its end, finished, and held against what it must be.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use vitrine_engine::{
    error::{Kind, Result},
    format::{self, Mapping, Order, Place},
    io::ReadAt,
    model::{CHUNK_SIZE, DiskFormat, Limits, Rule, Verdict, Violation},
};

use crate::{
    base,
    edited::Format,
    mend,
    sparse::{Input, Sparse},
};

/// Mappings of one pass, after which it ends: a disk in the smallest clusters is read in a moment and no more.
const MAX_MAPPINGS: u32 = 20_000;
/// Packed clusters unpacked in one pass.
const MAX_UNPACKED: u32 = 32;
/// Largest cluster that is unpacked, and what is read for it, in bytes: qcow2 has clusters of 2 MiB, vmdk may have grains of this size.
const MAX_CLUSTER: u32 = 64 << 20;

/// A disk's stretches: which part of it, and what it is.
type Stretches = Vec<(u64, u64, Content)>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Zero,
    /// Bytes of the file that begin so far behind the guest's.
    Raw(i128),
    /// The unpacked cluster's digest, and how far before the guest's bytes it begins.
    Packed(u64, i128),
}

/// What a pass found.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    size: u64,
    stretches: Stretches,
    /// Whether that is all of it.
    whole: bool,
}

/// The packed clusters of a pass.
#[derive(Default)]
struct Packed {
    /// How many there were.
    clusters: u32,
    /// Whether the last one could not be unpacked.
    damaged: bool,
}

fn limits() -> Limits {
    Limits { max_virtual_size: 64 << 20, max_table_memory: 1 << 20, ..Limits::default() }
}

/// Reads `file` as a file and as a stream, and inspects it. Whether it was read.
fn check(file: &Sparse, declared: Option<DiskFormat>) -> bool {
    let limits = limits();
    let input = |streamed| Input::new(file.clone(), streamed, 8 << 20);
    let mut packed = [Packed::default(), Packed::default()];
    let [tables, stream] = [Order::Tables, Order::Stream].map(|order| {
        let streamed = order == Order::Stream;
        let read = read(&mut input(streamed), declared, &limits, order, &mut packed[usize::from(streamed)]);
        read.map_err(|error| {
            let expected = error.kind() == Kind::Refused || streamed && error.kind() == Kind::NeedsSpill;
            assert!(expected, "{order:?}: {error}");
            error
        })
    });
    let inspection = format::inspect(&mut input(false), declared, &limits).unwrap();
    assert_eq!(inspection.reasons.is_empty(), inspection.verdict == Verdict::Accepted);
    if let Ok(disk) = &tables {
        assert_eq!(inspection.verdict, Verdict::Accepted, "read, but {:?}", inspection.reasons);
        assert!(disk.size <= limits.max_virtual_size, "{} bytes are more than may be", disk.size);
        assert!(
            inspection.virtual_size.is_none_or(|size| size == disk.size),
            "{:?} {}",
            inspection.virtual_size,
            disk.size
        );
    }
    if let (Err(error), Verdict::Accepted) = (&tables, inspection.verdict) {
        // Only what is packed has to be unpacked to be judged.
        assert!(packed[0].damaged, "accepted by inspection, but {error}");
    }
    let taken = tables.is_ok();
    match (tables, stream) {
        (Ok(tables), Ok(stream)) => assert_eq!(tables, stream, "as a file and as a stream"),
        (Ok(_), Err(error)) => {
            // The markers of a vmdk, which only a stream is read by, may be damaged where its tables are not.
            let may_differ = error.kind() == Kind::NeedsSpill || inspection.disk_format == Some(DiskFormat::Vmdk);
            assert!(may_differ, "read as a file, but as a stream {error}");
        }
        (Err(error), Ok(_)) => panic!("read as a stream, but as a file {error}"),
        (Err(_), Err(_)) => {}
    }
    taken
}

/// One pass, as an import makes it; bytes are asked about, and of clusters only those that are packed are read.
fn read(
    input: &mut Input,
    declared: Option<DiskFormat>,
    limits: &Limits,
    order: Order,
    packed: &mut Packed,
) -> Result<Disk> {
    let mut map = format::open(input, declared, limits, order)?;
    let mut disk = Disk { size: 0, stretches: Vec::new(), whole: true };
    let (mut guest, mut mappings) = (0, 0);
    while map.virtual_size().is_none_or(|size| guest < size) {
        if mappings == MAX_MAPPINGS {
            disk.whole = false;
            break;
        }
        mappings += 1;
        let most = map.virtual_size().map_or(CHUNK_SIZE, |size| size - guest);
        let told = input.length();
        let mapping = map.resolve(input, guest, most)?;
        assert!((1..=most).contains(&mapping.length), "{} of {most} bytes", mapping.length);
        let (length, content) = follow(input, &mapping, guest, map.virtual_size().is_some(), told, packed)?;
        push(&mut disk.stretches, guest, guest + length, content);
        guest += length;
        if length < mapping.length {
            break;
        }
    }
    if disk.whole {
        map.finish(input)?;
        map.check_length(input.end())?;
        assert!(map.virtual_size().is_none_or(|size| size == guest), "{:?} bytes, read {guest}", map.virtual_size());
    }
    let tail = input.read_up_to(input.end().saturating_sub(format::TAIL as u64), format::TAIL)?;
    format::check_tail(&tail, map.format())?;
    disk.size = map.virtual_size().unwrap_or(guest);
    Ok(disk)
}

/// How long a mapping is, fewer bytes only where a stream of unknown size ends, and what it holds.
fn follow(
    input: &mut Input,
    mapping: &Mapping,
    guest: u64,
    sized: bool,
    told: Option<u64>,
    packed: &mut Packed,
) -> Result<(u64, Content)> {
    let guest = i128::from(guest);
    match &mapping.place {
        Place::Zero => Ok((mapping.length, Content::Zero)),
        Place::Raw { host } => {
            let length = input.available(*host, usize::try_from(mapping.length).unwrap())? as u64;
            if length < mapping.length && sized {
                assert!(told.is_none(), "bytes past a known end: {host}");
                return Err(Violation::new(Rule::Truncated, "data", host, "the stream ended before").into());
            }
            Ok((length, Content::Raw(i128::from(*host) - guest)))
        }
        Place::Packed { host, host_length, codec, unpacked_length, skip } => {
            assert!(*host_length <= MAX_CLUSTER && *unpacked_length <= MAX_CLUSTER, "{mapping:?}");
            assert!(u64::from(*skip) + mapping.length <= u64::from(*unpacked_length), "{mapping:?}");
            let mut hasher = DefaultHasher::new();
            packed.clusters += 1;
            if packed.clusters <= MAX_UNPACKED {
                let bytes = input.read_up_to(*host, usize::try_from(*host_length).unwrap())?;
                let mut cluster = vec![0; usize::try_from(*unpacked_length).unwrap()];
                packed.damaged = true;
                codec.unpack(&bytes, &mut cluster)?;
                packed.damaged = false;
                cluster.hash(&mut hasher);
            }
            Ok((mapping.length, Content::Packed(hasher.finish(), guest - i128::from(*skip))))
        }
    }
}

/// Stretches that go on as they began are one, however they were told.
fn push(stretches: &mut Stretches, start: u64, end: u64, content: Content) {
    match stretches.last_mut() {
        Some((_, last, same)) if *same == content => *last = end,
        _ => stretches.push((start, end, content)),
    }
}

/// Offsets for images of clusters and tables of 64 KiB and less.
const SMALL_PARTS: &[u64] = &[
    0,
    512,
    4 << 10,
    8 << 10,
    12 << 10,
    16 << 10,
    32 << 10,
    48 << 10,
    64 << 10,
    128 << 10,
    192 << 10,
    256 << 10,
    320 << 10,
];

/// The target `qcow2`.
pub fn qcow2(data: &[u8]) -> bool {
    let format = Format { bases: base::qcow2, parts: SMALL_PARTS, mend: mend::nothing };
    check(&format.file(data), None)
}

/// The target `vmdk`: with grain tables, for streams, and descriptors.
pub fn vmdk(data: &[u8]) -> bool {
    let format = Format { bases: base::vmdk, parts: SMALL_PARTS, mend: mend::nothing };
    check(&format.file(data), None)
}

/// The target `vhd`.
pub fn vhd(data: &[u8]) -> bool {
    const PARTS: &[u64] = &[0, 512, 1536, 2048, 9 << 20];
    let format = Format { bases: base::vhd, parts: PARTS, mend: mend::vhd };
    let file = format.file(data);
    let found = check(&file, None);
    check(&file, Some(DiskFormat::Vhd)) | found
}

/// The target `vhdx`: with its log.
pub fn vhdx(data: &[u8]) -> bool {
    const K: u64 = 1 << 10;
    const PARTS: &[u64] = &[
        0,
        64 * K,
        128 * K,
        192 * K,
        256 * K,
        1024 * K,
        1028 * K,
        1032 * K,
        1088 * K,
        2048 * K,
        2112 * K,
        3072 * K,
        3076 * K,
        4096 * K,
    ];
    let format = Format { bases: base::vhdx, parts: PARTS, mend: mend::vhdx };
    check(&format.file(data), None)
}

/// The target `vdi`.
pub fn vdi(data: &[u8]) -> bool {
    const PARTS: &[u64] = &[0, 64, 256, 512, 1 << 20];
    let format = Format { bases: base::vdi, parts: PARTS, mend: mend::nothing };
    check(&format.file(data), None)
}

/// The target `ploop`.
pub fn ploop(data: &[u8]) -> bool {
    const PARTS: &[u64] = &[0, 64, 1 << 20, 2 << 20];
    let format = Format { bases: base::ploop, parts: PARTS, mend: mend::nothing };
    check(&format.file(data), None)
}

/// The target `raw`: what a file is, by its first and last bytes, and what it is declared to be, by the input's first.
pub fn raw(data: &[u8]) -> bool {
    const DECLARED: [Option<DiskFormat>; 7] = [
        None,
        Some(DiskFormat::Raw),
        Some(DiskFormat::Iso),
        Some(DiskFormat::Ami),
        Some(DiskFormat::Ari),
        Some(DiskFormat::Aki),
        Some(DiskFormat::Vhd),
    ];
    const PARTS: &[u64] = &[0, 32 << 10, (128 << 10) - 512];
    let Some((declared, rest)) = data.split_first() else { return false };
    let format = Format { bases: base::raw, parts: PARTS, mend: mend::nothing };
    check(&format.file(rest), DECLARED[usize::from(*declared) % DECLARED.len()])
}
