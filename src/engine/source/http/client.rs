//! One HTTP client for each server that is asked, bound to that server's address rules.
//!
//! The resolver of each client lets through only addresses that the policy allows for that very scheme, name and port, and
//! the connection is made to what the resolver gave. So a name that answers differently the second time (DNS rebinding)
//! gains nothing: the check and the connection see the same look-up.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{
    Certificate, Client, Proxy,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio::sync::Mutex;
use url::Url;

use super::{config::HttpConfig, fault::Fault};
use crate::{
    error::{Error, Kind, Result},
    source::{AddressPolicy, Refusal, address::Target},
};

/// Clients kept at once. A download meets two or three servers; what lies beyond is a server that redirects for ever.
const MAX_CLIENTS: usize = 16;

/// The clients of one source.
pub(super) struct Clients {
    certificates: Vec<Certificate>,
    matcher: Matcher,
    made: Mutex<HashMap<Target, Client>>,
}

impl Clients {
    /// Prepares what all clients share.
    ///
    /// # Errors
    /// `InvalidInput` if the CA bundle is not PEM.
    pub fn new(config: &HttpConfig) -> Result<Self> {
        let certificates = config.ca_bundle.as_deref().map(read_bundle).transpose()?.unwrap_or_default();
        let text = |url: &Option<Url>| url.as_ref().map_or(String::new(), ToString::to_string);
        let matcher = Matcher::builder()
            .http(text(&config.proxy.http))
            .https(text(&config.proxy.https))
            .no(config.proxy.no_proxy.clone())
            .build();
        Ok(Self { certificates, matcher, made: Mutex::default() })
    }

    /// The client for `url`, once the policy has agreed.
    ///
    /// # Errors
    /// `Denied` by the policy; `InvalidInput` if a proxy or certificate cannot be used.
    pub async fn client(&self, config: &HttpConfig, url: &Url) -> Result<Client, Fault> {
        let target = Target::of(url).map_err(denied)?;
        config.policy.check_target(&target).map_err(denied)?;
        // Held until the client is made, so that ranges asked for side by side share one.
        let mut made = self.made.lock().await;
        if let Some(client) = made.get(&target) {
            return Ok(client.clone());
        }
        let proxy = self.proxy(config, url);
        if proxy.is_some() {
            check_through_proxy(config, &target).await.map_err(denied)?;
        }
        if made.len() >= MAX_CLIENTS {
            made.clear();
        }
        let client = self.build(config, &target, proxy.as_ref()).map_err(Fault::Final)?;
        made.insert(target, client.clone());
        Ok(client)
    }

    fn proxy(&self, config: &HttpConfig, url: &Url) -> Option<Url> {
        self.matcher.intercept(&url.as_str().parse().ok()?)?;
        if url.scheme() == "https" { config.proxy.https.clone() } else { config.proxy.http.clone() }
    }

    fn build(&self, config: &HttpConfig, target: &Target, proxy: Option<&Url>) -> Result<Client> {
        let resolver = GuardedResolver {
            policy: Arc::clone(&config.policy),
            target: target.clone(),
            proxy: proxy.and_then(|url| url.host_str()).map(str::to_owned),
        };
        let mut builder = Client::builder()
            .user_agent(config.user_agent.clone())
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(config.patience.connect)
            // HTTP/2 would put all ranges on one connection, whose one window is what several connections are to escape.
            .http1_only()
            .no_proxy()
            .dns_resolver(Arc::new(resolver));
        if let Some(url) = proxy {
            builder = builder.proxy(Proxy::all(url.clone()).map_err(|e| unusable("the proxy cannot be used", e))?);
        }
        builder = if target.scheme == super::Scheme::Http && proxy.is_none_or(|url| url.scheme() != "https") {
            // No TLS will be spoken: a container without the system's certificates must not fail for want of them.
            builder.tls_certs_only([])
        } else {
            builder
                .tls_certs_merge(self.certificates.clone())
                .tls_danger_accept_invalid_certs(config.insecure_skip_verify)
        };
        builder.build().map_err(|e| unusable("preparing the HTTP client", e))
    }
}

fn denied(refusal: Refusal) -> Fault {
    Fault::Final(refusal.into())
}

fn unusable(doing: &str, error: reqwest::Error) -> Error {
    Error::with_source(Kind::InvalidInput, doing, error.without_url())
}

fn read_bundle(pem: &[u8]) -> Result<Vec<Certificate>> {
    let bad = || {
        Error::new(
            Kind::InvalidInput,
            "the CA bundle holds no certificate in PEM: it must begin with -----BEGIN CERTIFICATE-----",
        )
    };
    match Certificate::from_pem_bundle(pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(bad()),
    }
}

/// Behind a proxy the proxy looks the name up, so what it finds is out of our hands. If the name can be looked up here
/// too, it must not give a denied address; if it cannot, or not in time, the proxy is trusted to know what it may reach.
async fn check_through_proxy(config: &HttpConfig, target: &Target) -> Result<(), Refusal> {
    if target.literal().is_some() {
        return Ok(()); // `check_target` has looked at it
    }
    let lookup = tokio::net::lookup_host((target.host.as_str(), target.port));
    match tokio::time::timeout(config.patience.connect, lookup).await {
        Ok(Ok(found)) => {
            for address in found {
                config.policy.check_address(target, address.ip())?;
            }
            Ok(())
        }
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

struct GuardedResolver {
    policy: Arc<AddressPolicy>,
    target: Target,
    /// The proxy's own name, which the operator chose.
    proxy: Option<String>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxy.as_deref() == Some(name.as_str());
        let (policy, target) = (Arc::clone(&self.policy), self.target.clone());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if is_proxy {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            Ok(Box::new(filter(&policy, &target, found)?.into_iter()) as Addrs)
        })
    }
}

/// The addresses that are allowed; the first refusal if none is.
fn filter(policy: &AddressPolicy, target: &Target, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
    let mut refusal = None;
    let mut allowed = Vec::with_capacity(found.len());
    for address in found {
        match policy.check_address(target, address.ip()) {
            Ok(()) => allowed.push(address),
            Err(no) => refusal = refusal.or(Some(no)),
        }
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(refusal),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_addresses_of_a_name_are_left_out() {
        let target = Target::of(&"http://x.example/".parse().unwrap()).unwrap();
        let policy = AddressPolicy::default();
        let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = addresses(&["127.0.0.1:0", "93.184.215.14:0", "[::1]:0"]);
        assert_eq!(filter(&policy, &target, mixed).unwrap(), addresses(&["93.184.215.14:0"]));
        let refusal = filter(&policy, &target, addresses(&["127.0.0.1:0", "[::1]:0"])).unwrap_err();
        assert!(refusal.to_string().contains("x.example (127.0.0.1)"));
        assert!(filter(&policy, &target, vec![]).unwrap().is_empty());
    }

    #[test]
    fn a_bundle_without_certificates_is_refused() {
        for text in [&b""[..], b"not PEM", b"-----BEGIN CERTIFICATE-----\nAA\n"] {
            assert_eq!(read_bundle(text).unwrap_err().kind(), Kind::InvalidInput);
        }
    }
}
