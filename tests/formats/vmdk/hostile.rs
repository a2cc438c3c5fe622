//! Files made to hurt: each breaks one rule of a good image, and is refused by it, in import as in inspection.

mod streams;
mod text;

use bytes::Bytes;
use vitrine_engine::{
    format::{self, Order},
    model::{DiskFormat, Limits, Rule},
};

use super::{
    bytes, content_of,
    made::{Sparse, Stream},
};
use crate::disk::Memory;

/// Where inspection sees the problem.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// In the header, the descriptor, a table, or between the grains.
    Tables,
    /// Only when grains are read.
    Data,
}

/// A broken file.
struct Case {
    name: String,
    bytes: Bytes,
    rule: Rule,
    /// What the violation's field and value must contain.
    says: (&'static str, String),
    seen: Seen,
}

fn complaints(case: &Case) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut judge = |way: &str, violation: Option<(Rule, String, String)>| {
        let good = violation.as_ref().is_some_and(|(rule, field, value)| {
            *rule == case.rule && field.contains(case.says.0) && value.contains(&case.says.1)
        });
        if !good {
            let Case { name, rule, says, .. } = case;
            complaints.push(format!("{name}, {way}: {violation:?} instead of {rule:?} with {says:?}"));
        }
    };
    for order in [Order::Tables, Order::Stream] {
        let error = content_of(&case.bytes, order).err();
        let violation = error.map(|e| e.violation().unwrap_or_else(|| panic!("{}: {e}", case.name)).clone());
        judge(&format!("{order:?}"), violation.map(|v| (v.rule, v.field, v.value)));
    }
    let inspected =
        format::inspect(&mut Memory::new(case.bytes.clone()), Some(DiskFormat::Vmdk), &Limits::default()).unwrap();
    if case.seen == Seen::Tables {
        // The first reason is the one that import gives.
        judge("inspect", inspected.reasons.into_iter().next().map(|v| (v.rule, v.field, v.value)));
    }
    complaints
}

