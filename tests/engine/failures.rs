//! Whatever goes wrong, nothing unverified is published, nothing unpublished stays, and the message says what and where.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{ContainerFormat, DiskFormat, Limits, ObjectKey, OutputFormat, Rule},
    pipeline::{Permit, Progress, import},
    source::{Opened, RangeReader, Source},
    store::{
        Store as _,
        fault::{CommitFault, Faults, FaultyStore},
    },
};

use crate::support::{Bytestream, QCOW2_ZSTD, disk, job, memory, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_publishes_nothing() {
    let store = memory();
    let mut job = job(Bytestream::new(disk(6 << 20)), vec![(store.clone(), OutputFormat::RAW)]);
    job.checksums = vec![format!("sha256:{}", "ab".repeat(32)).parse().unwrap()];
    let error = run(&job).await.unwrap_err();
    assert_eq!(error.violation().unwrap().rule, Rule::ChecksumMismatch, "{error}");
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_off_leaves_nothing() {
    for cut in [0, 100, 1 << 20, (6 << 20) - 1] {
        let store = memory();
        let mut source = Bytestream::new(disk(6 << 20));
        source.cut = Some(cut);
        let error = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(store.list().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_stream_than_promised_is_truncated() {
    let store = memory();
    let whole = std::fs::read(vitrine_harness::qemu::debian_disk().unwrap().join("zlib.qcow2")).unwrap();
    for length in [0, 3, 104, 65_536, 300_000, whole.len() / 2, whole.len() - 100_000] {
        let mut source = Bytestream::new(whole[..length].to_vec());
        source.sized = false;
        let error = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{length}: {error}");
        assert!(store.list().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failing_store_fails_all_or_only_itself() {
    for (faults, kind) in [
        (Faults { write: Some((2, Kind::NoSpace)), ..Faults::default() }, Kind::NoSpace),
        (Faults { commit: Some(CommitFault::Before(Kind::Conflict)), ..Faults::default() }, Kind::Conflict),
    ] {
        for require_all in [true, false] {
            let (good, bad) = (memory(), memory());
            let broken = Arc::new(FaultyStore::new(bad.clone(), faults));
            let targets = vec![(broken as _, OutputFormat::RAW), (good.clone() as _, OutputFormat::RAW)];
            let mut job = job(Bytestream::new(disk(20 << 20)), targets);
            job.require_all = require_all;
            let result = run(&job).await;
            assert!(bad.list().await.unwrap().is_empty());
            assert_eq!(good.list().await.unwrap().len(), usize::from(!require_all));
            match result {
                Err(error) => {
                    assert!(require_all);
                    assert_eq!(error.kind(), kind, "{error}");
                    assert!(error.to_string().contains("store memory"), "{error}");
                }
                Ok(imported) => {
                    assert!(!require_all);
                    assert_eq!(imported.published.iter().filter(|p| p.result.is_ok()).count(), 1);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_stops_and_removes() {
    let store = memory();
    let slow = Faults { delay: Duration::from_millis(50), ..Faults::default() };
    let faulty = Arc::new(FaultyStore::new(store.clone(), slow));
    let job = job(Bytestream::new(disk(64 << 20)), vec![(faulty, OutputFormat::RAW)]);
    let (progress, cancel) = (Arc::new(Progress::default()), CancellationToken::new());
    let running = import(&job, &progress, &cancel);
    let stopping = async {
        while progress.snapshot().written == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(running, stopping);
    assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_source_can_be_cancelled() {
    struct Stalled;
    #[async_trait]
    impl Source for Stalled {
        fn describe(&self) -> String {
            "stalled".into()
        }
        async fn open(&self) -> Result<Opened> {
            let stream = Box::pin(futures::stream::pending());
            Ok(Opened { length: Some(1), shows_cuts: true, stream, ranges: None })
        }
    }
    let store = memory();
    let job = job(Stalled, vec![(store.clone(), OutputFormat::RAW)]);
    let (progress, cancel) = (Arc::new(Progress::default()), CancellationToken::new());
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(import(&job, &progress, &cancel), later);
    assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_nothing_is_published() {
    struct Refused;
    #[async_trait]
    impl Permit for Refused {
        async fn permit(&self) -> Result<()> {
            Err(Error::new(Kind::Conflict, "attempt 2 has taken over"))
        }
    }
    let store = memory();
    let mut job = job(Bytestream::new(disk(6 << 20)), vec![(store.clone(), OutputFormat::RAW)]);
    job.permit = Some(Arc::new(Refused));
    assert_eq!(run(&job).await.unwrap_err().kind(), Kind::Conflict);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_declared_formats_must_be_the_found_ones() {
    let refuse = |disk_format, container_format| async move {
        let mut job = job(Bytestream::new(disk(1 << 20)), vec![(memory(), OutputFormat::RAW)]);
        (job.disk_format, job.container_format) = (disk_format, container_format);
        run(&job).await.unwrap_err().violation().unwrap().rule
    };
    assert_eq!(refuse(Some(DiskFormat::Qcow2), None).await, Rule::FormatMismatch);
    assert_eq!(refuse(None, Some(ContainerFormat::Compressed)).await, Rule::FormatMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_is_refused_while_it_goes_off() {
    // 512 MiB of one repeated byte: never zero, so all of it would be stored, from less than 100 KiB.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.raw");
    let file = std::fs::File::create(&path).unwrap();
    let mut first = disk(65_536);
    for i in 0..8192_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &first, i * 65_536).unwrap();
        first.fill(b'x');
    }
    let packed = dir.path().join("bomb.raw.zst");
    let status = std::process::Command::new("zstd").args(["-q", "-9", "-o"]).arg(&packed).arg(&path).status().unwrap();
    assert!(status.success());
    let store = memory();
    let job = job(Bytestream::file(&packed), vec![(store.clone(), OutputFormat::RAW)]);
    let error = run(&job).await.unwrap_err();
    assert_eq!(error.violation().unwrap().rule, Rule::Bomb, "{error}");
    assert!(store.list().await.unwrap().is_empty());
    assert_eq!(Limits::default().max_expansion, 1100, "the limit this test is made for");
}

/// A qcow2 whose first-level table stands far behind, on a server that never answers when it is asked for.
struct Stuck;

#[async_trait]
impl RangeReader for Stuck {
    async fn read_range(&self, _: u64, _: u64) -> Result<Option<Bytes>> {
        std::future::pending().await
    }
}

#[async_trait]
impl Source for Stuck {
    fn describe(&self) -> String {
        "stuck".into()
    }

    async fn open(&self) -> Result<Opened> {
        let mut head = b"QFI\xfb\0\0\0\x02".to_vec();
        head.extend([0; 12]);
        head.extend(16_u32.to_be_bytes());
        head.extend((1_u64 << 30).to_be_bytes());
        head.extend([0, 0, 0, 0, 0, 0, 0, 2]);
        head.extend((8_u64 << 20).to_be_bytes());
        head.extend((64_u64 << 10).to_be_bytes());
        head.extend([0, 0, 0, 1]);
        head.resize(1 << 20, 0);
        let stream = futures::stream::once(async { Ok(Bytes::from(head)) }).chain(futures::stream::pending());
        Ok(Opened { length: Some(9 << 20), shows_cuts: true, stream: stream.boxed(), ranges: Some(Arc::new(Self)) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_table_can_be_cancelled() {
    let store = memory();
    let job = job(Stuck, vec![(store.clone(), OutputFormat::RAW)]);
    let (progress, cancel) = (Arc::new(Progress::default()), CancellationToken::new());
    let running = tokio::time::timeout(Duration::from_secs(20), import(&job, &progress, &cancel));
    let later = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(running, later);
    assert_eq!(result.unwrap().unwrap_err().kind(), Kind::Cancelled);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_would_be_made_is_adopted() {
    let store = memory();
    run(&job(Bytestream::new(disk(1 << 20)), vec![(store.clone(), OutputFormat::RAW)])).await.unwrap();
    let again = |output| job(Bytestream::new(disk(1 << 20)), vec![(store.clone() as _, output)]);
    run(&again(OutputFormat { cluster_size: 512, ..OutputFormat::RAW })).await.unwrap();
    let mut declared = again(OutputFormat::RAW);
    declared.disk_format = Some(DiskFormat::Qcow2);
    // What was stored for nobody's request is anybody's, and what was stored for one is that one's.
    let mut asked = again(OutputFormat::RAW);
    asked.request = Some("one".to_owned());
    run(&asked).await.unwrap();
    asked.key = ObjectKey::new("5f1d8a3e-uid", 2).unwrap();
    run(&asked).await.unwrap();
    asked.source = Arc::new(Stuck);
    run(&asked).await.unwrap();
    asked.request = Some("two".to_owned());
    for job in [again(QCOW2_ZSTD), declared, asked] {
        let error = run(&job).await.unwrap_err();
        let said = error.to_string();
        assert!(error.kind() == Kind::AlreadyExists && said.contains("already, with another"), "{error}");
        assert!(said.contains("holds 5f1d8a3e-uid-r"), "{error}");
    }
}
