//! `meshring control`.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf};

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{Done, refused};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files and directories with Istio and Kubernetes YAML; watched for changes
    #[arg(long, required = true, num_args = 1.., value_name = "DIR|FILE")]
    config: Vec<PathBuf>,
    /// Serve metrics and status, read-only, on this TCP address
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

pub(super) fn run(options: Options, run_dir: PathBuf) -> Done {
    let filter = EnvFilter::try_from_env("MESHRING_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    crate::control::run(crate::control::Options { config: options.config, run_dir, admin: options.admin })
        .map_err(refused)
}
