//! Pooled upstream connections: used while they are surely good, never so that a request is lost or sent twice.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use meshring_core::limits::{KEEP_ALIVE_MARGIN_MS, UPSTREAM_IDLE_ONCE_MS_MAX};
use meshring_tests::{
    alone,
    client::{Client, request},
    generate::Random,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok, response},
    wait,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

on_both_drivers! {
    a_connection_is_not_used_in_the_last_second_that_its_server_grants
    a_post_does_not_go_on_a_connection_that_was_idle_for_long
    an_upstream_that_closes_idle_connections_at_random_costs_no_request
}

/// Lets time pass: idleness is nothing but that.
fn pause(time: Duration) {
    let begun = Instant::now();
    wait::until("a pause", || (begun.elapsed() >= time).then_some(()));
}

fn post(client: &mut Client, target: &str) -> u16 {
    client.send(request("POST", "echo", target, &[("content-length", "4")])).send("paid").response().status
}

fn a_connection_is_not_used_in_the_last_second_that_its_server_grants(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::answering(|request| match request.target() {
        "/2" => response(200, &[("keep-alive", "max=100, timeout=2")], b"two"),
        "/1" => response(200, &[("keep-alive", "timeout=1")], b"one"),
        _ => ok("fine"),
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.get("echo", "/2").expect(200);
    client.get("echo", "/2").expect(200);
    assert_eq!(upstream.connections(), 1, "at once, it is as good as any");
    pause(Duration::from_millis(2_000 - KEEP_ALIVE_MARGIN_MS + 50));
    client.get("echo", "/").expect(200);
    assert_eq!(upstream.connections(), 2, "a second before its end it is not");
    // What has announced nothing stays; a second is all that this one grants.
    pause(Duration::from_millis(2_000 - KEEP_ALIVE_MARGIN_MS + 50));
    client.get("echo", "/1").expect(200);
    assert_eq!(upstream.connections(), 2);
    client.get("echo", "/").expect(200);
    assert_eq!(upstream.connections(), 3);
}

fn a_post_does_not_go_on_a_connection_that_was_idle_for_long(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::saying("fine");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    assert_eq!(post(&mut client, "/"), 200);
    assert_eq!(upstream.connections(), 1, "what was in use just now is as good for a POST");
    pause(Duration::from_millis(UPSTREAM_IDLE_ONCE_MS_MAX + 50));
    assert_eq!(post(&mut client, "/"), 200);
    assert_eq!(upstream.connections(), 2);
    pause(Duration::from_millis(UPSTREAM_IDLE_ONCE_MS_MAX + 50));
    client.get("echo", "/").expect(200);
    assert_eq!(upstream.connections(), 2, "a GET can be sent again, so that it goes on any");
}

fn an_upstream_that_closes_idle_connections_at_random_costs_no_request(driver: Driver) {
    const CLIENTS: u64 = 4;
    const REQUESTS: usize = 1_500;
    let _alone = alone();
    // Each connection closes after 0 to 2 ms without a further request, which is when the next one comes.
    let upstream = Upstream::scripted(|peer| {
        let mut random = Random::new(peer.connection as u64);
        while let Some(request) = peer.request() {
            peer.send(ok(request.target()));
            let silence = Timespec { tv_sec: 0, tv_nsec: random.below(2_000_000) as i64 };
            let mut fds = [PollFd::new(peer.stream(), PollFlags::IN)];
            if poll(&mut fds, Some(&silence)) == Ok(0) {
                return;
            }
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let address = proxy.outbound();
    let threads = (0..CLIENTS).map(|client_number| {
        thread::spawn(move || {
            let mut random = Random::new(1_000 + client_number);
            let mut client = Client::connect(address);
            let mut posts_lost = 0_u32;
            for number in 0..REQUESTS {
                pause(Duration::from_micros(random.below(1_500) as u64));
                let target = format!("/{client_number}/{number}");
                if number % 3 > 0 {
                    assert_eq!(client.get("echo", &target).expect(200).text(), target);
                } else {
                    let status = post(&mut client, &target);
                    assert!(status == 200 || status == 502, "{status}");
                    if status == 502 {
                        // An error that answers a request with a body ends the client's connection.
                        client = Client::connect(address);
                        posts_lost += 1;
                    }
                }
            }
            posts_lost
        })
    });
    let threads: Vec<_> = threads.collect();
    let posts_lost: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{posts_lost} POSTs met the very moment of a close; {} connections", upstream.connections());
    assert!(upstream.connections() > 100, "the upstream did close");
    let mut posts = HashMap::new();
    for request in upstream.received().iter().filter(|request| request.method() == "POST") {
        *posts.entry(request.target().to_owned()).or_insert(0) += 1;
    }
    assert!(posts.values().all(|&count| count == 1), "a POST that was sent twice");
}
