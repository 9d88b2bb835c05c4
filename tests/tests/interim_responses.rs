//! 1xx: relayed to those who understand them, never invented, never mistaken for the answer.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_tests::{
    client::request,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok},
};

on_both_drivers! {
    a_client_that_expects_100_gets_exactly_one_and_then_sends_its_body
    a_refusal_instead_of_100_is_the_answer
    early_hints_are_relayed_to_http_1_1_and_kept_from_http_1_0
    an_unsolicited_101_is_a_bad_gateway
}

fn a_client_that_expects_100_gets_exactly_one_and_then_sends_its_body(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        while let Some(head) = peer.head() {
            assert_eq!(head.fields.value("expect"), Some("100-continue"));
            peer.send("HTTP/1.1 100 Continue\r\n\r\n");
            let body = peer.body(&head).unwrap();
            peer.send(ok(&String::from_utf8_lossy(&body)));
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for (length, body) in [("content-length: 5", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")] {
        client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\nexpect: 100-continue\r\n{length}\r\n\r\n"));
        assert_eq!(client.head().line, "HTTP/1.1 100 Continue");
        // `response` fails on a second interim response.
        assert_eq!(client.send(body).response().expect(200).text(), "hello");
    }
    assert_eq!(upstream.connections(), 1);
}

fn a_refusal_instead_of_100_is_the_answer(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.head();
        peer.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno");
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: echo\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    let response = client.response();
    assert_eq!(response.expect(417).text(), "no");
    // Whether the body still comes is not ours to know: the connection cannot go on.
    assert_eq!(response.fields.value("connection"), Some("close"));
    client.expect_end();
}

fn early_hints_are_relayed_to_http_1_1_and_kept_from_http_1_0(driver: Driver) {
    let upstream = Upstream::answering(|_| {
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";
        [hints.repeat(2).as_bytes(), &ok("page")].concat()
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.send(request("GET", "echo", "/", &[]));
        for _ in 0..2 {
            let hint = client.head();
            assert!(hint.line.starts_with("HTTP/1.1 103 "), "{hint:?}");
            assert_eq!(hint.fields.value("link"), Some("</style.css>; rel=preload"));
            assert!(!hint.fields.has("content-length") && !hint.fields.has("transfer-encoding"), "{hint:?}");
        }
        assert_eq!(client.response().expect(200).text(), "page");
    }
    let old = proxy.connect().send("GET / HTTP/1.0\r\nhost: echo\r\n\r\n").response();
    assert_eq!(old.expect(200).text(), "page");
}

fn an_unsolicited_101_is_a_bad_gateway(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\nsmuggled");
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let response = client.get("echo", "/");
        assert!(response.expect(502).text().contains("switched protocols"), "{}", response.text());
    }
    assert_eq!(upstream.connections(), 2, "a connection that speaks something else is not used again");
}
