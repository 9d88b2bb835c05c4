//! The command line of `meshring-proxy`.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use anyhow::Context;
use clap::Parser;
use meshring_core::{
    limits::{
        BODY_GRACE_MS, BODY_RATE_MIN, BUFFER_BYTES, CONNECT_MS_MAX, DOWNSTREAM_IDLE_MS_MAX, HOST_BYTES_MAX,
        REQUEST_HEAD_MS_MAX, RESPONSE_HEAD_MS_MAX, TRUSTED_HOPS_MAX, TUNNEL_IDLE_MS_MAX, UPSTREAM_IDLE_MS_MAX,
        UPSTREAM_IDLE_PER_ENDPOINT_MAX, WORKERS_MAX,
    },
    link::JoinToken,
};

use crate::{
    accept::{Direction, ServicePort},
    worker::driver::Choice,
};

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

    /// Address on which applications reach the mesh; with HOST:PORT, connections to it are for that service, whatever they carry
    /// (`*:PORT`: for whichever service has the port and the server name of their TLS). May be repeated.
    #[arg(long, value_name = "ADDR[=HOST:PORT]")]
    pub(crate) outbound: Vec<Outbound>,

    /// Address on which the mesh reaches an application, and where that application listens. May be repeated.
    #[arg(long, value_name = "ADDR=APP_ADDR")]
    pub(crate) inbound: Vec<Inbound>,

    /// Address on which the mesh reaches the applications of the inbound listeners through CONNECT over mutual TLS, as in Istio's
    /// ambient mode. May be repeated.
    #[arg(long, value_name = "ADDR")]
    pub(crate) hbone: Vec<SocketAddr>,

    /// Worker threads, one per core; by default as many as CPUs may be used.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX as i64))]
    pub(crate) workers: Option<u32>,

    /// I/O driver.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) driver: Choice,

    /// Whether the kernel seals and opens TLS records after the handshake: where it can, always (else the proxy does not
    /// start), or never.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) ktls: KtlsChoice,

    /// Directory for the last good snapshot, from which the proxy starts when control is absent
    /// [default: RUN_DIR/state/NAMESPACE.NAME].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// The service account that the workload runs as: a part of its identity [default: what the configuration says of the
    /// workload, or `default`].
    #[arg(long, value_name = "NAME")]
    pub(crate) service_account: Option<String>,

    /// File with a join token of `meshring certs token`: proves that this proxy may speak for the workload where it runs as
    /// another user than control.
    #[arg(long, value_name = "FILE")]
    pub(crate) join_token: Option<PathBuf>,

    /// Let the kernel write a core when this process crashes: one holds private keys.
    #[arg(long)]
    pub(crate) core_dumps: bool,

    /// What each worker goes by.
    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

