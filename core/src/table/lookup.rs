//! Finding virtual host and route for a request. The proxy and `meshring explain` run this very code; the latter
//! listens to it through [`Observer`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    model::{
        ArchivedCluster, ArchivedCondition, ArchivedMatch, ArchivedRoute, ArchivedStringMatch, ArchivedTable,
        ArchivedVirtualHost, PORT_ANY, Reach, SCOPE_ALL,
    },
    protocol::PROTOCOLS_NONE,
    regexes::Regexes,
    security::{ArchivedInboundPolicy, ArchivedServerTls, ClusterTls, MtlsMode, POLICY_NONE, ServerTlsMode},
};
use crate::{
    id::{ClusterId, EndpointId, NamespaceId, OriginId, RegexId, RouteId, VirtualHostId},
    limits::HOST_BYTES_MAX,
};

/// The hash of the domain index. Part of the snapshot layout: a change of it is a change of
/// [`LAYOUT`](crate::snapshot::layout::LAYOUT). Requests cannot insert, so it need not resist chosen keys.
#[must_use]
pub fn hash(name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(name)
}

/// Who asks: the workload beside the proxy, resolved against one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Viewpoint {
    /// The workload's namespace.
    pub namespace: String,
    /// Its id in the table, if the table names it.
    pub namespace_id: Option<NamespaceId>,
    /// The workload's labels as the table has them.
    pub labels: Vec<(String, String)>,
    /// What the workload demands of those who come to it: a position in `inbound_policies`. `None`: nothing, which is
    /// Istio's default of PERMISSIVE for everybody.
    pub policy: Option<usize>,
    /// What its application speaks on which port: a position in `application_ports`. `None`: nothing says so.
    pub protocols: Option<usize>,
}

impl Viewpoint {
    /// Resolves a workload against a table.
    #[must_use]
    pub fn resolve(table: &ArchivedTable, namespace: &str, name: &str) -> Self {
        let namespace_id =
            table.namespaces.iter().position(|n| n.as_str() == namespace).map(|index| NamespaceId(index as u32));
        let known = table
            .workloads
            .iter()
            .find(|w| Some(NamespaceId::from(&w.namespace)) == namespace_id && w.name.as_str() == name);
        let labels =
            known.map(|w| w.labels.iter().map(|l| (l.0.to_string(), l.1.to_string())).collect()).unwrap_or_default();
        // A listed workload's policy is all that selects it; others get what holds for their namespace, or for the mesh.
        let of_namespace = || {
            let policy = namespace_id.and_then(|id| table.namespace_policies.get(id.index()));
            policy.map(|policy| policy.to_native()).filter(|&policy| policy != POLICY_NONE)
        };
        let policy = match known {
            Some(workload) => workload.policy.to_native(),
            None => of_namespace().unwrap_or(table.mesh_policy.to_native()),
        };
        let policy = (policy != POLICY_NONE).then_some(policy as usize);
        let protocols = known.map(|workload| workload.protocols.to_native()).filter(|&at| at != PROTOCOLS_NONE);
        let protocols = protocols.map(|position| position as usize);
        Self { namespace: namespace.to_owned(), namespace_id, labels, policy, protocols }
    }
}

/// What a route can look at.
pub trait RequestView {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// `http` or `https`.
    fn scheme(&self) -> &[u8];
    /// The Host value as sent, port included.
    fn authority(&self) -> &[u8];
    /// The path without query.
    fn path(&self) -> &[u8];
    /// The query without its question mark.
    fn query(&self) -> Option<&[u8]>;
    /// Whether any line of that (lower-case) name satisfies the predicate.
    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// Listens to a lookup; [`Silent`] costs nothing.
pub trait Observer {
    /// A domain was looked for.
    fn domain(&mut self, _name: &[u8], _found: bool) {}
    /// A match of a route failed at a condition.
    fn failed(&mut self, _route: RouteId, _alternative: usize, _condition: &ArchivedCondition) {}
}

/// Hears nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;
impl Observer for Silent {}

/// No virtual host or no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Nothing that this workload sees has that name.
    #[error("no service, ServiceEntry or VirtualService has this host")]
    UnknownHost,
    /// The name is known, but not on that port.
    #[error("the host is known, but not on port {0}")]
    UnknownPort(u16),
    /// No rule of the virtual host matches.
    #[error("no rule matches")]
    NoRule(VirtualHostId),
}

