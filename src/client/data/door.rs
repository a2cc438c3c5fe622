//! The way to an agent's data API: a port that the API server forwards, or an address where it is exposed; TLS over either.
//!
//! Trusted is who signs the agents' certificates, as Vitrine publishes it, and nobody else.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use rand::seq::IndexedRandom as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use url::Url;
use vitrine_engine::error::{Error, Kind, Result};

use crate::{
    api::identity::{CA_BUNDLE, DATA_SERVICE, SECRET_CA_KEY},
    client::{
        connect::Cluster,
        explain::{Explain as _, explain},
    },
};

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(30);

/// How the person wants it to be reached.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Vitrine's namespace.
    pub site: String,
    /// An address where the data API is exposed. Without one, a port is forwarded.
    pub url: Option<Url>,
    /// A file with who signs certificates there, in PEM. Without one it is who Vitrine publishes.
    pub authority: Option<PathBuf>,
}

/// A way to an agent.
pub struct Door {
    cluster: Cluster,
    site: String,
    url: Option<Url>,
    tls: TlsConnector,
    name: ServerName<'static>,
    /// The node whose agent is best asked, if that is known.
    pub node: Option<String>,
}

/// What a connection runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Door {
    /// Finds out whom to trust. Nothing is connected yet.
    ///
    /// # Errors
    /// If the person may not read who signs, or the URL is none of a data API.
    pub async fn find(cluster: &Cluster, choice: Choice) -> Result<Self> {
        let Choice { site, url, authority } = choice;
        let bundle = match &authority {
            Some(path) => std::fs::read(path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?,
            None => published(cluster, &site).await?.into_bytes(),
        };
        let host = match &url {
            Some(url) => host_of(url)?,
            None => format!("{DATA_SERVICE}.{site}.svc"),
        };
        let wrong = |e| Error::with_source(Kind::InvalidInput, format!("`{host}` is no name of a server"), e);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(wrong)?;
        Ok(Self { cluster: cluster.clone(), site, url, tls: trusting(&bundle)?, name, node: None })
    }

    /// The host as requests name it.
    pub fn host(&self) -> String {
        let of_url = |url: &Url| match url.port() {
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
            None => url.host_str().unwrap_or_default().to_owned(),
        };
        self.url.as_ref().map_or_else(|| format!("{DATA_SERVICE}.{}.svc", self.site), of_url)
    }

    /// Where it leads to, for messages.
    pub fn place(&self) -> String {
        self.url.as_ref().map_or_else(|| format!("an agent in namespace {}", self.site), ToString::to_string)
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `Unavailable` if trying again may help, else what stands in the way.
    pub async fn open(&self) -> Result<Box<dyn Stream>> {
        let late = |_| Error::new(Kind::Unavailable, format!("{} does not answer", self.place()));
        tokio::time::timeout(CONNECT, self.connect()).await.map_err(late)?
    }

    async fn connect(&self) -> Result<Box<dyn Stream>> {
        let stream: Box<dyn Stream> = match &self.url {
            Some(url) => Box::new(self.dial(url).await?),
            None => self.forward().await?,
        };
        let secured = self.tls.connect(self.name.clone(), stream).await;
        Ok(Box::new(secured.map_err(|error| self.unsecured(error))?))
    }

    /// A certificate that is not believed stays so; everything else may pass.
    fn unsecured(&self, error: io::Error) -> Error {
        let distrust = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(distrust, Some(rustls::Error::InvalidCertificate(_))) {
            let message = format!(
                "{} does not prove to be an agent of the Vitrine in namespace {}: it may be another one, or the address may lead elsewhere; \
                 --certificate-authority names who signs there",
                self.place(),
                self.site
            );
            return Error::with_source(Kind::Denied, message, error);
        }
        Error::with_source(Kind::Unavailable, format!("speaking TLS with {}", self.place()), error)
    }

    async fn dial(&self, url: &Url) -> Result<TcpStream> {
        let (host, port) = (host_of(url)?, url.port_or_known_default().unwrap_or(443));
        let unreachable = |e| Error::with_source(Kind::Unavailable, format!("{url} cannot be reached"), e);
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(stream)
    }

    /// A port of an agent that is ready, by way of the API server.
    async fn forward(&self) -> Result<Box<dyn Stream>> {
        let (pod, port) = self.agent().await?;
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.site);
        let mut forwarded = match pods.portforward(&pod, &[port]).await {
            Ok(forwarded) => forwarded,
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                return Err(self.not_allowed("get and create pods/portforward"));
            }
            Err(error) => {
                let error =
                    explain(&error).context(format!("forwarding port {port} of pod {pod} in namespace {}", self.site));
                return Err(Error::with_source(Kind::Unavailable, "no way to an agent", error));
            }
        };
        let none = || Error::new(Kind::Unavailable, format!("port {port} of pod {pod} was not forwarded"));
        Ok(Box::new(forwarded.take_stream(port).ok_or_else(none)?))
    }

    /// A ready agent's pod and the port of its data API: that of the node that has to do with the image, else any.
    async fn agent(&self) -> Result<(String, u16)> {
        let services: Api<Service> = Api::namespaced(self.cluster.client.clone(), &self.site);
        let service = match services.get_opt(DATA_SERVICE).await {
            Ok(Some(service)) => service.spec.unwrap_or_default(),
            Ok(None) => {
                let message = format!(
                    "there is no Service {DATA_SERVICE} in namespace {}: the data API is not served (data.enabled of the chart), or \
                     --vitrine-namespace must say where Vitrine is",
                    self.site
                );
                return Err(Error::new(Kind::NotFound, message));
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => return Err(self.not_allowed("get services")),
            Err(error) => return Err(explain(&error).context(format!("reading Service {DATA_SERVICE}"))),
        };
        let labels: Vec<_> = service.selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let target = service.ports.unwrap_or_default().into_iter().next().and_then(|port| port.target_port);
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.site);
        let pods = match pods.list(&ListParams::default().labels(&labels.join(","))).await {
            Err(kube::Error::Api(status)) if status.is_forbidden() => return Err(self.not_allowed("list pods")),
            pods => pods.explain(|| "looking for an agent")?.items,
        };
        let ready: Vec<_> = pods.iter().filter(|pod| is_ready(pod)).collect();
        let near = ready.iter().find(|pod| {
            self.node.is_some() && pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == self.node.as_ref()
        });
        let chosen = near.or_else(|| ready.choose(&mut rand::rng())).ok_or_else(|| {
            let message = format!("no agent in namespace {} is ready: see `kubectl vitrine doctor`", self.site);
            Error::new(Kind::Unavailable, message)
        })?;
        let port = port_of(chosen, target.as_ref()).ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("pod {} serves no data (data.enabled of the chart)", chosen.name_any()),
            )
        })?;
        Ok((chosen.name_any(), port))
    }

    fn not_allowed(&self, right: &str) -> Error {
        let site = &self.site;
        Error::new(
            Kind::Denied,
            format!(
                "you may not {right} in namespace {site}, which a forwarded port takes: ask who administers Vitrine for the role \
                 vitrine-forward there (kubectl create rolebinding NAME --role vitrine-forward --user YOU --namespace {site}), or for an \
                 address where the data API is exposed, and give it with --data-url"
            ),
        )
    }
}

