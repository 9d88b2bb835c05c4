//! `meshring-bench scale`: what a large configuration costs control and a proxy, in time and memory.

mod generate;

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use serde::Serialize;

use self::generate::Shape;
use crate::limits::{ENDPOINTS_MAX, ROUTES_MAX};
use crate::mesh::api::{Api, Files};
use crate::mesh::log::{self, Publication};
use crate::mesh::{Mesh, RunParent};
use crate::process::usage::{self, Memory};
use crate::reconfigure::in_range;
use crate::stats::{Spread, thousands};
use crate::{OutputFormat, parse_duration};

/// The goal for compilation and publication.
const GOAL_COMPILE_AND_PUBLISH_MS: f64 = 2000.0;
/// The goal for the memory that all proxies of a node share, in bytes.
const GOAL_SHARED_BYTES: u64 = 40_000_000;
/// Changes of one weight that are measured, after one that brings the weights in.
const CHANGES: u32 = 5;

/// Generates a large configuration, starts control and one proxy with it, then changes one weight.
///
/// Every route is a VirtualService for a Service of its own; the endpoints are spread evenly over the Services. No
/// request is sent. Exit status: 0 if all was applied, 1 otherwise, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// Services with a route each, two at least
    #[arg(long, default_value_t = 100_000, value_parser = parse_routes)]
    routes: usize,
    /// Endpoints of all Services together
    #[arg(long, default_value_t = 1_000_000, value_parser = parse_endpoints)]
    endpoints: usize,
    /// Longest wait for control and the proxy
    #[arg(long, default_value = "2m", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    run_parent: RunParent,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

fn parse_routes(text: &str) -> Result<usize, String> {
    match in_range(text, ROUTES_MAX)? {
        1 => Err(format!("a number from 2 to {ROUTES_MAX}")),
        count => Ok(count),
    }
}

fn parse_endpoints(text: &str) -> Result<usize, String> {
    in_range(text, ENDPOINTS_MAX)
}

/// From control's start to a proxy that runs the generation, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct StartTimes {
    /// All of it.
    applied_ms: f64,
    /// CPU time of control for it, all threads.
    control_cpu_ms: f64,
    /// What control's log tells of it; none if its line was not found.
    split: Option<StartSplit>,
}

/// In the order in which it happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct StartSplit {
    /// Until the generation is active, without what follows: start of the process, reading and parsing, sealing of the
    /// snapshot, storing of the state.
    read_ms: f64,
    /// From parsed resources to an encoded snapshot, as control measures it.
    compile_ms: f64,
    /// From the first proxy asked to the last one answered, as control measures it; none is connected yet.
    prepare_ms: f64,
    /// From the active generation to a proxy that runs it.
    adopt_ms: f64,
}

impl StartSplit {
    fn of(publication: &Publication, started: SystemTime, applied_ms: f64) -> Self {
        let active = publication.at.duration_since(started).unwrap_or_default().as_secs_f64() * 1e3;
        let Publication { compile_ms, prepare_ms, .. } = *publication;
        Self {
            read_ms: (active - compile_ms - prepare_ms).max(0.0),
            compile_ms,
            prepare_ms,
            adopt_ms: (applied_ms - active).max(0.0),
        }
    }
}

/// A change of one weight, in milliseconds.
#[derive(Debug, Serialize)]
struct ChangeTimes {
    /// From the call to the acknowledgement of the worker.
    call_ms: Spread,
    compile_ms: Spread,
    prepare_ms: Spread,
    /// CPU time of control, all threads; the mean.
    control_cpu_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    routes: usize,
    endpoints: usize,
    config_files: usize,
    config_bytes: u64,
    start: StartTimes,
    change: ChangeTimes,
    /// Size of the sealed snapshot, which all proxies of a node share.
    snapshot_bytes: u64,
    /// After the start.
    proxy: Memory,
    control: Memory,
    /// After the changes, when several generations are retained.
    proxy_after_changes: Memory,
    control_after_changes: Memory,
    goal_compile_and_publish_ms: f64,
    /// Of the start: compile, prepare and adopt.
    compile_and_publish_ms: Option<f64>,
    goal_shared_bytes: u64,
}

