//! Copies from pool to pool.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    model::{
        CHUNK_SIZE, ChunkDigest, ContainerFormat, ContentManifest, DiskFormat, Evidence, Limits, OutputFormat,
        Properties, Received, Verified,
    },
    pipeline::{Copy, Progress, Target, copy},
    store::{Store, rbd::RbdStore},
};

use super::{cluster, open, options, options_for};
use crate::conformance::{key, noise};

const LENGTH: u64 = 8 << 30;
/// An object of an image.
const OBJECT: u64 = 4 << 20;

/// Publishes a disk of 8 GiB with 1 MiB of data in each of `chunks`.
async fn fill(store: &RbdStore, chunks: &[u64]) -> ContentManifest {
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let mut digests = Vec::new();
    for index in chunks {
        let data = noise(*index, 1 << 20);
        let mut chunk = data.to_vec();
        chunk.resize(usize::try_from(CHUNK_SIZE).unwrap(), 0);
        digests.push(ChunkDigest { index: *index, digest: *blake3::hash(&chunk).as_bytes() });
        sink.write_at(index * CHUNK_SIZE, data).await.unwrap();
    }
    let manifest = ContentManifest { virtual_size: LENGTH, chunks: digests };
    let proof = Verified::try_from(Evidence {
        received: Received { length: LENGTH, digests: vec![] },
        declared: vec![],
        source_format: DiskFormat::Raw,
        container_format: ContainerFormat::Bare,
        properties: Properties::new(),
        request: None,
        violations: vec![],
        manifest: manifest.clone(),
    });
    sink.commit(LENGTH, &proof.unwrap()).await.unwrap();
    manifest
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_neither_read_nor_written_from_pool_to_pool() {
    cluster().await.create_pool("copies").await.unwrap();
    let source = open(&options().await).await;
    let target = open(&options_for(cluster().await, "copies").await).await;
    let chunks = [0, 3, 700, 2047];
    let manifest = fill(&source, &chunks).await;
    let job = Copy {
        sources: vec![source.clone() as Arc<dyn Store>],
        content: manifest.root(),
        key: key(1),
        attempt: 1,
        targets: vec![Target { store: target.clone(), output: OutputFormat::RAW }],
        permit: None,
        limits: Limits::default(),
        workers: 2,
    };
    let progress = Arc::new(Progress::default());
    let copied = copy(&job, &progress, &CancellationToken::new()).await;
    assert_eq!(copied.result.unwrap().content_digest, manifest.root());
    let moved = progress.snapshot();
    assert!(moved.received <= chunks.len() as u64 * OBJECT, "{moved:?}");
    assert!(moved.written <= chunks.len() as u64 * (1 << 20), "{moved:?}");
    let (from, to) = (source.stat(&key(1)).await.unwrap(), target.stat(&key(1)).await.unwrap());
    assert_eq!(from.image, to.image);
    assert!(to.allocated_size <= chunks.len() as u64 * OBJECT, "{}", to.allocated_size);
    let reader = target.open(&key(1)).await.unwrap();
    for index in chunks {
        assert_eq!(reader.read_at(index * CHUNK_SIZE, 1 << 20).await.unwrap(), noise(index, 1 << 20));
    }
    assert_eq!(reader.next_data(4 * CHUNK_SIZE).await.unwrap(), Some((700 * CHUNK_SIZE, 700 * CHUNK_SIZE + (1 << 20))));
}
