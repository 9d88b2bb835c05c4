//! What belongs to one hop stays on that hop (RFC 9110 section 7.6.1), and what must not be forged is not.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_tests::{
    client::request,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, response},
};

fn echo() -> (Upstream, Proxy) {
    let upstream = Upstream::echoing();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), Driver::Auto);
    (upstream, proxy)
}

#[test]
fn fields_of_one_hop_do_not_reach_the_upstream() {
    let (upstream, proxy) = echo();
    let mut client = proxy.connect();
    let sent = [
        ("Connection", "keep-alive, X-Hop, TE, HTTP2-Settings"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("TE", "trailers, gzip"),
        ("X-Hop", "1"),
        ("X-End", "2"),
    ];
    client.get_with("echo", "/", &sent).expect(200);
    let received = upstream.received();
    let fields = &received[0].fields;
    for name in ["keep-alive", "proxy-connection", "upgrade", "http2-settings", "x-hop"] {
        assert!(!fields.has(name), "{name}: {fields:?}");
    }
    assert_eq!(fields.value("te"), Some("trailers"));
    assert_eq!(fields.value("x-end"), Some("2"));
}

#[test]
fn fields_of_one_hop_do_not_reach_the_client() {
    let upstream = Upstream::answering(|_| {
        let fields = [("connection", "keep-alive, x-hop"), ("keep-alive", "timeout=5"), ("x-hop", "1"), ("x-end", "2")];
        response(200, &fields, b"body")
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), Driver::Auto);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let response = client.get("echo", "/");
        for name in ["connection", "keep-alive", "x-hop"] {
            assert!(!response.expect(200).fields.has(name), "{name}: {:?}", response.fields);
        }
        assert_eq!(response.fields.value("x-end"), Some("2"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_field_cannot_strip_what_decides_about_a_request() {
    let (upstream, proxy) = echo();
    for name in ["host", "content-length", "transfer-encoding", "authorization", "x-forwarded-for"] {
        let mut client = proxy.connect();
        client.get_with("echo", "/", &[("connection", name), ("authorization", "Bearer x")]).expect(400);
        client.expect_end();
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn what_is_not_offered_is_refused_with_its_own_status() {
    let (upstream, proxy) = echo();
    for (bytes, status) in [
        (&b"GET / HTTP/1.1\r\nhost: echo\r\nexpect: miracles\r\n\r\n"[..], 417),
        (b"CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n", 405),
        (b"GET / HTTP/9.9\r\nhost: echo\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: echo\n\n", 400),
        (b"POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    ] {
        let mut client = proxy.connect();
        let response = client.send(bytes).response();
        response.expect(status);
        assert!(response.text().starts_with("meshring: "), "{}", response.text());
    }
    // A handshake, which is answered as one: handshake_failure.
    let mut client = proxy.connect();
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(client.bytes(7), [21, 3, 3, 0, 2, 2, 40]);
    let long = format!("/{}", "a".repeat(9_000));
    proxy.connect().get("echo", &long).expect(414);
    let large = "b".repeat(70_000);
    proxy.connect().get_with("echo", "/", &[("x-large", &large)]).expect(431);
    let names: Vec<String> = (0..120).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    proxy.connect().get_with("echo", "/", &many).expect(431);
    assert_eq!(upstream.connections(), 0, "nothing of them may reach the upstream");
}

#[test]
fn a_target_in_absolute_form_is_routed_by_itself_and_not_by_host() {
    let (upstream, proxy) = echo();
    let mut client = proxy.connect();
    client.send("GET http://echo/path?q HTTP/1.1\r\nhost: elsewhere.example.com\r\n\r\n").response().expect(200);
    let received = upstream.received();
    assert_eq!((received[0].line.as_str(), received[0].fields.value("host")), ("GET /path?q HTTP/1.1", Some("echo")));
}

#[test]
fn a_connection_that_a_client_closes_is_closed() {
    let (_upstream, proxy) = echo();
    let mut client = proxy.connect();
    let response = client.send(request("GET", "echo", "/", &[("connection", "close")])).response();
    assert_eq!(response.expect(200).fields.value("connection"), Some("close"));
    client.expect_end();
}
