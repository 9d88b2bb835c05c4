//! slowhttptest's attacks on a proxy with short deadlines: others are served all the time, the slow connections are closed by
//! us, and memory stays bounded.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use meshring_core::table::model::{Condition, Route, StringMatch};
use meshring_tests::{
    alone, binaries,
    client::Client,
    generate::body,
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
    table::{World, rule, rule_if},
    upstream::{Upstream, response},
};

/// Slow connections of each attack.
const CONNECTIONS: usize = 300;
/// How long slowhttptest goes on at most; it ends sooner when all of its connections have been closed. Readers do not see that they
/// are: a busy machine may need four seconds to open them, and they have a deadline of three, after which they must be seen gone.
const ATTACK: Duration = Duration::from_secs(14);
/// Of a probe while the attack is on: many times what an idle machine needs, and far below the deadlines, so that a proxy in
/// which one slow client holds up another would not pass.
const PROBE_P99_MAX: Duration = Duration::from_millis(250);
/// Resident memory that one slow connection may cost, in KiB: one buffer of 16 KiB and what belongs to it. The allocator rounds.
const KIB_PER_CONNECTION_MAX: u64 = 32;
/// What the short deadlines are in the proxy's arguments.
const DEADLINES: [&str; 6] = ["--head-timeout", "2s", "--min-body-rate", "1000", "--body-grace", "2s"];
/// The response of the slow reads: more than the sockets of one connection hold.
const LARGE_BODY_BYTES: usize = 8 * 1024 * 1024;

on_both_drivers! {
    slow_headers_are_answered_408_and_closed
    slow_bodies_are_answered_408_and_closed
    slow_readers_are_closed
}

/// Every host leads to the upstream: slowhttptest sends that of the URL.
fn world(upstream: &Upstream) -> Vec<u8> {
    let mut world = World::new();
    let cluster = world.cluster("upstream", &[upstream.address()]);
    let action = world.forward(&[(cluster, 1)]);
    // The one bound on how long a response may take that a user can set. The others must end without it.
    let is_large = Condition::Uri(StringMatch::Exact("/large".into()));
    world.host("*", vec![Route { timeout_ms: 3_000, ..rule_if(vec![is_large], action.clone()) }, rule(action)]);
    world.snapshot()
}

/// An attack on a proxy that ends all of it, and a client beside it that is never disturbed.
fn attack(driver: Driver, arguments: &[&str]) {
    if !binaries::is_installed("slowhttptest") {
        return;
    }
    let _alone = alone();
    let large = body(1, LARGE_BODY_BYTES);
    let upstream = Upstream::answering(move |request| match request.target() {
        "/large" => response(200, &[], &large),
        _ => response(200, &[], b"fine"),
    });
    let proxy = Proxy::alone_with(&world(&upstream), |builder| builder.driver(driver).arguments(&DEADLINES));
    proxy.connect().get("echo", "/").expect(200);
    let resident_before_kib = proxy.process.resident_kib();
    let mut resident_max_kib = resident_before_kib;
    let sockets_before = sockets(&proxy);
    let (mut sockets_max, mut let_go) = (0, false);
    let mut seen: Vec<(Duration, usize)> = Vec::new();

    let mut command = Command::new("slowhttptest");
    command.args(["-c", &CONNECTIONS.to_string(), "-r", "300", "-l", &ATTACK.as_secs().to_string(), "-p", "3"]);
    let url = format!("http://{}", proxy.outbound());
    command.args(arguments).args(["-u", &url_of(&url, arguments)]);
    let mut slowhttptest = Process::start("slowhttptest", &mut command);
    let started = Instant::now();
    let mut latencies = Vec::new();
    let mut kept = proxy.connect();
    while slowhttptest.try_exit().is_none() {
        // One that is there already, and one that comes newly.
        for client in [&mut kept, &mut Client::connect(proxy.outbound())] {
            let begun = Instant::now();
            client.get("echo", "/").expect(200);
            latencies.push(begun.elapsed());
        }
        resident_max_kib = resident_max_kib.max(proxy.process.resident_kib());
        let sockets = sockets(&proxy);
        sockets_max = sockets_max.max(sockets);
        if seen.last().is_none_or(|&(at, _)| started.elapsed() > at + Duration::from_millis(500)) {
            seen.push((started.elapsed(), sockets));
        }
        // At its end slowhttptest closes everything itself.
        let is_going_on = started.elapsed() < ATTACK - Duration::from_secs(1);
        let_go |= is_going_on
            && sockets_max > sockets_before + CONNECTIONS / 2
            && sockets < sockets_before + CONNECTIONS / 20;
    }
    slowhttptest.wait_for_exit();
    latencies.sort();
    let p99 = latencies[latencies.len() * 99 / 100];
    let output = slowhttptest.output();
    assert!(p99 <= PROBE_P99_MAX, "p99 {p99:?} of {} probes\n{output}", latencies.len());
    let kib_each = (resident_max_kib - resident_before_kib) / CONNECTIONS as u64;
    assert!(kib_each <= KIB_PER_CONNECTION_MAX, "{kib_each} KiB for each connection\n{output}");
    assert!(sockets_max > sockets_before + CONNECTIONS / 2, "{sockets_max} sockets at most\n{output}");
    // What we have closed is seen by slowhttptest at once, unless it has not yet read what came before.
    assert!(
        let_go || output.contains("No open connections left"),
        "connections are left: {sockets_before} sockets before, then {seen:?}\n{output}"
    );
    assert!(
        output.contains("YES") && !output.contains("NO\n"),
        "its own probe found the service unavailable\n{output}"
    );
}

/// Open sockets of the proxy. Pipes that responses were spliced through do not count: it keeps some for the next ones.
fn sockets(proxy: &Proxy) -> usize {
    let dir = fs::read_dir(format!("/proc/{}/fd", proxy.process.pid())).unwrap();
    dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

fn url_of(url: &str, arguments: &[&str]) -> String {
    if arguments.contains(&"-X") { format!("{url}/large") } else { format!("{url}/") }
}

fn slow_headers_are_answered_408_and_closed(driver: Driver) {
    // A header line each second, and never the end of the head.
    attack(driver, &["-H", "-i", "1"]);
}

fn slow_bodies_are_answered_408_and_closed(driver: Driver) {
    // 8 KB announced, some bytes of it each second: below the minimum rate.
    attack(driver, &["-B", "-i", "1", "-s", "8192"]);
}

fn slow_readers_are_closed(driver: Driver) {
    // A window of some hundred bytes, of which five are read each second.
    attack(driver, &["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "5"]);
}
