//! What has become of the requests so far.

use std::time::{Duration, Instant};

use super::report::{Failure, Failures, LoadReport, Mode, Statuses, TlsReport};
use super::{LoadArgs, schedule};
use crate::limits::LATENCY_WINDOW;
use crate::stats::Latencies;
use crate::tls::Socket;

pub(super) const UNSENT: &str = "all connections were busy";
pub(super) const WRONG_BODY: &str = "the body is not the one that was expected";

/// Counts answers, failures and handshakes.
pub(super) struct Tally {
    statuses: Statuses,
    failures: Failures,
    first_failure: Option<String>,
    latencies: Latencies,
    windows: Windows,
    /// Response bytes, heads included, without what TLS adds.
    pub(super) bytes_received: u64,
    /// None without TLS.
    tls: Option<TlsReport>,
    last_end: Option<Instant>,
}

impl Tally {
    pub(super) fn new(with_tls: bool) -> anyhow::Result<Self> {
        Ok(Self {
            statuses: Statuses::default(),
            failures: Failures::default(),
            first_failure: None,
            latencies: Latencies::new()?,
            windows: Windows::new()?,
            bytes_received: 0,
            tls: with_tls.then(TlsReport::default),
            last_end: None,
        })
    }

    /// A whole answer to the request that was to be sent at `intended`.
    pub(super) fn count_answer(&mut self, status: u16, intended: Instant, now: Instant) {
        let latency = now.saturating_duration_since(intended);
        self.latencies.record(latency);
        self.windows.record(latency, now);
        self.statuses.count(status);
        self.last_end = Some(now);
    }

    pub(super) fn count_failure(&mut self, failure: Failure, reason: &dyn std::fmt::Display, now: Instant) {
        self.failures.count(failure);
        self.last_end = Some(now);
        if self.first_failure.is_none() {
            self.first_failure = Some(format!("{failure:?}: {reason}"));
        }
    }

    pub(super) fn count_handshake(&mut self, socket: &Socket) {
        let Some(report) = &mut self.tls else { return };
        match socket.is_resumed() {
            true => report.resumed_handshakes += 1,
            false => {
                report.full_handshakes += 1;
                if report.negotiated.is_none() {
                    report.negotiated = socket.negotiated();
                }
            }
        }
    }

    pub(super) fn report(&self, args: &LoadArgs, start: Instant) -> LoadReport {
        let elapsed_s = self.last_end.unwrap_or(start).saturating_duration_since(start).as_secs_f64();
        let answers = self.statuses.total();
        LoadReport {
            url: args.url.to_string(),
            mode: if args.rate.is_some() { Mode::OpenLoop } else { Mode::ClosedLoop },
            rate: args.rate.map(schedule::Rate::per_second),
            connections: args.connections,
            streams: args.is_http2().then_some(args.streams),
            elapsed_s,
            requests: answers + self.failures.total(),
            failed: LoadReport::failed_of(&self.statuses, &self.failures),
            requests_per_s: if elapsed_s > 0.0 { answers as f64 / elapsed_s } else { 0.0 },
            bytes_received: self.bytes_received,
            statuses: self.statuses,
            failures: self.failures,
            bodies_checked: args.body_sha256.is_some(),
            latency_us: self.latencies.summary(),
            p99_of_each_second_us: self.windows.p99_us.clone(),
            tls: self.tls.clone(),
            first_failure: self.first_failure.clone(),
        }
    }
}

/// The p99 of each second by itself. A machine that stands still for some milliseconds spoils one of them, and not all.
struct Windows {
    latencies: Latencies,
    end: Option<Instant>,
    /// Of the seconds that are over and had answers, in microseconds.
    p99_us: Vec<f64>,
}

impl Windows {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { latencies: Latencies::new()?, end: None, p99_us: Vec::new() })
    }

    /// Counts an answer that came at `now`.
    fn record(&mut self, latency: Duration, now: Instant) {
        let end = self.end.get_or_insert(now + LATENCY_WINDOW);
        if now >= *end {
            self.p99_us.push(self.latencies.summary().p99);
            self.latencies.clear();
            *end = now + LATENCY_WINDOW;
        }
        self.latencies.record(latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_spoils_the_p99_of_its_own_second_only() {
        let mut windows = Windows::new().unwrap();
        let begun = Instant::now();
        for answer in 0..3_500_u32 {
            let latency = if (1_000..1_100).contains(&answer) { 50 } else { 1 };
            windows.record(Duration::from_millis(latency), begun + Duration::from_millis(1) * answer);
        }
        let p99: Vec<_> = windows.p99_us.iter().map(|p99| (p99 / 1000.0).round()).collect();
        assert_eq!(p99, [1.0, 50.0, 1.0], "the last second is not over");
    }
}
