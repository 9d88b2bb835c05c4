//! Identities from an external SPIRE agent, by its Workload API.
//!
//! The plain Workload API gives a caller its own identities only. So whoever runs SPIRE makes a registration entry for
//! each workload (SPIFFE id `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`) whose selectors match *control*; we
//! hand each SVID on to the workload that it names. What was had last stays in use while SPIRE is away, until it expires.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use meshring_core::identity::TrustBundle;
use rcgen::PublicKeyData as _;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroize as _;

use super::{IdentitySource, IssueError, SpiffeId, Svid};
use crate::workload_api::{
    client::Client,
    proto::{JwtBundlesResponse, X509Svid, X509SvidResponse},
};

/// First and longest pause between two attempts: SPIRE's agent takes a second to restart.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Certificates in one chain or bundle; more is garbage.
const CERTIFICATES_MAX: usize = 64;

#[derive(Default)]
struct Held {
    svids: HashMap<SpiffeId, Svid>,
    bundles: Vec<TrustBundle>,
    jwt_bundles: Option<HashMap<String, Vec<u8>>>,
    client: Option<Client>,
    /// Why nothing new comes.
    trouble: Option<String>,
}

struct Shared {
    path: PathBuf,
    trust_domain: String,
    held: RwLock<Held>,
    changes: watch::Sender<u64>,
}

/// What SPIRE says we are.
pub struct SpireSource {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for SpireSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpireSource").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Drop for SpireSource {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl SpireSource {
    /// Connects, and goes on trying, in the background: SPIRE may start later than we.
    #[must_use]
    pub fn start(path: &Path, trust_domain: &str, runtime: &tokio::runtime::Handle) -> Self {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            trust_domain: trust_domain.to_owned(),
            held: RwLock::default(),
            changes: watch::Sender::new(0),
        });
        shared.write(|held| held.trouble = Some("it has not answered yet".into()));
        let x509 = runtime.spawn(follow_svids(Arc::clone(&shared)));
        let jwt = runtime.spawn(follow_jwt_bundles(Arc::clone(&shared)));
        Self { shared, tasks: vec![x509, jwt] }
    }

    /// A connection to pass calls on.
    pub(crate) fn client(&self) -> Result<Client, Status> {
        let held = self.shared.read();
        held.client.clone().ok_or_else(|| Status::unavailable(self.shared.away(&held)))
    }

    /// JWK sets by the trust domain's SPIFFE id, as SPIRE said last.
    pub(crate) fn jwt_bundles(&self) -> Result<HashMap<String, Vec<u8>>, Status> {
        let held = self.shared.read();
        held.jwt_bundles.clone().ok_or_else(|| Status::unavailable(self.shared.away(&held)))
    }
}

impl IdentitySource for SpireSource {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, IssueError> {
        let shared = &self.shared;
        if id.trust_domain() != shared.trust_domain {
            return Err(IssueError::ForeignTrustDomain { id: id.clone(), trust_domain: shared.trust_domain.clone() });
        }
        let held = shared.read();
        let reason = match held.svids.get(id) {
            Some(svid) if svid.not_after > SystemTime::now() => return Ok(svid.clone()),
            Some(_) => format!("SPIRE's SVID has expired; {}", shared.away(&held)),
            None if held.trouble.is_some() => shared.away(&held),
            None => format!(
                "SPIRE has no SVID with this id for control; make a registration entry with it whose selectors match \
                 control (as unix:uid:{})",
                rustix::process::geteuid().as_raw()
            ),
        };
        Err(IssueError::NoSuchIdentity { id: id.clone(), reason })
    }