/// Runs the command.
pub(crate) fn run(args: &ScaleArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    let mut mesh = Mesh::new(&args.run_parent.path(), interrupted)?;
    let shape = Shape { routes: args.routes, endpoints: args.endpoints };
    let written = shape.write(&mesh.config_dir()).context("cannot write the configuration")?;

    let (begin, started) = (Instant::now(), SystemTime::now());
    mesh.start_control()?;
    mesh.start_proxy(0)?;
    let mut api = mesh.api(args.timeout)?;
    mesh.wait_until_current(&mut api, args.timeout)?;
    let applied_ms = begin.elapsed().as_secs_f64() * 1e3;
    let control_cpu_ms = cpu_ms(&mesh)?;
    let publication = log::first_publication(&mesh.control_log()?);
    let split = publication.map(|publication| StartSplit::of(&publication, started, applied_ms));
    let (proxy, control) = (usage::memory(mesh.proxy_pid()?)?, usage::memory(mesh.control_pid()?)?);

    let (change, snapshot_bytes) = change(&mesh, &mut api)?;
    let report = Report {
        routes: args.routes,
        endpoints: args.endpoints,
        config_files: written.files,
        config_bytes: written.bytes,
        start: StartTimes { applied_ms, control_cpu_ms, split },
        change,
        snapshot_bytes: publication.map_or(snapshot_bytes, |publication| publication.bytes),
        proxy,
        control,
        proxy_after_changes: usage::memory(mesh.proxy_pid()?)?,
        control_after_changes: usage::memory(mesh.control_pid()?)?,
        goal_compile_and_publish_ms: GOAL_COMPILE_AND_PUBLISH_MS,
        compile_and_publish_ms: split.map(|split| split.compile_ms + split.prepare_ms + split.adopt_ms),
        goal_shared_bytes: GOAL_SHARED_BYTES,
    };
    let mut stdout = std::io::stdout().lock();
    match args.output {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Text => write!(stdout, "{}", text(&report))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes one weight some times; also gives the size of the last snapshot.
fn change(mesh: &Mesh<'_>, api: &mut Api) -> anyhow::Result<(ChangeTimes, u64)> {
    let (mut calls, mut compiles, mut prepares, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut cpu_before = 0.0;
    for index in 0..=CHANGES {
        let text = generate::split(80 - index);
        let answered = mesh.apply(api, &Files::one("split.yaml", &text))?;
        let outcome = answered.outcome.map_err(|refusal| anyhow::anyhow!("control refuses a weight: {refusal}"))?;
        if !(outcome.new_generation && outcome.applied.complete && outcome.applied.proxies == 1) {
            bail!("a change of a weight did not reach the proxy: {outcome:?}");
        }
        bytes = outcome.bytes as u64;
        // The first one makes one destination two.
        if index == 0 {
            cpu_before = cpu_ms(mesh)?;
        } else {
            calls.push(answered.time.as_secs_f64() * 1e3);
            compiles.push(outcome.compile_ms);
            prepares.push(outcome.prepare_ms);
        }
    }
    let spread = |values: Vec<f64>| Spread::of(values).context("no change was measured");
    let times = ChangeTimes {
        call_ms: spread(calls)?,
        compile_ms: spread(compiles)?,
        prepare_ms: spread(prepares)?,
        control_cpu_ms: (cpu_ms(mesh)? - cpu_before) / f64::from(CHANGES),
    };
    Ok((times, bytes))
}

/// CPU time of control so far.
fn cpu_ms(mesh: &Mesh<'_>) -> anyhow::Result<f64> {
    Ok(usage::cpu_time(mesh.control_pid()?)?.as_secs_f64() * 1e3)
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

fn text(report: &Report) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let StartTimes { applied_ms, control_cpu_ms, split } = report.start;
    let mut text = format!(
        "{} routes, {} endpoints: {:.1} MB of YAML in {} files\n\nstart: {applied_ms:.0} ms until a proxy runs the \
         generation; {control_cpu_ms:.0} ms of CPU in control\n",
        thousands(report.routes as u64),
        thousands(report.endpoints as u64),
        megabytes(report.config_bytes),
        report.config_files
    );
    // Writing to a String cannot fail.
    let _ = match split {
        None => writeln!(text, "  control's log does not tell how they are split"),
        Some(StartSplit { read_ms, compile_ms, prepare_ms, adopt_ms }) => writeln!(
            text,
            "  read and parse {read_ms:.0} ms (with process start and sealing), compile {compile_ms:.0} ms, prepare \
             {prepare_ms:.0} ms, adoption by the proxy {adopt_ms:.0} ms"
        ),
    };
    let ChangeTimes { call_ms, compile_ms, prepare_ms, control_cpu_ms } = &report.change;
    let _ = writeln!(
        text,
        "one weight, median of {CHANGES}: {:.0} ms to the acknowledgement ({:.0} to {:.0}), of that compile {:.0} ms, \
         prepare {:.0} ms; {control_cpu_ms:.0} ms of CPU in control",
        call_ms.median, call_ms.min, call_ms.max, compile_ms.median, prepare_ms.median
    );
    let _ = writeln!(text, "snapshot: {:.1} MB, shared by all proxies of a node", megabytes(report.snapshot_bytes));
    let rows = [
        ("proxy", &report.proxy),
        ("control", &report.control),
        ("proxy after changes", &report.proxy_after_changes),
        ("control after changes", &report.control_after_changes),
    ];
    for (name, Memory { rss, pss, anonymous }) in rows {
        let [rss, pss, anonymous] = [*rss, *pss, *anonymous].map(megabytes);
        let _ = writeln!(text, "{name:<22} RSS {rss:>7.1} MB, PSS {pss:>7.1} MB, anonymous {anonymous:>7.1} MB");
    }
    let goal = report.goal_compile_and_publish_ms;
    if let Some(spent) = report.compile_and_publish_ms {
        let _ = writeln!(
            text,
            "\ngoal: compile and publish (compile, prepare, adoption) in {goal:.0} ms: {} ({spent:.0} ms)",
            verdict(spent <= goal)
        );
    }
    let _ = writeln!(
        text,
        "goal: at most {:.0} MB shared: {}",
        megabytes(report.goal_shared_bytes),
        verdict(report.snapshot_bytes <= report.goal_shared_bytes)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_of_the_start_sums_to_the_whole() {
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let at = started + Duration::from_millis(3000);
        let publication = Publication { at, bytes: 1, compile_ms: 1000.0, prepare_ms: 500.0 };
        let split = StartSplit::of(&publication, started, 3250.0);
        assert_eq!(split, StartSplit { read_ms: 1500.0, compile_ms: 1000.0, prepare_ms: 500.0, adopt_ms: 250.0 });
    }

    #[test]
    fn one_route_is_too_few_for_a_weight() {
        assert!(parse_routes("1").is_err());
        assert_eq!(parse_routes("2"), Ok(2));
        assert!(parse_routes("1000001").is_err());
    }
}
