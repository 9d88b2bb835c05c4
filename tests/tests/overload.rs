//! At its limits the proxy says so and goes on: the right status for what is too much, nothing lost of what was begun, and
//! the way back by itself.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    net::TcpStream,
    time::{Duration, Instant},
};

use meshring_core::limits::BUFFER_BYTES;
use meshring_tests::{
    alone,
    client::{Client, Response, request},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, ok, response},
    wait,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

on_both_drivers! {
    a_used_up_byte_budget_is_503_until_it_is_free_again
    large_heads_count_against_the_byte_budget
    partial_heads_count_against_the_byte_budget
    a_connection_beyond_the_limit_is_503_until_one_has_gone
    many_connections_beyond_the_limit_leave_those_within_it_alone
    without_descriptors_for_clients_the_proxy_waits_and_recovers
    without_descriptors_for_upstreams_it_is_503_and_not_the_endpoints_fault
}

/// Asserts a refusal for being overloaded and the end of the connection.
#[track_caller]
fn assert_overload(client: &mut Client, response: &Response, code: &str) {
    let text = response.expect(503).text();
    assert!(text.starts_with(&format!("meshring: Service Unavailable ({code}): ")), "{text}");
    assert_eq!(response.fields.value("connection"), Some("close"));
    client.expect_end();
}

/// A proxy whose worker may have so many buffers in use.
fn with_buffers(upstream: &Upstream, driver: Driver, count: usize) -> Proxy {
    let bytes = (count * BUFFER_BYTES).to_string();
    Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--buffer-bytes-max", &bytes])
    })
}

/// Answers `/large` with a body that no socket buffers can hold.
fn large_or_small() -> Upstream {
    let body = vec![b'x'; LARGE];
    Upstream::answering(move |request| {
        if request.target() == "/large" { response(200, &[], &body) } else { ok("small") }
    })
}

const LARGE: usize = 16 * 1024 * 1024;

fn a_used_up_byte_budget_is_503_until_it_is_free_again(driver: Driver) {
    let upstream = large_or_small();
    let mut proxy = with_buffers(&upstream, driver, 8);
    let mut waiting = proxy.connect();
    waiting.get("echo", "/small").expect(200);
    // Each holds one buffer while it does not read, and for a moment at the beginning two.
    let mut stalled = Vec::new();
    wait::until("the byte budget to be used up", || {
        assert!(stalled.len() < 8, "eight buffers serve no more than eight");
        let mut client = proxy.connect();
        client.send(request("GET", "echo", "/large", &[]));
        let head = client.head();
        if head.line.contains("200") {
            stalled.push(client);
            return None;
        }
        assert!(head.line.contains("503"), "{head:?}");
        (stalled.len() == 7).then_some(())
    });
    let requests = upstream.received().len();
    // Whoever comes now is told so, on a new connection and on an old one, and no byte goes upstream.
    let mut fresh = proxy.connect();
    let answer = fresh.get("echo", "/small");
    assert_overload(&mut fresh, &answer, "overload");
    let answer = waiting.send("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 3\r\n\r\nabc").response();
    assert_overload(&mut waiting, &answer, "overload");
    assert_eq!(upstream.received().len(), requests);
    assert!(proxy.process.wait_for_line("overload").contains("peer=\"127.0.0.1:"));
    // What was begun goes on, to its last byte.
    for client in &mut stalled {
        assert!(client.bytes(LARGE).iter().all(|&byte| byte == b'x'));
    }
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/small").expect(200).text(), "small");
    assert_eq!(stalled[0].get("echo", "/small").expect(200).text(), "small");
}

