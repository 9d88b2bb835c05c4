//! The service registry: every host that Services and ServiceEntries define, with its ports and endpoints, in one form.
//!
//! It answers what Istio's PushContext answers: which service is meant by a host, for a client of a namespace.

use std::{net::IpAddr, sync::Arc};

use meshring_core::table::model::Reach;

use super::{
    Body, FastMap, FastSet, Key, Kind, Place, Resource,
    host_index::HostIndex,
    service::{EndpointSlice, Pod, Service, ServiceKind, TargetPort},
    service_entry::{Address, Location, Resolution, ServiceEntry, Workload},
    value::{ExportTo, HostPattern, Hostname, Labels, Name, Namespace, Port, PortName, Protocol},
};
use crate::diagnostic::{Code, Diagnostic};

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
    /// All endpoints that take traffic, in the order of the resources that define them.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that exist but are not ready.
    pub not_ready: u32,
    /// Whether it is part of the mesh: a Service that is not an ExternalName, a ServiceEntry with `MESH_INTERNAL`.
    pub internal: bool,
    /// A ServiceEntry's `subjectAltNames`.
    pub subject_alt_names: Arc<[Arc<str>]>,
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
    /// The service account of its workload, in the service's namespace; `None` where nothing tells it.
    pub service_account: Option<Arc<str>>,
}

/// How labels say that a workload is reached within the mesh.
pub(crate) fn reach(labels: &Labels) -> Reach {
    // Istio reads a list, which no label can hold.
    if labels.value(TUNNEL) == Some(TUNNEL_HTTP) {
        Reach::Hbone
    } else if labels.value(TLS_MODE) == Some(TLS_MODE_ISTIO) {
        Reach::Mtls
    } else {
        Reach::Plain
    }
}

/// The label of workloads that take tunnels (Istio's `model.TunnelLabel`).
const TUNNEL: &str = "networking.istio.io/tunnel";
/// HTTP/2 CONNECT over mutual TLS, which is all that there is so far.
const TUNNEL_HTTP: &str = "http";

/// The label by which Istio's injection marks Pods; on WorkloadEntries and ServiceEntry endpoints it is written by hand.
const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Its one value that means something.
const TLS_MODE_ISTIO: &str = "istio";
/// The service account of a Pod that names none.
pub(crate) const DEFAULT_SERVICE_ACCOUNT: &str = "default";

impl MeshService {
    /// The index of a port number in `ports`.
    pub fn port_index(&self, number: u16) -> Option<usize> {
        self.ports.iter().position(|port| port.port.number() == number)
    }
}

/// All services of the mesh.
#[derive(Debug, Default)]
pub struct Registry {
    services: Vec<MeshService>,
    /// Indices into `services`; each list in order of precedence.
    hosts: HostIndex<u32>,
}

impl Registry {
    /// All of them. A host that several resources define is there as often.
    pub fn services(&self) -> &[MeshService] {
        &self.services
    }

    /// The service with this host, or else with the most specific wildcard for it, that a client in `client` sees.
    /// `None` for `client` is a namespace about which nothing is said anywhere.
    ///
    /// Where several define the host, the client's own namespace wins, then Kubernetes, then the oldest.
    pub fn service_for(&self, host: &str, client: Option<&Namespace>) -> Option<&MeshService> {
        let host = HostPattern::Exact(Hostname::parse(host).ok()?);
        self.hosts.covering(&host).find_map(|list| self.best(list, client)).map(|index| &self.services[index])
    }

    /// The index of the service with this very host or wildcard.
    pub(crate) fn index_of(&self, host: &HostPattern, client: Option<&Namespace>) -> Option<usize> {
        self.best(self.hosts.of(host), client)
    }

    /// The index of the service with this very name.
    pub(crate) fn index_of_name(&self, host: &str, client: Option<&Namespace>) -> Option<usize> {
        self.best(self.hosts.of_name(host), client)
    }

