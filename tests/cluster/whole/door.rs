//! The data API as a caller meets it: a token, the published certificates, a client of either version.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use reqwest::{Certificate, Client, ClientBuilder, Method, Response, Version};
use serde_json::{Value, json};
use vitrine::api::NodeCache;

use super::site::Site;
use crate::node::lab::{Node, until};

/// Where every agent of these tests serves.
pub const ADDRESS: [&str; 2] = ["--data-address", "127.0.0.1:0"];

/// One agent's door.
pub struct Door<'s, 'a> {
    pub site: &'s Site<'a>,
    pub address: SocketAddr,
}

impl<'s, 'a> Door<'s, 'a> {
    /// That of the agent on `node`, once it answers.
    pub async fn of(site: &'s Site<'a>, node: &Node) -> Self {
        let caches: Api<NodeCache> = Api::all(site.lab.client.clone());
        let open = async || {
            let cache = caches.get_opt(&node.name).await.ok()??;
            cache.spec.certificate?;
            let address = cache.status?.data?.address.parse().ok()?;
            let door = Self { site, address };
            door.client(Version::HTTP_11).await.get(format!("https://{address}/")).send().await.ok()?;
            Some(door)
        };
        until(&format!("the agent on {} serves data", node.name), open).await
    }

    /// The certificates that the operator publishes.
    pub async fn bundle(&self) -> String {
        let maps: Api<ConfigMap> = Api::namespaced(self.site.lab.client.clone(), &self.site.lab.namespace);
        maps.get("vitrine-ca").await.unwrap().data.unwrap().remove("ca.crt").unwrap()
    }

    /// A client that trusts whom `bundle` names and nobody else.
    pub fn trusting(bundle: &str, version: Version) -> Client {
        let builder: ClientBuilder = Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(bundle.as_bytes()).unwrap())
            .no_proxy()
            .timeout(Duration::from_secs(60));
        let builder = if version == Version::HTTP_11 { builder.http1_only() } else { builder };
        builder.build().unwrap()
    }

    pub async fn client(&self, version: Version) -> Client {
        Self::trusting(&self.bundle().await, version)
    }

    /// The URL of an Image's data.
    pub fn url(&self, tenant: &str, name: &str) -> String {
        let namespace = self.site.tenant(tenant);
        format!("https://localhost:{}/v1/namespaces/{namespace}/images/{name}/data", self.address.port())
    }

    /// Asks for an Image of tenant `t`.
    pub async fn ask(&self, method: Method, name: &str, token: &str, headers: &[(&str, &str)]) -> Response {
        let client = self.client(Version::HTTP_11).await;
        let mut request = client.request(method, self.url("t", name));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub async fn get(&self, name: &str, token: &str, headers: &[(&str, &str)]) -> Response {
        self.ask(Method::GET, name, token, headers).await
    }

    /// A refusal: its code and reason, and its message. It must be what clients of Kubernetes understand.
    pub async fn refused(&self, name: &str, token: &str) -> (u16, String, String) {
        refusal(self.get(name, token, &[]).await).await
    }
}

/// What a refusal says.
pub async fn refusal(response: Response) -> (u16, String, String) {
    let code = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let status: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")), "{status}");
    assert_eq!(status["code"], code, "{status}");
    let text = |key: &str| status[key].as_str().unwrap().to_owned();
    (code, text("reason"), text("message"))
}

impl Site<'_> {
    /// A service account of tenant `tenant` with the cluster roles `roles` there; gives its token.
    pub async fn token(&self, tenant: &str, account: &str, roles: &[&str]) -> String {
        let namespace = self.tenant(tenant);
        let mut manifest = vec![json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account, "namespace": namespace },
        })];
        manifest.extend(roles.iter().map(|role| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": { "name": format!("{account}-{role}"), "namespace": namespace },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": namespace }],
            })
        }));
        let text: Vec<_> = manifest.iter().map(Value::to_string).collect();
        self.lab.plane.apply(&text.join("\n---\n")).await.unwrap();
        let create = ["create", "token", account, "--namespace", &namespace];
        self.lab.plane.kubectl(&create).await.unwrap().success().unwrap().trim().to_owned()
    }
}
