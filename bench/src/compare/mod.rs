//! `meshring-bench compare`: meshring, Envoy, HAProxy and nginx side by side.

mod bypass;
mod chart;
mod contender;
mod install;
mod launch;
mod progress;
mod protocol;
mod result;
mod round;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;

use self::contender::{Contender, Peer};
use self::launch::Site;
use self::progress::Progress;
use self::protocol::Protocol;
use self::result::Comparison;
use crate::tls::certificates::Certificates;
use crate::{backend, parse_duration};

/// Measures meshring and other proxies side by side: one worker each, on a core of its own.
///
/// In each round every contender is started afresh, warmed up, and loaded twice: in a closed loop (throughput and CPU
/// time per request) and at a constant rate that is the same for all (latency). Rounds are interleaved, so that
/// what disturbs the machine meets all contenders alike. The peers are installed from the Python Package Index into
/// a virtual environment below the cache folder when they are first used.
///
/// Exit status: 0 if all requests were answered, 1 if one failed or the comparison could not be made, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// What the proxies speak
    #[arg(long, value_enum, default_value_t = Protocol::H1)]
    protocol: Protocol,
    /// Proxies to compare with [default: haproxy,nginx,envoy, and with mtls envoy]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Option<Vec<Peer>>,
    /// Leave meshring out
    #[arg(long)]
    only_peers: bool,
    /// Measure meshring and HAProxy a second time with the bypass around TCP (needs root and cgroup v2)
    #[arg(long)]
    bypass: bool,
    /// Peers forward requests as they come. Without it they add X-Forwarded-For, X-Forwarded-Proto and X-Request-Id, as meshring
    /// always does
    #[arg(long)]
    bare_peers: bool,
    /// How often each contender is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of each measurement, such as 5s
    #[arg(long, short, default_value = "5s", value_parser = parse_measurement)]
    duration: Duration,
    /// Length of the warm-up before
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warm_up: Duration,
    /// Keep-alive connections of the generator [default: 64, with h2, h2c and grpc 8]
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..=2000))]
    connections: Option<u32>,
    /// Streams at a time on each connection of HTTP/2 [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    streams: Option<u32>,
    /// Bytes of the response body, or of the message with grpc
    #[arg(long, default_value_t = 100)]
    body_bytes: usize,
    /// Requests per second of the measurement at a constant rate, or `none` to leave it out [default: 3000, with mtls
    /// 1000, with handshakes 500]
    #[arg(long)]
    rate: Option<LoadRate>,
    /// Core of the proxies
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of the generator and the backend
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// What to print
    #[arg(long, short, value_enum, default_value_t = TableFormat::Markdown)]
    output: TableFormat,
    /// Also write the result as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a chart as SVG to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Folder for the peers [default: $XDG_CACHE_HOME/meshring-bench or ~/.cache/meshring-bench]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TableFormat {
    Markdown,
    Json,
}

/// The rate of the second measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LoadRate {
    None,
    PerSecond(f64),
}

impl FromStr for LoadRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "none" => Ok(Self::None),
            Ok(rate) if rate > 0.0 && rate <= 1_000_000.0 => Ok(Self::PerSecond(rate)),
            _ => Err("requests per second, such as 3000, or none".to_owned()),
        }
    }
}

/// Shorter measurements would drown in the 10 ms steps in which the kernel tells CPU time.
fn parse_measurement(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        duration if duration < Duration::from_millis(500) => Err("at least 500ms".to_owned()),
        duration => Ok(duration),
    }
}

impl CompareArgs {
    /// Requests per second of the measurement at a constant rate; none to leave it out.
    fn constant_rate(&self) -> Option<f64> {
        match self.rate {
            None => Some(self.protocol.default_rate()),
            Some(LoadRate::PerSecond(rate)) => Some(rate),
            Some(LoadRate::None) => None,
        }
    }

    fn connections(&self) -> u32 {
        self.connections.unwrap_or(self.protocol.default_connections())
    }

    fn streams(&self) -> u32 {
        self.streams.unwrap_or(self.protocol.default_streams())
    }

    /// The proxies to compare with, each once.
    fn distinct_peers(&self) -> anyhow::Result<Vec<Peer>> {
        let mut peers = Vec::new();
        for peer in self.peers.as_deref().unwrap_or(self.protocol.default_peers()) {
            if !self.protocol.is_known_to(*peer) {
                bail!("{} is not compared with {:?}; leave it out of --peers", peer.name(), self.protocol);
            }
            if !peers.contains(peer) {
                peers.push(*peer);
            }
        }
        Ok(peers)
    }
}

