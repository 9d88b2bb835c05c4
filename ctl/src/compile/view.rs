//! Who sees what: which service, VirtualService and DestinationRules stand behind a host for the clients of a
//! namespace.

use std::collections::BTreeSet;

use crate::spec::{
    HostPattern, Hostname, Namespace, World, rules::MeshVirtualService, value::ExportTo, virtual_service::Action,
};

/// What decides a host's virtual hosts. Two equal views give equal virtual hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    /// The service with that very host.
    pub(super) service: Option<usize>,
    /// The VirtualService with the most specific host for it.
    pub(super) virtual_service: Option<usize>,
    /// Likewise, for connections.
    pub(super) stream_service: Option<usize>,
    /// For the host and each destination: service and DestinationRule.
    targets: Vec<(Option<usize>, Option<usize>)>,
}

/// All hosts of a world.
pub(super) struct Views<'w> {
    world: &'w World,
    hosts: Vec<HostPattern>,
    /// Whether any resource is exported to some namespaces only, or could be found from some namespaces only.
    uniform: bool,
}

impl<'w> Views<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let services = world.registry().services();
        let virtual_services = world.virtual_services().list();
        let mut hosts = Vec::with_capacity(services.len());
        // Each host once, with the first of those that define it.
        for service in services {
            if world.registry().candidates(&service.host).next().is_some_and(|first| std::ptr::eq(first, service)) {
                hosts.push(service.host.clone());
            }
        }
        let distinct = hosts.len() == services.len();
        for (index, service) in virtual_services.iter().enumerate() {
            let own = |host: &&HostPattern| {
                world.registry().candidates(host).next().is_none() && world.virtual_services().is_first(host, index)
            };
            hosts.extend(service.body.hosts.iter().map(|host| &host.host).filter(own).cloned());
        }
        let all = |export_to: &ExportTo| !matches!(export_to, ExportTo::Namespaces(_));
        let uniform = services.iter().all(|service| all(&service.export_to))
            && virtual_services.iter().all(|service| all(&service.body.export_to))
            && world.stream_services().list().iter().all(|service| all(&service.body.export_to))
            && world.destination_rules().list().is_empty()
            && distinct;
        Self { world, hosts, uniform }
    }

    /// Every host and wildcard that a Service, ServiceEntry or VirtualService has, once, in the world's order.
    pub(super) fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// What clients in a namespace see; `None` is a namespace that no resource names.
    pub(super) fn view(&self, host: &HostPattern, client: Option<&Namespace>) -> View {
        let service = self.world.registry().index_of(host, client);
        let rules = self.world.virtual_services();
        // A host without service is there because a VirtualService names it: only that very name counts.
        let virtual_service = match host {
            _ if service.is_some() => rules.index_for(host, client),
            _ => rules.index_of(host, client),
        };
        let streams = self.world.stream_services();
        let stream_service = service.and_then(|_| streams.index_for(host, client));
        let mut view = View { service, virtual_service, stream_service, targets: Vec::new() };
        if !self.uniform {
            view.targets.push(self.target(host, client));
            let http = virtual_service.map(|index| &rules.list()[index]);
            let stream = stream_service.map(|index| &streams.list()[index]);
            for name in http.into_iter().flat_map(destinations).chain(stream.into_iter().flat_map(stream_destinations))
            {
                view.targets.push(self.target(&HostPattern::Exact(name.clone()), client));
            }
        }
        view
    }

    fn target(&self, host: &HostPattern, client: Option<&Namespace>) -> (Option<usize>, Option<usize>) {
        let registry = self.world.registry();
        let service = registry.index_of(host, client);
        let rule = service.and_then(|index| {
            let service = &registry.services()[index];
            self.world.destination_rules().index_for(&service.host, &service.namespace, client)
        });
        (service, rule)
    }

    /// Namespaces that may see a host differently from others, sorted.
    pub(super) fn special(&self, host: &HostPattern) -> BTreeSet<Namespace> {
        let mut special = BTreeSet::new();
        if self.uniform {
            return special;
        }
        self.special_target(host, &mut special);
        for (_, service) in self.world.virtual_services().covering(host) {
            named(&service.body.export_to, &mut special);
            for name in destinations(service) {
                self.special_target(&HostPattern::Exact(name.clone()), &mut special);
            }
        }
        for (_, service) in self.world.stream_services().covering(host) {
            named(&service.body.export_to, &mut special);
            for name in stream_destinations(service) {
                self.special_target(&HostPattern::Exact(name.clone()), &mut special);
            }
        }
        special
    }

    fn special_target(&self, host: &HostPattern, special: &mut BTreeSet<Namespace>) {
        let candidates = self.world.registry().candidates(host);
        let several = self.world.registry().candidates(host).nth(1).is_some();
        let mut home = None;
        for service in candidates {
            named(&service.export_to, special);
            if several {
                special.insert(service.namespace.clone());
            }
            home = Some(&service.namespace);
        }
        for rule in self.world.destination_rules().covering(host) {
            named(&rule.export_to, special);
            // What is in the service's own namespace, or in the root's, and for all, is the same for all.
            let common = Some(&rule.namespace) == home && !several || rule.namespace == *self.world.root_namespace();
            if !common || rule.export_to != ExportTo::All {
                special.insert(rule.namespace.clone());
            }
            // Rules of the service's namespace hide those of the root only for some.
            special.extend(home.filter(|_| rule.namespace == *self.world.root_namespace()).cloned());
        }
    }
}

fn named(export_to: &ExportTo, special: &mut BTreeSet<Namespace>) {
    if let ExportTo::Namespaces(list) = export_to {
        special.extend(list.iter().cloned());
    }
}

/// The hosts that the rules of a VirtualService forward to.
fn destinations(service: &MeshVirtualService) -> impl Iterator<Item = &Hostname> {
    service
        .body
        .http
        .iter()
        .flat_map(|rule| match &rule.action {
            Action::Route(destinations) => destinations.as_slice(),
            _ => &[],
        })
        .map(|destination| &destination.host)
}

/// Those that its rules for connections lead to.
fn stream_destinations(service: &MeshVirtualService) -> impl Iterator<Item = &Hostname> {
    let rules = service.body.tls.iter().chain(&service.body.tcp);
    rules.flat_map(|rule| &rule.route).map(|destination| &destination.host)
}
