//! Connections that are passed on as bytes: which service one is meant for, and where its rules lead
//! (Istio `VirtualService.tcp` and `.tls`).
//!
//! A connection has no Host. What it is for is told by the address that the client meant, or by the listener that it came to; on
//! ports of services without an address of their own by the server name in its ClientHello.

#![expect(missing_docs, reason = "rkyv's derive writes no docs on the fields of a resolver's struct-like variants")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    lookup::{Viewpoint, folded, kubernetes_name},
    model::{ArchivedTable, SCOPE_ALL},
};
use crate::id::{NamespaceId, OriginId};

/// A port of a service that does not speak HTTP, or of which nobody says that it does.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct TcpService {
    /// Lower case; `*.example.com` is stored as `.example.com`.
    pub host: String,
    /// As clients address it.
    pub port: u16,
    /// The namespace whose workloads see it, or [`SCOPE_ALL`].
    pub scope: u32,
    /// What it speaks.
    pub protocol: TcpProtocol,
    /// The Service or ServiceEntry.
    pub origin: OriginId,
    /// First of its rules in `tcp_routes`.
    pub first: u32,
    /// Number of its rules.
    pub count: u32,
}

/// What a [`TcpService`] speaks.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum TcpProtocol {
    /// Bytes.
    Tcp,
    /// TLS, which is passed on as it is.
    Tls,
    /// Nobody says: what begins like HTTP is HTTP, the rest is bytes.
    Unknown,
}

/// One rule (Istio `TCPRoute`, `TLSRoute`). Matches are alternatives; an empty list always matches.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct TcpRoute {
    /// The resource that holds the rule.
    pub origin: OriginId,
    /// In which list it stands.
    pub list: TcpList,
    /// Position of the rule in its list, from 0.
    pub rule: u16,
    /// Line of the rule in its file, from 1; 0 for a route that no rule describes.
    pub line: u32,
    /// Alternatives.
    pub matches: Vec<TcpMatch>,
    /// First of its `destinations`.
    pub first: u32,
    /// Number of destinations, at least 1.
    pub count: u32,
    /// Sum of their weights, at least 1.
    pub weight_sum: u32,
}

/// A list of a VirtualService.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum TcpList {
    /// `tcp`.
    Tcp,
    /// `tls`.
    Tls,
    /// None: the way to the service itself.
    Service,
}

/// One alternative (Istio `L4MatchAttributes`, `TLSMatchAttributes`): all of its conditions must hold.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct TcpMatch {
    /// Line in the file, from 1.
    pub line: u32,
    /// All must hold.
    pub conditions: Vec<TcpCondition>,
}

/// One condition of a match.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum TcpCondition {
    /// `sniHosts`: one of them is the server name. Stored like domains: `.example.com` for `*.example.com`, `*` for any name.
    Sni(Vec<String>),
    /// `destinationSubnets`: the address that the client meant is in one of them.
    DestinationSubnets(Vec<Subnet>),
    /// `port`.
    Port(u16),
    /// `sourceNamespace`: the namespace of the workload beside the proxy.
    SourceNamespace(NamespaceId),
    /// One of `sourceLabels`.
    SourceLabel {
        /// Of the label.
        key: String,
        /// Of the label, compared as a whole.
        value: String,
    },
}

/// Addresses with a common prefix.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Subnet {
    /// As IPv6, IPv4 mapped (RFC 4291 section 2.5.5.2).
    pub address: [u8; 16],
    /// Leading bits that count, 0 to 128.
    pub bits: u8,
}

impl Subnet {
    /// Of an address and the length of its prefix in its own family.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Self {
        let bits = if address.is_ipv4() { bits.saturating_add(96) } else { bits };
        Self { address: mapped(address), bits: bits.min(128) }
    }
}

impl ArchivedSubnet {
    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other) = (u128::from_be_bytes(self.address), u128::from_be_bytes(mapped(address)));
        self.bits == 0 || (own ^ other) >> (128 - u32::from(self.bits).min(128)) == 0
    }
}

/// An address that leads to a [`TcpService`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct TcpAddress {
    /// As in [`Subnet::address`]; [`ADDRESS_ANY`] for a service without one.
    pub address: [u8; 16],
    /// The port that clients connect to.
    pub port: u16,
    /// Position in `tcp_services`.
    pub service: u32,
    /// Whether it is that of an endpoint (a headless service): connections go to this very one.
    pub is_endpoint: bool,
}

