//! What a load came to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::stats::{LatencySummary, format_micros, thousands};
use crate::tls::Negotiated;

/// Why a request got no whole answer. Every request ends as one of these or with a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection: refused, unreachable, out of ports.
    Connect,
    /// TLS failed: no common ground, a certificate that is not trusted, an alert, a broken record.
    Tls,
    /// The connection broke (ECONNRESET, EPIPE and the like).
    Reset,
    /// The connection ended in order, but before the whole answer.
    ClosedEarly,
    /// No whole answer within the timeout, counted from the intended send time.
    Timeout,
    /// The answer is not HTTP/1.1, or not HTTP/2.
    Malformed,
    /// The stream was reset (RST_STREAM); HTTP/2 only, as are the next three.
    StreamReset,
    /// The stream was refused (REFUSED_STREAM).
    StreamRefused,
    /// The server had gone away before it took the stream (GOAWAY).
    GoneAway,
    /// A grpc-status other than 0.
    Grpc,
    /// The answer is whole, but its body has another hash than the one that was expected.
    WrongBody,
    /// Not sent within the timeout, because all connections were busy (open loop only).
    Unsent,
}

/// Failed requests by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failures {
    pub(crate) connect: u64,
    #[serde(default)]
    pub(crate) tls: u64,
    pub(crate) resets: u64,
    pub(crate) closed_early: u64,
    pub(crate) timeouts: u64,
    pub(crate) malformed: u64,
    #[serde(default)]
    pub(crate) stream_resets: u64,
    #[serde(default)]
    pub(crate) streams_refused: u64,
    #[serde(default)]
    pub(crate) gone_away: u64,
    #[serde(default)]
    pub(crate) grpc: u64,
    #[serde(default)]
    pub(crate) wrong_bodies: u64,
    pub(crate) unsent: u64,
}

impl Failures {
    pub(crate) fn count(&mut self, failure: Failure) {
        *match failure {
            Failure::Connect => &mut self.connect,
            Failure::Tls => &mut self.tls,
            Failure::Reset => &mut self.resets,
            Failure::ClosedEarly => &mut self.closed_early,
            Failure::Timeout => &mut self.timeouts,
            Failure::Malformed => &mut self.malformed,
            Failure::StreamReset => &mut self.stream_resets,
            Failure::StreamRefused => &mut self.streams_refused,
            Failure::GoneAway => &mut self.gone_away,
            Failure::Grpc => &mut self.grpc,
            Failure::WrongBody => &mut self.wrong_bodies,
            Failure::Unsent => &mut self.unsent,
        } += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        let Self { connect, tls, resets, closed_early, timeouts, malformed, wrong_bodies, unsent, .. } = self;
        connect + tls + resets + closed_early + timeouts + malformed + wrong_bodies + unsent + self.total_of_http2()
    }

    fn total_of_http2(&self) -> u64 {
        self.stream_resets + self.streams_refused + self.gone_away + self.grpc
    }
}

/// Answers by class of their status. 1xx are no answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statuses {
    #[serde(rename = "2xx")]
    pub(crate) successful: u64,
    #[serde(rename = "3xx")]
    pub(crate) redirection: u64,
    #[serde(rename = "4xx")]
    pub(crate) client_error: u64,
    #[serde(rename = "5xx")]
    pub(crate) server_error: u64,
    /// Outside of 200 to 599.
    pub(crate) other: u64,
}

impl Statuses {
    pub(crate) fn count(&mut self, status: u16) {
        *match status / 100 {
            2 => &mut self.successful,
            3 => &mut self.redirection,
            4 => &mut self.client_error,
            5 => &mut self.server_error,
            _ => &mut self.other,
        } += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.successful + self.redirection + self.failed()
    }

    /// Answers that a user would call failed.
    fn failed(&self) -> u64 {
        self.client_error + self.server_error + self.other
    }
}

/// Whether requests wait for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Constant rate; latency counts from the intended send time.
    OpenLoop,
    /// Each connection sends its next request when it has the last answer.
    ClosedLoop,
}

