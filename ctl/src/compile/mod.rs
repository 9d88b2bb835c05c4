//! From the [`World`] to the data plane's [`Table`]: all that Istio resolves by namespace, host, port and subset is
//! resolved here, so that a proxy only looks things up.
//!
//! Nearly everything looks the same from every namespace. Each host is compiled as a namespace sees it of which no
//! resource says anything; a namespace to which some resource is exported, or that has rules of its own, gets a virtual
//! host of its own only where the two views differ.
//!
//! The output is a function of the world and the addresses alone: the same input gives the same bytes.

mod access;
mod application;
mod cluster;
mod dns;
mod jwt;
mod route;
mod security;
pub(crate) mod stream;
mod upstream_tls;
mod view;

use meshring_core::{
    id::{NamespaceId, OriginId},
    table::{
        build::{BuildError, TableBuilder, VirtualHostInput},
        model::{PORT_ANY, Route, Table},
    },
};

use self::{
    access::AccessPolicies,
    application::Applications,
    cluster::Clusters,
    security::{Providers, Security},
    view::{View, Views},
};
pub use self::{
    dns::{DnsTable, NoDns, Resolve},
    jwt::{JwksSource, JwksTable, NoJwks},
};
use crate::spec::{
    HostPattern, Key, Namespace, World,
    registry::{MeshService, workload_labels},
    rules::MeshVirtualService,
    value::CLUSTER_DOMAIN,
};

/// Compiles a world. `dns` gives the addresses of [`Registry::dns_names`](crate::spec::Registry::dns_names).
///
/// # Errors
/// Only where the table's own bounds are exceeded, such as 2^31 endpoints.
pub fn compile(world: &World, dns: &dyn Resolve) -> Result<Table, BuildError> {
    compile_with(world, dns, &NoJwks)
}

/// As [`compile`], with the key sets of
/// [`key_sources`](crate::spec::request_authentication::key_sources) from `jwks`.
///
/// # Errors
/// As [`compile`].
pub fn compile_with(world: &World, dns: &dyn Resolve, jwks: &dyn JwksSource) -> Result<Table, BuildError> {
    let mut compiler = Compiler {
        world,
        builder: TableBuilder::new(CLUSTER_DOMAIN),
        clusters: Clusters::new(world, dns),
        origins: vec![None; world.resources().len()],
    };
    compiler.builder.settings(world.settings());
    compiler.security(jwks);
    let views = Views::new(world);
    for host in views.hosts() {
        compiler.host(&views, host)?;
    }
    compiler.builder.finish()
}

struct Compiler<'w> {
    world: &'w World,
    builder: TableBuilder,
    clusters: Clusters<'w>,
    /// By the resource's position.
    origins: Vec<Option<OriginId>>,
}

impl<'w> Compiler<'w> {
    /// Who everybody is, and what is demanded of those who come to whom.
    fn security(&mut self, jwks: &dyn JwksSource) {
        let world = self.world;
        self.builder.trust_domains(world.trust_domains().into_iter().map(str::to_owned).collect());
        let providers = Providers::new(world, &mut self.builder, &mut self.clusters);
        let (builder, origins) = (&mut self.builder, &mut self.origins);
        let mut origin = |builder: &mut TableBuilder, position| origin(world, builder, origins, position);
        let access = AccessPolicies::new(world, builder, &providers, &mut origin);
        let mut security = Security::new(world, access, jwks);
        let applications = Applications::new(world);
        for resource in world.resources() {
            let Some(labels) = workload_labels(resource) else { continue };
            let Key { namespace, name, .. } = &resource.key;
            let policy = security.of_workload(builder, &mut origin, namespace, labels);
            let protocols = applications.of_workload(builder, resource);
            let namespace = builder.namespace(namespace.as_str());
            let labels = labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            builder.guarded_workload(namespace, name.as_str(), labels, policy, protocols);
        }
        security.wider(builder, &mut origin);
    }

