//! Images with clones.

use std::sync::Arc;

use vitrine_engine::{
    error::Kind,
    store::{
        Store,
        rbd::{RbdOptions, RbdStore, Step},
    },
};

use super::{POOL, cluster, open, options, options_for};
use crate::conformance::{key, noise, publish, publish_with, read_all, refused};

/// Another pool of the same cluster, for clones.
async fn volumes() -> String {
    use tokio::sync::OnceCell;
    static MADE: OnceCell<()> = OnceCell::const_new();
    MADE.get_or_init(|| async { cluster().await.create_pool("volumes").await.unwrap() }).await;
    "volumes".to_owned()
}

/// Options for a pool of its own. Clones within the pools' own namespaces are of the kind that needs a protected snapshot; those into
/// and out of other namespaces are not.
async fn options_without_namespace(pool: &str) -> RbdOptions {
    let cluster = cluster().await;
    cluster.create_pool(pool).await.unwrap();
    options_for(cluster, pool).await
}

async fn published(options: &RbdOptions) -> Arc<RbdStore> {
    let store = open(options).await;
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    store
}

async fn assert_whole(store: &RbdStore) {
    assert_eq!(read_all(&*store.open(&key(1)).await.unwrap()).await, noise(1, 5000));
}

/// A name that no other test gives a clone.
fn volume(options: &RbdOptions) -> String {
    format!("disk-{}-{}", options.pool, options.namespace.as_deref().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_clones_is_deleted_when_they_are_gone() {
    let (options, pool) = (options_without_namespace("parents").await, volumes().await);
    let (store, name) = (published(&options).await, volume(&options));
    assert_eq!(store.children(&key(1)).await.unwrap(), Vec::<String>::new());
    let url = store.clone_image(&key(1), &pool, &name).await.unwrap();
    assert_eq!(url, format!("rbd://{}/volumes/{name}", cluster().await.fsid()));
    assert_eq!(store.children(&key(1)).await.unwrap(), [format!("volumes/{name}")]);
    assert_eq!(refused(store.clone_image(&key(1), &pool, &name).await), Kind::AlreadyExists);

    let error = store.delete(&key(1), 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.is_retryable() && error.to_string().contains(&format!("volumes/{name}")), "{error}");
    assert_whole(&store).await;
    // Still protected: another clone can be made.
    cluster().await.create_namespace("parents", "tenant").await.unwrap();
    let second = "parents/tenant".to_owned();
    store.clone_image(&key(1), &second, "second").await.unwrap();
    assert_eq!(store.children(&key(1)).await.unwrap(), [format!("{second}/second"), format!("volumes/{name}")]);

    cluster().await.rbd(&["rm", "--no-progress", &format!("volumes/{name}")]).unwrap();
    cluster().await.rbd(&["flatten", "--no-progress", &format!("{second}/second")]).unwrap();
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(refused(store.children(&key(1)).await), Kind::NotFound);
    assert_eq!(refused(store.clone_image(&key(1), &pool, "late").await), Kind::NotFound);
    assert_eq!(store.list().await.unwrap(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_made_independent_where_the_store_says_so() {
    let (mut options, pool) = (options().await, volumes().await);
    options.flatten_clones = true;
    let (store, name) = (published(&options).await, volume(&options));
    store.clone_image(&key(1), &pool, &name).await.unwrap();
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
    let content = cluster().await.scope().dir().join(&name);
    cluster().await.rbd(&["export", "--no-progress", &format!("volumes/{name}"), content.to_str().unwrap()]).unwrap();
    assert_eq!(std::fs::read(content).unwrap(), noise(1, 5000));
}

/// At the very moment when nothing protects the snapshot any more. The clone is of the kind that needs no protection.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_made_while_deleting_keeps_its_data() {
    let (options, _) = (options().await, volumes().await);
    let (store, name) = (published(&options).await, volume(&options));
    let image = format!("{POOL}/{}/{}@snap", options.namespace.as_ref().unwrap(), key(1));
    let target = format!("volumes/{name}");
    let (cluster, arguments) = (cluster().await, ["clone", "--rbd-default-clone-format", "2"].map(str::to_owned));
    let made = target.clone();
    store.watch_steps(move |step| {
        if step == Step::Unprotected {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).chain([&*image, &*made]).collect();
            cluster.rbd(&arguments).unwrap();
        }
    });
    let error = store.delete(&key(1), 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    assert_eq!(refused(store.stat(&key(1)).await), Kind::NotFound);
    let content = cluster.scope().dir().join(&name);
    cluster.rbd(&["export", "--no-progress", &target, content.to_str().unwrap()]).unwrap();
    assert_eq!(std::fs::read(content).unwrap(), noise(1, 5000));

    cluster.rbd(&["rm", "--no-progress", &target]).unwrap();
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
    publish_with(&*store, &key(1), 2, 5000, &[(0, noise(1, 5000))]).await;
    assert_whole(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_cloning_and_deleting_at_once_one_wins() {
    let (options, pool) = (options_without_namespace("contested").await, volumes().await);
    let (store, again, name) = (published(&options).await, open(&options).await, volume(&options));
    let key = key(1);
    for attempt in 1..=10 {
        let (cloned, deleted) = tokio::join!(again.clone_image(&key, &pool, &name), store.delete(&key, attempt));
        match (cloned, deleted) {
            (Ok(_), Err(error)) => {
                assert_eq!(error.kind(), Kind::InUse, "{error}");
                cluster().await.rbd(&["rm", "--no-progress", &format!("volumes/{name}")]).unwrap();
                assert_whole(&store).await;
            }
            (Err(error), Ok(())) => {
                assert!(matches!(error.kind(), Kind::NotFound | Kind::InUse), "{error}");
                publish_with(&*store, &key, attempt + 1, 5000, &[(0, noise(1, 5000))]).await;
            }
            // The clone was begun too late, and was seen before it was taken back. Nothing is in the way any more.
            (Err(error), Err(held)) if held.kind() == Kind::InUse => {
                assert_eq!(error.kind(), Kind::NotFound, "{error}");
                store.delete(&key, attempt).await.unwrap();
                publish_with(&*store, &key, attempt + 1, 5000, &[(0, noise(1, 5000))]).await;
            }
            (cloned, deleted) => panic!("{cloned:?} {deleted:?}"),
        }
    }
}