/// What came of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TlsReport {
    /// Handshakes with a certificate and a key exchange, those before the clock started included.
    pub(crate) full_handshakes: u64,
    /// Handshakes that resumed a session.
    pub(crate) resumed_handshakes: u64,
    /// What the first full handshake came to.
    pub(crate) negotiated: Option<Negotiated>,
}

/// The result of one load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadReport {
    pub(crate) url: String,
    pub(crate) mode: Mode,
    /// Requests per second asked for; none in the closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) connections: usize,
    /// Streams at a time on each connection; none with HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) streams: Option<usize>,
    /// From the first intended send time to the last end of a request.
    pub(crate) elapsed_s: f64,
    /// Answers with any status, and failures.
    pub(crate) requests: u64,
    /// Requests without an answer, with one of 4xx or 5xx, and with another body than expected.
    pub(crate) failed: u64,
    /// Answers per second.
    pub(crate) requests_per_s: f64,
    /// Response bytes, heads included, without what TLS adds.
    pub(crate) bytes_received: u64,
    pub(crate) statuses: Statuses,
    pub(crate) failures: Failures,
    /// Whether every body of an answer was compared with the expected one.
    #[serde(default)]
    pub(crate) bodies_checked: bool,
    /// Latency of the answers with any status, in microseconds. Requests without an answer are not in it.
    pub(crate) latency_us: LatencySummary,
    /// None without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsReport>,
    /// The first failure in the system's words, if there was one.
    pub(crate) first_failure: Option<String>,
}

impl LoadReport {
    pub(crate) fn failed_of(statuses: &Statuses, failures: &Failures) -> u64 {
        statuses.failed() + failures.total()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None => "closed loop".to_owned(),
        };
        let streams = self.streams.map(|streams| format!(" of {streams} streams")).unwrap_or_default();
        writeln!(f, "{}: {how}, {} connections{streams}, {:.2} s", self.url, self.connections, self.elapsed_s)?;
        let failed = thousands(self.failed);
        writeln!(f, "requests  {:>12}  {:.1}/s  {failed} failed", thousands(self.requests), self.requests_per_s)?;
        let Statuses { successful, redirection, client_error, server_error, other } = self.statuses;
        writeln!(
            f,
            "statuses  2xx {successful}  3xx {redirection}  4xx {client_error}  5xx {server_error}  other {other}"
        )?;
        let Failures { connect, tls, resets, closed_early, timeouts, malformed, unsent, .. } = self.failures;
        writeln!(
            f,
            "failures  connect {connect}  TLS {tls}  resets {resets}  closed early {closed_early}  timeouts {timeouts}  \
             malformed {malformed}  unsent {unsent}"
        )?;
        let Failures { stream_resets, streams_refused, gone_away, grpc, .. } = self.failures;
        if self.failures.total_of_http2() > 0 {
            writeln!(
                f,
                "          streams reset {stream_resets}  refused {streams_refused}  gone away {gone_away}  gRPC {grpc}"
            )?;
        }
        if self.bodies_checked {
            writeln!(f, "bodies    all compared, {} not as expected", self.failures.wrong_bodies)?;
        }
        if let Some(first) = &self.first_failure {
            writeln!(f, "          first: {first}")?;
        }
        if let Some(TlsReport { full_handshakes, resumed_handshakes, negotiated }) = &self.tls {
            write!(f, "TLS       {full_handshakes} full handshakes  {resumed_handshakes} resumed")?;
            if let Some(Negotiated { version, cipher_suite, group }) = negotiated {
                write!(f, "  {version}  {cipher_suite}  {}", group.as_deref().unwrap_or("no key exchange"))?;
            }
            writeln!(f)?;
        }
        let LatencySummary { p50, p90, p99, p99_9, max, .. } = self.latency_us;
        let [p50, p90, p99, p99_9, max] = [p50, p90, p99, p99_9, max].map(format_micros);
        write!(f, "latency   p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p99_9}  max {max}")
    }
}
