//! What vhdx and ploop are both held to: disks of every size and pattern, files made to hurt, damage at random.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    path::Path,
};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use vitrine_engine::{
    error::{Error, Kind, Result},
    format,
    io::{Feed, FileReader, Keep, ReadAt, Spill, Window, WindowLimits},
    model::{Compression, DiskFormat, Limits, OutputFormat, Subformat, Verdict, Violation},
};

use crate::{
    disk::{Memory, walk, walk_data},
    mutated::{self, LEAST},
    qemu::Qemu,
    written::{chunks, encode},
};

/// The data of a disk: where, and the bytes.
pub type Parts = Vec<(u64, Bytes)>;

/// The sectors of a disk that are not zeros.
pub type Sectors = BTreeMap<u64, Vec<u8>>;

fn enter(sectors: &mut Sectors, mut at: u64, mut data: &[u8]) {
    while !data.is_empty() {
        let within = usize::try_from(at % 512).unwrap();
        let (part, rest) = data.split_at(data.len().min(512 - within));
        if part.iter().any(|byte| *byte != 0) {
            let sector = sectors.entry(at / 512).or_insert_with(|| vec![0; 512]);
            sector[within..within + part.len()].copy_from_slice(part);
        }
        at += part.len() as u64;
        data = rest;
    }
}

/// The sectors that hold `parts`, later ones over earlier ones.
pub fn sectors_of(parts: &Parts) -> Sectors {
    let mut sectors = Sectors::new();
    parts.iter().for_each(|(at, data)| enter(&mut sectors, *at, data));
    sectors
}

/// What a guest reads: the disk's size and its sectors.
pub fn read(input: &mut dyn ReadAt, most: u64) -> Result<(u64, Sectors)> {
    let mut sectors = Sectors::new();
    let size = walk(input, most, &Limits::default(), |at, data| enter(&mut sectors, at, data))?;
    Ok((size, sectors))
}

/// The same of a file, where it has data: what a flat disk holds, holes or not, is more than can be read.
fn read_file(input: &mut FileReader, image: &Path, most: u64) -> Result<(u64, Sectors)> {
    let file = File::open(image).unwrap();
    let mut sectors = Sectors::new();
    let stretch = |at| match seek(&file, SeekFrom::Data(at)) {
        Ok(start) => start..seek(&file, SeekFrom::Hole(start)).unwrap(),
        Err(error) => {
            assert_eq!(error, Errno::NXIO);
            u64::MAX..u64::MAX
        }
    };
    let size = walk_data(input, most, &Limits::default(), stretch, |at, data| enter(&mut sectors, at, data))?;
    Ok((size, sectors))
}

struct Pieces(VecDeque<Bytes>);

impl Feed for Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.pop_front())
    }
}

/// The image as a stream without ranges, in pieces of an odd size, of which little is kept in memory.
pub fn stream(image: &Bytes, told: bool) -> impl ReadAt + use<> {
    window(image, told, Keep::Unread)
}

fn window(image: &Bytes, told: bool, keep: Keep) -> impl ReadAt + use<> {
    let pieces = (0..image.len()).step_by(77_777).map(|at| image.slice(at..image.len().min(at + 77_777)));
    let limits = WindowLimits { memory: 1 << 20, tables: 1 << 20 };
    let spill = Spill::new(&std::env::temp_dir(), 1 << 30);
    let length = told.then_some(image.len() as u64);
    Window::new(Pieces(pieces.collect::<VecDeque<_>>()), length, keep, spill, limits, None)
}

/// Holds an image against the disk that should be in it, read in every way.
pub fn assert_holds(image: &Path, disk_format: DiskFormat, size: u64, expected: &Sectors, what: &str) {
    let mut file = FileReader::open(image).unwrap();
    for most in [u64::MAX, 4 << 20, 333_333] {
        // Asking for little of much takes long and shows nothing new.
        if most > size / 100_000 {
            let found = read_file(&mut file, image, most).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(found.0 == size && found.1 == *expected, "{what}: read as another disk");
        }
    }
    let inspection = format::inspect(&mut file, Some(disk_format), &Limits::default()).unwrap();
    assert!(inspection.reasons.is_empty(), "{what}: {:?}", inspection.reasons);
    assert_eq!(inspection.virtual_size, Some(size), "{what}");
    if std::fs::metadata(image).unwrap().len() < 256 << 20 {
        let bytes = Bytes::from(std::fs::read(image).unwrap());
        for told in [true, false] {
            let found = match read(&mut stream(&bytes, told), u64::MAX) {
                // As an import does.
                Err(error) if error.kind() == Kind::NeedsSpill => read(&mut window(&bytes, told, Keep::All), u64::MAX),
                found => found,
            };
            let found = found.unwrap_or_else(|e| panic!("{what}, streamed: {e}"));
            assert!(found.0 == size && found.1 == *expected, "{what}: streamed as another disk");
        }
    }
}

