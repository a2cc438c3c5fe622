//! An operator with the rights of `config/`, tenants, stores and Images, on top of a lab with nodes and agents.

use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use vitrine::api::{Image, ImagePhase, ImageStore};
use vitrine_harness::{ControlPlane, Process};

use crate::node::lab::{Lab, Node, until};

/// A lab with tenants. The tenants `NAME-t` and `NAME-u` are the operator's, and no others.
pub struct Site<'a> {
    pub lab: Lab<'a>,
    operator_config: PathBuf,
}

impl Site<'static> {
    /// A site on the control plane that all tests share.
    pub async fn shared(name: &str) -> Self {
        Self::open(ControlPlane::shared().await.unwrap(), name).await
    }
}

impl<'a> Site<'a> {
    /// A site called `name` on `plane`.
    pub async fn open(plane: &'a ControlPlane, name: &str) -> Self {
        let lab = Lab::open(plane, name).await;
        for tenant in ["t", "u"] {
            let space = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}-{tenant}}}}}");
            plane.apply(&space).await.unwrap();
        }
        let operator_config = plane.kubeconfig_for(name, "vitrine-operator", None).await.unwrap();
        Self { lab, operator_config }
    }

    /// The namespace of tenant `t` or `u`.
    pub fn tenant(&self, tenant: &str) -> String {
        format!("{}-{tenant}", self.lab.namespace)
    }

    /// Starts an operator, with `extra` on its command line.
    pub fn operator(&self, extra: &[&str]) -> Process {
        let scope = self.lab.plane.scope();
        let mut command = scope.command(env!("CARGO_BIN_EXE_vitrine"));
        command.args(["operator", "--namespace", &self.lab.namespace, "--retry-base", "0.5", "--agent-grace", "3"]);
        command.arg("--store-selector").arg(format!("vitrine.dev/lab={}", self.lab.namespace));
        for tenant in ["t", "u"] {
            command.args(["--watch-namespace", &self.tenant(tenant)]);
        }
        if !extra.contains(&"--leader-lease") {
            command.args(["--leader-lease", "3"]);
        }
        command.args(extra).env("KUBECONFIG", &self.operator_config).env("RUST_LOG", "info,vitrine=debug");
        scope.spawn(&format!("{}-operator", self.lab.namespace), command).unwrap()
    }

    /// The name of store `short` of this site.
    pub fn store_name(&self, short: &str) -> String {
        format!("{}-{short}", self.lab.namespace)
    }

    /// Makes the ImageStore `short` in `folder`, on `node` only if one is given.
    pub async fn store(&self, short: &str, folder: &Path, shared: bool, node: Option<&Node>) {
        let selector = node.map_or(json!({}), |node| json!({ "kubernetes.io/hostname": node.name }));
        let manifest = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
            "metadata": { "name": self.store_name(short), "labels": { "vitrine.dev/lab": self.lab.namespace } },
            "spec": { "nodeSelector": selector, "filesystem": { "path": folder, "shared": shared } },
        });
        self.lab.plane.apply(&manifest.to_string()).await.unwrap();
    }

    /// Makes the ImageStores `a`, `b` and `c` in folders of `node`: two that only it reaches, and one that others could reach as well.
    pub async fn three_folders(&self, node: &Node) -> [PathBuf; 3] {
        let names = ["a", "b", "c"];
        let folders = names.map(|name| node.stores.join(name));
        for (name, folder) in names.iter().zip(&folders) {
            self.store(name, folder, *name == "c", None).await;
        }
        folders
    }

    /// Makes the Image `name` of `tenant`, from `path` on the lab's server, in store `store`.
    pub async fn image(&self, tenant: &str, name: &str, path: &str, store: &str) {
        let manifest = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
            "metadata": { "name": name, "namespace": self.tenant(tenant) },
            "spec": {
                "source": { "http": { "url": self.lab.server.url(path) } },
                "stores": [self.store_name(store)],
            },
        });
        self.lab.plane.apply(&manifest.to_string()).await.unwrap();
    }

    /// The Images of `tenant`.
    pub fn images(&self, tenant: &str) -> Api<Image> {
        Api::namespaced(self.lab.client.clone(), &self.tenant(tenant))
    }

    /// The ImageStores.
    pub fn stores(&self) -> Api<ImageStore> {
        Api::all(self.lab.client.clone())
    }

    /// Changes an Image of tenant `t`.
    pub async fn patch(&self, name: &str, patch: Value) {
        self.images("t").patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Deletes an Image, and waits until it is gone.
    pub async fn delete(&self, tenant: &str, name: &str) {
        let images = self.images(tenant);
        images.delete(name, &DeleteParams::default()).await.unwrap();
        until(&format!("Image {name} is gone"), async || images.get_opt(name).await.ok()?.is_none().then_some(()))
            .await;
    }

    /// The Image, once `is_so` holds of it and its status is of its present spec.
    pub async fn wait_for(&self, tenant: &str, name: &str, what: &str, is_so: impl Fn(&Image) -> bool) -> Image {
        let images = self.images(tenant);
        let fresh = |image: &Image| {
            image.status.as_ref().is_some_and(|status| status.observed_generation == image.metadata.generation)
        };
        until(&format!("Image {name} {what}"), async || {
            images.get(name).await.ok().filter(|image| fresh(image) && is_so(image))
        })
        .await
    }

    /// The Image, once it is `Active` and `Ready`.
    pub async fn active(&self, tenant: &str, name: &str) -> Image {
        let ready = |image: &Image| phase(image) == Some(ImagePhase::Active) && is(image, "Ready", "True");
        self.wait_for(tenant, name, "is Active", ready).await
    }

    /// The Image, once it has failed for good.
    pub async fn stalled(&self, tenant: &str, name: &str) -> Image {
        self.wait_for(tenant, name, "is Stalled", |image| is(image, "Stalled", "True")).await
    }
}

/// A site called `name` with an operator and an agent, which live as long as these are held, and with the store `s` on the agent's node.
pub async fn staffed(name: &str, agent: &[&str]) -> (Site<'static>, Node, [Process; 2]) {
    let site = Site::shared(name).await;
    let node = site.lab.node("n").await;
    let staff = [site.operator(&[]), site.lab.start(&node, agent)];
    site.store("s", &node.store(), false, None).await;
    (site, node, staff)
}

/// One word on the Image.
pub fn phase(image: &Image) -> Option<ImagePhase> {
    image.status.as_ref().and_then(|status| status.phase)
}

/// The condition of that type.
pub fn condition<'i>(image: &'i Image, kind: &str) -> Option<&'i Condition> {
    image.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of that type has that status.
pub fn is(image: &Image, kind: &str, status: &str) -> bool {
    condition(image, kind).is_some_and(|condition| condition.status == status)
}

/// The file of the Image's one location.
pub fn file(image: &Image) -> PathBuf {
    let status = image.status.as_ref().unwrap();
    let [location] = status.locations.as_slice() else { panic!("one location: {status:?}") };
    PathBuf::from(location.url.as_deref().unwrap().strip_prefix("file://").unwrap())
}
