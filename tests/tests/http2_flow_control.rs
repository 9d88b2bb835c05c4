//! Windows of HTTP/2: large bodies arrive whole, who does not read costs little, and one slow stream holds up no other.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{sync::Mutex, time::Duration};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    alone,
    checklist::Sidecar,
    client::Client,
    frames::{self, INITIAL_WINDOW_SIZE, block, headers},
    generate::{assert_same_bytes, body},
    h2::{Connection, Opening, get, request},
    h2_application::{Application, Hop},
    on_both_drivers,
    proxy::Driver,
    upstream::{Upstream, response},
    wait,
};

on_both_drivers! {
    bodies_of_megabytes_pass_both_ways_within_small_windows
    bodies_of_megabytes_change_their_version_on_the_way
    a_client_without_window_does_not_hold_up_its_other_streams
    streams_that_nobody_reads_do_not_hold_up_those_of_other_clients
    an_application_without_window_does_not_hold_up_other_requests
    what_a_client_sends_is_bounded_by_what_the_application_takes
    small_messages_that_nobody_takes_yet_are_waited_for
    windows_that_shrink_are_kept
}

const SIZE: usize = 3_000_000;

fn bodies_of_megabytes_pass_both_ways_within_small_windows(driver: Driver) {
    let hop = Hop::new(driver);
    for listener in hop.listeners() {
        let mut client = Connection::connect(listener);
        let streams: Vec<_> = (0..4).map(|seed| (seed, client.request(&request("POST", "echo", "/"), false))).collect();
        for &(seed, stream) in &streams {
            client.body(stream, &body(seed, SIZE), true);
        }
        for (seed, stream) in streams {
            let answer = client.response(stream);
            assert_same_bytes(&answer.expect(200).body, &body(seed, SIZE));
            assert_eq!(answer.trailers.value("x-end"), Some("here"));
        }
    }
}

fn bodies_of_megabytes_change_their_version_on_the_way(driver: Driver) {
    let data = body(11, SIZE);
    let hop = Hop::new(driver);
    let mut client = hop.proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: {SIZE}\r\n\r\n")).send(&data);
    assert_same_bytes(&client.response().expect(200).body, &data);

    let upstream = Upstream::answering(|request| response(200, &[], &request.body));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            world.protocol(cluster, UpstreamProtocol::Http1);
        },
    );
    let mut client = Connection::connect(sidecar.outbound());
    let stream = client.request(&request("POST", "echo", "/"), false);
    client.body(stream, &data, true);
    assert_same_bytes(&client.response(stream).expect(200).body, &data);
    let length = SIZE.to_string();
    let fields = [&request("POST", "echo", "/")[..], &[("content-length", length.as_str())]].concat();
    let stream = client.request(&fields, false);
    client.body(stream, &data, true);
    assert_same_bytes(&client.response(stream).expect(200).body, &data);
}

/// Answers `/large` with more than any window, and everything else at once.
fn large() -> Application {
    Application::answering(|connection, stream, message| {
        let is_large = message.fields.value(":path") == Some("/large");
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), !is_large));
        if is_large {
            // As much as the proxy's window for a stream surely is not; the rest is never sent.
            let _ = connection.try_send(frames::data(stream, vec![7; 16_000], false));
        }
    })
}

fn a_client_without_window_does_not_hold_up_its_other_streams(driver: Driver) {
    let hop = Hop::before(driver, large());
    for listener in hop.listeners() {
        let opening = Opening { settings: vec![(INITIAL_WINDOW_SIZE, 100)], credit: 1 << 20 };
        let mut client = Connection::connect_with(listener, &opening);
        let stuck: Vec<_> = (0..5).map(|_| client.request(&get("echo", "/large"), true)).collect();
        for &stream in &stuck {
            client.wait("what the window allows", |c| (c.message(stream).body.len() == 100).then_some(()));
        }
        for _ in 0..50 {
            client.get("echo", "/small").expect(200);
        }
        for stream in stuck {
            assert_eq!(client.message(stream).body.len(), 100, "more than the window");
            client.send(frames::window_update(stream, 10_000));
            client.wait("as much as was granted", |c| (c.message(stream).body.len() == 10_100).then_some(()));
        }
    }
}