/// Has qemu read every MiB of a large disk that holds something: comparing all of it takes minutes, where qemu does not give up.
pub fn assert_qemu_reads(qemu: &Qemu, format: &str, image: &Path, expected: &Sectors, what: &str) {
    let out = qemu.path("part");
    let blocks: BTreeSet<u64> = expected.keys().map(|sector| sector / 2048).collect();
    for block in blocks {
        let (input, output) = (format!("if={}", image.display()), format!("of={}", out.display()));
        // What is skipped counts as well.
        let (skip, count) = (format!("skip={block}"), format!("count={}", block + 1));
        qemu.img(&["dd", "-f", format, "-O", "raw", "bs=1M", &count, &skip, &input, &output]);
        let mut found = Sectors::new();
        enter(&mut found, block << 20, &std::fs::read(&out).unwrap());
        let wanted = expected.range(block * 2048..(block + 1) * 2048).map(|(at, data)| (*at, data.clone()));
        assert!(found == wanted.collect(), "{what}: qemu reads something else in MiB {block}");
    }
}

/// An output format without compression.
pub fn output(disk_format: DiskFormat, subformat: Option<Subformat>) -> OutputFormat {
    OutputFormat { disk_format, subformat, compression: Compression::None, cluster_size: 64 << 10 }
}

/// An image of this disk in memory, as we write it.
pub fn image(output: OutputFormat, size: u64, parts: &Parts) -> Vec<u8> {
    let mut image = Vec::new();
    let length = encode(output, size, true, &chunks(size, parts), |write| {
        let end = usize::try_from(write.offset).unwrap() + write.bytes.len();
        image.resize(image.len().max(end), 0);
        image[end - write.bytes.len()..end].copy_from_slice(&write.bytes);
    });
    image.resize(usize::try_from(length).unwrap(), 0);
    image
}

fn violation(error: &Error) -> Violation {
    error.violation().cloned().unwrap_or_else(|| panic!("no violation: {error}"))
}

/// Complains unless inspection and import refuse `image` for `expected` (rule, field, value), and a stream of it is refused as well:
/// by the same rule, or because it ends before what it names.
pub fn complaint(name: &str, image: &Bytes, expected: (&str, &str, &str)) -> Option<String> {
    let seen = |v: &Violation| (v.rule.to_string(), v.field.clone(), v.value.clone());
    let wanted = (expected.0.to_owned(), expected.1.to_owned(), expected.2.to_owned());
    let inspection = format::inspect(&mut Memory::new(image.clone()), None, &Limits::default()).unwrap();
    let inspected: Vec<_> = inspection.reasons.iter().map(seen).collect();
    let imported = read(&mut Memory::new(image.clone()), u64::MAX).map_err(|e| seen(&violation(&e)));
    let streamed = read(&mut stream(image, false), u64::MAX).map_err(|e| violation(&e).rule.to_string());
    let rules = [expected.0, "truncated"];
    let fits = inspected == [wanted.clone()]
        && imported.as_ref().err() == Some(&wanted)
        && streamed.as_ref().err().is_some_and(|rule| rules.contains(&rule.as_str()));
    let text = || {
        let (imported, streamed) = (imported.as_ref().err(), streamed.as_ref().err());
        format!("{name}: expected {wanted:?}, inspected {inspected:?}, imported {imported:?}, streamed {streamed:?}")
    };
    (!fits).then(text)
}

/// Cut anywhere, an image is refused, unless what was cut is nothing but zeros of a last block.
pub fn assert_refused_when_cut(image: &[u8], places: impl IntoIterator<Item = usize>) {
    for at in places {
        let cut = Bytes::copy_from_slice(&image[..at]);
        let inspection = format::inspect(&mut Memory::new(cut.clone()), None, &Limits::default()).unwrap();
        assert_eq!(inspection.verdict, Verdict::Refused, "inspection of the first {at} bytes");
        for input in [&mut Memory::new(cut.clone()) as &mut dyn ReadAt, &mut stream(&cut, false)] {
            let error = read(input, u64::MAX).map(|_| ()).expect_err(&format!("import of the first {at} bytes"));
            assert_eq!(error.kind(), Kind::Refused, "{at}: {error}");
        }
    }
}

/// Mutated files per seed image.
const FILES: u32 = 1000;

/// Damages `seed` at random, mostly in `tables`, lets `seal` make checksums right again, and reads it.
pub fn assert_survives_damage(seed: &[u8], tables: &[std::ops::Range<usize>], seal: impl Fn(&mut Vec<u8>)) {
    let limits = Limits { max_virtual_size: 1 << 30, max_table_memory: 1 << 20, ..Limits::default() };
    let value = prop_oneof![Just(0), Just(u64::MAX), Just(6), Just(1 << 62), any::<u64>(), 0_u64..1 << 24];
    let places: Vec<usize> = tables.iter().cloned().flatten().chain([seed.len() / 2]).collect();
    let edit = (any::<Index>(), value, 1_usize..=8);
    let damage = (prop::collection::vec(edit, 1..5), any::<bool>(), prop::option::weighted(0.1, any::<Index>()));
    let apply = |(edits, sealed, cut): (Vec<(Index, u64, usize)>, bool, Option<Index>)| {
        let mut bytes = seed.to_vec();
        for (index, value, width) in edits {
            let at = *index.get(&places);
            let width = width.min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if sealed {
            seal(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.into()
    };
    mutated::assert_survives((FILES, LEAST), &damage, &limits, apply, |input| {
        walk(input, u64::MAX, &limits, |_, _| {})
    });
}
