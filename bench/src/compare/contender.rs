//! The proxies that are compared, and how each is started.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::install;
use crate::limits::{CHILD_POLL_INTERVAL, READY_MAX};
use crate::process::{Process, Spawn, check_interrupted};
use crate::{client, mesh};

/// A proxy to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Envoy,
    Haproxy,
    Nginx,
}

impl Peer {
    const fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }

    const fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Envoy => ("envoy.yaml", include_str!("../peers/envoy.yaml")),
            Self::Haproxy => ("haproxy.cfg", include_str!("../peers/haproxy.cfg")),
            Self::Nginx => ("nginx.conf", include_str!("../peers/nginx.conf")),
        }
    }
}

/// How a contender is run: its binaries.
#[derive(Debug, Clone)]
enum Program {
    Meshring(mesh::Binaries),
    Peer { peer: Peer, binary: PathBuf },
}

/// One of the proxies under comparison.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) version: String,
    program: Program,
}

/// The Host of all requests.
pub(super) const HOST: &str = "echo";

impl Contender {
    pub(super) fn peer(peer: Peer, binary: PathBuf) -> Self {
        Self {
            name: peer.name(),
            version: install::version_of(peer).to_owned(),
            program: Program::Peer { peer, binary },
        }
    }

    /// meshring's own binaries: beside this program, or in PATH.
    pub(super) fn meshring() -> anyhow::Result<Self> {
        let program =
            Program::Meshring(mesh::Binaries::find().context("to measure the peers alone, use --only-peers")?);
        Ok(Self { name: "meshring", version: env!("CARGO_PKG_VERSION").to_owned(), program })
    }

    pub(super) fn is_meshring(&self) -> bool {
        matches!(self.program, Program::Meshring(_))
    }

    /// Starts the proxy between a fresh port and the backend; returns once a request was answered through it.
    pub(super) fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let address = mesh::free_address()?;
        fs::create_dir_all(&site.dir)?;
        let processes = match &self.program {
            Program::Meshring(binaries) => start_meshring(binaries, site, address)?,
            Program::Peer { peer, binary } => vec![start_peer(*peer, binary, site, address)?],
        };
        let mut running = Running { address, processes };
        running.wait_until_ready(site).with_context(|| format!("{} is not ready", self.name))?;
        Ok(running)
    }
}

/// Where and between what a contender runs.
pub(super) struct Site<'a> {
    /// A folder of its own.
    pub(super) dir: PathBuf,
    pub(super) backend: SocketAddr,
    pub(super) proxy_core: usize,
    /// Also for meshring's control process, as it is no part of the data plane.
    pub(super) load_core: usize,
    pub(super) interrupted: &'a AtomicBool,
}

impl Site<'_> {
    fn spawn(&self, name: &str, program: &Path, arguments: Vec<OsString>, core: usize) -> anyhow::Result<Process> {
        let core = Some(core);
        Process::spawn(&Spawn { name, program, arguments, core, log_dir: &self.dir, take_stdout: false })
    }

    /// Writes a configuration with its placeholders replaced.
    fn write_config(&self, path: &Path, template: &str, address: SocketAddr) -> anyhow::Result<()> {
        let dir = self.dir.to_str().context("the temporary folder's name is not UTF-8")?;
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let text = template
            .replace("{{LISTEN_PORT}}", &address.port().to_string())
            .replace("{{BACKEND_PORT}}", &self.backend.port().to_string())
            .replace("{{DIR}}", dir)
            .replace("{{USER}}", user);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A contender that answers; dropping it ends its processes.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    /// The data plane is the last one.
    processes: Vec<Process>,
}

impl Running {
    /// The process whose CPU time and memory count, with its children.
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.processes.last().context("no process")?.pid())
    }

    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::check_alive)
    }

    fn wait_until_ready(&mut self, site: &Site<'_>) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        let mut last = String::from("no attempt");
        while Instant::now() < deadline {
            check_interrupted(site.interrupted)?;
            self.check_alive()?;
            match attempt(self.address) {
                Ok(200) => return Ok(()),
                Ok(status) => last = format!("status {status}"),
                Err(error) => last = error.to_string(),
            }
            thread::sleep(CHILD_POLL_INTERVAL);
        }
        let logs: Vec<String> = self.processes.iter().map(Process::quote_log).collect();
        bail!("no answer with status 200 in {} s, the last one: {last}; {}", READY_MAX.as_secs(), logs.join("; "))
    }
}

fn attempt(address: SocketAddr) -> std::io::Result<u16> {
    let stream = client::open(address, Duration::from_secs(2))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    Ok(client::exchange(&stream, request.as_bytes())?.status)
}

fn start_peer(peer: Peer, binary: &Path, site: &Site<'_>, address: SocketAddr) -> anyhow::Result<Process> {
    let (file, template) = peer.template();
    let config = site.dir.join(file);
    site.write_config(&config, template, address)?;
    let config = config.into_os_string();
    let arguments: Vec<OsString> = match peer {
        Peer::Envoy => {
            let fixed = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"];
            fixed.map(OsString::from).into_iter().chain([config]).collect()
        }
        Peer::Haproxy => vec!["-db".into(), "-f".into(), config],
        Peer::Nginx => {
            vec!["-p".into(), site.dir.clone().into(), "-e".into(), "stderr".into(), "-c".into(), config]
        }
    };
    site.spawn(peer.name(), binary, arguments, site.proxy_core)
}

fn start_meshring(binaries: &mesh::Binaries, site: &Site<'_>, address: SocketAddr) -> anyhow::Result<Vec<Process>> {
    let (config, run, state) = (site.dir.join("config"), site.dir.join("run"), site.dir.join("state"));
    for dir in [&config, &run, &state] {
        fs::create_dir_all(dir)?;
    }
    site.write_config(&config.join("mesh.yaml"), include_str!("../peers/mesh.yaml"), address)?;
    let arguments = mesh::control_arguments(&config, &run);
    let control = site.spawn("meshring-control", &binaries.control, arguments, site.load_core)?;
    let arguments = mesh::proxy_arguments(&run, &state, "default/bench", address);
    let proxy = site.spawn("meshring-proxy", &binaries.proxy, arguments, site.proxy_core)?;
    Ok(vec![control, proxy])
}
