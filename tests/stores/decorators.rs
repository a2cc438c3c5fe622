//! The decorators: what they add, and that they are stores like the ones behind them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        fault::{CommitFault, Faults, FaultyStore},
        limit::LimitedStore,
        memory::MemoryStore,
        meter::MeteredStore,
        pipe::Pipe,
    },
};

use crate::conformance::{self, Subject, key, noise, proof, publish, refused};

conformance::suite!(without_faults, {
    let memory = MemoryStore::new("memory");
    let wrap = || Arc::new(FaultyStore::new(Arc::new(memory.clone()), Faults::default()));
    Subject { store: wrap(), again: wrap(), granularity: 64 << 10, keep: Box::new(()) }
});

conformance::suite!(below_the_limit, {
    let memory = MemoryStore::new("memory");
    let wrap = || Arc::new(LimitedStore::new(Arc::new(memory.clone()), 4));
    Subject { store: wrap(), again: wrap(), granularity: 64 << 10, keep: Box::new(()) }
});

conformance::suite!(counted, {
    let memory = MemoryStore::new("memory");
    let wrap = || Arc::new(MeteredStore::new(Arc::new(memory.clone())));
    Subject { store: wrap(), again: wrap(), granularity: 64 << 10, keep: Box::new(()) }
});

fn faulty(faults: Faults) -> (MemoryStore, FaultyStore) {
    let memory = MemoryStore::new("memory");
    (memory.clone(), FaultyStore::new(Arc::new(memory), faults))
}

#[tokio::test]
async fn the_chosen_write_fails_once() {
    let (memory, store) = faulty(Faults { write: Some((2, Kind::Unavailable)), ..Faults::default() });
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 10)).await.unwrap();
    assert_eq!(refused(sink.write_at(10, noise(1, 10)).await), Kind::Unavailable);
    sink.write_at(10, noise(1, 10)).await.unwrap();
    assert_eq!(store.writes(), 3);
    drop(sink);
    assert_eq!(memory.list().await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_commit_fails_before_or_after_it_is_done() {
    for (fault, published) in [(CommitFault::Before(Kind::Io), 0), (CommitFault::After(Kind::Io), 1)] {
        let (memory, store) = faulty(Faults { commit: Some(fault), ..Faults::default() });
        let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
        assert_eq!(refused(sink.commit(10, &proof(10)).await), Kind::Io);
        assert_eq!(memory.list().await.unwrap().len(), published);
    }
}

#[tokio::test]
async fn reads_and_probes_fail_on_demand() {
    let (memory, store) = faulty(Faults { read: Some((2, Kind::Io)), probe: Some(Kind::Denied), ..Faults::default() });
    publish(&memory, &key(1), 10, &[]).await;
    assert_eq!(refused(store.probe().await), Kind::Denied);
    let reader = store.open(&key(1)).await.unwrap();
    reader.read_at(0, 1).await.unwrap();
    assert_eq!(refused(reader.read_at(0, 1).await), Kind::Io);
    assert_eq!(refused(reader.read_at(0, 1).await), Kind::Io);
}

#[tokio::test]
async fn writes_are_delayed() {
    let (_memory, store) = faulty(Faults { delay: Duration::from_millis(30), ..Faults::default() });
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let start = Instant::now();
    sink.write_at(0, noise(1, 10)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[tokio::test]
async fn what_wants_bytes_in_order_wants_them_behind_a_decorator_too() {
    let pipe = || Arc::new(Pipe::stdout().unwrap());
    let stores: [Arc<dyn Store>; 4] = [
        pipe(),
        Arc::new(FaultyStore::new(pipe(), Faults::default())),
        Arc::new(LimitedStore::new(pipe(), 1)),
        Arc::new(MeteredStore::new(pipe())),
    ];
    for store in stores {
        let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
        assert!(!sink.takes_any_order());
        assert_eq!(store.name(), "standard output");
        assert_eq!(refused(store.stat(&key(1)).await), Kind::NotFound, "what is written there is no object");
    }
}

#[tokio::test]
async fn a_sink_beyond_the_limit_waits_for_its_turn() {
    let store = LimitedStore::new(Arc::new(MemoryStore::new("memory")), 2);
    let create = |revision| {
        let (store, key) = (&store, key(revision));
        async move { store.create(&key, 1, OutputFormat::RAW).await.unwrap() }
    };
    let (first, second) = (create(1).await, create(2).await);
    let wait = Duration::from_millis(30);
    assert!(tokio::time::timeout(wait, create(3)).await.is_err());
    drop(first);
    let third = tokio::time::timeout(wait, create(3)).await.unwrap();
    assert!(tokio::time::timeout(wait, create(4)).await.is_err());
    second.commit(0, &proof(0)).await.unwrap();
    let fourth = tokio::time::timeout(wait, create(4)).await.unwrap();
    third.abort().await.unwrap();
    fourth.abort().await.unwrap();
}

#[tokio::test]
async fn a_full_memory_says_so_and_gives_its_room_back() {
    let store = MemoryStore::with_capacity("small", 256 << 10);
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    assert_eq!(refused(sink.write_at(0, noise(1, 300 << 10)).await), Kind::NoSpace);
    drop(sink);
    publish(&store, &key(1), 256 << 10, &[(0, noise(1, 256 << 10))]).await;
}
