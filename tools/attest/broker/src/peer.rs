//! Peers: who makes a connection, and for whom a proxy makes it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use casemate_foreign::Foreign;

use crate::http::Head;

/// Who makes a request.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Peer {
    /// An IP address.
    Tcp(IpAddr),
    /// A guest's context identifier.
    Vsock(u32),
    /// Path of the socket that it connected to.
    Unix(Arc<str>),
}

impl Peer {
    /// The peer as limits count it: an IPv6 host has a network of 64 bits, and may use any address in it.
    #[must_use]
    pub fn counted(&self) -> Self {
        match self {
            Peer::Tcp(address) => Peer::Tcp(match address.to_canonical() {
                IpAddr::V6(address) => {
                    let network = u128::from(address) >> 64 << 64;
                    IpAddr::V6(Ipv6Addr::from(network))
                }
                v4 @ IpAddr::V4(_) => v4,
            }),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(formatter, "tcp:{}", address.to_canonical()),
            Peer::Vsock(cid) => write!(formatter, "vsock:{cid}"),
            Peer::Unix(path) => write!(formatter, "unix:{path}"),
        }
    }
}

/// A network of IP addresses: `IP` or `IP/BITS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not a network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a network: write IP or IP/BITS", Foreign(.0))]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parse = || {
            let (address, bits) = match text.split_once('/') {
                None => (text, None),
                Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            };
            let address: IpAddr = address.parse().ok()?;
            let all = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(all);
            (bits <= all).then_some(Network { address, bits })
        };
        parse().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl Network {
    fn contains(self, other: IpAddr) -> bool {
        let differ = |mine: u128, theirs: u128, width: u32| {
            // A shift by all bits is none that Rust does.
            (mine ^ theirs).checked_shr(width - u32::from(self.bits)).unwrap_or(0) != 0
        };
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(theirs)) => {
                !differ(u32::from(mine).into(), u32::from(theirs).into(), 32)
            }
            (IpAddr::V6(mine), IpAddr::V6(theirs)) => !differ(mine.into(), theirs.into(), 128),
            _ => false,
        }
    }
}

/// The header in which proxies name their clients. Only one counts: a proxy hands on the other one as a
/// client sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Proxies whose word about their clients counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrustedProxies {
    /// Their addresses.
    pub networks: Vec<Network>,
    /// Where they name clients.
    pub header: ProxyHeader,
}

impl TrustedProxies {
    /// Whether `peer` is such a proxy.
    #[must_use]
    pub fn contains(&self, peer: &Peer) -> bool {
        matches!(peer, Peer::Tcp(address) if self.trusts(*address))
    }

    /// The peer that a request comes from: the last address in the header that is not a trusted proxy's.
    /// What stands before it was written by the peer itself.
    #[must_use]
    pub fn client(&self, direct: &Peer, head: &Head) -> Peer {
        let Peer::Tcp(mut client) = *direct else { return direct.clone() };
        let values = match self.header {
            ProxyHeader::XForwardedFor => &head.x_forwarded_for,
            ProxyHeader::Forwarded => &head.forwarded,
        };
        let elements = values.iter().flat_map(|value| value.split(','));
        for element in elements.rev() {
            if !self.trusts(client) {
                break;
            }
            let named = match self.header {
                ProxyHeader::XForwardedFor => address(element),
                ProxyHeader::Forwarded => forwarded_for(element),
            };
            match named {
                Some(named) => client = named,
                None => break,
            }
        }
        Peer::Tcp(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}

/// The address of one element of `Forwarded`: `for=192.0.2.60;proto=http`, `for="[2001:db8::1]:4711"`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| address(value.trim_matches('"')))?
    })
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::Tcp(text.parse().unwrap())
    }

    fn proxies(header: ProxyHeader) -> TrustedProxies {
        let networks = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"];
        TrustedProxies { networks: networks.map(|one| one.parse().unwrap()).into(), header }
    }

    fn by_x(direct: &str, values: &[&str]) -> String {
        let x_forwarded_for = values.iter().map(|value| (*value).to_owned()).collect();
        let head = Head { x_forwarded_for, ..Head::default() };
        proxies(ProxyHeader::XForwardedFor).client(&peer(direct), &head).to_string()
    }

    #[test]
    fn only_trusted_proxies_name_their_clients() {
        assert_eq!(by_x("203.0.113.1", &["198.51.100.2"]), "tcp:203.0.113.1");
        assert_eq!(by_x("10.1.2.3", &["198.51.100.2"]), "tcp:198.51.100.2");
        assert_eq!(by_x("2001:db8::5", &["198.51.100.2:80"]), "tcp:198.51.100.2");
        assert_eq!(by_x("::ffff:10.1.2.3", &["198.51.100.2"]), "tcp:198.51.100.2");
        // A client cannot choose what stands last.
        assert_eq!(by_x("10.1.2.3", &["1.1.1.1, 198.51.100.2"]), "tcp:198.51.100.2");
        assert_eq!(by_x("10.1.2.3", &["1.1.1.1", "198.51.100.2, 192.0.2.7"]), "tcp:198.51.100.2");
        assert_eq!(by_x("10.1.2.3", &["1.1.1.1, unknown"]), "tcp:10.1.2.3");
        assert_eq!(by_x("10.1.2.3", &[]), "tcp:10.1.2.3");
    }

    #[test]
    fn the_header_that_is_not_configured_does_not_count() {
        let head = Head {
            x_forwarded_for: vec!["1.1.1.1".into()],
            forwarded: vec!["for=1.1.1.2, for=\"[2a00::1]:4711\";proto=https;by=x".into()],
            ..Head::default()
        };
        let client = |header| proxies(header).client(&peer("10.0.0.1"), &head).to_string();
        assert_eq!(client(ProxyHeader::XForwardedFor), "tcp:1.1.1.1");
        assert_eq!(client(ProxyHeader::Forwarded), "tcp:2a00::1");
    }

    #[test]
    fn networks_are_read_and_contain_their_addresses() {
        for text in ["", "10.0.0.0/33", "::/129", "a", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.1.1".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        let one: Network = "192.0.2.7".parse().unwrap();
        assert!(one.contains("192.0.2.7".parse().unwrap()));
        assert!(!one.contains("192.0.2.6".parse().unwrap()));
    }

    #[test]
    fn limits_count_ipv6_networks() {
        assert_eq!(peer("2a00:1:2:3:4::5").counted(), peer("2a00:1:2:3::1").counted());
        assert_ne!(peer("2a00:1:2:4::5").counted(), peer("2a00:1:2:3::1").counted());
        assert_eq!(peer("::ffff:192.0.2.1").counted(), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1").counted(), peer("192.0.2.2").counted());
        assert_eq!(Peer::Vsock(3).counted(), Peer::Vsock(3));
    }

    proptest! {
        #[test]
        fn any_header_gives_a_peer(values in proptest::collection::vec("\\PC{0,40}", 0..4)) {
            let head = Head { x_forwarded_for: values.clone(), forwarded: values, ..Head::default() };
            for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
                let _ = proxies(header).client(&peer("10.0.0.1"), &head);
                let stranger = peer("203.0.113.1");
                prop_assert_eq!(proxies(header).client(&stranger, &head), stranger);
            }
        }
    }
}
