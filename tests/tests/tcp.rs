//! What is no HTTP goes as bytes to the service that it is for, whoever speaks first; what nobody says anything about is told apart
//! by its first bytes. What such a connection does once it is open is in `tunnel.rs`.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use meshring_core::{
    limits::DETECTION_MS,
    table::{
        model::ClusterKind,
        tcp::{Subnet, TcpCondition, TcpProtocol},
    },
};
use meshring_tests::{
    binaries,
    client::{Client, request},
    on_both_drivers,
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::World,
    tunnel::{Application, Ends, expect_reset},
    upstream::Upstream,
    wait,
};

on_both_drivers! {
    whoever_speaks_first_is_heard_at_once
    an_endpoint_that_refuses_is_passed_over
    what_leads_nowhere_is_reset_and_the_log_says_why
    a_listener_on_all_addresses_goes_by_the_one_that_the_client_meant
    a_port_of_unknown_protocol_serves_http_and_anything_else
    a_silent_client_of_http_costs_no_connection_for_long
    only_the_first_bytes_decide
}

fn proxy(driver: Driver, snapshot: &[u8], service: &str) -> Proxy {
    Proxy::alone_with(snapshot, |builder| builder.driver(driver).outbound_for(service))
}

fn whoever_speaks_first_is_heard_at_once(driver: Driver) {
    let application = Application::start();
    let proxy = proxy(driver, &World::with_stream("db", 5432, TcpProtocol::Tcp, &[application.address()]), "db:5432");
    let mut server_first = Ends { client: Client::connect(proxy.services()[0]), upstream: application.accept() };
    server_first.upstream.send("220 ready\r\n");
    assert_eq!(server_first.client.bytes(11), b"220 ready\r\n");
    server_first.expect_open();

    // Whatever it is, even if it looks like HTTP: the port says that it is none.
    let mut client_first = Client::connect(proxy.services()[0]);
    let text = request("GET", "db", "/a/../b", &[]);
    client_first.send(&text);
    assert_eq!(application.accept().bytes(text.len()), text);
}

fn an_endpoint_that_refuses_is_passed_over(driver: Driver) {
    let (application, closed) = (Application::start(), Reserved::new());
    let endpoints = [closed.address(), application.address()];
    let proxy = proxy(driver, &World::with_stream("db", 5432, TcpProtocol::Tcp, &endpoints), "db:5432");
    for _ in 0..4 {
        Ends { client: Client::connect(proxy.services()[0]), upstream: application.accept() }.expect_open();
    }
}

fn what_leads_nowhere_is_reset_and_the_log_says_why(driver: Driver) {
    let closed = Reserved::new();
    let mut world = World::new();
    let (refusing, empty) = (world.cluster("refusing", &[closed.address()]), world.cluster("empty", &[]));
    let missing = world.cluster_without("missing", ClusterKind::NoSuchSubset);
    for (port, cluster) in [(1, refusing), (2, empty), (3, missing)] {
        let rule = world.stream_rule(Vec::new(), &[(cluster, 1)]);
        world.stream("db", port, TcpProtocol::Tcp, &[], vec![rule]);
    }
    let nowhere = vec![TcpCondition::DestinationSubnets(vec![Subnet::new("10.0.0.0".parse().unwrap(), 8)])];
    let rule = world.stream_rule(vec![nowhere], &[(empty, 1)]);
    world.stream("db", 4, TcpProtocol::Tcp, &[], vec![rule]);
    let proxy = Proxy::alone_with(&world.snapshot(), |builder| {
        ["db:1", "db:2", "db:3", "db:4", "nobody:5"]
            .iter()
            .fold(builder.driver(driver), |all, one| all.outbound_for(one))
    });
    for (index, expected) in [
        "tcp.connect_failed",
        "it has no endpoint; chosen by VirtualService default/test (test.yaml:1), tcp[0] at line 10",
        "no DestinationRule defines this subset; chosen by",
        "no rule of ServiceEntry default/db (test.yaml:1), port 4 matches",
        "no service has nobody:5",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Client::connect(proxy.services()[index]);
        expect_reset(&mut client);
        // One line a second for each reason: the next one of its kind waits for the last.
        wait::until(expected, || {
            let _ = Client::connect(proxy.services()[index]).rest();
            proxy.process.line(expected)
        });
    }
}

fn a_listener_on_all_addresses_goes_by_the_one_that_the_client_meant(driver: Driver) {
    let (redis, other) = (Application::start(), Application::start());
    let reserved = Reserved::new();
    let port = reserved.address().port();
    let mut world = World::new();
    let addresses: [IpAddr; 2] = ["127.0.0.9".parse().unwrap(), "127.0.0.10".parse().unwrap()];
    for (name, application, address) in [("redis", &redis, addresses[0]), ("other", &other, addresses[1])] {
        let cluster = world.cluster(name, &[application.address()]);
        let rule = world.stream_rule(Vec::new(), &[(cluster, 1)]);
        world.stream(name, port, TcpProtocol::Tcp, &[address], vec![rule]);
    }
    let snapshot = world.snapshot();
    let listener = format!("0.0.0.0:{port}");
    let _proxy =
        Proxy::alone_with(&snapshot, |builder| builder.driver(driver).arguments(&["--outbound", listener.as_str()]));
    let connect = |address| Client::connect(SocketAddr::new(address, port));
    Ends { client: connect(addresses[0]), upstream: redis.accept() }.expect_open();
    Ends { client: connect(addresses[1]), upstream: other.accept() }.expect_open();
    // What no service has is HTTP, as ever.
    let mut http = connect("127.0.0.1".parse().unwrap());
    assert_eq!(http.get("nobody.example.com", "/").status, 404);
}

