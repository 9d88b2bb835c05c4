//! Connections go where Istio's rules for TCP and TLS send them.

use meshring_core::table::tcp::{TcpFound, TcpView};

use super::*;

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: redis}
spec:
  clusterIP: 10.96.0.1
  selector: {app: redis}
  ports:
  - {name: tcp, port: 6379}
  - {name: http, port: 80}
  - {name: admin, port: 81}
---
apiVersion: v1
kind: Service
metadata: {name: mongo}
spec:
  clusterIP: None
  selector: {app: redis}
  ports: [{name: mongo, port: 27017, targetPort: 27018}]
---
apiVersion: v1
kind: Pod
metadata: {name: redis-1, labels: {app: redis, version: v1}}
status: {podIP: 10.0.0.1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: sites}
spec:
  hosts: [\"*.example.com\", one.example.com, other.org]
  ports: [{name: tls, number: 443, protocol: TLS}, {name: db, number: 5432, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
";

/// The cluster that a connection of `default/redis-1` or of another workload goes to, and the line of the rule.
fn asked(mesh: &Mesh, from: &str, meant: &str, server_name: Option<&str>) -> Option<(String, u32)> {
    let table = mesh.0.table();
    let (namespace, name) = from.split_once('/').unwrap();
    let viewpoint = Viewpoint::resolve(table, namespace, name);
    let (service, destination) = match meant.parse::<std::net::SocketAddr>() {
        Ok(address) => match table.tcp_at(&viewpoint, address)? {
            TcpFound::Service { service, .. } => (service, Some(address.ip())),
            TcpFound::ByServerName { port, otherwise } => {
                (table.tcp_by_server_name(&viewpoint, server_name, port, otherwise)?, Some(address.ip()))
            }
        },
        Err(_) => {
            let (host, port) = meant.split_once(':').unwrap();
            (table.tcp_named(&viewpoint, host, port.parse().unwrap())?, None)
        }
    };
    let (rule, _) = table.tcp_route(&viewpoint, service, TcpView { server_name, destination }, &mut Silent)?;
    let cluster = table.destinations[rule.first.to_native() as usize].cluster;
    Some((table.cluster(cluster.into()).name.to_string(), rule.line.to_native()))
}

fn to(port: u16, subset: &str, host: &str) -> String {
    let host = if host.contains('.') { host.to_owned() } else { format!("{host}.default.svc.cluster.local") };
    format!("outbound|{port}|{subset}|{host}")
}

#[test]
fn without_rules_connections_go_to_the_service_that_they_are_for() {
    let mesh = Mesh::new(SERVICES);
    let plain = |meant, name| asked(&mesh, "default/any", meant, name).map(|(cluster, _)| cluster);
    assert_eq!(plain("10.96.0.1:6379", None), Some(to(6379, "", "redis")));
    assert_eq!(plain("redis:6379", None), Some(to(6379, "", "redis")));
    assert_eq!(plain("10.96.0.1:80", None), None, "HTTP is for HTTP's rules");
    assert_eq!(plain("10.96.0.1:81", None), Some(to(81, "", "redis")), "may be anything");
    assert_eq!(plain("10.0.0.1:27018", None), Some(to(27017, "", "mongo")), "a headless service's endpoint");
    assert_eq!(plain("mongo:27017", None), Some(to(27017, "", "mongo")));
    assert_eq!(plain("198.51.100.7:27017", None), None, "a headless service is not everywhere");
    let tls = |name| plain("198.51.100.7:443", name);
    assert_eq!(tls(Some("one.example.com")), Some(to(443, "", "one.example.com")));
    assert_eq!(tls(Some("two.example.com")), Some(to(443, "", "*.example.com")));
    assert_eq!(tls(Some("other.org")), Some(to(443, "", "other.org")));
    assert_eq!(tls(Some("example.com")), None);
    assert_eq!(tls(None), None);
    assert_eq!(plain("198.51.100.7:5432", None), Some(to(5432, "", "*.example.com")));
}

#[test]
fn rules_for_tcp_take_what_matches_and_leave_the_rest_to_the_service() {
    let rules = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: redis}
spec:
  hosts: [redis, other.org]
  tcp:
  - match:
    - {port: 6379, destinationSubnets: [10.99.0.0/16, 'fd00::/8']}
    - {port: 7000}
    route: [{destination: {host: mongo}}]
  - match: [{sourceLabels: {version: v1}}]
    route:
    - {destination: {host: redis, subset: v1}, weight: 90}
    - {destination: {host: redis, subset: v2}, weight: 10}
  - match: [{gateways: [edge], port: 6379}]
    route: [{destination: {host: nowhere}}]
  - match: [{sourceNamespace: other}]
    route: [{destination: {host: redis, port: {number: 81}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: redis}
spec: {host: redis, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
";
    let mesh = Mesh::new(&[SERVICES, rules].concat());
    let redis = |from| asked(&mesh, from, "redis.default:6379", None).unwrap();
    assert_eq!(redis("default/any"), (to(6379, "", "redis"), 0));
    let line =
        |wanted: &str| 1 + [SERVICES, rules].concat().lines().position(|line| line.contains(wanted)).unwrap() as u32;
    assert_eq!(redis("default/redis-1"), (to(6379, "v1", "redis"), line("sourceLabels")));
    assert_eq!(redis("other/any"), (to(81, "", "redis"), line("sourceNamespace")));
    let db = |address| asked(&mesh, "default/any", address, None).unwrap().0;
    assert_eq!(db("198.51.100.7:5432"), to(5432, "", "*.example.com"));
    assert_eq!(asked(&mesh, "default/redis-1", "other.org:5432", None).unwrap().0, to(5432, "v1", "redis"));
}

#[test]
fn rules_for_tls_go_by_the_server_name() {
    let rules = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: sites}
spec:
  hosts: [\"*.example.com\"]
  tls:
  - match: [{port: 443, sniHosts: [one.example.com, \"*.deep.example.com\"]}]
    route: [{destination: {host: other.org}}]
";
    let mesh = Mesh::new(&[SERVICES, rules].concat());
    let tls = |name| asked(&mesh, "default/any", "198.51.100.7:443", Some(name)).map(|(cluster, _)| cluster);
    assert_eq!(tls("one.example.com"), Some(to(443, "", "other.org")));
    assert_eq!(tls("very.deep.example.com"), Some(to(443, "", "other.org")));
    assert_eq!(tls("two.example.com"), None, "as in Istio the way to the service is replaced, not kept");
    assert_eq!(tls("other.org"), Some(to(443, "", "other.org")));
}
