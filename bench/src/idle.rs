//! `meshring-bench idle`: what idle keep-alive connections cost a process in memory.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
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
    let address = args.url.resolve()?;
    let request = encode_request(&args.url, None, &args.headers, 0);
    let files_max = raise_file_limit();
    if files_max.is_some_and(|max| max < args.connections as u64 + 64) {
        bail!("the limit of open files is too low for {} connections; see `ulimit -Hn`", args.connections);
    }
    // The first request pays for what is set up once; it is no cost of a connection.
    exchange_on_new(address, &request, args.timeout)?;
    let before = usage::memory(args.pid)?;
    let mut streams = Vec::with_capacity(args.connections);
    for opened in 0..args.connections {
        check_interrupted(interrupted)?;
        let stream = exchange_on_new(address, &request, args.timeout)
            .with_context(|| format!("connection {} of {}", opened + 1, args.connections))?;
        streams.push(stream);
    }
    let until = Instant::now() + args.settle;
    while Instant::now() < until {
        check_interrupted(interrupted)?;
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    let after = usage::memory(args.pid)?;
    let lost = streams.iter().filter(|stream| !is_open(stream)).count();
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

fn exchange_on_new(address: std::net::SocketAddr, request: &[u8], timeout: Duration) -> anyhow::Result<TcpStream> {
    let stream = client::open(address, timeout).with_context(|| format!("cannot connect to {address}"))?;
    let answer = client::exchange(&stream, request).with_context(|| format!("no answer from {address}"))?;
    if !(200..400).contains(&answer.status) {
        bail!("{address} answers with status {}", answer.status);
    }
    if !answer.keep_alive {
        bail!("{address} does not keep the connection open");
    }
    Ok(stream)
}

fn is_open(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.set_nonblocking(true).is_ok()
        && matches!(stream.read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
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
