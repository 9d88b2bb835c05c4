//! Istio's VirtualService: ordered rules that decide, for the hosts that it names, where a request goes.
//!
//! Only the `mesh` gateway is honoured. A rule keeps its [`Position`] so that `explain` can name its
//! line.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::value::{Cidr, ExportTo, HeaderName, HeaderValue, HostPattern, Hostname, Namespace, Pattern, Port};
use super::{Labels, Position};

/// `networking.istio.io` VirtualService, as it applies to sidecars.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualService {
    /// `hosts`, short names resolved; at least one.
    pub hosts: Vec<Host>,
    /// Whether it applies to sidecars: `gateways` is absent or names `mesh`.
    pub mesh: bool,
    /// `exportTo`.
    pub export_to: ExportTo,
    /// `http`, in order: the first rule that matches decides.
    pub http: Vec<HttpRoute>,
    /// `tls`, likewise: for connections whose server name tells where they go.
    pub tls: Vec<StreamRoute>,
    /// `tcp`, likewise: for connections of which nothing more is known.
    pub tcp: Vec<StreamRoute>,
}

/// One entry of `hosts`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Host {
    /// Where it stands.
    pub at: Position,
    /// The host, or the wildcard.
    pub host: HostPattern,
}

/// One entry of `tcp` or `tls`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamRoute {
    /// Where it begins.
    pub at: Position,
    /// Its index in the document's list, from 0.
    pub index: u32,
    /// `match`: any of them is enough; empty (`tcp` only) matches everything. A rule whose matches are all for gateways is not kept.
    pub matches: Vec<StreamMatch>,
    /// `route`: to one of these, by weight; at least one, and the weights do not add up to 0. They have no `headers`.
    pub route: Vec<WeightedDestination>,
}

/// One entry of `tcp[].match` or `tls[].match`: all of its conditions must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct StreamMatch {
    /// Where it begins.
    pub at: Position,
    /// `sniHosts` (`tls` only, where there is at least one): any of them is enough.
    pub sni_hosts: Vec<HostPattern>,
    /// `destinationSubnets`: any of them is enough; empty for any address.
    pub destination_subnets: Vec<Cidr>,
    /// `port`: the port of the host that is addressed.
    pub port: Option<Port>,
    /// `sourceLabels`: the client's labels.
    pub source_labels: Labels,
    /// `sourceNamespace`: the client's namespace.
    pub source_namespace: Option<Namespace>,
}

impl StreamMatch {
    /// Whether it may hold on a port for some client.
    pub fn is_for(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own.number() == port)
    }

    /// Whether it matches every connection of every client.
    pub fn is_match_all(&self) -> bool {
        self.sni_hosts.is_empty()
            && self.destination_subnets.is_empty()
            && self.port.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_none()
    }
}

impl StreamRoute {
    /// Whether it matches every connection of every client.
    pub fn is_match_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(StreamMatch::is_match_all)
    }
}

/// One entry of `http`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Where it begins.
    pub at: Position,
    /// Its index in the document's `http` list, from 0.
    pub index: u32,
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `match`: any of them is enough; empty matches everything. A rule whose matches are all for gateways is not kept.
    pub matches: Vec<HttpMatch>,
    /// What happens.
    pub action: Action,
    /// `headers` of the rule.
    pub headers: Headers,
    /// `rewrite`.
    pub rewrite: Option<Rewrite>,
    /// `timeout`, at least 1 ms.
    pub timeout: Option<Duration>,
}

/// One entry of `http[].match`: all of its conditions must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// Where it begins.
    pub at: Position,
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `uri`: the path without the query.
    pub uri: Option<StringMatch>,
    /// `ignoreUriCase`; only for exact and prefix.
    pub ignore_uri_case: bool,
    /// `scheme`.
    pub scheme: Option<StringMatch>,
    /// `method`.
    pub method: Option<StringMatch>,
    /// `authority`: the Host header or `:authority`, as sent.
    pub authority: Option<StringMatch>,
    /// `headers`: all must match.
    pub headers: Vec<(HeaderName, StringMatch)>,
    /// `withoutHeaders`: none may match.
    pub without_headers: Vec<(HeaderName, StringMatch)>,
    /// `queryParams`: all must match; names are case-sensitive.
    pub query_params: Vec<(Arc<str>, StringMatch)>,
    /// `port`: the port of the host that is addressed.
    pub port: Option<Port>,
    /// `sourceLabels`: the client's labels.
    pub source_labels: Labels,
    /// `sourceNamespace`: the client's namespace.
    pub source_namespace: Option<Namespace>,
}