/// How far a `uri` condition matched: a prefix rewrite replaces just that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UriMatch {
    /// No `uri` condition: a rewrite replaces the leading slash (Istio's prefix `/`).
    #[default]
    None,
    /// The first bytes of the path.
    Prefix(usize),
    /// All of it.
    Whole,
}

/// The route for a request.
#[derive(Debug)]
pub struct Selected<'t> {
    /// Its virtual host.
    pub virtual_host: VirtualHostId,
    /// Its id.
    pub route: RouteId,
    /// The rule.
    pub rule: &'t ArchivedRoute,
    /// What the `uri` condition matched.
    pub uri: UriMatch,
    /// Position of the alternative that matched.
    pub alternative: usize,
}

/// A host name in lower case without its trailing dot, on the stack.
pub(super) struct FoldedHost {
    bytes: [u8; HOST_BYTES_MAX],
    len: usize,
}

impl FoldedHost {
    fn new(parts: &[&[u8]]) -> Option<Self> {
        let mut host = Self { bytes: [0; HOST_BYTES_MAX], len: 0 };
        for part in parts {
            let end = host.len + part.len();
            let target = host.bytes.get_mut(host.len..end)?;
            target.copy_from_slice(part);
            target.make_ascii_lowercase();
            host.len = end;
        }
        Some(host)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A name as the table has them; `None` for one that is too long to be there.
pub(super) fn folded(host: &[u8]) -> Option<FoldedHost> {
    FoldedHost::new(&[host])
}

/// `reviews` -> `reviews.NAMESPACE.svc.cluster.local`, and so on for the other short forms.
pub(super) fn kubernetes_name(suffix: &str, viewpoint: &Viewpoint, host: &[u8]) -> Option<FoldedHost> {
    let suffix = suffix.as_bytes();
    match memchr::memchr_iter(b'.', host).count() {
        0 => FoldedHost::new(&[host, b".", viewpoint.namespace.as_bytes(), b".svc.", suffix]),
        1 => FoldedHost::new(&[host, b".svc.", suffix]),
        2 if host.ends_with(b".svc") => FoldedHost::new(&[host, b".", suffix]),
        _ => None,
    }
}

impl ArchivedTable {
    /// Finds the virtual host for a Host value. `host` is without port; `port` is what the client asked for, or `None`
    /// when Host names none. Then port 80 is meant, or, where the service has no port 80, its first port: a client that
    /// says `http://reviews/` means the service, whatever port it is on.
    ///
    /// Names resolve as in Istio: as they are, then as a Kubernetes name (`reviews`, `reviews.default`,
    /// `reviews.default.svc`) from the viewpoint's namespace, then as the most specific wildcard.
    pub fn virtual_host(
        &self,
        viewpoint: &Viewpoint,
        host: &[u8],
        port: Option<u16>,
        observer: &mut impl Observer,
    ) -> Result<VirtualHostId, NoRoute> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let mut seen = NoRoute::UnknownHost;
        let folded = FoldedHost::new(&[host]).ok_or(NoRoute::UnknownHost)?;
        let host = folded.as_bytes();
        if let Some(found) = self.visible(viewpoint, host, port, &mut seen, observer) {
            return Ok(found);
        }
        if let Some(full) = kubernetes_name(&self.domain_suffix, viewpoint, host)
            && let Some(found) = self.visible(viewpoint, full.as_bytes(), port, &mut seen, observer)
        {
            return Ok(found);
        }
        if self.has_wildcards {
            for (at, _) in host.iter().enumerate().filter(|&(at, &byte)| byte == b'.' && at > 0) {
                if let Some(found) = self.visible(viewpoint, &host[at..], port, &mut seen, observer) {
                    return Ok(found);
                }
            }
            if let Some(found) = self.visible(viewpoint, b"*", port, &mut seen, observer) {
                return Ok(found);
            }
        }
        Err(seen)
    }

    fn visible(
        &self,
        viewpoint: &Viewpoint,
        name: &[u8],
        port: Option<u16>,
        seen: &mut NoRoute,
        observer: &mut impl Observer,
    ) -> Option<VirtualHostId> {
        let domain = self.domain(name);
        observer.domain(name, domain.is_some());
        let domain = &self.domains[domain?];
        let (first, count) = (domain.first.to_native(), domain.count.to_native());
        let own = viewpoint.namespace_id.map(|n| n.0);
        let hosts = &self.virtual_hosts[first as usize..(first + count) as usize];
        let in_scope = |h: &ArchivedVirtualHost| {
            let scope = h.scope.to_native();
            scope == SCOPE_ALL || Some(scope) == own
        };
        let serves = |h: &ArchivedVirtualHost, port: u16| matches!(h.port.to_native(), p if p == port || p == PORT_ANY);
        let position = match port {
            Some(port) => hosts.iter().position(|h| in_scope(h) && serves(h, port)),
            None => hosts.iter().position(|h| in_scope(h) && serves(h, 80)).or_else(|| hosts.iter().position(in_scope)),
        };
        if position.is_none()
            && let Some(port) = port
            && hosts.iter().any(in_scope)
        {
            *seen = NoRoute::UnknownPort(port);
        }
        position.map(|p| VirtualHostId(first + p as u32))
    }

    fn domain(&self, name: &[u8]) -> Option<usize> {
        let mask = self.buckets.len().checked_sub(1)?;
        let mut at = hash(name) as usize & mask;
        // The builder leaves at least half of the buckets empty and validation checks that one is, so this ends.
        loop {
            let position = self.buckets[at].to_native().checked_sub(1)? as usize;
            if self.domains[position].name.as_bytes() == name {
                return Some(position);
            }
            at = (at + 1) & mask;
        }
    }

    /// The rules of a virtual host, in order.
    #[must_use]
    pub fn rules(&self, virtual_host: VirtualHostId) -> &[ArchivedRoute] {
        let host = &self.virtual_hosts[virtual_host.index()];
        let first = host.first.to_native() as usize;
        &self.routes[first..first + host.count.to_native() as usize]
    }

    /// Finds the first rule of a virtual host that matches. `port` is the port that was asked for.
    pub fn route(
        &self,
        regexes: &Regexes,
        viewpoint: &Viewpoint,
        virtual_host: VirtualHostId,
        request: &impl RequestView,
        port: Option<u16>,
        observer: &mut impl Observer,
    ) -> Result<Selected<'_>, NoRoute> {
        let host = &self.virtual_hosts[virtual_host.index()];
        let first = host.first.to_native();
        let asked = Asked { regexes, viewpoint, request, port: port.unwrap_or(host.port.to_native()) };
        for index in first..first + host.count.to_native() {
            let rule = &self.routes[index as usize];
            let route = RouteId(index);
            let selected = |uri, alternative| Selected { virtual_host, route, rule, uri, alternative };
            if rule.matches.is_empty() {
                return Ok(selected(UriMatch::None, 0));
            }
            for (alternative, candidate) in rule.matches.iter().enumerate() {
                match asked.matches(candidate) {
                    Ok(uri) => return Ok(selected(uri, alternative)),
                    Err(condition) => observer.failed(route, alternative, condition),
                }
            }
        }
        Err(NoRoute::NoRule(virtual_host))
    }