    /// One host, as every namespace sees it.
    fn host(&mut self, views: &Views<'w>, host: &HostPattern) -> Result<(), BuildError> {
        let common = views.view(host, None);
        self.virtual_hosts(host, &common, None)?;
        self.stream_services(host, &common, None)?;
        for namespace in views.special(host) {
            let own = views.view(host, Some(&namespace));
            if own != common {
                self.virtual_hosts(host, &own, Some(&namespace))?;
                self.stream_services(host, &own, Some(&namespace))?;
            }
        }
        Ok(())
    }

    /// The virtual hosts of one view of a host: one for each HTTP port of its service, or one for any port where only a
    /// VirtualService names it.
    fn virtual_hosts(&mut self, host: &HostPattern, view: &View, client: Option<&Namespace>) -> Result<(), BuildError> {
        let service = view.service.map(|index| &self.world.registry().services()[index]);
        let rules = view.virtual_service.map(|index| &self.world.virtual_services().list()[index]);
        match (service, rules) {
            (None, None) => Ok(()),
            (None, Some(rules)) => self.virtual_host(host, PORT_ANY, None, Some(rules), client),
            (Some(service), rules) => {
                for port in service.ports.iter().filter(|port| port.protocol.is_http()) {
                    self.virtual_host(host, port.port.number(), Some(service), rules, client)?;
                }
                Ok(())
            }
        }
    }

    fn virtual_host(
        &mut self,
        host: &HostPattern,
        port: u16,
        service: Option<&MeshService>,
        rules: Option<&MeshVirtualService>,
        client: Option<&Namespace>,
    ) -> Result<(), BuildError> {
        let scope = client.map(|namespace| self.namespace(namespace));
        let (origin, routes) = match (rules, service) {
            (Some(rules), _) => self.rules(rules, port, client)?,
            (None, Some(service)) => self.default_route(service, port, client)?,
            (None, None) => return Ok(()),
        };
        let domain = host.to_string();
        self.builder.virtual_host(VirtualHostInput { domain, scope, port, origin, routes });
        Ok(())
    }

    /// Without a VirtualService all requests go to the service itself.
    fn default_route(
        &mut self,
        service: &MeshService,
        port: u16,
        client: Option<&Namespace>,
    ) -> Result<(OriginId, Vec<Route>), BuildError> {
        let position = self.position(&service.key);
        let origin = self.origin(position);
        let cluster = self.clusters.of_host(&mut self.builder, &service.host, None, Some(port), port, client);
        let action = self.builder.forward([(cluster, 1, None)])?;
        let route = Route {
            name: String::new(),
            origin,
            rule: 0,
            line: 0,
            matches: Vec::new(),
            action,
            timeout_ms: 0,
            options: None,
        };
        Ok((origin, vec![route]))
    }

    fn rules(
        &mut self,
        rules: &MeshVirtualService,
        port: u16,
        client: Option<&Namespace>,
    ) -> Result<(OriginId, Vec<Route>), BuildError> {
        let origin = self.origin(rules.resource);
        let mut routes = Vec::with_capacity(rules.body.http.len());
        for rule in &rules.body.http {
            let action = route::action(&mut self.builder, &mut self.clusters, rule, port, client)?;
            routes.push(route::route(&mut self.builder, rule, origin, action));
        }
        Ok((origin, routes))
    }

    fn namespace(&mut self, namespace: &Namespace) -> NamespaceId {
        self.builder.namespace(namespace.as_str())
    }

    fn position(&self, key: &Key) -> usize {
        self.world.resources().partition_point(|resource| resource.key < *key)
    }

    fn origin(&mut self, position: usize) -> OriginId {
        origin(self.world, &mut self.builder, &mut self.origins, position)
    }
}

/// The origin of the resource at a position; `origins` has those that were asked for before.
fn origin(world: &World, builder: &mut TableBuilder, origins: &mut [Option<OriginId>], position: usize) -> OriginId {
    if let Some(origin) = origins[position] {
        return origin;
    }
    let resource = &world.resources()[position];
    let place = &resource.place;
    let origin = builder.origin_in(&resource.key.to_string(), &place.file, place.at.line);
    origins[position] = Some(origin);
    origin
}

#[cfg(test)]
mod tests;
