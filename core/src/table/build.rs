//! How a compiler fills a [`Table`]: interning, index building, deterministic layout. The same calls in the same order
//! give a byte-identical archive, so that control can tell an unchanged configuration by its checksum.

mod tcp;

use std::{collections::HashMap, net::SocketAddr};

pub use self::tcp::TcpServiceInput;

use super::{
    access::{AccessIndex, AuthorizationPolicy, ExtAuthz, index::INDEX_NONE},
    model::{
        Action, BalancePolicy, Cluster, ClusterKind, Destination, DestinationHeaders, Domain, ENDPOINT_V6, Endpoint,
        FILE_NONE, HeavyWeight, Origin, Reach, Route, SCOPE_ALL, Settings, Table, UpstreamProtocol, VirtualHost,
        WEIGHT_INLINE_MAX, Workload, precedence,
    },
    protocol::{ApplicationPorts, PROTOCOLS_NONE},
    security::{ClusterTls, InboundPolicy, JwtRule, POLICY_NONE, TLS_NONE},
};
use crate::{
    id::{ClusterId, EndpointId, NamespaceId, OriginId, RegexId},
    limits::WEIGHT_SUM_MAX,
};

/// Why a table cannot be built. A compiler that validates its input never meets these.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// More than `u32::MAX` entries of one kind.
    #[error("more than 4,294,967,295 {0}")]
    TooMany(&'static str),
    /// A route without destination, or with weights that sum to 0 or beyond 32 bits.
    #[error("the weights of a route sum to {0}: the sum must be between 1 and {WEIGHT_SUM_MAX}")]
    WeightSum(u64),
    /// A cluster whose endpoints' weights sum beyond 32 bits.
    #[error("the weights of the endpoints of a cluster sum to {0}: the sum must be at most {WEIGHT_SUM_MAX}")]
    EndpointWeightSum(u64),
    /// Two virtual hosts for the same domain, scope and port.
    #[error("two virtual hosts for domain {domain:?}, port {port}, in the same scope")]
    DuplicateVirtualHost {
        /// The domain.
        domain: String,
        /// The port.
        port: u16,
    },
    /// A host name that no request can carry.
    #[error("domain {0:?} is empty or longer than 253 bytes")]
    BadDomain(String),
}

/// A virtual host to be added; its routes are in order of evaluation.
#[derive(Debug, Clone)]
pub struct VirtualHostInput {
    /// As configured: `reviews.default.svc.cluster.local`, `*.example.com`, `*`. Upper case is folded.
    pub domain: String,
    /// The namespace that sees it; `None` for all.
    pub scope: Option<NamespaceId>,
    /// The service port, or [`PORT_ANY`](super::model::PORT_ANY).
    pub port: u16,
    /// The resource that defines it.
    pub origin: OriginId,
    /// Rules. Build `action` with [`TableBuilder::forward`].
    pub routes: Vec<Route>,
}

/// Endpoints of a cluster to be added.
#[derive(Debug, Clone, Copy)]
pub enum ClusterEndpoints<'a> {
    /// A run of endpoints as [`TableBuilder::endpoints`] returned it.
    Range {
        /// First endpoint.
        first: EndpointId,
        /// Number of endpoints.
        count: u32,
    },
    /// A selection from such runs (a subset).
    Selection(&'a [EndpointId]),
    /// None, for the reason that the kind gives.
    None,
}

/// Builds one table.
#[derive(Debug, Default)]
pub struct TableBuilder {
    table: Table,
    namespaces: HashMap<String, u32>,
    origins: HashMap<Origin, u32>,
    files: HashMap<String, u32>,
    regexes: HashMap<String, u32>,
    addresses_v6: HashMap<[u8; 16], u32>,
    cluster_tls: HashMap<ClusterTls, u32>,
    application_ports: HashMap<ApplicationPorts, u32>,
    virtual_hosts: Vec<VirtualHostInput>,
    tcp_services: Vec<TcpServiceInput>,
    /// Largest sum of the endpoints' weights of a cluster.
    weight_sum_max: u64,
}

