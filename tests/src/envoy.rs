//! A running Envoy with static configuration, as the other side of a sidecar.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{ports::Reserved, process::Process};

/// Where the types of Envoy's extensions are.
pub const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    /// It; ends with this.
    pub process: Process,
    addresses: Vec<SocketAddr>,
    _ports: Vec<Reserved>,
    _dir: TempDir,
}

impl Envoy {
    /// With a listener for each filter chain, on free ports, and clusters.
    #[must_use]
    pub fn start(program: &Path, dir: TempDir, chains: &[Value], clusters: &[Value]) -> Self {
        // Envoy sets SO_REUSEPORT, so it can listen beside the reservation.
        let ports: Vec<Reserved> = chains.iter().map(|_| Reserved::new()).collect();
        let addresses = ports.iter().map(Reserved::address).collect();
        Self::run(program, dir, ports, addresses, chains, clusters)
    }

    /// With one listener, where the test wants it.
    #[must_use]
    pub fn start_at(program: &Path, dir: TempDir, address: SocketAddr, chain: Value, clusters: &[Value]) -> Self {
        Self::run(program, dir, Vec::new(), vec![address], &[chain], clusters)
    }

    fn run(
        program: &Path,
        dir: TempDir,
        ports: Vec<Reserved>,
        addresses: Vec<SocketAddr>,
        chains: &[Value],
        clusters: &[Value],
    ) -> Self {
        let listener = |(index, (chain, address)): (usize, (&Value, &SocketAddr))| {
            json!({
                "name": format!("listener{index}"),
                "address": socket_address(*address),
                "filter_chains": [chain],
            })
        };
        let listeners: Vec<Value> = chains.iter().zip(&addresses).enumerate().map(listener).collect();
        let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
        let path = dir.path().join("envoy.json");
        fs::write(&path, config.to_string()).expect("Envoy's configuration");
        let mut command = Command::new(program);
        command.arg("--config-path").arg(&path).args(["--disable-hot-restart", "--concurrency", "1"]);
        let mut process = Process::start("envoy", command.args(["--log-level", "info"]));
        process.wait_for_line("starting main dispatch loop");
        Self { process, addresses, _ports: ports, _dir: dir }
    }

    /// Where the listener of a chain is.
    #[must_use]
    pub fn address(&self, chain: usize) -> SocketAddr {
        self.addresses[chain]
    }
}

/// As Envoy writes an address.
#[must_use]
pub fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// Who Envoy is (chain and key), whom it believes, and whom it wants to speak with.
#[must_use]
pub fn tls_context(certified: &(PathBuf, PathBuf), root: &Path, peer: &str) -> Value {
    json!({
        "tls_certificates": [{"certificate_chain": {"filename": certified.0}, "private_key": {"filename": certified.1}}],
        "validation_context": {
            "trusted_ca": {"filename": root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

/// HTTP with these routes; `more` are further settings of the connection manager.
#[must_use]
pub fn http(routes: &Value, more: &Value) -> Value {
    let manager = format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager");
    let mut config = json!({
        "@type": manager,
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")},
        }],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}])
}

/// Filters behind mutual TLS; `alpn`: what the server speaks.
#[must_use]
pub fn mutual_chain(filters: Value, mut context: Value, alpn: &[&str]) -> Value {
    context["alpn_protocols"] = json!(alpn);
    let tls = json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": context,
    });
    json!({"filters": filters, "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}})
}

/// A server in clear text.
#[must_use]
pub fn cluster(name: &str, address: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(address)}}]}],
        },
    })
}

/// A server behind mutual TLS.
#[must_use]
pub fn mutual_cluster(name: &str, address: SocketAddr, mut context: Value, is_http2: bool) -> Value {
    context["alpn_protocols"] = json!([if is_http2 { "h2" } else { "http/1.1" }]);
    let protocol = if is_http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut cluster = cluster(name, address);
    cluster["typed_extension_protocol_options"] = json!({
        options: {"@type": format!("type.googleapis.com/{options}"), "explicit_http_config": {protocol: {}}},
    });
    cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": context,
    }});
    cluster
}
