//! A client of HTTP/2 that ends its direction of the connection (a FIN of TCP, `close_notify` of TLS) and waits: what it has asked for
//! whole is answered, as over HTTP/1.1. One that is gone costs nothing.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::ErrorKind,
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    frames::{block, code, headers},
    h2::{self, Connection, Opening},
    h2_application::{Application, Hop},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, response},
    wait,
};

on_both_drivers! {
    what_was_asked_for_is_answered
    what_was_not_sent_whole_goes_no_further
    what_does_not_fit_the_window_ends_the_connection
    a_client_that_is_gone_is_noticed
}

/// Ends the client's direction and waits until the proxy has noticed: it asks whether anybody still listens.
fn end_sending(client: &mut Connection<std::net::TcpStream>) {
    client.acknowledges = false;
    client.socket().shutdown(Shutdown::Write).unwrap();
    client.wait("a PING", |connection| (!connection.pings.is_empty()).then_some(()));
}

/// A proxy before servers of either version.
fn proxy(driver: Driver, protocol: UpstreamProtocol, address: SocketAddr) -> Proxy {
    let mut world = World::new();
    let cluster = world.cluster("echo", &[address]);
    world.protocol(cluster, protocol);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    Proxy::alone(&world.snapshot(), driver)
}

/// Answers once it may, and counts what has come and what was given up.
struct Late {
    upstream: Upstream,
    may_answer: Arc<AtomicBool>,
    arrived: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
}

impl Late {
    fn new() -> Self {
        let may_answer = Arc::<AtomicBool>::default();
        let (arrived, given_up) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (may, come, gone) = (Arc::clone(&may_answer), Arc::clone(&arrived), Arc::clone(&given_up));
        let upstream = Upstream::scripted(move |peer| {
            while let Some(request) = peer.request() {
                come.fetch_add(1, Ordering::SeqCst);
                peer.stream().set_nonblocking(true).unwrap();
                let is_there = wait::until("the word to answer, or the end", || {
                    let looked = peer.stream().peek(&mut [0]).map_err(|error| error.kind());
                    if looked != Err(ErrorKind::WouldBlock) {
                        return Some(false);
                    }
                    may.load(Ordering::SeqCst).then_some(true)
                });
                peer.stream().set_nonblocking(false).unwrap();
                if !is_there {
                    gone.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                peer.send(response(200, &[], request.target().as_bytes()));
            }
            gone.fetch_add(1, Ordering::SeqCst);
        });
        Self { upstream, may_answer, arrived, given_up }
    }

    fn wait_for(&self, count: usize) {
        wait::until("the requests at the server", || (self.arrived.load(Ordering::SeqCst) >= count).then_some(()));
    }
}

fn what_was_asked_for_is_answered(driver: Driver) {
    let late = Late::new();
    let proxy = proxy(driver, UpstreamProtocol::Http1, late.upstream.address());
    let mut client = Connection::connect(proxy.outbound());
    let streams: Vec<u32> =
        ["/one", "/two", "/three"].iter().map(|path| client.request(&h2::get("echo", path), true)).collect();
    late.wait_for(3);
    end_sending(&mut client);
    late.may_answer.store(true, Ordering::SeqCst);
    for (stream, path) in streams.into_iter().zip(["/one", "/two", "/three"]) {
        assert_eq!(client.response(stream).expect(200).text(), path);
    }
    assert_eq!(client.end(), Some(code::NO_ERROR));
}

fn what_was_not_sent_whole_goes_no_further(driver: Driver) {
    let hop = Hop::new(driver);
    let mut client = hop.connect();
    // It is large enough to go upstream before its end has come.
    let body = vec![b'x'; 40_000];
    let cut = client.request(&h2::request("POST", "echo", "/cut"), false);
    client.body(cut, &body, false);
    // What comes back was passed on.
    client.wait("credit", |connection| connection.credit.get(&cut).map(|_| ()));
    client.acknowledges = false;
    client.socket().shutdown(Shutdown::Write).unwrap();
    client.end();
    let received = hop.application.wait_for(1);
    assert!(received[0].reset.is_some() && !received[0].ended, "{received:?}");
}

fn what_does_not_fit_the_window_ends_the_connection(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        connection.send(headers(stream, block(&[(":status", "200")]), false));
        let len = if message.fields.value(":path") == Some("/large") { 200_000 } else { 1_000 };
        let _ = connection.offer(stream, &vec![b'x'; len], true);
    });
    let hop = Hop::before(driver, application);
    let opening = Opening { credit: 1 << 20, ..Opening::narrow() };
    let mut client = Connection::connect_with(hop.proxy.outbound(), &opening);
    let requests = ["/small", "/large"].map(|path| {
        let stream = client.new_stream();
        (stream, headers(stream, block(&h2::get("echo", path)), true))
    });
    client.acknowledges = false;
    client.send([&requests[0].1[..], &requests[1].1[..]].concat());
    client.socket().shutdown(Shutdown::Write).unwrap();
    client.end();
    let (small, large) = (client.message(requests[0].0), client.message(requests[1].0));
    assert_eq!(small.expect(200).body.len(), 1_000);
    assert!(!large.ended, "{} bytes of it", large.body.len());
}

fn a_client_that_is_gone_is_noticed(driver: Driver) {
    let late = Late::new();
    let proxy = proxy(driver, UpstreamProtocol::Http1, late.upstream.address());
    for count in 1..=3 {
        let mut client = Connection::connect(proxy.outbound());
        client.request(&h2::get("echo", "/held"), true);
        late.wait_for(count);
        drop(client);
        wait::until("the request to be given up", || (late.given_up.load(Ordering::SeqCst) == count).then_some(()));
    }
}