/// The part of the command line that is for the workers.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Tuning {
    /// Proxies before this one whose X-Forwarded-*, Forwarded and X-Request-Id are believed; 0: nobody is, not even the local
    /// application [default: the mesh's numTrustedProxies; the local application is always believed].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(TRUSTED_HOPS_MAX)))]
    pub(crate) trusted_hops: Option<u8>,

    /// From the first byte of a request to the end of its head; beyond it 408.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(REQUEST_HEAD_MS_MAX))]
    pub(crate) head_timeout: Milliseconds,

    /// Least average rate of a request body in bytes per second, counted while the client is waited for; below it 408.
    /// 0 for any rate.
    #[arg(long, value_name = "BYTES_PER_S", default_value_t = BODY_RATE_MIN)]
    pub(crate) min_body_rate: u64,

    /// How long a client may be waited for in all before the rate of its body counts.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(BODY_GRACE_MS))]
    pub(crate) body_grace: Milliseconds,

    /// Largest request body; beyond it 413 [default: any].
    #[arg(long, value_name = "BYTES")]
    pub(crate) request_body_max: Option<u64>,

    /// Ports for which the local application may open tunnels with CONNECT, to hosts that the configuration knows [default: none].
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connect_ports: Vec<u16>,

    /// Silence in both directions after which a tunnel (an upgraded connection, or CONNECT) is closed.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(TUNNEL_IDLE_MS_MAX))]
    pub(crate) tunnel_idle_timeout: Milliseconds,

    /// How long a client's connection may be without a request before it is closed.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(DOWNSTREAM_IDLE_MS_MAX))]
    pub(crate) idle_timeout: Milliseconds,

    /// How long an upstream connection may take to be made, TLS included; beyond it 504.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(CONNECT_MS_MAX))]
    pub(crate) connect_timeout: Milliseconds,

    /// How long an upstream may be silent before and within its response, where the rule sets no timeout; beyond it 504. Calls of gRPC have an hour.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(RESPONSE_HEAD_MS_MAX))]
    pub(crate) response_timeout: Milliseconds,

    /// How long an upstream connection is kept without a request. More than the server's own limit means that requests meet
    /// connections that are being closed.
    #[arg(long, value_name = "DURATION", default_value_t = Milliseconds(UPSTREAM_IDLE_MS_MAX))]
    pub(crate) upstream_idle_timeout: Milliseconds,

    /// Upstream connections without a request that a worker keeps for each endpoint; 0: each request has a connection of its own.
    #[arg(long, value_name = "N", default_value_t = UPSTREAM_IDLE_PER_ENDPOINT_MAX as u32)]
    pub(crate) upstream_idle_max: u32,

    /// What outbound listeners are for; see [`Config::prepared`].
    #[arg(skip)]
    pub(crate) services: Vec<(SocketAddr, ServicePort)>,

    /// Bytes in I/O buffers of one worker, beyond which it answers new requests with 503 [default: the memory limit of the
    /// control group, or the machine's memory, divided by four and by the workers].
    #[arg(long, value_name = "BYTES", value_parser = buffer_bytes)]
    pub(crate) buffer_bytes_max: Option<usize>,

    /// Connections of one worker, beyond which it answers new ones with 503 [default: what the limits of open files and
    /// memory allow, 50,000 at the most].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections_max: Option<u32>,
}

/// A request needs three buffers, and some more are needed to read and to refuse others.
const BUFFER_BYTES_MAX_LEAST: usize = 8 * BUFFER_BYTES;

fn buffer_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes >= BUFFER_BYTES_MAX_LEAST => Ok(bytes),
        Ok(_) => Err(format!("at least {BUFFER_BYTES_MAX_LEAST} bytes are needed")),
        Err(_) => Err("write a number of bytes".into()),
    }
}

/// `--ktls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum KtlsChoice {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `30s` or `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Milliseconds(pub(crate) u64);

impl FromStr for Milliseconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit_ms) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(digits), _) => (digits, 1),
            (None, Some(digits)) => (digits, 1_000),
            (None, None) => (text, 0),
        };
        let count = digits.parse::<u64>().ok().filter(|_| unit_ms > 0 && digits.bytes().all(|b| b.is_ascii_digit()));
        let ms = count.and_then(|count| count.checked_mul(unit_ms)).filter(|ms| (1..=DAY_MS).contains(ms));
        ms.map(Self).ok_or_else(|| "write a time above 0 and up to a day, such as 30s or 500ms".into())
    }
}

const DAY_MS: u64 = 24 * 3_600 * 1_000;

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ms if ms % 1_000 == 0 => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{ms}ms"),
        }
    }
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

/// `ADDR[=HOST:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outbound {
    pub(crate) address: SocketAddr,
    pub(crate) service: Option<ServicePort>,
}

