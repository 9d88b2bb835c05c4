//! The command line of `meshring-proxy`.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::Parser;
use meshring_core::limits::WORKERS_MAX;

use crate::{accept::Direction, worker::driver::Choice};

/// The data plane of meshring: a sidecar or node proxy.
#[derive(Debug, Clone, Parser)]
#[command(name = "meshring-proxy", version, about, long_about = None)]
pub(crate) struct Config {
    /// Directory where `meshring control` keeps its sockets.
    #[arg(long, env = "MESHRING_RUN_DIR", default_value = "/run/meshring", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,

    /// The workload that this proxy serves; its namespace decides what it sees, its labels what `sourceLabels` match.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) workload: Workload,

    /// Address on which applications reach the mesh. May be repeated.
    #[arg(long, value_name = "ADDR")]
    pub(crate) outbound: Vec<SocketAddr>,

    /// Address on which the mesh reaches an application, and where that application listens. May be repeated.
    #[arg(long, value_name = "ADDR=APP_ADDR")]
    pub(crate) inbound: Vec<Inbound>,

    /// Worker threads, one per core; by default as many as CPUs may be used.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX as i64))]
    pub(crate) workers: Option<u32>,

    /// I/O driver.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) driver: Choice,

    /// Directory for the last good snapshot, from which the proxy starts when control is absent
    /// [default: RUN_DIR/state/NAMESPACE.NAME].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // RFC 1123 names: they become file names and parts of host names.
        let valid = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && !part.starts_with(['.', '-'])
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        match text.split_once('/') {
            Some((namespace, name)) if valid(namespace) && valid(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => {
                Err("write NAMESPACE/NAME in lower-case letters, digits, '-' and '.', such as default/reviews-v1"
                    .into())
            }
        }
    }
}

/// `ADDR=APP_ADDR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inbound {
    pub(crate) address: SocketAddr,
    pub(crate) application: SocketAddr,
}

impl FromStr for Inbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |part: &str| part.parse().map_err(|_| format!("{part:?} is no address such as 127.0.0.1:8080"));
        let (mesh, application) =
            text.split_once('=').ok_or("write ADDR=APP_ADDR, such as 127.0.0.1:15006=127.0.0.1:8080")?;
        Ok(Self { address: address(mesh)?, application: address(application)? })
    }
}

impl Config {
    /// All listening addresses, in the order of the command line.
    pub(crate) fn listeners(&self) -> Vec<(SocketAddr, Direction)> {
        let outbound = self.outbound.iter().map(|&address| (address, Direction::Outbound));
        let inbound = self.inbound.iter().map(|i| (i.address, Direction::Inbound { application: i.application }));
        outbound.chain(inbound).collect()
    }

    /// Where the last good snapshot is kept.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| {
            self.run_dir.join("state").join(format!("{}.{}", self.workload.namespace, self.workload.name))
        })
    }
}

/// How a listener is shown to people.
pub(crate) fn describe(address: SocketAddr, direction: Direction) -> String {
    match direction {
        Direction::Outbound => format!("outbound {address}"),
        Direction::Inbound { application } => format!("inbound {address}={application}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_whole() {
        let config = Config::try_parse_from([
            "meshring-proxy",
            "--workload=default/reviews-v1",
            "--outbound=127.0.0.1:15001",
            "--inbound=127.0.0.1:15006=127.0.0.1:8080",
            "--run-dir=/run/x",
        ])
        .unwrap();
        let listeners: Vec<_> = config.listeners().into_iter().map(|(a, d)| describe(a, d)).collect();
        assert_eq!(listeners, ["outbound 127.0.0.1:15001", "inbound 127.0.0.1:15006=127.0.0.1:8080"]);
        assert_eq!(config.state_dir(), PathBuf::from("/run/x/state/default.reviews-v1"));
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, expected) in [
            (vec!["--workload=reviews"], "NAMESPACE/NAME"),
            (vec!["--workload=../x/y"], "NAMESPACE/NAME"),
            (vec!["--workload=a/b", "--inbound=127.0.0.1:1"], "ADDR=APP_ADDR"),
            (vec!["--workload=a/b", "--inbound=nonsense=127.0.0.1:1"], "nonsense"),
            (vec!["--workload=a/b", "--workers=0"], "workers"),
        ] {
            let all = std::iter::once("meshring-proxy").chain(arguments.iter().copied());
            let error = Config::try_parse_from(all).unwrap_err().to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
