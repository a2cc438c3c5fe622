//! What every store must do. A store passes by naming itself once with `suite!`.

use std::{any::Any, sync::Arc, time::Duration};

use bytes::Bytes;
use vitrine_engine::{
    error::{Error, Kind},
    model::{
        CHUNK_SIZE, ChunkDigest, Compression, ContainerFormat, ContentManifest, DiskFormat, Evidence, ObjectKey,
        OutputFormat, Received, Verified,
    },
    store::{ObjectEntry, ObjectReader, ObjectStat, Sink, Store},
};

/// A store under test.
pub struct Subject {
    /// The store, empty.
    pub store: Arc<dyn Store>,
    /// A second handle to the same place, as another agent would have it.
    pub again: Arc<dyn Store>,
    /// By how many bytes allocation may exceed the data written, for each separate stretch of it.
    pub granularity: u64,
    /// What must live as long as the store.
    pub keep: Box<dyn Any + Send>,
}

/// Runs every case of the suite against the store that `$make` gives, each with a fresh one.
macro_rules! suite {
    ($name:ident, $make:expr) => {
        $crate::conformance::suite!(@ $name, $make,
            publishes_what_was_written, records_everything, reads_holes_as_zeros, tells_where_data_lies, allocates_only_data,
            takes_writes_in_any_order, lets_later_writes_win, takes_large_offsets, takes_empty_objects, reads_stop_at_the_end,
            shows_nothing_before_commit, aborts_without_trace, drops_without_trace, refuses_to_overwrite,
            refuses_to_overwrite_at_commit, refuses_to_cut_off, fences_off_earlier_attempts, fences_off_the_same_attempt,
            remembers_fences_after_deletion, deletes_under_a_writer, a_late_delete_takes_nothing_newer, deletes_twice, finds_nothing_that_is_not_there, keeps_keys_apart,
            lists_everything, reads_on_while_deleted, takes_twenty_at_once, sweeps_nothing_alive, can_be_probed, takes_large_pieces);
    };
    (@ $name:ident, $make:expr, $($case:ident),+) => {
        mod $name {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let subject = $make;
                $crate::conformance::$case(&subject).await;
                drop(subject.keep);
            })+
        }
    };
}
pub(crate) use suite;

/// The key used where one is enough.
pub fn key(revision: u64) -> ObjectKey {
    ObjectKey::new("5f0c5c26-6f8a-4c3e-9d55-0a4a3f0c7a11", revision).unwrap()
}

/// A proof for an object whose guest disk has `virtual_size` bytes.
pub fn proof(virtual_size: u64) -> Verified {
    let chunks =
        (0..virtual_size.div_ceil(CHUNK_SIZE).min(3)).map(|index| ChunkDigest { index, digest: [index as u8; 32] });
    let sha256 = format!("sha256:{}", "5a".repeat(32)).parse().unwrap();
    Verified::try_from(Evidence {
        received: Received { length: 4711, digests: vec![sha256] },
        declared: vec![],
        source_format: DiskFormat::Qcow2,
        container_format: ContainerFormat::Compressed,
        properties: std::collections::BTreeMap::new(),
        request: None,
        violations: vec![],
        manifest: ContentManifest { virtual_size, chunks: chunks.collect() },
    })
    .unwrap()
}

/// `length` bytes that differ from those of every other `seed` and hold no zero.
pub fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    std::iter::repeat_with(next).take(length).collect::<Vec<_>>().into()
}

/// Writes and publishes `pieces`, with the first attempt.
pub async fn publish(store: &dyn Store, key: &ObjectKey, length: u64, pieces: &[(u64, Bytes)]) -> ObjectStat {
    publish_with(store, key, 1, length, pieces).await
}

/// Writes and publishes `pieces` with `attempt`.
pub async fn publish_with(
    store: &dyn Store,
    key: &ObjectKey,
    attempt: u32,
    length: u64,
    pieces: &[(u64, Bytes)],
) -> ObjectStat {
    let mut sink = store.create(key, attempt, OutputFormat::RAW).await.unwrap();
    for (offset, bytes) in pieces {
        sink.write_at(*offset, bytes.clone()).await.unwrap();
    }
    sink.commit(length, &proof(length)).await.unwrap()
}

/// All bytes of a short object.
pub async fn read_all(reader: &dyn ObjectReader) -> Bytes {
    let length = usize::try_from(reader.image().length).unwrap();
    reader.read_at(0, length).await.unwrap()
}

async fn content(store: &dyn Store, key: &ObjectKey) -> Bytes {
    read_all(&*store.open(key).await.unwrap()).await
}

