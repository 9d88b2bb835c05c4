//! The control process: publishes what its sources say to every proxy of the node, and serves the API.
//!
//! Threads: one per connected proxy ([`link`]), one that watches the files ([`watch`]), and the runtime of the API. The
//! [`Publisher`] is behind a mutex, so publications happen one after the other; readers look at the [`view`], which is
//! replaced as a whole and never waits for a publication.

pub mod admission;
pub mod bypass;
pub mod dns;
pub mod fleet;
pub mod jwks;
pub mod link;
pub mod materials;
pub mod permission;
pub mod run_dir;
pub mod scribe;
pub mod state;
pub mod view;
pub mod watch;
pub mod workload_api;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, RwLock},
    time::{Duration, Instant},
};

use fleet::Fleet;
use materials::Materials;
use run_dir::{RunDir, RunDirError};
use state::State;
use view::View;

use crate::{
    api,
    apply::Publisher,
    ca::{
        Authority, AuthorityError, IdentitySource, OperatorFiles,
        spire::SpireSource,
        tokens::{TokenError, Tokens},
    },
    spec::request_authentication::key_sources,
};

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Configuration files and directories.
    pub config: Vec<PathBuf>,
    /// Where sockets and state live.
    pub run_dir: PathBuf,
    /// Where to serve read-only endpoints on TCP.
    pub admin: Option<SocketAddr>,
    /// Where identities come from.
    pub identities: Identities,
    /// How applications get them.
    pub workload_api: workload_api::Settings,
    /// From one fetch of a token issuer's key set to the next.
    pub jwks_refresh: Duration,
    /// Whether local connections go around TCP.
    pub bypass: bypass::Settings,
}

/// How identities are made.
#[derive(Debug, Clone)]
pub struct Identities {
    /// Of all of them; the MeshConfig's `trustDomain` where nothing is said.
    pub trust_domain: Option<String>,
    /// Life of an X.509-SVID.
    pub svid_lifetime: Duration,
    /// The operator's CA in place of our own.
    pub operator: Option<OperatorFiles>,
}

