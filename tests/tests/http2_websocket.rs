//! WebSocket over either version of HTTP on either side (RFC 6455, RFC 8441), with libraries that others wrote at both ends.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    checklist::Sidecar,
    client::Client,
    frames::{self, block, code, data, headers},
    h2::{Connection, Opening},
    h2_application::Hop,
    on_both_drivers,
    peers::{self, Server},
    proxy::{Driver, Proxy},
    table::{World, rule},
    tls::{Mesh, peer_authentication},
    tunnel::reset,
    upstream::Upstream,
    wait,
};
use serde_json::json;

on_both_drivers! {
    messages_pass_in_any_mix_of_versions
    ws_of_node_talks_in_any_mix_of_versions_and_with_another_library
    messages_pass_through_two_sidecars_that_prove_who_they_are
    an_extended_connect_is_translated_and_nothing_else_of_it_leaks
    an_extended_connect_that_is_malformed_ends_its_stream
    item_54_bytes_behind_an_extended_connect_wait_for_its_200
    a_server_that_breaks_off_is_cancel_to_a_client_of_http_2
    a_client_that_breaks_off_is_cancel_to_a_server_of_http_2
}

/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3).
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

fn messages_pass_in_any_mix_of_versions(driver: Driver) {
    let Some(python) = peers::python() else { return };
    for served in ["h1", "h2"] {
        let server = Server::start(&python, "ws_peer.py", &[served]);
        let proxy = sidecar_of(&server, served, driver);
        for spoken in ["h1", "h2"] {
            let arguments = [spoken, &proxy.outbound().to_string(), "echo", "/chat?room=1"];
            let told = peers::run(&python, "ws_peer.py", &arguments);
            let expected = json!({"subprotocol": "judge.echo", "same": 14, "of": 14, "code": 4001});
            assert_eq!(told, [expected], "{spoken} to {served}: {}", server.process.output());
        }
        server.wait_for("event", "closed", 2);
        for request in server.wait_for("event", "request", if served == "h2" { 2 } else { 0 }) {
            let fields = &request["headers"];
            assert_eq!((&fields[":path"], &fields[":protocol"]), (&json!("/chat?room=1"), &json!("websocket")));
            for of_http1 in ["sec-websocket-key", "upgrade", "connection", "host"] {
                assert!(fields.get(of_http1).is_none(), "{fields}");
            }
        }
        assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
    }
}

/// What serves in place of an application, over one version of HTTP.
fn sidecar_of(server: &Server, served: &str, driver: Driver) -> Proxy {
    let protocol = if served == "h2" { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
    let mut world = World::new();
    let cluster = world.cluster("echo", &[server.address]);
    world.protocol(cluster, protocol);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    Proxy::alone(&world.snapshot(), driver)
}

fn ws_of_node_talks_in_any_mix_of_versions_and_with_another_library(driver: Driver) {
    const WS: &str = "ws_peer.cjs";
    const WEBSOCKETS: &str = "ws_peer.py";
    let (Some(node), Some(python)) = (peers::node(), peers::python()) else { return };
    for (server_script, client_script) in [(WS, WS), (WS, WEBSOCKETS), (WEBSOCKETS, WS)] {
        let interpreter = |script| if script == WS { &node } else { &python };
        for served in ["h1", "h2"] {
            let server = Server::start(interpreter(server_script), server_script, &[served]);
            let proxy = sidecar_of(&server, served, driver);
            for spoken in ["h1", "h2"] {
                let what = format!("{client_script} in {spoken} to {server_script} in {served}");
                let arguments = [spoken, &proxy.outbound().to_string(), "echo", "/chat?room=1"];
                let of = if client_script == WS { 16 } else { 14 };
                let told = peers::run(interpreter(client_script), client_script, &arguments);
                let expected = json!({"subprotocol": "judge.echo", "same": of, "of": of, "code": 4001});
                assert_eq!(told, [expected], "{what}: {}", server.process.output());
                if (server_script, client_script) == (WS, WS) {
                    // The server's code and reason come as it has sent them, too.
                    let told = peers::run_role(&node, WS, "leave", &arguments);
                    assert_eq!(told, [json!({"code": 4002, "reason": "as you wish"})], "{what}");
                }
            }
            let mut codes =
                if (server_script, client_script) == (WS, WS) { [4001, 4002].repeat(2) } else { [4001].repeat(2) };
            codes.sort_unstable();
            let closed = server.wait_for("event", "closed", codes.len());
            let mut told: Vec<_> = closed.iter().filter_map(|line| line["code"].as_u64()).collect();
            told.sort_unstable();
            assert_eq!(told, codes, "{client_script} to {server_script} in {served}");
            if (server_script, client_script) == (WS, WS) {
                server.wait_for("event", "ping", 2);
            }
            assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
        }
    }
}

fn messages_pass_through_two_sidecars_that_prove_who_they_are(driver: Driver) {
    let Some(python) = peers::python() else { return };
    let server = Server::start(&python, "ws_peer.py", &["h1"]);
    let mesh = Mesh::start(driver, &[server.address], &[("mode.yaml", &peer_authentication("STRICT", ""))]);
    for spoken in ["h1", "h2"] {
        let arguments = [spoken, &mesh.client.outbound().to_string(), "reviews", "/chat?room=1"];
        let told = peers::run(&python, "ws_peer.py", &arguments);
        let expected = json!({"subprotocol": "judge.echo", "same": 14, "of": 14, "code": 4001});
        assert_eq!(told, [expected], "{spoken}: {}", server.process.output());
    }
    server.wait_for("event", "closed", 2);
    assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
    assert!(mesh.server_metric("downstream_tls_handshakes_total") > 0);
    assert_eq!(mesh.server_metric("tunnels_total"), 2);
}

const TUNNEL: [(&str, &str); 6] = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":authority", "echo"),
    (":path", "/chat"),
    ("sec-websocket-version", "13"),
];

