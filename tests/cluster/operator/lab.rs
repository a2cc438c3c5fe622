//! What one test has for itself: namespaces, nodes, stores, an operator that sees nothing else.

use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use vitrine::{
    api::{self, Image, ImageStore, ImageTask},
    controller::{self, Settings},
    kube::{client, readiness::Readiness},
};
use vitrine_harness::ControlPlane;

use super::agent::{Agent, Script};

/// Far longer than anything takes, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

pub struct Lab {
    pub plane: &'static ControlPlane,
    pub name: String,
    /// Every right.
    pub client: Client,
    /// How long a leader may be silent.
    pub leader_lease: Duration,
    /// The file with the ImageStore to begin with.
    pub default_store: Option<PathBuf>,
    operators: Vec<CancellationToken>,
    pub agents: Vec<Agent>,
}

impl Lab {
    /// A lab called `name` on the control plane that all share, with namespaces `NAME` (a tenant) and `NAME-sys` (the operator's).
    pub async fn new(name: &str) -> Self {
        static PREPARED: OnceCell<()> = OnceCell::const_new();
        let plane = ControlPlane::shared().await.unwrap();
        PREPARED.get_or_init(|| prepare(plane)).await;
        Self::on(plane, name).await
    }

    /// A lab on a control plane of its own, which it may disturb.
    pub async fn apart(name: &str) -> Self {
        let plane = Box::leak(Box::new(ControlPlane::start().await.unwrap()));
        prepare(plane).await;
        Self::on(plane, name).await
    }

    /// A lab called `name` with an operator, an agent that does as it is told, and the Image `debian`, active in the store `fast`.
    pub async fn active(name: &str) -> (Self, Agent, Image) {
        let mut lab = Self::new(name).await;
        lab.local_store("fast").await;
        lab.operator().await;
        let agent = lab.agent("n1").await;
        agent.script(Script::Succeed("one"));
        let image = lab.image("debian", "fast").await;
        lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
        (lab, agent, image)
    }

    async fn on(plane: &'static ControlPlane, name: &str) -> Self {
        let client = client_of(plane.kubeconfig()).await;
        let lab = Self {
            plane,
            name: name.to_owned(),
            client,
            leader_lease: Duration::from_secs(6),
            default_store: None,
            operators: vec![],
            agents: vec![],
        };
        lab.namespace(name).await;
        lab.namespace(&lab.system()).await;
        plane.apply(&roles(&lab.system())).await.unwrap();
        lab
    }

    pub async fn namespace(&self, name: &str) {
        let manifest = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        self.plane.apply(&manifest).await.unwrap();
    }

    pub fn system(&self) -> String {
        format!("{}-sys", self.name)
    }

