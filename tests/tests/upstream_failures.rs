//! Each way in which an upstream can fail has its status, its words, and never a second execution of a request that may
//! have been processed.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use meshring_core::table::model::{ClusterKind, Route};
use meshring_tests::{
    alone,
    client::request,
    on_both_drivers,
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, ok},
    wait,
};

/// Deadlines are looked at on a tick of 100 ms at most.
const TICK_MS: u128 = 100;

on_both_drivers! {
    a_silent_upstream_is_504_at_the_timeout_of_the_route
    an_upstream_that_refuses_connections_is_503_with_its_address
    a_refused_endpoint_is_passed_over_for_one_that_works
    an_upstream_that_resets_or_closes_is_502
    a_malformed_response_is_502
    a_cluster_without_endpoint_is_503_that_names_service_and_rule
    an_unknown_host_is_404_that_names_it
    a_get_on_a_connection_that_the_upstream_has_closed_is_sent_again
    a_get_that_meets_a_closing_connection_is_retried_once
    a_post_that_meets_a_closing_connection_is_not_sent_twice
    a_streamed_put_that_meets_a_closing_connection_is_not_sent_again_in_part
    a_silent_upstream_is_504_for_a_streamed_request_too
    a_get_whose_interim_response_has_come_is_not_sent_again
    a_response_until_close_that_the_timeout_cuts_does_not_look_complete
    a_streamed_body_with_broken_chunks_is_400
    failures_of_one_upstream_leave_the_client_connection_usable
}

