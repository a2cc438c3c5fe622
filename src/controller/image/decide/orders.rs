//! What a decision wants done to tasks.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Observed;
use crate::api::{
    Action, Cleanup, CopyOrder, DeleteOrder, HIGHEST_ATTEMPT, Image, ImageIdentity, ImageStore, ImageTask,
    ImageTaskSpec, ImportOrder, StoreRef, StoreTarget, TaskHttp, TaskSource, TaskUpload, VerifyOrder, identity,
};
use crate::controller::image::validate::{Wanted, WantedStore, spec_hash};

/// Tasks to cancel, delete and make, in this order.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Names of tasks to cancel.
    pub cancel: Vec<String>,
    /// Names and uids of tasks to delete.
    pub remove: Vec<(String, Option<String>)>,
    /// Tasks to make.
    pub create: Vec<NewTask>,
}

/// A task to make.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The task.
    pub task: ImageTask,
    /// What its Secret holds; empty means it has none.
    pub secret: BTreeMap<String, Vec<u8>>,
}

impl Orders {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.cancel.is_empty() && self.remove.is_empty() && self.create.is_empty()
    }

    /// Asks an agent to stop, once.
    pub fn cancel(&mut self, task: &ImageTask) {
        if !task.spec.cancelled {
            self.cancel.extend(task.metadata.name.clone());
        }
    }

    /// Deletes a task that has served.
    pub fn remove(&mut self, task: &ImageTask) {
        if let Some(name) = &task.metadata.name {
            self.remove.push((name.clone(), task.metadata.uid.clone()));
        }
    }

    /// Whether `task` is to be deleted.
    pub fn removes(&self, task: &ImageTask) -> bool {
        self.remove.iter().any(|(name, uid)| Some(name) == task.metadata.name.as_ref() && *uid == task.metadata.uid)
    }
}

/// An attempt to bring a revision into stores.
#[derive(Clone, Copy, Debug)]
pub struct Bringing<'a> {
    /// Its number.
    pub revision: i64,
    /// The number of the attempt.
    pub attempt: i64,
    /// The node that does it.
    pub node: &'a str,
    /// Into which stores.
    pub stores: &'a [&'a WantedStore],
    /// Whether one store's failure fails all.
    pub require_all: bool,
}

/// The order to bring a revision from its source into stores. `known` are digests of it from an earlier import: what comes must be the
/// same.
pub fn import_task(seen: &Observed<'_>, wanted: &Wanted, known: &[String], bringing: Bringing<'_>) -> NewTask {
    let Bringing { revision, attempt, node, require_all, .. } = bringing;
    let image = seen.image;
    let uid = image.metadata.uid.clone().unwrap_or_default();
    let name = identity::task_name(&uid, revision, Action::Import, None, attempt);
    let (http, upload) = (wanted.source.http.as_ref(), wanted.source.upload.as_ref());
    let secret = wanted.secret.clone().unwrap_or_default();
    let declared = http.and_then(|http| http.checksum.clone()).or_else(|| upload?.checksum.clone());
    let mut checksums: Vec<_> = declared.into_iter().collect();
    checksums.extend(known.iter().find(|digest| digest.starts_with("sha256:") && !checksums.contains(digest)).cloned());
    let order = ImportOrder {
        source: TaskSource {
            http: http.map(|http| TaskHttp {
                url: http.url.clone(),
                secret_ref: (!secret.is_empty()).then(|| name.clone()),
                insecure_skip_verify: http.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify),
            }),
            upload: upload.map(|_| TaskUpload {}),
        },
        checksums,
        checksum_url: http.and_then(|http| http.checksum_url.clone()),
        disk_format: image.spec.disk_format,
        container_format: image.spec.container_format,
        container_disk: image.spec.container_disk.clone(),
        request: Some(spec_hash(&image.spec)),
        require_all_stores: require_all,
        stores: targets(seen, bringing),
    };
    let spec = ImageTaskSpec { import: Some(order), ..spec(image, Action::Import, revision, attempt, node) };
    NewTask { task: task(&uid, name, spec), secret }
}

/// The order to bring a revision that is `content` from the stores `from` into others.
pub fn copy_task(seen: &Observed<'_>, from: &[&ImageStore], content: &str, bringing: Bringing<'_>) -> NewTask {
    let Bringing { revision, attempt, node, .. } = bringing;
    let uid = seen.image.metadata.uid.clone().unwrap_or_default();
    let name = identity::task_name(&uid, revision, Action::Copy, None, attempt);
    let order = CopyOrder {
        from: from.iter().map(|store| referred(seen, store, node)).collect(),
        content_digest: content.to_owned(),
        stores: targets(seen, bringing),
    };
    let spec = ImageTaskSpec { copy: Some(order), ..spec(seen.image, Action::Copy, revision, attempt, node) };
    NewTask { task: task(&uid, name, spec), secret: BTreeMap::new() }
}