/// The kind of the error; what succeeded must not have.
pub fn refused<T>(result: Result<T, Error>) -> Kind {
    match result {
        Ok(_) => panic!("succeeded, and must not"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.kind()
        }
    }
}

async fn begun(store: &dyn Store, attempt: u32) -> Box<dyn Sink> {
    let mut sink = store.create(&key(1), attempt, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(u64::from(attempt), 5000)).await.unwrap();
    sink
}

async fn assert_empty(store: &dyn Store) {
    assert_eq!(store.list().await.unwrap(), vec![]);
    assert_eq!(refused(store.stat(&key(1)).await), Kind::NotFound);
}

pub async fn publishes_what_was_written(subject: &Subject) {
    let bytes = noise(1, 300_000);
    let pieces: Vec<_> =
        (0..3).map(|i| (i * 100_000, bytes.slice(i as usize * 100_000..(i as usize + 1) * 100_000))).collect();
    let stat = publish(&*subject.store, &key(1), 300_000, &pieces).await;
    assert_eq!(content(&*subject.store, &key(1)).await, bytes);
    assert_eq!(content(&*subject.again, &key(1)).await, bytes);
    assert_eq!(subject.again.stat(&key(1)).await.unwrap(), stat);
}

pub async fn records_everything(subject: &Subject) {
    let format = OutputFormat {
        disk_format: DiskFormat::Qcow2,
        subformat: None,
        compression: Compression::Zstd,
        cluster_size: 2 << 20,
    };
    let mut sink = subject.store.create(&key(1), 1, format).await.unwrap();
    sink.write_at(0, noise(1, 10)).await.unwrap();
    let proof = proof(1 << 40);
    let stat = sink.commit(77, &proof).await.unwrap();
    let image = &stat.image;
    assert_eq!((image.format, image.length, image.source_size), (format, 77, 4711));
    assert_eq!((&image.source_digests, image.source_format), (&proof.received().digests, DiskFormat::Qcow2));
    assert_eq!(image.container_format, ContainerFormat::Compressed);
    assert_eq!(image.manifest, *proof.manifest());
    assert_eq!(image.manifest.chunks.len(), 3);
    assert!(stat.url.contains("://") && stat.url.contains(&key(1).to_string()), "{}", stat.url);
    assert_eq!(subject.again.stat(&key(1)).await.unwrap(), stat);
    assert_eq!(subject.again.open(&key(1)).await.unwrap().image(), image);
}

pub async fn reads_holes_as_zeros(subject: &Subject) {
    let bytes = noise(1, 1000);
    publish(&*subject.store, &key(1), 1_000_000, &[(500_500, bytes.clone())]).await;
    let mut expected = vec![0; 1_000_000];
    expected[500_500..501_500].copy_from_slice(&bytes);
    assert_eq!(content(&*subject.store, &key(1)).await, expected);
}

pub async fn tells_where_data_lies(subject: &Subject) {
    const AT: u64 = 8 << 20;
    let pieces = [(AT, noise(1, 65536)), (AT + 65536, noise(2, 65536)), (4 * AT, noise(3, 1 << 20))];
    publish(&*subject.store, &key(1), 8 * AT, &pieces).await;
    let reader = subject.store.open(&key(1)).await.unwrap();
    assert_eq!(reader.next_data(0).await.unwrap(), Some((AT, AT + 131_072)));
    assert_eq!(reader.next_data(AT + 4096).await.unwrap(), Some((AT + 4096, AT + 131_072)));
    assert_eq!(reader.next_data(AT + 131_072).await.unwrap(), Some((4 * AT, 4 * AT + (1 << 20))));
    assert_eq!(reader.next_data(4 * AT + (1 << 20)).await.unwrap(), None);
    assert_eq!(reader.next_data(8 * AT).await.unwrap(), None);
    assert_eq!(reader.next_data(u64::MAX).await.unwrap(), None);
}

pub async fn allocates_only_data(subject: &Subject) {
    let pieces: Vec<_> = (0..4_u64).map(|i| (i * (256 << 20), noise(i, 1 << 20))).collect();
    let stat = publish(&*subject.store, &key(1), 1 << 30, &pieces).await;
    let data = 4 << 20;
    assert!(stat.allocated_size >= data, "{}", stat.allocated_size);
    assert!(stat.allocated_size <= data + 4 * subject.granularity, "{}", stat.allocated_size);
}

