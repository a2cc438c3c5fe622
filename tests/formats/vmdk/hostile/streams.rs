//! The rules of streams: of their grains, and of what stands behind them.

use bytes::Bytes;
use vitrine_engine::{error::Result, format::Order, io::ReadAt, model::Rule};

use crate::disk::Memory;

use super::{
    super::{
        bytes, content, content_of,
        made::{Stream, zlib},
    },
    Case, Seen, assert_refused, case,
};

/// A file on another machine.
struct Far(Memory);

impl ReadAt for Far {
    fn length(&self) -> Option<u64> {
        self.0.length()
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        self.0.read_up_to(offset, length)
    }
}

/// A stream of two grains in one table that `change` damages before its end is written.
fn stream(name: &str, rule: Rule, says: (&'static str, &str), seen: Seen, change: impl Fn(&mut Stream)) -> Case {
    let mut stream = Stream::new(2 << 11);
    change(&mut stream);
    case(name, stream.bytes, rule, says, seen)
}

fn noise() -> Vec<u8> {
    bytes(5, 65_536, true)
}

#[test]
fn every_rule_of_grains() {
    let good = |s: &mut Stream| {
        s.grain(0, &noise());
    };
    let damaged = |data: Vec<u8>| {
        move |s: &mut Stream| {
            s.grain(0, &noise()).packed(2, &data).table(0).end();
        }
    };
    let cut = zlib(&noise())[..30_000].to_vec();
    let mut flipped = zlib(&bytes(1, 65_536, false));
    *flipped.last_mut().unwrap() ^= 1;
    let packed = Rule::CompressedCluster;
    assert_refused(&[
        stream("too short a grain", packed, ("lba 0x100", "65535"), Seen::Data, damaged(zlib(&noise()[..65_535]))),
        stream(
            "too long a grain",
            packed,
            ("lba 0x100", "more than"),
            Seen::Data,
            damaged(zlib(&[noise(), vec![1]].concat())),
        ),
        stream("a cut grain", packed, ("lba 0x100", "no complete"), Seen::Data, damaged(cut)),
        stream("a grain of another checksum", packed, ("lba 0x100", "no complete"), Seen::Data, damaged(flipped)),
        stream("a grain under another's marker", Rule::InvalidField, ("", ""), Seen::Data, |s| {
            s.unnamed(1, &zlib(&noise())).entry(2, 128).table(0).end();
        }),
        stream("the same between others", Rule::InvalidField, ("", ""), Seen::Data, |s| {
            s.unnamed(1, &zlib(&noise())).entry(2, 128).grain(4, &noise()).table(0).end();
        }),
        stream("a grain that no table names", Rule::InvalidField, ("gdOffset[0]", ""), Seen::Tables, |s| {
            good(s);
            s.unnamed(3, &zlib(&noise())).table(0).end();
        }),
        stream("a table that names what is no grain", Rule::InvalidField, ("gdOffset[0]", ""), Seen::Tables, |s| {
            good(s);
            s.entry(15, 130).table(0).end();
        }),
        stream("a grain between others", Rule::InvalidField, ("marker", "lba 0x81"), Seen::Tables, |s| {
            good(s);
            s.bytes.extend([0x81, 0, 0, 0, 0, 0, 0, 0, 1]);
            s.bytes.resize(s.bytes.len().next_multiple_of(512), 0);
            s.table(0).end();
        }),
        stream("a grain past the disk", Rule::InvalidField, ("marker", "lba 0x1000"), Seen::Tables, |s| {
            good(s);
            s.unnamed(32, &zlib(&noise())).table(0).end();
        }),
        stream("a marker of unknown type", Rule::InvalidField, ("marker", "type 4"), Seen::Tables, |s| {
            good(s);
            s.marker(1, 4).table(0).end();
        }),
    ]);
    let mut reaching = Stream::new(2 << 11);
    reaching.grain(0, &noise()).grain(1, &noise()).table(0).end();
    reaching.bytes[128 * 512 + 8..][..4].copy_from_slice(&100_000_u32.to_le_bytes());
    // Where a look at every marker would cost too much, the grain itself shows it.
    let mut far = Far(Memory::new(reaching.bytes.clone()));
    let error = content(&mut far, Order::Tables, u64::MAX).unwrap_err();
    assert_eq!(error.violation().unwrap().rule, Rule::TableOverlap, "{error}");
    let error = content_of(&reaching.bytes.into(), Order::Tables).unwrap_err();
    assert_eq!(error.violation().unwrap().rule, Rule::InvalidField, "{error}");
    let mut huge = Stream::new(2 << 11);
    huge.grain(0, &noise()).table(0).end();
    huge.bytes[128 * 512 + 8..][..4].copy_from_slice(&200_000_u32.to_le_bytes());
    for order in [Order::Tables, Order::Stream] {
        let error = content_of(&huge.bytes.clone().into(), order).unwrap_err();
        assert_eq!(error.violation().unwrap().rule, packed, "{error}");
    }
}

#[test]
fn every_rule_of_what_stands_behind_grains() {
    let grain = |s: &mut Stream| {
        s.grain(0, &noise());
    };
    let invalid = Rule::InvalidField;
    assert_refused(&[
        stream("a table of another length", invalid, ("marker", "type 1, 5 sectors"), Seen::Tables, |s| {
            grain(s);
            s.marker(5, 1).table(0).end();
        }),
        stream("more tables than the disk has", invalid, ("marker", "type 1"), Seen::Tables, |s| {
            grain(s);
            s.table(0).table(0).end();
        }),
        stream("a directory that names no table", Rule::TableOutOfRange, ("gdOffset[0]", "0x80"), Seen::Tables, |s| {
            grain(s);
            s.table(0).name(0, 128).end();
        }),
        stream("a directory that names nothing", Rule::TableOutOfRange, ("gdOffset[0]", "0x0"), Seen::Tables, |s| {
            grain(s);
            s.table(0).name(0, 0).end();
        }),
        stream("no directory", invalid, ("marker", "type 3"), Seen::Tables, |s| {
            grain(s);
            s.table(0).footer().marker(0, 0);
        }),
        stream("a second footer", invalid, ("marker", "type 3"), Seen::Tables, |s| {
            grain(s);
            s.table(0).directory().footer().footer().marker(0, 0);
        }),
        stream("a footer of another disk", invalid, ("footer capacity", "4097"), Seen::Tables, |s| {
            grain(s);
            s.table(0).end();
            let at = s.bytes.len() - 1024 + 12;
            s.bytes[at] = 1;
        }),
        stream("a footer with another directory", invalid, ("footer gdOffset", ""), Seen::Tables, |s| {
            grain(s);
            s.table(0).end();
            let at = s.bytes.len() - 1024 + 56;
            s.bytes[at] -= 1;
        }),
        stream("no footer", Rule::Truncated, ("footer", "no magic"), Seen::Tables, |s| {
            grain(s);
            s.table(0).end();
            let at = s.bytes.len() - 1024;
            s.bytes[at] = b'X';
        }),
        stream("something behind the end", Rule::Truncated, ("end-of-stream", ""), Seen::Tables, |s| {
            grain(s);
            s.table(0).end().marker(0, 0);
        }),
        stream("second tables in front of a stream", invalid, ("flags", "0x30003"), Seen::Tables, |s| {
            s.bytes[8] |= 2;
            grain(s);
            s.table(0).end();
        }),
    ]);
    let mut twice = Stream::new(128 << 11);
    twice.grain(0, &noise()).table(0).table(2);
    let sector = u32::try_from(twice.sector()).unwrap() - 4;
    twice.name(1, sector).end();
    for order in [Order::Tables, Order::Stream] {
        let error = content_of(&twice.bytes.clone().into(), order).unwrap_err();
        assert_eq!(error.violation().unwrap().rule, Rule::TableOverlap, "{error}");
    }
}
