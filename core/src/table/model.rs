//! The types of the table. Flat arrays and indices, so that 100,000 routes with 1,000,000 endpoints stay below 40 MB
//! and a lookup touches a handful of cache lines.

#![expect(missing_docs, reason = "rkyv's derive writes no docs on the fields of a resolver's struct-like variants")]

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    access::{AccessIndex, AuthorizationPolicy, ExtAuthz},
    protocol::ApplicationPorts,
    security::{ClusterTls, InboundPolicy, JwtRule, POLICY_NONE},
    tcp::{TcpAddress, TcpRoute, TcpService},
};
pub use super::{
    protocol::{ArchivedUpstreamProtocol, UpstreamProtocol},
    settings::{ArchivedSettings, DEFAULT_TRUST_DOMAIN, ForwardClientCertificate, PathNormalization, Settings},
};
use crate::id::{ClusterId, EndpointId, NamespaceId, OriginId, RegexId};

/// `scope` of a virtual host that every namespace sees (Istio `exportTo: ["*"]`).
pub const SCOPE_ALL: u32 = u32::MAX;
/// `port` of a virtual host or condition that any port matches.
pub const PORT_ANY: u16 = 0;

/// Orders the virtual hosts of one domain: narrower scopes before [`SCOPE_ALL`], in one scope each port before
/// [`PORT_ANY`], so that the first one that serves a request is the most specific one.
#[must_use]
pub fn precedence(scope: u32, port: u16) -> (u32, u16) {
    // 0 becomes the largest number, the others keep their order.
    (scope, port.wrapping_sub(1))
}

/// One generation's routing data.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Table {
    /// Suffix of Kubernetes service names, without dots at its ends: `cluster.local`.
    pub domain_suffix: String,
    /// Namespaces by [`NamespaceId`].
    pub namespaces: Vec<String>,
    /// Resources by [`OriginId`].
    pub origins: Vec<Origin>,
    /// Files that origins name.
    pub files: Vec<String>,
    /// Patterns by [`RegexId`], already anchored where the source's semantics are a full match.
    pub regexes: Vec<String>,
    /// Open-addressing index over `domains`: position + 1, or 0 for an empty bucket. Power of two.
    pub buckets: Vec<u32>,
    /// Distinct domains. A wildcard `*.example.com` is stored as `.example.com`, the catch-all `*` as `*`.
    pub domains: Vec<Domain>,
    /// Whether any domain is a wildcard; without one a miss needs no suffix search.
    pub has_wildcards: bool,
    /// Virtual hosts, those of one domain adjacent, in the [order](precedence) in which a lookup tries them.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Routes, those of one virtual host adjacent, in order of evaluation.
    pub routes: Vec<Route>,
    /// Weighted destinations, those of one route adjacent.
    pub destinations: Vec<Destination>,
    /// Services whose connections are, or may be, passed on as bytes: sorted by host, then in the [order](precedence) in which a
    /// lookup tries them.
    pub tcp_services: Vec<TcpService>,
    /// Their rules, those of one service adjacent, in order of evaluation.
    pub tcp_routes: Vec<TcpRoute>,
    /// Where they are reached, sorted by address and port, then by the scope of the service, the narrower first.
    pub tcp_addresses: Vec<TcpAddress>,
    /// Clusters by [`ClusterId`].
    pub clusters: Vec<Cluster>,
    /// Endpoint indices of clusters that are a selection (subsets).
    pub members: Vec<u32>,
    /// Endpoints by [`EndpointId`].
    pub endpoints: Vec<Endpoint>,
    /// Weights that do not fit into their endpoints, in the order of these.
    pub heavy_weights: Vec<HeavyWeight>,
    /// IPv6 addresses that endpoints refer to.
    pub addresses_v6: Vec<[u8; 16]>,
    /// Workloads whose labels are known, sorted by (namespace, name).
    pub workloads: Vec<Workload>,
    /// What workloads' applications speak; `workloads` refers to it.
    pub application_ports: Vec<ApplicationPorts>,
    /// TLS settings that clusters refer to.
    pub cluster_tls: Vec<ClusterTls>,
    /// What workloads demand; workloads, `namespace_policies` and `mesh_policy` refer to it.
    pub inbound_policies: Vec<InboundPolicy>,
    /// For workloads that are not listed: by [`NamespaceId`], an inbound policy or
    /// [`POLICY_NONE`]. Shorter than `namespaces` where the last ones have none.
    pub namespace_policies: Vec<u32>,
    /// For workloads of namespaces without a policy: likewise.
    pub mesh_policy: u32,
    /// AuthorizationPolicies that inbound policies refer to.
    pub authorization: Vec<AuthorizationPolicy>,
    /// Distinct lists of AuthorizationPolicies, indexed.
    pub access_indexes: Vec<AccessIndex>,
    /// For each inbound policy the index of its list, or [`INDEX_NONE`](super::access::index::INDEX_NONE).
    pub access_index_of: Vec<u32>,
    /// External authorizers that policies with action CUSTOM refer to (`MeshConfig.extensionProviders`).
    pub ext_authz: Vec<ExtAuthz>,
    /// Issuers that inbound policies refer to.
    pub jwt_rules: Vec<JwtRule>,
    /// `MeshConfig.trustDomain` and its aliases: identities of others are not trusted. Without one: `cluster.local`.
    pub trust_domains: Vec<String>,
    /// What holds for the whole mesh.
    pub settings: Settings,
}