pub async fn takes_writes_in_any_order(subject: &Subject) {
    const PIECE: usize = 70_000;
    let bytes = noise(1, 16 * PIECE);
    // 7 and 16 have no common factor, so every piece comes once.
    let pieces: Vec<_> =
        (0..16).map(|i| i * 7 % 16).map(|i| ((i * PIECE) as u64, bytes.slice(i * PIECE..(i + 1) * PIECE))).collect();
    publish(&*subject.store, &key(1), bytes.len() as u64, &pieces).await;
    assert_eq!(content(&*subject.store, &key(1)).await, bytes);
}

pub async fn lets_later_writes_win(subject: &Subject) {
    let (first, second) = (noise(1, 200_000), noise(2, 100_001));
    publish(&*subject.store, &key(1), 200_000, &[(0, first.clone()), (33_333, second.clone())]).await;
    let mut expected = first.to_vec();
    expected[33_333..133_334].copy_from_slice(&second);
    assert_eq!(content(&*subject.store, &key(1)).await, expected);
}

pub async fn takes_large_offsets(subject: &Subject) {
    const LENGTH: u64 = 1 << 40;
    let (middle, last) = (noise(1, 1 << 20), noise(2, 1 << 20));
    let end = LENGTH - (1 << 20);
    let stat = publish(&*subject.store, &key(1), LENGTH, &[(end, last.clone()), (LENGTH / 2, middle.clone())]).await;
    assert_eq!(stat.image.length, LENGTH);
    assert!(stat.allocated_size <= (2 << 20) + 2 * subject.granularity, "{}", stat.allocated_size);
    let reader = subject.store.open(&key(1)).await.unwrap();
    assert_eq!(reader.read_at(LENGTH / 2, 1 << 20).await.unwrap(), middle);
    assert_eq!(reader.read_at(end, 1 << 20).await.unwrap(), last);
    assert_eq!(reader.next_data(0).await.unwrap(), Some((LENGTH / 2, LENGTH / 2 + (1 << 20))));
}

pub async fn takes_empty_objects(subject: &Subject) {
    let stat = publish(&*subject.store, &key(1), 0, &[(0, Bytes::new())]).await;
    assert_eq!((stat.image.length, stat.allocated_size), (0, 0));
    let reader = subject.store.open(&key(1)).await.unwrap();
    assert!(reader.read_at(0, 10).await.unwrap().is_empty());
    assert_eq!(reader.next_data(0).await.unwrap(), None);
}

pub async fn reads_stop_at_the_end(subject: &Subject) {
    let bytes = noise(1, 1000);
    publish(&*subject.store, &key(1), 1000, &[(0, bytes.clone())]).await;
    let reader = subject.store.open(&key(1)).await.unwrap();
    assert_eq!(reader.read_at(900, 500).await.unwrap(), bytes.slice(900..));
    assert!(reader.read_at(1000, 1).await.unwrap().is_empty());
    assert!(reader.read_at(u64::MAX, 1).await.unwrap().is_empty());
    assert!(reader.read_at(5, 0).await.unwrap().is_empty());
}

pub async fn shows_nothing_before_commit(subject: &Subject) {
    let sink = begun(&*subject.store, 1).await;
    assert_eq!(refused(subject.again.open(&key(1)).await.map(|_| ())), Kind::NotFound);
    assert_eq!(refused(subject.again.stat(&key(1)).await), Kind::NotFound);
    let entries = subject.again.list().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].key.clone(), entries[0].published), (Some(key(1)), false));
    sink.abort().await.unwrap();
}

pub async fn aborts_without_trace(subject: &Subject) {
    let before = subject.store.capacity().await.unwrap();
    let sink = begun(&*subject.store, 1).await;
    sink.abort().await.unwrap();
    assert_empty(&*subject.store).await;
    assert_eq!(before.is_some(), subject.store.capacity().await.unwrap().is_some());
    publish(&*subject.store, &key(1), 10, &[]).await;
}

pub async fn drops_without_trace(subject: &Subject) {
    drop(begun(&*subject.store, 1).await);
    assert_empty(&*subject.store).await;
    publish(&*subject.store, &key(1), 10, &[]).await;
}

pub async fn refuses_to_overwrite(subject: &Subject) {
    let bytes = noise(1, 5000);
    publish(&*subject.store, &key(1), 5000, &[(0, bytes.clone())]).await;
    for store in [&subject.store, &subject.again] {
        assert_eq!(refused(store.create(&key(1), 9, OutputFormat::RAW).await.map(|_| ())), Kind::AlreadyExists);
    }
    assert_eq!(content(&*subject.store, &key(1)).await, bytes);
}

