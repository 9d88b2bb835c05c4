//! Clusters: one for each service, port and subset that a route refers to, with its endpoints.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use meshring_core::{
    id::{ClusterId, EndpointId},
    limits::WEIGHT_SUM_MAX,
    table::{
        build::{ClusterEndpoints, TableBuilder},
        model::{BalancePolicy, ClusterKind, Reach},
    },
};

use super::{dns::Resolve, upstream_tls::UpstreamTls};
use crate::spec::{
    FastMap, HostPattern, Namespace, World,
    destination_rule::Subset,
    registry::MeshService,
    rules::selects,
    service_entry::{Address, Resolution},
    upstream_protocol,
    value::LoadBalancer,
};

/// What tells clusters apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ClusterKey {
    /// Service, index of its port, subset, DestinationRule.
    Service { service: usize, port: usize, subset: Option<Arc<str>>, rule: Option<usize> },
    /// The name of a cluster that leads nowhere.
    Nowhere(String),
}

/// The endpoints of a service on one port, and to which of the service's endpoints each belongs (DNS makes several of
/// one).
#[derive(Debug, Clone)]
struct Run {
    first: EndpointId,
    count: u32,
    /// Index into the service's endpoints for each; empty where they are all of them in their order.
    of: Vec<u32>,
    /// Whether any of them speaks mutual TLS.
    speaks_mtls: bool,
}

/// Makes clusters on demand, each once.
pub(super) struct Clusters<'w> {
    world: &'w World,
    dns: &'w dyn Resolve,
    known: FastMap<ClusterKey, ClusterId>,
    runs: FastMap<(usize, usize), Run>,
    security: UpstreamTls<'w>,
}

impl<'w> Clusters<'w> {
    pub(super) fn new(world: &'w World, dns: &'w dyn Resolve) -> Self {
        let services = world.registry().services().len();
        Self {
            world,
            dns,
            known: FastMap::with_capacity_and_hasher(services, Default::default()),
            runs: FastMap::with_capacity_and_hasher(services, Default::default()),
            security: UpstreamTls::new(world),
        }
    }

    /// The cluster of a destination as clients in `client` mean it. Without `port`, it is the port that was asked for
    /// where the service has it, else its only one.
    pub(super) fn of_host(
        &mut self,
        builder: &mut TableBuilder,
        host: &HostPattern,
        subset: Option<&Arc<str>>,
        port: Option<u16>,
        asked: u16,
        client: Option<&Namespace>,
    ) -> ClusterId {
        let number = port.unwrap_or(asked);
        let Some(index) = self.world.registry().index_of(host, client) else {
            return self.nowhere(builder, host, subset, number, ClusterKind::NoSuchService);
        };
        let service = &self.world.registry().services()[index];
        let only = (port.is_none() && service.ports.len() == 1).then_some(0);
        let Some(port) = service.port_index(number).or(only) else {
            return self.nowhere(builder, host, subset, number, ClusterKind::NoSuchPort);
        };
        let rules = self.world.destination_rules();
        let rule = rules.index_for(&service.host, &service.namespace, client);
        let key = ClusterKey::Service { service: index, port, subset: subset.cloned(), rule };
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let merged = rule.map(|rule| &rules.list()[rule]);
        let found = subset.map(|name| merged.and_then(|rule| rule.subset(name)));
        let number = service.ports[port].port.number();
        let id = match found {
            Some(None) => self.nowhere(builder, host, subset, number, ClusterKind::NoSuchSubset),
            None | Some(Some(_)) => {
                let found = found.flatten();
                let balancer = merged.map_or_else(LoadBalancer::default, |rule| rule.load_balancer(number, found));
                let id = self.cluster(builder, index, service, port, found, balancer);
                let speaks = self.runs.get(&(index, port)).is_some_and(|run| run.speaks_mtls);
                let pool = merged.and_then(|rule| rule.connection_pool(number, found));
                let protocol = service.ports[port].protocol;
                let (spoken, _) = upstream_protocol::outbound(protocol, pool, self.world.h2_upgrade());
                builder.cluster_protocol(id, spoken, pool.map_or(0, |pool| pool.max_concurrent_streams));
                if let Some(tls) = self.security.of(index, merged, number, found, speaks) {
                    builder.cluster_tls(id, tls);
                }
                id
            }
        };
        self.known.insert(key, id);
        id
    }

    fn nowhere(
        &mut self,
        builder: &mut TableBuilder,
        host: &HostPattern,
        subset: Option<&Arc<str>>,
        port: u16,
        kind: ClusterKind,
    ) -> ClusterId {
        let name = cluster_name(port, subset.map_or("", |name| name), host);
        // The kind is part of the key: from one namespace the service may be missing, from another its subset.
        let key = ClusterKey::Nowhere(format!("{kind:?} {name}"));
        *self
            .known
            .entry(key)
            .or_insert_with(|| builder.cluster(&name, BalancePolicy::default(), kind, ClusterEndpoints::None))
    }