fn intern(map: &mut HashMap<String, u32>, list: &mut Vec<String>, value: &str) -> u32 {
    if let Some(&id) = map.get(value) {
        return id;
    }
    let id = list.len() as u32;
    list.push(value.to_owned());
    map.insert(value.to_owned(), id);
    id
}

impl TableBuilder {
    /// An empty table for a cluster domain, usually `cluster.local`.
    #[must_use]
    pub fn new(domain_suffix: &str) -> Self {
        let table = Table { domain_suffix: domain_suffix.to_ascii_lowercase(), ..Table::default() };
        Self { table, ..Self::default() }
    }

    /// Sets what holds for the whole mesh; without it the [default](Settings::default) holds.
    pub fn settings(&mut self, settings: Settings) {
        self.table.settings = settings;
    }

    /// The id of a namespace.
    pub fn namespace(&mut self, name: &str) -> NamespaceId {
        NamespaceId(intern(&mut self.namespaces, &mut self.table.namespaces, name))
    }

    /// The id of a resource without a file, such as `Service default/reviews`.
    pub fn origin(&mut self, resource: &str) -> OriginId {
        self.intern_origin(Origin { resource: resource.to_owned(), file: FILE_NONE, line: 0 })
    }

    /// The id of a resource in a file; `line` counts from 1.
    pub fn origin_in(&mut self, resource: &str, file: &str, line: u32) -> OriginId {
        let file = intern(&mut self.files, &mut self.table.files, file);
        self.intern_origin(Origin { resource: resource.to_owned(), file, line })
    }

    fn intern_origin(&mut self, origin: Origin) -> OriginId {
        if let Some(&id) = self.origins.get(&origin) {
            return OriginId(id);
        }
        let id = self.table.origins.len() as u32;
        self.table.origins.push(origin.clone());
        self.origins.insert(origin, id);
        OriginId(id)
    }

    /// The id of a pattern; anchor it first ([`anchored`](super::regexes::anchored)) where a full match is meant.
    pub fn regex(&mut self, pattern: &str) -> RegexId {
        RegexId(intern(&mut self.regexes, &mut self.table.regexes, pattern))
    }

    /// Adds a run of endpoints without sidecars; `weight` 0 is taken as 1. Returns its first id.
    pub fn endpoints(&mut self, endpoints: impl IntoIterator<Item = (SocketAddr, u32)>) -> (EndpointId, u32) {
        self.mesh_endpoints(endpoints.into_iter().map(|(address, weight)| (address, weight, Reach::Plain)))
    }

    /// Adds a run of endpoints, each with its weight (0 is taken as 1) and how the mesh reaches it. Returns its first id.
    pub fn mesh_endpoints(
        &mut self,
        endpoints: impl IntoIterator<Item = (SocketAddr, u32, Reach)>,
    ) -> (EndpointId, u32) {
        let first = self.table.endpoints.len() as u32;
        for (address, weight, reach) in endpoints {
            let (value, family) = match address {
                SocketAddr::V4(v4) => (u32::from(*v4.ip()), 0),
                SocketAddr::V6(v6) => {
                    let octets = v6.ip().octets();
                    let next = self.table.addresses_v6.len() as u32;
                    let index = *self.addresses_v6.entry(octets).or_insert(next);
                    if index == next {
                        self.table.addresses_v6.push(octets);
                    }
                    (index, ENDPOINT_V6)
                }
            };
            let inline = u16::try_from(weight.max(1)).ok().filter(|&weight| weight <= WEIGHT_INLINE_MAX);
            if inline.is_none() {
                let endpoint = EndpointId(self.table.endpoints.len() as u32);
                self.table.heavy_weights.push(HeavyWeight { endpoint, weight });
            }
            let family_and_weight = family | reach.bits() | inline.unwrap_or(0);
            self.table.endpoints.push(Endpoint { address: value, port: address.port(), family_and_weight });
        }
        (EndpointId(first), self.table.endpoints.len() as u32 - first)
    }