/// Runs the command.
pub(crate) fn run(args: &CompareArgs, interrupted: &Arc<AtomicBool>) -> anyhow::Result<ExitCode> {
    check_cores(args)?;
    check_streams(args)?;
    let result = compare(args, interrupted);
    let comparison = round::prefer_interrupt(result, interrupted)?;
    if let Some(path) = &args.json {
        write_file(path, &(comparison.to_json()? + "\n"))?;
    }
    if let Some(path) = &args.svg {
        write_file(path, &chart::draw(&comparison))?;
    }
    let mut stdout = std::io::stdout().lock();
    match args.output {
        TableFormat::Markdown => write!(stdout, "{}", comparison.to_markdown())?,
        TableFormat::Json => writeln!(stdout, "{}", comparison.to_json()?)?,
    }
    Ok(if comparison.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(args: &CompareArgs, interrupted: &AtomicBool) -> anyhow::Result<Comparison> {
    let peers = args.distinct_peers()?;
    let phases = if args.constant_rate().is_none() { 2 } else { 3 };
    let own_count = if args.only_peers { 0 } else { 1 + usize::from(args.bypass) };
    let haproxy_count = usize::from(args.bypass && peers.contains(&Peer::Haproxy));
    let contender_count = peers.len() + own_count + haproxy_count;
    let mut progress = Progress::new(contender_count * args.rounds as usize * phases);
    if cfg!(debug_assertions) {
        progress.note("note: this is a debug build, whose generator and backend are slow; use a release build");
    }
    // Our own binaries first: that they are missing should not be learned after an installation.
    let mut contenders = Vec::new();
    if !args.only_peers {
        contenders.push(Contender::meshring()?);
        if args.bypass {
            contenders.push(Contender::meshring()?.bypassed()?);
        }
    }
    let cache_dir = args.cache_dir.clone().map_or_else(install::default_cache_dir, Ok)?;
    let installed = install::install(&peers, &cache_dir, &progress, interrupted)?;
    for (peer, binary) in installed {
        contenders.push(Contender::peer(peer, binary));
        if args.bypass && peer == Peer::Haproxy {
            let plain = contenders.last().cloned().context("no contender")?;
            contenders.push(plain.bypassed()?);
        }
    }
    // Before any child is started, so that all of them are in it; dropped after all of them.
    let group = args.bypass.then(bypass::Group::enter).transpose()?;

    // This process must not disturb the proxy either.
    crate::process::pin_to(args.load_core)?;
    let work = tempfile::tempdir().context("cannot create a temporary folder")?;
    let (mut backend_process, backend) = backend::start(Some(args.load_core), args.body_bytes, work.path())?;
    let certificates = Certificates::make(work.path(), args.protocol.host())?;
    let mut measurements = vec![Vec::new(); contenders.len()];
    progress.restart();
    for round in 1..=args.rounds {
        for (index, contender) in contenders.iter().enumerate() {
            let site = Site {
                dir: work.path().join(format!("{round}-{index}")),
                protocol: args.protocol,
                certificates: &certificates,
                backend,
                proxy_core: args.proxy_core,
                load_core: args.load_core,
                bypass: group.as_ref().map(bypass::Group::path),
                bare_peers: args.bare_peers,
                interrupted,
            };
            let measurement = round::measure(contender, args, &site, &progress, round)
                .with_context(|| format!("{}, round {round}", contender.name))?;
            backend_process.check_alive()?;
            measurements[index].push(measurement);
        }
    }
    Ok(Comparison::new(args, contenders.into_iter().zip(measurements)))
}

fn check_streams(args: &CompareArgs) -> anyhow::Result<()> {
    match args.streams {
        Some(2..) if !args.protocol.is_http2() => bail!("--streams needs a --protocol of HTTP/2"),
        _ => Ok(()),
    }
}

fn check_cores(args: &CompareArgs) -> anyhow::Result<()> {
    if args.proxy_core == args.load_core {
        bail!("--proxy-core and --load-core have to differ: generator and proxy would take CPU time from each other");
    }
    let allowed = rustix::thread::sched_getaffinity(None)?;
    for core in [args.proxy_core, args.load_core] {
        if core >= rustix::thread::CpuSet::MAX_CPU || !allowed.is_set(core) {
            bail!("core {core} is not available here; choose two others with --proxy-core and --load-core");
        }
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