/// Clients find a service without an address by its names in DNS: any address may be meant.
pub const ADDRESS_ANY: [u8; 16] = [0; 16];

/// As IPv6.
#[must_use]
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFound {
    /// This service.
    Service {
        /// Position in `tcp_services`.
        service: usize,
        /// The endpoint of a headless service that the client has chosen.
        endpoint: Option<SocketAddr>,
    },
    /// The service that has the server name in the ClientHello.
    ByServerName {
        /// The port.
        port: u16,
        /// Where there is no such name, or none that anybody has.
        otherwise: Option<usize>,
    },
}

/// What rules look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpView<'a> {
    /// The server name in the ClientHello, lower case.
    pub server_name: Option<&'a str>,
    /// The address that the client meant, where it meant one.
    pub destination: Option<IpAddr>,
}

/// Listens to [`ArchivedTable::tcp_route`].
pub trait TcpObserver {
    /// A match of a rule failed at a condition.
    fn failed(&mut self, _rule: &ArchivedTcpRoute, _alternative: usize, _condition: &ArchivedTcpCondition) {}
}

impl TcpObserver for super::lookup::Silent {}

impl ArchivedTable {
    /// Whether any connection could be for a [`TcpService`].
    #[inline]
    #[must_use]
    pub fn has_tcp(&self) -> bool {
        !self.tcp_addresses.is_empty()
    }

    fn in_tcp_scope(&self, viewpoint: &Viewpoint, service: usize) -> bool {
        let scope = self.tcp_services[service].scope.to_native();
        scope == SCOPE_ALL || viewpoint.namespace_id.is_some_and(|own| own.0 == scope)
    }

    /// What a connection to an address is for.
    #[must_use]
    pub fn tcp_at(&self, viewpoint: &Viewpoint, meant: SocketAddr) -> Option<TcpFound> {
        let key = (mapped(meant.ip().to_canonical()), meant.port());
        let found = self.tcp_visible(viewpoint, key).next();
        match found {
            Some(found) => {
                let endpoint = found.is_endpoint.then_some(meant);
                Some(TcpFound::Service { service: found.service.to_native() as usize, endpoint })
            }
            None => self.tcp_on_port(viewpoint, meant.port()),
        }
    }

    /// What a connection to a port is for of which no address is known: a service without one.
    #[must_use]
    pub fn tcp_on_port(&self, viewpoint: &Viewpoint, port: u16) -> Option<TcpFound> {
        let (mut otherwise, mut has_tls) = (None, false);
        for address in self.tcp_visible(viewpoint, (ADDRESS_ANY, port)) {
            let service = address.service.to_native() as usize;
            match self.tcp_services[service].protocol {
                ArchivedTcpProtocol::Tls => has_tls = true,
                ArchivedTcpProtocol::Tcp | ArchivedTcpProtocol::Unknown => otherwise = otherwise.or(Some(service)),
            }
        }
        match otherwise {
            _ if has_tls => Some(TcpFound::ByServerName { port, otherwise }),
            Some(service) => Some(TcpFound::Service { service, endpoint: None }),
            None => None,
        }
    }

    fn tcp_visible(&self, viewpoint: &Viewpoint, key: ([u8; 16], u16)) -> impl Iterator<Item = &ArchivedTcpAddress> {
        let first = self.tcp_addresses.partition_point(|entry| (entry.address, entry.port.to_native()) < key);
        let same = self.tcp_addresses[first..].iter();
        let same = same.take_while(move |entry| (entry.address, entry.port.to_native()) == key);
        same.filter(|entry| self.in_tcp_scope(viewpoint, entry.service.to_native() as usize))
    }

