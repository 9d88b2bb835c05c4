//! The SPIFFE Workload API: applications fetch the identity of their workload from us, with any SPIFFE library, over gRPC
//! on a unix socket.
//!
//! The socket is open to all users (SPIFFE Workload Endpoint, section 3). Who calls is what the kernel says (`SO_PEERCRED`),
//! and [`Bindings`] say which workload that user is; whoever is bound to none is denied. The uid is all that is looked at:
//! processes of one user are one workload.
//!
//! The private key of an X.509-SVID is made for one stream and sent once; nothing here keeps it.

mod authority;
mod bindings;
pub mod client;
mod peer;
pub mod proto;
mod server;
mod streams;
mod tokens;
mod users;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use meshring_core::{
    identity::TrustBundle,
    limits::{WORKLOAD_API_CALLS_PER_USER_MAX, WORKLOAD_API_REQUEST_BYTES_MAX},
};
use tokio::{net::UnixListener, sync::watch};
use tonic::{Status, transport::Server};
use xxhash_rust::xxh3::Xxh3;

pub use self::{
    bindings::{Account, BadWorkloadUid, Bindings, WorkloadUid},
    tokens::Tokens,
};
use self::{
    proto::{JwtSvid, JwtSvidResponse, X509BundlesResponse, X509Svid, X509SvidResponse},
    streams::Next,
    users::Users,
};
use crate::ca::{IdentitySource, SpiffeId, Svid};

/// Name of the socket inside the run directory.
pub const SOCKET_NAME: &str = "workload-api.sock";

/// A peer that does not answer a ping for so long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What callers get their identities from.
#[derive(Debug)]
pub struct WorkloadApi {
    source: Arc<dyn IdentitySource>,
    tokens: Tokens,
    trust_domain: String,
    bindings: watch::Receiver<Arc<Bindings>>,
    users: Users,
}

impl WorkloadApi {
    /// `trust_domain` is that of the identities which `source` issues and `tokens` vouch for.
    #[must_use]
    pub fn new(
        source: Arc<dyn IdentitySource>,
        tokens: Tokens,
        trust_domain: String,
        bindings: watch::Receiver<Arc<Bindings>>,
    ) -> Self {
        Self { source, tokens, trust_domain, bindings, users: Users::default() }
    }

    /// The identities of a user, the default first.
    fn identities(&self, uid: u32) -> Result<Vec<(SpiffeId, Account)>, Status> {
        let bindings = Arc::clone(&self.bindings.borrow());
        let identity = |account: &Account| {
            let id = SpiffeId::workload(&self.trust_domain, &account.namespace, &account.name);
            // A service account that no SPIFFE id can hold comes from a Pod that Kubernetes would not take either.
            id.inspect_err(|reason| tracing::warn!("Workload API: {account} cannot be an identity: {reason}"))
                .ok()
                .map(|id| (id, account.clone()))
        };
        let identities: Vec<_> = bindings.of(uid).iter().filter_map(identity).collect();
        if identities.is_empty() {
            if self.users.first_denial(uid) {
                tracing::warn!("Workload API: user id {uid} is bound to no workload and gets nothing");
            }
            return Err(Status::permission_denied(format!(
                "user id {uid} is bound to no workload: start control with --workload-uid \
                 {uid}=NAMESPACE/SERVICE-ACCOUNT, or annotate the workload with meshring.io/unix-uid: \"{uid}\""
            )));
        }
        Ok(identities)
    }

    /// X.509-SVIDs for all of a user's identities that can be had, with what verifies others.
    fn x509_svids(&self, uid: u32) -> Result<Next<X509SvidResponse>, Status> {
        let identities = self.identities(uid)?;
        let several = identities.len() > 1;
        let bundles = self.source.bundles();
        let own = bundles.iter().find(|bundle| bundle.trust_domain == self.trust_domain);
        let own = own.ok_or_else(|| Status::unavailable(format!("no bundle of {} yet", self.trust_domain)))?;
        let own = concatenated(own);
        let (mut svids, mut hash, mut refused) = (Vec::new(), Xxh3::new(), None);
        let mut due = Duration::MAX;
        for (id, account) in identities {
            match self.source.issue(&id) {
                Ok(svid) => {
                    due = due.min(half_life(svid.not_after, SystemTime::now()));
                    let hint = if several { account.to_string() } else { String::new() };
                    let message = x509_svid(&svid, own.clone(), hint);
                    hash.update(&message.x509_svid);
                    svids.push(message);
                }
                Err(reason) => {
                    tracing::warn!("Workload API: no SVID for user id {uid}: {reason}");
                    refused = Some(reason);
                }
            }
        }
        if let (Some(reason), true) = (refused, svids.is_empty()) {
            return Err(Status::unavailable(reason.to_string()));
        }
        let federated_bundles: HashMap<_, _> =
            by_domain(bundles.iter().filter(|bundle| bundle.trust_domain != self.trust_domain));
        hash.update(&own);
        update(&mut hash, &federated_bundles);
        let message = X509SvidResponse { svids, crl: Vec::new(), federated_bundles };
        Ok(Next { message, fingerprint: hash.digest(), due: Some(due) })
    }