    /// A cluster.
    #[must_use]
    pub fn cluster(&self, id: ClusterId) -> &ArchivedCluster {
        &self.clusters[id.index()]
    }

    /// How connections to a cluster's endpoints are secured.
    #[must_use]
    pub fn tls_of(&self, cluster: &ArchivedCluster) -> Option<ClusterTls> {
        let tls = self.cluster_tls.get(cluster.tls.to_native() as usize)?;
        Some(ClusterTls {
            mode: tls.mode.into(),
            sni: tls.sni.to_string(),
            subject_alt_names: tls.subject_alt_names.iter().map(|name| name.to_string()).collect(),
            material: tls.material.to_string(),
            insecure_skip_verify: tls.insecure_skip_verify,
        })
    }

    /// What a workload demands of those who come to it.
    #[must_use]
    pub fn inbound_policy(&self, viewpoint: &Viewpoint) -> Option<&ArchivedInboundPolicy> {
        viewpoint.policy.map(|position| &self.inbound_policies[position])
    }

    /// How the mesh reaches an endpoint.
    #[must_use]
    pub fn reach(&self, id: EndpointId) -> Reach {
        self.endpoints[id.index()].reach()
    }

    /// The `position`-th endpoint of a cluster, `position` below its `count`.
    #[must_use]
    pub fn endpoint_of(&self, cluster: &ArchivedCluster, position: u32) -> EndpointId {
        let at = cluster.first.to_native() + position;
        if cluster.selected { EndpointId(self.members[at as usize].to_native()) } else { EndpointId(at) }
    }