    pub fn node(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    pub fn store_name(&self, store: &str) -> String {
        format!("{}-{store}", self.name)
    }

    /// What an operator of this lab is told. Waits are short, so that tests are.
    pub fn settings(&self, identity: &str) -> Settings {
        let mut settings = Settings::new(self.system(), identity);
        settings.watch_namespaces = vec![self.name.clone(), format!("{}-b", self.name)];
        settings.store_selector = format!("vitrine.dev/lab={}", self.name);
        settings.leader_lease = self.leader_lease;
        settings.agent_grace = Duration::from_secs(3);
        settings.retry.backoff.base = Duration::from_secs(1);
        settings.sweep_interval = Duration::from_secs(2);
        settings.default_store.clone_from(&self.default_store);
        settings
    }

    /// Starts an operator in this process, with the rights that config/rbac.yaml gives it and no others.
    pub async fn operator(&mut self) {
        let kubeconfig = self.plane.kubeconfig_for(&self.system(), "vitrine-operator", None).await.unwrap();
        let (client, stop) = (client_of(kubeconfig).await, CancellationToken::new());
        self.operators.push(stop.clone());
        tokio::spawn(controller::run(client, self.settings("in-process"), Readiness::default(), stop));
    }

    /// Ends all operators.
    pub fn dismiss(&mut self) {
        self.operators.drain(..).for_each(|stop| stop.cancel());
    }

    /// A node, and an agent on it with a token that is bound to the node.
    pub async fn agent(&mut self, node: &str) -> Agent {
        let node = self.node(node);
        self.plane.create_node(&node).await.unwrap();
        let kubeconfig = self.plane.kubeconfig_for(&self.system(), "vitrine-agent", Some(&node)).await.unwrap();
        let agent = Agent::start(client_of(kubeconfig).await, &self.system(), &node, &self.name);
        self.agents.push(agent.clone());
        agent
    }

    pub async fn store(&self, store: &str, spec: Value) {
        let name = self.store_name(store);
        let manifest = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
            "metadata": { "name": name, "labels": { "vitrine.dev/lab": self.name } },
            "spec": spec,
        });
        self.plane.apply(&manifest.to_string()).await.unwrap();
    }

    pub async fn local_store(&self, store: &str) {
        self.store(store, json!({ "filesystem": { "path": format!("/srv/{}", self.store_name(store)) } })).await;
    }

    /// An Image in `namespace` that shall be in `store`.
    pub async fn image_in(&self, namespace: &str, name: &str, store: &str) -> Image {
        let manifest = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
            "metadata": { "name": name, "namespace": namespace },
            "spec": { "source": { "http": { "url": "http://127.0.0.1/one" } }, "stores": [self.store_name(store)] },
        });
        self.plane.apply(&manifest.to_string()).await.unwrap();
        self.images_in(namespace).get(name).await.unwrap()
    }

    pub async fn image(&self, name: &str, store: &str) -> Image {
        self.image_in(&self.name, name, store).await
    }

    pub fn images_in(&self, namespace: &str) -> Api<Image> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn images(&self) -> Api<Image> {
        self.images_in(&self.name)
    }

    pub fn stores(&self) -> Api<ImageStore> {
        Api::all(self.client.clone())
    }

    pub fn tasks(&self) -> Api<ImageTask> {
        Api::namespaced(self.client.clone(), &self.system())
    }

    pub async fn all_tasks(&self) -> Vec<ImageTask> {
        self.tasks().list(&ListParams::default()).await.unwrap().items
    }

    pub async fn patch_image(&self, name: &str, patch: Value) {
        self.images().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn set_url(&self, name: &str, url: &str) {
        self.patch_image(name, json!({ "spec": { "source": { "http": { "url": url } } } })).await;
    }

    pub async fn delete_image(&self, name: &str) {
        self.images().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the Image is as `wanted` says.
    pub async fn until_image(&self, name: &str, what: &str, wanted: impl Fn(&Image) -> bool) -> Image {
        self.until_image_in(&self.name, name, what, wanted).await
    }

    pub async fn until_image_in(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&Image) -> bool,
    ) -> Image {
        let api = self.images_in(namespace);
        let look = || async {
            let image = api.get_opt(name).await.ok()??;
            if wanted(&image) { Some(Ok(image)) } else { Some(Err(image)) }
        };
        until(&format!("Image {name} {what}"), look).await
    }

    pub async fn until_image_gone(&self, name: &str) {
        let api = self.images();
        let look = || async {
            match api.get_opt(name).await.ok()? {
                None => Some(Ok(())),
                Some(image) => Some(Err(image)),
            }
        };
        until(&format!("Image {name} is gone"), look).await;
    }

    /// Waits until the tasks are as `wanted` says.
    pub async fn until_tasks(&self, what: &str, wanted: impl Fn(&[ImageTask]) -> bool) -> Vec<ImageTask> {
        let api = self.tasks();
        let look = || async {
            let tasks = api.list(&ListParams::default()).await.ok()?.items;
            if wanted(&tasks) { Some(Ok(tasks)) } else { Some(Err(tasks)) }
        };
        until(&format!("tasks: {what}"), look).await
    }

    /// Waits until the store is as `wanted` says.
    pub async fn until_store(&self, store: &str, what: &str, wanted: impl Fn(&ImageStore) -> bool) -> ImageStore {
        let (api, name) = (self.stores(), self.store_name(store));
        let look = || async {
            let store = api.get_opt(&name).await.ok()??;
            if wanted(&store) { Some(Ok(store)) } else { Some(Err(store)) }
        };
        until(&format!("ImageStore {name} {what}"), look).await
    }

    /// Reasons of the events about an object, oldest first.
    pub async fn events(&self, namespace: &str, name: &str) -> Vec<String> {
        let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(self.client.clone(), namespace);
        let mut events = api.list(&ListParams::default()).await.unwrap().items;
        events.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        events.into_iter().filter_map(|event| event.reason).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.operators.iter().for_each(CancellationToken::cancel);
        self.agents.iter().for_each(Agent::stop);
    }
}

/// Waits until `look` says `Ok`. `Err` is what was seen instead; `None` means that nothing could be seen.
pub async fn until<T, S: std::fmt::Debug, F: Future<Output = Option<Result<T, S>>>>(
    what: &str,
    look: impl Fn() -> F,
) -> T {
    let (start, mut last) = (Instant::now(), None);
    while start.elapsed() < PATIENCE {
        match look().await {
            Some(Ok(found)) => return found,
            Some(Err(seen)) => last = Some(seen),
            None => {}
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("not within {PATIENCE:?}: {what}; last seen: {last:#?}");
}

pub async fn client_of(kubeconfig: PathBuf) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    client::connect_with(config).unwrap()
}

/// Definitions and policies, once for each control plane.
async fn prepare(plane: &ControlPlane) {
    let definitions: String = api::crds().iter().map(|crd| api::crd_yaml(crd).unwrap()).collect();
    plane.apply(&definitions).await.unwrap();
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    plane.kubectl(&established).await.unwrap().success().unwrap();
    plane.apply(include_str!("../../../config/policies.yaml")).await.unwrap();
}

/// config/rbac.yaml for another namespace than vitrine-system. Bindings to cluster roles get names of their own.
fn roles(namespace: &str) -> String {
    let text = include_str!("../../../config/rbac.yaml").replace("vitrine-system", namespace);
    text.split("---\n")
        .map(|part| {
            if part.contains("kind: ClusterRoleBinding") {
                part.replacen("{name: vitrine-", &format!("{{name: {namespace}-"), 1)
            } else {
                part.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("---\n")
}

/// The message of a condition.
pub fn condition(
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    type_: &str,
) -> (String, String, String) {
    let found = conditions.iter().find(|c| c.type_ == type_);
    found.map(|c| (c.status.clone(), c.reason.clone(), c.message.clone())).unwrap_or_default()
}

/// What kstatus makes of an Image.
pub fn kstatus(image: &Image) -> &'static str {
    let status = image.status.clone().unwrap_or_default();
    let is = |type_, value: &str| condition(&status.conditions, type_).0 == value;
    match () {
        () if image.metadata.deletion_timestamp.is_some() => "Terminating",
        () if status.observed_generation != image.metadata.generation => "InProgress",
        () if is("Reconciling", "True") => "InProgress",
        () if is("Stalled", "True") => "Failed",
        () if is("Ready", "True") => "Current",
        () => "InProgress",
    }
}

pub fn task_names(tasks: &[ImageTask]) -> Vec<String> {
    tasks.iter().map(kube::ResourceExt::name_any).collect()
}

pub fn uid(image: &Image) -> String {
    image.uid().unwrap()
}