/// The order to verify what `store` holds of `revision`, which is `content`. `place` and `attempt` are as for `delete_task`.
pub fn verify_task(
    seen: &Observed<'_>,
    store: &ImageStore,
    content: &str,
    place: &str,
    (revision, attempt): (i64, i64),
    node: &str,
) -> NewTask {
    let uid = seen.image.metadata.uid.clone().unwrap_or_default();
    let name = identity::task_name(&uid, revision, Action::Verify, Some(place), attempt);
    let order = VerifyOrder { store: referred(seen, store, node), content_digest: content.to_owned() };
    let spec = ImageTaskSpec { verify: Some(order), ..spec(seen.image, Action::Verify, revision, attempt, node) };
    NewTask { task: task(&uid, name, spec), secret: BTreeMap::new() }
}

fn targets(seen: &Observed<'_>, bringing: Bringing<'_>) -> Vec<StoreTarget> {
    let target = |store: &&WantedStore| StoreTarget {
        name: store.name.clone(),
        output: store.output,
        store_id: seen.stores.get(&store.name).and_then(|found| store_id(seen, found, bringing.node)),
        thin_provisioning: store.thin_provisioning,
        backend: store.backend.clone(),
    };
    bringing.stores.iter().map(target).collect()
}

fn referred(seen: &Observed<'_>, store: &ImageStore, node: &str) -> StoreRef {
    StoreRef {
        name: store.metadata.name.clone().unwrap_or_default(),
        store_id: store_id(seen, store, node),
        backend: store.spec.backend.clone(),
    }
}

/// The order to remove what `item` names from `store`. `place` tells it from orders for other places, `attempt` from earlier ones.
pub fn delete_task(
    seen: &Observed<'_>,
    item: &Cleanup,
    store: &ImageStore,
    place: &str,
    attempt: i64,
    node: &str,
) -> NewTask {
    let (image, revision) = (seen.image, item.revision);
    let target = StoreRef { name: item.store.clone(), ..referred(seen, store, node) };
    let uid = image.metadata.uid.clone().unwrap_or_default();
    let name = identity::task_name(&uid, revision, Action::Delete, Some(place), attempt);
    let order = DeleteOrder { stores: vec![target], fence: item.attempt };
    let spec = ImageTaskSpec { delete: Some(order), ..spec(image, Action::Delete, revision, attempt, node) };
    NewTask { task: task(&uid, name, spec), secret: BTreeMap::new() }
}

/// The highest attempt at an Import of `revision` that is known of. An unknown revision has none that could be disturbed.
pub fn last_attempt(seen: &Observed<'_>, revision: i64) -> i64 {
    let status = seen.image.status.iter().flat_map(|status| &status.revisions);
    let recorded = status.filter(|known| known.number == revision).map(|known| known.attempts);
    let imports = seen.tasks.iter().map(|task| &task.spec);
    let imports = imports.filter(|spec| spec.action.brings() && spec.revision == revision);
    recorded.chain(imports.map(|spec| spec.attempt)).max().filter(|last| *last > 0).unwrap_or(HIGHEST_ATTEMPT)
}

/// Which store `node` must find: what all agree on if it is shared, else what the node itself has reported.
fn store_id(seen: &Observed<'_>, store: &ImageStore, node: &str) -> Option<String> {
    if store.spec.backend.is_shared() {
        return store.status.as_ref()?.id.clone();
    }
    let report = seen.fleet.report(node, store.metadata.name.as_deref()?)?;
    report.id.clone().filter(|_| report.uid == store.metadata.uid)
}

fn spec(image: &Image, action: Action, revision: i64, attempt: i64, node: &str) -> ImageTaskSpec {
    let metadata = &image.metadata;
    ImageTaskSpec {
        action,
        image: ImageIdentity {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
        },
        revision,
        node_name: node.to_owned(),
        attempt,
        import: None,
        copy: None,
        verify: None,
        delete: None,
        cancelled: false,
    }
}

fn task(uid: &str, name: String, spec: ImageTaskSpec) -> ImageTask {
    let labels = BTreeMap::from([(identity::LABEL_IMAGE_UID.to_owned(), uid.to_owned())]);
    let metadata = ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() };
    ImageTask { metadata, spec, status: None }
}
