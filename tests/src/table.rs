//! Routing tables made by hand, for tests that need no control process.

use std::net::{IpAddr, SocketAddr};

use meshring_core::{
    id::{ClusterId, Generation, OriginId, RegexId},
    snapshot::encode,
    table::{
        TableBuilder,
        build::{ClusterEndpoints, TcpServiceInput, VirtualHostInput},
        model::{
            Action, BalancePolicy, ClusterKind, Condition, DestinationHeaders, Match, PORT_ANY, Redirect, RedirectPort,
            Rewrite, Route, RouteOptions, Settings, UpstreamProtocol,
        },
        regexes::anchored,
        tcp::{TcpCondition, TcpList, TcpMatch, TcpProtocol, TcpRoute},
    },
};

/// The generation that every hand-made snapshot has.
pub const GENERATION: u64 = 7;

/// A table in the making.
#[derive(Debug)]
pub struct World {
    builder: TableBuilder,
    origin: OriginId,
}

impl World {
    /// An empty table that knows the namespace `default`.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a builder, not a value")]
    pub fn new() -> Self {
        let mut builder = TableBuilder::new("cluster.local");
        builder.namespace("default");
        let origin = builder.origin("VirtualService default/test (test.yaml:1)");
        Self { builder, origin }
    }

    /// The snapshot of a table in which `echo` is one server.
    #[must_use]
    pub fn with_echo(address: SocketAddr) -> Vec<u8> {
        Self::with_service("echo", address)
    }

    /// The snapshot of a table in which one service is one server.
    #[must_use]
    pub fn with_service(name: &str, address: SocketAddr) -> Vec<u8> {
        let mut world = Self::new();
        let cluster = world.cluster(name, &[address]);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
        world.snapshot()
    }

    /// The snapshot of a table in which a port of a service carries bytes, or may, to these servers.
    #[must_use]
    pub fn with_stream(name: &str, port: u16, protocol: TcpProtocol, endpoints: &[SocketAddr]) -> Vec<u8> {
        let mut world = Self::new();
        let cluster = world.cluster(name, endpoints);
        let rule = world.stream_rule(Vec::new(), &[(cluster, 1)]);
        world.stream(name, port, protocol, &[], vec![rule]);
        if protocol == TcpProtocol::Unknown {
            let action = world.forward(&[(cluster, 1)]);
            world.host(name, vec![self::rule(action)]);
        }
        world.snapshot()
    }

    /// Settings of the whole mesh.
    pub fn settings(&mut self, settings: Settings) {
        self.builder.settings(settings);
    }

    /// A cluster with these endpoints; without any where the list is empty.
    pub fn cluster(&mut self, name: &str, endpoints: &[SocketAddr]) -> ClusterId {
        let endpoints: Vec<_> = endpoints.iter().map(|&address| (address, 1)).collect();
        self.balanced(name, BalancePolicy::RoundRobin, &endpoints)
    }

    /// A cluster with a policy and a weight per endpoint.
    pub fn balanced(&mut self, name: &str, policy: BalancePolicy, endpoints: &[(SocketAddr, u16)]) -> ClusterId {
        let (first, count) =
            self.builder.endpoints(endpoints.iter().map(|&(address, weight)| (address, weight.into())));
        let endpoints = ClusterEndpoints::Range { first, count };
        self.builder.cluster(&cluster_name(name), policy, ClusterKind::Static, endpoints)
    }

    /// What is spoken with a cluster; without it what the client speaks.
    pub fn protocol(&mut self, cluster: ClusterId, protocol: UpstreamProtocol) {
        self.builder.cluster_protocol(cluster, protocol, 0);
    }

    /// A cluster that cannot have endpoints.
    pub fn cluster_without(&mut self, name: &str, kind: ClusterKind) -> ClusterId {
        self.builder.cluster(&cluster_name(name), BalancePolicy::LeastRequest, kind, ClusterEndpoints::None)
    }

    /// Forwards by weight.
    pub fn forward(&mut self, destinations: &[(ClusterId, u32)]) -> Action {
        let destinations = destinations.iter().map(|&(cluster, weight)| (cluster, weight, None));
        self.builder.forward(destinations).expect("sane weights")
    }

    /// Forwards to one cluster with header edits of the destination.
    pub fn forward_with(&mut self, cluster: ClusterId, headers: DestinationHeaders) -> Action {
        self.builder.forward([(cluster, 1, Some(headers))]).expect("sane weights")
    }