impl HttpMatch {
    /// Whether it matches every request of every client.
    pub fn is_match_all(&self) -> bool {
        self.uri.as_ref().is_none_or(|uri| matches!(uri, StringMatch::Prefix(prefix) if &**prefix == "/"))
            && self.scheme.is_none()
            && self.method.is_none()
            && self.authority.is_none()
            && self.headers.is_empty()
            && self.without_headers.is_empty()
            && self.query_params.is_empty()
            && self.port.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_none()
    }
}

impl HttpRoute {
    /// Whether it matches every request of every client.
    pub fn is_match_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::is_match_all)
    }
}

/// Istio's StringMatch; an empty one means that the thing is there at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// `exact`.
    Exact(Arc<str>),
    /// `prefix`.
    Prefix(Arc<str>),
    /// `regex`, which must match the whole text.
    Regex(Pattern),
    /// `{}`.
    Present,
}

/// What a rule does with a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// `route`: to one of these, by weight; at least one, and the weights do not add up to 0.
    Route(Vec<WeightedDestination>),
    /// `redirect`.
    Redirect(Redirect),
    /// `directResponse`; also a rule of which we do not honour the action, as 503 with a body that says so.
    DirectResponse(DirectResponse),
}

/// One entry of `http[].route`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightedDestination {
    /// Where it begins.
    pub at: Position,
    /// `destination.host`, short names resolved.
    pub host: Hostname,
    /// Where the host stands.
    pub host_at: Position,
    /// `destination.subset`.
    pub subset: Option<Arc<str>>,
    /// Where the subset stands, or the destination without one.
    pub subset_at: Position,
    /// `destination.port.number`.
    pub port: Option<Port>,
    /// `weight`, relative to the others; 100 where there is only one destination and nothing is said.
    pub weight: u32,
    /// `headers` of the destination.
    pub headers: Headers,
}

/// `headers`: on the request to the upstream and on the response to the client.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Headers {
    /// `request`.
    pub request: HeaderOperations,
    /// `response`.
    pub response: HeaderOperations,
}

impl Headers {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// `set`, `add` and `remove`, in the order in which they stand in the document. `host` in `set` or `add` is the
/// authority.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct HeaderOperations {
    /// Overwrites.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appends.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes.
    pub remove: Vec<HeaderName>,
}

impl HeaderOperations {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// `rewrite`: at least one of them is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rewrite {
    /// `uri` or `uriRegexRewrite`.
    pub uri: Option<UriRewrite>,
    /// `authority`.
    pub authority: Option<HeaderValue>,
}

/// How the path is rewritten.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum UriRewrite {
    /// `uri`: where the match was a prefix, the prefix is replaced by this; otherwise the whole path.
    Replace(Arc<str>),
    /// `uriRegexRewrite`: every occurrence of `pattern` becomes `substitution`, in which `\1` to `\9` are groups, `\0`
    /// is all.
    Regex {
        /// `match`.
        pattern: Pattern,
        /// `rewrite`.
        substitution: Arc<str>,
    },
}

/// `redirect`: at least one of uri, authority, scheme and port is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redirect {
    /// `uri`: replaces the whole path.
    pub uri: Option<Arc<str>>,
    /// `authority`.
    pub authority: Option<HeaderValue>,
    /// `scheme`: `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// `port` or `derivePort`.
    pub port: Option<RedirectPort>,
    /// `redirectCode`: 301 (default), 302, 303, 307 or 308.
    pub code: u16,
}

/// The port of a redirect's Location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPort {
    /// `port`.
    Number(Port),
    /// `derivePort: FROM_PROTOCOL_DEFAULT`: 80 or 443 by the scheme.
    FromProtocolDefault,
    /// `derivePort: FROM_REQUEST_PORT`.
    FromRequestPort,
}

/// `directResponse`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DirectResponse {
    /// `status`, 200 to 599.
    pub status: u16,
    /// `body.string` or `body.bytes`, at most 1 MiB.
    pub body: Arc<[u8]>,
}
