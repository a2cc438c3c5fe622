//! What kind of place an IP address is, by the registries of special-purpose addresses.
//!
//! Knows addresses only; what is done about a class is the policy's business.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Places that an image is never fetched from unless an operator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The node itself.
    Loopback,
    /// The link the node is on; the usual home of metadata services.
    LinkLocal,
    /// A cloud's metadata service, which gives credentials to whoever asks from the node.
    Metadata,
    /// No address at all; most systems connect it to the node itself.
    Unspecified,
    /// Many hosts at once.
    Multicast,
    /// Set aside: no host may have it.
    Reserved,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast address",
            Self::Reserved => "a reserved address",
        })
    }
}

/// Metadata services outside the link-local ranges.
const METADATA: [IpAddr; 5] = [
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle Cloud's older one.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Azure's wire server: outside every private range, and it hands out the machine's secrets.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // AWS over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google Cloud over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// The class of `address`; `None` for an ordinary one, public or private.
pub(super) fn classify(address: IpAddr) -> Option<Class> {
    if METADATA.contains(&address) || address == IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)) {
        return Some(Class::Metadata);
    }
    match address {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6).or_else(|| embedded_v4(v6).and_then(|v4| classify(v4.into()))),
    }
}

/// The registry of RFC 6890 as far as it names places that no image server can be.
fn classify_v4(address: Ipv4Addr) -> Option<Class> {
    match address.octets() {
        // All of 0.0.0.0/8 is "this host on this network".
        [0, ..] => Some(Class::Unspecified),
        [127, ..] => Some(Class::Loopback),
        [169, 254, ..] => Some(Class::LinkLocal),
        [224..=239, ..] => Some(Class::Multicast),
        // 192.0.0.0/24: protocol assignments; 240.0.0.0/4: future use, broadcast among it.
        [192, 0, 0, _] | [240..=255, ..] => Some(Class::Reserved),
        _ => None,
    }
}

fn classify_v6(address: Ipv6Addr) -> Option<Class> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Class::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Class::Loopback),
        [0xff00..=0xffff, ..] => Some(Class::Multicast),
        [0xfe80..=0xfebf, ..] => Some(Class::LinkLocal),
        // fec0::/10 was site-local (RFC 3879); 100::/64 discards; 2001::/32 is Teredo, whose embedded address is disguised;
        // 64:ff9b:1::/48 translates to whatever the local network likes (RFC 8215).
        [0xfec0..=0xfeff, ..] | [0x100, 0, 0, 0, ..] | [0x2001, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(Class::Reserved),
        _ => None,
    }
}

/// The IPv4 address that packets to this IPv6 address end up at, for every form that carries one.
pub(super) fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        // ::a.b.c.d compatible (deprecated by RFC 4291, still routed by some) and ::ffff:a.b.c.d mapped; :: and ::1 are
        // told apart before.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        // ::ffff:0:a.b.c.d translated (RFC 2765), and NAT64 (RFC 6052).
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        // ISATAP (RFC 5214) and 6to4 (RFC 3056).
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low]
        | [0x2002, high, low, ..] => Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_place_is_recognised_in_every_spelling() {
        let table = [
            ("127.0.0.1", Some(Class::Loopback)),
            ("127.255.255.254", Some(Class::Loopback)),
            ("::1", Some(Class::Loopback)),
            ("::ffff:127.0.0.1", Some(Class::Loopback)),
            ("::127.0.0.1", Some(Class::Loopback)),
            ("2002:7f00:1::", Some(Class::Loopback)),
            ("64:ff9b::7f00:1", Some(Class::Loopback)),
            ("::ffff:0:7f00:1", Some(Class::Loopback)),
            ("2620:1::5efe:7f00:1", Some(Class::Loopback)),
            ("169.254.169.254", Some(Class::Metadata)),
            ("::ffff:169.254.169.254", Some(Class::Metadata)),
            ("64:ff9b::a9fe:a9fe", Some(Class::Metadata)),
            ("100.100.100.200", Some(Class::Metadata)),
            ("::ffff:100.100.100.200", Some(Class::Metadata)),
            ("fd00:ec2::254", Some(Class::Metadata)),
            ("168.63.129.16", Some(Class::Metadata)),
            ("169.254.1.1", Some(Class::LinkLocal)),
            ("fe80::1", Some(Class::LinkLocal)),
            ("febf::1", Some(Class::LinkLocal)),
            ("0.0.0.0", Some(Class::Unspecified)),
            ("0.1.2.3", Some(Class::Unspecified)),
            ("::", Some(Class::Unspecified)),
            ("::ffff:0.0.0.0", Some(Class::Unspecified)),
            ("224.0.0.1", Some(Class::Multicast)),
            ("ff02::1", Some(Class::Multicast)),
            ("255.255.255.255", Some(Class::Reserved)),
            ("240.0.0.1", Some(Class::Reserved)),
            ("fec0::1", Some(Class::Reserved)),
            ("2001:0:1::", Some(Class::Reserved)),
            ("64:ff9b:1::a9fe:a9fe", Some(Class::Reserved)),
            ("10.0.0.1", None),
            ("192.168.1.1", None),
            ("172.16.0.1", None),
            ("100.64.0.1", None),
            ("8.8.8.8", None),
            ("fd00::1", None),
            ("2001:db8::1", None),
            ("64:ff9b::808:808", None),
            ("2002:808:808::", None),
        ];
        for (text, class) in table {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }
}