pub async fn refuses_to_overwrite_at_commit(subject: &Subject) {
    let late = begun(&*subject.store, 1).await;
    let mut winner = subject.again.create(&key(1), 2, OutputFormat::RAW).await.unwrap();
    winner.write_at(0, noise(2, 5000)).await.unwrap();
    winner.commit(5000, &proof(5000)).await.unwrap();
    let kind = refused(late.commit(5000, &proof(5000)).await);
    assert!(matches!(kind, Kind::AlreadyExists | Kind::Conflict), "{kind:?}");
    assert_eq!(content(&*subject.store, &key(1)).await, noise(2, 5000));
    assert_eq!(subject.store.list().await.unwrap().len(), 1);
}

pub async fn refuses_to_cut_off(subject: &Subject) {
    let sink = begun(&*subject.store, 1).await;
    assert_eq!(refused(sink.commit(4999, &proof(4999)).await), Kind::Internal);
    assert_empty(&*subject.store).await;
}

pub async fn fences_off_earlier_attempts(subject: &Subject) {
    let zombie = begun(&*subject.store, 1).await;
    let heir = begun(&*subject.again, 2).await;
    // Neither beginning again nor publishing is possible for the earlier one, and neither harms the later.
    assert_eq!(refused(subject.store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ())), Kind::Conflict);
    assert_eq!(refused(zombie.commit(5000, &proof(5000)).await), Kind::Conflict);
    let unpublished: Vec<_> = subject.store.list().await.unwrap().into_iter().filter(|e| !e.published).collect();
    assert_eq!(unpublished.len(), 1, "{unpublished:?}");
    heir.commit(5000, &proof(5000)).await.unwrap();
    assert_eq!(content(&*subject.store, &key(1)).await, noise(2, 5000));
}

pub async fn fences_off_the_same_attempt(subject: &Subject) {
    let killed = begun(&*subject.store, 3).await;
    let mut restarted = subject.again.create(&key(1), 3, OutputFormat::RAW).await.unwrap();
    restarted.write_at(0, noise(9, 100)).await.unwrap();
    assert_eq!(refused(killed.commit(5000, &proof(5000)).await), Kind::Conflict);
    restarted.commit(100, &proof(100)).await.unwrap();
    assert_eq!(content(&*subject.store, &key(1)).await, noise(9, 100));
}

pub async fn remembers_fences_after_deletion(subject: &Subject) {
    begun(&*subject.store, 5).await.commit(5000, &proof(5000)).await.unwrap();
    subject.store.delete(&key(1), 5).await.unwrap();
    for late in [4, 5] {
        assert_eq!(refused(subject.again.create(&key(1), late, OutputFormat::RAW).await.map(|_| ())), Kind::Conflict);
    }
    begun(&*subject.again, 6).await.commit(5000, &proof(5000)).await.unwrap();
}

pub async fn deletes_under_a_writer(subject: &Subject) {
    let sink = begun(&*subject.store, 1).await;
    subject.again.delete(&key(1), 1).await.unwrap();
    assert_eq!(subject.store.list().await.unwrap(), vec![]);
    assert_eq!(refused(sink.commit(5000, &proof(5000)).await), Kind::Conflict);
    assert_empty(&*subject.store).await;
}

/// A deletion that was held up until the next attempt had begun, or was done, is none of that attempt's business.
pub async fn a_late_delete_takes_nothing_newer(subject: &Subject) {
    begun(&*subject.store, 1).await.commit(5000, &proof(5000)).await.unwrap();
    subject.store.delete(&key(1), 1).await.unwrap();
    let heir = begun(&*subject.again, 2).await;
    assert_eq!(refused(subject.store.delete(&key(1), 1).await), Kind::Conflict);
    heir.commit(5000, &proof(5000)).await.unwrap();
    assert_eq!(refused(subject.store.delete(&key(1), 1).await), Kind::Conflict);
    assert_eq!(content(&*subject.store, &key(1)).await, noise(2, 5000));
    subject.store.delete(&key(1), 2).await.unwrap();
    assert_empty(&*subject.store).await;
}

pub async fn deletes_twice(subject: &Subject) {
    publish(&*subject.store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    for store in [&subject.store, &subject.again] {
        store.delete(&key(1), 1).await.unwrap();
        assert_empty(&**store).await;
        assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::NotFound);
    }
}

pub async fn finds_nothing_that_is_not_there(subject: &Subject) {
    assert_empty(&*subject.store).await;
    assert_eq!(refused(subject.store.open(&key(1)).await.map(|_| ())), Kind::NotFound);
    subject.store.delete(&key(1), 1).await.unwrap();
}

