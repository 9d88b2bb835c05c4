//! `meshring-bench hostile`: what slow, greedy and faulty peers cost everybody else. Each drill runs a mesh of its own with a
//! normal open-loop load beside the attack, prints its figures with their bounds, and fails if one is out of bounds.

mod attack;
mod cgroup;
mod descriptors;
mod floods;
mod give_way;
mod hosts;
mod memory;
mod random_close;
mod report;
mod site;
mod stalling;

use std::io::Write;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity};

use self::give_way::give_way;
use crate::limits::{FLOOD_RATE_MAX, HOSTILE_REQUESTS_MAX, HOSTILE_ROUNDS_MAX};
use crate::mesh::RunParent;
use crate::process::pin_to;
use crate::reconfigure::in_range;
use crate::{OutputFormat, load, parse_duration};

/// What is done to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drill {
    /// Request heads that never end
    Slowloris,
    /// Request bodies below the minimum rate
    SlowBody,
    /// Clients that ask for large responses and read nothing
    ZeroWindow,
    /// Requests with ever new Host values
    Hosts,
    /// An upstream that closes idle connections at random, without announcing it
    RandomClose,
    /// More connections than file descriptors
    Descriptors,
    /// More buffered bytes than a memory cgroup allows
    Memory,
    /// Floods of HTTP/2: rapid reset, CONTINUATION, SETTINGS, HPACK bombs, ...
    Http2Floods,
}

/// Runs one drill against a mesh of the real binaries with a normal load beside it.
///
/// Exit status: 0 if all figures are within their bounds, 1 otherwise, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct HostileArgs {
    #[arg(value_enum)]
    drill: Drill,
    /// Hostile connections [default: 10000; descriptors 400; hosts and random-close 16; http2-floods 4]
    #[arg(long, short, value_parser = load::parse_connections)]
    connections: Option<usize>,
    /// Hostile requests of hosts and random-close
    #[arg(long, default_value = "1000000", value_parser = parse_requests)]
    requests: NonZeroU64,
    /// How long each phase of the normal load takes
    #[arg(long, short, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Requests per second of the normal load
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Phases without and with the attack, in turn; figures are medians
    #[arg(long, default_value_t = 2, value_parser = parse_rounds)]
    rounds: usize,
    /// Most that others' p99 under attack may be of that without
    #[arg(long, default_value_t = 1.2)]
    p99_ratio_max: f64,
    /// How long zero-window's readers have stood still before the load that its bounds are for
    #[arg(long, default_value = "2m", value_parser = parse_duration)]
    settle: Duration,
    /// Floods of http2-floods; several times for more than one [default: all]
    #[arg(long, value_enum)]
    flood: Vec<floods::Flood>,
    /// Connections per second of http2-floods: so often attackers come back
    #[arg(long, default_value = "10", value_parser = parse_attack_rate)]
    attack_rate: f64,
    /// Limit of the memory cgroup, in MiB
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    #[command(flatten)]
    run_parent: RunParent,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

fn parse_rounds(text: &str) -> Result<usize, String> {
    in_range(text, HOSTILE_ROUNDS_MAX)
}

fn parse_requests(text: &str) -> Result<NonZeroU64, String> {
    match text.parse::<NonZeroU64>() {
        Ok(count) if count.get() <= HOSTILE_REQUESTS_MAX => Ok(count),
        _ => Err(format!("a number from 1 to {HOSTILE_REQUESTS_MAX}")),
    }
}

fn parse_attack_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= FLOOD_RATE_MAX => Ok(rate),
        _ => Err(format!("a number above 0, at most {FLOOD_RATE_MAX}")),
    }
}

impl HostileArgs {
    /// Requests per second that the normal load must have sent: all of them, but for the rounding of the last one.
    fn rate_least(&self) -> f64 {
        self.rate - 1.0
    }

    fn connections(&self) -> usize {
        self.connections.unwrap_or(match self.drill {
            Drill::Descriptors => 400,
            Drill::Hosts | Drill::RandomClose => 16,
            Drill::Http2Floods => 4,
            _ => 10_000,
        })
    }
}

/// Runs the command.
pub(crate) fn run(args: &HostileArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    let report = match args.drill {
        Drill::Slowloris | Drill::SlowBody | Drill::ZeroWindow => stalling::run(args, interrupted)?,
        Drill::Hosts => hosts::run(args, interrupted)?,
        Drill::RandomClose => random_close::run(args, interrupted)?,
        Drill::Http2Floods => floods::run(args, interrupted)?,
        Drill::Descriptors => descriptors::run(args, interrupted)?,
        Drill::Memory => match memory::run(args, interrupted)? {
            Some(report) => report,
            None => return Ok(ExitCode::SUCCESS),
        },
    };
    let mut stdout = std::io::stdout().lock();
    match args.output {
        OutputFormat::Text => write!(stdout, "{report}")?,
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?,
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Raises the limit of open files of this process and of those that it starts, as far as it may.
fn demand_files(count: u64) -> anyhow::Result<()> {
    match crate::process::raise_file_limit_to(count) {
        Some(limit) if limit < count => {
            bail!("{count} open files are needed, and {limit} are allowed; see `ulimit -Hn`, or run it as root")
        }
        _ => Ok(()),
    }
}

/// Restricts all that is started from now on to one core; gives another one, which is the proxy's.
fn separate_cores() -> anyhow::Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (Some(proxy), Some(others)) = (cores.next(), cores.next()) else {
        bail!("two cores are needed: one for the proxy, one for attackers and load");
    };
    pin_to(others)?;
    Ok(proxy)
}
