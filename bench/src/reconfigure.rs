//! `meshring-bench reconfigure`: how long a change of one weight takes until every worker of every proxy runs it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::OutputFormat;
use crate::limits::{PROXIES_MAX, READY_MAX, REPEATS_MAX};
use crate::mesh::api::{Answered, Files};
use crate::mesh::{Mesh, RunParent, reviews, reviews_split};
use crate::stats::{Latencies, LatencySummary};

/// The goal for the 99th percentile.
const GOAL_P99_US: f64 = 5_000.0;

/// Applies changes of one weight, one after the other, and measures each from the API call to the last acknowledgement.
///
/// Exit status: 0 if every change reached every worker, 1 otherwise, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct ReconfigureArgs {
    /// Proxies, each with one worker
    #[arg(long, default_value_t = 10, value_parser = parse_proxies)]
    proxies: usize,
    /// Changes of the weight
    #[arg(long, default_value_t = 1000, value_parser = parse_changes)]
    changes: usize,
    #[command(flatten)]
    run_parent: RunParent,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

fn parse_proxies(text: &str) -> Result<usize, String> {
    in_range(text, PROXIES_MAX)
}

fn parse_changes(text: &str) -> Result<usize, String> {
    in_range(text, REPEATS_MAX)
}

/// A number from 1 to `max`.
pub(crate) fn in_range(text: &str, max: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=max).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {max}")),
    }
}

/// All times in microseconds.
#[derive(Debug, Serialize)]
struct Report {
    proxies: usize,
    changes: usize,
    /// Where control kept its state.
    run_parent: String,
    /// From the start of the call to the whole of its answer.
    call_us: LatencySummary,
    /// Of that, until the last worker has acknowledged, as control measures it; the rest is the way back and writing to the disk.
    acknowledged_us: LatencySummary,
    /// Of that, from resources to snapshot, as control measures it.
    compile_us: LatencySummary,
    /// Of that, from the first proxy asked to the last one answered, as control measures it.
    prepare_us: LatencySummary,
    /// Calls that control refused.
    refused: usize,
    /// Calls that made no new generation, or not with every proxy and worker.
    incomplete: usize,
    /// Proxies that did not answer in time, summed over the calls.
    stale: usize,
    /// Of the first call that went wrong.
    first_failure: Option<String>,
    goal_p99_us: f64,
    goal_reached: bool,
}

/// The weight of v2 in change `index`, in percent: neither that of the one before nor the same order of magnitude.
fn weight(index: usize) -> u32 {
    // 37 and 99 have no common divisor, so all weights from 1 to 99 come in turn.
    1 + (index * 37 % 99) as u32
}