    /// A pattern that must match as a whole.
    pub fn regex(&mut self, pattern: &str) -> RegexId {
        self.builder.regex(&anchored(pattern))
    }

    /// A pattern that may match anywhere.
    pub fn regex_anywhere(&mut self, pattern: &str) -> RegexId {
        self.builder.regex(pattern)
    }

    /// What namespace `default` is called in conditions.
    pub fn namespace(&mut self, name: &str) -> meshring_core::id::NamespaceId {
        self.builder.namespace(name)
    }

    /// Labels of a workload.
    pub fn workload(&mut self, name: &str, labels: &[(&str, &str)]) {
        let namespace = self.builder.namespace("default");
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.builder.workload(namespace, name, labels);
    }

    /// A service of namespace `default` (a name without dots) or any other domain (`*` for all), with its rules in order.
    pub fn host(&mut self, domain: &str, routes: Vec<Route>) {
        let domain = if domain.contains('.') || domain == "*" {
            domain.to_owned()
        } else {
            format!("{domain}.default.svc.cluster.local")
        };
        let origin = self.origin;
        let routes = routes.into_iter().enumerate();
        let routes =
            routes.map(|(at, route)| Route { origin, rule: at as u16, line: 10 + at as u32, ..route }).collect();
        self.builder.virtual_host(VirtualHostInput { domain, scope: None, port: PORT_ANY, origin, routes });
    }

    /// A port of a service of namespace `default` (a name without dots), or of any other domain, that carries bytes or may: to one
    /// cluster, or by rules.
    pub fn stream(
        &mut self,
        domain: &str,
        port: u16,
        protocol: TcpProtocol,
        addresses: &[IpAddr],
        routes: Vec<TcpRoute>,
    ) {
        let origin = self.builder.origin(&format!("ServiceEntry default/{domain} (test.yaml:1)"));
        let domain =
            if domain.contains('.') { domain.to_owned() } else { format!("{domain}.default.svc.cluster.local") };
        self.builder.tcp_service(TcpServiceInput {
            domain,
            scope: None,
            port,
            protocol,
            origin,
            addresses: addresses.to_vec(),
            endpoints: Vec::new(),
            any_address: addresses.is_empty(),
            routes,
        });
    }

    /// A rule for connections.
    pub fn stream_rule(&mut self, conditions: Vec<Vec<TcpCondition>>, destinations: &[(ClusterId, u32)]) -> TcpRoute {
        let matches = conditions.into_iter().map(|conditions| TcpMatch { line: 11, conditions }).collect();
        let (origin, place) = (self.origin, (TcpList::Tcp, 0, 10));
        self.builder.tcp_route(origin, place, matches, destinations.iter().copied()).expect("sane weights")
    }

    /// The bytes of the table's snapshot.
    #[must_use]
    pub fn snapshot(self) -> Vec<u8> {
        let table = self.builder.finish().expect("a sane table");
        encode(&table).expect("a table that fits").to_bytes(Generation(GENERATION))
    }
}

fn cluster_name(service: &str) -> String {
    format!("outbound|80||{service}.default.svc.cluster.local")
}

/// A rule without conditions; change it with the struct update syntax.
#[must_use]
pub fn rule(action: Action) -> Route {
    let origin = OriginId(0);
    Route { name: String::new(), origin, rule: 0, line: 0, matches: Vec::new(), action, timeout_ms: 0, options: None }
}

/// A rule with one alternative.
#[must_use]
pub fn rule_if(conditions: Vec<Condition>, action: Action) -> Route {
    Route { matches: vec![Match { name: String::new(), line: 1, conditions }], ..rule(action) }
}

/// A rule with options.
#[must_use]
pub fn rule_with(options: RouteOptions, action: Action) -> Route {
    Route { options: Some(Box::new(options)), ..rule(action) }
}

/// Options that only rewrite.
#[must_use]
pub fn rewriting(rewrite: Rewrite) -> RouteOptions {
    RouteOptions { rewrite: Some(rewrite), ..RouteOptions::default() }
}

/// A redirect that changes nothing but the status.
#[must_use]
pub fn redirect(status: u16) -> Redirect {
    Redirect { uri: None, authority: None, scheme: None, port: RedirectPort::Keep, status }
}
