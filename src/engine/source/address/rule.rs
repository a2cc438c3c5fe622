//! One rule of the address policy, as it is written in configuration.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Target, covers};

/// The schemes an image is fetched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    pub(super) const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A rule. Everything given must match; what is left out matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AddressRule {
    /// `http`, `https`.
    pub schemes: Vec<Scheme>,
    /// Names, exact or with a leading `*.` for everything below; or addresses, which count as networks of one.
    pub hosts: Vec<HostPattern>,
    /// Networks in CIDR notation, compared with the address that is really connected to.
    pub networks: Vec<IpNet>,
    /// `443`, or `8000-8999`.
    pub ports: Vec<PortRange>,
}

impl AddressRule {
    /// Whether the rule holds for a request for `target` that goes to `address`.
    pub(super) fn matches(&self, target: &Target, address: IpAddr) -> bool {
        self.matches_way(target)
            && self.matches_host(target, Some(address))
            && (self.networks.is_empty() || self.networks.iter().any(|network| covers(network, address)))
    }

    /// Whether the rule holds for `target` whatever address its name has.
    pub(super) fn names(&self, target: &Target) -> bool {
        self.networks.is_empty() && self.could_match(target)
    }

    /// Whether the rule holds for `target` with some address.
    pub(super) fn could_match(&self, target: &Target) -> bool {
        self.matches_way(target) && self.matches_host(target, None)
    }

    /// Whether the rule says which addresses it means.
    pub(super) fn names_network(&self) -> bool {
        !self.networks.is_empty() || (!self.hosts.is_empty() && self.hosts.iter().all(HostPattern::is_address))
    }

    fn matches_way(&self, target: &Target) -> bool {
        (self.schemes.is_empty() || self.schemes.contains(&target.scheme))
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(target.port)))
    }

    fn matches_host(&self, target: &Target, address: Option<IpAddr>) -> bool {
        self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(&target.host, address))
    }
}

/// A host in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostPattern {
    /// This name and no other.
    Exact(String),
    /// Every name below this one, not itself.
    Below(String),
    /// This address, also where a name gives it.
    Address(IpAddr),
}

impl HostPattern {
    fn is_address(&self) -> bool {
        matches!(self, Self::Address(_))
    }

    fn matches(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Below(name) => host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')),
            Self::Address(wanted) => address.is_some_and(|found| covers(&IpNet::from(*wanted), found)),
        }
    }
}

/// Why a text is no host pattern or port range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {wanted}")]
pub struct ParseRuleError {
    found: String,
    wanted: &'static str,
}

impl FromStr for HostPattern {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = "a host pattern: write a name, *.name, or an address";
        let name = text.trim().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        if let Ok(address) = name.parse() {
            return Ok(Self::Address(address));
        }
        let (below, name) = match name.strip_prefix("*.") {
            Some(rest) => (true, rest.to_owned()),
            None => (false, name),
        };
        // The same rules that a URL's host goes through, so that an internationalised name is compared in its ASCII form.
        match url::Host::parse(&name) {
            Ok(url::Host::Domain(ascii)) if !ascii.contains('*') => {
                Ok(if below { Self::Below(ascii) } else { Self::Exact(ascii) })
            }
            _ => Err(ParseRuleError { found: text.to_owned(), wanted }),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = ParseRuleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

/// One port or a range of them, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ParseRuleError { found: text.to_owned(), wanted: "a port or a range of ports such as 8000-8999" }),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = ParseRuleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
    }
}
