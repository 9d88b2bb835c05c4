//! How the caller's sidecar connects to an endpoint.

use meshring_core::table::{
    ArchivedTable,
    model::{ArchivedCluster, Reach},
    protocol::HBONE_PORT,
    security::{ClusterTls, ClusterTlsMode, MtlsMode},
};
use serde::{Deserialize, Serialize};

use crate::{
    explain::Question,
    spec::{HostPattern, Hostname, Namespace, World, registry::MeshService, rules::MergedRule},
};

/// A connection between two sidecars, or to what has none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connection {
    /// `auto_mtls`, `hbone`, `istio_mutual`, `simple`, `mutual`, `plain`.
    pub secured: String,
    /// Why, for people.
    pub because: String,
    /// The server name in the handshake, where it is known.
    pub sni: Option<String>,
}

impl Connection {
    /// Whether it shows the identity that the mesh has given to the caller.
    pub(super) fn is_mesh(&self) -> bool {
        matches!(self.secured.as_str(), "auto_mtls" | "hbone" | "istio_mutual")
    }

    /// Whether it is a tunnel to the application, which is judged as a connection.
    pub(super) fn is_tunnel(&self) -> bool {
        self.secured == "hbone"
    }

    /// Why a workload with that mode does not take it.
    pub(super) fn refused_by(&self, mode: MtlsMode) -> Option<&'static str> {
        match (mode, self.secured.as_str()) {
            (MtlsMode::Strict, "plain") => {
                Some("the connection is refused: it is plain text, and the workload takes mutual TLS only (STRICT)")
            }
            (MtlsMode::Disable, "auto_mtls" | "istio_mutual") => {
                Some("the connection fails: it begins with TLS, and the workload takes plain text only (DISABLE)")
            }
            _ => None,
        }
    }
}

/// What holds for a cluster.
pub(super) struct Settings {
    tls: Option<ClusterTls>,
    rule: Option<String>,
    sni: String,
}

impl Settings {
    pub(super) fn of(table: &ArchivedTable, world: &World, cluster: &ArchivedCluster, question: &Question) -> Self {
        // Istio's form of a cluster's name as a server name: `outbound_.9080_.v1_.reviews.default.svc.cluster.local`.
        let sni = cluster.name.replace('|', "_.");
        Self { tls: table.tls_of(cluster), rule: destination_rule(world, &cluster.name, &question.namespace), sni }
    }

    pub(super) fn to(&self, reach: Reach) -> Connection {
        let rule = self.rule.as_deref().unwrap_or("a DestinationRule");
        let Some(tls) = &self.tls else {
            let because = match &self.rule {
                Some(rule) => format!("tls mode DISABLE of {rule}"),
                None => "no DestinationRule says tls, and no endpoint has a sidecar that speaks it".to_owned(),
            };
            return Connection { secured: "plain".to_owned(), because, sni: None };
        };
        let istio_sni = || if tls.sni.is_empty() { self.sni.clone() } else { tls.sni.clone() };
        let own_sni = || (!tls.sni.is_empty()).then(|| tls.sni.clone());
        let (secured, because, sni) = match tls.mode {
            ClusterTlsMode::AutoMutual | ClusterTlsMode::IstioMutual if reach == Reach::Hbone => {
                let because = format!(
                    "the endpoint is labelled networking.istio.io/tunnel=http: CONNECT over mutual TLS to its port {HBONE_PORT}"
                );
                ("hbone", because, None)
            }
            ClusterTlsMode::AutoMutual if reach == Reach::Mtls => {
                let because = "automatic: the endpoint is labelled security.istio.io/tlsMode=istio".to_owned();
                ("auto_mtls", because, Some(istio_sni()))
            }
            ClusterTlsMode::AutoMutual => {
                ("plain", "this endpoint has no sidecar that speaks mutual TLS".to_owned(), None)
            }
            ClusterTlsMode::IstioMutual => {
                ("istio_mutual", format!("tls mode ISTIO_MUTUAL of {rule}"), Some(istio_sni()))
            }
            ClusterTlsMode::Simple => ("simple", format!("tls mode SIMPLE of {rule}"), own_sni()),
            ClusterTlsMode::Mutual => ("mutual", format!("tls mode MUTUAL of {rule}"), own_sni()),
        };
        Connection { secured: secured.to_owned(), because, sni }
    }
}

/// Port, subset and host of `outbound|9080|v1|reviews.default.svc.cluster.local`.
pub(in crate::explain) fn parts(cluster: &str) -> Option<(u16, &str, &str)> {
    let mut parts = cluster.splitn(4, '|').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
}

/// The DestinationRule that says `tls` for a cluster, for a client of a namespace.
fn destination_rule(world: &World, cluster: &str, client: &str) -> Option<String> {
    let (port, subset, _) = parts(cluster)?;
    let rule = service_and_rule(world, cluster, client)?.1?;
    rule.tls(port, rule.subset(subset).filter(|_| !subset.is_empty()))?;
    let resource = &world.resources()[*rule.resources.first()?];
    Some(format!("{} ({})", resource.key, resource.place))
}

/// The service behind a cluster, and the DestinationRule for it, for a client of a namespace.
pub(in crate::explain) fn service_and_rule<'w>(
    world: &'w World,
    cluster: &str,
    client: &str,
) -> Option<(&'w MeshService, Option<&'w MergedRule>)> {
    let (_, _, host) = parts(cluster)?;
    let client =
        world.resources().iter().map(|resource| &resource.key.namespace).find(|known| known.as_str() == client);
    let host = HostPattern::Exact(Hostname::parse(host).ok()?);
    let service = &world.registry().services()[world.registry().index_of(&host, client)?];
    Some((service, world.destination_rules().rule_for(&service.host, &service.namespace, client)))
}

/// The namespace of the service behind a cluster; the caller's, where nothing tells it.
pub(super) fn service_namespace(world: &World, cluster: &ArchivedCluster, client: &str) -> String {
    let known: Option<&Namespace> =
        world.resources().iter().map(|resource| &resource.key.namespace).find(|known| known.as_str() == client);
    let service = parts(&cluster.name).and_then(|(_, _, host)| world.registry().service_for(host, known));
    service.map_or_else(|| client.to_owned(), |service| service.namespace.as_str().to_owned())
}