fn a_port_of_unknown_protocol_serves_http_and_anything_else(driver: Driver) {
    let upstream = Upstream::echoing();
    let http = proxy(driver, &World::with_stream("echo", 80, TcpProtocol::Unknown, &[upstream.address()]), "echo:80");
    let mut client = Client::connect(http.services()[0]);
    for target in ["/one", "/two"] {
        let response = client.get("echo", target);
        assert!(response.expect(200).text().starts_with(&format!("GET {target} HTTP/1.1\n")), "{}", response.text());
        assert!(response.text().contains("via:"), "it was parsed");
    }
    // In pieces, as a person types.
    let mut typed = Client::connect(http.services()[0]);
    for piece in ["GE", "T /typed HTT", "P/1.1\r\n", "host: echo\r\n\r\n"] {
        typed.send(piece);
        wait::until_still(Duration::from_millis(20), "the piece to be there", || 0);
    }
    assert!(typed.response().expect(200).text().starts_with("GET /typed"));
    if binaries::is_installed("curl") {
        let url = format!("http://{}/h2", http.services()[0]);
        let output = Command::new("curl").args(["-sS", "--http2-prior-knowledge", "-H", "host: echo", &url]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(text.starts_with("GET /h2 HTTP/1.1\n"), "{text}");
    }
    // What is malformed is still refused where it is HTTP.
    let mut bad = Client::connect(http.services()[0]);
    bad.send("GET / HTTP/1.1\r\nhost: echo\r\nbad header: x\r\n\r\n");
    assert_eq!(bad.response().status, 400);

    let application = Application::start();
    let snapshot = World::with_stream("any", 80, TcpProtocol::Unknown, &[application.address()]);
    let any = proxy(driver, &snapshot, "any:80");
    for begin in [&b"PING\r\n"[..], b"*1\r\n$4\r\nPING\r\n", b"\x16\x03\x01\0\x05hello", b"\0", b"SSH-2.0-x\r\n"] {
        let mut client = Client::connect(any.services()[0]);
        client.send(begin);
        let mut upstream = application.accept();
        assert_eq!(upstream.bytes(begin.len()), begin);
        Ends { client, upstream }.expect_open();
    }
    // The server speaks first; nobody has to wait for anything but the proxy's look at the client.
    let begun = Instant::now();
    let client = Client::connect(any.services()[0]);
    let mut upstream = application.accept();
    upstream.send("220 ready\r\n");
    let mut ends = Ends { client, upstream };
    assert_eq!(ends.client.bytes(11), b"220 ready\r\n");
    ends.expect_open();
    println!("the greeting came after {:?}", begun.elapsed());
    // And from then on for nothing at all: the best of many tries, on a machine that may be busy.
    let fastest = (0..50).map(|_| {
        let begun = Instant::now();
        let client = Client::connect(any.services()[0]);
        let mut upstream = application.accept();
        upstream.send("220 ready\r\n");
        let mut ends = Ends { client, upstream };
        assert_eq!(ends.client.bytes(11), b"220 ready\r\n");
        begun.elapsed()
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(DETECTION_MS), "{fastest:?}");
    // Also to a client that has nothing to say.
    let mut client = Client::connect(any.services()[0]);
    let mut upstream = application.accept();
    client.finish_sending();
    upstream.expect_end();
    upstream.send("Sun Nov 29").finish_sending();
    assert_eq!(client.rest().unwrap(), b"Sun Nov 29");
    // A client that speaks another protocol after a while, too.
    let mut client = Client::connect(any.services()[0]);
    let mut upstream = application.accept();
    client.send("PING\r\n");
    assert_eq!(upstream.bytes(6), b"PING\r\n");
    Ends { client, upstream }.expect_open();
}

fn a_silent_client_of_http_costs_no_connection_for_long(driver: Driver) {
    let application = Application::start();
    let snapshot = World::with_stream("any", 80, TcpProtocol::Unknown, &[application.address()]);
    let proxy = proxy(driver, &snapshot, "any:80");
    let mut client = Client::connect(proxy.services()[0]);
    let mut watched = application.accept();
    client.send(request("GET", "any", "/", &[]));
    // The connection on which the server was watched is given up; the request goes its own way.
    watched.expect_end();
    let mut upstream = application.accept();
    assert_eq!(upstream.head().line, "GET / HTTP/1.1");
    upstream.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    assert_eq!(client.response().status, 204);
    // A server that closes what is silent has not spoken.
    let mut client = Client::connect(proxy.services()[0]);
    drop(application.accept());
    client.send(request("GET", "any", "/", &[]));
    assert_eq!(application.accept().head().line, "GET / HTTP/1.1");
}

fn only_the_first_bytes_decide(driver: Driver) {
    let upstream = Upstream::echoing();
    let proxy = proxy(driver, &World::with_stream("echo", 80, TcpProtocol::Unknown, &[upstream.address()]), "echo:80");
    let mut client = Client::connect(proxy.services()[0]);
    client.get("echo", "/").expect(200);
    client.send("PING\r\n\r\n");
    assert_eq!(client.response().status, 400, "behind a request there is no other protocol");
}
