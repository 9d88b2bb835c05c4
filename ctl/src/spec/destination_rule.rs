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

/// How connections to `port` are secured by a rule's policy and that of one of its subsets. As Istio merges them: where
/// the subset lists the port, that alone counts; then what the subset says; then the rule's entry for the port alone;
/// then what the rule says. An entry for a port that says nothing about TLS is as good as no rule.
pub(super) fn tls<'p>(
    rule: Option<&'p TrafficPolicy>,
    subset: Option<&'p TrafficPolicy>,
    port: u16,
) -> Option<&'p ClientTls> {
    let of_port = |policy: &'p TrafficPolicy| policy.ports.iter().find(|settings| settings.port.number() == port);
    if let Some(settings) = subset.and_then(of_port) {
        return settings.tls.as_ref();
    }
    let of_rule = || {
        let rule = rule?;
        of_port(rule).map_or(rule.tls.as_ref(), |settings| settings.tls.as_ref())
    };
    subset.and_then(|subset| subset.tls.as_ref()).or_else(of_rule)
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
