//! HTTP/2 connections that end: no request is lost by a GOAWAY of either side, nor by a stream that was refused.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    frames::{self, ACK, PING, block, code, headers},
    h2::{Connection, Opening, get, request},
    h2_application::{Application, Hop},
    load::{Load, is_ok},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::Upstream,
};
use rustix::process::Signal;

on_both_drivers! {
    a_server_that_goes_away_in_mid_traffic_loses_no_request
    a_server_that_announces_its_end_gets_no_further_requests
    item_67_what_lies_above_the_last_stream_is_sent_again_a_post_too
    item_67_a_refused_stream_is_tried_again_a_post_too
    a_request_that_may_have_been_processed_is_not_sent_again
    item_82_a_proxy_that_drains_says_so_twice_and_finishes_its_streams
}

const OK: &[(&str, &str)] = &[(":status", "200")];

fn proxy(upstream: &Upstream, driver: Driver) -> Proxy {
    let mut world = World::new();
    let cluster = world.cluster("echo", &[upstream.address()]);
    world.protocol(cluster, UpstreamProtocol::Http2);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    Proxy::alone(&world.snapshot(), driver)
}

fn a_server_that_goes_away_in_mid_traffic_loses_no_request(driver: Driver) {
    const REQUESTS_PER_CONNECTION: usize = 50;
    let upstream = Upstream::scripted(|peer| {
        let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
        for served in 1.. {
            let Some((stream, _)) = connection.next_request() else { return };
            if served == REQUESTS_PER_CONNECTION {
                connection.send(frames::goaway(stream, code::NO_ERROR));
            }
            let _ = connection.try_send(headers(stream, block(OK), true));
            if served == REQUESTS_PER_CONNECTION {
                break;
            }
        }
        // Whatever else has come was not processed. The client closes.
        connection.end();
    });
    let proxy = proxy(&upstream, driver);
    let post = b"POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 4\r\n\r\nbody";
    let load = Load::start(proxy.outbound(), 8, post.to_vec(), is_ok);
    load.pass(2_000);
    load.finish();
    assert!(upstream.connections() >= 40, "{} connections", upstream.connections());
}

fn a_server_that_announces_its_end_gets_no_further_requests(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        if message.fields.value(":path") == Some("/last") {
            connection.send(frames::goaway(0x7fff_ffff, code::NO_ERROR));
        }
        connection.send(headers(stream, block(OK), true));
    });
    let hop = Hop::before(driver, application);
    let mut client = hop.connect();
    client.get("echo", "/first").expect(200);
    client.get("echo", "/last").expect(200);
    for _ in 0..3 {
        client.get("echo", "/next").expect(200);
    }
    assert_eq!(hop.application.connections_used(), [0, 0, 1, 1, 1]);
    assert!(client.goaways.is_empty(), "the client's connection has nothing to do with it: {client:?}");
}

fn item_67_what_lies_above_the_last_stream_is_sent_again_a_post_too(driver: Driver) {
    const HELD: usize = 10;
    // The first connection takes three of ten requests, and says so once all ten are here.
    let upstream = Upstream::scripted(|peer| {
        let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
        if peer.connection > 0 {
            while let Some((stream, _)) = connection.next_request() {
                let _ = connection.try_send(headers(stream, block(&[(":status", "200"), ("x-from", "second")]), true));
            }
            return;
        }
        let mut streams = Vec::new();
        while streams.len() < HELD {
            let Some((stream, _)) = connection.next_request() else { return };
            streams.push(stream);
        }
        connection.send(frames::goaway(streams[2], code::NO_ERROR));
        for stream in &streams[..3] {
            connection.send(headers(*stream, block(&[(":status", "200"), ("x-from", "first")]), true));
        }
        connection.end();
    });
    let proxy = proxy(&upstream, driver);
    let mut client = Connection::connect(proxy.outbound());
    let streams: Vec<_> = (0..HELD).map(|_| client.request(&request("POST", "echo", "/"), true)).collect();
    let mut from = Vec::new();
    for stream in streams {
        from.push(client.response(stream).expect(200).fields.value("x-from").unwrap().to_owned());
    }
    assert_eq!(from.iter().filter(|from| *from == "first").count(), 3, "{from:?}");
    assert_eq!(upstream.connections(), 2);
}

