//! CONNECT opens a tunnel to a host that the configuration knows, on a port that the command line names, and nowhere else.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{net::SocketAddr, process::Command};

use meshring_core::table::model::{Action, ClusterKind, Condition, StringMatch};
use meshring_tests::{
    binaries,
    checklist::{expect_refusal, saying},
    client::Client,
    frames::{block, code, data, headers},
    h2::Connection,
    on_both_drivers,
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, redirect, rule, rule_if},
    tunnel::{Application, Ends, expect_reset, reset},
    upstream::Upstream,
};

on_both_drivers! {
    a_tunnel_leads_to_the_service_that_was_named
    item_54_nothing_is_passed_on_before_the_tunnel_is_open
    a_tunnel_follows_the_rule_without_conditions_only
    a_host_that_nobody_knows_is_404
    an_endpoint_that_refuses_is_503_and_another_one_is_tried
    curl_goes_through_the_tunnel
    a_client_of_http_2_has_tunnels_beside_its_requests
}

fn head(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")
}

fn proxy(driver: Driver, world: World) -> Proxy {
    Proxy::alone_with(&world.snapshot(), |builder| builder.driver(driver).arguments(&["--connect-ports", "443,8443"]))
}

/// A table in which `echo` is these servers.
fn world(endpoints: &[SocketAddr]) -> World {
    let mut world = World::new();
    let cluster = world.cluster("echo", endpoints);
    let forward = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(forward)]);
    world
}

/// Asserts the head that accepts a CONNECT, which has no framing.
fn expect_accepted(client: &mut Client) {
    let head = client.head();
    assert_eq!(head.line, "HTTP/1.1 200 OK");
    let names: Vec<_> = head.fields.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["date"]);
}

fn open(proxy: &Proxy, application: &Application) -> Ends {
    let mut client = proxy.connect();
    client.send(head("echo:443"));
    expect_accepted(&mut client);
    Ends { client, upstream: application.accept() }
}

fn a_tunnel_leads_to_the_service_that_was_named(driver: Driver) {
    let application = Application::start();
    let proxy = proxy(driver, world(&[application.address()]));
    for request in [
        head("echo:443"),
        head("echo:8443"),
        head("ECHO.default.svc.cluster.local:443"),
        "CONNECT echo:443 HTTP/1.0\r\n\r\n".into(),
        // The target names it, whatever Host says (RFC 9112 section 3.2.2).
        "CONNECT echo:443 HTTP/1.1\r\nhost: other:22\r\n\r\n".into(),
    ] {
        let mut client = proxy.connect();
        client.send(&request);
        expect_accepted(&mut client);
        let mut ends = Ends { client, upstream: application.accept() };
        ends.expect_open();
        ends.client.finish_sending();
        ends.upstream.expect_end();
        ends.upstream.send("the end").finish_sending();
        assert_eq!(ends.client.rest().unwrap(), b"the end");
    }
    // Not a byte of ours is in it, and an end is an end.
    let mut ends = open(&proxy, &application);
    ends.client.send("\x16\x03\x01");
    assert_eq!(ends.upstream.bytes(3), b"\x16\x03\x01");
    reset(ends.upstream);
    expect_reset(&mut ends.client);
}

fn item_54_nothing_is_passed_on_before_the_tunnel_is_open(driver: Driver) {
    let application = Application::start();
    let proxy = proxy(driver, world(&[application.address()]));
    let mut client = proxy.connect();
    client.send(head("echo:443") + "at once");
    expect_accepted(&mut client);
    let mut upstream = application.accept();
    assert_eq!(upstream.bytes(7), b"at once");
    Ends { client, upstream }.expect_open();

    // Without a tunnel they go nowhere, and are no request.
    let hidden = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
    for (target, status, code) in
        [("echo:444", 405, "connect_not_configured"), ("nobody.example.com:443", 404, "no_route")]
    {
        let mut client = proxy.connect();
        client.send(head(target) + hidden);
        expect_refusal(&mut client, target.as_bytes(), status, code);
    }
    assert!(application.try_accept().is_none());
}

fn a_tunnel_follows_the_rule_without_conditions_only(driver: Driver) {
    let application = Application::start();
    let mut world = World::new();
    let cluster = world.cluster("echo", &[application.address()]);
    let elsewhere = world.cluster_without("elsewhere", ClusterKind::NoSuchService);
    let any_path = vec![Condition::Uri(StringMatch::Prefix("/".into()))];
    let (forward, other) = (world.forward(&[(cluster, 1)]), world.forward(&[(elsewhere, 1)]));
    world.host("echo", vec![rule_if(any_path.clone(), other.clone()), rule(forward.clone())]);
    world.host("conditional", vec![rule_if(any_path, forward)]);
    world.host("direct", vec![rule(saying("here"))]);
    world.host("gone", vec![rule(Action::Redirect(Box::new(redirect(302))))]);
    world.host("elsewhere", vec![rule(other)]);
    let proxy = proxy(driver, world);
    open(&proxy, &application).expect_open();
    for host in ["conditional", "direct", "gone"] {
        let mut client = proxy.connect();
        client.send(head(&format!("{host}:443")));
        expect_refusal(&mut client, host.as_bytes(), 404, "no_route");
    }
    let mut client = proxy.connect();
    client.send(head("elsewhere:443"));
    expect_refusal(&mut client, b"elsewhere", 503, "no_endpoint");
}

