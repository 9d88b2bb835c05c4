//! Peers that send or read as slowly as they like cost little, are let go in time, and those who are merely slow are served.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use meshring_core::limits::{BUFFER_BYTES, DEADLINE_TICK_MS, HOLD_BUFFER_MS_MAX, UNSENT_BYTES_MAX};
use meshring_tests::{
    alone,
    client::request,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok},
    wait,
};
use rustix::net::sockopt;

on_both_drivers! {
    a_head_that_comes_in_pieces_with_long_pauses_is_one_request
    a_head_that_does_not_end_is_408_at_the_deadline_however_it_comes
    a_large_head_that_does_not_end_is_refused_for_its_size
    a_client_that_leaves_in_mid_head_is_gone
    a_partial_head_costs_its_bytes_and_no_buffer
    a_stalled_reader_costs_one_buffer
    bodies_and_responses_that_do_not_come_leave_the_buffers_to_others
    a_body_below_the_minimum_rate_is_408
    a_slow_body_above_the_minimum_rate_is_served
    an_upstream_that_reads_slowly_is_not_the_clients_fault
    a_body_that_stalls_in_mid_response_ends_the_connection
}

/// Lets time pass: what a slow peer does is nothing but that.
fn pause(time: Duration) {
    let begun = Instant::now();
    wait::until("a pause", || (begun.elapsed() >= time).then_some(()));
}

/// Surely longer than a peer is waited for with a buffer in hand.
const LONG_PAUSE: Duration = Duration::from_millis(HOLD_BUFFER_MS_MAX + 2 * DEADLINE_TICK_MS + 50);

fn a_head_that_comes_in_pieces_with_long_pauses_is_one_request(driver: Driver) {
    let upstream = Upstream::echoing();
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    // Breaks within the method, between CR and LF, and before the last byte; the last piece brings a second request along.
    let long = "y".repeat(20_000);
    let pieces = [
        "GE",
        "T /slow HTTP/1.1\r",
        "\nHost: ec",
        "ho\r\nx-long: ",
        &long,
        "\r\n\r",
        "\nGET /next HTTP/1.1\r\nhost: echo\r\n\r\n",
    ];
    for piece in pieces {
        client.send(piece);
        pause(LONG_PAUSE);
    }
    let text = client.response().expect(200).text();
    assert!(text.starts_with("GET /slow HTTP/1.1\n") && text.contains(&long), "{text}");
    assert!(client.response().expect(200).text().starts_with("GET /next HTTP/1.1\n"));
    // The connection is as good as any other.
    assert!(client.get("echo", "/last").expect(200).text().starts_with("GET /last HTTP/1.1\n"));
    assert_eq!(upstream.received().len(), 3);
}

fn a_head_that_does_not_end_is_408_at_the_deadline_however_it_comes(driver: Driver) {
    const TIMEOUT_MS: u64 = 1_500;
    let _alone = alone();
    let proxy = Proxy::alone_with(&World::new().snapshot(), |builder| {
        builder.driver(driver).arguments(&["--head-timeout", "1500ms"])
    });
    // In silence, in bytes that never leave a pause, and in bytes with pauses.
    for every in [None, Some(Duration::from_millis(20)), Some(LONG_PAUSE)] {
        let mut client = proxy.connect();
        let begun = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: echo\r\nx: ");
        let mut stream = client.stream().try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let end = begun + Duration::from_millis(2 * TIMEOUT_MS);
            while let Some(every) = every
                && Instant::now() < end
                && stream.write_all(b"y").is_ok()
            {
                pause(every);
            }
        });
        let response = client.response();
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        let text = response.expect(408).text();
        assert!(text.contains("(http1.head_timeout)"), "{text}");
        assert_eq!(response.fields.value("connection"), Some("close"));
        assert!(elapsed_ms >= TIMEOUT_MS - DEADLINE_TICK_MS, "{every:?}: after {elapsed_ms} ms");
        assert!(elapsed_ms <= TIMEOUT_MS + 1_000, "{every:?}: after {elapsed_ms} ms");
        // The end of the connection, by FIN or by reset: a client that goes on sending cannot expect more.
        assert!(client.rest().is_ok_and(|rest| rest.is_empty()) || every.is_some());
        sender.join().unwrap();
    }
}

fn a_large_head_that_does_not_end_is_refused_for_its_size(driver: Driver) {
    let proxy = Proxy::alone(&World::new().snapshot(), driver);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: echo\r\n");
    for number in 0..4 {
        pause(LONG_PAUSE);
        client.send(format!("x-{number}: {}\r\n", "y".repeat(15_900)));
    }
    assert!(client.response().expect(431).text().contains("(http1.head_too_large)"));
}

