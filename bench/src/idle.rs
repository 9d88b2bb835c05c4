//! `meshring-bench idle`: what idle keep-alive connections, or idle HTTP/2 streams, cost a process in memory.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::http2::client::Request;
use crate::limits::{CHILD_POLL_INTERVAL, CONNECTIONS_MAX};
use crate::load::parse_streams;
use crate::load::target::{HeaderField, Url, encode_request, http2_request};
use crate::process::usage::{self, Memory};
use crate::process::{check_interrupted, raise_file_limit};
use crate::tls::{self, Socket, TlsArgs};
use crate::{OutputFormat, client, parse_duration};

/// Opens connections, sends one request on each, and measures a process while they idle.
///
/// With --h2 each connection carries --streams requests that are not answered while they are measured: the URL has to be one
/// that is held back, such as /hold of `meshring-bench backend`.
///
/// Exit status: 0 if all connections (streams) were answered (taken) and stayed open, 1 otherwise, 2 for wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// Where to send the requests
    url: Url,
    /// Process to measure, with its children
    #[arg(long)]
    pid: u32,
    /// Connections to open
    #[arg(long, short, default_value_t = 10_000, value_parser = parse_connections)]
    connections: usize,
    /// Speak HTTP/2 and measure streams that wait for their answers
    #[arg(long)]
    h2: bool,
    /// Streams to open on each connection, with --h2
    #[arg(long, default_value_t = 1, value_parser = parse_streams, requires = "h2")]
    streams: usize,
    /// How long the connections idle before the measurement; a proxy keeps what a burst needed for a few seconds
    #[arg(long, default_value = "6s", value_parser = parse_duration)]
    settle: Duration,
    /// A header field for each request
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<HeaderField>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Longest wait for one connection or answer
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=CONNECTIONS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {CONNECTIONS_MAX}")),
    }
}

#[derive(Debug, Serialize)]
struct IdleReport {
    connections: usize,
    /// Streams on each connection; none with HTTP/1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<usize>,
    /// Connections, or streams, that the server ended before the measurement was over.
    lost: usize,
    before: Memory,
    after: Memory,
    /// Growth of the resident memory by the number of connections; the kernel's memory for sockets is not in it.
    bytes_per_connection: f64,
    /// The same by the number of streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_stream: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &IdleArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    args.url.require_trust(&args.tls);
    let files_max = raise_file_limit();
    if files_max.is_some_and(|max| max < args.connections as u64 + 64) {
        bail!("the limit of open files is too low for {} connections; see `ulimit -Hn`", args.connections);
    }
    let address = args.url.resolve()?;
    let measured = if args.h2 {
        let tls = args.url.tls(&args.tls, tls::Alpn::Http2)?;
        let request = http2_request(&args.url, None, &args.headers, 0, false)?;
        let hold = || hold_on_new(address, tls.as_ref(), &request, args);
        measure(args, interrupted, hold, |connection| args.streams - connection.count_open())?
    } else {
        let tls = args.url.tls(&args.tls, tls::Alpn::Http1)?;
        let request = encode_request(&args.url, None, &args.headers, 0, false);
        let exchange = || exchange_on_new(address, tls.as_ref(), &request, args.timeout);
        measure(args, interrupted, exchange, |socket| usize::from(!is_open(socket)))?
    };
    let Measured { before, after, lost } = measured;
    let growth = after.rss as f64 - before.rss as f64;
    let bytes_per_connection = growth / args.connections as f64;
    let report = IdleReport {
        connections: args.connections,
        streams: args.h2.then_some(args.streams),
        lost,
        before,
        after,
        bytes_per_connection,
        bytes_per_stream: args.h2.then(|| bytes_per_connection / args.streams as f64),
    };
    print_report(&report, args.output)?;
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Measured {
    before: Memory,
    after: Memory,
    lost: usize,
}

/// Opens all connections with `open`, lets them idle, and counts with `lost` what each of them has lost meanwhile.
fn measure<C>(
    args: &IdleArgs,
    interrupted: &AtomicBool,
    open: impl Fn() -> anyhow::Result<C>,
    lost: impl FnMut(&mut C) -> usize,
) -> anyhow::Result<Measured> {
    // The first request pays for what is set up once; it is no cost of a connection.
    drop(open()?);
    let before = usage::memory(args.pid)?;
    let mut connections = Vec::with_capacity(args.connections);
    for opened in 0..args.connections {
        check_interrupted(interrupted)?;
        connections.push(open().with_context(|| format!("connection {} of {}", opened + 1, args.connections))?);
    }
    let until = Instant::now() + args.settle;
    while Instant::now() < until {
        check_interrupted(interrupted)?;
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    let after = usage::memory(args.pid)?;
    Ok(Measured { before, after, lost: connections.iter_mut().map(lost).sum() })
}

fn hold_on_new<'r>(
    address: SocketAddr,
    tls: Option<&tls::Client>,
    request: &'r Request,
    args: &IdleArgs,
) -> anyhow::Result<client::Http2<'r>> {
    let cannot = || format!("cannot hold streams open at {address}");
    let socket = client::open_socket(address, args.timeout, tls).with_context(cannot)?;
    let mut connection = client::Http2::begin(socket, request).with_context(cannot)?;
    connection.hold(args.streams).with_context(cannot)?;
    Ok(connection)
}

fn exchange_on_new(
    address: SocketAddr,
    tls: Option<&tls::Client>,
    request: &[u8],
    timeout: Duration,
) -> anyhow::Result<Socket> {
    let mut socket =
        client::open_socket(address, timeout, tls).with_context(|| format!("cannot connect to {address}"))?;
    let answer = client::exchange(&mut socket, request).with_context(|| format!("no answer from {address}"))?;
    if !(200..400).contains(&answer.status) {
        bail!("{address} answers with status {}", answer.status);
    }
    if !answer.keep_alive {
        bail!("{address} does not keep the connection open");
    }
    Ok(socket)
}

fn is_open(socket: &mut Socket) -> bool {
    let mut byte = [0];
    socket.stream().set_nonblocking(true).is_ok()
        && matches!(socket.read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn print_report(report: &IdleReport, output: OutputFormat) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let IdleReport { connections, lost, before, after, .. } = report;
    let what = match (report.streams, report.bytes_per_stream) {
        (Some(streams), Some(bytes)) => {
            format!("{connections} idle connections of {streams} held streams: {bytes:.0} bytes for each stream")
        }
        _ => format!("{connections} idle connections: {:.0} bytes each", report.bytes_per_connection),
    };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    match output {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(report)?)?,
        OutputFormat::Text => writeln!(
            stdout,
            "{what}; resident {:.2} MB before, {:.2} MB after; {lost} lost",
            megabytes(before.rss),
            megabytes(after.rss)
        )?,
    }
    Ok(())
}