/// A sidecar before a scripted server.
fn before(upstream: Upstream, protocol: UpstreamProtocol, driver: Driver) -> Sidecar {
    let speaks = |world: &mut World, cluster| {
        world.protocol(cluster, protocol);
    };
    Sidecar::configured(driver, upstream, |builder| builder, speaks)
}

fn an_extended_connect_is_translated_and_nothing_else_of_it_leaks(driver: Driver) {
    // Accepts as RFC 6455 says, but only what is keyed right; then sends bytes back.
    let upstream = Upstream::scripted(|peer| {
        let Some(head) = peer.head() else { return };
        let key = head.fields.value("sec-websocket-key").unwrap_or_default().to_owned();
        let is_right = head.line == "GET /chat HTTP/1.1" && key.len() == 24 && !head.fields.has("transfer-encoding");
        if !is_right {
            peer.send(format!("HTTP/1.1 400 Bad\r\ncontent-length: 0\r\nx-line: {}\r\n\r\n", head.line));
            return;
        }
        // Any other value than the key's own digest is no acceptance.
        peer.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n");
        peer.send("sec-websocket-accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n");
        peer.wait_for_end();
    });
    let sidecar = before(upstream, UpstreamProtocol::Http1, driver);
    let mut client = Connection::connect(sidecar.outbound());
    client.settle();
    let stream = client.request(&TUNNEL, false);
    let answer = client.head(stream);
    assert!(answer.reset.is_some() || answer.status() == 502, "a false acceptance is passed on: {answer:?}");
}

fn an_extended_connect_that_is_malformed_ends_its_stream(driver: Driver) {
    let hop = Hop::new(driver);
    for missing in [":scheme", ":path"] {
        let fields: Vec<_> = TUNNEL.into_iter().filter(|(name, _)| *name != missing).collect();
        hop.resets(&block(&fields), &format!("without {missing}"));
    }
    for protocol in ["h2c", "web socket", ""] {
        let fields = TUNNEL.map(|(name, value)| (name, if name == ":protocol" { protocol } else { value }));
        hop.breaks(&block(&fields), &format!("protocol {protocol:?}"));
    }
    let plain = [(":method", "CONNECT"), (":authority", "echo:80")];
    let mut client = hop.connect();
    let stream = client.request(&plain, false);
    assert_eq!(client.head(stream).status(), 405, "item 55");
    let with_path = [(":method", "CONNECT"), (":authority", "echo:80"), (":path", "/"), (":scheme", "http")];
    let stream = client.request(&with_path, false);
    client.response(stream).expect_reset(code::PROTOCOL_ERROR);
}