    fn weight(&self, id: EndpointId) -> u32 {
        match self.table.endpoints[id.index()].family_and_weight & WEIGHT_INLINE_MAX {
            0 => {
                let heavy = &self.table.heavy_weights;
                let at = heavy.partition_point(|heavy| heavy.endpoint < id);
                heavy[at].weight
            }
            inline => inline.into(),
        }
    }

    /// Adds a cluster. Its endpoints' weights must not sum to more than [`WEIGHT_SUM_MAX`].
    pub fn cluster(
        &mut self,
        name: &str,
        policy: BalancePolicy,
        kind: ClusterKind,
        endpoints: ClusterEndpoints<'_>,
    ) -> ClusterId {
        let (first, count, selected) = match endpoints {
            ClusterEndpoints::Range { first, count } => (first.0, count, false),
            ClusterEndpoints::Selection(ids) => {
                let first = self.table.members.len() as u32;
                self.table.members.extend(ids.iter().map(|id| id.0));
                (first, ids.len() as u32, true)
            }
            ClusterEndpoints::None => (0, 0, false),
        };
        let weight = |position: u32| {
            let index = if selected { self.table.members[position as usize] } else { position };
            self.weight(EndpointId(index))
        };
        let weighted = count > 1 && (first + 1..first + count).any(|position| weight(position) != weight(first));
        if weighted {
            let sum: u64 = (first..first + count).map(|position| u64::from(weight(position))).sum();
            self.weight_sum_max = self.weight_sum_max.max(sum);
        }
        let id = ClusterId(self.table.clusters.len() as u32);
        self.table.clusters.push(Cluster {
            name: name.to_owned(),
            policy,
            kind,
            protocol: UpstreamProtocol::default(),
            first,
            count,
            selected,
            weighted,
            tls: TLS_NONE,
            max_streams: 0,
        });
        id
    }

    /// Sets what is spoken with a cluster's endpoints; without it [`UpstreamProtocol::Downstream`]. `max_streams`: most
    /// streams on one HTTP/2 connection at a time, 0 for as many as the server allows.
    pub fn cluster_protocol(&mut self, cluster: ClusterId, protocol: UpstreamProtocol, max_streams: u32) {
        let cluster = &mut self.table.clusters[cluster.index()];
        (cluster.protocol, cluster.max_streams) = (protocol, max_streams);
    }

    /// Secures the connections to a cluster's endpoints. Equal settings are stored once.
    pub fn cluster_tls(&mut self, cluster: ClusterId, tls: ClusterTls) {
        let next = self.table.cluster_tls.len() as u32;
        let index = *self.cluster_tls.entry(tls.clone()).or_insert(next);
        if index == next {
            self.table.cluster_tls.push(tls);
        }
        self.table.clusters[cluster.index()].tls = index;
    }

    /// Sets the trust domain and its aliases; without it [`DEFAULT_TRUST_DOMAIN`](super::model::DEFAULT_TRUST_DOMAIN).
    pub fn trust_domains(&mut self, domains: Vec<String>) {
        self.table.trust_domains = domains;
    }

    /// Adds an AuthorizationPolicy: its position, for [`InboundPolicy::authorization`].
    pub fn authorization(&mut self, policy: AuthorizationPolicy) -> u32 {
        self.table.authorization.push(policy);
        self.table.authorization.len() as u32 - 1
    }

    /// Adds an external authorizer: its position, for [`PolicyAction::Custom`](super::access::PolicyAction::Custom).
    pub fn ext_authz(&mut self, authorizer: ExtAuthz) -> u32 {
        self.table.ext_authz.push(authorizer);
        self.table.ext_authz.len() as u32 - 1
    }

    /// Adds an issuer: its position, for [`InboundPolicy::jwt_rules`].
    pub fn jwt_rule(&mut self, rule: JwtRule) -> u32 {
        self.table.jwt_rules.push(rule);
        self.table.jwt_rules.len() as u32 - 1
    }

