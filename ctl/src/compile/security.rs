//! Who may come to a workload, and how: everything that selects a workload, put together to one inbound policy.
//!
//! For whoever compiles AuthorizationPolicies: [`Providers`] are the external authorizers of the MeshConfig in the table.
//! [`Providers::position`] gives the position in `Table::ext_authz` for `provider.name` of a policy with action CUSTOM:
//! `PolicyAction::Custom(position)`. `None` means that no provider of that name is there, or that it is of a kind that is
//! not honoured: such a policy must deny, as Istio's does. [`Providers::new`] is called before AuthorizationPolicies are
//! compiled.

use meshring_core::{
    id::OriginId,
    table::{
        access::ExtAuthz,
        build::TableBuilder,
        security::{InboundPolicy, POLICY_NONE, ServerTls, ServerTlsMode},
    },
};

use super::{
    access::AccessPolicies,
    cluster::Clusters,
    jwt::{JwksSource, JwtRules},
};
use crate::spec::{
    FastMap, FastSet, HostPattern, Kind, Labels, Namespace, World, gateway::ServerMode, mesh_config::ExtAuthzHttp,
};

/// External authorizers of the MeshConfig, by name.
#[derive(Debug)]
pub(super) struct Providers<'w>(FastMap<&'w str, u32>);

impl<'w> Providers<'w> {
    /// Adds them to the table. A service that does not exist has a cluster that says so, as for a route.
    pub(super) fn new(world: &'w World, builder: &mut TableBuilder, clusters: &mut Clusters<'_>) -> Self {
        let providers = world.mesh_config().map_or(&[][..], |config| &config.ext_authz);
        let add = |provider: &'w ExtAuthzHttp| {
            let authorizer = ext_authz(world, builder, clusters, provider);
            (&*provider.name, builder.ext_authz(authorizer))
        };
        Self(providers.iter().map(add).collect())
    }

    /// The position in `Table::ext_authz` of a provider that is honoured.
    pub(super) fn position(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

fn ext_authz(
    world: &World,
    builder: &mut TableBuilder,
    clusters: &mut Clusters<'_>,
    provider: &ExtAuthzHttp,
) -> ExtAuthz {
    let client = provider.namespace.as_ref().unwrap_or_else(|| world.root_namespace());
    let host = HostPattern::Exact(provider.service.clone());
    let port = provider.port.number();
    let texts = |list: &[std::sync::Arc<str>]| list.iter().map(ToString::to_string).collect();
    ExtAuthz {
        name: provider.name.to_string(),
        cluster: clusters.of_host(builder, &host, None, Some(port), port, Some(client)),
        authority: provider.service.to_string(),
        path_prefix: provider.path_prefix.to_string(),
        timeout_ms: u32::try_from(provider.timeout.as_millis()).unwrap_or(u32::MAX),
        fail_open: provider.fail_open,
        status_on_error: provider.status_on_error,
        request_headers: texts(&provider.request_headers),
        additional_headers: provider
            .additional_headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        headers_to_upstream: texts(&provider.headers_to_upstream),
        headers_to_downstream: texts(&provider.headers_to_downstream),
        headers_on_deny: texts(&provider.headers_on_deny),
    }
}

/// What makes an inbound policy; equal ones are built once.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PolicyKey<'w> {
    mode: &'static str,
    ports: Vec<(u16, &'static str)>,
    origin: Option<usize>,
    authorization: Vec<u32>,
    jwt_rules: Vec<u32>,
    /// Gateways, and the namespace in which their Secrets are.
    gateways: Option<(&'w Namespace, Vec<usize>)>,
}

/// Puts inbound policies together.
pub(super) struct Security<'w> {
    world: &'w World,
    known: FastMap<PolicyKey<'w>, u32>,
    /// Namespaces in which some security resource stands, sorted.
    namespaces: Vec<&'w Namespace>,
    access: AccessPolicies<'w>,
    jwt: JwtRules<'w>,
}

impl<'w> Security<'w> {
    pub(super) fn new(world: &'w World, access: AccessPolicies<'w>, jwks: &'w dyn JwksSource) -> Self {
        let resources = Kind::ALL.into_iter().filter(|kind| kind.is_security()).flat_map(|kind| world.of_kind(kind));
        let mut namespaces: Vec<&Namespace> = resources.map(|resource| &resource.key.namespace).collect();
        namespaces.sort();
        namespaces.dedup();
        Self { world, known: FastMap::default(), namespaces, access, jwt: JwtRules::new(world, jwks) }
    }

    /// Whether nothing is said about any workload.
    fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.world.gateways().is_empty()
    }

    /// The policy of a listed workload.
    pub(super) fn of_workload(
        &mut self,
        builder: &mut TableBuilder,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
        namespace: &'w Namespace,
        labels: &'w Labels,
    ) -> u32 {
        self.policy(builder, origin, Some(namespace), Some(labels))
    }

    /// Policies of the mesh and of namespaces, for workloads that are not listed.
    pub(super) fn wider(
        &mut self,
        builder: &mut TableBuilder,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
    ) {
        let mesh = self.policy(builder, origin, None, None);
        builder.mesh_policy(mesh);
        for namespace in self.namespaces.clone() {
            let policy = self.policy(builder, origin, Some(namespace), None);
            // What says nothing more than the mesh's needs no entry: the lookup falls back on that.
            if policy != mesh {
                let namespace = builder.namespace(namespace.as_str());
                builder.namespace_policy(namespace, policy);
            }
        }
    }

    fn policy(
        &mut self,
        builder: &mut TableBuilder,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
        namespace: Option<&'w Namespace>,
        labels: Option<&'w Labels>,
    ) -> u32 {
        if self.is_empty() {
            return POLICY_NONE;
        }
        let world = self.world;
        let mtls = world.peer_authentications().of(namespace.map(Namespace::as_str), labels);
        let gateways = labels.into_iter().flat_map(|labels| world.gateways().of(labels)).map(|(position, _)| position);
        let gateways: Vec<usize> = gateways.collect();
        let key = PolicyKey {
            mode: mtls.mode.as_str(),
            ports: mtls.ports.iter().map(|(port, mode)| (*port, mode.as_str())).collect(),
            origin: mtls.resource,
            authorization: self.access.of(namespace.map_or("", Namespace::as_str), labels),
            jwt_rules: self.jwt.of(builder, origin, namespace, labels),
            gateways: namespace.filter(|_| !gateways.is_empty()).map(|namespace| (namespace, gateways)),
        };
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let gateways = match (namespace, labels) {
            (Some(namespace), Some(labels)) => servers(world, builder, origin, namespace, labels),
            _ => Vec::new(),
        };
        let policy = InboundPolicy {
            mtls: mtls.mode,
            port_mtls: mtls.ports,
            mtls_origin: mtls.resource.map(|resource| origin(builder, resource)),
            authorization: key.authorization.clone(),
            jwt_rules: key.jwt_rules.clone(),
            gateways,
            plain_gateway_ports: labels.map(|labels| plain_ports(world, labels)).unwrap_or_default(),
        };
        let position = if policy == InboundPolicy::default() { POLICY_NONE } else { builder.inbound_policy(policy) };
        self.known.insert(key, position);
        position
    }
}