    /// All X.509 bundles.
    fn x509_bundles(&self, uid: u32) -> Result<Next<X509BundlesResponse>, Status> {
        self.identities(uid)?;
        let bundles = by_domain(self.source.bundles().iter());
        if bundles.is_empty() {
            return Err(Status::unavailable(format!("no bundle of {} yet", self.trust_domain)));
        }
        let mut hash = Xxh3::new();
        update(&mut hash, &bundles);
        let message = X509BundlesResponse { crl: Vec::new(), bundles };
        Ok(Next { message, fingerprint: hash.digest(), due: None })
    }

    /// All JWT bundles.
    fn jwt_bundles(&self, uid: u32) -> Result<Next<proto::JwtBundlesResponse>, Status> {
        self.identities(uid)?;
        let (bundles, due) = self.tokens.bundles()?;
        let mut hash = Xxh3::new();
        update(&mut hash, &bundles);
        Ok(Next { message: proto::JwtBundlesResponse { bundles }, fingerprint: hash.digest(), due })
    }

    /// JWT-SVIDs for one or all of a user's identities.
    async fn jwt_svids(&self, uid: u32, request: &proto::JwtSvidRequest) -> Result<JwtSvidResponse, Status> {
        let mut identities = self.identities(uid)?;
        tokens::check_audience(&request.audience)?;
        let several = identities.len() > 1;
        if !request.spiffe_id.is_empty() {
            let asked: SpiffeId =
                request.spiffe_id.parse().map_err(|reason| Status::invalid_argument(format!("spiffe_id: {reason}")))?;
            identities.retain(|(id, _)| *id == asked);
            if identities.is_empty() {
                return Err(Status::permission_denied(format!("user id {uid} is not bound to {asked}")));
            }
        }
        self.spend(uid, identities.len())?;
        let mut svids = Vec::with_capacity(identities.len());
        for (id, account) in identities {
            let hint = if several { account.to_string() } else { String::new() };
            let svid = self.tokens.mint(&id, &request.audience).await?;
            svids.push(JwtSvid { spiffe_id: id.to_string(), svid, hint });
        }
        Ok(JwtSvidResponse { svids })
    }

    async fn validate(
        &self,
        uid: u32,
        request: &proto::ValidateJwtSvidRequest,
    ) -> Result<proto::ValidateJwtSvidResponse, Status> {
        self.identities(uid)?;
        self.spend(uid, 1)?;
        self.tokens.validate(&request.audience, &request.svid).await
    }

    fn spend(&self, uid: u32, signatures: usize) -> Result<(), Status> {
        if self.users.spend(uid, signatures) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!("user id {uid} asks too often: keep a stream open, or try again later")))
    }
}

fn x509_svid(svid: &Svid, bundle: Vec<u8>, hint: String) -> X509Svid {
    X509Svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.chain.concat(),
        x509_svid_key: svid.key.to_vec(),
        bundle,
        hint,
    }
}

/// When a certificate is to be replaced, from now: half of what is left, 10 % more or less so that those of one moment do
/// not stay together; at least a second.
fn half_life(not_after: SystemTime, now: SystemTime) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    left.mul_f64(0.45 + 0.1 * streams::random()).max(Duration::from_secs(1))
}

fn concatenated(bundle: &TrustBundle) -> Vec<u8> {
    bundle.roots.concat()
}

fn by_domain<'b>(bundles: impl Iterator<Item = &'b TrustBundle>) -> HashMap<String, Vec<u8>> {
    // Roots without a trust domain verify no identity.
    let of_domain = bundles.filter(|bundle| !bundle.trust_domain.is_empty());
    of_domain.map(|bundle| (format!("spiffe://{}", bundle.trust_domain), concatenated(bundle))).collect()
}

fn update(hash: &mut Xxh3, bundles: &HashMap<String, Vec<u8>>) {
    let mut sorted: Vec<_> = bundles.iter().collect();
    sorted.sort();
    for (domain, bundle) in sorted {
        hash.update(domain.as_bytes());
        hash.update(bundle);
    }
}

/// Binds the socket and opens it to all users. A socket that a dead process has left is replaced.
///
/// # Errors
/// The system's; `AddrInUse` where somebody serves it.
pub fn bind(path: &Path) -> io::Result<StdUnixListener> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if StdUnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = StdUnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes connections until the future is dropped; those that are there go on until they or the runtime end.
///
/// # Errors
/// The listener cannot be used with this runtime.
pub async fn serve(api: Arc<WorkloadApi>, listener: StdUnixListener) -> io::Result<()> {
    let incoming = peer::incoming(UnixListener::from_std(listener)?, api.users.clone());
    Server::builder()
        .max_concurrent_streams(WORKLOAD_API_CALLS_PER_USER_MAX as u32)
        .max_frame_size(16 * 1024)
        .initial_stream_window_size(WORKLOAD_API_REQUEST_BYTES_MAX as u32)
        .initial_connection_window_size(4 * WORKLOAD_API_REQUEST_BYTES_MAX as u32)
        .http2_max_header_list_size(16 * 1024)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .serve_with_incoming(server::Service(api), incoming)
        .await
        .map_err(io::Error::other)
}
