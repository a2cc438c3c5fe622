//! An import that follows one which was killed between two stores.

use std::sync::Arc;

use async_trait::async_trait;
use vitrine_engine::{
    error::{Kind, Result},
    model::OutputFormat,
    source::{Opened, Source},
    store::{Store, memory::MemoryStore},
};

use crate::support::{Bytestream, disk, job, run, stored};

fn two_stores() -> [Arc<MemoryStore>; 2] {
    ["a", "b"].map(|name| Arc::new(MemoryStore::new(name)))
}

fn targets(stores: &[Arc<MemoryStore>]) -> Vec<(Arc<dyn Store>, OutputFormat)> {
    stores.iter().map(|store| (store.clone() as _, OutputFormat::RAW)).collect()
}

fn other_disk() -> Vec<u8> {
    let mut bytes = disk(6 << 20);
    bytes[3 << 20] ^= 1;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn one_revision_is_never_two_things_in_two_stores() {
    let stores = two_stores();
    run(&job(Bytestream::new(disk(6 << 20)), targets(&stores[..1]))).await.unwrap();
    let mut again = job(Bytestream::new(other_disk()), targets(&stores));
    again.attempt = 2;
    let error = run(&again).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    assert!(error.to_string().contains("store a"), "{error}");
    for store in &stores {
        assert!(store.list().await.unwrap().is_empty(), "{}", store.name());
    }
    again.attempt = 3;
    let imported = run(&again).await.unwrap();
    assert_eq!(imported.published.len(), 2);
    for store in &stores {
        assert_eq!(stored(&**store).await, other_disk());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_things_under_one_name_are_not_adopted() {
    let stores = two_stores();
    run(&job(Bytestream::new(disk(6 << 20)), targets(&stores[..1]))).await.unwrap();
    run(&job(Bytestream::new(other_disk()), targets(&stores[1..]))).await.unwrap();
    let mut again = job(Bytestream::new(disk(6 << 20)), targets(&stores));
    again.attempt = 2;
    assert_eq!(run(&again).await.unwrap_err().kind(), Kind::Changed);
    assert!(stores[1].list().await.unwrap().is_empty());
    again.attempt = 3;
    run(&again).await.unwrap();
    assert_eq!(stored(&*stores[1]).await, disk(6 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_in_the_same_form_is_kept() {
    let stores = two_stores();
    run(&job(Bytestream::new(disk(6 << 20)), targets(&stores[..1]))).await.unwrap();
    let mut again = job(Bytestream::new(disk(6 << 20)), targets(&stores));
    again.attempt = 2;
    assert_eq!(run(&again).await.unwrap().published.len(), 2);
}

/// A source that takes so long to connect that a slow earlier attempt publishes meanwhile.
struct Late {
    store: Arc<MemoryStore>,
}

#[async_trait]
impl Source for Late {
    fn describe(&self) -> String {
        "late".into()
    }

    async fn open(&self) -> Result<Opened> {
        let bytes = || Bytestream::new(disk(6 << 20));
        run(&job(bytes(), targets(std::slice::from_ref(&self.store)))).await?;
        bytes().open().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_meanwhile_is_adopted() {
    let [store, _] = two_stores();
    let late = job(Late { store: store.clone() }, targets(std::slice::from_ref(&store)));
    assert_eq!(run(&late).await.unwrap().published.len(), 1);
}
