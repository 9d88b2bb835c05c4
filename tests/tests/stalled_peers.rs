//! A peer that stalls is let go at the deadline, whichever direction it stalls in and whatever it does in the other one.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use meshring_core::{limits::DEADLINE_TICK_MS, table::model::Route};
use meshring_tests::{
    alone,
    client::request,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Peer, Upstream},
    wait,
};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

/// The rule's timeout in these tests, in milliseconds: the one deadline of a write that a user can set.
const TIMEOUT_MS: u32 = 1_000;

on_both_drivers! {
    a_client_that_uploads_but_reads_nothing_is_let_go_at_the_timeout
    a_response_that_is_cut_at_the_timeout_does_not_look_whole
    a_client_that_reads_no_interim_response_is_let_go_at_the_timeout
    an_upstream_that_does_not_complete_a_connection_is_504_at_the_timeout
}

/// A world in which `echo` has a timeout.
fn world_with_timeout(address: SocketAddr) -> Vec<u8> {
    let mut world = World::new();
    let cluster = world.cluster("echo", &[address]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![Route { timeout_ms: TIMEOUT_MS, ..rule(action) }]);
    world.snapshot()
}

/// An upstream that answers a request head with `begin` and then with `piece` again and again, until the proxy takes no
/// more of it; says when that is over, which is when the proxy has ended the connection.
fn endless_upstream(begin: &'static str, piece: String) -> (Upstream, mpsc::Receiver<()>) {
    let (over, is_over) = mpsc::channel();
    let over = Mutex::new(over);
    let upstream = Upstream::scripted(move |peer: &mut Peer| {
        peer.head().unwrap();
        peer.send(begin);
        while peer.send(&piece) {}
        over.lock().unwrap().send(()).unwrap();
    });
    (upstream, is_over)
}

/// Reads what was already on its way; the end must follow, in whichever way.
fn assert_ended(mut stream: &TcpStream) {
    let mut space = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut space) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection has not ended: {error}"),
        }
    }
}

fn assert_not_early(begun: Instant) {
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    assert!(elapsed_ms + DEADLINE_TICK_MS >= u64::from(TIMEOUT_MS), "ended after {elapsed_ms} ms");
}

/// The upload is never silent, so that the deadlines of reading never pass; the response waits for a reader all the time.
fn a_client_that_uploads_but_reads_nothing_is_let_go_at_the_timeout(driver: Driver) {
    let endless = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
    let (upstream, is_over) = endless_upstream(endless, "x".repeat(64 * 1024));
    let proxy = Proxy::alone(&world_with_timeout(upstream.address()), driver);
    let mut client = proxy.connect();
    let begun = Instant::now();
    client.send("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1000000000000\r\n\r\n");
    let error = wait::until("the client's connection to be ended", || client.try_send("x").err());
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    assert_not_early(begun);
    is_over.recv_timeout(wait::PATIENCE).expect("the upstream's connection is ended, too");
    assert_ended(client.stream());
}

/// Only the end of the connection marks the end of this body.
fn a_response_that_is_cut_at_the_timeout_does_not_look_whole(driver: Driver) {
    let (upstream, is_over) = endless_upstream("HTTP/1.1 200 OK\r\n\r\n", "x".repeat(64 * 1024));
    let proxy = Proxy::alone(&world_with_timeout(upstream.address()), driver);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\nhost: echo\r\n\r\n");
    is_over.recv_timeout(wait::PATIENCE).expect("the upstream's connection is ended");
    // Not before the reset has come: it is behind a FIN, which is behind what nobody has read.
    wait::until("the client's connection to be reset", || client.stream().peer_addr().is_err().then_some(()));
    let mut response = Vec::new();
    let end = client.stream().read_to_end(&mut response);
    let error = end.expect_err("a response that was cut looks whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&response));
}

/// Interim responses without end, and nobody who reads them.
fn a_client_that_reads_no_interim_response_is_let_go_at_the_timeout(driver: Driver) {
    let hint = format!("HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n", "h".repeat(8_000));
    let (upstream, is_over) = endless_upstream("", hint);
    let proxy = Proxy::alone(&world_with_timeout(upstream.address()), driver);
    let mut client = proxy.connect();
    let begun = Instant::now();
    client.send(request("GET", "echo", "/", &[]));
    is_over.recv_timeout(wait::PATIENCE).expect("the upstream's connection is ended");
    assert_not_early(begun);
    assert_ended(client.stream());
}

/// A listener whose queue is full: the kernel drops every further SYN, as a firewall does.
struct Blackhole {
    address: SocketAddr,
    _listener: OwnedFd,
    _queued: TcpStream,
}

impl Blackhole {
    fn new() -> Self {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        // One connection fits a queue of 0.
        listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let queued = TcpStream::connect(address).unwrap();
        let further = TcpStream::connect_timeout(&address, Duration::from_millis(200));
        assert_eq!(further.unwrap_err().kind(), ErrorKind::TimedOut, "this listener completes connections");
        Self { address, _listener: listener, _queued: queued }
    }
}

fn an_upstream_that_does_not_complete_a_connection_is_504_at_the_timeout(driver: Driver) {
    let _alone = alone();
    let timeout_ms = u128::from(TIMEOUT_MS);
    let blackhole = Blackhole::new();
    let proxy = Proxy::alone(&world_with_timeout(blackhole.address), driver);
    let mut client = proxy.connect();
    let mut elapsed_ms = Vec::new();
    // Never too early; a busy machine may be late, but not three times in a row.
    for attempt in 0..3 {
        let begun = Instant::now();
        let response = client.get("echo", "/");
        elapsed_ms.push(begun.elapsed().as_millis());
        assert!(response.expect(504).text().contains(&blackhole.address.to_string()), "{}", response.text());
        assert!(elapsed_ms[attempt] >= timeout_ms * 9 / 10, "{elapsed_ms:?}");
        if elapsed_ms[attempt] <= timeout_ms * 11 / 10 {
            return;
        }
    }
    panic!("504 after {elapsed_ms:?} ms, the timeout is {TIMEOUT_MS} ms");
}
