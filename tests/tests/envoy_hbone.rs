//! Envoy at the other end of HBONE, configured as Istio's waypoints are: as a client of our server of tunnels, and as the server
//! behind our client, with certificates of one authority.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{net::SocketAddr, path::Path, thread};

use meshring_tests::{
    client::{Client, request},
    envoy::{EXTENSIONS, Envoy, cluster, http, mutual_chain, mutual_cluster, tls_context},
    generate::{assert_same_bytes, body},
    on_both_drivers, peers,
    pki::{Authority, Leaf, spiffe},
    ports::hbone_address,
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    tunnel::Application,
    upstream::{Upstream, response},
};
use serde_json::{Value, json};
use tempfile::TempDir;

on_both_drivers! {
    envoy_opens_tunnels_to_a_sidecar
    envoy_ends_the_tunnels_of_a_sidecar
}

/// Passes connections on through a tunnel to an address: a CONNECT over HTTP/2 with nothing but an authority.
fn through_tunnel(cluster: &str, target: SocketAddr) -> Value {
    json!({"filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "test",
            "cluster": cluster,
            "tunneling_config": {"hostname": target.to_string()},
        },
    }]})
}

fn envoy_opens_tunnels_to_a_sidecar(driver: Driver) {
    let Some(program) = peers::envoy() else { return };
    let (application, stranger) = (Application::start(), Application::start());
    let strict = peer_authentication("STRICT", "");
    let mesh = Mesh::configured(driver, &[application.address()], &[("mode.yaml", &strict)], |server| server.hbone());
    let dir = TempDir::new().unwrap();
    let (root, _) = mesh.authority.write(dir.path(), "root");
    let visitor = mesh.authority.issue(&Leaf::uri(spiffe("visitor"))).write(dir.path(), "visitor");
    let tunnels =
        |name: &str, peer: &str| mutual_cluster(name, mesh.server.hbone(), tls_context(&visitor, &root, peer), true);
    let clusters = [tunnels("tunnels", &spiffe("reviews")), tunnels("another", &spiffe("another"))];
    let chains = [
        through_tunnel("tunnels", application.address()),
        through_tunnel("tunnels", stranger.address()),
        through_tunnel("another", application.address()),
    ];
    let envoy = Envoy::start(&program, dir, &chains, &clusters);

    // Several at a time, in both directions at once, each with its own bytes.
    let mut all: Vec<_> = (0..4)
        .map(|number| {
            let mut client = Client::connect(envoy.address(0));
            client.send(format!("hello {number}"));
            let mut behind = application.accept();
            assert_eq!(behind.bytes(7), format!("hello {number}").as_bytes());
            (client, behind)
        })
        .collect();
    for (number, (client, behind)) in (0..).zip(&mut all) {
        let (up, down) = (body(number, 700_000), body(100 + number, 900_000));
        let senders = [(client.stream_mut(), &up), (behind.stream_mut(), &down)]
            .map(|(stream, data)| (stream.try_clone().unwrap(), data));
        thread::scope(|scope| {
            for (stream, data) in senders {
                scope.spawn(move || {
                    Client::over(stream).send(data).finish_sending();
                });
            }
            scope.spawn(|| assert_same_bytes(&behind.rest().unwrap(), &up));
            assert_same_bytes(&client.rest().unwrap(), &down);
        });
    }
    assert_eq!(mesh.server_metric("tunnels_total"), 4);
    // All of them on one connection.
    assert_eq!(mesh.server_metric("downstream_tls_handshakes_total"), 1);

    // A target that is not the workload's is refused, and Envoy takes nobody for somebody else.
    for chain in [1, 2] {
        let mut client = Client::connect(envoy.address(chain));
        client.send("hello");
        // Envoy ends it with a reset where it has not read what was sent.
        let end = client.rest();
        let is_ended = end.as_ref().map_or_else(|error| format!("{error:#}").contains("reset"), |rest| rest.is_empty());
        assert!(is_ended, "{end:?}");
    }
    mesh.wait_for_log(&["tls.alert_bad_certificate"]);
    assert!(stranger.try_accept().is_none() && application.try_accept().is_none());
}

/// The service `app`, whose workload takes tunnels.
fn service(address: SocketAddr, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: app, namespace: default}}
spec:
  hosts: [app.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http}}]
  workloadSelector: {{labels: {{app: app}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: app, namespace: default}}
spec:
  address: {ip}
  ports: {{http: {port}}}
  labels: {{app: app, networking.istio.io/tunnel: http}}
  serviceAccount: app
",
        ip = address.ip()
    )
}

/// Ends tunnels whose target is this authority, of those who show that they are the client; their bytes go to the cluster `app`.
fn tunnel_server(authority: &Authority, dir: &Path, identity: &str, target: &str) -> Value {
    let (root, _) = authority.write(dir, "root");
    let certified = authority.issue(&Leaf::uri(spiffe(identity))).write(dir, identity);
    let connect = json!([{"upgrade_type": "CONNECT"}]);
    let routes = json!([{
        "match": {"connect_matcher": {}, "headers": [{"name": ":authority", "string_match": {"exact": target}}]},
        "route": {"cluster": "app", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }]);
    let more = json!({"upgrade_configs": connect, "http2_protocol_options": {"allow_connect": true}});
    mutual_chain(http(&routes, &more), tls_context(&certified, &root, &spiffe("client")), &["h2"])
}

fn envoy_ends_the_tunnels_of_a_sidecar(driver: Driver) {
    let Some(program) = peers::envoy() else { return };
    let application = Upstream::answering(|request| response(200, &[("x-line", &request.line)], &request.body));
    let mesh = Mesh::start(driver, &[application.address()], &[]);
    let (right, wrong) = (hbone_address(20, driver), hbone_address(21, driver));
    let port = application.address().port();
    let start = |address: SocketAddr, identity: &str| {
        let dir = TempDir::new().unwrap();
        let chain = tunnel_server(&mesh.authority, dir.path(), identity, &format!("{}:{port}", address.ip()));
        Envoy::start_at(&program, dir, address, chain, &[cluster("app", application.address())])
    };
    let _envoys = [start(right, "app"), start(wrong, "another")];
    mesh.change("app.yaml", &service(right, port));

    let mut client = mesh.client.connect();
    for path in ["/one", "/two"] {
        let response = client.get("app", path);
        assert_eq!(response.expect(200).fields.value("x-line"), Some(&*format!("GET {path} HTTP/1.1")));
    }
    let data = body(7, 3_000_000);
    let head = request("POST", "app", "/large", &[("content-length", "3000000")]);
    assert_same_bytes(&client.send([head, data.clone()].concat()).response().expect(200).body, &data);
    // A tunnel is kept like a connection.
    assert_eq!(application.connections(), 1);

    // What Envoy does not route is refused with a status, and a server of another identity gets nothing.
    mesh.change("app.yaml", &service(right, 1));
    let refused = mesh.get("app", "/");
    assert!(refused.expect(503).text().contains("was refused with 404"), "{}", refused.text());
    mesh.change("app.yaml", &service(wrong, port));
    let refused = mesh.get("app", "/");
    assert!(refused.expect(503).text().contains("tls.certificate_wrong_identity"), "{}", refused.text());
    assert_eq!(application.received().len(), 3);
}