fn item_67_a_refused_stream_is_tried_again_a_post_too(driver: Driver) {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let application = Application::answering(move |connection, stream, message| {
        let path = message.fields.value(":path").unwrap().to_owned();
        let is_first = seen.lock().unwrap().insert(path.clone());
        if is_first || path == "/never" {
            connection.send(frames::reset(stream, code::REFUSED_STREAM));
        } else {
            connection.send(headers(stream, block(OK), true));
        }
    });
    let hop = Hop::before(driver, application);
    let mut client = hop.connect();
    for path in ["/1", "/2", "/3"] {
        let stream = client.request(&request("POST", "echo", path), true);
        client.response(stream).expect(200);
    }
    hop.proxy.connect().send("POST /4 HTTP/1.1\r\nhost: echo\r\ncontent-length: 0\r\n\r\n").response().expect(200);
    // Not for ever: then the client may try, since nothing of its request was processed.
    let stream = client.request(&request("POST", "echo", "/never"), true);
    let answer = client.response(stream);
    let is_told = answer.reset == Some(code::REFUSED_STREAM) || matches!(answer.status(), 502 | 503);
    assert!(is_told, "{answer:?}");
    let tries = hop.application.received().iter().filter(|m| m.fields.value(":path") == Some("/never")).count();
    assert!((2..=4).contains(&tries), "{tries} times");
}

fn a_request_that_may_have_been_processed_is_not_sent_again(driver: Driver) {
    // Takes a POST and closes, or says that it has processed it and closes.
    let upstream = Upstream::scripted(|peer| {
        let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
        let Some((stream, _)) = connection.next_request() else { return };
        match peer.connection % 3 {
            0 => {}
            1 => drop(connection.try_send(frames::goaway(stream, code::INTERNAL_ERROR))),
            _ => drop(connection.try_send(frames::reset(stream, code::INTERNAL_ERROR))),
        }
        connection.settle_politely();
    });
    let proxy = proxy(&upstream, driver);
    for round in 1..=3 {
        let mut client = Connection::connect(proxy.outbound());
        let stream = client.request(&request("POST", "echo", "/once"), true);
        assert_eq!(client.response(stream).status(), 502, "round {round}");
        assert_eq!(upstream.connections(), round, "sent again");
    }
}

fn item_82_a_proxy_that_drains_says_so_twice_and_finishes_its_streams(driver: Driver) {
    const LAST_POSSIBLE: u32 = 0x7fff_ffff;
    // Answers when the client has sent the rest of its request.
    let mut hop = Hop::new(driver);
    let mut client = hop.connect();
    client.get("echo", "/before").expect(200);
    let held = client.request(&request("POST", "echo", "/held"), false);
    client.body(held, b"first ", false);
    client.settle();
    client.acknowledges = false;
    hop.proxy.process.signal(Signal::TERM);
    client.wait("the first GOAWAY", |c| (!c.goaways.is_empty()).then_some(()));
    assert_eq!(client.goaways, [(LAST_POSSIBLE, code::NO_ERROR)]);
    // What was on its way meanwhile is served: the proxy waits a round trip, which it measures by a PING.
    let crossing = client.request(&get("echo", "/crossing"), true);
    client.response(crossing).expect(200);
    client.wait("a PING", |c| (!c.pings.is_empty()).then_some(()));
    for ping in client.pings.clone() {
        client.send(frames::frame(PING, ACK, 0, ping));
    }
    client.wait("the final GOAWAY", |c| (c.goaways.len() > 1).then_some(()));
    assert_eq!(client.goaways[1], (crossing, code::NO_ERROR));
    client.body(held, b"second", true);
    assert_eq!(client.response(held).expect(200).text(), "first second");
    assert_eq!(client.end(), Some(code::NO_ERROR));
    assert!(hop.proxy.process.wait_for_exit().success());
}