fn a_silent_upstream_is_504_at_the_timeout_of_the_route(driver: Driver) {
    let _alone = alone();
    const TIMEOUT_MS: u128 = 1_000;
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let mut world = World::new();
    let cluster = world.cluster("silent", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("silent", vec![Route { timeout_ms: TIMEOUT_MS as u32, ..rule(action) }]);
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    let mut elapsed_ms = Vec::new();
    // Never too early; a busy machine may be late, but not three times in a row.
    for attempt in 1..=3 {
        let started = Instant::now();
        let response = client.get("silent", "/");
        elapsed_ms.push(started.elapsed().as_millis());
        assert!(response.expect(504).text().contains("did not respond in time"), "{}", response.text());
        let last = elapsed_ms[attempt - 1];
        assert!(last >= TIMEOUT_MS * 9 / 10, "{elapsed_ms:?}");
        if last <= TIMEOUT_MS * 11 / 10 + TICK_MS {
            return;
        }
    }
    panic!("504 after {elapsed_ms:?} ms, the timeout is {TIMEOUT_MS} ms");
}

fn an_upstream_that_refuses_connections_is_503_with_its_address(driver: Driver) {
    let refusing = Reserved::new();
    let proxy = Proxy::alone(&World::with_echo(refusing.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..3 {
        let text = client.get("echo", "/").expect(503).text();
        assert!(text.starts_with("meshring: Service Unavailable (connect_failed): "), "{text}");
        assert!(text.contains(&refusing.address().to_string()) && text.contains("refused"), "{text}");
    }
}

fn a_refused_endpoint_is_passed_over_for_one_that_works(driver: Driver) {
    let (refusing, working) = (Reserved::new(), Upstream::saying("works"));
    let mut world = World::new();
    let cluster = world.cluster("echo", &[refusing.address(), working.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    for number in 0..20 {
        // Nothing was sent to the one that refused, so that even a POST may go to the other.
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        let response = client.send(request(method, "echo", "/", &[("content-length", "0")])).response();
        assert_eq!(response.expect(200).text(), "works");
    }
}

fn an_upstream_that_resets_or_closes_is_502(driver: Driver) {
    let upstream = Upstream::scripted(|peer| match peer.request().unwrap().target() {
        "/reset" => peer.reset(),
        "/close" => {}
        _ => drop(peer.send("HTTP/1.1 200 OK\r\ncontent-le")),
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for (target, code) in [("/reset", "no_response"), ("/close", "no_response"), ("/mid-head", "cut_head")] {
        let text = client.get("echo", target).expect(502).text();
        assert!(text.starts_with(&format!("meshring: Bad Gateway (upstream.{code}): ")), "{target}: {text}");
        assert!(text.contains(&upstream.address().to_string()), "{target}: {text}");
    }
    assert_eq!(upstream.received().len(), 3, "a fresh connection that breaks is no reason to send a request again");
}

fn a_malformed_response_is_502(driver: Driver) {
    let responses = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        "SSH-2.0-OpenSSH_9.9\r\n",
    ];
    let upstream = Upstream::scripted(move |peer| {
        let request = peer.request().unwrap();
        peer.send(responses[request.target()[1..].parse::<usize>().unwrap()]);
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for (number, response) in responses.iter().enumerate() {
        let text = client.get("echo", &format!("/{number}")).expect(502).text();
        assert!(text.contains("malformed"), "{response:?}: {text}");
    }
    assert_eq!(upstream.connections(), responses.len(), "a connection that broke the rules is not used again");
}

fn a_cluster_without_endpoint_is_503_that_names_service_and_rule(driver: Driver) {
    let mut world = World::new();
    let clusters = [
        ("empty", world.cluster("empty", &[]), "it has no endpoint"),
        ("unknown", world.cluster_without("unknown", ClusterKind::NoSuchService), "no Service or ServiceEntry"),
        ("subset", world.cluster_without("subset", ClusterKind::NoSuchSubset), "no DestinationRule"),
        ("port", world.cluster_without("port", ClusterKind::NoSuchPort), "no such port"),
    ];
    for (name, cluster, _) in clusters {
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
    }
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    for (name, _, why) in clusters {
        let text = client.get(name, "/").expect(503).text();
        assert!(text.starts_with("meshring: Service Unavailable (no_endpoint): "), "{text}");
        assert!(
            text.contains(&format!("outbound|80||{name}.default.svc.cluster.local")) && text.contains(why),
            "{text}"
        );
        assert!(text.contains("VirtualService default/test (test.yaml:1), http[0] at line 10"), "{text}");
    }
}

fn an_unknown_host_is_404_that_names_it(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let text = client.get("nobody.example.com", "/").expect(404).text();
    assert!(text.contains("\"nobody.example.com\"") && text.contains("from namespace default"), "{text}");
    assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    assert_eq!(upstream.received().len(), 1);
}

fn a_get_on_a_connection_that_the_upstream_has_closed_is_sent_again(driver: Driver) {
    // Each connection answers one request and closes, without saying so.
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.send(ok("once"));
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for number in 1..=20 {
        assert_eq!(client.get("echo", "/").expect(200).text(), "once");
        assert_eq!(upstream.received().len(), number);
    }
}

/// The upstream reads a second request on its connection and closes without an answer: what a client sees when its request
/// crosses the close of an idle connection.
fn closing_on_the_second_request() -> Upstream {
    Upstream::scripted(|peer| {
        if peer.connection == 0 {
            peer.request();
            peer.send(ok("first"));
            peer.request();
        } else {
            while peer.request().is_some() {
                peer.send(ok("fresh"));
            }
        }
    })
}

fn a_get_that_meets_a_closing_connection_is_retried_once(driver: Driver) {
    let upstream = closing_on_the_second_request();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
    assert_eq!(client.get("echo", "/2").expect(200).text(), "fresh");
    let targets: Vec<_> = upstream.received().iter().map(|r| (r.connection, r.target().to_owned())).collect();
    assert_eq!(targets, [(0, "/1".into()), (0, "/2".into()), (1, "/2".into())]);
}

fn a_post_that_meets_a_closing_connection_is_not_sent_twice(driver: Driver) {
    let upstream = closing_on_the_second_request();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
    client.send("POST /2 HTTP/1.1\r\nhost: echo\r\ncontent-length: 4\r\n\r\npaid");
    client.response().expect(502);
    let posts = upstream.received().iter().filter(|request| request.method() == "POST").count();
    assert_eq!(posts, 1);
}

/// PUT is idempotent, but a body that was streamed is gone: what is left of it must not go out as a second request.
fn a_streamed_put_that_meets_a_closing_connection_is_not_sent_again_in_part(driver: Driver) {
    let upstream = closing_on_the_second_request();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
    let body = vec![b'x'; 300_000];
    client.send(format!("PUT /2 HTTP/1.1\r\nhost: echo\r\ncontent-length: {}\r\n\r\n", body.len())).send(body);
    client.response().expect(502);
    assert_eq!(upstream.received().len(), 2, "the first GET and one PUT");
}

/// A world in which `slow` has a timeout of half a second.
fn world_with_timeout(upstream: &Upstream) -> World {
    let mut world = World::new();
    let cluster = world.cluster("slow", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("slow", vec![Route { timeout_ms: 500, ..rule(action) }]);
    world
}

fn a_silent_upstream_is_504_for_a_streamed_request_too(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&world_with_timeout(&upstream).snapshot(), driver);
    let mut client = proxy.connect();
    let body = vec![b'x'; 300_000];
    client.send(format!("POST / HTTP/1.1\r\nhost: slow\r\ncontent-length: {}\r\n\r\n", body.len())).send(body);
    assert!(client.response().expect(504).text().contains("did not respond in time"));
}

fn a_get_whose_interim_response_has_come_is_not_sent_again(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        if peer.connection == 0 {
            peer.request();
            peer.send(ok("first"));
            peer.request();
            peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        } else {
            while peer.request().is_some() {
                peer.send(ok("fresh"));
            }
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
    client.send(request("GET", "echo", "/2", &[]));
    assert!(client.head().line.contains("103"));
    client.response().expect(502);
    assert_eq!(upstream.received().len(), 2);
}

fn a_response_until_close_that_the_timeout_cuts_does_not_look_complete(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nhalf of it");
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&world_with_timeout(&upstream).snapshot(), driver);
    let mut client = proxy.connect();
    client.send(request("GET", "slow", "/", &[]));
    assert!(client.try_response("GET").is_err());
}

fn a_streamed_body_with_broken_chunks_is_400(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(format!("{:x}\r\n{}\r\n", 40_000, "x".repeat(40_000)));
    client.send("+5\r\nhello\r\n0\r\n\r\n");
    client.response().expect(400);
}

fn failures_of_one_upstream_leave_the_client_connection_usable(driver: Driver) {
    let answered = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&answered);
    let upstream = Upstream::scripted(move |peer| {
        while let Some(request) = peer.request() {
            if request.target() == "/fail" {
                return;
            }
            counter.fetch_add(1, Ordering::SeqCst);
            peer.send(ok("fine"));
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..10 {
        client.get("echo", "/fail").expect(502);
        client.get("nobody", "/").expect(404);
        client.get("echo", "/").expect(200);
    }
    wait::until("all answers", || (answered.load(Ordering::SeqCst) == 10).then_some(()));
}
