//! Istio's ServiceEntry and WorkloadEntry: services and endpoints that Kubernetes does not know.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer};

use super::Position;
use super::value::{ExportTo, HostPattern, Hostname, Labels, Port, PortName, Protocol};

/// `networking.istio.io` ServiceEntry.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// `hosts`, full names or wildcards; at least one.
    pub hosts: Vec<HostPattern>,
    /// `addresses` that are single addresses.
    pub addresses: Vec<IpAddr>,
    /// `ports`, each with its own number and name.
    pub ports: Vec<EntryPort>,
    /// `location`.
    pub location: Location,
    /// `resolution`.
    pub resolution: Resolution,
    /// `endpoints`; with `workload_selector` there is none.
    pub endpoints: Vec<Workload>,
    /// `workloadSelector.labels`: selects WorkloadEntries and Pods of its namespace.
    pub workload_selector: Option<Labels>,
    /// `exportTo`.
    pub export_to: ExportTo,
    /// `subjectAltNames`: identities that the endpoints may have beside those of their service accounts.
    pub subject_alt_names: Arc<[Arc<str>]>,
}

/// One of a ServiceEntry's `ports`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// `name`.
    pub name: PortName,
    /// `number`: what clients address.
    pub port: Port,
    /// `targetPort`: what endpoints listen on, where they do not say otherwise.
    pub target: Port,
    /// `protocol`, or the name.
    pub protocol: Protocol,
}

/// `location`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside of the mesh: no mutual TLS.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// `resolution`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// To the address that the client asked for.
    #[default]
    None,
    /// To the endpoints' addresses.
    Static,
    /// To what DNS says for the endpoints' names, or for the hosts where there is no endpoint.
    Dns,
    /// As `DNS`, but for one endpoint or none, and with one of its addresses at a time: the first of the answer, until an
    /// answer comes without it (`DNS_ROUND_ROBIN`).
    DnsRoundRobin,
}

/// A WorkloadEntry, or one of a ServiceEntry's `endpoints`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Where it begins.
    pub at: Position,
    /// `address`.
    pub address: Address,
    /// `ports`: by the service's port name; the service's `targetPort` where it is not listed.
    pub ports: BTreeMap<PortName, Port>,
    /// `labels`, and for a WorkloadEntry its `metadata.labels` under them.
    pub labels: Labels,
    /// `weight`; 1 where nothing is said. 0 means no traffic.
    pub weight: u32,
    /// `serviceAccount`.
    pub service_account: Option<Arc<str>>,
    /// A WorkloadEntry's annotation `meshring.io/unix-uid`: the user that the application runs as on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_uid: Option<u32>,
}

/// Where a workload listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A DNS name.
    Name(Hostname),
    /// `unix:///path`, or `unix://@name` for an abstract one: kept as written, without `unix://`.
    Unix(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
