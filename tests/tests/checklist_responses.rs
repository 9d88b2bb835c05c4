//! Items 57 to 66 of the HTTP checklist: what an upstream sends is checked as strictly as what a client sends. (Item 67, the
//! retry, has a file of its own.)
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::Write as _,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use meshring_core::{
    limits::{BUFFER_BYTES, DEADLINE_TICK_MS, LINGER_BYTES_MAX},
    table::model::Route,
};
use meshring_tests::{
    checklist::{BEHIND, Chain, Shown, Sidecar, contains, expect_bytes},
    client::{Client, request},
    on_both_drivers,
    ports::Reserved,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, ok},
    wire::is_truncation,
};

on_both_drivers! {
    item_57_a_response_to_head_has_no_body_and_the_next_one_is_aligned
    item_58_bytes_behind_204_or_304_end_the_upstream_connection
    item_59_ambiguous_framing_is_502
    item_60_bytes_on_an_idle_connection_end_it
    item_61_malformed_heads_are_502
    item_62_a_truncated_body_gets_no_end
    item_63_an_http_1_0_client_never_gets_chunked
    item_64_an_early_413_is_relayed_and_the_rest_is_not_read_without_end
    item_65_a_half_closed_client_still_gets_its_response
    item_66_slow_headers_are_408
    item_66_a_silent_upstream_is_504
    item_66_a_reset_is_502
    item_66_no_healthy_endpoint_is_503
}

/// What must never be taken for a response.
const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

fn item_57_a_response_to_head_has_no_body_and_the_next_one_is_aligned(driver: Driver) {
    let upstream = Upstream::answering(|request| match (request.method(), request.target()) {
        ("HEAD", "/length") => b"HTTP/1.1 200 Fine\r\ncontent-length: 1000\r\n\r\n".to_vec(),
        ("HEAD", "/chunked") => b"HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        ("HEAD", "/neither") => b"HTTP/1.1 200 Fine\r\n\r\n".to_vec(),
        ("HEAD", "/not-modified") => b"HTTP/1.1 304 Fine\r\ncontent-length: 1000\r\n\r\n".to_vec(),
        // It does not know better.
        ("HEAD", _) => ok(EVIL),
        _ => ok("the body"),
    });
    let chain = Chain::before(driver, upstream);
    for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
        let mut client = Client::connect(address);
        for (target, length) in
            [("/length", Some("1000")), ("/chunked", None), ("/neither", None), ("/not-modified", Some("1000"))]
        {
            client.send([request("HEAD", "echo", target, &[]), request("GET", "echo", "/", &[])].concat());
            let head = client.try_response("HEAD").unwrap();
            assert_eq!(head.fields.value("content-length"), length, "{target}");
            assert_eq!(client.response().expect(200).text(), "the body", "{target}");
        }
        let connections = chain.second.upstream.connections();
        client.send(request("HEAD", "echo", "/with-body", &[]));
        let announced = client.try_response("HEAD").unwrap();
        assert_eq!(announced.fields.value("content-length"), Some(EVIL.len().to_string().as_str()));
        assert_eq!(client.get("echo", "/").expect(200).text(), "the body");
        assert_eq!(chain.second.upstream.connections(), connections + 1, "what sent too much is not used again");
    }
}

