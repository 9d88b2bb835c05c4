//! Peers of HTTP/2 that fail in the middle of something: nobody else on their connections pays for it.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{ErrorKind, Read as _},
    sync::{Arc, Mutex},
};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    checklist::Sidecar,
    client::request,
    frames::{self, block, code, headers},
    h2::{self, Connection, Opening},
    h2_application::{Application, Hop},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::Upstream,
    wait,
};

on_both_drivers! {
    an_upstream_that_breaks_off_its_answer_costs_that_request_alone
    a_request_of_no_bytes_may_end_in_a_frame_of_its_own
    clients_that_give_up_many_downloads_leave_the_connection_to_others
    an_answer_to_a_request_that_waits_for_credit_is_heard
    a_reset_of_a_tunnel_is_no_end_for_the_upstream
}

fn an_upstream_that_breaks_off_its_answer_costs_that_request_alone(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        let early = headers(stream, block(&[(":status", "103"), ("x-early", "v")]), false);
        let bad: &[(&str, &str)] = match message.fields.value(":path").unwrap_or_default() {
            "/space" => &[(":status", "200"), ("x-a", " v")],
            "/te" => &[(":status", "200"), ("te", "trailers")],
            "/status" => &[(":status", "700")],
            _ => {
                connection.send(headers(stream, block(&[(":status", "200")]), true));
                return;
            }
        };
        // In one write: what follows is there when the head is refused.
        let rest = [headers(stream, block(bad), false), frames::data(stream, "data", false)].concat();
        let _ = connection.try_send([early, rest].concat());
    });
    let hop = Hop::before(driver, application);
    for path in ["/space", "/te", "/status", "/space", "/te", "/status"] {
        let mut client = hop.connect();
        let stream = client.request(&h2::get("echo", path), true);
        assert_eq!(client.response(stream).status(), 502, "{path}");
        client.get("echo", "/behind").expect(200);
    }
    assert!(!hop.proxy.process.output().contains("panicked"), "{}", hop.proxy.process.output());
}

fn a_request_of_no_bytes_may_end_in_a_frame_of_its_own(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let fields = [&h2::request("POST", "echo", "/empty")[..], &[("content-length", "0")]].concat();
        let stream = client.request(&fields, false);
        // The proxy has it, and nothing more.
        client.settle();
        client.send(frames::data(stream, "", true));
        client.response(stream).expect(200);
    }
}

fn clients_that_give_up_many_downloads_leave_the_connection_to_others(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        connection.send(headers(stream, block(&[(":status", "200")]), message.fields.value(":path") != Some("/large")));
        if message.fields.value(":path") == Some("/large") {
            // As much as there is room for, in frames that arrive when nobody wants them any more.
            let _ = connection.fill(stream);
        }
    });
    let hop = Hop::before(driver, application);
    let mut steady = hop.connect();
    steady.get("echo", "/first").expect(200);
    for _ in 0..3 {
        let mut client = Connection::connect_with(hop.proxy.outbound(), &Opening::narrow());
        let before = hop.application.received().len();
        let streams: Vec<u32> = (0..90).map(|_| client.request(&h2::get("echo", "/large"), true)).collect();
        let _ = hop.application.wait_for(before + streams.len());
        let resets: Vec<u8> = streams.iter().flat_map(|&stream| frames::reset(stream, code::CANCEL)).collect();
        client.send(resets);
        steady.get("echo", "/behind").expect(200);
    }
    assert_eq!(hop.application.upstream.connections(), 1, "the shared connection was given up");
}

fn an_answer_to_a_request_that_waits_for_credit_is_heard(driver: Driver) {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let upstream = Upstream::scripted(|peer| {
        let opening = Opening::narrow().with(INITIAL_WINDOW_SIZE, 0);
        let Some(mut connection) = Connection::accept(peer.stream(), &opening) else { return };
        let mut seen = Vec::new();
        while let Some((stream, _)) = connection.accept_stream(&mut seen, |message| !message.fields.0.is_empty()) {
            connection.send(headers(stream, block(&[(":status", "413")]), true));
        }
    });
    let mut world = World::new();
    let cluster = world.cluster("echo", &[upstream.address()]);
    world.protocol(cluster, UpstreamProtocol::Http2);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let body = "b".repeat(1_000);
    let mut client = proxy.connect();
    client.send(request("POST", "echo", "/", &[("content-length", "1000")]));
    client.send(&body);
    assert_eq!(client.response().status, 413);
    let mut client = Connection::connect(proxy.outbound());
    let stream = client.request(&h2::request("POST", "echo", "/"), false);
    client.send(frames::data(stream, &body, true));
    assert_eq!(client.head(stream).status(), 413);
}

/// The example of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn a_reset_of_a_tunnel_is_no_end_for_the_upstream(driver: Driver) {
    let ended = Arc::new(Mutex::new(None));
    let told = Arc::clone(&ended);
    let upstream = Upstream::scripted(move |peer| {
        if peer.head().is_none() {
            return;
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n");
        peer.send(format!("sec-websocket-accept: {ACCEPT}\r\n\r\n"));
        let mut byte = [0; 1];
        let end = peer.stream().read(&mut byte).map_err(|error| error.kind());
        *told.lock().unwrap() = Some(end);
    });
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            world.protocol(cluster, UpstreamProtocol::Http1);
        },
    );
    let mut client = Connection::connect(sidecar.outbound());
    client.settle();
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "echo"),
        (":path", "/chat"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    let stream = client.request(&fields, false);
    assert_eq!(client.head(stream).status(), 200);
    client.send(frames::reset(stream, code::CANCEL));
    let end = wait::until("the end of the tunnel", || ended.lock().unwrap().take());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}
