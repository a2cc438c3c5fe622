//! Disks that are told by their last sector, through the whole engine: as a file, and as streams that tell less and less.

use vitrine_engine::{
    error::Kind,
    model::{DiskFormat, Inspection, Limits, OutputFormat, Rule, Verdict},
    pipeline::{InspectJob, inspect},
    store::Store as _,
};
use vitrine_harness::qemu::qemu_img;

use crate::support::{Bytestream, QCOW2_ZSTD, disk, job, memory, run, stored};

/// A disk as a fixed vhd made by qemu: the whole file.
fn fixed(raw: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("d.raw"), dir.path().join("d.vhd"));
    std::fs::write(&from, raw).unwrap();
    let options = "subformat=fixed,force_size=on";
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", options, from.to_str().unwrap(), to.to_str().unwrap()])
        .unwrap();
    std::fs::read(to).unwrap()
}

/// The same bytes as every kind of source: with ranges, with a length only, with neither.
fn sources(bytes: &[u8]) -> [Bytestream; 3] {
    [Bytestream::new(bytes.to_vec()).ranged(), Bytestream::new(bytes.to_vec()), blind(bytes)]
}

/// A stream of unknown length.
fn blind(bytes: &[u8]) -> Bytestream {
    let mut blind = Bytestream::new(bytes.to_vec());
    blind.sized = false;
    blind
}

async fn look(source: Bytestream, disk_format: Option<DiskFormat>) -> Inspection {
    let (limits, scratch) = (Limits::default(), std::env::temp_dir());
    let job = InspectJob {
        source: std::sync::Arc::new(source),
        disk_format,
        container_format: None,
        container_disk: None,
        limits,
        scratch,
    };
    inspect(job, &tokio_util::sync::CancellationToken::new()).await.unwrap()
}

