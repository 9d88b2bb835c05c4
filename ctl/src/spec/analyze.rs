//! What only shows when all resources are there: references that lead nowhere, and rules that contradict each other.

use std::sync::Arc;

use super::{
    Body, FastSet, Kind, MeshService, Place, Resource, VirtualService, World, analyze_security,
    rules::{MergedRule, VirtualServices, precedence, selects},
    service_entry::{Address, Resolution},
    value::{CLUSTER_DOMAIN, ExportTo, HostPattern, Hostname, Namespace, Protocol},
    virtual_service::{Action, StreamRoute, WeightedDestination},
};
use crate::{
    diagnostic::{Code, Diagnostic},
    source::decode::closest,
};

/// Hosts among which a similar one is looked for; more would take too long for each of many dangling references.
const SUGGESTIONS_MAX: usize = 2_000;

pub(super) fn analyze(world: &World) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    for resource in world.of_kind(Kind::VirtualService) {
        if let Body::VirtualService(service) = &resource.body
            && service.mesh
        {
            let diagnostics = &mut diagnostics;
            VirtualServiceCheck { world, resource, service, traffic: Traffic::Http, diagnostics }.run();
        }
    }
    conflicting_virtual_services(world, world.virtual_services(), "rules", &mut diagnostics);
    conflicting_virtual_services(world, world.stream_services(), "tcp or tls rules", &mut diagnostics);
    destination_rules(world, &mut diagnostics);
    orphan_slices(world, &mut diagnostics);
    unresolved_workloads(world, &mut diagnostics);
    analyze_security::analyze(world, &mut diagnostics);
    diagnostics
}

/// What a list of rules is about.
#[derive(Debug, Clone, Copy)]
enum Traffic {
    Http,
    Tls,
    Tcp,
}

impl Traffic {
    /// What becomes of it where a rule leads nowhere.
    fn fate(self) -> &'static str {
        match self {
            Self::Http => "such requests are answered with 503",
            Self::Tls | Self::Tcp => "such connections are reset",
        }
    }

    /// Whether rules of the list apply to a port.
    fn is_on(self, port: Protocol) -> bool {
        match self {
            Self::Http => port.is_http(),
            Self::Tls => port == Protocol::Tls,
            Self::Tcp => matches!(port, Protocol::Tcp | Protocol::Unknown),
        }
    }
}