/// Requests with heads of 50 KB that the upstream does not answer, until one is refused: how many were not.
fn large_heads_count_against_the_byte_budget(driver: Driver) {
    let upstream = Upstream::scripted(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let proxy = with_buffers(&upstream, driver, 16);
    let large = request("GET", "echo", "/", &[("x", &"y".repeat(50_000))]);
    let mut clients = Vec::new();
    wait::until("the byte budget to be used up", || {
        let mut client = proxy.connect();
        client.send(&large);
        let served = upstream.received().len();
        let refused = wait::until("the upstream or a refusal", || {
            if upstream.received().len() > clients.len() {
                return Some(false);
            }
            client.stream().set_nonblocking(true).unwrap();
            let refused = client.stream().peek(&mut [0; 1]).is_ok();
            client.stream().set_nonblocking(false).unwrap();
            refused.then_some(true)
        });
        assert!(served <= clients.len());
        if refused {
            let response = client.response();
            assert_overload(&mut client, &response, "overload");
            return Some(());
        }
        clients.push(client);
        None
    });
    // As 16 KiB each, with the empty one for the response, eight would have been served.
    assert!((2..=5).contains(&clients.len()), "{}", clients.len());
}

fn partial_heads_count_against_the_byte_budget(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let proxy = with_buffers(&upstream, driver, 8);
    let partial = format!("GET / HTTP/1.1\r\nhost: echo\r\nx: {}", "y".repeat(30_000));
    let mut partials: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    partials.iter_mut().for_each(|client| drop(client.send(&partial).stream().nodelay()));
    wait::until("requests to be refused", || (proxy.connect().get("echo", "/").status == 503).then_some(()));
    partials.truncate(2);
    wait::until("requests to be served", || (proxy.connect().get("echo", "/").status == 200).then_some(()));
    for client in &mut partials {
        assert_eq!(client.send("\r\n\r\n").response().expect(200).text(), "hello");
    }
}

fn a_connection_beyond_the_limit_is_503_until_one_has_gone(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--connections-max", "3"])
    });
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("echo", "/").expect(200);
    }
    // Whether it has said something or not, and however much.
    for sent in [Vec::new(), request("GET", "echo", "/", &[]), vec![b'x'; 20_000]] {
        let mut client = proxy.connect();
        client.try_send(&sent).unwrap();
        let response = client.response();
        assert_overload(&mut client, &response, "overload");
    }
    assert_eq!(upstream.received().len(), 3);
    assert!(proxy.process.wait_for_line("overload").contains("peer=\"127.0.0.1:"));
    for client in &mut clients {
        assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    }
    clients.pop();
    wait::until("the place to be free", || (proxy.connect().get("echo", "/").status == 200).then_some(()));
}

fn many_connections_beyond_the_limit_leave_those_within_it_alone(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--connections-max", "2"])
    });
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    for _ in 0..3 {
        // More than are told why, and none of them ever says or reads anything.
        let _silent: Vec<_> = (0..400).map(|_| TcpStream::connect(proxy.outbound()).unwrap()).collect();
        client.get("echo", "/").expect(200);
    }
    wait::until("another place", || {
        let mut other = proxy.connect();
        let _ = other.try_send(request("GET", "echo", "/", &[]));
        other.try_response("GET").is_ok_and(|response| response.status == 200).then_some(())
    });
}

fn descriptors(proxy: &Proxy) -> Vec<u64> {
    let dir = fs::read_dir(format!("/proc/{}/fd", proxy.process.pid())).unwrap();
    dir.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

/// Takes the last free descriptor away from a running proxy: a limit below those that are open forbids further ones.
fn limit_descriptors(proxy: &Proxy) {
    let used = descriptors(proxy);
    set_limit(proxy, (0..).find(|number| !used.contains(number)).unwrap());
}

fn set_limit(proxy: &Proxy, number: u64) {
    let pid = Pid::from_raw(i32::try_from(proxy.process.pid()).unwrap());
    let limit = Rlimit { current: Some(number), maximum: Some(hard_limit(proxy)) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

fn hard_limit(proxy: &Proxy) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.process.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

/// CPU time of a process, in ticks of 10 ms.
fn cpu_ticks(proxy: &Proxy) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", proxy.process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn without_descriptors_for_clients_the_proxy_waits_and_recovers(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    limit_descriptors(&proxy);
    // They are in the backlog; nobody can take them out.
    let mut waiting: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    let line = proxy.process.wait_for_line("cannot accept a connection");
    assert!(line.contains("out_of_descriptors"), "{line}");
    let (ticks, begun) = (cpu_ticks(&proxy), Instant::now());
    wait::until("two seconds", || (begun.elapsed() >= Duration::from_secs(2)).then_some(()));
    let busy = cpu_ticks(&proxy) - ticks;
    assert!(busy <= 40, "{busy} ticks of 10 ms in two seconds are more than 20 %");
    let lines = proxy.process.output().lines().filter(|line| line.contains("cannot accept")).count();
    assert!(lines <= 5, "{lines} lines in about two seconds");
    client.get("echo", "/").expect(200);
    set_limit(&proxy, hard_limit(&proxy));
    let freed = Instant::now();
    for client in &mut waiting {
        assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    }
    assert!(freed.elapsed() < Duration::from_secs(1), "recovered after {:?}", freed.elapsed());
}

fn without_descriptors_for_upstreams_it_is_503_and_not_the_endpoints_fault(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.get("nobody", "/").expect(404);
    limit_descriptors(&proxy);
    for _ in 0..3 {
        let text = client.get("echo", "/").expect(503).text();
        assert!(text.starts_with("meshring: Service Unavailable (out_of_descriptors): "), "{text}");
        assert!(!text.contains(&upstream.address().to_string()), "{text}");
    }
    assert!(proxy.process.wait_for_line("out_of_descriptors").contains("refused: "));
    set_limit(&proxy, hard_limit(&proxy));
    // At once, not after a second of being avoided; the client's connection goes on.
    assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
}
