//! Istio's DestinationRule: what applies after routing, and the subsets of a service.

use std::sync::Arc;

use serde::Serialize;

use super::{
    Position,
    secret::Credential,
    value::{ExportTo, HostPattern, Labels, LoadBalancer, Port},
};

/// `networking.istio.io` DestinationRule.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// `host`, short names resolved.
    pub host: HostPattern,
    /// `trafficPolicy`.
    pub policy: TrafficPolicy,
    /// `subsets`, with names of their own.
    pub subsets: Vec<Subset>,
    /// `exportTo`.
    pub export_to: ExportTo,
    /// `workloadSelector.matchLabels`: only for clients in its namespace with these labels.
    pub workload_selector: Option<Labels>,
}

/// One of `subsets`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Where it begins.
    pub at: Position,
    /// `name`.
    pub name: Arc<str>,
    /// `labels`; none select every endpoint.
    pub labels: Labels,
    /// `trafficPolicy`: what it says wins over the rule's.
    pub policy: TrafficPolicy,
}

/// `trafficPolicy`, as far as it is honoured.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// `loadBalancer.simple`.
    pub load_balancer: Option<LoadBalancer>,
    /// `tls`.
    pub tls: Option<ClientTls>,
    /// `connectionPool`.
    pub connection_pool: Option<ConnectionPool>,
    /// `portLevelSettings`; where a port is listed, its settings replace those of the destination as a whole.
    pub ports: Vec<PortPolicy>,
}

/// One of `portLevelSettings`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// `port.number`: the service's port.
    pub port: Port,
    /// `loadBalancer.simple`.
    pub load_balancer: Option<LoadBalancer>,
    /// `tls`.
    pub tls: Option<ClientTls>,
    /// `connectionPool`.
    pub connection_pool: Option<ConnectionPool>,
}

/// `connectionPool.http`, as far as it is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionPool {
    /// Whether `h2UpgradePolicy` is `UPGRADE`; `None` for `DEFAULT`, which is the MeshConfig's.
    pub h2_upgrade: Option<bool>,
    /// `useClientProtocol`.
    pub use_client_protocol: bool,
    /// `maxConcurrentStreams`; 0 for as many as the server allows.
    pub max_concurrent_streams: u32,
}

/// `tls`: how connections to the endpoints are secured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// `mode`.
    pub mode: ClientTlsMode,
    /// Certificate and key that the client shows, and roots. With SIMPLE and MUTUAL and without roots the server is
    /// judged by the system's roots: Istio does so since 1.21 (`VERIFY_CERTIFICATE_AT_CLIENT`), and did not judge at all
    /// before. A Secret is in the rule's namespace.
    pub credential: Credential,
    /// `sni`, or empty.
    pub sni: Arc<str>,
    /// `subjectAltNames`.
    pub subject_alt_names: Vec<Arc<str>>,
    /// `insecureSkipVerify`.
    pub insecure_skip_verify: bool,
}

/// `tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// Plain text, also where both ends have a sidecar.
    Disable,
    /// The server shows a certificate.
    Simple,
    /// Both show one.
    Mutual,
    /// Both show their identities of the mesh.
    IstioMutual,
}

/// How connections to `port` are secured by a rule's policy and that of one of its subsets. An entry for a port that says
/// nothing about TLS is as good as no rule.
pub(super) fn tls<'p>(
    rule: Option<&'p TrafficPolicy>,
    subset: Option<&'p TrafficPolicy>,
    port: u16,
) -> Option<&'p ClientTls> {
    merged(rule, subset, port, |policy| policy.tls.as_ref(), |settings| settings.tls.as_ref())
}

/// What is spoken over connections to `port`, likewise.
pub(super) fn connection_pool<'p>(
    rule: Option<&'p TrafficPolicy>,
    subset: Option<&'p TrafficPolicy>,
    port: u16,
) -> Option<&'p ConnectionPool> {
    let of_policy = |policy: &'p TrafficPolicy| policy.connection_pool.as_ref();
    merged(rule, subset, port, of_policy, |settings| settings.connection_pool.as_ref())
}

/// A part of the policies of a rule and of one of its subsets. As Istio merges them: where the subset lists the port, that
/// alone counts; then what the subset says; then the rule's entry for the port alone; then what the rule says.
fn merged<'p, T>(
    rule: Option<&'p TrafficPolicy>,
    subset: Option<&'p TrafficPolicy>,
    port: u16,
    of_policy: impl Fn(&'p TrafficPolicy) -> Option<&'p T>,
    of_settings: impl Fn(&'p PortPolicy) -> Option<&'p T>,
) -> Option<&'p T> {
    let of_port = |policy: &'p TrafficPolicy| policy.ports.iter().find(|settings| settings.port.number() == port);
    if let Some(settings) = subset.and_then(of_port) {
        return of_settings(settings);
    }
    let of_rule = || {
        let rule = rule?;
        of_port(rule).map_or_else(|| of_policy(rule), &of_settings)
    };
    subset.and_then(&of_policy).or_else(of_rule)
}

impl TrafficPolicy {
    /// What applies to `port`, if this policy says anything about it.
    pub fn load_balancer(&self, port: u16) -> Option<LoadBalancer> {
        match self.ports.iter().find(|policy| policy.port.number() == port) {
            Some(policy) => policy.load_balancer,
            None => self.load_balancer,
        }
    }

    /// What this policy of a subset says about `port` on top of the rule's: only what is there replaces it.
    pub fn load_balancer_over(&self, port: u16) -> Option<LoadBalancer> {
        let settings = self.ports.iter().find(|policy| policy.port.number() == port);
        settings.and_then(|settings| settings.load_balancer).or(self.load_balancer)
    }
}
