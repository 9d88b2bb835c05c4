//! The command line: one file per verb. Exit status 0: done; 1: refused; 2: not understood.

mod analyze;
mod bypass;
mod certs;
mod change;
mod control;
mod demo;
mod explain;
mod get;
mod output;
mod top;
mod wait;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::client::{CallError, Client};

/// A service mesh: Istio's YAML in, split traffic out, reconfigured live.
#[derive(Debug, Parser)]
#[command(name = "meshring", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    /// Directory with the sockets of the control process
    #[arg(long, global = true, env = "MESHRING_RUN_DIR", default_value = "/run/meshring", value_name = "DIR")]
    run_dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See it work: control, two sidecars and three sample services on this machine, with traffic
    Demo(demo::Options),
    /// Run the control process: read the configuration, publish it to the proxies, serve the API
    Control(control::Options),
    /// Put resources over the configuration; live when this returns
    Apply(change::ApplyOptions),
    /// Take resources back that were applied
    Delete(change::ApplyOptions),
    /// Show what applying a file would change
    Diff(change::DiffOptions),
    /// Show resources in effect, or the state of the mesh (`get status`)
    Get(get::Options),
    /// Wait until every worker of every proxy runs what the configuration says
    Wait(wait::Options),
    /// Make an earlier generation active again, in microseconds
    Rollback(change::RollbackOptions),
    /// Show which generations were active, and why
    History(OutputOption),
    /// Say where a request would go, by which rule, and why not by an earlier one
    Explain(explain::Options),
    /// Check files without a running control process
    Analyze(analyze::Options),
    /// Show the connected proxies
    Proxies(OutputOption),
    /// Show certificates: who has which identity, until when, by which root; make join tokens; replace the root
    Certs(certs::Options),
    /// Take connections between applications and their proxies on this host around TCP
    Bypass(bypass::Options),
    /// Show live traffic: rates, latencies, shares
    Top(top::Options),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// One sample service of the demo
    #[command(hide = true)]
    Sample(demo::sample::Options),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum DataFormat {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
struct OutputOption {
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Control cannot be reached or refuses.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Refused for a reason of the command's own.
    #[error("{0}")]
    Refused(String),
    /// Everything is said already.
    #[error("")]
    Silent,
}

type Done = Result<(), Failure>;

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(error.to_string())
}

/// Runs the command that the process was called with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with status 0, all else to stderr with status 2.
            let status = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(1)
        }
    }
}

fn dispatch(cli: Cli) -> Done {
    let client = Client::new(&cli.run_dir);
    match cli.verb {
        Verb::Control(options) => control::run(options, cli.run_dir),
        Verb::Analyze(options) => analyze::run(&options),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshring", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Verb::Sample(options) => demo::sample::run(options),
        verb => runtime()?.block_on(Box::pin(async move {
            match verb {
                Verb::Demo(options) => demo::run(options).await,
                Verb::Apply(options) => change::apply(&client, &options).await,
                Verb::Delete(options) => change::delete(&client, &options).await,
                Verb::Diff(options) => change::diff(&client, &options).await,
                Verb::Get(options) => get::run(&client, &options).await,
                Verb::Wait(options) => wait::run(&client, &options).await,
                Verb::Rollback(options) => change::rollback(&client, &options).await,
                Verb::History(options) => get::history(&client, &options).await,
                Verb::Explain(options) => explain::run(&client, options).await,
                Verb::Proxies(options) => get::proxies(&client, &options).await,
                Verb::Certs(options) => certs::run(&client, options).await,
                Verb::Bypass(options) => bypass::run(&client, options).await,
                Verb::Top(options) => top::run(&client, &options).await,
                Verb::Control(_) | Verb::Analyze(_) | Verb::Completions { .. } | Verb::Sample(_) => Ok(()),
            }
        })),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)
}

/// `500ms`, `5s`, `2m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let wrong = || format!("{text:?} is no duration: write it as 500ms, 5s or 2m");
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let seconds = match &text[split..] {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("5 parsecs").unwrap_err().contains("500ms"));
        assert!(duration("").is_err());
    }
}
