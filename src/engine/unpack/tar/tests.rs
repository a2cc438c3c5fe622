//! Archives made block by block, so that one field of them is wrong.

use std::fmt::Write as _;

use bytes::Bytes;

use super::*;

struct Memory(Bytes, bool);

impl ReadAt for Memory {
    fn length(&self) -> Option<u64> {
        self.1.then_some(self.0.len() as u64)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        Ok(self.0.slice(start..start.saturating_add(length).min(self.0.len())))
    }
}

/// A header with a right checksum, after `change`.
fn header(name: &str, typeflag: u8, size: u64, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0_u8; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn body(bytes: &[u8]) -> Vec<u8> {
    let mut body = bytes.to_vec();
    body.resize(bytes.len().div_ceil(BLOCK) * BLOCK, 0);
    body
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn members(archive: Vec<u8>, sized: bool) -> Result<Vec<Member>, Violation> {
    let (mut scan, mut input, mut found) = (Scan::default(), Memory(archive.into(), sized), Vec::new());
    loop {
        match next_member(&mut scan, &mut input) {
            Ok(Some(member)) => found.push(member),
            Ok(None) => return Ok(found),
            Err(error) => return Err(error.violation().unwrap().clone()),
        }
    }
}

fn refusal(parts: &[Vec<u8>]) -> (Rule, String, String) {
    let violation = members(parts.concat(), true).unwrap_err();
    (violation.rule, violation.field, violation.value)
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        // The length counts its own digits, two of them here but for long values.
        let rest = key.len() + value.len() + 3;
        let length = rest + if rest < 8 { 1 } else { 2 };
        assert!(length < 100);
        writeln!(text, "{length} {key}={value}").unwrap();
    }
    [header("pax", b'x', text.len() as u64, |_| {}), body(text.as_bytes())].concat()
}

#[test]
fn names_and_sizes_in_every_form() {
    let long = format!("{}/disk.raw", "n".repeat(200));
    let archive = [
        header("./dir/", b'5', 0, |_| {}),
        header("./dir/a", b'0', 3, |block| block[345..350].copy_from_slice(b"first")),
        body(b"abc"),
        header("x", b'L', long.len() as u64 + 1, |_| {}),
        body(format!("{long}\0").as_bytes()),
        header("short", 0, 1, |block| block[257..265].copy_from_slice(b"ustar  \0")),
        body(b"d"),
        pax(&[("path", "./é"), ("size", "513"), ("mtime", "1.5")]),
        header("short", b'0', 0, |_| {}),
        body(&[7; 513]),
        header("g", b'g', 0, |_| {}),
        header("big", b'7', 0, |block| {
            block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        }),
        body(&[1; 512]),
        end(),
    ];
    let found = members(archive.concat(), true).unwrap();
    let names: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.folder, m.size)).collect();
    let expected = [
        ("dir", true, 0),
        ("first/dir/a", false, 3),
        (long.as_str(), false, 1),
        ("é", false, 513),
        ("big", false, 512),
    ];
    assert_eq!(names, expected.map(|(name, folder, size)| (name.trim_start_matches("./"), folder, size)));
    assert_eq!(found[1].offset, 1024);
}

#[test]
fn what_holds_no_bytes_of_its_own_is_refused() {
    let with = |typeflag| refusal(&[header("a", typeflag, 0, |_| {}), end()]);
    assert_eq!(with(b'1').0, Rule::ExternalDataFile);
    assert_eq!(with(b'2').0, Rule::ExternalDataFile);
    assert_eq!(with(b'S').0, Rule::UnsupportedFormat);
    for typeflag in *b"346VMD" {
        assert_eq!(with(typeflag), (Rule::InvalidField, "typeflag".into(), char::from(typeflag).to_string()));
    }
    let sparse = [pax(&[("GNU.sparse.major", "1")]), header("a", b'0', 0, |_| {}), end()];
    assert_eq!(refusal(&sparse).0, Rule::UnsupportedFormat);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["/etc/passwd", "../a", "a/../../b", "a/.."] {
        assert_eq!(refusal(&[header(name, b'0', 0, |_| {}), end()]), (Rule::InvalidField, "name".into(), name.into()));
        assert_eq!(refusal(&[pax(&[("path", name)]), header("a", b'0', 0, |_| {}), end()]).1, "name");
    }
    assert_eq!(refusal(&[header("a\x1b[2J", b'0', 0, |_| {}), end()]).1, "name");
}

#[test]
fn damaged_headers_are_refused() {
    let good = header("a", b'0', 0, |_| {});
    let mut sum = good.clone();
    sum[0] = b'b';
    assert_eq!(refusal(&[sum, end()]).1, "checksum");
    assert_eq!(refusal(&[header("a", b'0', 0, |block| block[257] = b'x'), end()]).1, "magic");
    assert_eq!(refusal(&[header("a", b'0', 0, |block| block[130] = b'9'), end()]).1, "size");
    assert_eq!(refusal(&[header("a", b'0', 0, |block| block[124] = 0xff), end()]).1, "size");
    assert_eq!(refusal(&[header("a", b'0', 0, |block| block[124..136].fill(0x80)), end()]).1, "size");
    let huge = header("a", b'0', 0, |block| {
        block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    });
    assert_eq!(refusal(&[huge, end()]).1, "size");
    for broken in ["path=a\n", "99 path=a\n", "9 path a\n", "x", "10 size=-\n"] {
        let parts = [header("p", b'x', broken.len() as u64, |_| {}), body(broken.as_bytes()), good.clone(), end()];
        assert_eq!(refusal(&parts).1, "pax", "{broken:?}");
    }
}

#[test]
fn bounds_hold() {
    let many = header("a", b'0', 0, |_| {}).repeat(1025);
    assert_eq!(refusal(&[many, end()]), (Rule::SizeLimit, "headers".into(), "1025".into()));
    let long = header("p", b'x', 65_537, |_| {});
    assert_eq!(refusal(&[long, body(&vec![0; 65_537]), end()]).0, Rule::SizeLimit);
}

#[test]
fn a_cut_or_a_tail_is_noticed() {
    let archive = [header("a", b'0', 600, |_| {}), body(&[1; 600]), end()].concat();
    assert!(members(archive.clone(), true).is_ok());
    for length in [100, 512, 700, 1111, 1536, 1600, 2048, 2559] {
        let violation = members(archive[..length].to_vec(), true).unwrap_err();
        assert_eq!(violation.rule, Rule::Truncated, "{length}");
    }
    let hidden = [end()[..BLOCK].to_vec(), header("b", b'0', 0, |_| {}), end()].concat();
    assert_eq!(refusal(&[archive[..1536].to_vec(), hidden]).1, "end of archive");
}
