//! `meshring control`.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use meshring_core::{
    limits::{JWKS_REFRESH_S_MAX, JWKS_REFRESH_S_MIN, SVID_LIFETIME_S_MAX, SVID_LIFETIME_S_MIN},
    secret::core_dumps,
};
use tracing_subscriber::EnvFilter;

use super::{Done, certs, refused};
use crate::{
    ca::OperatorFiles,
    control::{
        Identities,
        bypass::{self, Mode},
        workload_api,
    },
    workload_api::WorkloadUid,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files and directories with Istio and Kubernetes YAML; watched for changes
    #[arg(long, required = true, num_args = 1.., value_name = "DIR|FILE")]
    config: Vec<PathBuf>,
    /// Serve metrics and status, read-only, on this TCP address
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Trust domain of the workloads' identities [default: the MeshConfig's trustDomain, or cluster.local]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Life of a workload's certificate; it is replaced at half of it
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = svid_lifetime)]
    svid_lifetime: Duration,
    /// Issue with this CA certificate (PEM) in place of one of control's own
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// The key of --ca-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Certificates from --ca-cert up to the root, and further roots to trust (PEM)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_chain: Option<PathBuf>,
    /// Take identities from the SPIRE agent at this socket in place of issuing them
    #[arg(long, value_name = "PATH", conflicts_with_all = ["ca_cert", "svid_lifetime"])]
    spire_socket: Option<PathBuf>,
    /// Fetch the key sets of token issuers (jwksUri) again after so long
    #[arg(long, default_value = "20m", value_name = "DURATION", value_parser = jwks_refresh)]
    jwks_refresh: Duration,
    /// Serve the SPIFFE Workload API at this socket [default: workload-api.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    workload_api: Option<PathBuf>,
    /// Take connections between local applications and their proxies around TCP (needs CAP_BPF, CAP_NET_ADMIN and
    /// CAP_PERFMON); `auto` goes on without where that cannot be had
    #[arg(long, value_enum, default_value = "off", value_name = "MODE")]
    bypass: Mode,
    /// Only of processes in this cgroup [default: all]
    #[arg(long, value_name = "PATH")]
    bypass_cgroup: Option<PathBuf>,
    /// Let the kernel write a core when this process crashes: one holds private keys
    #[arg(long)]
    core_dumps: bool,
    /// What processes of this user get from the Workload API; may be given several times
    #[arg(long = "workload-uid", value_name = "UID=NAMESPACE/SERVICE-ACCOUNT")]
    workload_uids: Vec<WorkloadUid>,
}

fn svid_lifetime(text: &str) -> Result<Duration, String> {
    let life = certs::long_duration(text)?;
    if (SVID_LIFETIME_S_MIN..=SVID_LIFETIME_S_MAX).contains(&life.as_secs()) {
        Ok(life)
    } else {
        Err(format!("{text:?} is not between {SVID_LIFETIME_S_MIN}s and {}d", SVID_LIFETIME_S_MAX / 86_400))
    }
}

fn jwks_refresh(text: &str) -> Result<Duration, String> {
    let interval = certs::long_duration(text)?;
    if (JWKS_REFRESH_S_MIN..=JWKS_REFRESH_S_MAX).contains(&interval.as_secs()) {
        Ok(interval)
    } else {
        Err(format!("{text:?} is not between {JWKS_REFRESH_S_MIN}s and {}h", JWKS_REFRESH_S_MAX / 3_600))
    }
}

pub(super) fn run(options: Options, run_dir: PathBuf) -> Done {
    let filter = EnvFilter::try_from_env("MESHRING_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if !options.core_dumps
        && let Err(error) = core_dumps::forbid()
    {
        tracing::warn!("core dumps, which would hold private keys, cannot be switched off: {error}");
    }
    let operator = options.ca_cert.zip(options.ca_key);
    let operator = operator.map(|(certificate, key)| OperatorFiles { certificate, key, chain: options.ca_chain });
    let identities = Identities { trust_domain: options.trust_domain, svid_lifetime: options.svid_lifetime, operator };
    let workload_api = workload_api::Settings {
        socket: options.workload_api,
        uids: options.workload_uids,
        spire_socket: options.spire_socket,
    };
    let Options { config, admin, jwks_refresh, bypass: mode, bypass_cgroup: cgroup, .. } = options;
    let bypass = bypass::Settings { mode, cgroup };
    let options = crate::control::Options { config, run_dir, admin, identities, workload_api, jwks_refresh, bypass };
    crate::control::run(options).map_err(refused)
}