fn a_client_that_leaves_in_mid_head_is_gone(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--connections-max", "1"])
    });
    for _ in 0..3 {
        let mut client = wait::until("the one place to be free", || {
            let mut client = proxy.connect();
            // A connection that is turned away is answered at once; the others are asked for nothing yet.
            client.send("GET / HTTP/1.1\r\nho");
            client.stream().set_read_timeout(Some(LONG_PAUSE)).unwrap();
            client.stream().read(&mut [0; 1]).is_err().then_some(client)
        });
        pause(LONG_PAUSE);
        client.try_send("st: ec").unwrap();
        drop(client);
    }
    assert_eq!(upstream.connections(), 0);
}

/// Resident memory once it has stopped to change, in KiB.
fn settled_kib(proxy: &Proxy) -> u64 {
    wait::until_still(Duration::from_millis(400), "memory to settle", || proxy.process.resident_kib())
}

fn a_partial_head_costs_its_bytes_and_no_buffer(driver: Driver) {
    const CLIENTS: u64 = 3_000;
    /// 2.3 are measured.
    const EACH_KIB_MAX: u64 = 4;
    let _alone = alone();
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    proxy.connect().get("echo", "/").expect(200);
    let before_kib = settled_kib(&proxy);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(proxy.outbound()).unwrap()).collect();
    for piece in [&b"GET / HTTP/1.1\r\nhost: echo\r\nuser-agent: "[..], b"some", b"thing slow"] {
        clients.iter_mut().for_each(|client| client.write_all(piece).unwrap());
        pause(LONG_PAUSE);
    }
    let grown_kib = settled_kib(&proxy).saturating_sub(before_kib);
    println!("{grown_kib} KiB for {CLIENTS} partial heads");
    assert!(grown_kib <= CLIENTS * EACH_KIB_MAX, "{grown_kib} KiB for {CLIENTS} partial heads");
    // They are not forgotten.
    for client in clients.iter_mut().step_by(100) {
        client.write_all(b"\r\n\r\n").unwrap();
        let mut answer = [0; 13];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 ");
    }
}

/// Bytes that the kernel holds for the reader of a connection between two ports of this host.
fn bytes_queued(from: u16, to: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let (from, to) = (format!(":{from:04X}"), format!(":{to:04X}"));
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = table.lines().map(columns).find(|line| line[1].ends_with(&from) && line[2].ends_with(&to));
    let queues = &line.expect("the proxy's end of the connection")[4];
    usize::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

fn a_stalled_reader_costs_one_buffer(driver: Driver) {
    const CLIENTS: u64 = 300;
    /// A buffer of 16 KiB, and room for what a request holds beside it.
    const EACH_KIB_MAX: u64 = 32;
    let _alone = alone();
    let upstream = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            if request.target() != "/large" {
                peer.send(ok("hello"));
                continue;
            }
            peer.send("HTTP/1.1 200 OK\r\n\r\n");
            while peer.send([b'x'; 64 * 1024]) {}
            return;
        }
    });
    let proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    proxy.connect().get("echo", "/").expect(200);
    let before_kib = settled_kib(&proxy);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = proxy.connect();
            sockopt::set_socket_recv_buffer_size(client.stream(), 4096).unwrap();
            client.send(request("GET", "echo", "/large", &[]));
            client
        })
        .collect();
    let _ = upstream.wait_for(CLIENTS as usize + 1);
    let grown_kib = settled_kib(&proxy).saturating_sub(before_kib);
    println!("{grown_kib} KiB for {CLIENTS} stalled readers");
    assert!(grown_kib <= CLIENTS * EACH_KIB_MAX, "{grown_kib} KiB for {CLIENTS} stalled readers");
    // Nor does the kernel hold more than it was allowed to: what is not on its way yet, and the last write.
    let port = clients[0].stream().local_addr().unwrap().port();
    let queued = bytes_queued(proxy.outbound().port(), port);
    assert!((1..=UNSENT_BYTES_MAX as usize + 2 * BUFFER_BYTES).contains(&queued), "{queued} bytes in the kernel");
    proxy.connect().get("echo", "/").expect(200);
}

fn bodies_and_responses_that_do_not_come_leave_the_buffers_to_others(driver: Driver) {
    /// Each of them with a single buffer would be more than the budget.
    const CLIENTS: usize = 40;
    const BUDGET: usize = 32 * BUFFER_BYTES;
    let _alone = alone();
    let upstream = Upstream::scripted(|peer| {
        while let Some(head) = peer.head() {
            match head.line.as_str() {
                "GET /quick HTTP/1.1" => drop(peer.send(ok("quick"))),
                "GET /begun HTTP/1.1" => drop(peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")),
                _ => {}
            }
        }
    });
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--buffer-bytes-max", &BUDGET.to_string()])
    });
    let mut clients = Vec::new();
    for begin in [post(1_000).into_bytes(), request("GET", "echo", "/begun", &[])] {
        for number in 0..CLIENTS {
            let mut client = proxy.connect();
            client.send(&begin);
            let reached = || (upstream.connections() > clients.len()).then_some(());
            wait::until(&format!("request {number} at the upstream"), reached);
            clients.push(client);
            // The moment in which it is waited for with a buffer in hand.
            if number % 8 == 7 {
                pause(LONG_PAUSE);
            }
        }
    }
    for client in &mut clients[..CLIENTS] {
        client.send("x");
    }
    pause(LONG_PAUSE);
    let mut client = proxy.connect();
    for _ in 0..3 {
        assert_eq!(client.get("echo", "/quick").expect(200).text(), "quick");
    }
}