    fn bundles(&self) -> Vec<TrustBundle> {
        self.shared.read().bundles.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn away(&self, held: &Held) -> String {
        let trouble = held.trouble.as_deref().unwrap_or("it has not sent anything newer");
        format!("SPIRE at {}: {trouble}", self.path.display())
    }

    /// Takes what a message says. A bad SVID or bundle does not replace the last good one.
    fn take(&self, message: &X509SvidResponse) {
        let changed = self.write(|held| {
            held.trouble = None;
            let mut svids = HashMap::new();
            for svid in &message.svids {
                match parse_svid(svid) {
                    Ok(good) => drop(svids.entry(good.id.clone()).or_insert(good)),
                    Err(reason) => {
                        tracing::warn!("SPIRE sends a bad SVID for {:?}: {reason}", svid.spiffe_id);
                        let known = svid.spiffe_id.parse().ok().and_then(|id| held.svids.get(&id).cloned());
                        svids.extend(known.map(|known| (known.id.clone(), known)));
                    }
                }
            }
            let bundles = self.bundles(message, &held.bundles);
            let same = bundles == held.bundles
                && svids.len() == held.svids.len()
                && svids.iter().all(|(id, svid)| held.svids.get(id).is_some_and(|old| old.chain == svid.chain));
            (held.svids, held.bundles) = (svids, bundles);
            if same { None } else { Some(held.svids.len()) }
        });
        if let Some(count) = changed {
            tracing::info!("SPIRE at {}: {count} identities", self.path.display());
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// The bundles of a message, the own one first.
    fn bundles(&self, message: &X509SvidResponse, known: &[TrustBundle]) -> Vec<TrustBundle> {
        let own = message.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.bundle.as_slice()));
        let foreign = message.federated_bundles.iter().map(|(id, der)| (id.as_str(), der.as_slice()));
        let mut bundles: Vec<TrustBundle> = Vec::new();
        for (id, der) in own.chain(foreign) {
            // Some servers key federated bundles by the bare name.
            let id = if id.contains("://") { id.to_owned() } else { format!("spiffe://{id}") };
            let trust_domain = match SpiffeId::of_either(&id) {
                Ok(id) => id.trust_domain().to_owned(),
                Err(reason) => {
                    tracing::warn!("SPIRE sends a bundle of {id:?}: {reason}");
                    continue;
                }
            };
            if bundles.iter().any(|bundle| bundle.trust_domain == trust_domain) {
                continue;
            }
            match certificates(der) {
                Ok(roots) if !roots.is_empty() => {
                    bundles.push(TrustBundle { trust_domain, roots: roots.into_iter().map(|(der, _)| der).collect() });
                }
                bad => {
                    let reason = bad.err().unwrap_or_else(|| "it is empty".into());
                    tracing::warn!("SPIRE sends a bad bundle of {trust_domain}: {reason}");
                    bundles.extend(known.iter().find(|bundle| bundle.trust_domain == trust_domain).cloned());
                }
            }
        }
        bundles.sort_by(|a, b| {
            let foreign = |bundle: &TrustBundle| bundle.trust_domain != self.trust_domain;
            (foreign(a), &a.trust_domain).cmp(&(foreign(b), &b.trust_domain))
        });
        bundles
    }
}

/// Attempts with growing pauses between them.
struct Pause(Duration);

impl Pause {
    async fn wait(&mut self) {
        // Between half and the whole: many controls that lose one server must not come back in one moment.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
        let share = 0.5 + 0.5 * (random as f64 / u64::MAX as f64);
        tokio::time::sleep(self.0.mul_f64(share)).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

async fn follow_svids(shared: Arc<Shared>) {
    let mut pause = Pause(PAUSE_MIN);
    loop {
        let reason = svids(&shared, &mut pause).await;
        let news = shared.write(|held| {
            held.client = None;
            let news = held.trouble.as_ref() != Some(&reason);
            held.trouble = Some(reason.clone());
            news
        });
        if news {
            tracing::warn!(
                "SPIRE at {}: {reason}; what it gave last stays in use until it expires",
                shared.path.display()
            );
        }
        pause.wait().await;
    }
}

/// One connection, until it ends; the reason.
async fn svids(shared: &Shared, pause: &mut Pause) -> String {
    let mut client = match Client::connect(&shared.path).await {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    let mut stream = match client.x509_svids().await {
        Ok(stream) => stream,
        Err(status) => return said(&status),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                pause.0 = PAUSE_MIN;
                shared.write(|held| held.client = Some(client.clone()));
                shared.take(&message);
            }
            Ok(None) => return "it has ended the stream".into(),
            Err(status) => return said(&status),
        }
    }
}

async fn follow_jwt_bundles(shared: Arc<Shared>) {
    let mut pause = Pause(PAUSE_MIN);
    loop {
        if jwt_bundles(&shared, &mut pause).await == Err(Code::Unimplemented) {
            tracing::info!("SPIRE at {} has no JWT bundles", shared.path.display());
            return;
        }
        pause.wait().await;
    }
}

/// One connection, until it ends. Its trouble is that of the other stream, which tells it.
async fn jwt_bundles(shared: &Shared, pause: &mut Pause) -> Result<(), Code> {
    let mut client = Client::connect(&shared.path).await.map_err(|_| Code::Unavailable)?;
    let mut stream = client.jwt_bundles().await.map_err(|status| status.code())?;
    while let Some(JwtBundlesResponse { bundles }) = stream.message().await.map_err(|status| status.code())? {
        pause.0 = PAUSE_MIN;
        let changed = shared.write(|held| {
            let changed = held.jwt_bundles.as_ref() != Some(&bundles);
            held.jwt_bundles = Some(bundles);
            changed
        });
        if changed {
            shared.changes.send_modify(|number| *number += 1);
        }
    }
    Ok(())
}

fn said(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "it has no registration entry that matches control (as unix:uid:{}): {}",
            rustix::process::geteuid().as_raw(),
            status.message()
        ),
        code => format!("{code:?}: {}", status.message()),
    }
}

