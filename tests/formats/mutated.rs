//! Damaged at random: whatever the bytes, reading ends soon, never panics, and refuses for a reason.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRunner};
use vitrine_engine::{
    error::{Kind, Result},
    format,
    model::{Limits, Verdict},
};

use crate::{
    disk::{Memory, walk},
    qemu::Qemu,
};

/// Mutated files per seed image.
const FILES: u32 = 1500;
/// How many of them must be read, and how many refused. Damage that never hurts, or always kills the header, would test nothing.
pub const LEAST: (u32, u32) = (50, 200);
/// No file has more than some megabytes of content; minutes would be a loop.
const DEADLINE: Duration = Duration::from_secs(5);

fn seeds(qemu: &Qemu) -> Vec<Vec<u8>> {
    let raw = qemu.path("raw");
    std::fs::File::create(&raw).unwrap().set_len(700_000).unwrap();
    let commands = ["write -P 1 0 64k".into(), "write -P 2 100k 512".into(), "write -P 3 500k 150k".into()];
    qemu.io("raw", &raw, &commands);
    let options = [
        ("cluster_size=512", false),
        ("cluster_size=4k,compat=0.10", true),
        ("cluster_size=64k,compression_type=zstd", true),
        ("cluster_size=16k,extended_l2=on", false),
    ];
    let image = qemu.path("seed");
    options
        .iter()
        .map(|(options, compressed)| {
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            arguments.extend(compressed.then_some("-c"));
            arguments.extend([raw.to_str().unwrap(), image.to_str().unwrap()]);
            qemu.img(&arguments);
            std::fs::read(&image).unwrap()
        })
        .collect()
}

/// One damage: `width` bytes of `value` somewhere in the file's first part of a size that `reach` gives.
#[derive(Clone, Debug)]
pub struct Edit {
    reach: u8,
    at: usize,
    value: u64,
    width: usize,
}

/// Where and how to damage: mostly in the head and in places where tables lie, with values that matter; and where to cut.
pub fn damage() -> impl Strategy<Value = (Vec<Edit>, Option<usize>)> {
    let value = prop_oneof![Just(0), Just(u64::MAX), Just(1 << 62), Just(1 << 63), any::<u64>(), 0_u64..1 << 20];
    let edit = (0_u8..4, any::<usize>(), value, 1_usize..=8).prop_map(|(reach, at, value, width)| Edit {
        reach,
        at,
        value,
        width,
    });
    (prop::collection::vec(edit, 1..6), prop::option::weighted(0.1, any::<usize>()))
}

pub fn apply(seed: &[u8], edits: &[Edit], cut: Option<usize>) -> Bytes {
    let mut bytes = seed.to_vec();
    for edit in edits {
        let range = if edit.reach == 0 { bytes.len() } else { bytes.len().min(112 << (edit.reach * 3)) };
        let at = edit.at % range;
        let width = edit.width.min(bytes.len() - at);
        bytes[at..at + width].copy_from_slice(&edit.value.to_be_bytes()[..width]);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut % bytes.len());
    }
    bytes.into()
}

/// Has `files` files that `apply` makes of `damage` read by `read`, from a file and from a stream, and inspected, and holds that each is
/// read or refused, soon, and nothing else. `least` are so many that must be read and refused.
pub fn assert_survives<D: Strategy>(
    (files, least): (u32, (u32, u32)),
    damage: &D,
    limits: &Limits,
    apply: impl Fn(D::Value) -> Bytes,
    read: impl Fn(&mut Memory) -> Result<u64>,
) {
    let config = ProptestConfig { cases: files, failure_persistence: None, ..ProptestConfig::default() };
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new(config).run(damage, |damage| {
        let bytes = apply(damage);
        let began = Instant::now();
        for streamed in [false, true] {
            match read(&mut Memory { bytes: bytes.clone(), streamed }) {
                Ok(_) => accepted.set(accepted.get() + 1),
                Err(error) => {
                    prop_assert_eq!(error.kind(), Kind::Refused, "{}", error);
                    refused.set(refused.get() + 1);
                }
            }
        }
        let inspection = format::inspect(&mut Memory::new(bytes), None, limits).unwrap();
        prop_assert_eq!(inspection.reasons.is_empty(), inspection.verdict == Verdict::Accepted);
        prop_assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(
        accepted.get() > least.0 && refused.get() > least.1,
        "{} accepted, {} refused",
        accepted.get(),
        refused.get()
    );
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let limits = Limits { max_virtual_size: 64 << 20, max_table_memory: 1 << 20, ..Limits::default() };
    let qemu = Qemu::new();
    for seed in seeds(&qemu) {
        let apply = |(edits, cut): (Vec<Edit>, _)| apply(&seed, &edits, cut);
        assert_survives((FILES, LEAST), &damage(), &limits, apply, |input| walk(input, u64::MAX, &limits, |_, _| {}));
    }
}