fn item_58_bytes_behind_204_or_304_end_the_upstream_connection(driver: Driver) {
    for head in [
        "HTTP/1.1 204 Fine\r\n\r\n",
        "HTTP/1.1 204 Fine\r\ncontent-length: 41\r\n\r\n",
        "HTTP/1.1 204 Fine\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Fine\r\n\r\n",
        "HTTP/1.1 304 Fine\r\ncontent-length: 41\r\n\r\n",
    ] {
        let (sent, strays) = mpsc::channel();
        let sent = Mutex::new(sent);
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let upstream = Upstream::scripted(move |peer| {
            while let Some(request) = peer.request() {
                match request.target() {
                    "/together" => drop(peer.send(format!("{head}{EVIL}"))),
                    "/in-two" => {
                        peer.send(head);
                        gone.lock().unwrap().recv().unwrap();
                        peer.send(EVIL);
                    }
                    _ => {
                        peer.send(ok("good"));
                        continue;
                    }
                }
                sent.lock().unwrap().send(()).unwrap();
            }
        });
        let sidecar = Sidecar::before(driver, upstream);
        for target in ["/together", "/in-two"] {
            for listener in [sidecar.outbound(), sidecar.inbound()] {
                let mut client = Client::connect(listener);
                let first = client.get_first("echo", target);
                assert!(first.starts_with(&head[..12]), "{first}");
                if target == "/in-two" {
                    go.send(()).unwrap();
                }
                // What came behind it is in the proxy's socket by the time of this.
                strays.recv().unwrap();
                sidecar.settle();
                for _ in 0..2 {
                    assert_eq!(client.get("echo", "/next").expect(200).text(), "good", "{head:?} {target}");
                }
            }
        }
        assert!(sidecar.upstream.connections() >= 3, "{head:?}: {} connections", sidecar.upstream.connections());
    }
}

/// A client's look at a response without body.
trait First {
    fn get_first(&mut self, host: &str, target: &str) -> String;
}

impl First for Client {
    fn get_first(&mut self, host: &str, target: &str) -> String {
        self.send(request("GET", host, target, &[]));
        let head = self.head();
        assert!(!head.fields.has("transfer-encoding"), "{head:?}");
        head.line
    }
}

/// Asserts that each of these answers becomes a 502 with a code of ours, that nothing of it reaches the client, and that its
/// connection is not used again.
#[track_caller]
fn expect_502<A: AsRef<[u8]> + Clone + Send + Sync + 'static>(driver: Driver, answers: &[(A, &str)]) {
    let all: Vec<_> = answers.iter().map(|(answer, _)| answer.clone()).collect();
    let upstream = Upstream::scripted(move |peer| {
        while let Some(request) = peer.request() {
            match request.target()[1..].parse::<usize>() {
                Ok(number) => drop(peer.send([all[number].as_ref(), EVIL.as_bytes()].concat())),
                Err(_) => drop(peer.send(ok("good"))),
            }
        }
    });
    let sidecar = Sidecar::before(driver, upstream);
    let mut connections = 0;
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        for (number, (answer, code)) in answers.iter().enumerate() {
            let shown = Shown(answer.as_ref());
            assert_eq!(client.get("echo", "/good").expect(200).text(), "good", "{shown}");
            let response = client.get("echo", &format!("/{number}"));
            let text = response.expect(502).text();
            assert!(text.starts_with("meshring: Bad Gateway (") && text.contains(code), "{shown}: {text}");
            // Both went over one connection, which ends: the next good one has a new one.
            connections += 1;
            sidecar.upstream.wait_until_all_ended();
            assert_eq!(sidecar.upstream.connections(), connections, "{shown}");
        }
    }
}

