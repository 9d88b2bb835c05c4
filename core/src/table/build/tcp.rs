//! Services whose connections are bytes, and their rules.

use std::net::{IpAddr, SocketAddr};

use super::{BuildError, TableBuilder, stored_domain};
use crate::{
    id::{ClusterId, NamespaceId, OriginId},
    table::{
        model::{Action, SCOPE_ALL, precedence},
        tcp::{ADDRESS_ANY, TcpAddress, TcpList, TcpMatch, TcpProtocol, TcpRoute, TcpService, mapped},
    },
};

/// A port that does not speak HTTP, or may not, to be added.
#[derive(Debug, Clone)]
pub struct TcpServiceInput {
    /// As configured: `redis.default.svc.cluster.local`, `*.example.com`. Upper case is folded.
    pub domain: String,
    /// The namespace that sees it; `None` for all.
    pub scope: Option<NamespaceId>,
    /// As clients address it.
    pub port: u16,
    /// What it speaks.
    pub protocol: TcpProtocol,
    /// The Service or ServiceEntry.
    pub origin: OriginId,
    /// Where it is reached.
    pub addresses: Vec<IpAddr>,
    /// Endpoints that clients choose by themselves (a headless service).
    pub endpoints: Vec<SocketAddr>,
    /// Whether it has no address that anybody knows of: any one may be meant for it.
    pub any_address: bool,
    /// Rules. Build them with [`TableBuilder::tcp_route`].
    pub routes: Vec<TcpRoute>,
}

impl TableBuilder {
    /// Adds the destinations of a rule for connections and returns the rule.
    pub fn tcp_route(
        &mut self,
        origin: OriginId,
        (list, rule, line): (TcpList, u16, u32),
        matches: Vec<TcpMatch>,
        destinations: impl IntoIterator<Item = (ClusterId, u32)>,
    ) -> Result<TcpRoute, BuildError> {
        let action = self.forward(destinations.into_iter().map(|(cluster, weight)| (cluster, weight, None)))?;
        let Action::Forward { first, count, weight_sum } = action else { unreachable!("`forward` makes nothing else") };
        Ok(TcpRoute { origin, list, rule, line, matches, first, count, weight_sum })
    }

    /// Adds a port that does not speak HTTP, or may not.
    pub fn tcp_service(&mut self, input: TcpServiceInput) {
        self.tcp_services.push(input);
    }

    pub(super) fn lay_out_tcp(&mut self) -> Result<(), BuildError> {
        for service in &mut self.tcp_services {
            service.domain = stored_domain(&service.domain)?;
        }
        self.tcp_services.sort_by(|a, b| {
            let key = |s: &TcpServiceInput| precedence(s.scope.map_or(SCOPE_ALL, |n| n.0), s.port);
            a.domain.cmp(&b.domain).then_with(|| key(a).cmp(&key(b)))
        });
        for input in std::mem::take(&mut self.tcp_services) {
            let TcpServiceInput { domain, scope, port, protocol, origin, addresses, endpoints, any_address, routes } =
                input;
            let scope = scope.map_or(SCOPE_ALL, |namespace| namespace.0);
            let table = &mut self.table;
            let service = table.tcp_services.len() as u32;
            let is_same = |last: &TcpService| (&last.host, last.scope, last.port) == (&domain, scope, port);
            if table.tcp_services.last().is_some_and(is_same) {
                return Err(BuildError::DuplicateVirtualHost { domain, port });
            }
            let own = addresses.iter().map(|&address| (mapped(address), port, false));
            let own = own.chain(endpoints.iter().map(|endpoint| (mapped(endpoint.ip()), endpoint.port(), true)));
            let any = any_address.then_some((ADDRESS_ANY, port, false));
            table.tcp_addresses.extend(own.chain(any).map(|(address, port, is_endpoint)| TcpAddress {
                address,
                port,
                service,
                is_endpoint,
            }));
            let (first, count) = (table.tcp_routes.len() as u32, routes.len() as u32);
            table.tcp_routes.extend(routes);
            table.tcp_services.push(TcpService { host: domain, port, scope, protocol, origin, first, count });
        }
        let services = &self.table.tcp_services;
        // Of two services with one address the first by name wins, whatever the order of calls.
        self.table.tcp_addresses.sort_by_key(|entry| {
            (entry.address, entry.port, services[entry.service as usize].scope, entry.is_endpoint, entry.service)
        });
        Ok(())
    }
}
