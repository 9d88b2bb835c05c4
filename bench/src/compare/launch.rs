//! The processes of a contender, and their configurations.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use super::contender::Peer;
use super::protocol::Protocol;
use crate::mesh;
use crate::process::{Process, Spawn};
use crate::tls::certificates::Certificates;

/// Where and between what a contender runs.
pub(super) struct Site<'a> {
    /// A folder of its own.
    pub(super) dir: PathBuf,
    pub(super) protocol: Protocol,
    pub(super) certificates: &'a Certificates,
    pub(super) backend: SocketAddr,
    pub(super) proxy_core: usize,
    /// Also for meshring's control process, as it is no part of the data plane.
    pub(super) load_core: usize,
    /// The cgroup of everything here, where the bypass is measured, too.
    pub(super) bypass: Option<&'a Path>,
    /// See [`CompareArgs`](super::CompareArgs).
    pub(super) bare_peers: bool,
    pub(super) interrupted: &'a AtomicBool,
}

/// What has been started; the data plane first.
pub(super) struct Launched {
    pub(super) processes: Vec<Process>,
    /// Those of the data plane.
    pub(super) pids: Vec<u32>,
}

impl Launched {
    fn new(data_plane: Vec<Process>, control: Option<Process>) -> Self {
        let pids = data_plane.iter().map(Process::pid).collect();
        Self { processes: data_plane.into_iter().chain(control).collect(), pids }
    }
}

/// A file of the configuration; placeholders in double braces.
struct Template {
    file: &'static str,
    text: &'static str,
}

macro_rules! template {
    ($file:literal) => {
        Template { file: $file, text: include_str!(concat!("../peers/", $file)) }
    };
}

/// Where a contender listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    /// For the generator.
    listen: SocketAddr,
    /// Of the second sidecar, for the first.
    inbound: SocketAddr,
}

impl Ports {
    fn new(listen: SocketAddr) -> anyhow::Result<Self> {
        loop {
            // Nobody listens on the first one yet, so it may be given once more.
            let inbound = mesh::free_address()?;
            if inbound != listen {
                return Ok(Self { listen, inbound });
            }
        }
    }
}