struct Tally {
    call: Latencies,
    acknowledged: Latencies,
    compile: Latencies,
    prepare: Latencies,
    refused: usize,
    incomplete: usize,
    stale: usize,
    first_failure: Option<String>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            call: Latencies::new()?,
            acknowledged: Latencies::new()?,
            compile: Latencies::new()?,
            prepare: Latencies::new()?,
            refused: 0,
            incomplete: 0,
            stale: 0,
            first_failure: None,
        })
    }

    fn add(&mut self, answered: Answered, proxies: usize) {
        self.call.record(answered.time);
        let outcome = match answered.outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.refused += 1;
                self.first_failure.get_or_insert(error);
                return;
            }
        };
        let millis = |millis: f64| std::time::Duration::from_secs_f64(millis.max(0.0) / 1e3);
        self.acknowledged.record(millis(outcome.applied.ms));
        self.compile.record(millis(outcome.compile_ms));
        self.prepare.record(millis(outcome.prepare_ms));
        self.stale += outcome.stale.len();
        let applied = &outcome.applied;
        let whole = outcome.new_generation
            && applied.complete
            && applied.proxies == proxies
            && applied.workers_current == proxies;
        if !whole {
            self.incomplete += 1;
            self.first_failure.get_or_insert_with(|| format!("{outcome:?}"));
        }
    }

    fn report(self, args: &ReconfigureArgs) -> Report {
        let call_us = self.call.summary();
        let failed = self.refused + self.incomplete;
        Report {
            proxies: args.proxies,
            changes: args.changes,
            run_parent: args.run_parent.path().display().to_string(),
            call_us,
            acknowledged_us: self.acknowledged.summary(),
            compile_us: self.compile.summary(),
            prepare_us: self.prepare.summary(),
            refused: self.refused,
            incomplete: self.incomplete,
            stale: self.stale,
            first_failure: self.first_failure,
            goal_p99_us: GOAL_P99_US,
            goal_reached: failed == 0 && call_us.p99 <= GOAL_P99_US,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &ReconfigureArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    let mut mesh = Mesh::new(&args.run_parent.path(), interrupted)?;
    // Nothing is sent there: the changes alone are measured.
    fs::write(mesh.config_dir().join("reviews.yaml"), reviews(8080))?;
    mesh.start_control()?;
    for index in 0..args.proxies {
        mesh.start_proxy(index)?;
    }
    let mut api = mesh.api(READY_MAX)?;
    mesh.wait_until_current(&mut api, READY_MAX)?;
    let mut tally = Tally::new()?;
    for index in 0..args.changes {
        let text = reviews_split(weight(index));
        tally.add(mesh.apply(&mut api, &Files::one("reviews-split.yaml", &text))?, args.proxies);
    }
    let report = tally.report(args);
    let mut stdout = std::io::stdout().lock();
    match args.output {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Text => write!(stdout, "{}", text(&report))?,
    }
    Ok(if report.refused + report.incomplete == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Report) -> String {
    let Report { proxies, changes, run_parent, refused, incomplete, stale, .. } = report;
    let mut text = format!(
        "{changes} changes of one weight, {proxies} proxies with 1 worker each, run directory in {run_parent}; milliseconds\n\
         from the call to the answer that every worker has acknowledged:\n\n                          p50      p90      p99      max\n"
    );
    let rows = [
        ("whole call", &report.call_us),
        ("  until the last ack", &report.acknowledged_us),
        ("  of that compile", &report.compile_us),
        ("  of that prepare", &report.prepare_us),
    ];
    for (name, LatencySummary { p50, p90, p99, max, .. }) in rows {
        let [p50, p90, p99, max] = [p50, p90, p99, max].map(|micros| micros / 1e3);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<20} {p50:>8.2} {p90:>8.2} {p99:>8.2} {max:>8.2}");
    }
    let verdict = if report.goal_reached { "reached" } else { "missed" };
    let _ = writeln!(
        text,
        "\n{refused} refused, {incomplete} not on every worker, {stale} answers of proxies too late\ngoal: p99 at most \
         {:.0} ms: {verdict}",
        report.goal_p99_us / 1e3
    );
    if let Some(failure) = &report.first_failure {
        let _ = writeln!(text, "first failure: {failure}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mesh::api::{Applied, Outcome};

    fn answered(millis: u64, workers_current: usize) -> Answered {
        let applied = Applied { complete: true, proxies: 2, workers_current, ms: 1.0 };
        let outcome =
            Outcome { new_generation: true, bytes: 1, compile_ms: 0.5, prepare_ms: 0.25, stale: Vec::new(), applied };
        Answered { time: Duration::from_millis(millis), outcome: Ok(outcome) }
    }

    fn args() -> ReconfigureArgs {
        ReconfigureArgs { proxies: 2, changes: 100, run_parent: RunParent::default(), output: OutputFormat::Text }
    }

    #[test]
    fn every_change_differs_from_the_one_before_and_leaves_both_subsets_some_traffic() {
        let weights: Vec<u32> = (0..1000).map(weight).collect();
        assert!(weights.iter().all(|weight| (1..=99).contains(weight)));
        assert!(weights.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_goal_is_reached_only_if_every_change_reached_every_worker() {
        let mut tally = Tally::new().unwrap();
        (0..100).for_each(|_| tally.add(answered(4, 2), 2));
        let report = tally.report(&args());
        assert!(report.goal_reached);
        assert!(text(&report).contains("p99 at most 5 ms: reached"), "{}", text(&report));

        let mut tally = Tally::new().unwrap();
        (0..99).for_each(|_| tally.add(answered(4, 2), 2));
        tally.add(answered(4, 1), 2);
        let report = tally.report(&args());
        assert_eq!((report.incomplete, report.goal_reached), (1, false));
        assert!(report.first_failure.is_some());
    }

    #[test]
    fn a_slow_hundredth_or_a_refusal_misses_the_goal() {
        let mut tally = Tally::new().unwrap();
        (0..98).for_each(|_| tally.add(answered(4, 2), 2));
        (0..2).for_each(|_| tally.add(answered(6, 2), 2));
        assert!(!tally.report(&args()).goal_reached);

        let mut tally = Tally::new().unwrap();
        tally.add(Answered { time: Duration::from_millis(1), outcome: Err("status 422: {}".to_owned()) }, 2);
        let report = tally.report(&args());
        assert_eq!((report.refused, report.goal_reached), (1, false));
        assert_eq!(report.first_failure.as_deref(), Some("status 422: {}"));
    }
}
