//! The proxies that are compared, and how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::bypass;
use super::install;
use super::launch::{self, Launched, Site};
use crate::http2::client::Request;
use crate::limits::{CHILD_POLL_INTERVAL, READY_MAX};
use crate::process::{Process, check_interrupted};
use crate::{client, mesh, tls};

/// A proxy to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Envoy,
    Haproxy,
    Nginx,
}

impl Peer {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
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
    /// Where the bypass is measured: the program that attaches it.
    bypass: Option<PathBuf>,
}

impl Contender {
    pub(super) fn peer(peer: Peer, binary: PathBuf) -> Self {
        Self {
            name: peer.name(),
            version: install::version_of(peer).to_owned(),
            program: Program::Peer { peer, binary },
            bypass: None,
        }
    }

    /// meshring's own binaries: beside this program, or in PATH.
    pub(super) fn meshring() -> anyhow::Result<Self> {
        let program =
            Program::Meshring(mesh::Binaries::find().context("to measure the peers alone, use --only-peers")?);
        Ok(Self { name: "meshring", version: env!("CARGO_PKG_VERSION").to_owned(), program, bypass: None })
    }

    /// The same with its local connections around TCP.
    pub(super) fn bypassed(self) -> anyhow::Result<Self> {
        let name = match self.program {
            Program::Meshring(_) => "meshring, bypass",
            Program::Peer { peer: Peer::Haproxy, .. } => "HAProxy, bypass",
            Program::Peer { peer, .. } => bail!("{} is not measured with the bypass", peer.name()),
        };
        Ok(Self { name, bypass: Some(mesh::Binaries::find()?.control), ..self })
    }

    pub(super) fn is_meshring(&self) -> bool {
        matches!(self.program, Program::Meshring(_))
    }

    pub(super) fn is_bypassed(&self) -> bool {
        self.bypass.is_some()
    }

    /// Starts the proxy between a fresh port and the backend; returns once a request was answered through it.
    pub(super) fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let address = mesh::free_address()?;
        fs::create_dir_all(&site.dir)?;
        let Launched { processes, pids } = match &self.program {
            Program::Meshring(binaries) => launch::meshring(binaries, site, address, self.is_bypassed())?,
            Program::Peer { peer, binary } => launch::peer(*peer, binary, site, address)?,
        };
        let tls = site.protocol.client_tls(site.certificates);
        let alpn = if site.protocol.is_http2() { tls::Alpn::Http2 } else { tls::Alpn::Http1 };
        let tls = tls.map(|tls| tls::Client::new(&tls, site.protocol.host(), alpn)).transpose()?;
        let http2 = site.protocol.is_http2().then(|| site.protocol.http2_request(address)).transpose()?;
        let mut running = Running { address, tls, http2, pids, processes };
        running.wait_until_ready(site).with_context(|| format!("{} is not ready", self.name))?;
        if let Some(meshring) = &self.bypass {
            match &self.program {
                Program::Meshring(_) => bypass::wait_until_registered(meshring, site)?,
                Program::Peer { .. } => running.processes.push(bypass::attach(meshring, site, &running.pids)?),
            }
        }
        Ok(running)
    }
}

/// A contender that answers; dropping it ends its processes.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    tls: Option<tls::Client>,
    /// What is asked over HTTP/2; none with HTTP/1.1.
    http2: Option<Request>,
    processes: Vec<Process>,
    pids: Vec<u32>,
}

impl Running {
    /// The processes whose CPU time and memory count, with their children.
    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
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
            match self.attempt(site.protocol.host()) {
                Ok(200) => return Ok(()),
                Ok(status) => last = format!("status {status}"),
                Err(error) => last = error.to_string(),
            }
            thread::sleep(CHILD_POLL_INTERVAL);
        }
        let logs: Vec<String> = self.processes.iter().map(Process::quote_log).collect();
        bail!("no answer with status 200 in {} s, the last one: {last}; {}", READY_MAX.as_secs(), logs.join("; "))
    }

    fn attempt(&self, host: &str) -> std::io::Result<u16> {
        let mut socket = client::open_socket(self.address, Duration::from_secs(2), self.tls.as_ref())?;
        if let Some(request) = &self.http2 {
            return client::Http2::begin(socket, request)?.exchange();
        }
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        Ok(client::exchange(&mut socket, request.as_bytes())?.status)
    }
}
