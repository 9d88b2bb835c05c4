//! Istio's Gateway: TLS that a workload ends for clients outside of the mesh.
//!
//! Servers that end TLS are kept, and the ports of those for HTTP without it: who comes there is judged, too. Which port a proxy listens on is said when it is started; what comes out of the
//! TLS is routed as by an outbound listener.

use std::sync::Arc;

use serde::Serialize;

use super::{Body, Labels, Port, Position, Resource, rules::precedence, secret::Credential};

/// `networking.istio.io` Gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// `selector`: the workloads, in any namespace. Without labels it selects none: which proxy is a gateway is told by
    /// its labels alone.
    pub selector: Labels,
    /// `servers` that end TLS.
    pub servers: Vec<Server>,
    /// `port.number` of `servers` for HTTP without TLS.
    pub plain_ports: Vec<Port>,
}

/// One of `servers`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Where it begins.
    pub at: Position,
    /// `port.number`: the listener's.
    pub port: Port,
    /// `hosts` without their namespaces, in lower case; `*.example.com` is `.example.com`.
    pub hosts: Vec<Arc<str>>,
    /// `tls.mode`.
    pub mode: ServerMode,
    /// Certificate and key, and for MUTUAL the roots of clients. A Secret is in the namespace of the workload, as in
    /// Istio.
    pub credential: Credential,
    /// `tls.subjectAltNames`.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Whether `tls.minProtocolVersion` is below `TLSV1_3`.
    pub tls12: bool,
}

/// `tls.mode`, as far as it is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerMode {
    /// Only the server shows a certificate.
    Simple,
    /// The client must show one, too.
    Mutual,
    /// The client may show one; it is checked then.
    OptionalMutual,
    /// Both show their identities of the mesh.
    IstioMutual,
}

/// All Gateways that have an effect.
#[derive(Debug, Default)]
pub struct Gateways {
    /// In order of precedence, with their positions among the world's resources.
    list: Vec<(usize, Arc<Gateway>)>,
}

impl Gateways {
    pub(super) fn build(resources: &[Resource]) -> Self {
        let mut list: Vec<(usize, Arc<Gateway>)> = resources
            .iter()
            .enumerate()
            .filter_map(|(index, resource)| match &resource.body {
                Body::Gateway(gateway)
                    if !gateway.selector.is_empty()
                        && (!gateway.servers.is_empty() || !gateway.plain_ports.is_empty()) =>
                {
                    Some((index, Arc::clone(gateway)))
                }
                _ => None,
            })
            .collect();
        list.sort_by(|(a, _), (b, _)| precedence(&resources[*a]).cmp(&precedence(&resources[*b])));
        Self { list }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Those that select a workload, with their positions among the world's resources; the first one to name a host on a
    /// port wins.
    pub fn of<'g>(&'g self, labels: &Labels) -> impl Iterator<Item = (usize, &'g Gateway)> {
        self.list
            .iter()
            .filter(|(_, gateway)| gateway.selector.select(labels))
            .map(|(index, gateway)| (*index, &**gateway))
    }
}
