//! What a comparison came to: figures per contender, ratios, table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::SystemTime;

use serde::Serialize;

use super::contender::Contender;
use super::round::Measurement;
use super::{CompareArgs, Protocol};
use crate::stats::{Spread, format_micros, thousands, three_digits};

/// One measured quantity. Less is better, but for `RequestsPerS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    CpuUsPerRequest,
    RequestsPerS,
    ClosedLoopP50Us,
    ClosedLoopP99Us,
    ClosedLoopP999Us,
    ConstantRateCpuUsPerRequest,
    ConstantRateP50Us,
    ConstantRateP99Us,
    ConstantRateP999Us,
    IdleRssBytes,
    LoadedRssBytes,
    IdlePssBytes,
    LoadedPssBytes,
}

impl Figure {
    const ALL: [Self; 13] = [
        Self::CpuUsPerRequest,
        Self::RequestsPerS,
        Self::ClosedLoopP50Us,
        Self::ClosedLoopP99Us,
        Self::ClosedLoopP999Us,
        Self::ConstantRateCpuUsPerRequest,
        Self::ConstantRateP50Us,
        Self::ConstantRateP99Us,
        Self::ConstantRateP999Us,
        Self::IdleRssBytes,
        Self::LoadedRssBytes,
        Self::IdlePssBytes,
        Self::LoadedPssBytes,
    ];

    /// Its value in one round; none if it was not measured.
    fn of(self, round: &Measurement) -> Option<f64> {
        let open = round.open.as_ref();
        let value = match self {
            Self::CpuUsPerRequest => round.closed.cpu_us_per_request,
            Self::RequestsPerS => round.closed.load.requests_per_s,
            Self::ClosedLoopP50Us => round.closed.load.latency_us.p50,
            Self::ClosedLoopP99Us => round.closed.load.latency_us.p99,
            Self::ClosedLoopP999Us => round.closed.load.latency_us.p99_9,
            Self::ConstantRateCpuUsPerRequest => open?.cpu_us_per_request,
            Self::ConstantRateP50Us => open?.load.latency_us.p50,
            Self::ConstantRateP99Us => open?.load.latency_us.p99,
            Self::ConstantRateP999Us => open?.load.latency_us.p99_9,
            Self::IdleRssBytes => round.memory_idle.rss as f64,
            Self::LoadedRssBytes => round.memory_loaded.rss as f64,
            Self::IdlePssBytes => round.memory_idle.pss as f64,
            Self::LoadedPssBytes => round.memory_loaded.pss as f64,
        };
        Some(value)
    }
}

/// Median and range over the rounds of each figure.
type Figures = BTreeMap<Figure, Spread>;

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name.trim()).to_owned(),
            cores: cpu_info.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// How the measurements were made.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Settings {
    pub(super) protocol: Protocol,
    rounds: u32,
    duration_s: f64,
    warm_up_s: f64,
    pub(super) connections: u32,
    /// At a time on each connection.
    pub(super) streams: u32,
    pub(super) body_bytes: usize,
    pub(super) constant_rate: Option<f64>,
    /// Whether peers forward requests as they come, without the fields that meshring adds.
    bare_peers: bool,
    proxy_core: usize,
    load_core: usize,
    debug_build: bool,
}

/// One proxy's results.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ContenderResult {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) is_meshring: bool,
    pub(super) figures: Figures,
    /// Meshring's figure divided by this contender's, of the same round; then the median. Empty without meshring.
    pub(super) ratio_of_meshring: Figures,
    /// Failed requests over all rounds.
    pub(super) failed: u64,
    rounds: Vec<Measurement>,
}

/// The whole comparison.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Comparison {
    /// UTC, RFC 3339.
    pub(super) date: String,
    pub(super) machine: Machine,
    pub(super) settings: Settings,
    pub(super) contenders: Vec<ContenderResult>,
}

impl Comparison {
    pub(super) fn new(args: &CompareArgs, measured: impl Iterator<Item = (Contender, Vec<Measurement>)>) -> Self {
        let measured: Vec<_> = measured.collect();
        let own = measured
            .iter()
            .find(|(contender, _)| contender.is_meshring() && !contender.is_bypassed())
            .map(|(_, rounds)| rounds.clone());
        let contenders = measured
            .into_iter()
            .map(|(contender, rounds)| ContenderResult {
                name: contender.name,
                is_meshring: contender.is_meshring(),
                figures: figures(&rounds),
                ratio_of_meshring: match &own {
                    Some(own) if !contender.is_meshring() => ratios(own, &rounds),
                    _ => Figures::new(),
                },
                failed: rounds.iter().map(failed_in).sum(),
                version: contender.version,
                rounds,
            })
            .collect();
        let settings = Settings {
            protocol: args.protocol,
            rounds: args.rounds,
            duration_s: args.duration.as_secs_f64(),
            warm_up_s: args.warm_up.as_secs_f64(),
            connections: args.connections(),
            streams: args.streams(),
            body_bytes: args.body_bytes,
            constant_rate: args.constant_rate(),
            bare_peers: args.bare_peers,
            proxy_core: args.proxy_core,
            load_core: args.load_core,
            debug_build: cfg!(debug_assertions),
        };
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { date, machine: Machine::here(), settings, contenders }
    }

    /// Failed requests of all contenders.
    pub(super) fn failed(&self) -> u64 {
        self.contenders.iter().map(|contender| contender.failed).sum()
    }