fn item_59_ambiguous_framing_is_502(driver: Driver) {
    let answers = [
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", "upstream_http1.length_with_encoding"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "upstream_http1.length_with_encoding"),
        ("content-length: 5\r\ncontent-length: 6\r\n", "upstream_http1.repeated_length"),
        ("content-length: 5\r\nCONTENT-LENGTH: 5\r\n", "upstream_http1.repeated_length"),
        ("content-length: 5, 5\r\n", "upstream_http1.bad_length"),
        ("content-length: 5, 6\r\n", "upstream_http1.bad_length"),
        ("content-length: +5\r\n", "upstream_http1.bad_length"),
        ("content-length: -1\r\n", "upstream_http1.bad_length"),
        ("content-length: 0x5\r\n", "upstream_http1.bad_length"),
        ("content-length:\r\n", "upstream_http1.bad_length"),
        ("content-length: 18446744073709551616\r\n", "upstream_http1.bad_length"),
        ("transfer-encoding: gzip\r\n", "upstream_http1.bad_encoding"),
        ("transfer-encoding: chunked, gzip\r\n", "upstream_http1.bad_encoding"),
        ("transfer-encoding: ,chunked\r\n", "upstream_http1.bad_encoding"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "upstream_http1.bad_encoding"),
        ("transfer-encoding:\r\n", "upstream_http1.bad_encoding"),
        ("connection: content-length\r\ncontent-length: 5\r\n", "upstream_http1.bad_connection"),
        ("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n", "upstream_http1.bad_connection"),
    ]
    .map(|(lines, code)| (format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello"), code));
    expect_502(driver, &answers);
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    expect_502(driver, &[(old, "upstream_http1.bad_encoding")]);
}

fn item_61_malformed_heads_are_502(driver: Driver) {
    let rest = "content-length: 2\r\n\r\nok";
    let mut answers: Vec<_> = [
        ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n", "upstream_http1.obs_fold"),
        ("HTTP/1.1 200 OK\r\nx: a\r\n\tb\r\n", "upstream_http1.obs_fold"),
        ("HTTP/1.1 200 OK\r\n x: a\r\n", "upstream_http1.obs_fold"),
        ("HTTP/1.1 200 OK\r\nx: a\0b\r\n", "upstream_http1.nul"),
        ("HTTP/1.1 200 O\0K\r\n", "upstream_http1.nul"),
        ("HTTP/1.1 200 OK\r\nx\0: a\r\n", "upstream_http1.nul"),
        ("HTTP/1.1 200 OK\nx: a\r\n", "upstream_http1.bare_lf"),
        ("HTTP/1.1 200 OK\r\nx: a\n", "upstream_http1.bare_lf"),
        ("HTTP/1.1 200 OK\r\nx: a\rb\r\n", "upstream_http1.bare_cr"),
        ("HTTP/1.1 200 OK\r\nx : a\r\n", "upstream_http1.field_line"),
        ("HTTP/1.1 200 OK\r\nx a\r\n", "upstream_http1.field_line"),
        ("HTTP/1.1 200 OK\r\n: a\r\n", "upstream_http1.field_line"),
        ("HTTP/1.1 200 OK\r\nx\u{85}: a\r\n", "upstream_http1.field_line"),
        ("\r\nHTTP/1.1 200 OK\r\n", "upstream_http1.status_line"),
        ("HTTP/1.1 20 OK\r\n", "upstream_http1.status_line"),
        ("HTTP/1.1  200 OK\r\n", "upstream_http1.status_line"),
        ("HTTP/1.1 099 OK\r\n", "upstream_http1.status"),
        ("HTTP/1.1 600 OK\r\n", "upstream_http1.status"),
        ("HTTP/2.0 200 OK\r\n", "upstream_http1.version"),
        ("HTTP/0.9 200 OK\r\n", "upstream_http1.version"),
        ("ICY 200 OK\r\n", "upstream_http1.version"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "upstream_http1.version"),
    ]
    .map(|(head, code)| (format!("{head}{rest}"), code))
    .into();
    answers.push((format!("HTTP/1.1 200 OK\r\nx: {}\r\n{rest}", "a".repeat(70_000)), "upstream_http1.head_too_large"));
    answers.push((format!("HTTP/1.1 200 OK\r\n{}{rest}", "x: y\r\n".repeat(200)), "upstream_http1.too_many_fields"));
    expect_502(driver, &answers);
}

fn item_60_bytes_on_an_idle_connection_end_it(driver: Driver) {
    // What servers send on their own: an answer to nothing, a good-bye, garbage, and an end.
    let strays: [&[u8]; 5] = [
        EVIL.as_bytes(),
        b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        b"x",
        b"\r\n",
        b"",
    ];
    for stray in strays {
        let (sent, arrived) = mpsc::channel();
        let sent = Mutex::new(sent);
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let upstream = Upstream::scripted(move |peer| {
            let first = peer.connection == 0;
            while peer.request().is_some() {
                peer.send(ok(if first { "first" } else { "fresh" }));
                if first {
                    gone.lock().unwrap().recv().unwrap();
                    if stray.is_empty() {
                        return;
                    }
                    peer.send(stray);
                    sent.lock().unwrap().send(()).unwrap();
                }
            }
        });
        let sidecar = Sidecar::before(driver, upstream);
        let mut client = sidecar.proxy.connect();
        assert_eq!(client.get("echo", "/1").expect(200).text(), "first");
        go.send(()).unwrap();
        if stray.is_empty() {
            sidecar.upstream.wait_until_all_ended();
        } else {
            arrived.recv().unwrap();
        }
        sidecar.settle();
        // Even a request that could not be sent again is safe: it meets no connection that has spoken out of turn.
        client.send("POST /2 HTTP/1.1\r\nhost: echo\r\ncontent-length: 4\r\n\r\npaid");
        assert_eq!(client.response().expect(200).text(), "fresh", "{}", Shown(stray));
        assert_eq!(client.get("echo", "/3").expect(200).text(), "fresh");
        sidecar.upstream.catch_up();
        let seen: Vec<_> = sidecar
            .upstream
            .received()
            .iter()
            .map(|request| (request.connection, request.target().to_owned()))
            .collect();
        assert_eq!(seen, [(0, "/1".into()), (1, "/2".into()), (1, "/3".into())], "{}", Shown(stray));
    }
}

fn item_62_a_truncated_body_gets_no_end(driver: Driver) {
    let answers = [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", ""),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "5\r\nhel"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "0"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "0\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "0\r\nx: y\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "+5\r\nhello\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "0\n\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "5;a\nhello\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", ""),
    ];
    for resets in [false, true] {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let upstream = Upstream::scripted(move |peer| {
            while let Some(request) = peer.request() {
                let Ok(number) = request.target()[1..].parse::<usize>() else {
                    peer.send(ok("good"));
                    continue;
                };
                let (begin, end) = answers[number];
                peer.send(begin);
                // The client has all that came so far: what comes now is the end of it.
                released.lock().unwrap().recv().unwrap();
                peer.send(end);
                if resets {
                    peer.reset();
                }
                return;
            }
        });
        let sidecar = Sidecar::before(driver, upstream);
        for listener in [sidecar.outbound(), sidecar.inbound()] {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                for (number, (begin, end)) in answers.iter().enumerate() {
                    let mut client = Client::connect(listener);
                    client.send(format!("GET /{number} {version}\r\nhost: echo\r\n\r\n"));
                    let mut received = Vec::new();
                    while !received.ends_with(b"hello") && !received.ends_with(b"hello\r\n") {
                        received.extend(client.bytes(1));
                    }
                    release.send(()).unwrap();
                    // Not by FIN: to a client that reads until the end it would look whole.
                    match client.rest() {
                        Ok(rest) => panic!("{begin:?} {end:?} ended cleanly: {}", Shown(&rest)),
                        Err(error) => assert!(is_truncation(&error), "{error:#}"),
                    }
                }
            }
        }
        assert_eq!(sidecar.proxy.connect().get("echo", "/good").expect(200).text(), "good");
    }
}

fn item_63_an_http_1_0_client_never_gets_chunked(driver: Driver) {
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let chunks = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x\r\n world\r\n0\r\nx: y\r\n\r\n";
    let upstream = Upstream::answering(move |request| match request.target() {
        "/chunked" => format!("HTTP/1.1 200 Fine\r\n{date}{chunks}"),
        _ => format!("HTTP/1.1 200 Fine\r\n{date}content-length: 11\r\n\r\nhello world"),
    });
    let chain = Chain::before(driver, upstream);
    let sidecar = &chain.second;
    for connection in ["", "connection: keep-alive\r\n"] {
        for listener in [sidecar.outbound(), sidecar.inbound()] {
            let mut client = Client::connect(listener);
            client.send(format!("GET /chunked HTTP/1.0\r\nhost: echo\r\n{connection}\r\n"));
            let expected =
                format!("HTTP/1.1 200 Fine\r\n{date}connection: close\r\nvia: 1.1 meshring\r\n\r\nhello world");
            expect_bytes(&client.rest().unwrap(), expected.as_bytes(), b"");
        }
        // Two hops: chunked between them, not at the end.
        let mut client = chain.first.connect();
        client.send(format!("GET /chunked HTTP/1.0\r\nhost: echo\r\n{connection}\r\n"));
        let answer = client.rest().unwrap();
        assert!(answer.ends_with(b"\r\n\r\nhello world") && !contains(&answer, b"chunked"), "{}", Shown(&answer));
    }
    // A body of known length keeps its length, and the connection where the client asked for it.
    let mut client = sidecar.proxy.connect();
    for _ in 0..2 {
        client.send("GET /length HTTP/1.0\r\nhost: echo\r\nconnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!(response.fields.value("connection"), Some("keep-alive"));
        assert_eq!((response.fields.value("content-length"), response.text().as_str()), (Some("11"), "hello world"));
    }
}

fn item_64_an_early_413_is_relayed_and_the_rest_is_not_read_without_end(driver: Driver) {
    const PIECE: usize = 4 * 1024;
    for framing in ["content-length: 100000000", "transfer-encoding: chunked"] {
        let upstream = Upstream::scripted(|peer| {
            peer.head();
            peer.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large");
            peer.wait_for_end();
        });
        let sidecar = Sidecar::before(driver, upstream);
        let mut client = sidecar.proxy.connect();
        let size = if framing.contains("chunked") { "5f5e100\r\n" } else { "" };
        client.send(format!("POST / HTTP/1.1\r\nhost: echo\r\n{framing}\r\n\r\n{size}"));
        let response = client.response();
        assert_eq!(response.expect(413).text(), "too large");
        assert_eq!(response.fields.value("connection"), Some("close"));
        // Closed, although nobody has read a body there.
        sidecar.upstream.wait_until_all_ended();

        // The client goes on: it is read for a while, so that it can read the answer, and then no more.
        let mut taken = 0;
        let mut stream = client.stream();
        let begun = Instant::now();
        while stream.write_all(&[b'x'; PIECE]).is_ok() {
            taken += PIECE;
            sidecar.settle();
            assert!(begun.elapsed() < Duration::from_secs(10), "still read after {taken} bytes");
            assert!(
                taken <= LINGER_BYTES_MAX + 4 * BUFFER_BYTES,
                "{taken} bytes were read of a body that nobody wants"
            );
        }
        assert!(taken >= PIECE, "the connection was gone at once");
    }
}

fn item_65_a_half_closed_client_still_gets_its_response(driver: Driver) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let upstream = Upstream::answering(move |request| {
        released.lock().unwrap().recv().unwrap();
        ok(&format!("{} {}", request.target(), request.body.len()))
    });
    let chain = Chain::before(driver, upstream);
    let mut requests = 0;
    for address in [chain.second.outbound(), chain.second.inbound(), chain.first.outbound()] {
        for body in
            ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "\r\n"]
        {
            let mut client = Client::connect(address);
            client.send(format!("POST /slow HTTP/1.1\r\nhost: echo\r\n{body}")).finish_sending();
            requests += 1;
            let received = chain.second.upstream.wait_for(requests);
            // The FIN is with the proxy by the time of this.
            chain.second.settle();
            chain.first.connect().get("nobody", "/").expect(404);
            release.send(()).unwrap();
            let expected = format!("/slow {}", received[requests - 1].body.len());
            assert_eq!(client.response().expect(200).text(), expected);
            client.expect_end();
        }
    }
    // A pipeline is answered to its end, too.
    let mut client = chain.second.proxy.connect();
    client.send([BEHIND, BEHIND].concat()).finish_sending();
    for _ in 0..2 {
        release.send(()).unwrap();
        assert_eq!(client.response().expect(200).text(), "/behind 0");
    }
    client.expect_end();
}

