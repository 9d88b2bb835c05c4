//! `meshring apply`, `delete`, `diff` and `rollback`.

use std::{io::Read, path::PathBuf};

use clap::Args;
use meshring_core::id::Generation;

use super::{
    DataFormat, Done, Failure,
    output::{self, count},
    refused,
};
use crate::{
    api::{
        client::Client,
        types::{Applied, Diffs, File, Files, Outcome, Rollback, findings},
    },
    diagnostic::has_errors,
    source,
};

/// How long `apply` waits for the workers, in milliseconds.
const WAIT_MS: u64 = 5_000;

#[derive(Debug, Args)]
pub(super) struct ApplyOptions {
    /// Files or directories; `-` for stdin
    #[arg(short, long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only check, and show what would change
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

#[derive(Debug, Args)]
pub(super) struct DiffOptions {
    /// Files or directories; `-` for stdin
    #[arg(short, long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RollbackOptions {
    /// Which generation; without it, the one before the active one
    #[arg(long, value_name = "GENERATION")]
    to: Option<u64>,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

/// Reads files here, with the rights of whoever called; control reads nothing on behalf of others.
pub(super) fn read(paths: &[PathBuf]) -> Result<Files, Failure> {
    let (stdin, paths): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| path.as_os_str() == "-");
    let mut files = Vec::new();
    if !stdin.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| refused(format!("stdin: {error}")))?;
        files.push(File { path: "stdin".to_owned(), text });
    }
    if !paths.is_empty() {
        let (found, diagnostics) = source::discover(&paths);
        output::findings(&findings(&diagnostics));
        if has_errors(&diagnostics) {
            return Err(Failure::Silent);
        }
        files.extend(found.iter().map(|file| File { path: file.path.to_string(), text: file.text.to_string() }));
    }
    Ok(Files { files })
}

pub(super) async fn apply(client: &Client, options: &ApplyOptions) -> Done {
    change(client, "apply", options).await
}

pub(super) async fn delete(client: &Client, options: &ApplyOptions) -> Done {
    change(client, "delete", options).await
}

async fn change(client: &Client, call: &str, options: &ApplyOptions) -> Done {
    let files = read(&options.files)?;
    let dry_run = options.dry_run;
    let path = format!("/v1/{call}?wait=true&dry_run={dry_run}&timeout_ms={WAIT_MS}");
    let outcome: Outcome = client.post(&path, &files).await?;
    if dry_run && call == "apply" && options.output == DataFormat::Table {
        let diffs: Diffs = client.post("/v1/diff", &files).await?;
        diffs.diffs.iter().for_each(|diff| output::print(diff));
    }
    report(&outcome, options.output)
}

pub(super) async fn rollback(client: &Client, options: &RollbackOptions) -> Done {
    let path = format!("/v1/rollback?wait=true&timeout_ms={WAIT_MS}");
    let outcome: Outcome = client.post(&path, &Rollback { to: options.to.map(Generation) }).await?;
    report(&outcome, options.output)
}

pub(super) async fn diff(client: &Client, options: &DiffOptions) -> Done {
    let diffs: Diffs = client.post("/v1/diff", &read(&options.files)?).await?;
    if diffs.diffs.is_empty() {
        output::note("no difference: what is live says the same");
    }
    diffs.diffs.iter().for_each(|diff| output::print(diff));
    Ok(())
}

fn report(outcome: &Outcome, format: DataFormat) -> Done {
    output::findings(&outcome.diagnostics);
    if format == DataFormat::Json {
        output::json(outcome)?;
    } else {
        output::print(&text(outcome));
    }
    match &outcome.applied {
        Some(applied) if !applied.complete => {
            applied.missing.iter().for_each(|missing| output::note(missing));
            Err(refused(format!(
                "generation {} is active, but {} of {} workers do not run it after {} s",
                applied.generation,
                applied.workers - applied.workers_current,
                applied.workers,
                WAIT_MS / 1000
            )))
        }
        _ => Ok(()),
    }
}

fn text(outcome: &Outcome) -> String {
    let mut lines: Vec<String> = outcome
        .changes
        .iter()
        .map(|change| {
            let from = if change.change == "restored" {
                format!(": {}:{} is in effect again", change.file, change.line)
            } else {
                String::new()
            };
            format!("{} {}/{} {}{from}", change.kind, change.namespace, change.name, change.change)
        })
        .collect();
    let generation = outcome.generation;
    lines.push(match (&outcome.applied, outcome.new_generation) {
        _ if outcome.dry_run => format!("dry run: valid, {} bytes; nothing was published", outcome.bytes),
        // A rollback.
        (Some(applied), false) if outcome.changes.is_empty() => {
            format!("generation {generation} is active: {}", applied_text(applied))
        }
        (Some(applied), true) => format!("generation {generation}: {}", applied_text(applied)),
        (Some(applied), false) => format!("generation {generation} stays active: {}", applied_text(applied)),
        (None, _) => format!("generation {generation} is active"),
    });
    lines.extend(
        outcome.stale.iter().map(|proxy| format!("stale: {proxy} has not answered; it catches up when it does")),
    );
    if let Some(rolled_back) = outcome.rolled_back {
        let from = rolled_back.from;
        lines.push(format!(
            "rolled back: the configuration says generation {from}; its next change ends this, and so does `meshring rollback --to {from}`"
        ));
    }
    lines.join("\n") + "\n"
}

/// `applied to 4 workers of 2 proxies in 1.2 ms`.
pub(super) fn applied_text(applied: &Applied) -> String {
    if applied.proxies == 0 {
        return "no proxy is connected; the next one to come gets it".to_owned();
    }
    format!(
        "applied to {} of {} in {:.1} ms",
        count(applied.workers_current, "worker", "workers"),
        count(applied.proxies, "proxy", "proxies"),
        applied.ms
    )
}