fn streams_that_nobody_reads_do_not_hold_up_those_of_other_clients(driver: Driver) {
    let stuck = Mutex::new(Vec::new());
    let application = Application::answering(move |connection, stream, message| {
        let is_large = message.fields.value(":path") == Some("/large");
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), false));
        let mut stuck = stuck.lock().unwrap();
        if is_large {
            stuck.push(stream);
        }
        // As much as the proxy takes for those that are stuck, also of the credit that comes back meanwhile.
        for _ in 0..3 {
            connection.settle();
            for &stream in stuck.iter() {
                let all = connection.within_windows(stream);
                let _ = connection.try_send(all);
            }
        }
        if !is_large {
            let _ = connection.offer(stream, &[7; 10_000], true);
        }
    });
    let hop = Hop::before(driver, application);
    let mut greedy = Connection::connect_with(hop.proxy.outbound(), &Opening::narrow().with(INITIAL_WINDOW_SIZE, 0));
    for _ in 0..40 {
        let stream = greedy.request(&get("echo", "/large"), true);
        greedy.head(stream);
    }
    // They share a connection to the application, and its window.
    for _ in 0..20 {
        assert_eq!(hop.connect().get("echo", "/other").expect(200).body.len(), 10_000);
    }
    greedy.settle();
}

/// Gives no credit for a request's body; answers others.
fn deaf() -> Application {
    let opening = Opening { settings: Vec::new(), credit: 1 << 30 };
    Application::opening(opening, |connection, stream, _| {
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), true));
    })
}

fn an_application_without_window_does_not_hold_up_other_requests(driver: Driver) {
    let hop = Hop::before(driver, deaf());
    let mut client = hop.connect();
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let stream = client.request(&request("POST", "echo", "/stuck"), false);
        client.send(frames::data(stream, vec![1; 16_000], false));
        stuck.push(stream);
    }
    for _ in 0..50 {
        client.get("echo", "/small").expect(200);
        hop.proxy.connect().get("echo", "/small").expect(200);
    }
    assert_eq!(hop.application.upstream.connections(), 1);
    for stream in stuck {
        client.send(frames::reset(stream, frames::code::CANCEL));
    }
    client.get("echo", "/small").expect(200);
}

fn what_a_client_sends_is_bounded_by_what_the_application_takes(driver: Driver) {
    const BOUND: u64 = 4 * 1024 * 1024;
    let _alone = alone();
    let hop = Hop::before(driver, deaf());
    let mut client = hop.connect();
    client.settle();
    let before = hop.proxy.process.resident_kib();
    // Twenty uploads at once of as much as the proxy gives credit for.
    let mut sent = 0_u64;
    for _ in 0..20 {
        let stream = client.request(&request("POST", "echo", "/stuck"), false);
        sent += client.fill(stream);
    }
    assert!(sent <= BOUND, "{sent} bytes were taken that nobody reads");
    let resident = || hop.proxy.process.resident_kib();
    wait::until_still(Duration::from_millis(300), "the proxy's memory to settle", resident);
    let grown = resident().saturating_sub(before);
    assert!(grown * 1024 <= 3 * BOUND, "{grown} KiB for {sent} bytes");
    Connection::connect(hop.proxy.outbound()).get("echo", "/other").expect(200);
    // HTTP/1.1 clients of the same connection are as well.
    Client::connect(hop.proxy.outbound()).get("echo", "/other").expect(200);
}

fn small_messages_that_nobody_takes_yet_are_waited_for(driver: Driver) {
    let opening = Opening { settings: vec![(INITIAL_WINDOW_SIZE, 0)], credit: 0 };
    let application = Application::opening(opening, |connection, stream, _| {
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), true));
    });
    let hop = Hop::before(driver, application);
    let mut client = hop.connect();
    // gRPC libraries send a frame per message; these are as many as fit a stream's window.
    for _ in 0..2 {
        let stream = client.request(&request("POST", "echo", "/stuck"), false);
        client.send(frames::data(stream, [7; 20], false).repeat(3_000));
    }
    client.settle();
    client.get("echo", "/other").expect(200);
}

fn windows_that_shrink_are_kept(driver: Driver) {
    let hop = Hop::before(driver, large());
    for listener in hop.listeners() {
        let opening = Opening { settings: vec![(INITIAL_WINDOW_SIZE, 1_000)], credit: 1 << 20 };
        let mut client = Connection::connect_with(listener, &opening);
        let stream = client.request(&get("echo", "/large"), true);
        client.wait("what the window allows", |c| (c.message(stream).body.len() == 1_000).then_some(()));
        // The window is -900 now (RFC 9113 section 6.9.2): 901 bytes of credit are one byte of data.
        client.send(frames::settings(&[(INITIAL_WINDOW_SIZE, 100)])).send(frames::window_update(stream, 901));
        client.wait("one byte", |c| (c.message(stream).body.len() > 1_000).then_some(()));
        client.settle();
        assert_eq!(client.message(stream).body.len(), 1_001);
        client.send(frames::settings(&[(INITIAL_WINDOW_SIZE, 300)]));
        client.wait("200 more", |c| (c.message(stream).body.len() == 1_201).then_some(()));
        client.get("echo", "/small").expect(200);
    }
}