    /// The address of an endpoint.
    #[must_use]
    pub fn address(&self, id: EndpointId) -> SocketAddr {
        let endpoint = &self.endpoints[id.index()];
        let address = endpoint.address.to_native();
        let ip = if endpoint.is_v6() {
            IpAddr::V6(Ipv6Addr::from(self.addresses_v6[address as usize]))
        } else {
            IpAddr::V4(Ipv4Addr::from(address))
        };
        SocketAddr::new(ip, endpoint.port.to_native())
    }

    /// The load balancing weight of an endpoint, at least 1. Not for each request: a large one is searched for.
    #[must_use]
    pub fn weight(&self, id: EndpointId) -> u32 {
        self.endpoints[id.index()].weight_inline().unwrap_or_else(|| {
            let heavy = &self.heavy_weights;
            let found = heavy.binary_search_by_key(&id, |heavy| EndpointId::from(&heavy.endpoint));
            // Validation has proved that it is there.
            found.map_or(1, |at| heavy[at].weight.to_native())
        })
    }

    /// The description of a resource, for people: `VirtualService default/reviews (reviews.yaml:4)`.
    #[must_use]
    pub fn origin(&self, id: OriginId) -> String {
        let origin = &self.origins[id.index()];
        match self.files.get(origin.file.to_native() as usize) {
            Some(file) => format!("{} ({file}:{})", origin.resource, origin.line),
            None => origin.resource.to_string(),
        }
    }
}

struct Asked<'a, R> {
    regexes: &'a Regexes,
    viewpoint: &'a Viewpoint,
    request: &'a R,
    port: u16,
}

impl<R: RequestView> Asked<'_, R> {
    /// All conditions, or the first that fails.
    fn matches<'m>(&self, candidate: &'m ArchivedMatch) -> Result<UriMatch, &'m ArchivedCondition> {
        let mut uri = UriMatch::None;
        for condition in candidate.conditions.iter() {
            if let ArchivedCondition::Uri(expected) = condition {
                uri = self.uri(expected).ok_or(condition)?;
            } else if !self.holds(condition) {
                return Err(condition);
            }
        }
        Ok(uri)
    }

    fn uri(&self, expected: &ArchivedStringMatch) -> Option<UriMatch> {
        let path = self.request.path();
        self.compares(expected, path).then(|| match expected {
            ArchivedStringMatch::Prefix(p) | ArchivedStringMatch::PrefixIgnoreCase(p) => UriMatch::Prefix(p.len()),
            _ => UriMatch::Whole,
        })
    }

    fn holds(&self, condition: &ArchivedCondition) -> bool {
        let request = self.request;
        match condition {
            ArchivedCondition::Uri(expected) => self.compares(expected, request.path()),
            ArchivedCondition::Scheme(expected) => self.compares(expected, request.scheme()),
            ArchivedCondition::Method(expected) => self.compares(expected, request.method()),
            ArchivedCondition::Authority(expected) => self.compares(expected, request.authority()),
            ArchivedCondition::Header { name, value } => {
                request.any_header(name, &mut |actual| self.compares(value, actual))
            }
            ArchivedCondition::WithoutHeader { name, value } => {
                !request.any_header(name, &mut |actual| self.compares(value, actual))
            }
            ArchivedCondition::Query { name, value } => {
                query_parameter(request.query(), name.as_bytes()).is_some_and(|actual| self.compares(value, actual))
            }
            ArchivedCondition::Port(port) => port.to_native() == self.port,
            ArchivedCondition::SourceNamespace(id) => self.viewpoint.namespace_id == Some(NamespaceId::from(id)),
            ArchivedCondition::SourceLabel { key, value } => {
                self.viewpoint.labels.iter().any(|(k, v)| k == key.as_str() && v == value.as_str())
            }
        }
    }

    fn compares(&self, expected: &ArchivedStringMatch, actual: &[u8]) -> bool {
        match expected {
            ArchivedStringMatch::Exact(s) => s.as_bytes() == actual,
            ArchivedStringMatch::ExactIgnoreCase(s) => s.as_bytes().eq_ignore_ascii_case(actual),
            ArchivedStringMatch::Prefix(s) => actual.starts_with(s.as_bytes()),
            ArchivedStringMatch::PrefixIgnoreCase(s) => {
                actual.get(..s.len()).is_some_and(|start| start.eq_ignore_ascii_case(s.as_bytes()))
            }
            ArchivedStringMatch::Regex(id) => self.regexes.of(RegexId::from(id)).is_match(actual),
            ArchivedStringMatch::Present => true,
        }
    }
}

