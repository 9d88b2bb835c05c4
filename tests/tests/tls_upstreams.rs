//! Upstreams that ought to speak TLS, and say something else first.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{io::Write as _, sync::Arc};

use meshring_tests::{
    checklist::contains,
    on_both_drivers,
    pki::{Authority, Leaf},
    proxy::Driver,
    tls::{Mesh, peer_authentication},
    upstream::{Upstream, ok},
    wait,
};
use rustls::{ServerConfig, ServerConnection};
use tempfile::TempDir;

on_both_drivers! {
    cve_2026_1642_what_comes_before_the_handshake_is_no_response
}

/// A service outside of the mesh, over TLS.
fn outside(name: &str, upstream: &Upstream, root: &str) -> String {
    let address = upstream.address();
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - address: {}
    ports: {{http: {}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {name}.example.com
  trafficPolicy:
    tls: {{mode: SIMPLE, caCertificates: {root}, sni: outside.example.com}}
",
        address.ip(),
        address.port()
    )
}

/// When a server says in plain text what it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Never,
    BeforeTheHello,
    InItsPlace,
    BeforeTheAnswer,
    InTheMiddle,
}

/// A server of TLS, with something in plain text beside it.
fn server(config: &Arc<ServerConfig>, when: When) -> Upstream {
    let config = Arc::clone(config);
    let evil = ok("evil");
    Upstream::scripted(move |peer| {
        let mut socket = peer.stream();
        if when == When::BeforeTheHello {
            let _ = socket.write_all(&evil);
        }
        let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        while !tls.wants_write() {
            if !matches!(tls.read_tls(&mut socket), Ok(1..)) || tls.process_new_packets().is_err() {
                return;
            }
        }
        if matches!(when, When::InItsPlace | When::BeforeTheAnswer) {
            let _ = socket.write_all(&evil);
        }
        if when == When::InItsPlace {
            return;
        }
        let mut flight = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut flight).unwrap();
        }
        if when == When::InTheMiddle {
            // Behind its first record.
            let end = 5 + usize::from(u16::from_be_bytes([flight[3], flight[4]]));
            flight.splice(end..end, evil.iter().copied());
        }
        let _ = socket.write_all(&flight);
        while tls.is_handshaking() {
            if tls.complete_io(&mut socket).is_err() {
                return;
            }
        }
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let _ = stream.write_all(&ok("good"));
        let _ = stream.flush();
    })
}

fn cve_2026_1642_what_comes_before_the_handshake_is_no_response(driver: Driver) {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new("outside");
    let (root, _) = authority.write(dir.path(), "outside");
    let (chain, key) = authority.issue(&Leaf::server(&["outside.example.com"])).certified();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let servers = [
        ("never", When::Never),
        ("before", When::BeforeTheHello),
        ("instead", When::InItsPlace),
        ("then", When::BeforeTheAnswer),
        ("middle", When::InTheMiddle),
    ]
    .map(|(name, when)| (name, when, server(&config, when)));
    let services: String =
        servers.iter().map(|(name, _, upstream)| outside(name, upstream, &root.display().to_string())).collect();
    let application = Upstream::saying("here");
    let mode = peer_authentication("STRICT", "");
    let mesh = Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode), ("outside.yaml", &services)]);
    for (name, when, _) in &servers {
        let host = format!("{name}.example.com");
        if *when == When::Never {
            assert_eq!(mesh.get(&host, "/").expect(200).text(), "good");
            continue;
        }
        let mut client = mesh.client.connect();
        for _ in 0..2 {
            let response = client.get(&host, "/");
            let text = response.expect(503).text();
            assert!(text.contains("(tls.") && !contains(text.as_bytes(), b"evil"), "{name}: {text}");
            assert!(!response.fields.has("evil"));
        }
        // What was left over of it is nobody's response.
        client.get("reviews", "/").expect(200);
    }
    wait::until("the reason", || mesh.client.process.line("upstream: "));
}
