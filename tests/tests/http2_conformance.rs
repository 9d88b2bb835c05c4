//! The cases of httpwg, which judge an HTTP/2 server frame by frame, against a sidecar.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::process::Command;

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    binaries::is_installed,
    h2_application::bilingual,
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
};

on_both_drivers! {
    httpwg_finds_no_fault_but_those_that_are_known
}

/// Answered before there are too many streams: a matter of speed.
const TOO_SLOW: &[&str] = &[":: exceeds concurrent stream limit"];

fn httpwg_finds_no_fault_but_those_that_are_known(driver: Driver) {
    if !is_installed("httpwg") {
        println!("the gate installs it: cargo install httpwg-cli");
        return;
    }
    let application = bilingual();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let mut world = World::new();
        let cluster = world.cluster("echo", &[application.address()]);
        world.protocol(cluster, protocol);
        let action = world.forward(&[(cluster, 1)]);
        world.host("*", vec![rule(action)]);
        let proxy = Proxy::alone(&world.snapshot(), driver);
        let mut command = Command::new("httpwg");
        // Its own 250 ms are too few for a machine that builds at the same time.
        command.args(["--frame-timeout", "2000", "--connect-timeout", "5000", "-a", &proxy.outbound().to_string()]);
        let output = command.env("NO_COLOR", "1").output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let summary = said.lines().find(|line| line.contains("tests in")).unwrap_or_default();
        assert!(summary.contains("/107"), "not all of them ran: {said}");
        let is_known = |name: &str| TOO_SLOW.iter().any(|known| name.ends_with(known));
        let failed = said.lines().filter_map(|line| line.split_once("Test failed: ")).map(|(_, name)| name.trim());
        let unknown: Vec<_> = failed.filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{protocol:?}: {unknown:#?}\n{said}");
    }
}
