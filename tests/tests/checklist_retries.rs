//! Item 67 of the HTTP checklist: no request that may have been processed is processed twice.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::sync::{Mutex, mpsc};

use meshring_tests::{
    checklist::{Sidecar, expect_bytes},
    on_both_drivers,
    proxy::Driver,
    upstream::{Upstream, ok},
};

on_both_drivers! {
    item_67_a_post_on_a_reset_connection_is_502_and_sent_once
    item_67_an_idempotent_request_on_a_reset_connection_is_sent_once_more
    item_67_one_retry_is_all_there_is
    item_67_a_reset_on_a_fresh_connection_is_no_reason_to_retry
    item_67_a_post_goes_on_a_fresh_connection_when_the_pooled_one_is_closed
}

/// Answers one request per connection on the first `breaking` connections, then reads another one to its end and resets.
fn resetting_on_the_second_request(breaking: usize) -> Upstream {
    Upstream::scripted(move |peer| {
        if peer.connection < breaking {
            peer.request();
            peer.send(ok("first"));
            peer.request();
            peer.reset();
        } else {
            while peer.request().is_some() {
                peer.send(ok("fresh"));
            }
        }
    })
}

/// Targets of all requests that the upstream has got, by connection.
fn targets(upstream: &Upstream) -> Vec<(usize, String)> {
    upstream.catch_up();
    upstream.received().iter().map(|request| (request.connection, request.line.clone())).collect()
}

fn item_67_a_post_on_a_reset_connection_is_502_and_sent_once(driver: Driver) {
    for method in ["POST", "PATCH", "LOCK", "get"] {
        for body in [
            "content-length: 4\r\n\r\npaid",
            "content-length: 0\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n4\r\npaid\r\n0\r\n\r\n",
            "\r\n",
        ] {
            let sidecar = Sidecar::before(driver, resetting_on_the_second_request(1));
            let mut client = sidecar.proxy.connect();
            assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
            let _ = sidecar.received();
            let response = client.send(format!("{method} /2 HTTP/1.1\r\nhost: echo\r\n{body}")).response();
            assert!(response.expect(502).text().starts_with("meshring: Bad Gateway ("), "{}", response.text());
            let copies = sidecar.upstream.take_bytes().concat();
            let copies = copies.windows(3).filter(|window| window == b" /2").count();
            assert_eq!(copies, 1, "{method} {body:?}");
            assert_eq!(sidecar.upstream.connections(), 1);
            // The next one gets a connection of its own.
            assert_eq!(sidecar.proxy.connect().get("echo", "/3").expect(200).text(), "fresh");
        }
    }
}

fn item_67_an_idempotent_request_on_a_reset_connection_is_sent_once_more(driver: Driver) {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        for body in
            ["\r\n", "content-length: 4\r\n\r\nsame", "transfer-encoding: chunked\r\n\r\n4\r\nsame\r\n0\r\n\r\n"]
        {
            let sidecar = Sidecar::before(driver, resetting_on_the_second_request(1));
            let mut client = sidecar.proxy.connect();
            assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
            let _ = sidecar.upstream.take_bytes();
            client.send(format!("{method} /2 HTTP/1.1\r\nhost: echo\r\n{body}"));
            client.try_response(method).unwrap().expect(200);
            let copies = sidecar.upstream.take_bytes();
            assert_eq!(copies.len(), 2, "{method} {body:?}");
            // The very same bytes, its id and all.
            expect_bytes(&copies[1], &copies[0], b"");
            let line = format!("{method} /2 HTTP/1.1");
            assert_eq!(targets(&sidecar.upstream), [(0, "GET /1 HTTP/1.1".to_owned()), (0, line.clone()), (1, line)]);
        }
    }
}

fn item_67_one_retry_is_all_there_is(driver: Driver) {
    // Both connections are pooled, and each breaks on its second request; the fresh one of the retry breaks on its first.
    let upstream = Upstream::scripted(|peer| {
        if peer.connection < 2 {
            peer.request();
            peer.send(ok("first"));
        }
        peer.request();
        peer.reset();
    });
    let sidecar = Sidecar::before(driver, upstream);
    let mut clients = [sidecar.proxy.connect(), sidecar.proxy.connect()];
    // Two at once need two connections.
    for client in &mut clients {
        client.send("GET /1 HTTP/1.1\r\nhost: echo\r\n\r\n");
    }
    for client in &mut clients {
        client.response();
    }
    sidecar.upstream.catch_up();
    let before = sidecar.upstream.received().len();
    clients[0].get("echo", "/2").expect(502);
    let copies = sidecar.upstream.received().len() - before;
    assert_eq!(copies, 2, "the request and one retry");
}

fn item_67_a_reset_on_a_fresh_connection_is_no_reason_to_retry(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.reset();
    });
    let sidecar = Sidecar::before(driver, upstream);
    for (at, method) in ["GET", "PUT", "POST"].into_iter().enumerate() {
        let mut client = sidecar.proxy.connect();
        client
            .send(format!("{method} /{at} HTTP/1.1\r\nhost: echo\r\ncontent-length: 0\r\n\r\n"))
            .response()
            .expect(502);
        assert_eq!(targets(&sidecar.upstream).len(), at + 1, "{method}");
    }
}

fn item_67_a_post_goes_on_a_fresh_connection_when_the_pooled_one_is_closed(driver: Driver) {
    // Each connection answers one request and ends without saying so; no byte of the next POST was sent to it.
    for resets in [false, true] {
        let (read, was_read) = mpsc::channel::<()>();
        let was_read = Mutex::new(was_read);
        let upstream = Upstream::scripted(move |peer| {
            peer.request();
            peer.send(ok("once"));
            was_read.lock().unwrap().recv().unwrap();
            if resets {
                peer.reset();
            }
        });
        let sidecar = Sidecar::before(driver, upstream);
        let mut client = sidecar.proxy.connect();
        for number in 0..4 {
            client.send(format!("POST /{number} HTTP/1.1\r\nhost: echo\r\ncontent-length: 4\r\n\r\npaid"));
            assert_eq!(client.response().expect(200).text(), "once");
            // Its end is with the proxy by the time of the next one.
            read.send(()).unwrap();
            sidecar.upstream.wait_until_all_ended();
            sidecar.settle();
        }
        let seen = targets(&sidecar.upstream);
        let expected: Vec<_> = (0..4).map(|number| (number, format!("POST /{number} HTTP/1.1"))).collect();
        assert_eq!(seen, expected, "each is there once");
    }
}
