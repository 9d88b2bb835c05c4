//! A client that begins a request and does not finish it is told so, and costs nothing after that.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::Read as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use meshring_core::limits::{DEADLINE_TICK_MS, REQUEST_HEAD_MS_MAX};
use meshring_tests::{
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
};

on_both_drivers! {
    a_head_that_does_not_end_is_408_at_the_deadline
}

fn a_head_that_does_not_end_is_408_at_the_deadline(driver: Driver) {
    let proxy = Proxy::alone(&World::new().snapshot(), driver);
    let mut client = proxy.connect();
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: ec");
    let mut stream: &TcpStream = client.stream();
    stream.set_read_timeout(Some(Duration::from_millis(2 * REQUEST_HEAD_MS_MAX))).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("http1.head_timeout"), "{answer}");
    assert!(elapsed_ms >= REQUEST_HEAD_MS_MAX - 2 * DEADLINE_TICK_MS, "after {elapsed_ms} ms");
    // Once more the same time is what a busy machine may take; a proxy that waited for the idle limit would take an hour.
    assert!(elapsed_ms < 2 * REQUEST_HEAD_MS_MAX, "after {elapsed_ms} ms");
}