    fn cluster(
        &mut self,
        builder: &mut TableBuilder,
        index: usize,
        service: &MeshService,
        port: usize,
        subset: Option<&Subset>,
        balancer: LoadBalancer,
    ) -> ClusterId {
        let number = service.ports[port].port.number();
        let name = cluster_name(number, subset.map_or("", |subset| &subset.name), &service.host);
        if balancer == LoadBalancer::Passthrough || service.resolution == Resolution::None {
            let kind = ClusterKind::OriginalDestination;
            return builder.cluster(&name, BalancePolicy::default(), kind, ClusterEndpoints::None);
        }
        let policy = match balancer {
            LoadBalancer::RoundRobin => BalancePolicy::RoundRobin,
            LoadBalancer::Random => BalancePolicy::Random,
            LoadBalancer::LeastRequest | LoadBalancer::Passthrough => BalancePolicy::LeastRequest,
        };
        let (dns, security) = (self.dns, &self.security);
        let run = self.runs.entry((index, port)).or_insert_with(|| run(builder, dns, security, service, port));
        let all = ClusterEndpoints::Range { first: run.first, count: run.count };
        let Some(subset) = subset.filter(|subset| !subset.labels.is_empty()) else {
            return builder.cluster(&name, policy, ClusterKind::Static, all);
        };
        let selected: Vec<EndpointId> = (0..run.count)
            .filter(|position| {
                let of = run.of.get(*position as usize).copied().unwrap_or(*position);
                selects(subset, &service.endpoints[of as usize].labels)
            })
            .map(|position| EndpointId(run.first.0 + position))
            .collect();
        let endpoints = match selected.first() {
            // A run of its own needs no list of members: endpoints of one EndpointSlice lie side by side.
            Some(first) if selected.last().is_some_and(|last| (last.0 - first.0) as usize + 1 == selected.len()) => {
                ClusterEndpoints::Range { first: *first, count: selected.len() as u32 }
            }
            _ => ClusterEndpoints::Selection(&selected),
        };
        builder.cluster(&name, policy, ClusterKind::Static, endpoints)
    }
}

/// Adds the endpoints of a service on one port.
fn run(
    builder: &mut TableBuilder,
    dns: &dyn Resolve,
    security: &UpstreamTls<'_>,
    service: &MeshService,
    port: usize,
) -> Run {
    let mut speaks_mtls = false;
    let target = |position: usize| service.endpoints[position].targets.get(port).copied().unwrap_or(0);
    let plain = service
        .endpoints
        .iter()
        .enumerate()
        .all(|(position, endpoint)| matches!(endpoint.address, Address::Ip(_)) && target(position) != 0);
    if plain {
        let scale = Scale::of(service.endpoints.iter().map(|endpoint| endpoint.weight));
        let (first, count) =
            builder.mesh_endpoints(service.endpoints.iter().enumerate().filter_map(|(position, endpoint)| {
                let Address::Ip(address) = endpoint.address else { return None };
                let reach = security.reach(service, endpoint, target(position));
                speaks_mtls |= reach != Reach::Plain;
                Some((SocketAddr::new(address, target(position)), scale.weight(endpoint.weight), reach))
            }));
        return Run { first, count, of: Vec::new(), speaks_mtls };
    }
    let mut of = Vec::new();
    let mut list: Vec<(SocketAddr, u32, Reach)> = Vec::new();
    for (position, endpoint) in service.endpoints.iter().enumerate() {
        let addresses: Vec<IpAddr> = match &endpoint.address {
            _ if target(position) == 0 => Vec::new(),
            Address::Ip(address) => vec![*address],
            Address::Name(name) if service.resolution == Resolution::DnsRoundRobin => {
                dns.first(name).into_iter().collect()
            }
            Address::Name(name) => dns.addresses(name),
            Address::Unix(_) => Vec::new(),
        };
        let reach = match addresses.is_empty() {
            true => Reach::Plain,
            false => security.reach(service, endpoint, target(position)),
        };
        speaks_mtls |= reach != Reach::Plain;
        for address in addresses {
            of.push(position as u32);
            list.push((SocketAddr::new(address, target(position)), endpoint.weight, reach));
        }
    }
    let scale = Scale::of(list.iter().map(|(_, weight, _)| *weight));
    let list = list.into_iter().map(|(address, weight, reach)| (address, scale.weight(weight), reach));
    let (first, count) = builder.mesh_endpoints(list);
    Run { first, count, of, speaks_mtls }
}

/// Weights are shares of their sum, which must fit 32 bits. Where it does not, because some endpoint has a weight near
/// 2^32, all are halved until it does: that moves no share by more than 2^-30 per endpoint.
#[derive(Debug, Clone, Copy)]
struct Scale {
    halvings: u32,
}

impl Scale {
    fn of(weights: impl ExactSizeIterator<Item = u32>) -> Self {
        // Each weight may be rounded up to 1.
        let spare = weights.len() as u64;
        let sum: u64 = weights.map(u64::from).sum();
        let room = WEIGHT_SUM_MAX.saturating_sub(spare);
        Self { halvings: (0..32).find(|halvings| sum >> halvings <= room).unwrap_or(32) }
    }

    fn weight(self, weight: u32) -> u32 {
        weight.checked_shr(self.halvings).unwrap_or(0).max(1)
    }
}

/// As Istio names it.
fn cluster_name(port: u16, subset: &str, host: &HostPattern) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

#[cfg(test)]
mod tests {
    use super::Scale;

    #[test]
    fn weights_keep_their_shares_and_their_sum_fits_32_bits() {
        for (weights, expected) in [
            (vec![], vec![]),
            (vec![1, 99], vec![1, 99]),
            (vec![u32::MAX], vec![u32::MAX >> 1]),
            (vec![u32::MAX, u32::MAX, 1], vec![u32::MAX >> 2, u32::MAX >> 2, 1]),
            (vec![1 << 31, 1 << 30, 1 << 29], vec![1 << 31, 1 << 30, 1 << 29]),
        ] {
            let scale = Scale::of(weights.iter().copied());
            let scaled: Vec<u32> = weights.iter().map(|weight| scale.weight(*weight)).collect();
            assert_eq!(scaled, expected, "{weights:?}");
            assert!(scaled.iter().map(|weight| u64::from(*weight)).sum::<u64>() <= u64::from(u32::MAX));
        }
    }
}
