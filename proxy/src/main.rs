//! `meshring-proxy`: the data plane. `request.rs` tells the life of a request; `process` is the main thread; `worker` is
//! what a core runs.

mod accept;
mod balance;
mod config;
mod observe;
mod parse;
mod policy;
mod process;
mod request;
mod respond;
mod route;
#[cfg(test)]
mod steady_state;
#[cfg(test)]
mod testing;
mod tls;
mod upstream;
mod worker;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Usage errors end here with status 2.
    let config = config::Config::parse().prepared();
    let filter = EnvFilter::try_from_env("MESHRING_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    if !config.core_dumps
        && let Err(error) = meshring_core::secret::core_dumps::forbid()
    {
        tracing::warn!(%error, "core dumps, which would hold private keys, cannot be switched off");
    }
    match process::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(1)
        }
    }
}