/// Lengths around chunks and around what is held back at the end of a stream.
const LENGTHS: [usize; 8] = [512, 65_536, 2_088_960, 2_089_472, 4 << 20, (4 << 20) + 512, (6 << 20) + 512, 19 << 20];

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_vhd_is_its_disk_from_every_source() {
    for length in LENGTHS {
        let raw = disk(length);
        let file = fixed(&raw);
        assert_eq!(file.len(), length + 512);
        for (number, source) in sources(&file).into_iter().enumerate() {
            let (store, packed) = (memory(), memory());
            let mut job = job(source, vec![(store.clone(), OutputFormat::RAW), (packed.clone(), QCOW2_ZSTD)]);
            job.disk_format = [None, Some(DiskFormat::Vhd)][number % 2];
            let imported = run(&job).await.unwrap_or_else(|error| panic!("{length} {number}: {error}"));
            assert_eq!(imported.disk_format, DiskFormat::Vhd, "{length} {number}");
            assert_eq!(imported.virtual_size, length as u64, "{length} {number}");
            assert!(stored(store.as_ref()).await == raw, "{length} {number}");
        }
        for (number, source) in sources(&file).into_iter().enumerate() {
            let seen = look(source, None).await;
            assert_eq!(
                (seen.verdict, seen.disk_format),
                (Verdict::Accepted, Some(DiskFormat::Vhd)),
                "{length} {number}"
            );
            assert_eq!(
                (seen.virtual_size, seen.size),
                (Some(length as u64), Some(length as u64 + 512)),
                "{length} {number}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_disk_is_itself_from_every_source() {
    for length in LENGTHS.into_iter().chain([2_088_959, (4 << 20) + 1]) {
        let raw = disk(length);
        for (number, source) in sources(&raw).into_iter().enumerate() {
            let store = memory();
            let imported = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await.unwrap();
            assert_eq!((imported.disk_format, imported.virtual_size), (DiskFormat::Raw, length as u64));
            assert!(stored(store.as_ref()).await == raw, "{length} {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_declared_must_be_there_at_the_end() {
    let raw = disk(5 << 20);
    let cases = [(fixed(&raw), DiskFormat::Raw, DiskFormat::Vhd), (raw, DiskFormat::Vhd, DiskFormat::Raw)];
    for (file, declared, found) in cases {
        for source in sources(&file) {
            let store = memory();
            let mut job = job(source, vec![(store.clone(), OutputFormat::RAW)]);
            job.disk_format = Some(declared);
            let error = run(&job).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{error}");
            let violation = error.violation().unwrap();
            assert_eq!((violation.rule, violation.value.as_str()), (Rule::FormatMismatch, found.name()));
            assert!(store.list().await.unwrap().is_empty());
        }
        for source in sources(&file) {
            let seen = look(source, Some(declared)).await;
            assert_eq!(seen.reasons.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::FormatMismatch]);
        }
    }
}

/// Virtual PC goes by geometry: up to a cylinder of the data is no part of the disk, and must not have been given out.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_cut_to_cylinders_is_cut_in_a_stream_as_well() {
    let raw = disk(10 << 20);
    let mut file = fixed(&raw);
    let at = file.len() - 512;
    file[at + 28..at + 32].copy_from_slice(b"vpc ");
    // 5 cylinders of 16 heads and 255 sectors are 10,444,800 bytes; 4 are 8,355,840.
    for (cylinders, size) in [(5_u16, 10_444_800), (4, 8_355_840)] {
        file[at + 56..at + 60].copy_from_slice(&[0, cylinders.to_be_bytes()[1], 16, 255]);
        file[at + 64..at + 68].fill(0);
        let sum = !file[at..].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        file[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
        for source in sources(&file) {
            let store = memory();
            let result = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await;
            if size == 8_355_840 {
                // More than a cylinder is missing: that is no rounding.
                assert_eq!(result.unwrap_err().violation().unwrap().field, "current_size");
            } else {
                assert_eq!(result.unwrap().virtual_size, size as u64);
                assert!(stored(store.as_ref()).await == raw[..size]);
            }
        }
    }
}

/// A window so small that the held back end does not fit is no reason to read anything twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_window_is_enough() {
    let raw = disk(19 << 20);
    for (file, expected) in [(fixed(&raw), &raw), (raw.clone(), &raw)] {
        let store = memory();
        let mut job = job(blind(&file), vec![(store.clone(), OutputFormat::RAW)]);
        job.limits = Limits { window_memory: 1 << 20, max_spill: 0, ..Limits::default() };
        run(&job).await.unwrap();
        assert!(stored(store.as_ref()).await == *expected);
    }
}

/// Dynamic disks and vdi in one pass, whatever the source tells.
#[tokio::test(flavor = "multi_thread")]
async fn block_formats_come_as_streams() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("d.raw"), dir.path().join("d.image"));
    let content = disk(21 << 20);
    std::fs::write(&raw, &content).unwrap();
    let kinds = [
        ("vpc", "subformat=dynamic,force_size=on", DiskFormat::Vhd),
        ("vdi", "static=off", DiskFormat::Vdi),
        ("vdi", "static=on", DiskFormat::Vdi),
    ];
    for (driver, options, format) in kinds {
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            driver,
            "-o",
            options,
            raw.to_str().unwrap(),
            image.to_str().unwrap(),
        ])
        .unwrap();
        let bytes = std::fs::read(&image).unwrap();
        for source in sources(&bytes) {
            let store = memory();
            let mut job = job(source, vec![(store.clone(), OutputFormat::RAW)]);
            job.limits.max_spill = 0;
            let imported = run(&job).await.unwrap_or_else(|error| panic!("{options}: {error}"));
            assert_eq!((imported.disk_format, imported.virtual_size), (format, 21 << 20));
            assert!(stored(store.as_ref()).await == content, "{options}");
        }
        for source in sources(&bytes) {
            assert_eq!(look(source, None).await.verdict, Verdict::Accepted);
        }
        for cut in [bytes.len() - 1, bytes.len() - 600, 2 << 20, 1600, 600] {
            for source in sources(&bytes[..cut]) {
                let store = memory();
                let error = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await.unwrap_err();
                assert_eq!(error.kind(), Kind::Refused, "{options} {cut}: {error}");
                assert!(store.list().await.unwrap().is_empty());
            }
            for source in sources(&bytes[..cut]) {
                assert_eq!(look(source, None).await.verdict, Verdict::Refused, "{options} {cut}");
            }
        }
    }
}