    /// The service of a name, which resolves as for HTTP: as it is, as a Kubernetes name, as the most specific wildcard.
    #[must_use]
    pub fn tcp_named(&self, viewpoint: &Viewpoint, host: &str, port: u16) -> Option<usize> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let folded = folded(host.as_bytes())?;
        let host = folded.as_bytes();
        let exact = self.tcp_of(viewpoint, host, port);
        let exact = exact.or_else(|| {
            let full = kubernetes_name(&self.domain_suffix, viewpoint, host)?;
            self.tcp_of(viewpoint, full.as_bytes(), port)
        });
        let suffixes =
            || host.iter().enumerate().filter(|&(at, &byte)| byte == b'.' && at > 0).map(|(at, _)| &host[at..]);
        exact.or_else(|| suffixes().find_map(|suffix| self.tcp_of(viewpoint, suffix, port)))
    }

    fn tcp_of(&self, viewpoint: &Viewpoint, host: &[u8], port: u16) -> Option<usize> {
        let first = self.tcp_services.partition_point(|service| service.host.as_bytes() < host);
        let same = self.tcp_services[first..].iter().take_while(|service| service.host.as_bytes() == host);
        let mut same = same.enumerate().filter(|(_, service)| service.port.to_native() == port);
        same.find(|(at, _)| self.in_tcp_scope(viewpoint, first + at)).map(|(at, _)| first + at)
    }

    /// The rules of a service, in order.
    #[must_use]
    pub fn tcp_rules(&self, service: usize) -> &[ArchivedTcpRoute] {
        let service = &self.tcp_services[service];
        let first = service.first.to_native() as usize;
        &self.tcp_routes[first..first + service.count.to_native() as usize]
    }

    /// Whether nobody says what a service speaks.
    #[must_use]
    pub fn tcp_may_be_http(&self, service: usize) -> bool {
        self.tcp_services[service].protocol == ArchivedTcpProtocol::Unknown
    }

    /// Whether any rule of a service looks at the server name, so that the ClientHello must be waited for.
    #[must_use]
    pub fn tcp_asks_server_name(&self, service: usize) -> bool {
        let asks = |condition: &ArchivedTcpCondition| matches!(condition, ArchivedTcpCondition::Sni(_));
        self.tcp_rules(service).iter().flat_map(|rule| rule.matches.iter()).any(|m| m.conditions.iter().any(asks))
    }

    /// The service that a server name belongs to, or what there is otherwise.
    #[must_use]
    pub fn tcp_by_server_name(
        &self,
        viewpoint: &Viewpoint,
        server_name: Option<&str>,
        port: u16,
        otherwise: Option<usize>,
    ) -> Option<usize> {
        server_name.and_then(|name| self.tcp_named(viewpoint, name, port)).or(otherwise)
    }

    /// The first rule of a service that matches, and which of its alternatives does.
    #[must_use]
    pub fn tcp_route(
        &self,
        viewpoint: &Viewpoint,
        service: usize,
        view: TcpView<'_>,
        observer: &mut impl TcpObserver,
    ) -> Option<(&ArchivedTcpRoute, usize)> {
        let port = self.tcp_services[service].port.to_native();
        self.tcp_rules(service).iter().find_map(|rule| {
            if rule.matches.is_empty() {
                return Some((rule, 0));
            }
            let alternative = rule.matches.iter().enumerate().find(|(alternative, candidate)| {
                let failed = candidate.conditions.iter().find(|condition| !holds(condition, viewpoint, port, view));
                failed.inspect(|condition| observer.failed(rule, *alternative, condition)).is_none()
            });
            alternative.map(|(alternative, _)| (rule, alternative))
        })
    }
}

fn holds(condition: &ArchivedTcpCondition, viewpoint: &Viewpoint, port: u16, view: TcpView<'_>) -> bool {
    match condition {
        ArchivedTcpCondition::Sni(names) => {
            view.server_name.is_some_and(|name| names.iter().any(|pattern| is_name(pattern, name)))
        }
        ArchivedTcpCondition::DestinationSubnets(subnets) => {
            view.destination.is_some_and(|address| subnets.iter().any(|subnet| subnet.contains(address)))
        }
        ArchivedTcpCondition::Port(wanted) => wanted.to_native() == port,
        ArchivedTcpCondition::SourceNamespace(id) => viewpoint.namespace_id == Some(NamespaceId::from(id)),
        ArchivedTcpCondition::SourceLabel { key, value } => {
            viewpoint.labels.iter().any(|(known, own)| known == key.as_str() && own == value.as_str())
        }
    }
}

/// Whether a stored pattern covers a name; both are lower case.
fn is_name(pattern: &str, name: &str) -> bool {
    pattern == "*"
        || pattern == name
        || pattern.starts_with('.') && name.len() > pattern.len() && name.ends_with(pattern)
}

/// An IPv6 address as people write it, IPv4 unmapped.
#[must_use]
pub fn shown(address: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
}