    pub(super) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// How the figures came about, in one line.
    pub(super) fn caption(&self) -> String {
        let Settings { protocol, rounds, duration_s, connections, streams, body_bytes, proxy_core, load_core, .. } =
            self.settings;
        let date = self.date.split('T').next().unwrap_or_default();
        let Machine { cpu, cores, kernel } = &self.machine;
        format!(
            "{}, {} on core {proxy_core}, \
             generator and backend on core {load_core}; median of {rounds} interleaved rounds of {duration_s} s; {date}, \
             {cpu}, {cores} cores, Linux {kernel}",
            protocol.load(connections, streams, body_bytes),
            protocol.workers(),
        )
    }

    /// A table with a caption.
    pub(super) fn to_markdown(&self) -> String {
        let mut table = format!("{}.\n\n", self.caption());
        let with_meshring = self.contenders.iter().any(|contender| contender.is_meshring);
        let columns = self.columns(with_meshring);
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| proxy | {} |",
            columns.iter().map(|(title, _)| title.as_str()).collect::<Vec<_>>().join(" | ")
        );
        let _ = writeln!(table, "|---|{}", "---:|".repeat(columns.len()));
        for contender in &self.contenders {
            let cells: Vec<String> = columns.iter().map(|(_, cell)| cell(contender)).collect();
            let _ = writeln!(table, "| {} {} | {} |", contender.name, contender.version, cells.join(" | "));
        }
        table.push('\n');
        table += "CPU is the user and kernel time of all threads and processes of the proxy, in parentheses the range over \
                  the rounds: in a closed loop, which keeps the proxy's core busy, so that one wake-up serves many \
                  requests";
        table += match self.settings.constant_rate {
            Some(_) => ", and at a constant rate that is the same for all. ",
            None => ". ",
        };
        if with_meshring {
            table += "The ratios are meshring's figure divided by the other's of the same round. ";
        }
        table += "RSS is that of all processes of a proxy together; the proportional share is in the JSON.\n";
        for contender in self.contenders.iter().filter(|contender| contender.failed > 0) {
            let _ = writeln!(table, "\n**{}: {} requests failed.**", contender.name, thousands(contender.failed));
        }
        if self.settings.debug_build {
            table += "\n**Measured with a debug build: these figures mean nothing.**\n";
        }
        table
    }

    fn columns(&self, with_meshring: bool) -> Vec<Column> {
        let unit = self.settings.protocol.unit();
        let mut columns: Vec<Column> = vec![column(&format!("CPU µs/{unit}"), |contender| {
            contender.figures.get(&Figure::CpuUsPerRequest).map(|Spread { median, min, max }| {
                format!("{} ({}–{})", three_digits(*median), three_digits(*min), three_digits(*max))
            })
        })];
        if with_meshring {
            columns.push(column("ratio", |contender| ratio(contender, Figure::CpuUsPerRequest)));
        }
        columns.push(column(&format!("{unit}s/s"), |contender| {
            contender.figures.get(&Figure::RequestsPerS).map(|spread| thousands(spread.median.round() as u64))
        }));
        let rate = self.settings.constant_rate.map(|rate| thousands(rate.round() as u64));
        let (latencies, when) = match rate {
            Some(rate) => {
                let cpu = Figure::ConstantRateCpuUsPerRequest;
                columns.push(column(&format!("CPU µs/{unit} at {rate}/s"), move |contender| {
                    contender.figures.get(&cpu).map(|spread| three_digits(spread.median))
                }));
                if with_meshring {
                    columns.push(column("ratio", move |contender| ratio(contender, cpu)));
                }
                let latencies = [Figure::ConstantRateP50Us, Figure::ConstantRateP99Us, Figure::ConstantRateP999Us];
                (latencies, format!("at {rate}/s"))
            }
            None => {
                ([Figure::ClosedLoopP50Us, Figure::ClosedLoopP99Us, Figure::ClosedLoopP999Us], "closed loop".to_owned())
            }
        };
        for (name, figure) in ["p50", "p99", "p99.9"].into_iter().zip(latencies) {
            columns.push(column(&format!("{name} {when}"), move |contender| {
                contender.figures.get(&figure).map(|spread| format_micros(spread.median))
            }));
        }
        for (name, figure) in [("RSS idle", Figure::IdleRssBytes), ("RSS loaded", Figure::LoadedRssBytes)] {
            columns.push(column(name, move |contender| {
                contender.figures.get(&figure).map(|spread| format!("{} MB", three_digits(spread.median / 1e6)))
            }));
        }
        columns
    }
}

type Column = (String, Box<dyn Fn(&ContenderResult) -> String>);

fn column(title: &str, cell: impl Fn(&ContenderResult) -> Option<String> + 'static) -> Column {
    (title.to_owned(), Box::new(move |contender| cell(contender).unwrap_or_else(|| "–".to_owned())))
}

fn ratio(contender: &ContenderResult, figure: Figure) -> Option<String> {
    contender.ratio_of_meshring.get(&figure).map(|spread| format!("{:.2}×", spread.median))
}

fn failed_in(round: &Measurement) -> u64 {
    round.closed.load.failed + round.open.as_ref().map_or(0, |open| open.load.failed)
}

fn figures(rounds: &[Measurement]) -> Figures {
    let spread = |figure: Figure| Spread::of(rounds.iter().filter_map(|round| figure.of(round)));
    Figure::ALL.into_iter().filter_map(|figure| Some((figure, spread(figure)?))).collect()
}

fn ratios(own: &[Measurement], other: &[Measurement]) -> Figures {
    let spread = |figure: Figure| {
        Spread::of(own.iter().zip(other).filter_map(|(own, other)| Some(figure.of(own)? / figure.of(other)?)))
    };
    Figure::ALL.into_iter().filter_map(|figure| Some((figure, spread(figure)?))).collect()
}

#[cfg(test)]
pub(super) mod tests;
