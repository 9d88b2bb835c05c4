//! `meshring-bench idle`: what idle keep-alive connections cost a process in memory.

use std::io::{ErrorKind, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::limits::{CHILD_POLL_INTERVAL, CONNECTIONS_MAX};
use crate::load::target::{HeaderField, Url, encode_request};
use crate::process::usage::{self, Memory};
use crate::process::{check_interrupted, raise_file_limit};
use crate::tls::{self, Socket, TlsArgs};
use crate::{OutputFormat, client, parse_duration};

/// Opens connections, sends one request on each, and measures a process while they idle.
///
/// Exit status: 0 if all connections were answered and stayed open, 1 otherwise, 2 for wrong usage.
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
    /// How long the connections idle before the measurement
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
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
    /// Connections that the server ended before the measurement was over.
    lost: usize,
    before: Memory,
    after: Memory,
    /// Growth of the resident memory by the number of connections; the kernel's memory for sockets is not in it.
    bytes_per_connection: f64,
}

/// Runs the command.
pub(crate) fn run(args: &IdleArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    args.url.require_trust(&args.tls);
    let address = args.url.resolve()?;
    let tls = args.url.tls(&args.tls, tls::Alpn::Http1)?;
    let request = encode_request(&args.url, None, &args.headers, 0, false);
    let exchange_on_new = || exchange_on_new(address, tls.as_ref(), &request, args.timeout);
    let files_max = raise_file_limit();
    if files_max.is_some_and(|max| max < args.connections as u64 + 64) {
        bail!("the limit of open files is too low for {} connections; see `ulimit -Hn`", args.connections);
    }
    // The first request pays for what is set up once; it is no cost of a connection.
    exchange_on_new()?;
    let before = usage::memory(args.pid)?;
    let mut sockets = Vec::with_capacity(args.connections);
    for opened in 0..args.connections {
        check_interrupted(interrupted)?;
        let socket = exchange_on_new().with_context(|| format!("connection {} of {}", opened + 1, args.connections))?;
        sockets.push(socket);
    }
    let until = Instant::now() + args.settle;
    while Instant::now() < until {
        check_interrupted(interrupted)?;
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    let after = usage::memory(args.pid)?;
    let lost = sockets.iter_mut().map(is_open).filter(|open| !open).count();
    let growth = after.rss as f64 - before.rss as f64;
    let report = IdleReport {
        connections: args.connections,
        lost,
        before,
        after,
        bytes_per_connection: growth / args.connections as f64,
    };
    print_report(&report, args.output)?;
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn exchange_on_new(
    address: std::net::SocketAddr,
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
    let IdleReport { connections, lost, before, after, bytes_per_connection } = report;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    match output {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(report)?)?,
        OutputFormat::Text => writeln!(
            stdout,
            "{connections} idle connections: {bytes_per_connection:.0} bytes each; resident {:.2} MB before, {:.2} MB \
             after; {lost} lost",
            megabytes(before.rss),
            megabytes(after.rss)
        )?,
    }
    Ok(())
}
