//! `meshring wait`.

use std::time::Duration;

use clap::Args;

use super::{Done, change::applied_text, duration, output, refused};
use crate::api::{client::Client, types::Applied};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Until every worker of every proxy runs what the configuration says
    #[arg(long, required = true)]
    applied: bool,
    /// How long at the most
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

pub(super) async fn run(client: &Client, options: &Options) -> Done {
    debug_assert!(options.applied, "clap requires it");
    let path = format!("/v1/applied?timeout_ms={}", options.timeout.as_millis());
    let applied: Applied = client.get(&path).await?;
    if applied.complete {
        output::print(&format!("generation {}: {}\n", applied.generation, applied_text(&applied)));
        return Ok(());
    }
    applied.missing.iter().for_each(|missing| output::note(missing));
    Err(refused(format!(
        "{} of {} workers run generation {} after {:?}",
        applied.workers_current, applied.workers, applied.generation, options.timeout
    )))
}
