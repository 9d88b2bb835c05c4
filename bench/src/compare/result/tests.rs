use super::*;
use crate::compare::round::Phase;
use crate::load::report::{Failures, LoadReport, Mode, Statuses};
use crate::process::usage::Memory;
use crate::stats::LatencySummary;

fn phase(cpu_us_per_request: f64, failed: u64) -> Phase {
    let load = LoadReport {
        url: "http://127.0.0.1:1/".to_owned(),
        mode: Mode::ClosedLoop,
        rate: None,
        connections: 64,
        streams: None,
        elapsed_s: 1.0,
        requests: 1000,
        failed,
        requests_per_s: 1e6 / cpu_us_per_request,
        bytes_received: 0,
        statuses: Statuses::default(),
        failures: Failures::default(),
        bodies_checked: false,
        latency_us: LatencySummary { p50: 10.0 * cpu_us_per_request, ..LatencySummary::default() },
        p99_of_each_second_us: Vec::new(),
        tls: None,
        first_failure: None,
    };
    Phase { cpu_us_per_request, core_share: 1.0, load }
}

fn rounds(cpu_us: &[f64], failed: u64) -> Vec<Measurement> {
    let memory = |bytes| Memory { rss: 2 * bytes, pss: bytes, anonymous: bytes / 2 };
    cpu_us
        .iter()
        .map(|cpu_us| Measurement {
            memory_idle: memory(4_000_000),
            memory_loaded: memory(5_000_000),
            closed: phase(*cpu_us, failed),
            open: Some(phase(2.0 * cpu_us, 0)),
        })
        .collect()
}

/// A comparison with meshring at 20, 22, 30 µs and one peer at 25, 40, 30 µs.
pub(in crate::compare) fn example() -> Comparison {
    let own = rounds(&[20.0, 22.0, 30.0], 0);
    let peer = rounds(&[25.0, 40.0, 30.0], 1);
    let contender = |name, is_meshring, rounds: Vec<Measurement>, ratio_of_meshring| ContenderResult {
        name,
        version: "1.0".to_owned(),
        is_meshring,
        figures: figures(&rounds),
        ratio_of_meshring,
        failed: rounds.iter().map(failed_in).sum(),
        rounds,
    };
    let peer_ratios = ratios(&own, &peer);
    Comparison {
        date: "2026-01-02T03:04:05Z".to_owned(),
        machine: Machine { cpu: "CPU <1>".to_owned(), cores: 2, kernel: "6.18".to_owned() },
        settings: Settings {
            protocol: Protocol::H1,
            rounds: 3,
            duration_s: 5.0,
            warm_up_s: 1.0,
            connections: 64,
            streams: 1,
            body_bytes: 100,
            constant_rate: Some(3000.0),
            bare_peers: false,
            proxy_core: 0,
            load_core: 1,
            debug_build: false,
        },
        contenders: vec![contender("meshring", true, own, Figures::new()), contender("Peer", false, peer, peer_ratios)],
    }
}

#[test]
fn figures_are_medians_and_ratios_are_medians_of_the_ratios_of_each_round() {
    let comparison = example();
    let peer = &comparison.contenders[1];
    let cpu = peer.figures[&Figure::CpuUsPerRequest];
    assert_eq!(cpu, Spread { median: 30.0, min: 25.0, max: 40.0 });
    // 20/25, 22/40, 30/30; the ratio of the medians would be 22/30.
    let ratio = peer.ratio_of_meshring[&Figure::CpuUsPerRequest];
    assert_eq!(ratio, Spread { median: 0.8, min: 0.55, max: 1.0 });
}

#[test]
fn the_table_has_a_line_per_contender_and_names_failures() {
    let markdown = example().to_markdown();
    let lines: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(
        lines,
        [
            "| proxy | CPU µs/request | ratio | requests/s | CPU µs/request at 3,000/s | ratio | p50 at 3,000/s | p99 at 3,000/s | p99.9 at 3,000/s | \
             RSS idle | RSS loaded |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            "| meshring 1.0 | 22.0 (20.0–30.0) | – | 45,455 | 44.0 | – | 440 µs | 0.00 µs | 0.00 µs | 8.00 MB | 10.0 MB |",
            "| Peer 1.0 | 30.0 (25.0–40.0) | 0.80× | 33,333 | 60.0 | 0.80× | 600 µs | 0.00 µs | 0.00 µs | 8.00 MB | 10.0 MB |",
        ]
    );
    assert!(markdown.contains("**Peer: 3 requests failed.**"), "{markdown}");
    assert!(!markdown.contains("meshring: "), "{markdown}");
}

#[test]
fn json_names_each_figure() {
    let json: serde_json::Value = serde_json::from_str(&example().to_json().unwrap()).unwrap();
    assert_eq!(json["contenders"][0]["figures"]["cpu_us_per_request"]["median"], 22.0);
    assert_eq!(json["contenders"][1]["ratio_of_meshring"]["cpu_us_per_request"]["median"], 0.8);
    assert_eq!(json["contenders"][1]["rounds"][0]["memory_idle"]["pss"], 4_000_000);
    assert_eq!(json["settings"]["constant_rate"], 3000.0);
}
