//! Writing: server-side apply with one field manager per controller, and the few writes that are no apply.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Doing as _, Result};

/// What kinds the writer handles: everything with a static type.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize> Kind for K {}

/// Writes as one field manager.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    manager: &'static str,
}

impl Writer {
    /// A writer for one controller.
    pub fn new(client: Client, manager: &'static str) -> Self {
        Self { client, manager }
    }

    /// The client it writes with, for reading.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Applies the whole status of `object`, if nobody changed the object since it was read.
    ///
    /// # Errors
    /// A conflict if somebody did: read again and decide again.
    pub async fn apply_status<K: Kind>(&self, api: &Api<K>, object: &K, status: &impl Serialize) -> Result<K> {
        let name = object.name_any();
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "resourceVersion": object.resource_version() },
            "status": status,
        });
        let params = PatchParams::apply(self.manager).force();
        api.patch_status(&name, &params, &Patch::Apply(&body))
            .await
            .doing(|| format!("write the status of {} {name}", K::kind(&())))
    }

    /// Applies an object that is wholly ours.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn apply<K: Kind>(&self, api: &Api<K>, object: &K) -> Result<K> {
        let name = object.name_any();
        let params = PatchParams::apply(self.manager).force();
        api.patch(&name, &params, &Patch::Apply(object)).await.doing(|| format!("apply {} {name}", K::kind(&())))
    }

    /// Makes an object; one that is there already under this name was made by a predecessor for the same purpose, and is returned.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn create<K: Kind>(&self, api: &Api<K>, object: &K) -> Result<K> {
        let name = object.name_any();
        let params = PostParams { field_manager: Some(self.manager.to_owned()), ..PostParams::default() };
        let made = api.create(&params, object).await.doing(|| format!("make {} {name}", K::kind(&())));
        match made {
            Err(error) if error.is_already_exists() => {
                api.get(&name).await.doing(|| format!("read {} {name}", K::kind(&())))
            }
            other => other,
        }
    }

    /// Deletes the very object that was seen. That it is gone already is fine.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn delete<K: Kind>(&self, api: &Api<K>, name: &str, uid: Option<String>) -> Result<()> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::background()
        };
        match api.delete(name, &params).await.doing(|| format!("delete {} {name}", K::kind(&()))) {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Changes fields of spec by a merge patch. That the object is gone is fine.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn merge_spec<K: Kind>(&self, api: &Api<K>, name: &str, spec: serde_json::Value) -> Result<()> {
        let params = PatchParams { field_manager: Some(self.manager.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({ "spec": spec }));
        match api.patch(name, &params, &patch).await.doing(|| format!("change {} {name}", K::kind(&()))) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Puts `finalizer` on the object or takes it off, if nobody changed the object since it was read. Returns the object as it is then.
    ///
    /// # Errors
    /// A conflict if somebody did: read again and decide again.
    pub async fn set_finalizer<K: Kind>(&self, api: &Api<K>, object: &K, finalizer: &str, wanted: bool) -> Result<K> {
        let mut finalizers = object.finalizers().to_vec();
        if finalizers.iter().any(|f| f == finalizer) == wanted {
            return Ok(object.clone());
        }
        if wanted {
            finalizers.push(finalizer.to_owned());
        } else {
            finalizers.retain(|f| f != finalizer);
        }
        let name = object.name_any();
        let params = PatchParams { field_manager: Some(self.manager.to_owned()), ..PatchParams::default() };
        let patch = json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": finalizers } });
        api.patch(&name, &params, &Patch::Merge(patch))
            .await
            .doing(|| format!("change the finalizers of {} {name}", K::kind(&())))
    }
}

impl Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({})", self.manager)
    }
}

/// A namespaced API for one object of a kind that may be in any namespace.
pub fn api_of<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}