pub async fn keeps_keys_apart(subject: &Subject) {
    let other = ObjectKey::new("5f0c5c26-6f8a-4c3e-9d55-0a4a3f0c7a11-r1", 1).unwrap();
    let keys = [key(1), key(11), key(2), other];
    for (number, key) in (1..).zip(&keys) {
        publish(&*subject.store, key, 5000, &[(0, noise(number, 5000))]).await;
    }
    let unfinished = subject.store.create(&key(3), 1, OutputFormat::RAW).await.unwrap();
    subject.store.delete(&keys[0], 1).await.unwrap();
    assert_eq!(refused(subject.store.stat(&keys[0]).await), Kind::NotFound);
    for (number, key) in (1..).zip(&keys).skip(1) {
        assert_eq!(content(&*subject.store, key).await, noise(number, 5000));
    }
    unfinished.commit(0, &proof(0)).await.unwrap();
}

pub async fn lists_everything(subject: &Subject) {
    publish(&*subject.store, &key(1), 10, &[]).await;
    publish(&*subject.store, &key(2), 10, &[]).await;
    let sink = subject.store.create(&key(3), 1, OutputFormat::RAW).await.unwrap();
    let mut entries: Vec<_> = subject.again.list().await.unwrap();
    entries.sort_by_key(|entry| entry.key.clone());
    let found: Vec<_> = entries.iter().map(|e: &ObjectEntry| (e.key.clone(), e.published)).collect();
    assert_eq!(found, vec![(Some(key(1)), true), (Some(key(2)), true), (Some(key(3)), false)]);
    assert!(entries.iter().all(|entry| entry.age_seconds < 60 && !entry.name.is_empty()));
    drop(sink);
}

pub async fn reads_on_while_deleted(subject: &Subject) {
    let bytes = noise(1, 200_000);
    publish(&*subject.store, &key(1), 200_000, &[(0, bytes.clone())]).await;
    let reader = subject.store.open(&key(1)).await.unwrap();
    subject.again.delete(&key(1), 1).await.unwrap();
    publish_with(&*subject.store, &key(1), 2, 200_000, &[(0, noise(2, 200_000))]).await;
    assert_eq!(read_all(&*reader).await, bytes);
}

pub async fn takes_twenty_at_once(subject: &Subject) {
    let tasks: Vec<_> = (1..=20_u64)
        .map(|number| {
            let store = Arc::clone(if number % 2 == 0 { &subject.store } else { &subject.again });
            tokio::spawn(async move {
                let mut sink = store.create(&key(number), 1, OutputFormat::RAW).await.unwrap();
                for piece in 0..8_u64 {
                    sink.write_at(piece * 100_000, noise(number * 100 + piece, 60_000)).await.unwrap();
                }
                sink.commit(800_000, &proof(800_000)).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for number in 1..=20_u64 {
        let reader = subject.store.open(&key(number)).await.unwrap();
        for piece in 0..8_u64 {
            assert_eq!(reader.read_at(piece * 100_000, 60_000).await.unwrap(), noise(number * 100 + piece, 60_000));
            assert_eq!(reader.read_at(piece * 100_000 + 60_000, 40_000).await.unwrap(), vec![0; 40_000]);
        }
    }
}

pub async fn sweeps_nothing_alive(subject: &Subject) {
    publish(&*subject.store, &key(2), 10, &[]).await;
    let sink = begun(&*subject.store, 1).await;
    assert_eq!(subject.again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    sink.commit(5000, &proof(5000)).await.unwrap();
    assert_eq!(content(&*subject.store, &key(1)).await, noise(1, 5000));
    assert_eq!(subject.again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    subject.store.stat(&key(2)).await.unwrap();
}

pub async fn can_be_probed(subject: &Subject) {
    subject.store.probe().await.unwrap();
    assert_eq!(subject.store.list().await.unwrap(), vec![]);
    if let Some(capacity) = subject.store.capacity().await.unwrap() {
        assert!(capacity.available <= capacity.total && capacity.total > 0);
    }
    assert!(!subject.store.name().is_empty());
}

pub async fn takes_large_pieces(subject: &Subject) {
    // Longer than all the memory that a sink may use for waiting pieces.
    let bytes = noise(1, 20 << 20);
    publish(&*subject.store, &key(1), 20 << 20, &[(0, bytes.clone())]).await;
    assert_eq!(content(&*subject.store, &key(1)).await, bytes);
}
