//! Damaged at random: whatever the bytes, reading ends soon, never panics, and refuses for a reason.

use bytes::Bytes;
use proptest::prelude::*;
use vitrine_engine::{
    error::{Error, Kind},
    format::Order,
    model::Limits,
};

use super::{
    bytes,
    made::{Sparse, Stream},
    walk,
};
use crate::mutated::assert_survives;

/// Mutated files per seed image.
const FILES: u32 = 2000;

fn seeds() -> Vec<Vec<u8>> {
    let mut stream = Stream::new(100 << 11);
    stream.grain(0, &bytes(1, 65_536, false)).grain(5, &bytes(2, 65_536, true)).table(0);
    stream.grain(1025, &bytes(3, 65_536, false)).table(2).table(3).end();
    let mut zeroed = Stream::new(1 << 11);
    zeroed.bytes[8] |= 4;
    zeroed.grain(15, &bytes(9, 65_536, false)).entry(2, 1).table(0).end();
    vec![stream.bytes, zeroed.bytes, Sparse::new(5).bytes]
}

/// One damage: `width` bytes of `value` in a part of the file that `part` chooses.
#[derive(Clone, Debug)]
struct Edit {
    part: u8,
    at: usize,
    value: u64,
    width: usize,
}

fn damage() -> impl Strategy<Value = (Vec<Edit>, Option<usize>)> {
    let value =
        prop_oneof![Just(0), Just(u64::MAX), Just(1), any::<u64>(), 0_u64..1 << 12, (0_u64..40).prop_map(|n| n * 128)];
    let edit = (0_u8..6, any::<usize>(), value, 1_usize..=8).prop_map(|(part, at, value, width)| Edit {
        part,
        at,
        value,
        width,
    });
    (prop::collection::vec(edit, 1..5), prop::option::weighted(0.1, any::<usize>()))
}

fn apply(seed: &[u8], edits: &[Edit], cut: Option<usize>) -> Bytes {
    let mut bytes = seed.to_vec();
    let end = bytes.len();
    for edit in edits {
        let range = match edit.part {
            0 => 0..end,
            1 => 8..79,
            2 => 512..1024,
            3 => 21 * 512..30 * 512,
            4 => end.saturating_sub(10 * 512)..end,
            _ => 128 * 512..129 * 512,
        };
        let at = range.start + edit.at % range.len();
        let width = edit.width.min(end - at);
        bytes[at..at + width].copy_from_slice(&edit.value.to_le_bytes()[..width]);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut % end);
    }
    bytes.into()
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let limits = Limits { max_virtual_size: 256 << 20, max_table_memory: 1 << 20, ..Limits::default() };
    for seed in seeds() {
        let apply = |(edits, cut): (Vec<Edit>, _)| apply(&seed, &edits, cut);
        assert_survives((FILES, (100, 300)), &damage(), &limits, apply, |input| {
            let order = if input.streamed { Order::Stream } else { Order::Tables };
            let read = walk(input, order, u64::MAX, &limits, |_, _| {});
            read.map_err(|error| match (order, error.kind()) {
                // Its tables are asked then, which is the other case.
                (Order::Stream, Kind::NeedsSpill) => Error::new(Kind::Refused, "the stream alone does not tell"),
                _ => error,
            })
        });
    }
}