fn item_66_slow_headers_are_408(driver: Driver) {
    const TIMEOUT_MS: u64 = 500;
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar =
        Sidecar::configured(driver, upstream, |builder| builder.arguments(&["--head-timeout", "500ms"]), |_, _| ());
    let begins =
        ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: echo\r\n", "GET / HTTP/1.1\r\nhost: echo\r\n\r", "\r\n"];
    let mut clients = Vec::new();
    let begun = Instant::now();
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        for begin in begins {
            let mut client = Client::connect(listener);
            client.send(begin);
            clients.push((client, begin));
        }
    }
    // One that never stops sending, a byte at a time, gains nothing by it.
    let mut slow = sidecar.proxy.connect();
    slow.send("GET / HTTP/1.1\r\nhost: echo\r\nx: ");
    let mut dripping = slow.stream().try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while dripping.write_all(b"x").is_ok() && begun.elapsed().as_secs() < 10 {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    clients.push((slow, "byte by byte"));
    for (client, begin) in &mut clients {
        let response = client.response();
        assert_eq!(response.status, 408, "{begin:?}: {}", response.text());
        assert!(response.text().starts_with("meshring: Request Timeout (http1.head_timeout): "), "{}", response.text());
        assert_eq!(response.fields.value("connection"), Some("close"));
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        assert!(elapsed_ms >= TIMEOUT_MS - 2 * DEADLINE_TICK_MS, "{begin:?} after {elapsed_ms} ms");
        assert!(elapsed_ms < 10 * TIMEOUT_MS, "{begin:?} after {elapsed_ms} ms");
    }
    drop(clients);
    drip.join().unwrap();
    sidecar.expect_untouched();
}

