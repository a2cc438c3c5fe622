//! What the tests of formats made of large blocks have in common: disks, readers, and files that break one rule.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use vitrine_engine::{
    error::Error,
    format::{self, Order},
    model::{DiskFormat, Limits, OutputFormat},
};

use crate::{
    disk::{Memory, content, walk},
    mutated::{self, Edit, LEAST, apply, damage},
    qemu::Qemu,
    written::{bytes, chunks, encode_to_file, write_raw},
};

/// Reads the image in every way and expects the disk; `format` is what it must be found to be.
pub fn assert_reads_as(image: &Path, expected: &[u8], format: DiskFormat, what: &str) {
    let image = Bytes::from(fs::read(image).unwrap());
    for (streamed, most) in [(false, u64::MAX), (false, 5000), (true, u64::MAX), (true, 4 << 20)] {
        let found =
            content(&mut Memory { bytes: image.clone(), streamed }, most).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == expected, "{what}: read as something else (streamed: {streamed}, most: {most})");
    }
    for declared in [None, Some(format)] {
        let inspection = format::inspect(&mut Memory::new(image.clone()), declared, &Limits::default()).unwrap();
        assert!(inspection.reasons.is_empty(), "{what}: {:?}", inspection.reasons);
        assert_eq!(inspection.disk_format, Some(format), "{what}");
        assert_eq!(inspection.virtual_size, Some(expected.len() as u64), "{what}");
    }
}

/// A good image made by qemu of some data on a disk of 5 MiB.
pub fn sample(driver: &str, options: &str) -> Vec<u8> {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    write_raw(&raw, 5 << 20, &[(0, bytes(1, 70_000, true)), (4 << 20, bytes(2, 300_000, false))]);
    qemu.img(&["convert", "-f", "raw", "-O", driver, "-o", options, raw.to_str().unwrap(), image.to_str().unwrap()]);
    fs::read(&image).unwrap()
}

/// Rule, field and value of a refusal.
pub type Refusal = (String, String, String);

fn refusal(error: &Error) -> Refusal {
    let violation = error.violation().unwrap_or_else(|| panic!("no violation: {error}"));
    (violation.rule.to_string(), violation.field.clone(), violation.value.clone())
}

/// What an import does with a format, without moving data.
fn import(input: &mut Memory, declared: Option<DiskFormat>, limits: &Limits) -> Result<(), Error> {
    let mut map = format::open(input, declared, limits, Order::Stream)?;
    let mut at = 0;
    while map.virtual_size().is_none_or(|size| at < size) {
        at += map.resolve(input, at, u64::MAX)?.length;
    }
    map.finish(input)?;
    map.check_length(input.bytes.len() as u64)
}

/// How import and inspection refuse the image, and that they agree; `None` if they take it.
pub fn refused(image: &[u8], declared: Option<DiskFormat>, limits: &Limits) -> Option<Refusal> {
    let bytes = Bytes::copy_from_slice(image);
    let inspection = format::inspect(&mut Memory::new(bytes.clone()), declared, limits).unwrap();
    let inspected = inspection.reasons.first().map(|v| (v.rule.to_string(), v.field.clone(), v.value.clone()));
    for streamed in [false, true] {
        let mut input = Memory { bytes: bytes.clone(), streamed };
        let imported = import(&mut input, declared, limits).err().map(|error| refusal(&error));
        let rule = |found: &Option<Refusal>| found.as_ref().map(|(rule, ..)| rule.clone());
        assert_eq!(rule(&imported), rule(&inspected), "streamed: {streamed}; {imported:?} and {inspected:?}");
    }
    inspected
}

/// One damaged file: what is done to a good one, and the rule and field by which it is refused.
pub type Case<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>), &'a str, &'a str);

/// Holds that each case breaks its rule and that the good file breaks none.
pub fn assert_refused(good: &[u8], cases: &[Case<'_>]) {
    let limits = Limits::default();
    assert_eq!(refused(good, None, &limits), None, "the file that is damaged must be good before");
    for (name, spoil, rule, field) in cases {
        let mut image = good.to_vec();
        spoil(&mut image);
        let found = refused(&image, None, &limits);
        let found = found.as_ref().map(|(rule, field, _)| (rule.as_str(), field.as_str()));
        assert_eq!(found, Some((*rule, *field)), "{name}");
    }
}

/// Damages a file at random, `mend`s what only hides the damage, and holds that it is read or refused and nothing else.
pub fn assert_survives(seed: &[u8], files: u32, mend: impl Fn(&mut Vec<u8>)) {
    let limits = Limits { max_virtual_size: 64 << 20, max_table_memory: 1 << 20, ..Limits::default() };
    let apply = |(edits, cut): (Vec<Edit>, _)| {
        let mut image = apply(seed, &edits, cut).to_vec();
        mend(&mut image);
        image.into()
    };
    mutated::assert_survives((files, LEAST), &damage(), &limits, apply, |input| {
        walk(input, u64::MAX, &limits, |_, _| {})
    });
}

/// A sparse image of a disk of `size` bytes with two parts far apart, written by ourselves; its path and where the parts lie.
pub fn huge(qemu: &Qemu, output: OutputFormat, size: u64, told: bool) -> (PathBuf, [u64; 2]) {
    let image = qemu.path("huge");
    let at = [size / 3 / 4096 * 4096, size - 512];
    let parts = [(at[0], bytes(1, 100_000, true)), (at[1], bytes(2, 512, true))];
    encode_to_file(output, size, told, &chunks(size, &parts), &image);
    (image, at)
}
