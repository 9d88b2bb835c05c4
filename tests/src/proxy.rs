//! `meshring-proxy` as a child process.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::{binaries, client::Client, ports::Reserved, process::Process, wait};

/// `--driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// What the proxy prefers.
    Auto,
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl Driver {
    fn argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }

    /// Whether this machine lets processes use it. Container runtimes refuse io_uring; then its tests end early.
    #[must_use]
    pub fn is_available(self) -> bool {
        static URING: OnceLock<bool> = OnceLock::new();
        self != Self::Uring
            || *URING.get_or_init(|| {
                let dir = TempDir::new().expect("a directory");
                let mut process = ProxyBuilder::new(dir.path()).driver(self).spawn();
                let available = wait::until("the proxy to name its driver", || {
                    if process.line("I/O driver: io_uring").is_some() {
                        return Some(true);
                    }
                    process.try_exit().map(|_| false)
                });
                if !available {
                    println!("skipped: {}", process.output());
                }
                available
            })
    }
}

/// A proxy to be started.
#[derive(Debug)]
pub struct ProxyBuilder {
    run_dir: PathBuf,
    state_dir: Option<PathBuf>,
    workload: String,
    driver: Driver,
    workers: usize,
    outbound: Reserved,
    services: Vec<(Reserved, String)>,
    inbound: Vec<(Reserved, SocketAddr)>,
    hbone: Option<Reserved>,
    hbone_at: Option<SocketAddr>,
    wrapper: Vec<OsString>,
    arguments: Vec<String>,
}

impl ProxyBuilder {
    /// With one worker, an outbound listener and the run directory of a control, which need not be there.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            state_dir: None,
            workload: "default/client".into(),
            driver: Driver::Auto,
            workers: 1,
            outbound: Reserved::new(),
            services: Vec::new(),
            inbound: Vec::new(),
            hbone: None,
            hbone_at: None,
            wrapper: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// `--driver`.
    #[must_use]
    pub fn driver(self, driver: Driver) -> Self {
        Self { driver, ..self }
    }

    /// `--workers`.
    #[must_use]
    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// `--workload`.
    #[must_use]
    pub fn workload(self, workload: &str) -> Self {
        Self { workload: workload.into(), ..self }
    }

    /// `--state-dir`.
    #[must_use]
    pub fn state_dir(self, dir: &Path) -> Self {
        Self { state_dir: Some(dir.to_owned()), ..self }
    }

    /// One more outbound listener, for connections to a service: `redis:6379`, `*:443`.
    #[must_use]
    pub fn outbound_for(mut self, service: &str) -> Self {
        self.services.push((Reserved::new(), service.to_owned()));
        self
    }

    /// One more inbound listener before an application.
    #[must_use]
    pub fn inbound(mut self, application: SocketAddr) -> Self {
        self.inbound.push((Reserved::new(), application));
        self
    }

    /// A listener for tunnels to these applications.
    #[must_use]
    pub fn hbone(self) -> Self {
        Self { hbone: Some(Reserved::new()), ..self }
    }

    /// Likewise on an address that is nobody else's.
    #[must_use]
    pub fn hbone_at(self, address: SocketAddr) -> Self {
        Self { hbone_at: Some(address), ..self }
    }

    /// Further arguments.
    #[must_use]
    pub fn arguments(self, arguments: &[&str]) -> Self {
        Self { arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(), ..self }
    }

    /// A command that changes the circumstances and then executes the rest of its arguments.
    #[must_use]
    pub fn wrapper<A: Into<OsString>>(self, wrapper: impl IntoIterator<Item = A>) -> Self {
        Self { wrapper: wrapper.into_iter().map(Into::into).collect(), ..self }
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(binaries::path("meshring-proxy").into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--run-dir").arg(&self.run_dir);
        command.args(["--workload", &self.workload, "--driver", self.driver.argument()]);
        command.args(["--workers", &self.workers.to_string()]);
        command.args(["--outbound", &self.outbound.address().to_string()]);
        for (reserved, service) in &self.services {
            command.arg("--outbound").arg(format!("{}={service}", reserved.address()));
        }
        for (reserved, application) in &self.inbound {
            command.arg("--inbound").arg(format!("{}={application}", reserved.address()));
        }
        if let Some(address) = self.hbone.as_ref().map(Reserved::address).or(self.hbone_at) {
            command.args(["--hbone", &address.to_string()]);
        }
        if let Some(dir) = &self.state_dir {
            command.arg("--state-dir").arg(dir);
        }
        command.args(&self.arguments);
        command
    }

    /// Starts it without waiting for anything.
    #[must_use]
    pub fn spawn(&self) -> Process {
        Process::start(&format!("meshring-proxy {}", self.workload), &mut self.command())
    }

    /// Starts it and waits until it is ready.
    #[must_use]
    pub fn start(self) -> Proxy {
        let mut process = self.spawn();
        process.wait_for_line("ready: ");
        Proxy { process, builder: self, dir: None }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The process.
    pub process: Process,
    builder: ProxyBuilder,
    dir: Option<TempDir>,
}

impl Proxy {
    /// Starts a proxy without control, from a snapshot in its state directory.
    #[must_use]
    pub fn alone(snapshot: &[u8], driver: Driver) -> Self {
        Self::alone_with(snapshot, |builder| builder.driver(driver))
    }

    /// As [`alone`](Self::alone), with further settings.
    #[must_use]
    pub fn alone_with(snapshot: &[u8], configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Self {
        let dir = TempDir::new().expect("a directory");
        let state = dir.path().join("state");
        store(&state, snapshot);
        let proxy = configure(ProxyBuilder::new(dir.path()).state_dir(&state)).start();
        Self { dir: Some(dir), ..proxy }
    }

    /// Where clients reach the mesh.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.builder.outbound.address()
    }

    /// Where clients reach services, in the order of [`ProxyBuilder::outbound_for`].
    #[must_use]
    pub fn services(&self) -> Vec<SocketAddr> {
        self.builder.services.iter().map(|(reserved, _)| reserved.address()).collect()
    }

    /// Where the mesh reaches the applications, in the order of [`ProxyBuilder::inbound`].
    #[must_use]
    pub fn inbound(&self) -> Vec<SocketAddr> {
        self.builder.inbound.iter().map(|(reserved, _)| reserved.address()).collect()
    }

    /// Where the mesh reaches them through tunnels.
    ///
    /// # Panics
    /// When it has no such listener.
    #[must_use]
    pub fn hbone(&self) -> SocketAddr {
        self.builder.hbone.as_ref().expect("a listener for tunnels").address()
    }

    /// A new connection to the outbound listener.
    #[must_use]
    pub fn connect(&self) -> Client {
        Client::connect(self.outbound())
    }

    /// Starts it again with the same arguments, as a supervisor does after a crash.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = self.builder.spawn();
        self.process.wait_for_line("ready: ");
    }

    /// The temporary directory of a proxy without control.
    ///
    /// # Panics
    /// When it was started otherwise.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("a proxy without control").path()
    }
}

/// Puts a snapshot where a proxy looks for its last good one.
pub fn store(state_dir: &Path, snapshot: &[u8]) {
    fs::create_dir_all(state_dir).expect("a directory");
    fs::write(state_dir.join("last-good.snapshot"), snapshot).expect("a file");
}
