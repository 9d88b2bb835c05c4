//! How long connections may be idle, be made, and wait for a response, and how many idle ones are kept: each a setting.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use meshring_core::limits::DEADLINE_TICK_MS;
use meshring_tests::{
    client::{Client, request},
    h2, on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok},
    wait,
};

on_both_drivers! {
    a_client_without_a_request_is_closed_after_the_idle_timeout
    an_idle_upstream_connection_is_closed_after_its_timeout
    no_more_idle_upstream_connections_are_kept_than_allowed
    an_upstream_that_does_not_answer_is_504_after_the_response_timeout
    a_connection_that_cannot_be_made_is_504_after_the_connect_timeout
}

fn proxy(world: &[u8], driver: Driver, arguments: &[&str]) -> Proxy {
    Proxy::alone_with(world, |proxy| proxy.driver(driver).arguments(arguments))
}

/// What a setting of so many milliseconds may come to at the least: deadlines are looked at on ticks.
fn at_least(begun: Instant, ms: u64) {
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(ms - 2 * DEADLINE_TICK_MS), "after {elapsed:?}");
}

fn a_client_without_a_request_is_closed_after_the_idle_timeout(driver: Driver) {
    let upstream = Upstream::saying("fine");
    let proxy = proxy(&World::with_echo(upstream.address()), driver, &["--idle-timeout=800ms"]);
    let begun = Instant::now();
    let mut silent = proxy.connect();
    let mut used = proxy.connect();
    used.get("echo", "/").expect(200);
    let since = Instant::now();
    // The default is an hour.
    silent.expect_end();
    at_least(begun, 800);
    used.expect_end();
    at_least(since, 800);
}

fn an_idle_upstream_connection_is_closed_after_its_timeout(driver: Driver) {
    let upstream = Upstream::saying("fine");
    let proxy = proxy(&World::with_echo(upstream.address()), driver, &["--upstream-idle-timeout=1200ms"]);
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    let since = Instant::now();
    upstream.wait_until_all_ended();
    at_least(since, 1200);
    client.get("echo", "/").expect(200);
    assert_eq!(upstream.connections(), 2);
}

fn no_more_idle_upstream_connections_are_kept_than_allowed(driver: Driver) {
    for kept in [0, 2] {
        // Each of four requests waits for all of them, so that each has a connection of its own.
        let (together, ended) = (Arc::new(Barrier::new(4)), Arc::new(AtomicUsize::new(0)));
        let ends = Arc::clone(&ended);
        let upstream = Upstream::scripted(move |peer| {
            while let Some(request) = peer.request() {
                if request.target() == "/together" {
                    together.wait();
                }
                peer.send(ok("fine"));
            }
            ends.fetch_add(1, Ordering::SeqCst);
        });
        let argument = format!("--upstream-idle-max={kept}");
        let proxy = proxy(&World::with_echo(upstream.address()), driver, &[&argument]);
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.send(request("GET", "echo", "/together", &[]));
        }
        for client in &mut clients {
            client.response().expect(200);
        }
        wait::until("the end of what may not be kept", || (ended.load(Ordering::SeqCst) == 4 - kept).then_some(()));
        clients[0].get("echo", "/").expect(200);
        assert_eq!(upstream.connections(), if kept == 0 { 5 } else { 4 }, "{kept} may be kept");
    }
}

fn an_upstream_that_does_not_answer_is_504_after_the_response_timeout(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let proxy = proxy(&World::with_echo(upstream.address()), driver, &["--response-timeout=700ms"]);
    let begun = Instant::now();
    // The default is five minutes.
    proxy.connect().get("echo", "/").expect(504);
    at_least(begun, 700);
}

/// A listener whose queue is full: the kernel answers no further connection.
fn deaf() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    rustix::net::bind(socket.as_fd(), &any).unwrap();
    rustix::net::listen(socket.as_fd(), 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    // A queue of 0 takes one connection, or two.
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queue.push(stream);
        assert!(queue.len() < 16, "the queue takes everybody");
    }
    (listener, queue, address)
}

fn a_connection_that_cannot_be_made_is_504_after_the_connect_timeout(driver: Driver) {
    let (_listener, _queue, address) = deaf();
    let proxy = proxy(&World::with_echo(address), driver, &["--connect-timeout=600ms"]);
    let begun = Instant::now();
    let response = proxy.connect().get("echo", "/");
    assert!(response.expect(504).text().contains("timed out"), "{}", response.text());
    at_least(begun, 600);
}

#[test]
fn an_idle_connection_of_http2_is_told_to_go_after_the_idle_timeout() {
    let upstream = Upstream::saying("fine");
    let proxy = proxy(&World::with_echo(upstream.address()), Driver::Auto, &["--idle-timeout=800ms"]);
    let begun = Instant::now();
    let mut peer = h2::Connection::connect(proxy.outbound());
    peer.get("echo", "/").expect(200);
    // NO_ERROR.
    peer.expect_end(0);
    at_least(begun, 800);
}
