//! Which addresses an image may be fetched from: pure rules on scheme, host, network and port.
//!
//! Asked before each request, for each redirect, and once more with the address that will really be connected to. Knows
//! nothing of HTTP and makes no look-ups.

mod class;
mod rule;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use class::{classify, embedded_v4};
pub use rule::{AddressRule, HostPattern, PortRange, Scheme};

use crate::error::{Error, Kind};

/// Names that mean the cluster or the node, in every cluster: denied unless allowed. Matched with everything below them.
const INTERNAL_NAMES: [&str; 7] = [
    "localhost",
    "svc",
    "cluster.local",
    "kubernetes",
    "kubernetes.default",
    // Google Cloud's metadata service, the one that has a name of its own.
    "metadata.google.internal",
    "metadata",
];

/// The rules, in order: scheme; what is denied by a rule; what is allowed by a rule; what is denied by nature
/// (the node itself, its link, metadata services, the cluster, addresses that no server can have); everything else is
/// allowed unless `only_allowed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AddressPolicy {
    /// Lifts the built-in denials, never those of `deny`. A rule without `networks` lifts only the one on cluster-internal
    /// names and networks: whoever controls a name chooses its addresses, so the node itself and metadata services have to
    /// be allowed by address.
    pub allow: Vec<AddressRule>,
    /// Denied whatever `allow` says.
    pub deny: Vec<AddressRule>,
    /// The cluster's own networks (services, pods, nodes if they run nothing for users), denied unless allowed.
    pub cluster_networks: Vec<IpNet>,
    /// Denies everything that no rule in `allow` names.
    pub only_allowed: bool,
    /// Lets a server redirect from https to http.
    pub allow_downgrade: bool,
}

/// Where a request is to go, before any look-up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub scheme: Scheme,
    /// Lower case, without brackets and without the dot that ends a fully qualified name.
    pub host: String,
    pub port: u16,
}

/// A refusal by the policy: what was asked for and why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is denied by the address policy: {why}")]
pub struct Refusal {
    what: String,
    why: String,
}

impl Refusal {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(Kind::Denied, format!("{refusal}; an administrator can allow it for this cluster"))
    }
}

impl Target {
    /// Takes the target out of a URL, whose parser has by then undone odd spellings of IPv4, case and IDN.
    pub fn of(url: &Url) -> Result<Self, Refusal> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => return Err(Refusal::new(format!("scheme `{other}`"), "only http and https are fetched")),
        };
        let host = match url.host() {
            Some(Host::Domain(name)) => name.trim_end_matches('.').to_ascii_lowercase(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        if host.is_empty() {
            return Err(Refusal::new("a URL without a host", "there is nothing to connect to"));
        }
        Ok(Self { scheme, host, port: url.port_or_known_default().unwrap_or(scheme.default_port()) })
    }

    /// The address, if the host is one.
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl AddressPolicy {
    /// Whether `url` may be asked, as far as that can be told without a look-up.
    ///
    /// # Errors
    /// The refusal, if not.
    pub fn check_url(&self, url: &Url) -> Result<(), Refusal> {
        self.check_target(&Target::of(url)?)
    }

    pub(super) fn check_target(&self, target: &Target) -> Result<(), Refusal> {
        if let Some(address) = target.literal() {
            return self.check_address(target, address);
        }
        if self.deny.iter().any(|rule| rule.names(target)) {
            return Err(Refusal::new(&target.host, "a rule denies it"));
        }
        let allowed = self.allow.iter().any(|rule| rule.could_match(target));
        if !allowed && is_internal_name(&target.host) {
            return Err(Refusal::new(&target.host, "it is a name of the cluster or of the node itself"));
        }
        if !allowed && self.only_allowed {
            return Err(Refusal::new(&target.host, "no rule allows it and only what is allowed may be fetched"));
        }
        Ok(())
    }

    /// Whether a request for `target` may be sent to `address`, which its name gave (or which it is).
    pub(super) fn check_address(&self, target: &Target, address: IpAddr) -> Result<(), Refusal> {
        let refuse = |why: String| {
            let what = match target.literal() {
                Some(_) => target.host.clone(),
                None => format!("{} ({address})", target.host),
            };
            Err(Refusal::new(what, why))
        };
        if self.deny.iter().any(|rule| rule.matches(target, address)) {
            return refuse("a rule denies it".to_owned());
        }
        if self.allow.iter().any(|rule| rule.names_network() && rule.matches(target, address)) {
            return Ok(());
        }
        if let Some(class) = classify(address) {
            return refuse(format!("it is {class}"));
        }
        if self.allow.iter().any(|rule| rule.matches(target, address)) {
            return Ok(());
        }
        // The name passed before the look-up because some rule might have meant it; none means it with this address.
        if is_internal_name(&target.host) {
            return refuse("it is a name of the cluster or of the node itself".to_owned());
        }
        if let Some(network) = self.cluster_networks.iter().find(|network| covers(network, address)) {
            return refuse(format!("it lies in the cluster's own network {network}"));
        }
        if self.only_allowed {
            return refuse("no rule allows it and only what is allowed may be fetched".to_owned());
        }
        Ok(())
    }
}

/// Whether `network` holds `address`, also where an IPv6 address only carries an IPv4 one.
fn covers(network: &IpNet, address: IpAddr) -> bool {
    let inner = match address {
        IpAddr::V6(v6) => embedded_v4(v6).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    network.contains(&address) || inner.is_some_and(|inner| network.contains(&inner))
}

/// Whether the name is, or lies below, one that means the cluster or the node. `x.svc` without a domain is what pods write.
fn is_internal_name(host: &str) -> bool {
    INTERNAL_NAMES.iter().any(|name| host == *name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
}

#[cfg(test)]
mod tests;