fn item_66_a_silent_upstream_is_504(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let mut world = World::new();
    let cluster = world.cluster("silent", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("silent", vec![Route { timeout_ms: 300, ..rule(action) }]);
    let proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    let response = client.get("silent", "/");
    assert!(response.expect(504).text().starts_with("meshring: Gateway Timeout ("), "{}", response.text());
    // It is not asked twice, and its connection is not kept for an answer that may still come.
    upstream.wait_until_all_ended();
    assert_eq!((upstream.received().len(), upstream.connections()), (1, 1));
}

fn item_66_a_reset_is_502(driver: Driver) {
    let upstream = Upstream::scripted(|peer| match peer.request().unwrap().target() {
        "/reset" => peer.reset(),
        "/close" => {}
        "/mid-head" => drop(peer.send("HTTP/1.1 200 OK\r\ncontent-le")),
        _ => {
            peer.send("HTTP/1.1 200 OK\r\ncontent-le");
            peer.reset();
        }
    });
    let sidecar = Sidecar::before(driver, upstream);
    for listener in [sidecar.outbound(), sidecar.inbound()] {
        let mut client = Client::connect(listener);
        for target in ["/reset", "/close", "/mid-head", "/mid-head-reset"] {
            let text = client.get("echo", target).expect(502).text();
            assert!(text.starts_with("meshring: Bad Gateway ("), "{target}: {text}");
        }
    }
    assert_eq!(sidecar.upstream.received().len(), 8, "each is sent once");
}

fn item_66_no_healthy_endpoint_is_503(driver: Driver) {
    let refusing = Reserved::new();
    let mut world = World::new();
    for (name, endpoints) in [("refusing", vec![refusing.address()]), ("empty", vec![])] {
        let cluster = world.cluster(name, &endpoints);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
    }
    let proxy = Proxy::alone_with(&world.snapshot(), |builder| builder.driver(driver).inbound(refusing.address()));
    let mut client = proxy.connect();
    for (host, code) in [("refusing", "connect_failed"), ("empty", "no_endpoint")] {
        let text = client.get(host, "/").expect(503).text();
        assert!(text.starts_with(&format!("meshring: Service Unavailable ({code}): ")), "{text}");
    }
    Client::connect(proxy.inbound()[0]).get("any", "/").expect(503);
}
