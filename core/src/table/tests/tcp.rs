//! Which service a connection is for, and which of its rules decides.

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::table::{
    build::TcpServiceInput,
    model::SCOPE_ALL,
    tcp::{Subnet, TcpCondition as C, TcpFound, TcpList, TcpMatch, TcpProtocol as P, TcpRoute, TcpView},
};

fn route(builder: &mut TableBuilder, line: u32, alternatives: Vec<Vec<C>>) -> TcpRoute {
    let cluster = builder.cluster("c", BalancePolicy::LeastRequest, ClusterKind::Static, ClusterEndpoints::None);
    let origin = builder.origin("VirtualService a/b");
    let matches = alternatives.into_iter().map(|conditions| TcpMatch { line, conditions }).collect();
    builder.tcp_route(origin, (TcpList::Tcp, 0, line), matches, [(cluster, 1)]).unwrap()
}

fn service(builder: &mut TableBuilder, domain: &str, port: u16, protocol: P, addresses: &[&str]) -> TcpServiceInput {
    let origin = builder.origin(domain);
    let any_address = addresses.is_empty();
    let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let routes = vec![route(builder, 0, vec![])];
    let domain = domain.to_owned();
    TcpServiceInput { domain, scope: None, port, protocol, origin, addresses, endpoints: vec![], any_address, routes }
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

#[test]
fn an_address_a_name_or_a_server_name_leads_to_a_service() {
    let mut builder = TableBuilder::new("cluster.local");
    let a = builder.namespace("a");
    let redis = service(&mut builder, "redis.a.svc.cluster.local", 6379, P::Tcp, &["10.0.0.1", "fd00::1"]);
    let own = TcpServiceInput { scope: Some(a), ..redis.clone() };
    builder.tcp_service(redis);
    builder.tcp_service(own);
    let mut headless = service(&mut builder, "mongo.a.svc.cluster.local", 27017, P::Tcp, &[]);
    headless.any_address = false;
    headless.endpoints = vec![at("10.1.0.1:27017"), at("10.1.0.2:27017")];
    builder.tcp_service(headless);
    for (domain, port, protocol) in [
        ("*.example.com", 443, P::Tls),
        ("a.example.com", 443, P::Tls),
        ("db.example.com", 443, P::Tcp),
        ("db.example.com", 5432, P::Unknown),
    ] {
        let service = service(&mut builder, domain, port, protocol, &[]);
        builder.tcp_service(service);
    }
    let snapshot = published(&builder.finish().unwrap());
    let table = snapshot.table();
    let (own, other) = (Viewpoint::resolve(table, "a", "x"), Viewpoint::resolve(table, "b", "x"));
    let host = |service: usize| table.tcp_services[service].host.as_str();
    let found = |viewpoint, address| match table.tcp_at(viewpoint, at(address)) {
        Some(TcpFound::Service { service, endpoint }) => {
            let scope = table.tcp_services[service].scope.to_native();
            Some((host(service).split('.').next().unwrap(), scope == SCOPE_ALL, endpoint.is_some()))
        }
        Some(TcpFound::ByServerName { port: 443, otherwise }) => {
            Some((otherwise.map_or("", host).split('.').next().unwrap(), true, false))
        }
        _ => None,
    };
    assert_eq!(found(&other, "10.0.0.1:6379"), Some(("redis", true, false)));
    assert_eq!(found(&own, "10.0.0.1:6379"), Some(("redis", false, false)), "the narrower scope wins");
    assert_eq!(found(&own, "[::ffff:10.0.0.1]:6379"), found(&own, "10.0.0.1:6379"));
    assert_eq!(found(&own, "[fd00::1]:6379"), found(&own, "10.0.0.1:6379"));
    assert_eq!(found(&own, "10.0.0.2:6379"), None);
    assert_eq!(found(&own, "10.0.0.1:6380"), None);
    assert_eq!(found(&own, "10.1.0.2:27017"), Some(("mongo", true, true)));
    assert_eq!(found(&own, "192.0.2.1:443"), Some(("db", true, false)), "by server name, or else this one");
    assert_eq!(found(&own, "192.0.2.1:5432"), Some(("db", true, false)));
    let named = |name, port| table.tcp_named(&own, name, port).map(host);
    assert_eq!(named("Redis", 6379), Some("redis.a.svc.cluster.local"));
    assert_eq!(named("redis.a.", 6379), Some("redis.a.svc.cluster.local"));
    assert_eq!(table.tcp_named(&other, "redis", 6379), None);
    assert_eq!(named("a.example.com", 443), Some("a.example.com"));
    assert_eq!(named("b.c.example.com", 443), Some(".example.com"));
    assert_eq!(named("example.com", 443), None);
    assert_eq!(named("a.example.com", 444), None);
    let by_name = |name| table.tcp_by_server_name(&own, name, 443, None).map(host);
    assert_eq!(
        [by_name(Some("x.example.com")), by_name(Some("x.org")), by_name(None)],
        [Some(".example.com"), None, None]
    );
}

#[test]
fn the_first_rule_of_which_all_conditions_hold_decides() {
    let mut builder = TableBuilder::new("cluster.local");
    let (a, b) = (builder.namespace("a"), builder.namespace("b"));
    builder.workload(a, "web", vec![("app".into(), "web".into())]);
    let mut input = service(&mut builder, "db.example.com", 443, P::Tls, &[]);
    let subnets = |text: &[(&str, u8)]| {
        C::DestinationSubnets(text.iter().map(|(ip, bits)| Subnet::new(ip.parse().unwrap(), *bits)).collect())
    };
    let names = |list: &[&str]| C::Sni(list.iter().map(|&name| name.to_owned()).collect());
    let label = |value: &str| C::SourceLabel { key: "app".into(), value: value.into() };
    input.routes = vec![
        route(&mut builder, 1, vec![vec![C::Port(444)], vec![C::SourceNamespace(b)], vec![label("other")]]),
        route(&mut builder, 2, vec![vec![names(&["a.example.com", ".b.example.com"]), label("web")]]),
        route(&mut builder, 3, vec![vec![subnets(&[("10.0.0.0", 8), ("fd00::", 16)]), C::Port(443)]]),
        route(&mut builder, 4, vec![vec![subnets(&[("0.0.0.0", 0)]), names(&["*"])]]),
    ];
    builder.tcp_service(input);
    let plain = service(&mut builder, "plain.example.com", 1, P::Tcp, &[]);
    builder.tcp_service(plain);
    let snapshot = published(&builder.finish().unwrap());
    let table = snapshot.table();
    let viewpoint = Viewpoint::resolve(table, "a", "web");
    let service = table.tcp_named(&viewpoint, "db.example.com", 443).unwrap();
    assert!(table.tcp_asks_server_name(service));
    assert!(!table.tcp_asks_server_name(table.tcp_named(&viewpoint, "plain.example.com", 1).unwrap()));
    let line = |server_name, destination: Option<&str>| {
        let destination = destination.map(|ip| ip.parse::<IpAddr>().unwrap());
        let view = TcpView { server_name, destination };
        table.tcp_route(&viewpoint, service, view, &mut Silent).map(|(rule, _)| rule.line.to_native())
    };
    assert_eq!(line(Some("a.example.com"), None), Some(2));
    assert_eq!(line(Some("x.b.example.com"), None), Some(2));
    assert_eq!(line(Some("b.example.com"), None), None);
    assert_eq!(line(None, Some("10.255.0.1")), Some(3));
    assert_eq!(line(None, Some("fd00:0:1::")), Some(3));
    assert_eq!(line(None, Some("11.0.0.1")), None);
    assert_eq!(line(Some("c"), Some("11.0.0.1")), Some(4));
    assert_eq!(line(Some("c"), Some("fe80::1")), None, "an IPv4 prefix of no bits is all of IPv4");
}

#[test]
fn a_table_whose_searches_would_fail_is_refused() {
    let refused = |change: &dyn Fn(&mut Table)| {
        let mut builder = TableBuilder::new("cluster.local");
        for domain in ["a.example.com", "b.example.com"] {
            let service = service(&mut builder, domain, 1, P::Tcp, &["10.0.0.2", "10.0.0.1"]);
            builder.tcp_service(service);
        }
        let mut table = builder.finish().unwrap();
        change(&mut table);
        opened(&table).unwrap_err().to_string()
    };
    assert!(refused(&|t| t.tcp_services.swap(0, 1)).contains("tcp_services[1]: \"a.example.com\" is out of order"));
    assert!(refused(&|t| t.tcp_addresses.swap(0, 3)).contains("tcp_addresses[1]: is out of order"));
    assert!(refused(&|t| t.tcp_addresses[0].service = 2).contains("TCP service 2 of 2"));
    assert!(refused(&|t| t.tcp_routes[0].weight_sum = 2).contains("tcp_routes[0]: weights sum to 1, declared 2"));
    assert!(refused(&|t| t.tcp_services[1].count = 2).contains("tcp_services[1]: TCP routes 1 to 3 of 2"));
}