/// Who signs the agents' certificates, as Vitrine publishes it.
///
/// # Errors
/// If there is no Vitrine there.
pub async fn published(cluster: &Cluster, site: &str) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), site);
    let none = |what: &str| {
        let message = format!(
            "{what} in namespace {site}: Vitrine is not installed there, or its operator has never run; --vitrine-namespace says where it is"
        );
        Error::new(Kind::NotFound, message)
    };
    let map = match maps.get_opt(CA_BUNDLE).await {
        Ok(map) => map.ok_or_else(|| none(&format!("there is no ConfigMap {CA_BUNDLE}")))?,
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            return Err(none(&format!("you may not read ConfigMap {CA_BUNDLE}")));
        }
        Err(error) => return Err(explain(&error).context(format!("reading ConfigMap {CA_BUNDLE}"))),
    };
    let bundle = map.data.and_then(|mut data| data.remove(SECRET_CA_KEY));
    bundle.ok_or_else(|| none(&format!("ConfigMap {CA_BUNDLE} has no key {SECRET_CA_KEY}")))
}

fn trusting(bundle: &[u8]) -> Result<TlsConnector> {
    let fault = |e: String| Error::new(Kind::InvalidInput, format!("the certificate authorities cannot be used: {e}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|e| fault(e.to_string()))?;
        roots.add(certificate).map_err(|e| fault(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(fault("there are none".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| fault(e.to_string()))?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

/// The host of a URL of a data API.
fn host_of(url: &Url) -> Result<String> {
    let wrong = |why| Error::new(Kind::InvalidInput, format!("{url} is no address of a data API: {why}"));
    if url.scheme() != "https" {
        return Err(wrong("it must begin with https://"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
        return Err(wrong("it is a scheme, a host and a port, and nothing more"));
    }
    url.host_str().map(str::to_owned).ok_or_else(|| wrong("it has no host"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// The port of a pod that a Service's target means.
fn port_of(pod: &Pod, target: Option<&IntOrString>) -> Option<u16> {
    let number = match target? {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_data_url_is_host_and_port() {
        let of = |text: &str| host_of(&text.parse().unwrap());
        assert_eq!(of("https://images.example:8443").unwrap(), "images.example");
        assert_eq!(of("https://[::1]:8443/").unwrap(), "[::1]");
        for wrong in ["http://a", "https://a/v1", "https://u@a", "https://a?b"] {
            assert_eq!(of(wrong).unwrap_err().kind(), Kind::InvalidInput, "{wrong}");
        }
    }

    #[test]
    fn a_port_is_found_by_name_or_number() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": { "containers": [{ "name": "agent", "ports": [
                { "name": "telemetry", "containerPort": 9090 }, { "name": "data", "containerPort": 8443 },
            ] }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .unwrap();
        assert!(is_ready(&pod) && !is_ready(&Pod::default()));
        assert_eq!(port_of(&pod, Some(&IntOrString::String("data".to_owned()))), Some(8443));
        assert_eq!(port_of(&pod, Some(&IntOrString::Int(1))), Some(1));
        assert_eq!(port_of(&pod, Some(&IntOrString::String("none".to_owned()))), None);
    }

    #[test]
    fn authorities_must_be_some() {
        assert_eq!(trusting(b"").err().map(|e| e.kind()), Some(Kind::InvalidInput));
    }
}