    /// Adds what workloads demand: its position, for the three methods below. The same policy again gets the same one.
    pub fn inbound_policy(&mut self, policy: InboundPolicy) -> u32 {
        let known = &mut self.table.inbound_policies;
        if let Some(position) = known.iter().position(|other| *other == policy) {
            return position as u32;
        }
        known.push(policy);
        known.len() as u32 - 1
    }

    /// What the workloads of a namespace demand that are not listed.
    pub fn namespace_policy(&mut self, namespace: NamespaceId, policy: u32) {
        let policies = &mut self.table.namespace_policies;
        if policies.len() <= namespace.index() {
            policies.resize(namespace.index() + 1, POLICY_NONE);
        }
        policies[namespace.index()] = policy;
    }

    /// What workloads of namespaces demand that have no policy.
    pub fn mesh_policy(&mut self, policy: u32) {
        self.table.mesh_policy = policy;
    }

    /// Adds the destinations of a route and returns the action that forwards to them. Weight 0 is a destination that
    /// gets no traffic.
    pub fn forward(
        &mut self,
        destinations: impl IntoIterator<Item = (ClusterId, u32, Option<DestinationHeaders>)>,
    ) -> Result<Action, BuildError> {
        let first = self.table.destinations.len() as u32;
        let mut sum = 0_u64;
        for (cluster, weight, headers) in destinations {
            sum += u64::from(weight);
            self.table.destinations.push(Destination { cluster, weight, headers: headers.map(Box::new) });
        }
        if sum == 0 || sum > WEIGHT_SUM_MAX {
            return Err(BuildError::WeightSum(sum));
        }
        let count = self.table.destinations.len() as u32 - first;
        Ok(Action::Forward { first, count, weight_sum: sum as u32 })
    }

    /// Adds a virtual host.
    pub fn virtual_host(&mut self, input: VirtualHostInput) {
        self.virtual_hosts.push(input);
    }

    /// Adds what an application speaks on its ports, in any order: its position, for
    /// [`guarded_workload`](Self::guarded_workload). Of a port that is there twice the first entry counts.
    pub fn application_ports(&mut self, mut ports: ApplicationPorts) -> u32 {
        ports.sort_by_key(|(port, _)| *port);
        ports.dedup_by_key(|(port, _)| *port);
        if ports.is_empty() {
            return PROTOCOLS_NONE;
        }
        let next = self.table.application_ports.len() as u32;
        let index = *self.application_ports.entry(ports.clone()).or_insert(next);
        if index == next {
            self.table.application_ports.push(ports);
        }
        index
    }

    /// Adds a workload whose labels are known, and about which no security resource says anything.
    pub fn workload(&mut self, namespace: NamespaceId, name: &str, labels: Vec<(String, String)>) {
        self.guarded_workload(namespace, name, labels, POLICY_NONE, PROTOCOLS_NONE);
    }

    /// Adds a workload whose labels are known. `policy`: what [`inbound_policy`](Self::inbound_policy) has returned, or
    /// [`POLICY_NONE`]. `protocols`: what [`application_ports`](Self::application_ports) has returned, or
    /// [`PROTOCOLS_NONE`].
    pub fn guarded_workload(
        &mut self,
        namespace: NamespaceId,
        name: &str,
        mut labels: Vec<(String, String)>,
        policy: u32,
        protocols: u32,
    ) {
        labels.sort();
        self.table.workloads.push(Workload { namespace, name: name.to_owned(), labels, policy, protocols });
    }

    /// Inbound policies with the same AuthorizationPolicies share an index.
    fn index_access(&mut self) {
        let mut known: HashMap<&[u32], u32> = HashMap::new();
        let mut indexes = Vec::new();
        let mut of = Vec::with_capacity(self.table.inbound_policies.len());
        for policy in &self.table.inbound_policies {
            let list = policy.authorization.as_slice();
            of.push(match known.get(list) {
                _ if list.is_empty() => INDEX_NONE,
                Some(index) => *index,
                None => {
                    indexes.push(AccessIndex::new(list, &self.table.authorization));
                    known.insert(list, indexes.len() as u32 - 1);
                    indexes.len() as u32 - 1
                }
            });
        }
        self.table.access_indexes = indexes;
        self.table.access_index_of = of;
    }