impl Site<'_> {
    pub(super) fn spawn(
        &self,
        name: &str,
        program: &Path,
        arguments: Vec<OsString>,
        core: usize,
    ) -> anyhow::Result<Process> {
        let core = Some(core);
        Process::spawn(&Spawn { name, program, arguments, core, log_dir: &self.dir, take_stdout: false })
    }

    /// Writes a configuration with its placeholders replaced; gives its path. `action` is what becomes of a request, `forwarding` what is
    /// added to it.
    fn write_config(
        &self,
        dir: &Path,
        template: &Template,
        (action, forwarding): (&str, &str),
        ports: Ports,
    ) -> anyhow::Result<PathBuf> {
        let utf8 = |path: &Path| path.to_str().map(str::to_owned).context("the temporary folder's name is not UTF-8");
        let http2 = self.protocol.is_http2();
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let text = template
            .text
            .replace("{{LISTEN_PORT}}", &ports.listen.port().to_string())
            .replace("{{INBOUND_PORT}}", &ports.inbound.port().to_string())
            .replace("{{BACKEND_PORT}}", &self.backend.port().to_string())
            .replace("{{ACTION}}", action)
            .replace("{{FORWARDING}}", forwarding)
            .replace("{{ALPN}}", if http2 { "h2,http/1.1" } else { "http/1.1" })
            .replace("{{CODEC}}", if http2 { "AUTO" } else { "HTTP1" })
            .replace("{{HTTP2}}", if http2 { "on" } else { "off" })
            .replace("{{CERTIFICATES}}", &utf8(self.certificates.dir())?)
            .replace("{{DIR}}", &utf8(&self.dir)?)
            .replace("{{USER}}", user);
        let path = dir.join(template.file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// One peer, listening at `listen`.
pub(super) fn peer(peer: Peer, binary: &Path, site: &Site<'_>, listen: SocketAddr) -> anyhow::Result<Launched> {
    let ports = Ports::new(listen)?;
    let (templates, action) = peer_templates(peer, site.protocol);
    let forwarding = forwarding(peer, site.protocol, site.bare_peers);
    // The process that others depend on comes first.
    let start = |template: &Template| {
        let config = site.write_config(&site.dir, template, (action, forwarding), ports)?.into_os_string();
        site.spawn(template.file, binary, peer_arguments(peer, config, &site.dir), site.proxy_core)
    };
    Ok(Launched::new(templates.iter().map(start).collect::<anyhow::Result<_>>()?, None))
}

/// The configuration of each of a peer's processes, and what becomes of a request.
fn peer_templates(peer: Peer, protocol: Protocol) -> (Vec<Template>, &'static str) {
    let template = match (peer, protocol) {
        (Peer::Envoy, Protocol::H1 | Protocol::H2c) => template!("envoy.yaml"),
        (Peer::Envoy, Protocol::Mtls) => {
            return (vec![template!("envoy-mtls-server.yaml"), template!("envoy-mtls-client.yaml")], "");
        }
        (Peer::Envoy, Protocol::Grpc) => template!("envoy-grpc.yaml"),
        (Peer::Envoy, Protocol::Tcp) => template!("envoy-tcp.yaml"),
        (Peer::Envoy, Protocol::Tls | Protocol::H2 | Protocol::Handshakes) => template!("envoy-tls.yaml"),
        (Peer::Haproxy, Protocol::H1 | Protocol::H2c | Protocol::Mtls) => template!("haproxy.cfg"),
        (Peer::Haproxy, Protocol::Grpc) => template!("haproxy-grpc.cfg"),
        (Peer::Haproxy, Protocol::Tcp) => template!("haproxy-tcp.cfg"),
        (Peer::Haproxy, Protocol::Tls | Protocol::H2 | Protocol::Handshakes) => template!("haproxy-tls.cfg"),
        (Peer::Nginx, Protocol::H1 | Protocol::H2c | Protocol::Mtls) => template!("nginx.conf"),
        (Peer::Nginx, Protocol::Grpc) => template!("nginx-grpc.conf"),
        (Peer::Nginx, Protocol::Tcp) => template!("nginx-tcp.conf"),
        (Peer::Nginx, Protocol::Tls | Protocol::H2 | Protocol::Handshakes) => template!("nginx-tls.conf"),
    };
    let action = match (peer, protocol) {
        (Peer::Envoy, Protocol::Handshakes) => "direct_response: { status: 200, body: { inline_string: ok } }",
        (Peer::Envoy, Protocol::Tcp) => "cluster: echo",
        (Peer::Envoy, _) => "route: { cluster: echo, timeout: 15s }",
        (Peer::Haproxy, Protocol::Handshakes) => "http-request return status 200 content-type text/plain string ok",
        (Peer::Haproxy, _) => "default_backend echo",
        (Peer::Nginx, Protocol::Handshakes) => "return 200 ok;",
        (Peer::Nginx, Protocol::Grpc) => "grpc_pass grpc://echo;",
        (Peer::Nginx, Protocol::Tcp) => "proxy_pass echo;",
        (Peer::Nginx, _) => "proxy_pass http://echo;",
    };
    (vec![template], action)
}

/// What makes a peer say of a request what meshring always says: whom it comes from, how it has come, and an id.
fn forwarding(peer: Peer, protocol: Protocol, is_bare: bool) -> &'static str {
    match (peer, protocol) {
        (Peer::Envoy, _) if is_bare => "false",
        (Peer::Envoy, _) => "true",
        (Peer::Haproxy | Peer::Nginx, _) if is_bare => "",
        (Peer::Haproxy, _) => {
            "option forwardfor
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    http-request set-header X-Request-Id %[uuid()] unless { req.hdr(X-Request-Id) -m found }"
        }
        (Peer::Nginx, Protocol::Grpc) => {
            "grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            grpc_set_header X-Forwarded-Proto $scheme;
            grpc_set_header X-Request-Id $request_id;"
        }
        (Peer::Nginx, _) => {
            "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Request-Id $request_id;"
        }
    }
}

fn peer_arguments(peer: Peer, config: OsString, dir: &Path) -> Vec<OsString> {
    match peer {
        Peer::Envoy => {
            let fixed = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"];
            fixed.map(OsString::from).into_iter().chain([config]).collect()
        }
        Peer::Haproxy => vec!["-db".into(), "-f".into(), config],
        Peer::Nginx => vec!["-p".into(), dir.into(), "-e".into(), "stderr".into(), "-c".into(), config],
    }
}

/// Control, and one proxy or two, listening at `listen`.
pub(super) fn meshring(
    binaries: &mesh::Binaries,
    site: &Site<'_>,
    listen: SocketAddr,
    is_bypassed: bool,
) -> anyhow::Result<Launched> {
    let (config, run) = (site.dir.join("config"), site.dir.join("run"));
    for dir in [&config, &run] {
        fs::create_dir_all(dir)?;
    }
    let ports = Ports::new(listen)?;
    let template = match site.protocol {
        Protocol::H1 | Protocol::H2c => template!("mesh.yaml"),
        Protocol::Grpc => template!("mesh-grpc.yaml"),
        Protocol::Tls | Protocol::H2 | Protocol::Handshakes => template!("mesh-tls.yaml"),
        Protocol::Mtls => template!("mesh-mtls.yaml"),
        Protocol::Tcp => template!("mesh-tcp.yaml"),
    };
    let action = match site.protocol {
        Protocol::Handshakes => "directResponse: {status: 200, body: {string: ok}}",
        _ => "route: [{destination: {host: echo.bench}}]",
    };
    site.write_config(&config, &template, (action, ""), ports)?;
    let mut arguments = mesh::control_arguments(&config, &run);
    if is_bypassed {
        let group = site.bypass.context("no cgroup for the bypass")?;
        arguments.extend(["--bypass".into(), "on".into(), "--bypass-cgroup".into(), group.into()]);
    }
    let control = site.spawn("meshring-control", &binaries.control, arguments, site.load_core)?;
    let start = |workload: &str, ports: &[OsString]| {
        let name = format!("meshring-proxy-{workload}");
        let state = site.dir.join(format!("state-{workload}"));
        fs::create_dir_all(&state)?;
        let mut arguments = mesh::proxy_arguments(&run, &state, &format!("default/{workload}"));
        arguments.extend_from_slice(ports);
        site.spawn(&name, &binaries.proxy, arguments, site.proxy_core)
    };
    let outbound = match site.protocol {
        Protocol::Tcp => format!("{}=echo:7", ports.listen),
        _ => ports.listen.to_string(),
    };
    let outbound = ["--outbound".into(), outbound.into()];
    let data_plane = if site.protocol == Protocol::Mtls {
        let inbound = ["--inbound".into(), format!("{}={}", ports.inbound, site.backend).into()];
        vec![start("b", &inbound)?, start("a", &outbound)?]
    } else {
        vec![start("bench", &outbound)?]
    };
    Ok(Launched::new(data_plane, Some(control)))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_protocol_is_configured_for_every_peer_that_it_is_compared_with() {
        let dir = tempfile::tempdir().unwrap();
        for protocol in Protocol::value_variants() {
            let certificates = Certificates::make(dir.path(), protocol.host()).unwrap();
            let interrupted = AtomicBool::new(false);
            let site = Site {
                dir: dir.path().to_owned(),
                protocol: *protocol,
                certificates: &certificates,
                backend: "127.0.0.1:3".parse().unwrap(),
                proxy_core: 0,
                load_core: 1,
                bypass: None,
                bare_peers: false,
                interrupted: &interrupted,
            };
            let ports = Ports { listen: "127.0.0.1:1".parse().unwrap(), inbound: "127.0.0.1:2".parse().unwrap() };
            for peer in protocol.default_peers() {
                let (templates, action) = peer_templates(*peer, *protocol);
                let forwarding = forwarding(*peer, *protocol, site.bare_peers);
                for template in templates {
                    let path = site.write_config(dir.path(), &template, (action, forwarding), ports).unwrap();
                    let text = fs::read_to_string(path).unwrap();
                    assert_eq!(text.contains(forwarding), *protocol != Protocol::Tcp, "{protocol:?} {peer:?}: {text}");
                    assert!(!text.contains("{{") && !text.contains("}}\""), "{protocol:?} {peer:?}: {text}");
                    let direct = action.contains("ok");
                    assert_eq!(direct, *protocol == Protocol::Handshakes, "{protocol:?} {peer:?}");
                    assert!(text.contains(action), "{protocol:?} {peer:?}: {text}");
                }
            }
        }
    }
}
