//! `meshring-bench load`: a load generator for HTTP/1.1, HTTP/2 and gRPC on one thread.

mod generator;
mod multiplexed;
mod pace;
pub(crate) mod report;
mod schedule;
mod tally;
pub(crate) mod target;
mod waiting;

use std::io::Write;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::error::ErrorKind;

use self::report::LoadReport;
use self::schedule::Rate;
use self::target::{HeaderField, Method, Url};
use crate::body_check::BodyHash;
use crate::limits::{CONNECTIONS_MAX, STREAMS_MAX};
use crate::tls::TlsArgs;
use crate::{OutputFormat, parse_duration};

/// Sends HTTP/1.1 requests, HTTP/2 requests or gRPC calls and measures how they are answered.
///
/// With --rate the loop is open: requests are sent at a constant rate, and latency counts from the time at which a
/// request was to be sent, so that a stall is seen by all requests that it delays. Without it the loop is closed:
/// each connection, or each of its streams, sends its next request when it has the last answer.
///
/// Exit status: 0 if all requests were answered with 2xx or 3xx, grpc-status 0 with --grpc and the right body with --body-sha256, 1 if
/// one was not, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Where to send requests, such as http://127.0.0.1:8080/path, or https:// with --ca or --insecure
    pub(crate) url: Url,
    /// Requests per second over all connections; without it each connection sends as fast as it is answered
    #[arg(long)]
    pub(crate) rate: Option<Rate>,
    /// Connections at a time
    #[arg(long, short, default_value_t = 64, value_parser = parse_connections)]
    pub(crate) connections: usize,
    /// Speak HTTP/2: at once with http:// (prior knowledge), by ALPN with https://
    #[arg(long, conflicts_with = "new_connections")]
    pub(crate) h2: bool,
    /// Call gRPC, over HTTP/2: each request is a POST with one message of --body-bytes and its prefix
    #[arg(long, conflicts_with_all = ["new_connections", "method"])]
    pub(crate) grpc: bool,
    /// Streams at a time on each connection, with --h2 or --grpc
    #[arg(long, default_value_t = 1, value_parser = parse_streams)]
    pub(crate) streams: usize,
    /// How long to send, such as 500ms, 5s or 2m
    #[arg(long, short, default_value = "5s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Stop after this many requests, if the duration has not ended before
    #[arg(long)]
    pub(crate) requests: Option<NonZeroU64>,
    /// A header field for each request; 'host: NAME' replaces the one from the URL
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<HeaderField>,
    /// Request method; GET by default, POST with a body
    #[arg(long, short = 'X')]
    pub(crate) method: Option<Method>,
    /// Bytes of the request body
    #[arg(long, default_value_t = 0)]
    pub(crate) body_bytes: usize,
    /// What the SHA-256 of every answer's body must be, as sha256sum prints it; another body is a failure
    #[arg(long, value_name = "HEX", conflicts_with = "grpc")]
    pub(crate) body_sha256: Option<BodyHash>,
    /// Send each request on a connection of its own, with a whole TLS handshake where the URL is https://
    #[arg(long)]
    pub(crate) new_connections: bool,
    /// With --new-connections: each of the connections that run at a time resumes the TLS session of the one before
    #[arg(long, requires = "new_connections")]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// A request fails when it has no whole answer by then
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    pub(crate) output: OutputFormat,
}

pub(crate) fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=CONNECTIONS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {CONNECTIONS_MAX}")),
    }
}

pub(crate) fn parse_streams(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=STREAMS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {STREAMS_MAX}")),
    }
}

impl LoadArgs {
    fn is_http2(&self) -> bool {
        self.h2 || self.grpc
    }
}

/// Runs the command.
pub(crate) fn run(args: &LoadArgs, interrupted: &Arc<AtomicBool>) -> anyhow::Result<ExitCode> {
    args.url.require_trust(&args.tls);
    if args.streams > 1 && !args.is_http2() {
        let message = "--streams needs --h2 or --grpc: HTTP/1.1 carries one request at a time\n";
        clap::Error::raw(ErrorKind::MissingRequiredArgument, message).exit();
    }
    if args.body_sha256.is_some() && args.method.as_ref().is_some_and(Method::is_head) {
        let message = "--body-sha256 cannot be used with HEAD, whose answers have no body\n";
        clap::Error::raw(ErrorKind::ArgumentConflict, message).exit();
    }
    let report = generate(args, interrupted)?;
    print_report(&report, args.output)?;
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn generate(args: &LoadArgs, interrupted: &AtomicBool) -> anyhow::Result<LoadReport> {
    match args.is_http2() {
        true => multiplexed::run(args, interrupted),
        false => generator::run(args, interrupted),
    }
}

fn print_report(report: &LoadReport, output: OutputFormat) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match output {
        OutputFormat::Text => writeln!(stdout, "{report}")?,
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(report)?)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests;
