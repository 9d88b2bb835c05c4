//! Endpoints that are said to have another identity than the workload at their address: whoever calls them expects the one and
//! meets the other, so that every handshake fails.

use std::{net::IpAddr, sync::Arc};

use crate::{
    diagnostic::{Code, Diagnostic},
    spec::{
        Body, FastMap, Namespace, Place, Resource, World,
        registry::DEFAULT_SERVICE_ACCOUNT,
        service::Pod,
        service_entry::{Address, ServiceEntry, Workload},
    },
};

/// Who may have a certificate at an address.
struct Resident<'w> {
    resource: &'w Resource,
    /// `None`: what the proxy says about itself.
    account: Option<&'w str>,
    /// That are known; none: any.
    ports: Vec<u16>,
}

impl<'w> Resident<'w> {
    fn of_pod(resource: &'w Resource, pod: &'w Pod) -> Self {
        // Container ports that have no name are not known.
        let account = Some(pod.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT));
        Self { resource, account, ports: Vec::new() }
    }

    fn of_entry(resource: &'w Resource, workload: &'w Workload) -> Self {
        let ports = workload.ports.values().map(|port| port.number()).collect();
        Self { resource, account: workload.service_account.as_deref(), ports }
    }

    fn serves(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    fn may_be(&self, namespace: &Namespace, account: &str) -> bool {
        self.resource.key.namespace == *namespace && self.account.is_none_or(|own| own == account)
    }
}

pub(super) fn analyze(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let mut residents: FastMap<IpAddr, Vec<Resident<'_>>> = FastMap::default();
    let mut pods: FastMap<(&Namespace, &str), &Pod> = FastMap::default();
    for resource in world.resources() {
        match &resource.body {
            Body::Pod(pod) => {
                pods.insert((&resource.key.namespace, resource.key.name.as_str()), pod);
                for address in &pod.addresses {
                    residents.entry(*address).or_default().push(Resident::of_pod(resource, pod));
                }
            }
            Body::WorkloadEntry(workload) => {
                if let Address::Ip(address) = workload.address {
                    residents.entry(address).or_default().push(Resident::of_entry(resource, workload));
                }
            }
            _ => {}
        }
    }
    if residents.is_empty() {
        return;
    }
    for resource in world.resources() {
        match &resource.body {
            Body::ServiceEntry(entry) => {
                for (index, endpoint) in entry.endpoints.iter().enumerate() {
                    let (Address::Ip(address), Some(account)) = (&endpoint.address, &endpoint.service_account) else {
                        continue;
                    };
                    let Some(there) = residents.get(address) else { continue };
                    let place = Place::new(Arc::clone(&resource.place.file), endpoint.at);
                    for port in ports(entry, endpoint) {
                        let told = told(resource, &place, (*address, port), account, there);
                        if let Some(told) = told {
                            diagnostics.push(told.at_field(format!("spec.endpoints[{index}].serviceAccount")));
                            break;
                        }
                    }
                }
            }
            Body::EndpointSlice(slice) => {
                for (index, endpoint) in slice.endpoints.iter().enumerate() {
                    let Some(name) = endpoint.pod.as_deref() else { continue };
                    let Some(pod) = pods.get(&(&resource.key.namespace, name)) else { continue };
                    // Its own address, as nearly always.
                    if pod.addresses.contains(&endpoint.address) {
                        continue;
                    }
                    let Some(there) = residents.get(&endpoint.address) else { continue };
                    let account = pod.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT);
                    let mut ports = slice.ports.iter().map(|port| port.port.number());
                    let told = ports
                        .find_map(|port| told(resource, &resource.place, (endpoint.address, port), account, there));
                    diagnostics.extend(told.map(|told| told.at_field(format!("endpoints[{index}].targetRef"))));
                }
            }
            _ => {}
        }
    }
}

/// Where an endpoint listens.
fn ports(entry: &ServiceEntry, endpoint: &Workload) -> impl Iterator<Item = u16> {
    entry.ports.iter().map(|port| endpoint.ports.get(&port.name).unwrap_or(&port.target).number())
}

/// What is wrong with an endpoint, if anything: nobody of those who may be there is who it is said to be.
fn told(
    resource: &Resource,
    place: &Place,
    (address, port): (IpAddr, u16),
    account: &str,
    there: &[Resident<'_>],
) -> Option<Diagnostic> {
    let namespace = &resource.key.namespace;
    let mut serving = there.iter().filter(|resident| resident.serves(port)).peekable();
    let Resident { resource: other, account: theirs, .. } = serving.peek()?;
    let theirs = format!("{}/{}", other.key.namespace, theirs.unwrap_or(DEFAULT_SERVICE_ACCOUNT));
    if serving.any(|resident| resident.may_be(namespace, account)) {
        return None;
    }
    let message = format!(
        "{address}:{port} has the identity {namespace}/{account} here, and that of {theirs} by {} at {}: callers will refuse its \
         certificate",
        other.key, other.place
    );
    let diagnostic = Diagnostic::warning(Code::CONFLICTING_IDENTITIES, place.clone(), message).of(&resource.key);
    Some(diagnostic.hint("write the same namespace and service account in both"))
}
