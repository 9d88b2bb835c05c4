//! Tests of the table: how it is built, what a lookup finds, what validation refuses.

mod building;
mod conditions;
mod invalid;
mod names;
mod patterns;
mod properties;
mod protocol;
mod security;
mod tcp;

use super::{
    Table, TableBuilder,
    build::{ClusterEndpoints, VirtualHostInput},
    lookup::{NoRoute, RequestView, Silent, Viewpoint},
    model::{
        Action, BalancePolicy, ClusterKind, Condition, Destination, DestinationHeaders, DirectResponse, HeaderOp,
        Match, Redirect, RedirectPort, RegexRewrite, Rewrite, Route, RouteOptions, StringMatch, UpstreamProtocol,
    },
    regexes::anchored,
    security::POLICY_NONE,
};
use crate::{
    id::{ClusterId, Generation, NamespaceId, OriginId, VirtualHostId},
    snapshot::{Refused, Snapshot, encode},
};

/// A request in a test: `GET http://a/` with what the test adds.
#[derive(Clone, Debug, Default)]
struct Request {
    method: &'static str,
    scheme: &'static str,
    authority: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Request {
    fn get(path: &str) -> Self {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        Self { method: "GET", scheme: "http", authority: "a".into(), path: path.into(), query, headers: Vec::new() }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        self.scheme.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }

    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(n, value)| n == name && predicate(value))
    }
}

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact(value.into())
}

fn prefix(value: &str) -> StringMatch {
    StringMatch::Prefix(value.into())
}

/// A rule with one alternative per element; none at all always matches.
fn rule(name: &str, origin: OriginId, alternatives: Vec<Vec<Condition>>, action: Action) -> Route {
    let matches =
        alternatives.into_iter().map(|conditions| Match { name: String::new(), line: 1, conditions }).collect();
    Route { name: name.into(), origin, rule: 0, line: 1, matches, action, timeout_ms: 0, options: None }
}

fn answer(status: u16) -> Action {
    Action::DirectResponse(Box::new(DirectResponse { status, body: Vec::new() }))
}

/// Adds a virtual host with one catch-all route.
fn host(builder: &mut TableBuilder, domain: &str, scope: Option<NamespaceId>, port: u16) {
    let origin = builder.origin(domain);
    let routes = vec![rule(domain, origin, Vec::new(), answer(200))];
    builder.virtual_host(VirtualHostInput { domain: domain.into(), scope, port, origin, routes });
}

/// The bytes of a table as a proxy gets them, proved and mapped.
fn published(table: &Table) -> Snapshot {
    opened(table).expect("a sound table")
}

fn opened(table: &Table) -> Result<Snapshot, Refused> {
    Snapshot::from_bytes(&encode(table).expect("an archive").to_bytes(Generation(1)))
}

fn finished(builder: TableBuilder) -> Snapshot {
    published(&builder.finish().expect("a sound table"))
}

/// From the namespace `default`, as a workload without labels.
fn default_viewpoint(snapshot: &Snapshot) -> Viewpoint {
    Viewpoint::resolve(snapshot.table(), "default", "client")
}

/// `domain|scope|port` of what a Host value leads to, seen from a namespace.
fn found(snapshot: &Snapshot, namespace: &str, name: &str, port: Option<u16>) -> Result<String, NoRoute> {
    let table = snapshot.table();
    let viewpoint = Viewpoint::resolve(table, namespace, "client");
    let id = table.virtual_host(&viewpoint, name.as_bytes(), port, &mut Silent)?;
    let host = &table.virtual_hosts[id.index()];
    let domain = table.domains.iter().find(|domain| {
        let first = domain.first.to_native();
        (first..first + domain.count.to_native()).contains(&id.0)
    });
    let scope = match host.scope.to_native() {
        u32::MAX => "all",
        index => table.namespaces[index as usize].as_str(),
    };
    Ok(format!("{}|{scope}|{}", domain.expect("every virtual host has a domain").name, host.port))
}

/// The name of the first rule that matches in the table's only virtual host.
fn matched(snapshot: &Snapshot, viewpoint: &Viewpoint, request: &Request, port: Option<u16>) -> Option<String> {
    let only = VirtualHostId(0);
    match snapshot.table().route(snapshot.regexes(), viewpoint, only, request, port, &mut Silent) {
        Ok(selected) => Some(selected.rule.name.to_string()),
        Err(NoRoute::NoRule(id)) if id == only => None,
        Err(other) => panic!("{other}"),
    }
}

