//! A small mesh that uses every part of the table, and a reader of everything that a proxy could ever read.

use std::net::SocketAddr;

use meshring_core::{
    id::{ClusterId, EndpointId, Generation, OriginId, VirtualHostId},
    snapshot::{Snapshot, encode},
    table::{
        TableBuilder,
        build::{ClusterEndpoints, TcpServiceInput, VirtualHostInput},
        lookup::{RequestView, Silent, Viewpoint},
        model::{
            Action, ArchivedAction, BalancePolicy, ClusterKind, Condition, DestinationHeaders, DirectResponse,
            HeaderOp, Match, Redirect, RedirectPort, RegexRewrite, Rewrite, Route, RouteOptions, StringMatch,
            UpstreamProtocol,
        },
        regexes::anchored,
        security::POLICY_NONE,
        tcp::{Subnet, TcpCondition, TcpList, TcpMatch, TcpProtocol, TcpView},
    },
};

/// The snapshot of a small mesh, header included.
pub fn bytes() -> Vec<u8> {
    let mut builder = TableBuilder::new("cluster.local");
    let namespace = builder.namespace("default");
    let protocols = builder.application_ports(vec![(9080, UpstreamProtocol::Http2), (80, UpstreamProtocol::Http1)]);
    let labels = vec![("app".into(), "web".into())];
    builder.guarded_workload(namespace, "client", labels, POLICY_NONE, protocols);
    let pattern = builder.regex(&anchored("/v[0-9]+"));
    let origin = builder.origin("VirtualService default/reviews (reviews.yaml:4)");
    let pod = |last: u8| (SocketAddr::from(([10, 0, 0, last], 9080)), 1);
    let v6 = (SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 9080)), 2);
    let (first, count) = builder.endpoints([pod(1), pod(2), v6]);
    let mut cluster =
        |name: &str, endpoints| builder.cluster(name, BalancePolicy::LeastRequest, ClusterKind::Static, endpoints);
    let whole = cluster("whole", ClusterEndpoints::Range { first, count });
    let subset = cluster("subset", ClusterEndpoints::Selection(&[first, EndpointId(first.0 + 2)]));
    builder.cluster_protocol(whole, UpstreamProtocol::Http2, 100);
    let edits = DestinationHeaders {
        request: vec![HeaderOp::Remove { name: "x-a".into() }],
        response: vec![HeaderOp::Add { name: "x-b".into(), value: "1".into() }],
    };
    let split = builder.forward([(whole, 80, None), (subset, 20, Some(edits))]).expect("weights");
    let conditions = vec![
        Condition::Uri(StringMatch::Regex(pattern)),
        Condition::Header { name: "end-user".into(), value: StringMatch::Present },
        Condition::Query { name: "v".into(), value: StringMatch::Prefix("1".into()) },
        Condition::SourceNamespace(namespace),
        Condition::SourceLabel { key: "app".into(), value: "web".into() },
    ];
    let route = |conditions: Vec<Condition>, action, options| Route {
        name: "r".into(),
        origin,
        rule: 0,
        line: 1,
        matches: vec![Match { name: String::new(), line: 1, conditions }],
        action,
        timeout_ms: 0,
        options,
    };
    let options = RouteOptions {
        request_headers: vec![HeaderOp::Set { name: "x-c".into(), value: "2".into() }],
        response_headers: Vec::new(),
        rewrite: Some(Rewrite {
            uri: Some("/".into()),
            authority: None,
            regex: Some(RegexRewrite { pattern, replacement: "/${0}".into() }),
        }),
    };
    let redirect = Redirect {
        uri: Some("/new".into()),
        authority: None,
        scheme: Some("https".into()),
        port: RedirectPort::Fixed(8443),
        status: 301,
    };
    let routes = vec![
        route(conditions, split, Some(Box::new(options))),
        route(vec![Condition::Port(80)], Action::Redirect(Box::new(redirect)), None),
        route(
            Vec::new(),
            Action::DirectResponse(Box::new(DirectResponse { status: 418, body: b"tea".to_vec() })),
            None,
        ),
    ];
    for (domain, scope, port) in
        [("reviews.default.svc.cluster.local", None, 9080), ("*.example.com", Some(namespace), 0), ("*", None, 80)]
    {
        builder.virtual_host(VirtualHostInput { domain: domain.into(), scope, port, origin, routes: routes.clone() });
    }
    let sni = TcpCondition::Sni(vec![".example.com".into(), "*".into()]);
    let subnets = TcpCondition::DestinationSubnets(vec![Subnet::new([10, 0, 0, 0].into(), 8)]);
    let label = TcpCondition::SourceLabel { key: "app".into(), value: "web".into() };
    let conditions = vec![sni, subnets, label, TcpCondition::Port(443), TcpCondition::SourceNamespace(namespace)];
    let matches = vec![TcpMatch { line: 1, conditions }];
    let rule = builder.tcp_route(origin, (TcpList::Tls, 0, 1), matches, [(whole, 1), (subset, 2)]).expect("weights");
    let rest = builder.tcp_route(origin, (TcpList::Service, 0, 0), Vec::new(), [(whole, 1)]).expect("weights");
    for (domain, port, protocol) in
        [("*.example.com", 443, TcpProtocol::Tls), ("db.example.com", 5432, TcpProtocol::Unknown)]
    {
        let addresses = if port == 443 { Vec::new() } else { vec![[10, 0, 0, 9].into()] };
        builder.tcp_service(TcpServiceInput {
            domain: domain.into(),
            scope: None,
            port,
            protocol,
            origin,
            any_address: addresses.is_empty(),
            addresses,
            endpoints: vec![SocketAddr::from(([10, 0, 0, 1], 9080))],
            routes: vec![rule.clone(), rest.clone()],
        });
    }
    encode(&builder.finish().expect("a sound table")).expect("an archive").to_bytes(Generation(1))
}