/// Ports of a gateway for HTTP without TLS, sorted.
fn plain_ports(world: &World, labels: &Labels) -> Vec<u16> {
    let gateways = world.gateways().of(labels).flat_map(|(_, gateway)| &gateway.plain_ports);
    let mut ports: Vec<u16> = gateways.map(|port| port.number()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// TLS that a workload ends as a gateway. Of several servers for one host on one port the first one is kept: the oldest
/// Gateway's.
fn servers(
    world: &World,
    builder: &mut TableBuilder,
    origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
    namespace: &Namespace,
    labels: &Labels,
) -> Vec<ServerTls> {
    let mut seen: FastSet<(u16, &str)> = FastSet::default();
    let mut servers = Vec::new();
    for (position, gateway) in world.gateways().of(labels) {
        let origin = origin(builder, position);
        for server in &gateway.servers {
            let port = server.port.number();
            let hosts: Vec<String> =
                server.hosts.iter().filter(|host| seen.insert((port, &***host))).map(ToString::to_string).collect();
            if hosts.is_empty() {
                continue;
            }
            servers.push(ServerTls {
                port,
                hosts,
                mode: match server.mode {
                    ServerMode::Simple => ServerTlsMode::Simple,
                    ServerMode::Mutual => ServerTlsMode::Mutual,
                    ServerMode::OptionalMutual => ServerTlsMode::OptionalMutual,
                    ServerMode::IstioMutual => ServerTlsMode::IstioMutual,
                },
                material: server.credential.material(namespace),
                subject_alt_names: server.subject_alt_names.iter().map(ToString::to_string).collect(),
                tls12: server.tls12,
                origin,
            });
        }
    }
    servers
}
