//! Envoy in the place of the other sidecar: as a client of our inbound listener, and as the server behind our outbound one, with
//! certificates of one authority. Each side checks the other's SPIFFE id, and each refuses who is not meant.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{net::SocketAddr, path::PathBuf};

use meshring_tests::{
    client::{Client, Response},
    envoy::{Envoy, http, mutual_chain, mutual_cluster, tls_context},
    generate::{assert_same_bytes, body},
    on_both_drivers, peers,
    pki::{Authority, Leaf, spiffe},
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    upstream::{Received, Upstream, response},
    wait,
};
use serde_json::{Value, json};
use tempfile::TempDir;

on_both_drivers! {
    envoy_is_a_client_of_a_sidecar
    envoy_is_the_server_of_a_sidecar
}

const FOREIGN: &str = "spiffe://foreign.example/ns/default/sa";

/// A server of mutual TLS that tells in a field whom it has seen.
fn mutual_server(context: Value) -> Value {
    let routes = json!([{
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "envoy"}},
        "response_headers_to_add": [{"header": {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}],
    }]);
    mutual_chain(http(&routes, &json!({})), context, &["h2", "http/1.1"])
}

/// Sends everything that was asked for back, and who has asked in a field.
fn answer(request: &Received) -> Vec<u8> {
    let caller = request.fields.value("x-forwarded-client-cert").unwrap_or_default();
    response(200, &[("x-caller", caller)], &request.body)
}

fn envoy_is_a_client_of_a_sidecar(driver: Driver) {
    let Some(program) = peers::envoy() else { return };
    let application = Upstream::answering(answer);
    let strict = peer_authentication("STRICT", "");
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &strict)]);
    let dir = TempDir::new().unwrap();
    let strangers = Authority::new("strangers");
    let (root, _) = mesh.authority.write(dir.path(), "root");
    let issue = |name: &str, authority: &Authority, id: String| authority.issue(&Leaf::uri(id)).write(dir.path(), name);
    let visitor = issue("visitor", &mesh.authority, spiffe("visitor"));
    let foreign = issue("foreign", &mesh.authority, format!("{FOREIGN}/visitor"));
    let stranger = issue("stranger", &strangers, spiffe("visitor"));
    let reviews = spiffe("reviews");
    let cluster = |name: &str, certified: &(PathBuf, PathBuf), peer: &str, is_http2: bool| {
        mutual_cluster(name, mesh.inbound(), tls_context(certified, &root, peer), is_http2)
    };
    let clusters = [
        cluster("http1", &visitor, &reviews, false),
        cluster("http2", &visitor, &reviews, true),
        cluster("another", &visitor, &spiffe("another"), false),
        cluster("foreign", &foreign, &reviews, false),
        cluster("stranger", &stranger, &reviews, false),
    ];
    let route = |cluster: &Value| {
        let name = cluster["name"].as_str().unwrap();
        json!({"match": {"prefix": format!("/{name}")}, "route": {"cluster": name, "host_rewrite_literal": "reviews"}})
    };
    let routes: Value = clusters.iter().map(route).collect();
    let envoy = Envoy::start(&program, dir, &[json!({"filters": http(&routes, &json!({}))})], &clusters);

    let data = body(3, 1_000_000);
    for way in ["/http1", "/http2"] {
        let mut client = Client::connect(envoy.address(0));
        for _ in 0..2 {
            let length = [("content-length", "1000000")];
            client.send(meshring_tests::client::request("POST", "reviews", way, &length)).send(&data);
            let response = client.response();
            assert_same_bytes(&response.expect(200).body, &data);
            let caller = response.fields.value("x-caller").unwrap();
            assert!(caller.ends_with(&format!("URI={}", spiffe("visitor"))), "{way}: {caller}");
        }
    }
    let seen = application.received().len();
    let refused = |way: &str| Client::connect(envoy.address(0)).get("reviews", way).expect(503).status;
    // Envoy does not take our sidecar for somebody else.
    refused("/another");
    mesh.wait_for_log(&["tls.alert_bad_certificate"]);
    // Nor does our sidecar take Envoy for one of the mesh where it is not: a trust domain has roots of its own.
    let before = mesh.server_metric("downstream_tls_refused_total");
    refused("/foreign");
    refused("/stranger");
    mesh.wait_for_log(&["tls.certificate_unknown_issuer"]);
    assert!(mesh.wait_for_metric_above("downstream_tls_refused_total", before + 1) >= before + 2);
    assert_eq!(application.received().len(), seen, "a refused request has reached the application");
}

/// A service whose only endpoint is an Envoy with a sidecar's label.
fn service(name: &str, address: SocketAddr) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}]
  endpoints:
  - address: {}
    ports: {{http: {}}}
    labels: {{security.istio.io/tlsMode: istio}}
    serviceAccount: envoy
",
        address.ip(),
        address.port()
    )
}

fn envoy_is_the_server_of_a_sidecar(driver: Driver) {
    let Some(program) = peers::envoy() else { return };
    let application = Upstream::saying("here");
    let mesh = Mesh::start(driver, &[application.address()], &[]);
    let dir = TempDir::new().unwrap();
    let strangers = Authority::new("strangers");
    let (root, _) = mesh.authority.write(dir.path(), "root");
    let server = |name: &str, authority: &Authority, id: String, peer: &str| {
        let certified = authority.issue(&Leaf::uri(id)).write(dir.path(), name);
        mutual_server(tls_context(&certified, &root, peer))
    };
    let client = spiffe("client");
    let chains = [
        server("right", &mesh.authority, spiffe("envoy"), &client),
        server("another", &mesh.authority, spiffe("another"), &client),
        server("foreign", &mesh.authority, format!("{FOREIGN}/envoy"), &client),
        server("stranger", &strangers, spiffe("envoy"), &client),
        server("choosy", &mesh.authority, spiffe("envoy"), &spiffe("other")),
    ];
    let envoy = Envoy::start(&program, dir, &chains, &[]);
    let names = ["right", "another", "foreign", "stranger", "choosy"];
    let services: String = names.iter().enumerate().map(|(at, name)| service(name, envoy.address(at))).collect();
    mesh.change("envoy.yaml", &services);

    let mut connection = mesh.client.connect();
    for _ in 0..3 {
        let response = connection.get("right", "/");
        assert_eq!(response.expect(200).text(), "envoy");
        assert_eq!(response.fields.value("x-peer"), Some(client.as_str()));
    }
    let refused = |name: &str| -> Response { mesh.get(name, "/") };
    for (name, reason) in [
        ("another", "tls.certificate_wrong_identity"),
        // A trust domain has roots of its own.
        ("foreign", "tls.certificate_unknown_issuer"),
        ("stranger", "tls.certificate_unknown_issuer"),
    ] {
        let response = refused(name);
        assert!(response.expect(503).text().contains(reason), "{name}: {}", response.text());
    }
    // In TLS 1.3 a server's word on our certificate comes behind the handshake.
    let response = refused("choosy");
    assert!(matches!(response.status, 502 | 503), "{} {}", response.status, response.text());
    wait::until("the alert in the log", || mesh.client.process.line("alert"));
    assert_eq!(envoy.process.line("critical"), None);
}
