//! The service registry: every host that Services and ServiceEntries define, with its ports and endpoints, in one form.
//!
//! It answers what Istio's PushContext answers: which service is meant by a host, for a client of a namespace.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::service_entry::{Address, Resolution};
use super::value::{ExportTo, HostPattern, Hostname, Labels, LoadBalancer, Namespace, Port, PortName, Protocol};
use super::{Key, Place, World};

/// One host (or wildcard) of the mesh.
#[derive(Debug, Clone)]
pub struct MeshService {
    /// Its host. Wildcards come only from ServiceEntries.
    pub host: HostPattern,
    /// The namespace of the resource that defines it.
    pub namespace: Namespace,
    /// The resource that defines it.
    pub key: Key,
    /// Where that begins.
    pub place: Place,
    /// Addresses by which clients may name it: cluster IPs, `addresses`.
    pub addresses: Vec<IpAddr>,
    /// Ports that clients address, in the resource's order.
    pub ports: Vec<MeshPort>,
    /// How addresses of endpoints are found. A Service is `Static`; an ExternalName one is `Dns`.
    pub resolution: Resolution,
    /// Who may see it.
    pub export_to: ExportTo,
    /// All endpoints that take traffic (ready, weight above 0), in the order of files.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that exist but are not ready.
    pub not_ready: u32,
}

/// One port of a [`MeshService`].
#[derive(Debug, Clone, PartialEq)]
pub struct MeshPort {
    /// Its name.
    pub name: PortName,
    /// Its number, as clients address it.
    pub port: Port,
    /// What it speaks.
    pub protocol: Protocol,
}

/// One endpoint of a [`MeshService`].
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Its address; a name is to be resolved by DNS.
    pub address: Address,
    /// What subsets select by.
    pub labels: Labels,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// Its port number for each of the service's ports, in their order; 0 where it does not serve that port.
    pub targets: Arc<[u16]>,
}