/// DER certificates that stand one after the other, each with its parsed form.
fn certificates(mut der: &[u8]) -> Result<Vec<(Vec<u8>, X509Certificate<'_>)>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| format!("certificate {} is not valid DER", found.len() + 1))?;
        found.push((der[..der.len() - rest.len()].to_vec(), certificate));
        if found.len() > CERTIFICATES_MAX {
            return Err(format!("more than {CERTIFICATES_MAX} certificates"));
        }
        der = rest;
    }
    Ok(found)
}

/// An SVID as the X509-SVID standard wants it (sections 2 to 4), with the key that belongs to it.
fn parse_svid(svid: &X509Svid) -> Result<Svid, String> {
    let id: SpiffeId = svid.spiffe_id.parse().map_err(|reason| format!("{reason}"))?;
    let chain = certificates(&svid.x509_svid)?;
    let (_, leaf) = chain.first().ok_or("there is no certificate")?;
    if leaf.is_ca() {
        return Err("the leaf is a CA".into());
    }
    let names = leaf.subject_alternative_name().map_err(|_| "the alternative names are not valid DER")?;
    let names = names.ok_or("the leaf has no alternative names")?;
    let uris: Vec<_> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    if uris != [id.as_str()] {
        return Err(format!("the leaf is for {uris:?}"));
    }
    let mut pair = rcgen::KeyPair::try_from(svid.x509_svid_key.as_slice())
        .map_err(|_| "the key is not PKCS #8, or of a kind that is not known")?;
    // It is asked for the public half only.
    pair.zeroize();
    if pair.der_bytes() != leaf.public_key().subject_public_key.data.as_ref() {
        return Err("the key does not belong to the certificate".into());
    }
    let time = |time: &x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).map_err(|_| "a date before 1970".to_owned())?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(|| "a date too far away".to_owned())
    };
    let validity = leaf.validity();
    Ok(Svid {
        not_before: time(&validity.not_before)?,
        not_after: time(&validity.not_after)?,
        serial: leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        key: svid.x509_svid_key.as_slice().into(),
        chain: chain.into_iter().map(|(der, _)| der).collect(),
        id,
    })
}