    /// All that define this very host or wildcard, in order of precedence.
    pub(crate) fn candidates(&self, host: &HostPattern) -> impl Iterator<Item = &MeshService> {
        self.hosts.of(host).iter().map(|index| &self.services[*index as usize])
    }

    fn best(&self, list: &[u32], client: Option<&Namespace>) -> Option<usize> {
        let visible = |index: &&u32| self.services[**index as usize].export_to.reaches(client);
        let own = |index: &&u32| Some(&self.services[**index as usize].namespace) == client;
        let found = list.iter().filter(visible).find(own).or_else(|| list.iter().find(visible));
        found.map(|index| *index as usize)
    }

    /// Every name that is to be resolved by DNS, sorted.
    pub fn dns_names(&self) -> Vec<Hostname> {
        let mut names: Vec<_> = self
            .services
            .iter()
            .filter(|service| matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin))
            .flat_map(|service| &service.endpoints)
            .filter_map(|endpoint| match &endpoint.address {
                Address::Name(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Puts the services together from resources sorted by key.
    pub(super) fn build(resources: &[Resource]) -> (Self, Vec<Diagnostic>) {
        let parts = Parts::collect(resources);
        let mut registry = Self::default();
        for resource in resources {
            match &resource.body {
                Body::Service(service) => registry.services.push(parts.kubernetes(resource, service)),
                Body::ServiceEntry(entry) => parts.entry(resource, entry, &mut registry.services),
                _ => {}
            }
        }
        let diagnostics = registry.index(resources);
        (registry, diagnostics)
    }

    fn index(&mut self, resources: &[Resource]) -> Vec<Diagnostic> {
        let created: FastMap<&Key, Option<&str>> = resources
            .iter()
            .filter(|resource| resource.key.kind == Kind::ServiceEntry)
            .map(|resource| (&resource.key, resource.created.as_deref()))
            .collect();
        let mut order: Vec<u32> = (0..self.services.len() as u32).collect();
        order.sort_by_key(|index| {
            let service = &self.services[*index as usize];
            // Kubernetes' services are sorted first by their kind, and have hosts that no other of them has.
            (service.key.kind, created.get(&service.key).copied().flatten())
        });
        let mut diagnostics = Vec::new();
        for index in order {
            let service = &self.services[index as usize];
            let same = |other: &&MeshService| other.namespace == service.namespace;
            if let Some(first) = self.candidates(&service.host).find(same) {
                let message = format!("{} defines `{}` already, at {}", first.key, service.host, first.place);
                diagnostics.push(
                    Diagnostic::warning(Code::CONFLICTING_SERVICES, service.place.clone(), message)
                        .of(&service.key)
                        .hint("this one is not used for that host; remove the host from one of them"),
                );
                continue;
            }
            let host = service.host.clone();
            self.hosts.insert(&host, index);
        }
        diagnostics
    }
}

/// What services are put together from.
struct Parts<'w> {
    slices: FastMap<(&'w str, &'w str), Vec<&'w EndpointSlice>>,
    pods: FastMap<(&'w str, &'w str), &'w Pod>,
    pods_of: FastMap<&'w str, Vec<&'w Pod>>,
    workloads_of: FastMap<&'w str, Vec<&'w Workload>>,
}

impl<'w> Parts<'w> {
    fn collect(resources: &'w [Resource]) -> Self {
        let mut parts = Self {
            slices: FastMap::default(),
            pods: FastMap::default(),
            pods_of: FastMap::default(),
            workloads_of: FastMap::default(),
        };
        for resource in resources {
            let namespace = resource.key.namespace.as_str();
            match &resource.body {
                Body::EndpointSlice(slice) => {
                    parts.slices.entry((namespace, slice.service.as_str())).or_default().push(slice);
                }
                Body::Pod(pod) => {
                    parts.pods.insert((namespace, resource.key.name.as_str()), pod);
                    parts.pods_of.entry(namespace).or_default().push(pod);
                }
                Body::WorkloadEntry(workload) => parts.workloads_of.entry(namespace).or_default().push(workload),
                _ => {}
            }
        }
        parts
    }

    fn kubernetes(&self, resource: &Resource, service: &Service) -> MeshService {
        let (namespace, name) = (&resource.key.namespace, &resource.key.name);
        let ports = service.ports.iter();
        let ports =
            ports.map(|port| MeshPort { name: port.name.clone(), port: port.port, protocol: port.protocol }).collect();
        let mut mesh = MeshService {
            host: HostPattern::Exact(Hostname::of_service(name, namespace)),
            namespace: namespace.clone(),
            key: resource.key.clone(),
            place: resource.place.clone(),
            addresses: service.cluster_ips.clone(),
            ports,
            resolution: Resolution::Static,
            export_to: service.export_to.clone(),
            endpoints: Vec::new(),
            not_ready: 0,
            internal: true,
            subject_alt_names: Arc::default(),
        };
        if let ServiceKind::ExternalName(name) = &service.kind {
            mesh.resolution = Resolution::Dns;
            mesh.internal = false;
            let targets = mesh.ports.iter().map(|port| port.port.number()).collect();
            let address = Address::Name(name.clone());
            mesh.endpoints.push(Endpoint {
                address,
                labels: Labels::default(),
                weight: 1,
                targets,
                service_account: None,
            });
        } else if let Some(slices) = self.slices.get(&(namespace.as_str(), name.as_str())) {
            self.add_slices(&mut mesh, slices, namespace);
        } else if !service.selector.is_empty() {
            self.add_pods(&mut mesh, service, namespace);
        }
        mesh
    }

    fn add_slices(&self, mesh: &mut MeshService, slices: &[&EndpointSlice], namespace: &Namespace) {
        mesh.endpoints.reserve(slices.iter().map(|slice| slice.endpoints.len()).sum());
        // While Kubernetes moves an endpoint from slice to slice it may stand in both. The same address with other ports
        // is another endpoint: two processes on one host.
        let mut seen: Option<FastSet<(IpAddr, Arc<[u16]>)>> = (slices.len() > 1).then(FastSet::default);
        for slice in slices {
            let targets: Arc<[u16]> = mesh.ports.iter().map(|port| slice_target(slice, &port.name)).collect();
            for endpoint in &slice.endpoints {
                if !endpoint.ready {
                    mesh.not_ready += 1;
                    continue;
                }
                if seen.as_mut().is_some_and(|seen| !seen.insert((endpoint.address, Arc::clone(&targets)))) {
                    continue;
                }
                let pod = endpoint.pod.as_deref().and_then(|pod| self.pods.get(&(namespace.as_str(), pod)));
                mesh.endpoints.push(Endpoint {
                    address: Address::Ip(endpoint.address),
                    labels: pod.map_or_else(|| slice.labels.clone(), |pod| slice.labels.with(&pod.labels)),
                    weight: 1,
                    targets: Arc::clone(&targets),
                    service_account: pod.map(|pod| service_account(pod)),
                });
            }
        }
    }

    fn add_pods(&self, mesh: &mut MeshService, service: &Service, namespace: &Namespace) {
        for pod in self.pods_of.get(namespace.as_str()).into_iter().flatten() {
            if !service.selector.select(&pod.labels) {
                continue;
            }
            let Some(address) = pod.addresses.first() else { continue };
            if !pod.ready {
                mesh.not_ready += 1;
                continue;
            }
            let targets = service.ports.iter().map(|port| match &port.target {
                TargetPort::Number(number) => number.number(),
                TargetPort::Name(name) => pod_port(pod, name),
            });
            let targets = targets.collect();
            mesh.endpoints.push(Endpoint {
                address: Address::Ip(*address),
                labels: pod.labels.clone(),
                weight: 1,
                targets,
                service_account: Some(service_account(pod)),
            });
        }
    }

    fn entry(&self, resource: &Resource, entry: &ServiceEntry, services: &mut Vec<MeshService>) {
        let namespace = &resource.key.namespace;
        let mut endpoints: Vec<Endpoint> =
            entry.endpoints.iter().map(|workload| workload_endpoint(entry, workload)).collect();
        let mut not_ready = 0;
        if let Some(selector) = &entry.workload_selector {
            let workloads = self.workloads_of.get(namespace.as_str()).into_iter().flatten();
            let workloads = workloads.filter(|workload| selector.select(&workload.labels));
            endpoints.extend(workloads.map(|workload| workload_endpoint(entry, workload)));
            for pod in self.pods_of.get(namespace.as_str()).into_iter().flatten() {
                let Some(address) = pod.addresses.first().filter(|_| selector.select(&pod.labels)) else { continue };
                if !pod.ready {
                    not_ready += 1;
                    continue;
                }
                let targets = entry.ports.iter().map(|port| port.target.number()).collect();
                endpoints.push(Endpoint {
                    address: Address::Ip(*address),
                    labels: pod.labels.clone(),
                    weight: 1,
                    targets,
                    service_account: Some(service_account(pod)),
                });
            }
        }
        endpoints.retain(|endpoint| !matches!(endpoint.address, Address::Unix(_)));
        let resolves = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        for host in &entry.hosts {
            let mut endpoints = endpoints.clone();
            if let HostPattern::Exact(name) = host
                && resolves
                && entry.endpoints.is_empty()
                && entry.workload_selector.is_none()
            {
                let targets = entry.ports.iter().map(|port| port.target.number()).collect();
                let address = Address::Name(name.clone());
                endpoints.push(Endpoint {
                    address,
                    labels: Labels::default(),
                    weight: 1,
                    targets,
                    service_account: None,
                });
            }
            let port = |port: &super::service_entry::EntryPort| MeshPort {
                name: port.name.clone(),
                port: port.port,
                protocol: port.protocol,
            };
            services.push(MeshService {
                host: host.clone(),
                namespace: namespace.clone(),
                key: resource.key.clone(),
                place: resource.place.clone(),
                addresses: entry.addresses.clone(),
                ports: entry.ports.iter().map(port).collect(),
                resolution: entry.resolution,
                export_to: entry.export_to.clone(),
                endpoints,
                not_ready,
                internal: entry.location == Location::MeshInternal,
                subject_alt_names: Arc::clone(&entry.subject_alt_names),
            });
        }
    }
}

fn slice_target(slice: &EndpointSlice, name: &PortName) -> u16 {
    slice.ports.iter().find(|port| port.name == *name).map_or(0, |port| port.port.number())
}

fn pod_port(pod: &Pod, name: &PortName) -> u16 {
    pod.ports.iter().find(|(known, _)| known == name).map_or(0, |(_, port)| port.number())
}

fn workload_endpoint(entry: &ServiceEntry, workload: &Workload) -> Endpoint {
    let target =
        |port: &super::service_entry::EntryPort| workload.ports.get(&port.name).unwrap_or(&port.target).number();
    Endpoint {
        address: workload.address.clone(),
        labels: workload.labels.clone(),
        weight: workload.weight.max(1),
        targets: entry.ports.iter().map(target).collect(),
        service_account: workload.service_account.clone(),
    }
}

fn service_account(pod: &Pod) -> Arc<str> {
    pod.service_account.clone().unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.into())
}

/// Names of workloads with labels, for `sourceLabels`: Pods and WorkloadEntries.
pub(crate) fn workloads(resources: &[Resource]) -> impl Iterator<Item = (&Namespace, &Name, &Labels)> {
    resources
        .iter()
        .filter_map(|resource| Some((&resource.key.namespace, &resource.key.name, workload_labels(resource)?)))
}

/// The labels of a workload; `None` for what is none.
pub(crate) fn workload_labels(resource: &Resource) -> Option<&Labels> {
    match &resource.body {
        Body::Pod(pod) => Some(&pod.labels),
        Body::WorkloadEntry(workload) => Some(&workload.labels),
        _ => None,
    }
}
