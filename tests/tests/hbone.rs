//! HBONE: tunnels over mutual TLS to the applications of a workload, for whom its policies let in.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::net::SocketAddr;

use meshring_tests::{
    client::Client,
    on_both_drivers,
    pki::Leaf,
    proxy::Driver,
    tls::{Caller, Mesh, Stream, expect_alert, peer_authentication},
    tunnel::Application,
    wait,
};
use rustls::AlertDescription;

on_both_drivers! {
    a_tunnel_leads_to_the_application_of_its_port
    a_connection_of_http_2_holds_many_tunnels
    nobody_without_an_identity_of_the_mesh_gets_a_tunnel
    a_tunnel_leads_nowhere_else
    policies_judge_a_tunnel_as_a_connection
}

fn start(driver: Driver, applications: &[SocketAddr], policies: &str) -> Mesh {
    // Plain text is let in elsewhere: a tunnel never is.
    let permissive = peer_authentication("PERMISSIVE", "");
    let files = [("mode.yaml", &*permissive), ("policies.yaml", policies)];
    Mesh::configured(driver, applications, &files, |server| server.hbone())
}

fn head(target: impl std::fmt::Display) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")
}

fn connect(mesh: &Mesh, account: &str) -> Client<Stream> {
    mesh.caller(&Leaf::workload(account)).connect(mesh.server.hbone())
}

/// Asserts a refusal of a tunnel and the end of the connection.
#[track_caller]
fn expect_refused(mut client: Client<Stream>, request: &str, status: u16, code: &str) {
    // What is behind it is meant for the tunnel.
    client.send(format!("{request}GET / HTTP/1.1\r\nhost: reviews\r\n\r\n"));
    let response = client.response();
    assert!(response.expect(status).text().contains(&format!("({code})")), "{}", response.text());
    client.expect_end();
}

/// Asserts that there is a tunnel for somebody to an application.
#[track_caller]
fn expect_tunnel(mut client: Client<Stream>, application: &Application) {
    client.send(head(application.address()) + "up");
    assert_eq!(client.head().line, "HTTP/1.1 200 OK");
    let mut behind = application.accept();
    assert_eq!(behind.bytes(2), b"up");
    behind.send("down").finish_sending();
    assert_eq!(client.bytes(4), b"down");
    client.expect_end();
}

fn a_tunnel_leads_to_the_application_of_its_port(driver: Driver) {
    let (one, two) = (Application::start(), Application::start());
    let mesh = start(driver, &[one.address(), two.address()], "");
    expect_tunnel(connect(&mesh, "client"), &one);
    expect_tunnel(connect(&mesh, "client"), &two);
    let tunnels = "meshring_tunnels_total";
    wait::until("two tunnels to be counted", || {
        (mesh.control.metric(tunnels, "default/reviews-v1") == 2).then_some(())
    });
}

fn a_connection_of_http_2_holds_many_tunnels(driver: Driver) {
    // As the ztunnel of Istio's ambient mode does it: CONNECT with nothing but an authority (RFC 9113 section 8.5).
    let applications = [Application::start(), Application::start()];
    let addresses = applications.each_ref().map(Application::address);
    let mesh = start(driver, &addresses, "");
    let mut client = mesh.caller(&Leaf::workload("client")).connect_http2(mesh.server.hbone());
    let mut tunnels = Vec::new();
    for (application, address) in applications.iter().zip(addresses).cycle().take(6) {
        let authority = address.to_string();
        let stream = client.request(&[(":method", "CONNECT"), (":authority", &authority)], false);
        assert_eq!(client.head(stream).status(), 200);
        tunnels.push((stream, application.accept()));
    }
    for (stream, behind) in &mut tunnels {
        let up = format!("up {stream}");
        client.body(*stream, up.as_bytes(), true);
        assert_eq!(behind.bytes(up.len()), up.as_bytes());
        behind.expect_end();
        behind.send(format!("down {stream}")).finish_sending();
    }
    for (stream, _) in &tunnels {
        assert_eq!(client.response(*stream).text(), format!("down {stream}"));
    }
    let stranger = Application::start();
    let authority = stranger.address().to_string();
    let stream = client.request(&[(":method", "CONNECT"), (":authority", &authority)], false);
    assert_eq!(client.response(stream).status(), 404);
    assert!(stranger.try_accept().is_none());
}

fn nobody_without_an_identity_of_the_mesh_gets_a_tunnel(driver: Driver) {
    let application = Application::start();
    let mesh = start(driver, &[application.address()], "");
    let mut plain = Client::connect(mesh.server.hbone());
    plain.send(head(application.address()));
    let response = plain.response();
    assert!(response.expect(403).text().contains("(tls_required)"), "{}", response.text());
    let refused = Caller::new(&mesh.authority, None).refused(mesh.server.hbone());
    expect_alert(&refused, AlertDescription::CertificateRequired);
    assert!(application.try_accept().is_none());
}

fn a_tunnel_leads_nowhere_else(driver: Driver) {
    let (application, stranger) = (Application::start(), Application::start());
    let mesh = start(driver, &[application.address()], "");
    let port = application.address().port();
    for target in [
        stranger.address().to_string(),
        mesh.server.inbound()[0].to_string(),
        format!("10.1.2.3:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        format!("reviews:{port}"),
        format!("localhost:{port}"),
    ] {
        expect_refused(connect(&mesh, "client"), &head(&target), 404, "no_route");
    }
    // Only tunnels come this way, and they come only this way.
    expect_refused(connect(&mesh, "client"), "GET /x HTTP/1.1\r\nhost: reviews\r\n\r\n", 405, "connect_not_configured");
    let inbound = mesh.caller(&Leaf::workload("client")).connect(mesh.inbound());
    expect_refused(inbound, &head(application.address()), 405, "connect_not_configured");
    assert!(application.try_accept().is_none() && stranger.try_accept().is_none());
}

/// AuthorizationPolicy for `reviews`.
fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         selector: {{matchLabels: {{app: reviews}}}}\n  action: {action}\n  rules:\n{rules}"
    )
}

fn policies_judge_a_tunnel_as_a_connection(driver: Driver) {
    let application = Application::start();
    let port = application.address().port();
    let from = |account: &str| {
        format!("  - from: [{{source: {{principals: [\"cluster.local/ns/default/sa/{account}\"]}}}}]\n")
    };
    let to_port = format!("    to: [{{operation: {{ports: [\"{port}\"]}}}}]\n");
    let to_path = "    to: [{operation: {paths: [\"/*\"]}}]\n";
    let allow = from("friend") + &to_port + &from("both") + &from("reader") + to_path;
    let deny = from("both") + to_path;
    let mesh =
        start(driver, &[application.address()], &(policy("allow", "ALLOW", &allow) + &policy("deny", "DENY", &deny)));
    expect_tunnel(connect(&mesh, "friend"), &application);
    // Nobody allows the first one. A rule about paths does not allow a tunnel, in which there are none, and one that denies some
    // paths denies it.
    for account in ["stranger", "reader", "both"] {
        expect_refused(connect(&mesh, account), &head(application.address()), 403, "access_denied");
    }
    assert!(application.try_accept().is_none());
}