impl Default for Table {
    /// Empty: nothing can be reached, nobody is refused.
    fn default() -> Self {
        Self {
            domain_suffix: String::new(),
            namespaces: Vec::new(),
            origins: Vec::new(),
            files: Vec::new(),
            regexes: Vec::new(),
            buckets: Vec::new(),
            domains: Vec::new(),
            has_wildcards: false,
            virtual_hosts: Vec::new(),
            routes: Vec::new(),
            destinations: Vec::new(),
            tcp_services: Vec::new(),
            tcp_routes: Vec::new(),
            tcp_addresses: Vec::new(),
            clusters: Vec::new(),
            members: Vec::new(),
            endpoints: Vec::new(),
            heavy_weights: Vec::new(),
            addresses_v6: Vec::new(),
            workloads: Vec::new(),
            application_ports: Vec::new(),
            cluster_tls: Vec::new(),
            inbound_policies: Vec::new(),
            namespace_policies: Vec::new(),
            mesh_policy: POLICY_NONE,
            authorization: Vec::new(),
            access_indexes: Vec::new(),
            access_index_of: Vec::new(),
            ext_authz: Vec::new(),
            jwt_rules: Vec::new(),
            trust_domains: vec![DEFAULT_TRUST_DOMAIN.to_owned()],
            settings: Settings::default(),
        }
    }
}

/// `file` of an origin without one.
pub const FILE_NONE: u32 = u32::MAX;

/// The resource that something comes from. File names are kept apart: a hundred thousand resources may share one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug))]
pub struct Origin {
    /// `VirtualService default/reviews`.
    pub resource: String,
    /// Position in `files`, or [`FILE_NONE`].
    pub file: u32,
    /// Line in the file, from 1.
    pub line: u32,
}

/// A name that requests can ask for.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Domain {
    /// Lower case, without port and trailing dot.
    pub name: String,
    /// First virtual host.
    pub first: u32,
    /// Number of virtual hosts.
    pub count: u32,
}

/// One domain on one port, as seen from one scope.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct VirtualHost {
    /// The namespace whose workloads see it, or [`SCOPE_ALL`].
    pub scope: u32,
    /// The service port, or [`PORT_ANY`].
    pub port: u16,
    /// The resource that defines it: a VirtualService, or the Service or ServiceEntry itself.
    pub origin: OriginId,
    /// First route.
    pub first: u32,
    /// Number of routes.
    pub count: u32,
}

/// One rule (Istio `HTTPRoute`). Matches are alternatives; an empty list always matches.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Route {
    /// `http[].name`, or empty.
    pub name: String,
    /// The resource that holds the rule.
    pub origin: OriginId,
    /// Position of the rule in its resource, from 0.
    pub rule: u16,
    /// Line of the rule in its file, from 1; 0 for a route that no rule describes.
    pub line: u32,
    /// Alternatives.
    pub matches: Vec<Match>,
    /// What to do with the request.
    pub action: Action,
    /// `timeout`: from the end of the request head to the end of the response, in milliseconds; 0 for none.
    pub timeout_ms: u32,
    /// Less common settings; absent for most routes, which keeps the array small.
    pub options: Option<Box<RouteOptions>>,
}

/// Header edits and rewrite of a route.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct RouteOptions {
    /// `headers.request` of the rule.
    pub request_headers: Vec<HeaderOp>,
    /// `headers.response` of the rule.
    pub response_headers: Vec<HeaderOp>,
    /// `rewrite`.
    pub rewrite: Option<Rewrite>,
}

/// One alternative (Istio `HTTPMatchRequest`): all of its conditions must hold.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Match {
    /// `match[].name`, or empty.
    pub name: String,
    /// Line in the file, from 1.
    pub line: u32,
    /// All must hold.
    pub conditions: Vec<Condition>,
}

