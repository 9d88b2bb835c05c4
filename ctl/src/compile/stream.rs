//! Ports that do not speak HTTP, or of which nobody says that they do: where their connections go.

use std::net::SocketAddr;

use meshring_core::{
    id::OriginId,
    table::{
        build::{BuildError, TcpServiceInput},
        tcp::{Subnet, TcpCondition, TcpList, TcpMatch, TcpProtocol, TcpRoute},
    },
};

use super::{Compiler, view::View};
use crate::spec::{
    HostPattern, Kind, MeshService, Namespace,
    service_entry::{Address, Resolution},
    value::Protocol,
    virtual_service::{StreamMatch, StreamRoute},
};

/// What a port is to those who connect to it; `None` where it is HTTP, or UDP.
pub(crate) fn protocol(port: Protocol) -> Option<TcpProtocol> {
    match port {
        Protocol::Tcp => Some(TcpProtocol::Tcp),
        Protocol::Tls => Some(TcpProtocol::Tls),
        Protocol::Unknown => Some(TcpProtocol::Unknown),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Udp => None,
    }
}

/// The rules of which list apply to a port.
pub(crate) fn list(protocol: TcpProtocol) -> TcpList {
    if protocol == TcpProtocol::Tls { TcpList::Tls } else { TcpList::Tcp }
}

impl Compiler<'_> {
    /// The ports of a host that carry bytes, or may, as one view has them.
    pub(super) fn stream_services(
        &mut self,
        host: &HostPattern,
        view: &View,
        client: Option<&Namespace>,
    ) -> Result<(), BuildError> {
        let world = self.world;
        let Some(service) = view.service.map(|index| &world.registry().services()[index]) else { return Ok(()) };
        for (index, port) in service.ports.iter().enumerate() {
            let Some(protocol) = protocol(port.protocol) else { continue };
            let number = port.port.number();
            let routes = self.stream_routes(service, number, protocol, view, client)?;
            let position = self.position(&service.key);
            let is_kubernetes = service.key.kind == Kind::Service && service.resolution == Resolution::Static;
            let endpoints = match is_kubernetes && service.addresses.is_empty() {
                true => endpoints(service, index),
                false => Vec::new(),
            };
            let input = TcpServiceInput {
                domain: host.to_string(),
                scope: client.map(|namespace| self.builder.namespace(namespace.as_str())),
                port: number,
                protocol,
                origin: self.origin(position),
                addresses: service.addresses.clone(),
                endpoints,
                any_address: service.addresses.is_empty() && !is_kubernetes,
                routes,
            };
            self.builder.tcp_service(input);
        }
        Ok(())
    }

    fn stream_routes(
        &mut self,
        service: &MeshService,
        port: u16,
        protocol: TcpProtocol,
        view: &View,
        client: Option<&Namespace>,
    ) -> Result<Vec<TcpRoute>, BuildError> {
        let world = self.world;
        let rules = view.stream_service.map(|index| &world.stream_services().list()[index]);
        let list = list(protocol);
        let mut routes = Vec::new();
        // As in Istio: rules for TLS replace the way to the service where any of them is for this port; other rules only take
        // their share of it.
        let mut is_decided = false;
        if let Some(rules) = rules {
            let origin = self.origin(rules.resource);
            let rules = if list == TcpList::Tls { &rules.body.tls } else { &rules.body.tcp };
            for rule in rules {
                is_decided |= match list {
                    TcpList::Tls => rule.matches.iter().any(|candidate| candidate.is_for(port)),
                    TcpList::Tcp | TcpList::Service => rule.is_match_all(),
                };
                routes.push(self.stream_route(rule, origin, list, port, client)?);
            }
        }
        if !is_decided {
            let position = self.position(&service.key);
            let origin = self.origin(position);
            let cluster = self.clusters.of_host(&mut self.builder, &service.host, None, Some(port), port, client);
            // Where only the server name tells whose connection it is, the service was found by it.
            routes.push(self.builder.tcp_route(origin, (TcpList::Service, 0, 0), Vec::new(), [(cluster, 1)])?);
        }
        Ok(routes)
    }

    fn stream_route(
        &mut self,
        rule: &StreamRoute,
        origin: OriginId,
        list: TcpList,
        port: u16,
        client: Option<&Namespace>,
    ) -> Result<TcpRoute, BuildError> {
        let mut weighted = Vec::with_capacity(rule.route.len());
        for destination in &rule.route {
            let host = HostPattern::Exact(destination.host.clone());
            let (subset, wanted) = (destination.subset.as_ref(), destination.port.map(|port| port.number()));
            let cluster = self.clusters.of_host(&mut self.builder, &host, subset, wanted, port, client);
            weighted.push((cluster, destination.weight));
        }
        let matches = rule.matches.iter().map(|candidate| self.stream_match(candidate)).collect();
        let place = (list, u16::try_from(rule.index).unwrap_or(u16::MAX), rule.at.line);
        self.builder.tcp_route(origin, place, matches, weighted)
    }

    /// In the order in which they are cheapest to refuse.
    fn stream_match(&mut self, rule: &StreamMatch) -> TcpMatch {
        let mut conditions = Vec::new();
        conditions.extend(rule.port.map(|port| TcpCondition::Port(port.number())));
        if let Some(namespace) = &rule.source_namespace {
            conditions.push(TcpCondition::SourceNamespace(self.builder.namespace(namespace.as_str())));
        }
        for (key, value) in rule.source_labels.iter() {
            conditions.push(TcpCondition::SourceLabel { key: key.to_owned(), value: value.to_owned() });
        }
        if !rule.destination_subnets.is_empty() {
            let subnets = rule.destination_subnets.iter().map(|cidr| Subnet::new(cidr.address, cidr.bits)).collect();
            conditions.push(TcpCondition::DestinationSubnets(subnets));
        }
        if !rule.sni_hosts.is_empty() {
            conditions.push(TcpCondition::Sni(rule.sni_hosts.iter().map(stored).collect()));
        }
        TcpMatch { line: rule.at.line, conditions }
    }
}

/// Where clients of a headless service connect to by themselves.
fn endpoints(service: &MeshService, port: usize) -> Vec<SocketAddr> {
    let of = |endpoint: &crate::spec::Endpoint| {
        let target = endpoint.targets.get(port).copied().filter(|target| *target != 0)?;
        let Address::Ip(address) = endpoint.address else { return None };
        Some(SocketAddr::new(address, target))
    };
    service.endpoints.iter().filter_map(of).collect()
}

/// As the table has names.
fn stored(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(host) => host.as_str().to_owned(),
        HostPattern::Suffix(suffix) => format!(".{suffix}"),
        HostPattern::Any => "*".to_owned(),
    }
}
