//! What workloads' applications speak on their ports: what the services say that lead there.

use meshring_core::table::{build::TableBuilder, model::UpstreamProtocol, protocol::ApplicationPorts};

use crate::spec::{
    Body, FastMap, Namespace, Resource, World, registry::MeshService, service_entry::Address, upstream_protocol,
    value::Protocol,
};

/// By namespace and address: a service of another namespace has no say.
pub(super) struct Applications<'w>(FastMap<(&'w Namespace, Address), ApplicationPorts>);

impl<'w> Applications<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let mut applications = FastMap::default();
        for resource in world.resources() {
            for address in addresses(resource) {
                applications.insert((&resource.key.namespace, address), ApplicationPorts::new());
            }
        }
        let mut applications = Self(applications);
        if !applications.0.is_empty() {
            for service in world.registry().services() {
                applications.add(world, service);
            }
        }
        applications
    }

    fn add(&mut self, world: &World, service: &'w MeshService) {
        let namespace = &service.namespace;
        let rule = world.destination_rules().rule_for(&service.host, namespace, Some(namespace));
        for (index, port) in service.ports.iter().enumerate() {
            let pool = rule.and_then(|rule| rule.connection_pool(port.port.number(), None));
            let spoken = upstream_protocol::inbound(port.protocol, pool);
            // That nobody says what a port speaks is worth knowing: what comes there may not be HTTP.
            if spoken == UpstreamProtocol::Downstream && port.protocol != Protocol::Unknown {
                continue;
            }
            for endpoint in &service.endpoints {
                let target = endpoint.targets.get(index).copied().filter(|target| *target != 0);
                let Some(target) = target else { continue };
                let Some(ports) = self.0.get_mut(&(namespace, endpoint.address.clone())) else { continue };
                // The first service that says something about a port decides.
                match ports.iter_mut().find(|(known, _)| *known == target) {
                    None => ports.push((target, spoken)),
                    Some((_, known @ UpstreamProtocol::Downstream)) => *known = spoken,
                    Some(_) => {}
                }
            }
        }
    }

    /// The position of a workload's ports in the table.
    pub(super) fn of_workload(&self, builder: &mut TableBuilder, resource: &'w Resource) -> u32 {
        let ports = addresses(resource).filter_map(|address| self.0.get(&(&resource.key.namespace, address)));
        builder.application_ports(ports.flatten().copied().collect())
    }
}

fn addresses(resource: &Resource) -> impl Iterator<Item = Address> {
    let (ips, own) = match &resource.body {
        Body::Pod(pod) => (&pod.addresses[..], None),
        Body::WorkloadEntry(workload) => (&[][..], Some(workload.address.clone())),
        _ => (&[][..], None),
    };
    ips.iter().map(|ip| Address::Ip(*ip)).chain(own)
}
