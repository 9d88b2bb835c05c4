//! slowhttptest's attacks on a proxy with short deadlines: others are served all the time, the slow connections are closed by
//! us, and memory stays bounded.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use meshring_tests::{
    alone, binaries,
    client::Client,
    generate::body,
    on_both_drivers,
    process::Process,
    proxy::{Driver, Proxy},
    table::World,
    upstream::{Upstream, response},
};

/// Slow connections of each attack.
const CONNECTIONS: usize = 300;
/// How long slowhttptest goes on at most; it ends sooner when all of its connections have been closed.
const ATTACK_SECONDS: &str = "8";
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

/// An attack on a proxy, and a client beside it that is never disturbed. What slowhttptest said at its end.
fn attack(driver: Driver, arguments: &[&str]) -> Option<String> {
    if !binaries::is_installed("slowhttptest") {
        return None;
    }
    let _alone = alone();
    let large = body(1, LARGE_BODY_BYTES);
    let upstream = Upstream::answering(move |request| match request.target() {
        "/large" => response(200, &[], &large),
        _ => response(200, &[], b"fine"),
    });
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&DEADLINES)
    });
    proxy.connect().get("echo", "/").expect(200);
    let resident_before_kib = proxy.process.resident_kib();
    let mut resident_max_kib = resident_before_kib;

    let mut command = Command::new("slowhttptest");
    command.args(["-c", &CONNECTIONS.to_string(), "-r", "300", "-l", ATTACK_SECONDS, "-p", "3"]);
    let url = format!("http://{}", proxy.outbound());
    command.args(arguments).args(["-u", &url_of(&url, arguments)]);
    let mut slowhttptest = Process::start("slowhttptest", &mut command);
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
    }
    latencies.sort();
    let p99 = latencies[latencies.len() * 99 / 100];
    let output = slowhttptest.output();
    assert!(p99 <= PROBE_P99_MAX, "p99 {p99:?} of {} probes\n{output}", latencies.len());
    let kib_each = (resident_max_kib - resident_before_kib) / CONNECTIONS as u64;
    assert!(kib_each <= KIB_PER_CONNECTION_MAX, "{kib_each} KiB for each connection\n{output}");
    Some(output)
}

fn url_of(url: &str, arguments: &[&str]) -> String {
    // slowhttptest takes Host from the URL; the route is for every host.
    if arguments.contains(&"-X") { format!("{url}/large") } else { format!("{url}/") }
}

/// The last figure that slowhttptest gave a name.
fn figure(output: &str, name: &str) -> usize {
    let line = output.lines().rev().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name}:\n{output}"));
    let digits: String = line.split(name).nth(1).unwrap().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{line:?}"))
}
