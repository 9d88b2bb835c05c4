//! The Workload API as part of control: its socket, and who is bound to what in the configuration of the moment.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{runtime::Runtime, sync::watch};

use super::{Control, StartError};
use crate::{
    ca::jwt_key::{JwtKeys, Lives},
    workload_api::{self, Bindings, SOCKET_NAME, Tokens, WorkloadApi, WorkloadUid},
};

/// How often a change of the configuration is looked for: one comparison of pointers.
const LOOK: Duration = Duration::from_millis(200);

/// How to serve it, and whom to ask.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The socket; `workload-api.sock` in the run directory where nothing is said.
    pub socket: Option<PathBuf>,
    /// Bindings beside those of the configuration.
    pub uids: Vec<WorkloadUid>,
    /// An external SPIRE agent in place of the own certificate authority.
    pub spire_socket: Option<PathBuf>,
}

/// Removes the socket at the end.
#[derive(Debug)]
pub(super) struct Serving(PathBuf);

impl Drop for Serving {
    fn drop(&mut self) {
        // A leftover is replaced at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the socket and serves it on the runtime.
pub(super) fn start(
    control: &Arc<Control>,
    settings: &Settings,
    run_dir: &Path,
    runtime: &Runtime,
) -> Result<Serving, StartError> {
    let path = settings.socket.clone().unwrap_or_else(|| run_dir.join(SOCKET_NAME));
    let failed = |source| StartError::WorkloadApi { path: path.clone(), source };
    let trust_domain = control.trust_domain.clone();
    let tokens = match &control.spire {
        Some(spire) => Tokens::Spire(Arc::clone(spire)),
        None => {
            let keys = JwtKeys::new(Lives::default(), SystemTime::now()).map_err(std::io::Error::other);
            Tokens::Own { keys: keys.map_err(failed)?, trust_domain: trust_domain.clone() }
        }
    };
    let listener = workload_api::bind(&path).map_err(failed)?;
    let (sender, bindings) = watch::channel(Arc::new(Bindings::new(&settings.uids, &control.view().world)));
    let api = Arc::new(WorkloadApi::new(Arc::clone(control.materials.source()), tokens, trust_domain, bindings));
    runtime.spawn(follow(Arc::clone(control), settings.uids.clone(), sender));
    let shown = path.display().to_string();
    runtime.spawn(async move {
        if let Err(error) = workload_api::serve(api, listener).await {
            tracing::error!("Workload API at {shown}: {error}");
        }
    });
    Ok(Serving(path))
}

/// Keeps the bindings those of the configuration in effect.
async fn follow(control: Arc<Control>, flags: Vec<WorkloadUid>, bindings: watch::Sender<Arc<Bindings>>) {
    let mut seen = Arc::clone(&control.view().world);
    loop {
        // The first time at once: the configuration may have changed since the bindings were made.
        let now = Bindings::new(&flags, &seen);
        bindings.send_if_modified(|known| {
            let changed = **known != now;
            if changed {
                *known = Arc::new(now);
            }
            changed
        });
        loop {
            tokio::time::sleep(LOOK).await;
            let world = Arc::clone(&control.view().world);
            if !Arc::ptr_eq(&world, &seen) {
                seen = world;
                break;
            }
        }
    }
}