fn item_54_bytes_behind_an_extended_connect_wait_for_its_200(driver: Driver) {
    let may_look = Arc::<AtomicBool>::default();
    let seen = Arc::clone(&may_look);
    let upstream = Upstream::scripted(move |peer| {
        let opening = Opening::default().with(ENABLE_CONNECT_PROTOCOL, 1);
        let Some(mut connection) = Connection::accept(peer.stream(), &opening) else { return };
        let Some((stream, _)) = connection.accept_stream(&mut Vec::new(), |message| !message.fields.0.is_empty())
        else {
            return;
        };
        connection.send(headers(stream, block(&[(":status", "103")]), false));
        wait::until("the client to have sent more", || seen.load(Ordering::SeqCst).then_some(()));
        // Whatever the proxy has sent by now comes before the answer to a PING.
        connection.settle();
        let status = if connection.message(stream).body.is_empty() { "200" } else { "500" };
        connection.send(headers(stream, block(&[(":status", status)]), false));
        connection.wait("the bytes", |connection| connection.message(stream).body.ends_with(b"more").then_some(()));
        let body = connection.message(stream).body;
        connection.body(stream, &body, true);
        peer.wait_for_end();
    });
    let sidecar = before(upstream, UpstreamProtocol::Http2, driver);
    let mut client = Connection::connect(sidecar.outbound());
    let stream = client.new_stream();
    client.send([headers(stream, block(&TUNNEL), false), data(stream, "early, ", false)].concat());
    client.wait("103", |client| (!client.message(stream).interim.is_empty()).then_some(()));
    client.send(data(stream, "more", false)).settle();
    may_look.store(true, Ordering::SeqCst);
    assert_eq!(client.head(stream).status(), 200, "bytes before the 200");
    assert_eq!(client.response(stream).text(), "early, more");
}

/// A server of HTTP/2 that opens one tunnel, sends "here" through it, and does as it is told.
fn tunnelling(then: impl Fn(&mut Connection<TcpStream>, u32) + Send + Sync + 'static) -> Upstream {
    Upstream::scripted(move |peer| {
        let opening = Opening::default().with(ENABLE_CONNECT_PROTOCOL, 1);
        let Some(mut connection) = Connection::accept(peer.stream(), &opening) else { return };
        let Some((stream, _)) = connection.accept_stream(&mut Vec::new(), |message| !message.fields.0.is_empty())
        else {
            return;
        };
        connection.send(headers(stream, block(&[(":status", "200")]), false));
        connection.body(stream, b"here", false);
        then(&mut connection, stream);
        peer.wait_for_end();
    })
}

// RFC 8441 section 5: a reset of TCP is a reset of the stream with CANCEL.
fn a_server_that_breaks_off_is_cancel_to_a_client_of_http_2(driver: Driver) {
    let http1 = Upstream::scripted(|peer| {
        let Some(head) = peer.head() else { return };
        let key = head.fields.value("sec-websocket-key").unwrap_or_default();
        let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
        peer.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {}\r\n\r\nhere",
            STANDARD.encode(sum.as_ref())
        ));
        assert_eq!(peer.some(), b"break");
        peer.reset();
    });
    let http2 = tunnelling(|connection, stream| {
        connection.wait("the word", |connection| (connection.message(stream).body == b"break").then_some(()));
        connection.send(frames::reset(stream, code::INTERNAL_ERROR));
    });
    for (upstream, protocol) in [(http1, UpstreamProtocol::Http1), (http2, UpstreamProtocol::Http2)] {
        let sidecar = before(upstream, protocol, driver);
        let mut client = Connection::connect(sidecar.outbound());
        let stream = client.request(&TUNNEL, false);
        client.wait("the tunnel", |client| (client.message(stream).body == b"here").then_some(()));
        client.body(stream, b"break", false);
        let broken = client.response(stream);
        assert_eq!((broken.status(), broken.ended, broken.reset), (200, false, Some(code::CANCEL)), "{protocol:?}");
        // Its connection goes on.
        let beside = client.request(&[(":method", "CONNECT"), (":authority", "echo:80")], false);
        assert_eq!(client.head(beside).status(), 405);
    }
}

fn a_client_that_breaks_off_is_cancel_to_a_server_of_http_2(driver: Driver) {
    for is_http1 in [true, false] {
        let told = Arc::new(AtomicU32::new(u32::MAX));
        let tell = Arc::clone(&told);
        let upstream = tunnelling(move |connection, stream| {
            let end = connection.response(stream);
            assert!(!end.ended, "passed off as whole: {end:?}");
            tell.store(end.reset.unwrap_or_default(), Ordering::SeqCst);
        });
        let sidecar = before(upstream, UpstreamProtocol::Http2, driver);
        if is_http1 {
            let mut client = Client::connect(sidecar.outbound());
            client.send("GET /chat HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: websocket\r\n");
            client.send("sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
            assert!(client.head().line.starts_with("HTTP/1.1 101 "));
            assert_eq!(client.bytes(4), b"here");
            reset(client);
        } else {
            let mut client = Connection::connect(sidecar.outbound());
            let stream = client.request(&TUNNEL, false);
            client.wait("the tunnel", |client| (client.message(stream).body == b"here").then_some(()));
            client.send(frames::reset(stream, code::INTERNAL_ERROR)).settle();
        }
        let code = wait::until("the server to be told", || match told.load(Ordering::SeqCst) {
            u32::MAX => None,
            code => Some(code),
        });
        assert_eq!(code, code::CANCEL, "HTTP/1.1: {is_http1}");
    }
}