/// A table that uses every type of the model once: what validation walks over.
fn everything() -> Table {
    let mut builder = TableBuilder::new("cluster.local");
    let (default, other) = (builder.namespace("default"), builder.namespace("other"));
    let origin = builder.origin("VirtualService default/reviews (reviews.yaml:4)");
    let service = builder.origin("Service default/reviews (reviews.yaml:1)");
    let pattern = builder.regex(&anchored("/v[0-9]+/.*"));
    let v4 = |last: u8| (std::net::SocketAddr::from(([10, 0, 0, last], 9080)), 1);
    let v6 = (std::net::SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 9080)), 5);
    let (first, count) = builder.endpoints([v4(1), v4(2), v4(3), v6]);
    let whole = builder.cluster(
        "outbound|9080||reviews.default.svc.cluster.local",
        BalancePolicy::RoundRobin,
        ClusterKind::Static,
        ClusterEndpoints::Range { first, count },
    );
    let subset = builder.cluster(
        "outbound|9080|v2|reviews.default.svc.cluster.local",
        BalancePolicy::LeastRequest,
        ClusterKind::Static,
        ClusterEndpoints::Selection(&[crate::id::EndpointId(first.0 + 1), crate::id::EndpointId(first.0 + 3)]),
    );
    let missing = builder.cluster("gone", BalancePolicy::Random, ClusterKind::NoSuchSubset, ClusterEndpoints::None);
    let edits = DestinationHeaders {
        request: vec![HeaderOp::Remove { name: "x-old".into() }],
        response: vec![HeaderOp::Add { name: "x-version".into(), value: "v2".into() }],
    };
    let split = builder.forward([(whole, 80, None), (subset, 20, Some(edits)), (missing, 0, None)]).expect("weights");
    let only = builder.forward([(whole, 1, None)]).expect("weights");
    let conditions = vec![
        Condition::Uri(StringMatch::Regex(pattern)),
        Condition::Scheme(exact("http")),
        Condition::Method(exact("GET")),
        Condition::Authority(StringMatch::ExactIgnoreCase("Reviews".into())),
        Condition::Header { name: "end-user".into(), value: exact("jason") },
        Condition::WithoutHeader { name: "x-debug".into(), value: StringMatch::Present },
        Condition::Query { name: "v".into(), value: StringMatch::PrefixIgnoreCase("A".into()) },
        Condition::Port(9080),
        Condition::SourceNamespace(default),
        Condition::SourceLabel { key: "app".into(), value: "productpage".into() },
    ];
    let mut first_rule = rule("all", origin, vec![conditions], split);
    first_rule.options = Some(Box::new(RouteOptions {
        request_headers: vec![HeaderOp::Set { name: "x-a".into(), value: "1".into() }],
        response_headers: vec![HeaderOp::Add { name: "x-b".into(), value: "2".into() }],
        rewrite: Some(Rewrite {
            uri: Some("/".into()),
            authority: Some("b".into()),
            regex: Some(RegexRewrite { pattern, replacement: "/${1}".into() }),
        }),
    }));
    let redirect = Action::Redirect(Box::new(Redirect {
        uri: Some("/new".into()),
        authority: Some("b".into()),
        scheme: Some("https".into()),
        port: RedirectPort::Fixed(8443),
        status: 308,
    }));
    let direct = Action::DirectResponse(Box::new(DirectResponse { status: 418, body: b"short and stout\n".to_vec() }));
    let routes = vec![
        first_rule,
        rule("redirect", origin, vec![vec![Condition::Uri(prefix("/old"))]], redirect),
        rule("direct", origin, vec![vec![Condition::Uri(exact("/teapot"))]], direct),
        rule("", origin, Vec::new(), only),
    ];
    let reviews = "reviews.default.svc.cluster.local";
    builder.virtual_host(VirtualHostInput { domain: reviews.into(), scope: Some(other), port: 9080, origin, routes });
    host(&mut builder, reviews, None, 9080);
    host(&mut builder, "*.example.com", None, 0);
    let ports = vec![(9080, UpstreamProtocol::Http2), (8080, UpstreamProtocol::Http1)];
    let protocols = builder.application_ports(ports);
    let labels = vec![("app".into(), "productpage".into())];
    builder.guarded_workload(default, "productpage", labels, POLICY_NONE, protocols);
    builder.cluster_protocol(ClusterId(0), UpstreamProtocol::Http2, 100);
    builder.virtual_host(VirtualHostInput {
        domain: "empty.example.com".into(),
        scope: None,
        port: 80,
        origin: service,
        routes: Vec::new(),
    });
    builder.finish().expect("a sound table")
}

/// Weight 1 for a cluster without header edits.
fn to(cluster: u32) -> Destination {
    Destination { cluster: ClusterId(cluster), weight: 1, headers: None }
}