/// A proxy that wants 10,000 bytes per second after 500 ms of waiting.
fn impatient(upstream: &Upstream, driver: Driver) -> Proxy {
    Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--min-body-rate", "10000", "--body-grace", "500ms"])
    })
}

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: {length}\r\n\r\n")
}

fn a_body_below_the_minimum_rate_is_408(driver: Driver) {
    let _alone = alone();
    let cut = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&cut);
    let upstream = Upstream::scripted(move |peer| {
        let head = peer.head().unwrap();
        if peer.body(&head).is_err() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut proxy = impatient(&upstream, driver);
    // Nothing at all, and a byte now and then.
    for every in [None, Some(Duration::from_millis(100))] {
        let mut client = proxy.connect();
        let begun = Instant::now();
        client.send(post(10_000));
        let mut stream = client.stream().try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            while let Some(every) = every
                && begun.elapsed() < Duration::from_secs(3)
                && stream.write_all(b"y").is_ok()
            {
                pause(every);
            }
        });
        let response = client.response();
        let elapsed = begun.elapsed();
        assert!(response.expect(408).text().contains("(http1.body_timeout)"), "{}", response.text());
        assert_eq!(response.fields.value("connection"), Some("close"));
        assert!(elapsed >= Duration::from_millis(500 - DEADLINE_TICK_MS), "after {elapsed:?}");
        assert!(elapsed <= Duration::from_secs(2), "after {elapsed:?}");
        sender.join().unwrap();
    }
    wait::until("the upstream to see both cut off", || (cut.load(Ordering::SeqCst) == 2).then_some(()));
    assert_eq!(upstream.connections(), 2);
    let line = proxy.process.wait_for_line("http1.body_timeout");
    assert!(line.contains("peer=\"127.0.0.1:"), "{line}");
}

fn a_slow_body_above_the_minimum_rate_is_served(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::answering(|request| ok(&request.body.len().to_string()));
    let proxy = impatient(&upstream, driver);
    let mut client = proxy.connect();
    client.send(post(20 * 2_500));
    // 2,500 bytes earn 250 ms each and take 100: after two seconds, four times the grace, it is still welcome.
    for _ in 0..20 {
        pause(Duration::from_millis(100));
        client.send([b'x'; 2_500]);
    }
    assert_eq!(client.response().expect(200).text(), "50000");
}

fn an_upstream_that_reads_slowly_is_not_the_clients_fault(driver: Driver) {
    const LENGTH: usize = 32 * 1024 * 1024;
    let _alone = alone();
    let all_but_one = Arc::<AtomicUsize>::default();
    let received = Arc::clone(&all_but_one);
    let upstream = Upstream::scripted(move |peer| {
        // The kernel must not take for it what it does not take.
        sockopt::set_socket_recv_buffer_size(peer.stream(), 64 * 1024).unwrap();
        peer.head().unwrap();
        pause(Duration::from_secs(2));
        let mut count = 0;
        while count < LENGTH {
            count += peer.some().len();
            received.store(count, Ordering::SeqCst);
        }
        peer.send(ok("whole"));
    });
    // So high that the pause of the upstream alone would make it too slow.
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--min-body-rate", "50000000", "--body-grace", "1s"])
    });
    let mut client = proxy.connect();
    client.send(post(LENGTH)).send(vec![b'x'; LENGTH - 1]);
    wait::until("all but one byte", || (all_but_one.load(Ordering::SeqCst) == LENGTH - 1).then_some(()));
    // Longer than a tick, so that a deadline that had passed would be seen.
    pause(2 * Duration::from_millis(DEADLINE_TICK_MS));
    assert_eq!(client.send("x").response().expect(200).text(), "whole");
}

fn a_body_that_stalls_in_mid_response_ends_the_connection(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::scripted(|peer| {
        peer.head();
        // Half of a response while the request is on its way, and never the rest.
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
        peer.wait_for_end();
    });
    let mut proxy = impatient(&upstream, driver);
    let mut client = proxy.connect();
    client.send(post(10_000));
    assert_eq!(client.head().line, "HTTP/1.1 200 OK");
    assert_eq!(client.bytes(5), b"hello");
    assert!(client.rest().is_err(), "a reset: the response must not look whole");
    proxy.process.wait_for_line("http1.body_timeout");
}