impl Default for Identities {
    fn default() -> Self {
        let svid_lifetime = Duration::from_secs(meshring_core::limits::SVID_LIFETIME_S);
        Self { trust_domain: None, svid_lifetime, operator: None }
    }
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
    /// See [`AuthorityError`].
    #[error("certificate authority: {0}")]
    Authority(#[from] AuthorityError),
    /// See [`TokenError`].
    #[error("join tokens: {0}")]
    Tokens(#[from] TokenError),
    /// The Workload API's socket cannot be bound.
    #[error("--workload-api {path}: {source}", path = path.display())]
    WorkloadApi {
        /// The socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// `--bypass on`, and it cannot be had.
    #[error("--bypass on: {0}")]
    Bypass(#[from] crate::bypass::InstallError),
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

/// Where the certificate authority keeps its files, in the run directory.
const CA_FOLDER: &str = "ca";

/// What the API's handlers share.
#[derive(Debug)]
pub struct Control {
    /// The connected proxies.
    pub fleet: Arc<Fleet>,
    /// What proxies are given beside the tables.
    pub materials: Arc<Materials>,
    /// Proofs for proxies of foreign users.
    pub tokens: Arc<Tokens>,
    /// Of the identities that are issued.
    pub trust_domain: String,
    /// Local connections around TCP.
    pub bypass: Arc<bypass::Manager>,
    /// The external SPIRE, where identities come from one.
    pub spire: Option<Arc<SpireSource>>,
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
    let control = Arc::new(start(Arc::clone(&run_dir), &options, runtime.handle())?);
    let shared = Arc::new(link_shared(&control));
    spawn("link", move || link::serve(link_socket, shared))?;
    let bypass = Arc::clone(&control.bypass);
    spawn("bypass", move || bypass.serve())?;
    let materials = Arc::clone(&control.materials);
    spawn("certificates", move || materials.serve())?;
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
    let (fetching, interval) = (Arc::clone(&control), options.jwks_refresh);
    spawn("jwks", move || refresh_key_sets(&fetching, interval))?;
    tracing::info!("control serves {} (configuration: {})", options.run_dir.display(), shown(&options.config));
    let workload_api = workload_api::start(&control, &options.workload_api, &options.run_dir, &runtime)?;
    let outcome = runtime.block_on(api::serve(&control, api_socket, admin)).map_err(system("API"));
    tracing::info!("control ends; proxies go on with generation {}", control.fleet.active());
    run_dir.remove_sockets();
    control.publisher().close();
    drop(workload_api);
    // Handlers that wait for acknowledgements must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Fetches the key sets of token issuers again and again.
fn refresh_key_sets(control: &Control, interval: Duration) {
    let mut refresher = jwks::Refresher::new(interval);
    loop {
        std::thread::sleep(Duration::from_millis(jwks::PERIOD_MS));
        let sources = key_sources(&control.view().world);
        if sources.is_empty() {
            continue;
        }
        let known = control.publisher().key_sets().clone();
        let came = refresher.refresh(&sources, &known);
        if !came.is_empty() {
            control.publisher().key_sets_changed(came);
        }
    }
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

fn start(run_dir: Arc<RunDir>, options: &Options, runtime: &tokio::runtime::Handle) -> Result<Control, StartError> {
    let state = State::load(&run_dir).map_err(system("state.json"))?;
    let fleet = Arc::new(Fleet::new(state.active).map_err(system("memfd for the control page"))?);
    let view = Arc::new(RwLock::new(Arc::new(View::empty())));
    let folder = run_dir.join(CA_FOLDER);
    let publisher = Publisher::start(run_dir, Arc::clone(&fleet), Arc::clone(&view), options.config.clone(), state)
        .map_err(system("applied.json"))?;
    let tokens = Arc::new(Tokens::open(&folder)?);
    let (materials, trust_domain, spire) = identities(options, folder, &fleet, &view, runtime)?;
    let materials = Arc::new(materials);
    let bypass = Arc::new(bypass::Manager::start(Arc::clone(&fleet), &options.bypass)?);
    let told = Arc::downgrade(&materials);
    fleet.before_commit(Box::new(move |generation| {
        if let Some(materials) = told.upgrade() {
            materials.committing(generation);
        }
    }));
    Ok(Control {
        fleet,
        materials,
        tokens,
        trust_domain,
        bypass,
        spire,
        publisher: Mutex::new(publisher),
        view,
        started: Instant::now(),
        started_at_ms: meshring_core::clock::unix_ms(),
    })
}

fn in_effect(view: &RwLock<Arc<View>>) -> Arc<crate::spec::World> {
    Arc::clone(&view.read().unwrap_or_else(|poisoned| poisoned.into_inner()).world)
}

/// Opens the certificate authority, or turns to SPIRE.
fn identities(
    options: &Options,
    folder: PathBuf,
    fleet: &Arc<Fleet>,
    view: &Arc<RwLock<Arc<View>>>,
    runtime: &tokio::runtime::Handle,
) -> Result<(Materials, String, Option<Arc<SpireSource>>), StartError> {
    let Identities { trust_domain, svid_lifetime, operator } = options.identities.clone();
    let configured = in_effect(view).trust_domain().to_owned();
    let trust_domain = trust_domain.unwrap_or_else(|| configured.clone());
    if trust_domain != configured {
        tracing::warn!("--trust-domain {trust_domain} is not the trustDomain of the MeshConfig, {configured}");
    }
    let spire = options.workload_api.spire_socket.as_ref();
    let spire = spire.map(|path| Arc::new(SpireSource::start(path, &trust_domain, runtime)));
    let (source, authority) = match &spire {
        Some(spire) => (Arc::clone(spire) as Arc<dyn IdentitySource>, None),
        None => {
            let settings = crate::ca::Settings { trust_domain: trust_domain.clone(), svid_lifetime, folder, operator };
            let authority = Arc::new(Authority::open(settings)?);
            (Arc::clone(&authority) as Arc<dyn IdentitySource>, Some(authority))
        }
    };
    let world = Arc::clone(view);
    let world = Box::new(move || in_effect(&world));
    let materials = Materials::new(Arc::clone(fleet), source, authority, trust_domain.clone(), world);
    Ok((materials, trust_domain, spire))
}

fn link_shared(control: &Arc<Control>) -> link::Shared {
    let view = Arc::clone(&control.view);
    let publishing = Arc::clone(control);
    link::Shared {
        fleet: Arc::clone(&control.fleet),
        materials: Arc::clone(&control.materials),
        tokens: Arc::clone(&control.tokens),
        bypass: Arc::clone(&control.bypass),
        world: Box::new(move || in_effect(&view)),
        recognise: Box::new(move |generation, checksum| publishing.publisher().recognise(generation, checksum)),
        greeting: link::Greetings::default(),
    }
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(system("thread"))
}