    /// Lays out virtual hosts and index.
    pub fn finish(mut self) -> Result<Table, BuildError> {
        for host in &mut self.virtual_hosts {
            host.domain = stored_domain(&host.domain)?;
        }
        if self.weight_sum_max > WEIGHT_SUM_MAX {
            return Err(BuildError::EndpointWeightSum(self.weight_sum_max));
        }
        self.index_access();
        // The layout is independent of the order of calls.
        self.virtual_hosts.sort_by(|a, b| {
            let key = |h: &VirtualHostInput| precedence(h.scope.map_or(SCOPE_ALL, |n| n.0), h.port);
            a.domain.cmp(&b.domain).then_with(|| key(a).cmp(&key(b)))
        });
        for host in std::mem::take(&mut self.virtual_hosts) {
            self.lay_out(host)?;
        }
        self.lay_out_tcp()?;
        self.table.workloads.sort_by(|a, b| (a.namespace, &a.name).cmp(&(b.namespace, &b.name)));
        self.check_sizes()?;
        self.table.buckets = index(&self.table.domains);
        self.table.has_wildcards = self.table.domains.iter().any(|d| d.name.starts_with('.') || d.name == "*");
        Ok(self.table)
    }

    fn lay_out(&mut self, host: VirtualHostInput) -> Result<(), BuildError> {
        let scope = host.scope.map_or(SCOPE_ALL, |n| n.0);
        let position = self.table.virtual_hosts.len() as u32;
        match self.table.domains.last_mut() {
            Some(domain) if domain.name == host.domain => {
                let last = &self.table.virtual_hosts[position as usize - 1];
                if last.scope == scope && last.port == host.port {
                    return Err(BuildError::DuplicateVirtualHost { domain: host.domain, port: host.port });
                }
                domain.count += 1;
            }
            _ => self.table.domains.push(Domain { name: host.domain, first: position, count: 1 }),
        }
        let first = self.table.routes.len() as u32;
        let count = host.routes.len() as u32;
        self.table.routes.extend(host.routes);
        self.table.virtual_hosts.push(VirtualHost { scope, port: host.port, origin: host.origin, first, count });
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), BuildError> {
        let table = &self.table;
        let sizes = [
            ("domains", table.domains.len() * 2),
            ("virtual hosts", table.virtual_hosts.len()),
            ("routes", table.routes.len()),
            ("destinations", table.destinations.len()),
            ("TCP services", table.tcp_services.len()),
            ("TCP routes", table.tcp_routes.len()),
            ("addresses of TCP services", table.tcp_addresses.len()),
            ("clusters", table.clusters.len()),
            ("subset members", table.members.len()),
            ("endpoints", table.endpoints.len()),
        ];
        match sizes.into_iter().find(|&(_, len)| len >= u32::MAX as usize / 2) {
            Some((what, _)) => Err(BuildError::TooMany(what)),
            None => Ok(()),
        }
    }
}

fn stored_domain(domain: &str) -> Result<String, BuildError> {
    let folded = domain.trim_end_matches('.').to_ascii_lowercase();
    let stored = match folded.strip_prefix('*') {
        Some(rest) if rest.starts_with('.') => rest.to_owned(),
        _ => folded,
    };
    if stored.is_empty() || stored.len() > crate::limits::HOST_BYTES_MAX {
        return Err(BuildError::BadDomain(domain.to_owned()));
    }
    Ok(stored)
}

/// Buckets at a load of at most a half: the expected probe length stays below 1.5.
fn index(domains: &[Domain]) -> Vec<u32> {
    let size = (domains.len() * 2).next_power_of_two().max(2);
    let mut buckets = vec![0_u32; size];
    for (position, domain) in domains.iter().enumerate() {
        let mut at = super::lookup::hash(domain.name.as_bytes()) as usize & (size - 1);
        while buckets[at] != 0 {
            at = (at + 1) & (size - 1);
        }
        buckets[at] = position as u32 + 1;
    }
    buckets
}
