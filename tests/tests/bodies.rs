//! Bodies are streamed in both directions, byte for byte, at the pace of the slower side.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{ErrorKind, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use meshring_tests::{
    alone,
    client::request,
    generate::{Random, assert_same_bytes, body, chunked, pieces},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok},
    wait,
    wire::{Framing, is_truncation},
};
use rustix::net::sockopt;

const MIB: usize = 1024 * 1024;
/// Around every boundary that matters: one byte, a buffer of 16 KiB, a socket buffer, and far beyond.
const SIZES: [usize; 9] = [1, 2, 1000, 16_383, 16_384, 16_385, 65_537, MIB, 8 * MIB];
/// What the sockets of one direction may hold by themselves: two of the kernel's largest receive buffers (tcp_rmem, 6 MiB)
/// and send buffers (tcp_wmem, 4 MiB).
const SOCKET_BUFFERS_BYTES: u64 = 20 * MIB as u64;

on_both_drivers! {
    bodies_of_all_sizes_go_up_byte_exact
    bodies_of_all_sizes_come_down_byte_exact
    trailers_are_relayed
    an_upload_and_a_download_run_at_once
    a_stalled_reader_stops_the_upstream
    a_stalled_upstream_stops_the_client
    a_response_until_close_ends_cleanly_only_with_a_clean_close
    a_body_cut_short_is_never_passed_off_as_whole
    a_client_that_leaves_in_mid_upload_is_noticed_upstream
    bytes_behind_a_response_end_the_upstream_connection
    an_early_refusal_reaches_a_client_that_is_still_sending
}

fn bodies_of_all_sizes_go_up_byte_exact(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(&request.body.len().to_string()));
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let mut random = Random::new(1);
    // Made before the first one goes out: it takes a slow machine a while, in which a connection would be idle.
    let mut messages = Vec::new();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let data = body(seed as u64, size);
        let by_length =
            [format!("POST /l HTTP/1.1\r\nhost: echo\r\ncontent-length: {size}\r\n\r\n").as_bytes(), &data].concat();
        let in_chunks = [
            &b"POST /c HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n"[..],
            &chunked(&mut random, &data, size.div_ceil(50).max(3)),
        ]
        .concat();
        messages.extend([(by_length, data.clone()), (in_chunks, data)]);
    }
    for (message, data) in &messages {
        for piece in pieces(&mut random, message, message.len().div_ceil(20)) {
            client.send(piece);
        }
        assert_eq!(client.response().expect(200).text(), data.len().to_string());
    }
    let received = upstream.received();
    assert_eq!(received.len(), messages.len());
    for (received, (_, sent)) in received.iter().zip(&messages) {
        assert_same_bytes(&received.body, sent);
        let framing = if received.target() == "/l" { Framing::Length } else { Framing::Chunked };
        assert_eq!(received.framing, framing);
    }
    // No body has left anything behind that would have cost its connection.
    upstream.expect_reuse();
}

