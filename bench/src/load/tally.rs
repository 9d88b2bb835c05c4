//! What has become of the requests so far.

use std::time::Instant;

use super::report::{Failure, Failures, LoadReport, Mode, Statuses, TlsReport};
use super::{LoadArgs, schedule};
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
            bytes_received: 0,
            tls: with_tls.then(TlsReport::default),
            last_end: None,
        })
    }

    /// A whole answer to the request that was to be sent at `intended`.
    pub(super) fn count_answer(&mut self, status: u16, intended: Instant, now: Instant) {
        self.latencies.record(now.saturating_duration_since(intended));
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
            tls: self.tls.clone(),
            first_failure: self.first_failure.clone(),
        }
    }
}
