//! `meshring-bench cold-start`: how soon after its exec a proxy answers, when there is no control.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::limits::{READY_MAX, REPEATS_MAX};
use crate::mesh::{Mesh, RunParent, reviews, reviews_split};
use crate::process::monotonic;
use crate::reconfigure::in_range;
use crate::stats::{Latencies, LatencySummary};
use crate::{OutputFormat, backend, client};

/// The goal for each run.
const GOAL_US: f64 = 50_000.0;

/// Measures a proxy that starts from its state directory, with no control, from its exec to the first proxied answer.
///
/// Exit status: 0 if it answered in every run, 1 otherwise, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct ColdStartArgs {
    /// Starts to measure
    #[arg(long, default_value_t = 20, value_parser = parse_runs)]
    runs: usize,
    #[command(flatten)]
    run_parent: RunParent,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

fn parse_runs(text: &str) -> Result<usize, String> {
    in_range(text, REPEATS_MAX)
}

#[derive(Debug, Serialize)]
struct Report {
    runs: usize,
    /// From exec to the whole of the first answer with status 200, in microseconds.
    first_answer_us: LatencySummary,
    goal_us: f64,
    /// Whether the slowest run is within it.
    goal_reached: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ColdStartArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    let mut mesh = Mesh::new(&args.run_parent.path(), interrupted)?;
    let (_backend, backend) = backend::start(None, 100, mesh.dir())?;
    let config = format!("{}---\n{}", reviews(backend.port()), reviews_split(80));
    fs::write(mesh.config_dir().join("reviews.yaml"), config)?;
    mesh.start_control()?;
    let mut api = mesh.api(READY_MAX)?;
    mesh.start_proxy(0)?;
    mesh.wait_until_current(&mut api, READY_MAX)?;
    let state_dir = mesh.state_dir(0);
    mesh.wait_for("a snapshot in the proxy's state directory", READY_MAX, |_| {
        let stored = fs::read_dir(&state_dir).into_iter().flatten().flatten();
        Ok(stored.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|name| name == "snapshot")))
    })?;
    drop(api);
    mesh.stop_proxies();
    mesh.stop_control();

    let mut latencies = Latencies::new()?;
    for run in 1..=args.runs {
        let (address, executed) = mesh.start_proxy(0)?;
        let answered = mesh.wait_for("the first answer", READY_MAX, |_| Ok(attempt(address)));
        latencies.record(answered.with_context(|| format!("run {run}"))?.saturating_sub(executed));
        mesh.stop_proxies();
    }
    let first_answer_us = latencies.summary();
    let goal_reached = first_answer_us.max <= GOAL_US;
    let report = Report { runs: args.runs, first_answer_us, goal_us: GOAL_US, goal_reached };
    let mut stdout = std::io::stdout().lock();
    match args.output {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Text => write!(stdout, "{}", text(&report))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The time of the first answer; None while there is no good one.
fn attempt(address: SocketAddr) -> Option<Duration> {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n";
    let stream = client::open(address, Duration::from_secs(2)).ok()?;
    let answer = client::exchange(&stream, REQUEST).ok()?;
    let now = monotonic();
    (answer.status == 200).then_some(now)
}

fn text(report: &Report) -> String {
    let LatencySummary { p50, p90, max, .. } = report.first_answer_us;
    let [p50, p90, max, goal] = [p50, p90, max, report.goal_us].map(|micros| micros / 1e3);
    let verdict = if report.goal_reached { "reached" } else { "missed" };
    format!(
        "{} cold starts with no control, milliseconds from exec to the first proxied answer:\np50 {p50:.1}, p90 \
         {p90:.1}, max {max:.1}\ngoal: at most {goal:.0} ms: {verdict}\n",
        report.runs
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_printed_in_milliseconds() {
        let first_answer_us = LatencySummary { p50: 12_340.0, p90: 20_000.0, max: 50_100.0, ..Default::default() };
        let report = Report { runs: 20, first_answer_us, goal_us: GOAL_US, goal_reached: false };
        let text = text(&report);
        assert!(text.contains("p50 12.3, p90 20.0, max 50.1\ngoal: at most 50 ms: missed"), "{text}");
    }
}