struct VirtualServiceCheck<'w, 'd> {
    world: &'w World,
    resource: &'w Resource,
    service: &'w VirtualService,
    traffic: Traffic,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl VirtualServiceCheck<'_, '_> {
    fn run(mut self) {
        for route in &self.service.http {
            let Action::Route(destinations) = &route.action else { continue };
            for (index, destination) in destinations.iter().enumerate() {
                let field = format!("spec.http[{}].route[{index}].destination", route.index);
                self.destination(destination, &field);
            }
        }
        for (traffic, name, rules) in
            [(Traffic::Tls, "tls", &self.service.tls), (Traffic::Tcp, "tcp", &self.service.tcp)]
        {
            self.traffic = traffic;
            self.without_port(name, rules);
            for rule in rules {
                for (index, destination) in rule.route.iter().enumerate() {
                    self.destination(destination, &format!("spec.{name}[{}].route[{index}].destination", rule.index));
                }
            }
        }
    }

    /// Rules for connections apply to the ports of services alone, and only to those that speak no HTTP.
    fn without_port(&mut self, name: &str, rules: &[StreamRoute]) {
        let Some(first) = rules.first() else { return };
        let registry = self.world.registry();
        let traffic = self.traffic;
        let of_host = |host: &HostPattern| {
            let all = registry.services().iter().filter(|service| host.covers(&service.host));
            all.flat_map(|service| &service.ports).any(|port| traffic.is_on(port.protocol))
        };
        if !self.service.hosts.iter().any(|host| of_host(&host.host)) {
            let kind = if name == "tls" { "TLS" } else { "TCP, or that may speak it" };
            let message = format!("no service of these hosts has a port that speaks {kind}: the rules have no effect");
            let hint = format!("name the port `{name}`, or `{name}-...`, or set its appProtocol");
            self.warn(Code::NO_EFFECT, first.at, format!("spec.{name}"), message, hint);
        }
    }

    fn warn(&mut self, code: Code, at: super::Position, field: String, message: String, hint: String) {
        let place = Place::new(Arc::clone(&self.resource.place.file), at);
        let mut warning = Diagnostic::warning(code, place, message).of(&self.resource.key).at_field(field);
        if !hint.is_empty() {
            warning = warning.hint(hint);
        }
        self.diagnostics.push(warning);
    }

    fn destination(&mut self, destination: &WeightedDestination, field: &str) {
        let registry = self.world.registry();
        let client = &self.resource.key.namespace;
        let Some(index) = registry.index_of_name(destination.host.as_str(), Some(client)) else {
            return self.unknown_host(destination, field);
        };
        let service = &registry.services()[index];
        if let Some(subset) = &destination.subset {
            self.subset(destination, service, subset, field);
        }
        match destination.port {
            Some(port) if service.port_index(port.number()).is_none() => {
                let message = format!("{} has no port {port}: {}", service.key, self.traffic.fate());
                self.warn(Code::UNKNOWN_PORT, destination.at, format!("{field}.port.number"), message, ports(service));
            }
            None if service.ports.len() > 1 => self.ambiguous_port(destination, service, field),
            _ => {}
        }
    }

    fn ambiguous_port(&mut self, destination: &WeightedDestination, service: &MeshService, field: &str) {
        let registry = self.world.registry();
        let asked = self.service.hosts.iter().filter_map(|host| registry.index_of(&host.host, None));
        let missing = asked
            .flat_map(|index| &registry.services()[index].ports)
            .find(|port| self.traffic.is_on(port.protocol) && service.port_index(port.port.number()).is_none())
            .map(|port| port.port);
        if let Some(port) = missing {
            let message = format!("{} has several ports, and none is {port}: {}", service.key, self.traffic.fate());
            let hint = format!("write `port.number`: {}", ports(service));
            self.warn(Code::AMBIGUOUS_PORT, destination.at, format!("{field}.port"), message, hint);
        }
    }

    fn unknown_host(&mut self, destination: &WeightedDestination, field: &str) {
        let host = &destination.host;
        let field = format!("{field}.host");
        let pattern = HostPattern::Exact(host.clone());
        let registry = self.world.registry();
        if let Some(hidden) = registry.candidates(&pattern).next() {
            let message = format!(
                "{} does not export `{host}` to namespace {}: {}",
                hidden.key,
                self.resource.key.namespace,
                self.traffic.fate()
            );
            let hint = format!("add the namespace to the exportTo of {}", hidden.key);
            return self.warn(Code::NOT_VISIBLE, destination.host_at, field, message, hint);
        }
        let message = format!("no Service or ServiceEntry defines `{host}`: {}", self.traffic.fate());
        let hint = self.similar_host(host);
        self.warn(Code::UNKNOWN_HOST, destination.host_at, field, message, hint);
    }

    /// The host that was probably meant.
    fn similar_host(&self, host: &Hostname) -> String {
        let registry = self.world.registry();
        let own = Some(&self.resource.key.namespace);
        // `reviews.prod` is not expanded, as in Istio; it is a common mistake.
        let full = format!("{host}.svc.{CLUSTER_DOMAIN}");
        if registry.index_of_name(&full, own).is_some() {
            return format!("write the full name `{full}`: names with a dot are not completed");
        }
        let name = host.as_str().split('.').next().unwrap_or_default();
        let elsewhere = registry.services().iter().take(SUGGESTIONS_MAX).find(|service| {
            service.key.kind == Kind::Service
                && service.key.name.as_str() == name
                && service.namespace != *self.namespace()
        });
        if let Some(service) = elsewhere {
            return format!("did you mean `{}`, of namespace {}?", service.host, service.namespace);
        }
        let hosts = registry.services().iter().take(SUGGESTIONS_MAX).filter_map(|service| service.host.exact());
        // Only the first label is compared: the rest is long and always similar.
        let labels: Vec<_> = hosts.map(|host| host.as_str()).collect();
        let first = |host: &&str| host.split('.').next().unwrap_or_default().to_owned();
        let firsts: Vec<String> = labels.iter().map(first).collect();
        let close = closest(name, firsts.iter().map(String::as_str));
        match close.and_then(|close| firsts.iter().position(|first| first == close)) {
            Some(position) => format!("did you mean `{}`?", labels[position]),
            None => "add the Service, or a ServiceEntry for it, to the files".to_owned(),
        }
    }

    fn namespace(&self) -> &Namespace {
        &self.resource.key.namespace
    }

    fn subset(&mut self, destination: &WeightedDestination, service: &MeshService, name: &str, field: &str) {
        let field = format!("{field}.subset");
        let rule = self.world.destination_rules().rule_for(&service.host, &service.namespace, Some(self.namespace()));
        let Some(subset) = rule.and_then(|rule| rule.subset(name)) else {
            let message = format!(
                "no DestinationRule defines the subset `{name}` of `{}`: {}",
                service.host,
                self.traffic.fate()
            );
            let hint = match rule {
                None => "add a DestinationRule with `subsets:` for this host".to_owned(),
                Some(rule) => self.subset_hint(rule, name),
            };
            return self.warn(Code::UNKNOWN_SUBSET, destination.subset_at, field, message, hint);
        };
        let listed = service.resolution != Resolution::None;
        if listed && !service.endpoints.iter().any(|endpoint| selects(subset, &endpoint.labels)) {
            let message = format!(
                "the subset `{name}` ({}) selects no endpoint of {}, which has {}: {}",
                subset.labels,
                service.key,
                service.endpoints.len(),
                self.traffic.fate()
            );
            let hint = match service.key.kind {
                Kind::Service => "give its EndpointSlice or its Pods these labels",
                _ => "give its endpoints or WorkloadEntries these labels",
            };
            self.warn(Code::EMPTY_SUBSET, destination.subset_at, field, message, hint.to_owned());
        }
    }

    fn subset_hint(&self, rule: &MergedRule, name: &str) -> String {
        let origin = &self.world.resources()[rule.resources[0]];
        let known: Vec<&str> = rule.subset_names().collect();
        match closest(name, known.iter().copied()) {
            Some(close) => format!("did you mean `{close}`?"),
            None if known.is_empty() => format!("add it to {} ({})", origin.key, origin.place),
            None => format!("{} ({}) has {}", origin.key, origin.place, known.join(", ")),
        }
    }
}

fn ports(service: &MeshService) -> String {
    let ports: Vec<_> = service.ports.iter().map(|port| port.port.to_string()).collect();
    format!("its ports are {}", ports.join(", "))
}

/// Two VirtualServices for the same host, where some client sees both: one of them does nothing for that client.
fn conflicting_virtual_services(
    world: &World,
    services: &VirtualServices,
    what: &str,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let list = services.list();
    for (index, loser) in list.iter().enumerate() {
        for (position, host) in loser.body.hosts.iter().enumerate() {
            let winner = services.covering(&host.host).find(|(other, service)| {
                *other < index
                    && service.body.hosts.iter().any(|theirs| theirs.host == host.host)
                    && meet(&service.body.export_to, &loser.body.export_to)
            });
            let Some((_, winner)) = winner else { continue };
            let (resource, winner) = (&world.resources()[loser.resource], &world.resources()[winner.resource]);
            let why =
                if precedence(winner).0 == precedence(resource).0 { "its name sorts first" } else { "it is older" };
            let message = format!(
                "{} at {} has {what} for `{}` too and wins, since {why}: these rules have no effect where both are visible",
                winner.key, winner.place, host.host
            );
            let place = Place::new(Arc::clone(&resource.place.file), host.at);
            diagnostics.push(
                Diagnostic::warning(Code::CONFLICTING_VIRTUAL_SERVICES, place, message)
                    .of(&resource.key)
                    .at_field(format!("spec.hosts[{position}]"))
                    .hint("put all rules for a host into one VirtualService"),
            );
        }
    }
}

/// Whether both reach some namespace by the same kind of export: a private one is meant to win over a public one.
fn meet(a: &ExportTo, b: &ExportTo) -> bool {
    match (a, b) {
        (ExportTo::All, ExportTo::All) => true,
        (ExportTo::Namespaces(a), ExportTo::Namespaces(b)) => a.iter().any(|namespace| b.contains(namespace)),
        _ => false,
    }
}

fn destination_rules(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let registry = world.registry();
    for rule in world.destination_rules().list() {
        // A wildcard is for what may come; only a name can dangle.
        if rule.host.exact().is_some() && registry.candidates(&rule.host).next().is_none() {
            let resource = &world.resources()[rule.resources[0]];
            let message = format!("no Service or ServiceEntry defines `{}`: the rule has no effect", rule.host);
            diagnostics.push(
                Diagnostic::warning(Code::UNKNOWN_HOST, resource.place.clone(), message)
                    .of(&resource.key)
                    .at_field("spec.host")
                    .hint("add the Service, or a ServiceEntry for it, to the files"),
            );
        }
    }
}

/// EndpointSlices whose Service is not there.
fn orphan_slices(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let services: FastSet<(&str, &str)> = world
        .of_kind(Kind::Service)
        .iter()
        .map(|resource| (resource.key.namespace.as_str(), resource.key.name.as_str()))
        .collect();
    for resource in world.of_kind(Kind::EndpointSlice) {
        let Body::EndpointSlice(slice) = &resource.body else { continue };
        if !services.contains(&(resource.key.namespace.as_str(), slice.service.as_str())) {
            let message =
                format!("there is no Service {}/{}: its endpoints are not used", resource.key.namespace, slice.service);
            diagnostics.push(
                Diagnostic::warning(Code::ORPHAN_ENDPOINTS, resource.place.clone(), message)
                    .of(&resource.key)
                    .at_field("metadata.labels[\"kubernetes.io/service-name\"]")
                    .hint("add the Service to the files"),
            );
        }
    }
}

/// WorkloadEntries that give a name where their ServiceEntry takes addresses only. Its own `endpoints` are errors then.
fn unresolved_workloads(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let named: Vec<_> = world
        .of_kind(Kind::WorkloadEntry)
        .iter()
        .filter_map(|resource| {
            let Body::WorkloadEntry(workload) = &resource.body else { return None };
            let Address::Name(name) = &workload.address else { return None };
            Some((resource, workload, name))
        })
        .collect();
    if named.is_empty() {
        return;
    }
    for resource in world.of_kind(Kind::ServiceEntry) {
        let Body::ServiceEntry(entry) = &resource.body else { continue };
        let Some(selector) = &entry.workload_selector else { continue };
        if matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
            continue;
        }
        for (chosen, workload, name) in &named {
            if chosen.key.namespace != resource.key.namespace || !selector.select(&workload.labels) {
                continue;
            }
            let message = format!(
                "{} selects it, and its resolution asks nobody for the addresses of names: `{name}` gets no traffic",
                resource.key
            );
            diagnostics.push(
                Diagnostic::warning(Code::NO_EFFECT, chosen.place.clone(), message)
                    .of(&chosen.key)
                    .at_field("spec.address")
                    .hint("write `resolution: DNS` there, or an IP address here"),
            );
        }
    }
}