/// One condition of a match.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum Condition {
    /// `uri`: the path without query.
    Uri(StringMatch),
    /// `scheme`.
    Scheme(StringMatch),
    /// `method`.
    Method(StringMatch),
    /// `authority`: the Host value as it was sent, port included.
    Authority(StringMatch),
    /// `headers`: any line of that name matches. Names are lower case.
    Header {
        /// Lower case.
        name: String,
        /// Compared with each line's value.
        value: StringMatch,
    },
    /// `withoutHeaders`: no line of that name matches.
    WithoutHeader {
        /// Lower case.
        name: String,
        /// Compared with each line's value.
        value: StringMatch,
    },
    /// `queryParams`: the first parameter of that name matches.
    Query {
        /// As sent, undecoded.
        name: String,
        /// Compared with the first value, undecoded.
        value: StringMatch,
    },
    /// `port`: the port that was asked for.
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

/// How a string is compared (Istio `StringMatch`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Equal up to ASCII case (`ignoreUriCase`).
    ExactIgnoreCase(String),
    /// Starts with.
    Prefix(String),
    /// Starts with, up to ASCII case.
    PrefixIgnoreCase(String),
    /// The whole string matches the regular expression.
    Regex(RegexId),
    /// The name is there, with any value.
    Present,
}

/// What a route does.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum Action {
    /// Forward to one of the destinations, by weight.
    Forward {
        /// First destination.
        first: u32,
        /// Number of destinations, at least 1.
        count: u32,
        /// Sum of their weights, at least 1.
        weight_sum: u32,
    },
    /// Answer with a redirect.
    Redirect(Box<Redirect>),
    /// Answer with a fixed response.
    DirectResponse(Box<DirectResponse>),
}

/// One weighted destination of a route (Istio `HTTPRouteDestination`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Destination {
    /// Where to.
    pub cluster: ClusterId,
    /// Share of the route's `weight_sum`.
    pub weight: u32,
    /// Header edits of this destination alone, applied before those of the rule (Envoy's order).
    pub headers: Option<Box<DestinationHeaders>>,
}

/// Header edits of one destination.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct DestinationHeaders {
    /// `headers.request`.
    pub request: Vec<HeaderOp>,
    /// `headers.response`.
    pub response: Vec<HeaderOp>,
}

/// One header edit. A list is kept in the order remove, set, add.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum HeaderOp {
    /// Remove every line of that name. Names are lower case.
    Remove {
        /// Lower case.
        name: String,
    },
    /// Replace every line of that name by one. `host` replaces the authority.
    Set {
        /// Lower case.
        name: String,
        /// Of the one line that is left.
        value: String,
    },
    /// Add a line.
    Add {
        /// Lower case.
        name: String,
        /// Of the line that is added.
        value: String,
    },
}

/// `rewrite` of a rule.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Rewrite {
    /// `uri`: replaces the matched prefix, or the whole path after an exact or regex match.
    pub uri: Option<String>,
    /// `authority`: replaces Host.
    pub authority: Option<String>,
    /// `uriRegexRewrite`: pattern and replacement, the latter in the regex crate's `${1}` notation.
    pub regex: Option<RegexRewrite>,
}

/// `rewrite.uriRegexRewrite`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct RegexRewrite {
    /// `match`: every occurrence in the path is replaced.
    pub pattern: RegexId,
    /// `rewrite`, with `\1` written as `${1}`.
    pub replacement: String,
}

/// `redirect` of a rule.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Redirect {
    /// Replaces the path; the query is kept unless this holds one.
    pub uri: Option<String>,
    /// Replaces the host.
    pub authority: Option<String>,
    /// Replaces the scheme.
    pub scheme: Option<String>,
    /// Which port the location names.
    pub port: RedirectPort,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The port in a redirect's location.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub enum RedirectPort {
    /// As the request's Host has it (Envoy's default), removed where it is the default of a changed scheme.
    Keep,
    /// `port`.
    Fixed(u16),
    /// `derivePort: FROM_PROTOCOL_DEFAULT`: none, which is 80 or 443 by scheme.
    ProtocolDefault,
    /// `derivePort: FROM_REQUEST_PORT`: the port that the request came in on.
    RequestPort,
}

/// `directResponse` of a rule.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body, at most [`crate::limits::DIRECT_RESPONSE_BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// One service, port and subset.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Cluster {
    /// As Istio names it: `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub name: String,
    /// How an endpoint is chosen.
    pub policy: BalancePolicy,
    /// Where the endpoints come from.
    pub kind: ClusterKind,
    /// What is spoken with the endpoints.
    pub protocol: UpstreamProtocol,
    /// First endpoint, or first entry of `members` where `selected`.
    pub first: u32,
    /// Number of endpoints.
    pub count: u32,
    /// Whether the range is over `members` (a subset) instead of `endpoints` (a whole service).
    pub selected: bool,
    /// Whether endpoint weights differ, so that the choice must heed them.
    pub weighted: bool,
    /// Position in `cluster_tls`, or [`TLS_NONE`](super::security::TLS_NONE).
    pub tls: u32,
    /// Most streams on one HTTP/2 connection at a time (`connectionPool.http.maxConcurrentStreams`); 0: as many as the server
    /// allows.
    pub max_streams: u32,
}