impl FromStr for Outbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, service) = match text.split_once('=') {
            Some((address, service)) => (address, Some(service)),
            None => (text, None),
        };
        let address = address.parse().map_err(|_| format!("{address:?} is no address such as 127.0.0.1:15001"))?;
        let named = |text: &str| {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            let is_sound = host == "*" || !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(is_name);
            is_sound.then(|| ServicePort { host: (host != "*").then(|| host.to_owned()), port })
        };
        let service = service.map(|text| {
            named(text).ok_or_else(|| format!("write ADDR=HOST:PORT, such as 127.0.0.1:6379=redis:6379, not {text:?}"))
        });
        Ok(Self { address, service: service.transpose()? })
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
        let outbound = self.outbound.iter().map(|outbound| (outbound.address, Direction::Outbound));
        let inbound = self.inbound.iter().map(|i| (i.address, Direction::Inbound { application: i.application }));
        let hbone = self.hbone.iter().map(|&address| (address, Direction::Hbone));
        outbound.chain(inbound).chain(hbone).collect()
    }

    /// With what the workers must know of the listeners.
    pub(crate) fn prepared(mut self) -> Self {
        let services = self.outbound.iter().filter_map(|outbound| Some((outbound.address, outbound.service.clone()?)));
        self.tuning.services = services.collect();
        self
    }

    /// The join token in the file of `--join-token`.
    pub(crate) fn read_join_token(&self) -> anyhow::Result<Option<JoinToken>> {
        let Some(path) = &self.join_token else { return Ok(None) };
        let shown = || format!("--join-token {}", path.display());
        let text = std::fs::read_to_string(path).with_context(shown)?;
        let token = text.trim();
        anyhow::ensure!(!token.is_empty() && token.len() <= 256, "{}: holds no join token", shown());
        Ok(Some(JoinToken(token.to_owned())))
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
        Direction::Hbone => format!("hbone {address}"),
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
            "--outbound=127.0.0.1:6379=redis.db:6379",
            "--outbound=127.0.0.1:443=*:443",
            "--inbound=127.0.0.1:15006=127.0.0.1:8080",
            "--hbone=127.0.0.1:15008",
            "--connect-ports=443,8443",
            "--run-dir=/run/x",
        ])
        .unwrap();
        let listeners: Vec<_> = config.listeners().into_iter().map(|(a, d)| describe(a, d)).collect();
        let expected = [
            "outbound 127.0.0.1:15001",
            "outbound 127.0.0.1:6379",
            "outbound 127.0.0.1:443",
            "inbound 127.0.0.1:15006=127.0.0.1:8080",
            "hbone 127.0.0.1:15008",
        ];
        assert_eq!(listeners, expected);
        assert_eq!(config.tuning.connect_ports, [443, 8443]);
        let services: Vec<_> =
            config.clone().prepared().tuning.services.iter().map(|(at, service)| format!("{at} {service}")).collect();
        assert_eq!(services, ["127.0.0.1:6379 redis.db:6379", "127.0.0.1:443 *:443"]);
        assert_eq!(config.state_dir(), PathBuf::from("/run/x/state/default.reviews-v1"));
    }

    #[test]
    fn a_join_token_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let flag = format!("--join-token={}", path.display());
        let config =
            Config::try_parse_from(["meshring-proxy", "--workload=a/b", "--service-account=c", &flag]).unwrap();
        assert_eq!(config.service_account.as_deref(), Some("c"));
        assert!(format!("{:#}", config.read_join_token().unwrap_err()).contains("token: No such file"));
        std::fs::write(&path, "mrjt_0123\n").unwrap();
        let token = config.read_join_token().unwrap().unwrap();
        assert_eq!(token.0, "mrjt_0123");
        assert!(!format!("{token:?}").contains("0123"));
        std::fs::write(&path, "\n").unwrap();
        assert!(config.read_join_token().unwrap_err().to_string().contains("holds no join token"));
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, expected) in [
            (vec!["--workload=reviews"], "NAMESPACE/NAME"),
            (vec!["--workload=../x/y"], "NAMESPACE/NAME"),
            (vec!["--workload=a/b", "--inbound=127.0.0.1:1"], "ADDR=APP_ADDR"),
            (vec!["--workload=a/b", "--outbound=127.0.0.1:1=redis"], "redis:6379"),
            (vec!["--workload=a/b", "--outbound=127.0.0.1:1=a/b:1"], "HOST:PORT"),
            (vec!["--workload=a/b", "--outbound=127.0.0.1=a:1"], "no address"),
            (vec!["--workload=a/b", "--inbound=nonsense=127.0.0.1:1"], "nonsense"),
            (vec!["--workload=a/b", "--workers=0"], "workers"),
            (vec!["--workload=a/b", "--head-timeout=30"], "30s or 500ms"),
            (vec!["--workload=a/b", "--head-timeout=0s"], "30s or 500ms"),
            (vec!["--workload=a/b", "--body-grace=+5s"], "30s or 500ms"),
            (vec!["--workload=a/b", "--buffer-bytes-max=1000"], "139264"),
            (vec!["--workload=a/b", "--connections-max=0"], "connections-max"),
            (vec!["--workload=a/b", "--min-body-rate=-1"], "min-body-rate"),
            (vec!["--workload=a/b", "--connect-ports=443,0"], "connect-ports"),
            (vec!["--workload=a/b", "--hbone=15008"], "hbone"),
        ] {
            let all = std::iter::once("meshring-proxy").chain(arguments.iter().copied());
            let error = Config::try_parse_from(all).unwrap_err().to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
