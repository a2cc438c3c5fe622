//! A writer that is overtaken right before it would publish, in whatever store it writes to.

use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use vitrine_engine::{error::Kind, model::OutputFormat, store::Store};

use crate::conformance::{key, noise, proof, read_all, refused};

/// What is done while somebody is held up.
pub type Work = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Has attempt 1 write to `store`, and attempt 2 begin in `again`, which is the same one opened a second time, and publish if `at_once`.
/// `hold_up` is given what attempt 2 does, and has it done right before attempt 1 would be published.
pub async fn overtake(store: Arc<dyn Store>, again: Arc<dyn Store>, at_once: bool, hold_up: impl FnOnce(Work)) {
    let (other, later) = (Arc::clone(&again), Arc::new(Mutex::new(None)));
    let begun = Arc::clone(&later);
    hold_up(Box::new(move || {
        let (other, begun) = (Arc::clone(&other), Arc::clone(&begun));
        Box::pin(async move {
            let mut sink = other.create(&key(1), 2, OutputFormat::RAW).await.unwrap();
            sink.write_at(0, noise(2, 5000)).await.unwrap();
            if at_once {
                sink.commit(5000, &proof(5000)).await.unwrap();
            } else {
                *begun.lock().unwrap() = Some(sink);
            }
        })
    }));
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 5000)).await.unwrap();
    assert_eq!(refused(sink.commit(5000, &proof(5000)).await), Kind::Conflict);
    let later = later.lock().unwrap().take();
    if let Some(later) = later {
        later.commit(5000, &proof(5000)).await.unwrap();
    }
    assert_eq!(read_all(&*again.open(&key(1)).await.unwrap()).await, noise(2, 5000));
    let left = again.list().await.unwrap();
    assert!(left.len() == 1 && left[0].published, "{left:?}");
}
