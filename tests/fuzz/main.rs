//! Runs every file of the corpus, and everything that was ever found, through its target.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::{collections::BTreeSet, fs, path::PathBuf, time::Instant};

use vitrine_fuzz::{TARGETS, Target, folders};

/// Bytes of all files together: it is a corpus to be replayed, not one to go on from.
const MAX_TREE: u64 = 1 << 20;
/// Bytes of one file.
const MAX_FILE: u64 = 64 << 10;
/// Seconds for one file, in a build without optimisation on a busy machine. Campaigns hold the targets to less.
const MAX_SECONDS: u64 = 20;
/// What the process may have taken at its peak, in KiB. No input is larger than 64 KiB, and limits are a few MiB.
const MAX_MEMORY: u64 = 512 << 10;

fn files(target: &Target) -> Vec<PathBuf> {
    let read = folders(target).map(|folder| fs::read_dir(folder).into_iter().flatten());
    let mut files: Vec<_> = read.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn every_decoder_takes_its_corpus() {
    for target in TARGETS {
        let mut taken = 0;
        for file in files(target) {
            let (data, began) = (fs::read(&file).unwrap(), Instant::now());
            // A panic says what is wrong, this says where.
            let result = std::panic::catch_unwind(|| (target.run)(&data));
            taken += u32::from(result.unwrap_or_else(|_| panic!("{}", file.display())));
            assert!(began.elapsed().as_secs() < MAX_SECONDS, "{}: {:?}", file.display(), began.elapsed());
        }
        // What is refused at its first byte shows nothing of a decoder.
        assert!(taken > 0, "{}: nothing in its corpus is whole", target.name);
    }
    assert!(peak_memory() < MAX_MEMORY, "{} KiB", peak_memory());
}

#[test]
fn the_corpus_is_small_and_of_targets_that_there_are() {
    let mut total = 0;
    for file in TARGETS.iter().flat_map(files) {
        let length = fs::metadata(&file).unwrap().len();
        assert!(length <= MAX_FILE, "{}: {length} bytes", file.display());
        total += length;
    }
    assert!(total <= MAX_TREE, "{total} bytes");
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    for kind in folders(&TARGETS[0]).map(|folder| folder.parent().unwrap().to_owned()) {
        // Until something is found there are no regressions.
        for folder in fs::read_dir(kind).into_iter().flatten() {
            let name = folder.unwrap().file_name().into_string().unwrap();
            assert!(names.contains(&name), "{name} is no target: nothing runs its files");
        }
    }
}
