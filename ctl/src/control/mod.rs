//! The control process: publishes what its sources say to every proxy of the node, and serves the API.
//!
//! Threads: one per connected proxy ([`link`]), one that watches the files ([`watch`]), and the runtime of the API. The
//! [`Publisher`] is behind a mutex, so publications happen one after the other; readers look at the [`view`], which is
//! replaced as a whole and never waits for a publication.

pub mod dns;
pub mod fleet;
pub mod link;
pub mod permission;
pub mod run_dir;
pub mod state;
pub mod view;
pub mod watch;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, RwLock},
    time::{Duration, Instant},
};

use fleet::Fleet;
use run_dir::{RunDir, RunDirError};
use state::State;
use view::View;

use crate::{api, apply::Publisher};

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Configuration files and directories.
    pub config: Vec<PathBuf>,
    /// Where sockets and state live.
    pub run_dir: PathBuf,
    /// Where to serve read-only endpoints on TCP.
    pub admin: Option<SocketAddr>,
}

/// Control cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`RunDirError`].
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// `--admin` cannot be bound.
    #[error("--admin {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The error.
        source: io::Error,
    },
    /// The system refuses something.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

/// What the API's handlers share.
#[derive(Debug)]
pub struct Control {
    /// The connected proxies.
    pub fleet: Arc<Fleet>,
    publisher: Mutex<Publisher>,
    view: Arc<RwLock<Arc<View>>>,
    /// When this process started.
    pub started: Instant,
    /// When this process started, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
}

impl Control {
    /// The publisher; publications wait for each other here.
    pub fn publisher(&self) -> MutexGuard<'_, Publisher> {
        self.publisher.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is in effect.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// Runs until SIGINT or SIGTERM.
pub fn run(options: Options) -> Result<(), StartError> {
    let run_dir = Arc::new(RunDir::open(&options.run_dir)?);
    // Bound before the first compilation: clients and proxies that are already there queue instead of failing.
    let link_socket = run_dir.bind_link()?;
    let api_socket = run_dir.bind_api()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("api")
        .enable_all()
        .build()
        .map_err(system("runtime of the API"))?;
    let admin = options.admin.map(|address| bind_admin(&runtime, address)).transpose()?;

    let fingerprint = watch::Fingerprint::of(&options.config);
    let control = Arc::new(start(Arc::clone(&run_dir), &options)?);
    let recognise = {
        let control = Arc::clone(&control);
        Arc::new(move |generation, checksum| control.publisher().recognise(generation, checksum))
    };
    let fleet = Arc::clone(&control.fleet);
    spawn("link", move || link::serve(link_socket, fleet, recognise))?;
    let watching = Arc::clone(&control);
    let paths = options.config.clone();
    spawn("watch", move || {
        watch::serve(&paths, fingerprint, || {
            // The publisher has logged it and shows it to whoever asks.
            let _ = watching.publisher().rescan();
        });
    })?;
    let resolving = Arc::clone(&control);
    spawn("resolve", move || refresh_names(&resolving))?;
    tracing::info!("control serves {} (configuration: {})", options.run_dir.display(), shown(&options.config));
    let outcome = runtime.block_on(api::serve(&control, api_socket, admin)).map_err(system("API"));
    tracing::info!("control ends; proxies go on with generation {}", control.fleet.active());
    run_dir.remove_sockets();
    // Handlers that wait for acknowledgements must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Asks for the addresses of names again and again.
fn refresh_names(control: &Control) {
    loop {
        std::thread::sleep(Duration::from_millis(dns::PERIOD_MS));
        let names = control.view().world.registry().dns_names();
        if !names.is_empty() {
            let answers = dns::refresh(&names);
            control.publisher().addresses_changed(answers);
        }
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn bind_admin(runtime: &tokio::runtime::Runtime, address: SocketAddr) -> Result<tokio::net::TcpListener, StartError> {
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(address))
        .map_err(|source| StartError::Admin { address, source })?;
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!("metrics and status on http://{bound}/metrics and http://{bound}/v1/status");
    Ok(listener)
}

fn start(run_dir: Arc<RunDir>, options: &Options) -> Result<Control, StartError> {
    let state = State::load(&run_dir).map_err(system("state.json"))?;
    let fleet = Arc::new(Fleet::new(state.active).map_err(system("memfd for the control page"))?);
    let view = Arc::new(RwLock::new(Arc::new(View::empty())));
    let publisher = Publisher::start(run_dir, Arc::clone(&fleet), Arc::clone(&view), options.config.clone(), state)
        .map_err(system("applied.json"))?;
    Ok(Control {
        fleet,
        publisher: Mutex::new(publisher),
        view,
        started: Instant::now(),
        started_at_ms: meshring_core::clock::unix_ms(),
    })
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(system("thread"))
}