fn assert_refused(cases: &[Case]) {
    let complaints: Vec<String> = cases.iter().flat_map(complaints).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn case(name: &str, bytes: impl Into<Bytes>, rule: Rule, says: (&'static str, &str), seen: Seen) -> Case {
    Case { name: name.into(), bytes: bytes.into(), rule, says: (says.0, says.1.into()), seen }
}

/// A sparse disk with these bytes of its header changed.
fn header(name: &str, at: usize, bytes: &[u8], rule: Rule, says: (&'static str, &str)) -> Case {
    let mut made = Sparse::new(1);
    made.set(at, bytes);
    case(name, made.bytes, rule, says, Seen::Tables)
}

#[test]
fn every_rule_of_the_header() {
    let u64s = |value: u64| value.to_le_bytes();
    assert_refused(&[
        header("a version from the future", 4, &[4], Rule::Version, ("version", "4")),
        header("an unknown flag", 8, &[1 | 8], Rule::UnknownIncompatibleFeature, ("flags", "0x8")),
        header("compressed without markers", 10, &[1], Rule::InvalidField, ("flags", "0x10001")),
        header("markers without compression", 10, &[2], Rule::InvalidField, ("flags", "0x20001")),
        header("another compression", 77, &[2], Rule::InvalidField, ("compressAlgorithm", "2")),
        header("a compression of nothing", 77, &[1], Rule::InvalidField, ("flags", "0x1")),
        header("not closed", 72, &[1], Rule::Dirty, ("uncleanShutdown", "1")),
        header("a transfer as text", 75, b"\n\n", Rule::Corrupt, ("singleEndLineChar", "0a")),
        header("no disk of its own", 12, &u64s(0), Rule::ExternalDataFile, ("capacity", "0")),
        header("too large a disk", 12, &u64s(1 << 36), Rule::VirtualSizeLimit, ("capacity", "68719476736")),
        header("a disk past numbers", 12, &u64s(u64::MAX), Rule::VirtualSizeLimit, ("capacity", "1844")),
        header("grains of no power of two", 20, &u64s(129), Rule::ClusterSize, ("grainSize", "129")),
        header("too small grains", 20, &u64s(4), Rule::ClusterSize, ("grainSize", "4")),
        header("no grains", 20, &u64s(0), Rule::ClusterSize, ("grainSize", "0")),
        header("too large grains", 20, &u64s(8192), Rule::ClusterSize, ("grainSize", "8192")),
        header("tables of another length", 44, &[0, 4], Rule::InvalidField, ("numGTEsPerGT", "1024")),
        header("one of several files", 28, &u64s(0), Rule::ExternalDataFile, ("descriptorOffset", "0")),
        header("no descriptor", 36, &u64s(0), Rule::InvalidField, ("descriptorSize", "0")),
        header("a huge descriptor", 36, &u64s(2049), Rule::InvalidField, ("descriptorSize", "2049")),
        header("a descriptor among grains", 28, &u64s(120), Rule::TableOutOfRange, ("descriptorOffset", "120")),
        header("no grain directory", 56, &u64s(0), Rule::TableOutOfRange, ("gdOffset", "0x0")),
        header("a grain directory far off", 56, &u64s(1 << 40), Rule::TableOutOfRange, ("gdOffset", "0x1")),
        header("a grain directory in the footer", 56, &u64s(u64::MAX), Rule::InvalidField, ("gdOffset", "0xff")),
        header("no second directory", 8, &[3], Rule::TableOutOfRange, ("rgdOffset", "0x0")),
        header("grains past numbers", 64, &u64s(1 << 40), Rule::TableOutOfRange, ("overHead", "1099511627776")),
    ]);
    let mut past = Sparse::new(1);
    past.set(56, &u64s(1 << 20));
    let refusal = format::inspect(&mut Memory::new(past.bytes), None, &Limits::default()).unwrap();
    assert_eq!(refusal.reasons[0].rule, Rule::TableOutOfRange);
    // Not one after the other: all that is wrong with a header is said at once.
    let mut worst = Sparse::new(1);
    worst.set(72, &[1]).set(44, &[0, 4]).set(20, &u64s(3));
    assert!(format::inspect(&mut Memory::new(worst.bytes), None, &Limits::default()).unwrap().reasons.len() >= 2);
}

#[test]
fn a_directory_past_the_memory_for_tables_is_refused() {
    let mut made = Sparse::new(1);
    made.set(12, &(32_u64 << 30).to_le_bytes()).set(20, &8_u64.to_le_bytes());
    let limits = Limits { max_table_memory: 8 << 20, ..Limits::default() };
    let refusal = format::inspect(&mut Memory::new(made.bytes), None, &limits).unwrap();
    assert!(refusal.reasons.iter().any(|v| v.rule == Rule::SizeLimit && v.field == "grainSize"), "{refusal:?}");
}

/// A sparse disk with bytes changed in some places.
fn changed(name: &str, changes: &[(usize, &[u8])], rule: Rule, says: (&'static str, &str)) -> Case {
    let mut made = Sparse::new(1);
    for (at, bytes) in changes {
        made.set(*at, bytes);
    }
    case(name, made.bytes, rule, says, Seen::Tables)
}

/// Second tables at sector 31 and 40, which the header names and which are empty.
const REDUNDANT: [(usize, &[u8]); 3] = [(8, &[3]), (48, &[30]), (30 * 512, &[31, 0, 0, 0, 40])];

#[test]
fn every_rule_of_the_tables() {
    const SECOND: usize = Sparse::TABLES + 4;
    const TABLE: usize = Sparse::DIRECTORY + 4;
    let entry = "grain table entry(guest 0x10000)";
    let (overlap, range) = (Rule::TableOverlap, Rule::TableOutOfRange);
    let second = [REDUNDANT.as_slice(), &[(30 * 512, &[22])]].concat();
    assert_refused(&[
        changed("two grains in one place", &[(SECOND, &[128, 0])], overlap, (entry, "0x80")),
        changed("two grains that overlap", &[(SECOND, &[200, 0])], overlap, (entry, "0xc8")),
        changed("a grain in the tables", &[(SECOND, &[22, 0])], range, (entry, "0x16")),
        changed("zeros that are not announced", &[(SECOND, &[1, 0])], range, (entry, "0x1")),
        changed("two tables in one place", &[(TABLE, &[22])], overlap, ("gdOffset[1]", "0x16")),
        changed("tables that overlap", &[(TABLE, &[25])], overlap, ("gdOffset[1]", "0x19")),
        changed("a table in the descriptor", &[(TABLE, &[9])], overlap, ("gdOffset[1]", "0x9")),
        changed("a directory in the descriptor", &[(56, &[20])], overlap, ("gdOffset", "0x14")),
        changed("a table among grains", &[(TABLE, &[130])], overlap, ("grain table entry", "0x80")),
        changed("second tables on the first", &second, overlap, ("[0]", "0x16")),
    ]);
    let mut good = Sparse::new(1);
    for (at, bytes) in REDUNDANT {
        good.set(at, bytes);
    }
    assert!(content_of(&good.bytes.into(), Order::Stream).unwrap() == Sparse::content());
}

#[test]
fn what_a_stream_does_not_have_is_seen_at_its_end() {
    let far = 9999_u32.to_le_bytes();
    let second = [REDUNDANT.as_slice(), &[(30 * 512 + 4, &far)]].concat();
    for (name, changes, rule) in [
        ("a grain past the end", &[(Sparse::TABLES + 4, far.as_slice())][..], Rule::Truncated),
        ("a table past the end", &[(Sparse::DIRECTORY + 4, &far)], Rule::TableOutOfRange),
        ("a second table past the end", &second, Rule::TableOutOfRange),
    ] {
        let mut made = Sparse::new(1);
        for (at, bytes) in changes {
            made.set(*at, bytes);
        }
        let bytes = Bytes::from(made.bytes);
        let inspected = format::inspect(&mut Memory::new(bytes.clone()), None, &Limits::default()).unwrap();
        assert_eq!(inspected.reasons[0].rule, rule, "{name}");
        for order in [Order::Tables, Order::Stream] {
            let error = content_of(&bytes, order).err().unwrap_or_else(|| panic!("{name}: {order:?}"));
            assert!([rule, Rule::Truncated].contains(&error.violation().unwrap().rule), "{name}: {error}");
        }
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_not_read() {
    let mut stream = Stream::new(100 << 11);
    let noise = bytes(5, 65_536, true);
    stream.grain(0, &noise).grain(9, &bytes(2, 65_536, false)).table(0).grain(1024, &noise).table(2).end();
    // The last grain of a sparse disk must be there, all of it.
    for (bytes, step) in [(Bytes::from(stream.bytes), 512), (Sparse::new(1).bytes.into(), 4096)] {
        let cuts = (1..bytes.len()).step_by(step).chain((1..bytes.len()).step_by(7919)).chain([bytes.len() - 1]);
        for cut in cuts {
            for order in [Order::Tables, Order::Stream] {
                let error = content_of(&bytes.slice(..cut), order).err().unwrap_or_else(|| panic!("{cut}: {order:?}"));
                let rule = error.violation().unwrap_or_else(|| panic!("{cut}: {error}")).rule;
                let expected = [Rule::Truncated, Rule::TableOutOfRange, Rule::NotADisk, Rule::FormatMismatch];
                assert!(expected.contains(&rule), "{cut}, {order:?}: {error}");
            }
            let inspected = format::inspect(&mut Memory::new(bytes.slice(..cut)), None, &Limits::default()).unwrap();
            assert!(!inspected.reasons.is_empty(), "cut at {cut} and accepted");
        }
    }
}
