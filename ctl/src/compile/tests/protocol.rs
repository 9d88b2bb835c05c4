//! What is spoken with clusters and with applications.

use meshring_core::table::model::UpstreamProtocol;

use super::*;

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc-api, port: 90, targetPort: 9090}
  - {name: web, port: 81, targetPort: 8081}
  - {name: other, port: 82, targetPort: 8082, appProtocol: kubernetes.io/h2c}
  - {name: grpc-web, port: 83, targetPort: 8083}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-1, labels: {app: shop}}
status: {podIP: 10.0.0.1}
";

fn rule(spec: &str) -> String {
    format!(
        "{SHOP}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: shop}}\nspec: {{host: shop, {spec}}}\n"
    )
}

fn mesh_config(policy: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         h2UpgradePolicy: {policy}\n"
    )
}

/// `1`, `2` or `c` (as the client does) for each cluster, by port and subset, then `/N` where streams are bounded.
fn spoken(text: &str, wanted: &[&str]) -> String {
    let mesh = Mesh::new(text);
    let clusters = &mesh.0.table().clusters;
    let one = |wanted: &&str| {
        let name = format!("outbound|{wanted}|shop.default.svc.cluster.local");
        let cluster = clusters.iter().find(|cluster| cluster.name.as_str() == name);
        let cluster = cluster.unwrap_or_else(|| panic!("no {name}"));
        let streams = match cluster.max_streams.to_native() {
            0 => String::new(),
            streams => format!("/{streams}"),
        };
        format!("{}{streams}", short(cluster.protocol.into()))
    };
    wanted.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn short(protocol: UpstreamProtocol) -> char {
    match protocol {
        UpstreamProtocol::Http1 => '1',
        UpstreamProtocol::Http2 => '2',
        UpstreamProtocol::Tcp => 't',
        UpstreamProtocol::Downstream => 'c',
    }
}

/// What the application speaks on ports.
fn application(text: &str, workload: &str, ports: &[u16]) -> String {
    let mesh = Mesh::new(text);
    let (namespace, name) = workload.split_once('/').unwrap();
    let viewpoint = Viewpoint::resolve(mesh.0.table(), namespace, name);
    ports.iter().map(|port| short(mesh.0.table().application_protocol(&viewpoint, *port))).collect()
}

const PORTS: [&str; 5] = ["80|", "90|", "81|", "82|", "83|"];

#[test]
fn the_port_says_what_is_spoken_unless_a_rule_or_the_mesh_does() {
    for (text, expected) in [
        (SHOP.to_owned(), "1 2 c 2 2"),
        (format!("{SHOP}{}", mesh_config("UPGRADE")), "2 2 c 2 2"),
        (format!("{SHOP}{}", mesh_config("DO_NOT_UPGRADE")), "1 2 c 2 2"),
        (rule("trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}"), "2 2 2 2 2"),
        (
            rule("trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}")
                + &mesh_config("UPGRADE"),
            "1 2 c 2 2",
        ),
        (
            rule("trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DEFAULT}}}") + &mesh_config("UPGRADE"),
            "2 2 c 2 2",
        ),
        (
            rule("trafficPolicy: {connectionPool: {http: {useClientProtocol: true, maxConcurrentStreams: 7}}}"),
            "c/7 c/7 c/7 c/7 c/7",
        ),
    ] {
        assert_eq!(spoken(&text, &PORTS), expected, "{text}");
    }
}

#[test]
fn a_port_and_a_subset_may_say_something_of_their_own() {
    let text = rule(
        "trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 3}}, portLevelSettings: [{port: \
         {number: 81}}, {port: {number: 90}, connectionPool: {http: {maxConcurrentStreams: 5}}}]}, subsets: [{name: v1, \
         trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}}]",
    );
    let text = format!(
        "{text}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop}}\nspec:\n  hosts: [shop]\n  http:\n  - \
         match: [{{uri: {{exact: /v1}}}}]\n    route: [{{destination: {{host: shop, subset: v1}}}}]\n  - route: [{{destination: {{host: \
         shop}}}}]\n"
    );
    assert_eq!(spoken(&text, &["80|", "81|", "90|", "80|v1"]), "2/3 c 2/5 1");
}

#[test]
fn an_application_is_spoken_to_as_the_ports_of_its_services_say() {
    let ports = [8080, 9090, 8081, 8082, 8083, 80];
    assert_eq!(application(SHOP, "default/shop-1", &ports), "12c22c");
    assert_eq!(application(SHOP, "default/other", &ports), "cccccc");
    let upgraded = rule("trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}");
    assert_eq!(application(&upgraded, "default/shop-1", &ports), "12c22c", "upgrades end at the sidecar");
    let client = rule("trafficPolicy: {connectionPool: {http: {useClientProtocol: true}}}");
    assert_eq!(application(&client, "default/shop-1", &ports), "cccccc");
}

#[test]
fn a_service_of_another_namespace_has_no_say_in_what_an_application_speaks() {
    let text = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: a, labels: {app: vm}}
spec: {address: 10.0.0.9, labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mine, namespace: a}
spec: {hosts: [vm.test], ports: [{number: 80, name: grpc, protocol: GRPC}], resolution: STATIC, location: MESH_INTERNAL, \
                workloadSelector: {labels: {app: vm}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: theirs, namespace: b}
spec: {hosts: [other.test], ports: [{number: 81, name: grpc, protocol: GRPC}], resolution: STATIC, endpoints: [{address: 10.0.0.9}]}
";
    assert_eq!(application(text, "a/vm", &[80, 81]), "2c");
}