fn bodies_of_all_sizes_come_down_byte_exact(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        let mut random = Random::new(2);
        while let Some(request) = peer.request() {
            let (kind, size) = request.target()[1..].split_once('/').unwrap();
            let size = size.parse().unwrap();
            let data = body(size as u64, size);
            let message = match kind {
                "l" => [format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").as_bytes(), &data].concat(),
                _ => [
                    &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"[..],
                    &chunked(&mut random, &data, size.div_ceil(50).max(3)),
                ]
                .concat(),
            };
            for piece in pieces(&mut random, &message, message.len().div_ceil(20)) {
                peer.send(piece);
            }
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for size in SIZES {
        let expected = body(size as u64, size);
        for (kind, framing) in [("l", Framing::Length), ("c", Framing::Chunked)] {
            let response = client.get("echo", &format!("/{kind}/{size}"));
            assert_eq!(response.expect(200).framing, framing);
            assert_same_bytes(&response.body, &expected);
        }
    }
    assert_eq!(upstream.connections(), 1);
}

fn trailers_are_relayed(driver: Driver) {
    let upstream = Upstream::answering(|request| {
        assert_eq!(request.trailers.value("x-up"), Some("1"));
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-down: 2\r\ncontent-length: 9\r\n\r\n"
            .to_vec()
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    for _ in 0..2 {
        let post = "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-up: 1\r\nhost: evil\r\n\r\n";
        let response = client.send(post).response();
        assert_eq!(response.expect(200).text(), "ok");
        assert_eq!(response.trailers.value("x-down"), Some("2"));
        // Framing and routing fields have no business in a trailer section (RFC 9110 section 6.5.1).
        assert!(!response.trailers.has("content-length"), "{:?}", response.trailers);
    }
    let received = upstream.received();
    assert!(received.iter().all(|request| !request.trailers.has("host")), "{received:?}");
}

/// The upstream sends back each piece as it comes: a proxy that waited for the end of either body would wait for ever.
fn an_upload_and_a_download_run_at_once(driver: Driver) {
    const LEN: usize = 2 * MIB;
    let upstream = Upstream::scripted(|peer| {
        peer.head().unwrap();
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n"));
        let mut left = LEN;
        while left > 0 {
            let piece = peer.some();
            assert!(!piece.is_empty(), "{left} bytes are missing");
            peer.send(&piece);
            left -= piece.len();
        }
        peer.wait_for_end();
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    let data = body(3, LEN);
    client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: {LEN}\r\n\r\n"));
    // The head and the first bytes come back before the rest is sent.
    client.send(&data[..1000]);
    assert!(client.head().line.starts_with("HTTP/1.1 200 "));
    let mut received = client.bytes(1000);
    let mut writer = client.stream().try_clone().unwrap();
    let rest = data[1000..].to_vec();
    let sender = std::thread::spawn(move || writer.write_all(&rest));
    received.extend(client.bytes(LEN - 1000));
    sender.join().unwrap().unwrap();
    assert_same_bytes(&received, &data);
}

/// Writes without end until the other side takes nothing for a while; counts what was taken.
fn write_until_stalled(stream: &std::net::TcpStream, written: &AtomicU64, total: u64) {
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let piece = [b'x'; 64 * 1024];
    let mut stream = stream;
    while written.load(Ordering::SeqCst) < total {
        let left = (total - written.load(Ordering::SeqCst)).min(piece.len() as u64) as usize;
        match stream.write(&piece[..left]) {
            Ok(count) => drop(written.fetch_add(count as u64, Ordering::SeqCst)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until the flow has stopped and checks how much of it is under way.
fn assert_bounded(proxy: &Proxy, written: &AtomicU64, resident_before_kib: u64, total: u64) {
    let stopped_at =
        wait::until_still(Duration::from_millis(700), "the flow to stop", || written.load(Ordering::SeqCst));
    assert!(stopped_at > 0, "nothing was taken at all");
    assert!(stopped_at < SOCKET_BUFFERS_BYTES, "{stopped_at} of {total} bytes are under way though nobody reads them");
    let grown_kib = proxy.process.resident_kib().saturating_sub(resident_before_kib);
    assert!(grown_kib < 4 * 1024, "the proxy has grown by {grown_kib} KiB for one stalled body");
}

fn a_stalled_reader_stops_the_upstream(driver: Driver) {
    let _alone = alone();
    const TOTAL: u64 = 64 * MIB as u64;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let upstream = Upstream::scripted(move |peer| {
        while let Some(request) = peer.request() {
            if request.target() == "/small" {
                peer.send(ok("small"));
                continue;
            }
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n"));
            write_until_stalled(peer.stream(), &counter, TOTAL);
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    proxy.connect().get("echo", "/small").expect(200);
    let resident_kib = proxy.process.resident_kib();
    let mut client = proxy.connect();
    sockopt::set_socket_recv_buffer_size(client.stream(), 64 * 1024).unwrap();
    client.send(request("GET", "echo", "/large", &[]));
    assert_bounded(&proxy, &written, resident_kib, TOTAL);
    // Somebody else is served meanwhile, and the reader gets all of it once it reads again.
    proxy.connect().get("echo", "/small").expect(200);
    assert_eq!(client.response().expect(200).body.len() as u64, TOTAL);
}

fn a_stalled_upstream_stops_the_client(driver: Driver) {
    let _alone = alone();
    const TOTAL: u64 = 64 * MIB as u64;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::scripted(move |peer| {
        sockopt::set_socket_recv_buffer_size(peer.stream(), 64 * 1024).unwrap();
        let head = peer.head().unwrap();
        released.lock().unwrap().recv().unwrap();
        let len = peer.body(&head).unwrap().len();
        peer.send(ok(&len.to_string()));
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let resident_kib = proxy.process.resident_kib();
    let mut client = proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: {TOTAL}\r\n\r\n"));
    let written = Arc::new(AtomicU64::new(0));
    let (stream, counter) = (client.stream().try_clone().unwrap(), Arc::clone(&written));
    let sender = std::thread::spawn(move || write_until_stalled(&stream, &counter, TOTAL));
    assert_bounded(&proxy, &written, resident_kib, TOTAL);
    release.send(()).unwrap();
    sender.join().unwrap();
    assert_eq!(client.response().expect(200).text(), TOTAL.to_string());
}

fn a_response_until_close_ends_cleanly_only_with_a_clean_close(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        let request = peer.request().unwrap();
        peer.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
        if request.target() == "/reset" {
            // The client has what was sent so far; what follows is a failure.
            peer.reset();
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let response = proxy.connect().get("echo", "/clean");
    assert_eq!(response.expect(200).text(), "until the end");

    let mut client = proxy.connect();
    client.send(request("GET", "echo", "/reset", &[]));
    match client.try_response("GET") {
        // The reset may overtake the response on its way through the proxy; then it is a failure from the start.
        Ok(response) => assert_eq!(response.status, 502, "a broken response was passed off as whole: {response:?}"),
        Err(error) => assert!(is_truncation(&error), "{error:#}"),
    }
}

fn a_body_cut_short_is_never_passed_off_as_whole(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        let request = peer.request().unwrap();
        peer.send(match request.target() {
            "/length" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
            "/mid-chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nonly this",
            "/no-last-chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n",
            "/bad-chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\nZZ\r\n",
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n0\r\n",
        });
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    for target in ["/length", "/mid-chunk", "/no-last-chunk", "/bad-chunk", "/no-end"] {
        let mut client = proxy.connect();
        client.send(request("GET", "echo", target, &[]));
        match client.try_response("GET") {
            Ok(response) => assert_eq!(response.status, 502, "{target}: passed off as whole: {response:?}"),
            Err(error) => assert!(is_truncation(&error), "{target}: {error:#}"),
        }
        // To an HTTP/1.0 client the end of the connection is the end of the body: only a reset can tell it the truth.
        let mut client = proxy.connect();
        client.send(format!("GET {target} HTTP/1.0\r\nhost: echo\r\n\r\n"));
        match client.try_response("GET") {
            Ok(response) => assert_eq!(response.status, 502, "{target}: passed off as whole: {response:?}"),
            Err(error) => assert!(is_truncation(&error), "{target}: {error:#}"),
        }
    }
}

fn a_client_that_leaves_in_mid_upload_is_noticed_upstream(driver: Driver) {
    let noticed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&noticed);
    let upstream = Upstream::scripted(move |peer| {
        let head = peer.head().unwrap();
        let outcome = peer.body(&head);
        assert!(is_truncation(outcome.as_ref().unwrap_err()), "{outcome:?}");
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    for (at, head) in ["content-length: 100\r\n\r\nonly this", "transfer-encoding: chunked\r\n\r\n64\r\nonly this"]
        .into_iter()
        .enumerate()
    {
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\n{head}"));
        wait::until("the upload to arrive", || (upstream.connections() > at).then_some(()));
        drop(client);
        wait::until("the upstream to notice", || (noticed.load(Ordering::SeqCst) > at).then_some(()));
    }
}

fn bytes_behind_a_response_end_the_upstream_connection(driver: Driver) {
    // In one write with the response, or a moment after it: either way they must not become the next answer.
    let upstream = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            let extra = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
            match request.target() {
                "/together" => drop(peer.send([&ok("good")[..], extra.as_bytes()].concat())),
                "/after-204" => drop(peer.send(format!("HTTP/1.1 204 No Content\r\n\r\n{extra}"))),
                "/later" => {
                    peer.send(ok("good"));
                    peer.send(extra);
                }
                _ => drop(peer.send(ok("good"))),
            };
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    for target in ["/together", "/after-204", "/later"] {
        let mut client = proxy.connect();
        let first = client.get("echo", target);
        assert!(first.status == 204 || first.expect(200).text() == "good");
        if target == "/later" {
            // The stray bytes have arrived at the proxy's socket once its peer's send queue is empty; a round trip over
            // another connection is far longer than loopback needs for that.
            for _ in 0..20 {
                proxy.connect().get("nobody", "/").expect(404);
            }
        }
        for _ in 0..3 {
            assert_eq!(client.get("echo", "/next").expect(200).text(), "good", "after {target}");
        }
    }
    assert!(upstream.connections() >= 3, "{} connections", upstream.connections());
}

fn an_early_refusal_reaches_a_client_that_is_still_sending(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.head().unwrap();
        peer.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large");
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1000000\r\n\r\n");
    client.send(vec![b'x'; 10_000]);
    let response = client.response();
    assert_eq!(response.expect(413).text(), "too large");
    assert_eq!(response.fields.value("connection"), Some("close"));
}