/// The first value of a query parameter, undecoded, as Envoy compares it.
fn query_parameter<'q>(query: Option<&'q [u8]>, name: &[u8]) -> Option<&'q [u8]> {
    query?.split(|&b| b == b'&').find_map(|pair| {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        (key == name).then_some(value)
    })
}

impl ArchivedServerTls {
    /// Identifies what a handshake under these settings proves: equal for equal settings, over generations.
    #[must_use]
    pub fn terms(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(&[ServerTlsMode::from(self.mode) as u8, u8::from(self.tls12)]);
        for text in std::iter::once(&self.material).chain(self.subject_alt_names.iter()) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.digest()
    }
}

impl ArchivedInboundPolicy {
    /// What connections to a port of the application must be.
    #[must_use]
    pub fn mtls_on(&self, port: u16) -> MtlsMode {
        let found = self.port_mtls.binary_search_by_key(&port, |pair| pair.0.to_native());
        found.map_or(self.mtls, |at| self.port_mtls[at].1).into()
    }

    /// Whether this workload ends TLS on a port of its listeners as a gateway.
    #[must_use]
    pub fn has_gateway(&self, port: u16) -> bool {
        self.gateways.iter().any(|gateway| gateway.port.to_native() == port)
    }

    /// Whether a port of this workload's listeners is a gateway's, with TLS or without: who comes there is judged as at any other
    /// workload.
    #[must_use]
    pub fn guards(&self, port: u16) -> bool {
        self.has_gateway(port) || self.plain_gateway_ports.iter().any(|plain| plain.to_native() == port)
    }

    /// The TLS settings for a server name, in lower case, on a port: the most specific one. Without a name those for `*`,
    /// or the only ones.
    #[must_use]
    pub fn gateway(&self, port: u16, server_name: Option<&str>) -> Option<&ArchivedServerTls> {
        let on_port = || self.gateways.iter().filter(|gateway| gateway.port.to_native() == port);
        let serves = |gateway: &ArchivedServerTls| -> Option<usize> {
            let Some(name) = server_name else {
                return gateway.hosts.iter().any(|host| host.as_str() == "*").then_some(0);
            };
            let fit = |host: &str| match host {
                "*" => Some(0),
                suffix if suffix.starts_with('.') => {
                    (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len())
                }
                exact => (exact == name).then_some(usize::MAX),
            };
            gateway.hosts.iter().filter_map(|host| fit(host)).max()
        };
        // The first one wins among equals.
        let mut best: Option<(usize, &ArchivedServerTls)> = None;
        for gateway in on_port() {
            if let Some(fit) = serves(gateway)
                && best.is_none_or(|(other, _)| fit > other)
            {
                best = Some((fit, gateway));
            }
        }
        let best = best.map(|(_, gateway)| gateway);
        match (best, server_name) {
            (None, None) if on_port().count() == 1 => on_port().next(),
            (best, _) => best,
        }
    }
}