/// Load balancing (Istio `LoadBalancerSettings.simple`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum BalancePolicy {
    /// The less loaded of two random endpoints; the default.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any, with equal chance.
    Random,
}

/// Where a cluster's endpoints come from, or why there are none.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum ClusterKind {
    /// Listed in the table.
    #[default]
    Static,
    /// The address that the client meant (`PASSTHROUGH`, `resolution: NONE`): the original destination of an
    /// intercepted connection, or a literal address in Host.
    OriginalDestination,
    /// A route names a host that no Service or ServiceEntry defines.
    NoSuchService,
    /// A route names a subset that no DestinationRule defines.
    NoSuchSubset,
    /// A route names a port that the service does not have.
    NoSuchPort,
}

/// One address that requests can be sent to. 8 bytes archived: there may be a million of them.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Endpoint {
    /// IPv4 address in host byte order, or an index into `addresses_v6`.
    pub address: u32,
    /// Port.
    pub port: u16,
    /// [`ENDPOINT_V6`] where `address` is an index; [`ENDPOINT_MTLS`]; [`ENDPOINT_HBONE`]; in the other bits the load balancing weight, or 0
    /// for a weight beyond
    /// [`WEIGHT_INLINE_MAX`], which stands in `heavy_weights`.
    pub family_and_weight: u16,
}

/// The bit of an endpoint whose address is an index into `addresses_v6`.
pub const ENDPOINT_V6: u16 = 0x8000;
/// The bit of an endpoint that has a sidecar, which speaks mutual TLS (Istio's label `security.istio.io/tlsMode: istio`).
pub const ENDPOINT_MTLS: u16 = 0x4000;
/// The bit of an endpoint that takes tunnels (Istio's label `networking.istio.io/tunnel: http`); it has [`ENDPOINT_MTLS`], too.
pub const ENDPOINT_HBONE: u16 = 0x2000;
/// Largest weight that an endpoint holds itself. Weights are shares, mostly below 1,000; Istio allows 32 bits.
pub const WEIGHT_INLINE_MAX: u16 = 0x1fff;

/// How the mesh reaches an endpoint, where no DestinationRule says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// In plain text: it has no sidecar.
    #[default]
    Plain,
    /// By mutual TLS, which its sidecar ends on the endpoint's own port.
    Mtls,
    /// By HBONE: a tunnel through [`HBONE_PORT`](super::protocol::HBONE_PORT) of its address.
    Hbone,
}

impl Reach {
    pub(super) fn bits(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Mtls => ENDPOINT_MTLS,
            Self::Hbone => ENDPOINT_MTLS | ENDPOINT_HBONE,
        }
    }
}

impl ArchivedEndpoint {
    /// Whether `address` is an index into `addresses_v6`.
    #[inline]
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.family_and_weight.to_native() & ENDPOINT_V6 != 0
    }

    /// How the mesh reaches it.
    #[inline]
    #[must_use]
    pub fn reach(&self) -> Reach {
        let bits = self.family_and_weight.to_native();
        match (bits & ENDPOINT_MTLS != 0, bits & ENDPOINT_HBONE != 0) {
            (_, true) => Reach::Hbone,
            (true, false) => Reach::Mtls,
            (false, false) => Reach::Plain,
        }
    }

    /// Its weight; `None` where it stands in `heavy_weights`.
    #[inline]
    #[must_use]
    pub fn weight_inline(&self) -> Option<u32> {
        let weight = self.family_and_weight.to_native() & WEIGHT_INLINE_MAX;
        (weight != 0).then_some(weight.into())
    }
}

/// The weight of one endpoint that is too large to stand in it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct HeavyWeight {
    /// Whose.
    pub endpoint: EndpointId,
    /// Above [`WEIGHT_INLINE_MAX`].
    pub weight: u32,
}

/// A workload that control knows by name: its labels decide `sourceLabels`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Workload {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: String,
    /// Its labels, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Position in `inbound_policies`, or [`POLICY_NONE`].
    pub policy: u32,
    /// Position in `application_ports`, or [`PROTOCOLS_NONE`](super::protocol::PROTOCOLS_NONE).
    pub protocols: u32,
}