fn a_host_that_nobody_knows_is_404(driver: Driver) {
    let application = Application::start();
    let proxy = proxy(driver, world(&[application.address()]));
    for target in ["nobody:443", "nobody.example.com:8443", "127.0.0.1:443", "[::1]:443"] {
        let mut client = proxy.connect();
        client.send(head(target));
        expect_refusal(&mut client, target.as_bytes(), 404, "no_route");
    }
    assert!(application.try_accept().is_none());
}

fn an_endpoint_that_refuses_is_503_and_another_one_is_tried(driver: Driver) {
    let (application, closed) = (Application::start(), Reserved::new());
    let alone = proxy(driver, world(&[closed.address()]));
    let mut client = alone.connect();
    client.send(head("echo:443"));
    expect_refusal(&mut client, b"CONNECT", 503, "connect_failed");

    let both = proxy(driver, world(&[closed.address(), application.address()]));
    for _ in 0..4 {
        open(&both, &application).expect_open();
    }
}

fn curl_goes_through_the_tunnel(driver: Driver) {
    if !binaries::is_installed("curl") {
        return;
    }
    let upstream = Upstream::echoing();
    let proxy = proxy(driver, world(&[upstream.address()]));
    let address = format!("http://{}", proxy.outbound());
    let run = |options: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--proxy", &address]).args(options);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (is_ok, text) = run(&["--proxytunnel", "http://echo:8443/through?the=tunnel"]);
    assert!(is_ok && text.starts_with("GET /through?the=tunnel HTTP/1.1\n"), "{text}");
    // What goes through it is not ours to change.
    assert!(!text.contains("via:") && !text.contains("x-forwarded-for:"), "{text}");
    assert!(!run(&["--proxytunnel", "http://echo:80/"]).0);
    assert_eq!(upstream.connections(), 1);
}

fn a_client_of_http_2_has_tunnels_beside_its_requests(driver: Driver) {
    let application = Application::start();
    let mut world = world(&[application.address()]);
    world.host("here", vec![rule(saying("here"))]);
    let proxy = proxy(driver, world);
    let mut client = Connection::connect(proxy.outbound());
    let connect = |stream, target, early: &str| {
        let head = block(&[(":method", "CONNECT"), (":authority", target)]);
        [headers(stream, head, false), data(stream, early, false)].concat()
    };
    let mut tunnels = Vec::new();
    for target in ["echo:443", "echo:8443", "ECHO.default.svc.cluster.local:443"] {
        let stream = client.new_stream();
        client.send(connect(stream, target, "at once"));
        let accepted = client.head(stream);
        assert_eq!((accepted.status(), accepted.ended), (200, false));
        // A tunnel has no framing (RFC 9110 section 9.3.6).
        assert!(!accepted.fields.has("content-length") && !accepted.fields.has("transfer-encoding"), "{accepted:?}");
        let mut upstream = application.accept();
        assert_eq!(upstream.bytes(7), b"at once");
        tunnels.push((stream, upstream));
    }
    client.get("here", "/").expect(200);
    // An end is an end, and a reset a reset, of this stream alone.
    let (reset_by_server, mut upstream) = tunnels.pop().unwrap();
    upstream.send("last");
    client.wait("what was sent before the reset", |client| {
        client.message(reset_by_server).body.ends_with(b"last").then_some(())
    });
    reset(upstream);
    assert_eq!(client.response(reset_by_server).reset, Some(code::CONNECT_ERROR));
    for (stream, mut upstream) in tunnels {
        client.body(stream, b"up", true);
        assert_eq!(upstream.bytes(2), b"up");
        upstream.expect_end();
        upstream.send("down").finish_sending();
        assert_eq!(client.response(stream).expect(200).text(), "down");
    }
    // Without a tunnel what comes with it goes nowhere, and is no request.
    for (target, status) in [("echo:444", 405), ("nobody.example.com:443", 404)] {
        let stream = client.new_stream();
        client.send(connect(stream, target, "GET / HTTP/1.1\r\nhost: echo\r\n\r\n"));
        assert_eq!(client.response(stream).status(), status, "{target}");
    }
    client.get("here", "/").expect(200);
    assert!(application.try_accept().is_none());
}