struct Request;

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn authority(&self) -> &[u8] {
        b"reviews:9080"
    }
    fn path(&self) -> &[u8] {
        b"/v1"
    }
    fn query(&self) -> Option<&[u8]> {
        Some(b"a=b&v=12")
    }
    fn any_header(&self, _name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        predicate(b"jason")
    }
}

/// Follows every index of an accepted snapshot and looks names up; returns how much it has read.
pub fn walk(snapshot: &Snapshot) -> usize {
    let table = snapshot.table();
    let viewpoint = Viewpoint::resolve(table, "default", "client");
    let mut read = 1 + viewpoint.labels.len() + format!("{table:?}").len();
    let find = |name: &[u8], port| table.virtual_host(&viewpoint, name, port, &mut Silent);
    for name in [&b"reviews"[..], b"reviews.default", b"www.example.com", b"x", b"", b"*", b".example.com"] {
        read += usize::from(find(name, None).is_ok()) + usize::from(find(name, Some(9080)).is_ok());
    }
    for domain in table.domains.iter() {
        read += usize::from(find(domain.name.as_bytes(), None).is_ok());
    }
    for index in 0..table.virtual_hosts.len() as u32 {
        let (id, host) = (VirtualHostId(index), &table.virtual_hosts[index as usize]);
        read += table.origin(OriginId::from(&host.origin)).len();
        for port in [None, Some(80)] {
            let found = table.route(snapshot.regexes(), &viewpoint, id, &Request, port, &mut Silent);
            read += found.map_or(0, |selected| table.origin(OriginId::from(&selected.rule.origin)).len());
        }
    }
    for meant in ["10.0.0.9:5432", "10.0.0.1:9080", "192.0.2.1:443", "[fd00::1]:443"] {
        let Ok(meant) = meant.parse::<SocketAddr>() else { continue };
        let found = table.tcp_at(&viewpoint, meant);
        read += usize::from(found.is_some());
        let port = meant.port();
        read += usize::from(table.tcp_by_server_name(&viewpoint, Some("a.example.com"), port, None).is_some());
    }
    for service in 0..table.tcp_services.len() {
        let host = &table.tcp_services[service].host;
        let view = TcpView { server_name: Some(host.as_str()), destination: Some([10, 0, 0, 9].into()) };
        if let Some((rule, alternative)) = table.tcp_route(&viewpoint, service, view, &mut Silent) {
            let (first, count) = (rule.first.to_native() as usize, rule.count.to_native() as usize);
            read += table.destinations[first..first + count].len() + alternative;
            read += table.origin(OriginId::from(&rule.origin)).len();
        }
        read += usize::from(table.tcp_asks_server_name(service)) + usize::from(table.tcp_may_be_http(service));
        read += usize::from(table.tcp_named(&viewpoint, host, table.tcp_services[service].port.to_native()).is_some());
    }
    for route in table.routes.iter() {
        if let ArchivedAction::Forward { first, count, .. } = &route.action {
            let first = first.to_native() as usize;
            for destination in &table.destinations[first..first + count.to_native() as usize] {
                read += table.cluster(ClusterId::from(&destination.cluster)).name.len();
            }
        }
    }
    read += usize::from(table.application_protocol(&viewpoint, 9080) == UpstreamProtocol::Http2);
    for cluster in table.clusters.iter() {
        // A range may be as long as the table's, and there may be many: the ends are enough.
        let count = cluster.count.to_native();
        for position in [0, count / 2, count.saturating_sub(1)].into_iter().filter(|&position| position < count) {
            read += usize::from(table.address(table.endpoint_of(cluster, position)).port());
        }
    }
    read
}
