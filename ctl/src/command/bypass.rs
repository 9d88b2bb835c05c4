//! `meshring bypass`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{DataFormat, Done, output, refused};
use crate::{
    api::{
        client::Client,
        types::{BypassInstall, BypassPort},
    },
    bypass::Bypass,
    control::bypass::Shown,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
    /// How to print it
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take local connections of the connected proxies around TCP, until control ends
    Install {
        /// Only of processes in this cgroup [default: all]
        #[arg(long, value_name = "PATH")]
        cgroup: Option<PathBuf>,
    },
    /// Capture nothing more; what is captured goes over to TCP
    Remove,
    /// Show programs, maps, registered proxies, bytes by path and captured sockets
    Show,
    /// Take local connections of a process that knows nothing of control around TCP, until this command is ended
    #[command(hide = true)]
    Attach {
        /// Only of processes in this cgroup [default: all]
        #[arg(long, value_name = "PATH")]
        cgroup: Option<PathBuf>,
        /// The process; what it listens on now counts
        #[arg(long)]
        pid: u32,
    },
    /// Let connections to a port use TCP alone, so that tcpdump sees them
    Off {
        /// The port that they are made to
        #[arg(long)]
        port: u16,
    },
    /// Let new connections to a port bypass TCP again
    On {
        /// The port that they are made to
        #[arg(long)]
        port: u16,
    },
}

pub(super) async fn run(client: &Client, options: Options) -> Done {
    let shown: Shown = match options.action {
        Action::Attach { cgroup, pid } => return attach(cgroup.as_deref(), pid),
        Action::Install { cgroup } => client.post("/v1/bypass/install", &BypassInstall { cgroup }).await?,
        Action::Remove => client.post("/v1/bypass/remove", &()).await?,
        Action::Show => client.get("/v1/bypass?sockets=true").await?,
        Action::Off { port } => client.post("/v1/bypass/port", &BypassPort { port, on: false }).await?,
        Action::On { port } => client.post("/v1/bypass/port", &BypassPort { port, on: true }).await?,
    };
    match options.output {
        DataFormat::Json => output::json(&shown)?,
        DataFormat::Table => output::print(&shown.to_string()),
    }
    Ok(())
}

/// For measuring what a bypass does for other proxies.
fn attach(cgroup: Option<&Path>, pid: u32) -> Done {
    let mut bypass = Bypass::install(cgroup).map_err(refused)?;
    let (_, addresses) = bypass.register_foreign(pid).map_err(refused)?;
    output::print(&format!("process {pid} listens on {addresses:?}: its local connections go around TCP\n"));
    loop {
        std::thread::park();
    }
}
