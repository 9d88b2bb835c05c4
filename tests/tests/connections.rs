//! HTTP/1.1 connections on both sides of the proxy: reuse, pipelining, framing of old and half-closed clients.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_tests::{
    client::{Client, request},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok},
    wait,
    wire::Framing,
};

on_both_drivers! {
    requests_of_one_client_share_one_upstream_connection
    pipelined_requests_are_answered_in_order
    a_malformed_request_in_a_pipeline_gets_400_after_the_answer_before_it
    a_head_response_with_content_length_leaves_the_next_one_aligned
    an_http_1_0_client_never_gets_chunked
    an_http_1_0_client_keeps_its_connection_when_it_asks
    a_half_closed_client_still_gets_its_response
    a_request_that_trickles_in_byte_by_byte_is_one_request
    connections_that_wait_long_for_their_next_request_are_served
    an_inbound_listener_forwards_everything_to_its_application
}

fn requests_of_one_client_share_one_upstream_connection(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for number in 0..50 {
        assert_eq!(client.get("echo", &format!("/{number}")).expect(200).text(), "hello");
    }
    assert_eq!(upstream.connections(), 1);
    let targets: Vec<_> = upstream.received().iter().map(|r| r.target().to_owned()).collect();
    assert_eq!(targets, (0..50).map(|n| format!("/{n}")).collect::<Vec<_>>());
    // Another client after the first one: the pool belongs to the worker, not to the client's connection.
    drop(client);
    proxy.connect().get("echo", "/again").expect(200);
    assert_eq!(upstream.connections(), 1);
}

fn pipelined_requests_are_answered_in_order(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let post = b"POST /second HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let pipeline = [&request("GET", "echo", "/first", &[])[..], post, &request("GET", "echo", "/third", &[])].concat();
    client.send(pipeline);
    for expected in ["/first", "/second", "/third"] {
        assert_eq!(client.response().expect(200).text(), expected);
    }
    assert_eq!(upstream.received()[1].body, b"abc");
}

fn a_malformed_request_in_a_pipeline_gets_400_after_the_answer_before_it(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let malformed = b"GET /second HTTP/1.1\r\nhost : echo\r\n\r\n";
    let pipeline =
        [&request("GET", "echo", "/first", &[])[..], malformed, &request("GET", "echo", "/third", &[])].concat();
    client.send(pipeline);
    assert_eq!(client.response().expect(200).text(), "/first");
    let refusal = client.response();
    assert_eq!(refusal.expect(400).fields.value("connection"), Some("close"));
    assert!(refusal.text().starts_with("meshring: Bad Request ("), "{}", refusal.text());
    client.expect_end();
    assert_eq!(upstream.received().len(), 1, "nothing of the second or third request may reach the upstream");
}

fn a_head_response_with_content_length_leaves_the_next_one_aligned(driver: Driver) {
    let upstream = Upstream::answering(|request| match request.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".to_vec(),
        _ => ok("the body"),
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..3 {
        let head = client.send(request("HEAD", "echo", "/", &[])).try_response("HEAD").unwrap();
        assert_eq!(head.fields.value("content-length"), Some("1000"));
        assert_eq!(client.get("echo", "/").expect(200).text(), "the body");
    }
    assert_eq!(upstream.connections(), 1);
}

fn an_http_1_0_client_never_gets_chunked(driver: Driver) {
    let upstream = Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".to_vec()
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let response = client.send("GET / HTTP/1.0\r\nhost: echo\r\nconnection: keep-alive\r\n\r\n").response();
    assert!(!response.fields.has("transfer-encoding"), "{:?}", response.fields);
    assert_eq!((response.framing, response.text().as_str()), (Framing::UntilClose, "hello world"));
    assert_eq!(response.fields.value("connection"), Some("close"));
    // RFC 9110 section 6.2: the version is that of the sender, not of the client.
    assert_eq!(response.version, "HTTP/1.1");
    assert_eq!(upstream.wait_for(1)[0].line, "GET / HTTP/1.1");
}

fn an_http_1_0_client_keeps_its_connection_when_it_asks(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let response = client.send("GET / HTTP/1.0\r\nhost: echo\r\nconnection: keep-alive\r\n\r\n").response();
        assert_eq!(response.fields.value("connection"), Some("keep-alive"));
        assert_eq!((response.framing, response.text().as_str()), (Framing::Length, "hello"));
    }
    let last = client.send("GET / HTTP/1.0\r\nhost: echo\r\n\r\n").response();
    assert_eq!(last.expect(200).text(), "hello");
    client.expect_end();
}

fn a_half_closed_client_still_gets_its_response(driver: Driver) {
    // The upstream answers only after the client's FIN has surely reached the proxy: when the proxy has been asked for
    // something else meanwhile.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::answering(move |request| {
        if request.target() == "/slow" {
            released.lock().unwrap().recv().unwrap();
        }
        ok(&format!("{} {}", request.target(), request.body.len()))
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut slow = proxy.connect();
    slow.send("POST /slow HTTP/1.1\r\nhost: echo\r\ncontent-length: 4\r\n\r\nbody").finish_sending();
    let _ = upstream.wait_for(1);
    for _ in 0..20 {
        proxy.connect().get("echo", "/quick").expect(200);
    }
    release.send(()).unwrap();
    assert_eq!(slow.response().expect(200).text(), "/slow 4");
    slow.expect_end();
}

fn a_request_that_trickles_in_byte_by_byte_is_one_request(driver: Driver) {
    let upstream = Upstream::echoing();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..2 {
        for byte in request("GET", "echo", "/trickle?a=b", &[("x-long", &"y".repeat(300))]) {
            client.send([byte]);
        }
        let text = client.response().expect(200).text();
        assert!(text.starts_with("GET /trickle?a=b HTTP/1.1\n"), "{text}");
        assert!(text.contains(&format!("\nx-long: {}\n", "y".repeat(300))), "{text}");
    }
    assert_eq!(upstream.received().len(), 2);
}

/// After a second without a request a connection gives its buffer back and is watched another way.
fn connections_that_wait_long_for_their_next_request_are_served(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut clients: Vec<Client> = (0..8).map(|_| proxy.connect()).collect();
    for round in 0..2 {
        for client in &mut clients {
            client.get("echo", "/").expect(200);
        }
        if round == 0 {
            let started = std::time::Instant::now();
            wait::until("more than the time after which a connection gives its buffer back", || {
                (started.elapsed().as_millis() > 1_400).then_some(())
            });
        }
    }
    // A close is noticed in that state, too, and costs nobody else anything.
    clients.truncate(4);
    clients.iter_mut().for_each(|client| drop(client.get("echo", "/").expect(200).clone()));
}

fn an_inbound_listener_forwards_everything_to_its_application(driver: Driver) {
    let application = Upstream::echoing();
    let other = Upstream::saying("other");
    let snapshot = World::with_echo(other.address());
    let proxy = Proxy::alone_with(&snapshot, |builder| builder.driver(driver).inbound(application.address()));
    let mut client = Client::connect(proxy.inbound()[0]);
    let text = client.get("whatever.example.com", "/path?q=1").expect(200).text();
    assert!(text.starts_with("GET /path?q=1 HTTP/1.1\n"), "{text}");
    assert!(text.contains("\nhost: whatever.example.com\n"), "{text}");
    assert_eq!(other.connections(), 0);
}
