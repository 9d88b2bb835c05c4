//! meshring-bench: a load generator, a backend, a side-by-side comparison of meshring with other proxies, and the
//! figures of meshring alone: reconfiguration, cold start, large configurations, hostile peers.

mod backend;
mod body_check;
mod client;
mod cold_start;
mod compare;
mod hostile;
mod http;
mod http2;
mod idle;
mod limits;
mod load;
mod mesh;
mod poller;
mod process;
mod reconfigure;
mod scale;
mod stats;
mod tls;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

/// Measures HTTP proxies: meshring, and others beside it.
#[derive(Debug, Parser)]
#[command(name = "meshring-bench", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Load(load::LoadArgs),
    Backend(backend::BackendArgs),
    Compare(compare::CompareArgs),
    Idle(idle::IdleArgs),
    Reconfigure(reconfigure::ReconfigureArgs),
    ColdStart(cold_start::ColdStartArgs),
    Scale(scale::ScaleArgs),
    Hostile(hostile::HostileArgs),
    #[command(hide = true)]
    Pinned(process::PinnedArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    Text,
    Json,
}

/// A duration more than zero, such as 500ms, 5s or 2m.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("a duration of more than zero, such as 500ms, 5s or 2m".to_owned()),
        Ok(duration) if duration > Duration::from_secs(86_400) => Err("at most a day".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 500ms, 5s or 2m")),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do if stderr is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the process at once, should the first not be heeded.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    match &cli.command {
        Command::Load(args) => load::run(args, &interrupted),
        Command::Backend(args) => backend::run(args, &interrupted),
        Command::Compare(args) => compare::run(args, &interrupted),
        Command::Idle(args) => idle::run(args, &interrupted),
        Command::Reconfigure(args) => reconfigure::run(args, &interrupted),
        Command::ColdStart(args) => cold_start::run(args, &interrupted),
        Command::Scale(args) => scale::run(args, &interrupted),
        Command::Hostile(args) => hostile::run(args, &interrupted),
        Command::Pinned(args) => Err(process::exec_pinned(args)),
    }
}
