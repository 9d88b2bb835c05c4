//! What each proxy is given beside the tables, and when: its own identity, rotated at half of its life, and the credentials
//! that the active table names.
//!
//! One place decides, [`Materials::tend`]; it compares what each proxy has with what it should have. A thread calls it on a
//! tick, a greeting, an answer and a publication call it at once. Keys are made here, go into a sealed memfd and are wiped.

mod credential;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use meshring_core::{
    id::Generation,
    identity::{Material, OWN, TrustBundle},
    limits::{CERTIFICATE_RETRY_MS_MAX, CERTIFICATE_RETRY_MS_MIN, CERTIFICATE_TICK_MS, MATERIALS_MAX, PREPARE_MS_MAX},
    link::{Hello, ToProxy},
    snapshot::{Snapshot, region::sealed},
    table::lookup::Viewpoint,
};
use tokio::sync::watch;

use credential::{Credential, Loaded};

use super::{
    admission::{self, Grant},
    fleet::{Fleet, ProxyId, Retained, Sent},
};
use crate::{
    ca::{Authority, IdentitySource, Phase, RotationError, SpiffeId, Svid, root_of, unix_s},
    spec::World,
};

pub use report::{CaItem, CertificateItem, Certificates, CredentialItem, RotationItem};

/// A new root issues only after this time, in milliseconds, although every proxy has it: after a restart of control they
/// take up to a few pauses of [`meshring_core::limits::LINK_RECONNECT_MS`] to be back.
const ROTATION_SETTLE_MS: u64 = 2_000;
/// Two rotations of one identity are at least so far apart, in milliseconds: a source may hand out what is about to expire.
const ROTATION_PAUSE_MS_MIN: u64 = 1_000;

/// What came of the last attempt to give a proxy something.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing was sent yet.
    Missing,
    /// Sent, not answered.
    Sent,
    /// The proxy uses it.
    Installed,
    /// The proxy does not take it.
    Refused(String),
    /// It could not be made or sent.
    Failed(String),
}

/// Attempts that fail are repeated at growing intervals.
#[derive(Debug, Default, Clone)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    fn failed(&mut self, now: Instant) {
        let pause = CERTIFICATE_RETRY_MS_MIN.saturating_mul(1 << self.failures.min(16)).min(CERTIFICATE_RETRY_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + Duration::from_millis(pause));
    }

    fn over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

/// Answers that have not come yet: a proxy answers everything that it is sent once, in the order in which it was sent.
#[derive(Debug, Default)]
struct Awaited(usize);

impl Awaited {
    fn sent(&mut self) {
        self.0 += 1;
    }

    /// One has come. Whether it is the one to what was sent last: an answer to something earlier says nothing about that.
    fn is_to_last(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

/// A proxy's own identity.
#[derive(Debug, Clone)]
struct Identity {
    id: SpiffeId,
    serial: String,
    root: String,
    not_before: SystemTime,
    not_after: SystemTime,
    /// On the wall clock, as certificates are: whatever that does, what is not valid is replaced.
    rotate_at: SystemTime,
    /// See [`Current`].
    bundle: u64,
    change: u64,
}

#[derive(Debug)]
struct Holder {
    hello: Arc<Hello>,
    grant: Grant,
    identity: Option<Identity>,
    state: State,
    awaited: Awaited,
    backoff: Backoff,
    /// Why it gets no identity, as it was told.
    denied: Option<String>,
    /// What it was sent, by name.
    credentials: BTreeMap<String, Given>,
}

#[derive(Debug)]
struct Given {
    checksum: u64,
    state: State,
    /// When it was sent last.
    sent: Option<Instant>,
    backoff: Backoff,
}

/// What identities are compared with.
#[derive(Debug)]
struct Current {
    bundles: Vec<TrustBundle>,
    /// Of the bundles.
    bundle: u64,
    /// Of the source ([`IdentitySource::changes`]).
    change: u64,
}

/// Credentials that a table names.
#[derive(Debug)]
struct Names {
    generation: Generation,
    checksum: u64,
    snapshot: Arc<Snapshot>,
    /// Of clusters: every proxy may need them.
    clusters: BTreeSet<String>,
    /// By position in `inbound_policies`: for workloads under that policy only.
    gateways: BTreeMap<usize, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Inner {
    holders: BTreeMap<ProxyId, Holder>,
    credentials: BTreeMap<String, Credential>,
    names: Option<Names>,
    /// About to be committed: until it is, what it names must not be taken back for what is active.
    pending: Option<Generation>,
}

/// Counters for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// SVIDs that went to proxies.
    pub issued: AtomicU64,
    /// Of them, replacements of one that the proxy had.
    pub rotations: AtomicU64,
    /// SVIDs that could not be made or sent.
    pub issue_failures: AtomicU64,
    /// Proxies that got no identity because they may not have it.
    pub denials: AtomicU64,
    /// Materials that a proxy refused.
    pub refusals: AtomicU64,
}

/// Who is asked what is in effect.
pub type WorldNow = dyn Fn() -> Arc<World> + Send + Sync;

/// Distributes certificates, keys and trust.
pub struct Materials {
    fleet: Arc<Fleet>,
    source: Arc<dyn IdentitySource>,
    authority: Option<Arc<Authority>>,
    trust_domain: String,
    world: Box<WorldNow>,
    changes: watch::Receiver<u64>,
    started: Instant,
    inner: Mutex<Inner>,
    /// A proxy has answered, or has gone.
    answered: Condvar,
    /// See [`Counters`].
    pub counters: Counters,
}

impl std::fmt::Debug for Materials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Materials").field("source", &self.source).field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Materials {
    /// `authority` is the source itself where that is our own: it can replace its root.
    pub fn new(
        fleet: Arc<Fleet>,
        source: Arc<dyn IdentitySource>,
        authority: Option<Arc<Authority>>,
        trust_domain: String,
        world: Box<WorldNow>,
    ) -> Self {
        let changes = source.changes();
        Self {
            fleet,
            source,
            authority,
            trust_domain,
            world,
            changes,
            started: Instant::now(),
            inner: Mutex::default(),
            answered: Condvar::new(),
            counters: Counters::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where identities come from.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn IdentitySource> {
        &self.source
    }

    /// For as long as the process lives.
    pub fn serve(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(CERTIFICATE_TICK_MS));
            self.tend();
        }
    }

    /// A proxy is here and has been welcomed.
    pub fn attached(&self, id: ProxyId, hello: Arc<Hello>, grant: Grant) {
        let holder = Holder {
            hello,
            grant,
            identity: None,
            state: State::Missing,
            awaited: Awaited::default(),
            backoff: Backoff::default(),
            denied: None,
            credentials: BTreeMap::new(),
        };
        self.lock().holders.insert(id, holder);
        self.tend();
    }

    /// A proxy has gone.
    pub fn detached(&self, id: ProxyId) {
        self.lock().holders.remove(&id);
        self.answered.notify_all();
    }

    /// A proxy uses a material.
    pub fn installed(&self, id: ProxyId, name: &str) {
        let mut inner = self.lock();
        let Some(holder) = inner.holders.get_mut(&id) else { return };
        if name == OWN {
            if holder.awaited.is_to_last() && holder.state == State::Sent {
                (holder.state, holder.backoff) = (State::Installed, Backoff::default());
            }
        } else if let Some(given) = holder.credentials.get_mut(name) {
            (given.state, given.backoff) = (State::Installed, Backoff::default());
        }
        self.answered.notify_all();
    }

    /// A proxy does not take a material.
    pub fn refused(&self, id: ProxyId, name: &str, reason: String) {
        self.counters.refusals.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let Some(holder) = inner.holders.get_mut(&id) else { return };
        let what = if name == OWN { "its identity" } else { name };
        tracing::warn!("proxy {}: does not take {what}: {reason}", title(&holder.hello));
        let now = Instant::now();
        if name == OWN {
            if holder.awaited.is_to_last() {
                holder.state = State::Refused(reason);
                holder.backoff.failed(now);
            }
        } else if let Some(given) = holder.credentials.get_mut(name) {
            given.state = State::Refused(reason);
            given.backoff.failed(now);
        }
        self.answered.notify_all();
    }

    /// Gives every proxy what it should have and has not.
    pub fn tend(&self) {
        self.tend_with(self.fleet.active_content());
    }

    /// The same before a generation is committed: proxies have what its table names before a worker runs it. One that does not say
    /// so in time must not keep the others from the generation.
    pub fn committing(&self, generation: Generation) {
        let begun = Instant::now();
        self.lock().pending = Some(generation);
        self.tend_with(self.fleet.retained_as(generation));
        let until = begun + Duration::from_millis(PREPARE_MS_MAX);
        let is_awaited = |given: &Given| given.state == State::Sent && given.sent.is_some_and(|at| at >= begun);
        let mut inner = self.lock();
        while inner.holders.values().any(|holder| holder.credentials.values().any(is_awaited)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = match self.answered.wait_timeout(inner, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn tend_with(&self, content: Option<Arc<Retained>>) {
        let world = (self.world)();
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut inner = self.lock();
        let inner = &mut *inner;
        self.tend_root(inner);
        // Before the bundles: what changes in between is seen at the next tick.
        let change = *self.changes.borrow();
        let bundles = self.source.bundles();
        let current = Current { bundle: hash(&bundles), bundles, change };
        for (id, holder) in &mut inner.holders {
            self.tend_identity(*id, holder, &current, &world, (now, clock));
        }
        let is_pending = |content: &Arc<Retained>| inner.pending == Some(content.generation);
        let content = match inner.pending {
            Some(pending) if !content.as_ref().is_some_and(is_pending) => self.fleet.retained_as(pending).or(content),
            _ => content,
        };
        self.learn_names(inner, content);
        let Some(names) = &inner.names else { return };
        let all = names.clusters.iter().chain(names.gateways.values().flatten());
        let all: BTreeSet<&String> = all.collect();
        // Own ones are not counted: a table's are bounded so that a proxy can hold them all.
        for name in all.iter().take(MATERIALS_MAX - 1) {
            inner.credentials.entry((*name).clone()).or_insert_with(|| Credential::new(name));
        }
        inner.credentials.retain(|name, _| all.contains(name));
        for credential in inner.credentials.values_mut() {
            credential.look(world.secrets(), clock);
        }
        for (id, holder) in &mut inner.holders {
            self.tend_credentials(*id, holder, names, &inner.credentials, now);
        }
    }

    /// Goes on with the replacement of the root.
    fn tend_root(&self, inner: &Inner) {
        let Some(authority) = &self.authority else { return };
        let ready = matches!(authority.phase(), Phase::Prepared { .. })
            && self.started.elapsed() >= Duration::from_millis(ROTATION_SETTLE_MS)
            && missing(inner, hash(&authority.bundles())).is_empty();
        let done = if ready { authority.activate_root() } else { authority.tend() };
        if let Err(error) = done {
            tracing::error!("certificate authority: {error}");
        }
    }

    /// One step in the replacement of the root, asked for by an operator.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub fn rotate_root(&self, step: RootStep) -> Result<(), RotationError> {
        let authority = self.authority.as_ref().ok_or(RotationError::Foreign)?;
        match step {
            RootStep::Begin => authority.prepare_root()?,
            RootStep::Activate => authority.activate_root()?,
            RootStep::Abort => authority.abort_root()?,
        }
        self.tend();
        Ok(())
    }

    fn tend_identity(
        &self,
        id: ProxyId,
        holder: &mut Holder,
        current: &Current,
        world: &World,
        (now, clock): (Instant, SystemTime),
    ) {
        let wanted = match admission::identity(&self.trust_domain, &holder.grant, &holder.hello, world) {
            Ok(wanted) => wanted,
            Err(reason) => return self.deny(id, holder, reason, now),
        };
        holder.denied = None;
        let fits = holder.identity.as_ref().is_some_and(|has| {
            has.id == wanted
                && (has.bundle, has.change) == (current.bundle, current.change)
                && (has.not_before..has.rotate_at).contains(&clock)
        });
        let failing = matches!(holder.state, State::Missing | State::Refused(_) | State::Failed(_));
        if (fits && !failing) || !holder.backoff.over(now) {
            return;
        }
        let outcome = self.source.issue(&wanted).map_err(|error| error.to_string()).and_then(|svid| {
            let identity = identity_of(&svid, current, clock);
            let material = Material {
                name: OWN.to_owned(),
                not_after_s: unix_s(svid.not_after),
                chain: svid.chain,
                key: svid.key,
                bundles: current.bundles.clone(),
            };
            let fd = sealed("meshring-identity", &[&material.encode()]).map_err(|error| format!("memfd: {error}"))?;
            self.send(id, OWN, &fd)?;
            Ok(identity)
        });
        match outcome {
            Ok(identity) => {
                self.counters.issued.fetch_add(1, Ordering::Relaxed);
                if holder.identity.replace(identity).is_some() {
                    self.counters.rotations.fetch_add(1, Ordering::Relaxed);
                }
                // The pause after a refusal is kept: the proxy will most likely refuse the next one, too.
                holder.state = State::Sent;
                holder.awaited.sent();
            }
            Err(reason) => {
                self.counters.issue_failures.fetch_add(1, Ordering::Relaxed);
                if holder.state != State::Failed(reason.clone()) {
                    tracing::warn!(
                        "proxy {}: no certificate for {wanted}: {reason}; it is tried again",
                        title(&holder.hello)
                    );
                }
                holder.state = State::Failed(reason);
                holder.backoff.failed(now);
            }
        }
    }

    /// Tells a proxy once why it gets no identity.
    fn deny(&self, id: ProxyId, holder: &mut Holder, reason: String, now: Instant) {
        if holder.denied.as_ref() == Some(&reason) || !holder.backoff.over(now) {
            return;
        }
        match self.fleet.send(id, &ToProxy::NoIdentity { reason: reason.clone() }, &[]) {
            Sent::Later => holder.backoff.failed(now),
            Sent::Done | Sent::Gone => {
                tracing::warn!("proxy {}: gets no identity: {reason}", title(&holder.hello));
                self.counters.denials.fetch_add(1, Ordering::Relaxed);
                holder.denied = Some(reason);
            }
        }
    }

    fn send(&self, id: ProxyId, name: &str, fd: &OwnedFd) -> Result<(), String> {
        match self.fleet.send(id, &ToProxy::Material { name: name.to_owned() }, &[fd.as_fd()]) {
            Sent::Done => Ok(()),
            Sent::Later => Err("the proxy does not read its link".into()),
            Sent::Gone => Err("the proxy has gone".into()),
        }
    }

    /// Which credentials the active table names; read anew where it is another table.
    fn learn_names(&self, inner: &mut Inner, content: Option<Arc<Retained>>) {
        let Some(content) = content else { return };
        let known = inner.names.as_ref().map(|names| (names.generation, names.checksum));
        if known == Some((content.generation, content.checksum)) {
            return;
        }
        match content.snapshot() {
            Ok(snapshot) => inner.names = Some(Names::of(snapshot)),
            Err(error) => tracing::error!("generation {}: credentials: {error}", content.generation),
        }
    }

    fn tend_credentials(
        &self,
        id: ProxyId,
        holder: &mut Holder,
        names: &Names,
        credentials: &BTreeMap<String, Credential>,
        now: Instant,
    ) {
        let wanted = names.wanted_by(&holder.hello);
        for name in &wanted {
            let Some(loaded) = credentials.get(*name).and_then(|credential| credential.good.clone()) else { continue };
            let given = holder.credentials.entry((*name).clone()).or_insert_with(|| Given {
                checksum: 0,
                state: State::Missing,
                sent: None,
                backoff: Backoff::default(),
            });
            self.give(id, name, given, &loaded, now);
        }
        let gone: Vec<String> = holder.credentials.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        // Requests on an earlier generation may need them still.
        if gone.is_empty() || !self.fleet.runs(id, names.generation) {
            return;
        }
        if self.fleet.send(id, &ToProxy::Forget { names: gone.clone() }, &[]) != Sent::Later {
            gone.iter().for_each(|name| drop(holder.credentials.remove(name)));
        }
    }

    fn give(&self, id: ProxyId, name: &str, given: &mut Given, loaded: &Loaded, now: Instant) {
        let settled = given.checksum == loaded.checksum && matches!(given.state, State::Sent | State::Installed);
        // New content is sent at once, whatever came of the old one.
        if settled || (given.checksum == loaded.checksum && !given.backoff.over(now)) {
            return;
        }
        given.checksum = loaded.checksum;
        match self.send(id, name, &loaded.fd) {
            Ok(()) => (given.state, given.sent) = (State::Sent, Some(now)),
            Err(reason) => {
                given.state = State::Failed(reason);
                given.backoff.failed(now);
            }
        }
    }
}

/// What an operator asks of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootStep {
    /// Bring a new one in; the rest follows by itself.
    Begin,
    /// Do not wait for the proxies that do not have it yet.
    Activate,
    /// Take it back.
    Abort,
}

fn title(hello: &Hello) -> String {
    format!("{}/{} (pid {})", hello.namespace, hello.workload, hello.pid)
}

/// Proxies with an identity that do not use this bundle yet.
fn missing(inner: &Inner, bundle: u64) -> Vec<String> {
    let waits = |holder: &&Holder| {
        let uses = holder.state == State::Installed && holder.identity.as_ref().is_some_and(|has| has.bundle == bundle);
        // Who may have no identity is not waited for.
        !uses && holder.denied.is_none()
    };
    inner.holders.values().filter(waits).map(|holder| title(&holder.hello)).collect()
}

fn hash(bundles: &[TrustBundle]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for bundle in bundles {
        hasher.update(bundle.trust_domain.as_bytes());
        // Their order means nothing to who verifies.
        let mut roots: Vec<_> = bundle.roots.iter().collect();
        roots.sort();
        roots.iter().for_each(|root| hasher.update(root));
    }
    hasher.digest()
}

fn identity_of(svid: &Svid, current: &Current, clock: SystemTime) -> Identity {
    Identity {
        id: svid.id.clone(),
        serial: svid.serial.clone(),
        root: root_of(&svid.chain, &current.bundles).unwrap_or_default(),
        not_before: svid.not_before,
        not_after: svid.not_after,
        rotate_at: rotate_at(clock, svid.not_after, jitter(&svid.serial)),
        bundle: current.bundle,
        change: current.change,
    }
}

/// 0 to 1. From the serial number, which is random.
fn jitter(serial: &str) -> f64 {
    (xxhash_rust::xxh3::xxh3_64(serial.as_bytes()) >> 11) as f64 / (1_u64 << 53) as f64
}

/// At half of what is left of its life, 10 % of that life earlier or later: a thousand proxies that start together must not
/// come back together.
fn rotate_at(now: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or_default();
    now + life.mul_f64(0.4 + 0.2 * jitter).max(Duration::from_millis(ROTATION_PAUSE_MS_MIN))
}

impl Names {
    fn of(snapshot: Arc<Snapshot>) -> Self {
        let table = snapshot.table();
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let clusters = table.cluster_tls.iter().filter_map(|tls| named(tls.material.as_str())).collect();
        let gateways = table.inbound_policies.iter().enumerate().filter_map(|(at, policy)| {
            let names: BTreeSet<_> = policy.gateways.iter().filter_map(|tls| named(tls.material.as_str())).collect();
            (!names.is_empty()).then_some((at, names))
        });
        Self {
            generation: snapshot.generation(),
            checksum: snapshot.checksum(),
            clusters,
            gateways: gateways.collect(),
            snapshot,
        }
    }

    fn wanted_by(&self, hello: &Hello) -> BTreeSet<&String> {
        let mut wanted: BTreeSet<&String> = self.clusters.iter().collect();
        if !self.gateways.is_empty() {
            let viewpoint = Viewpoint::resolve(self.snapshot.table(), &hello.namespace, &hello.workload);
            let policy = viewpoint.policy.and_then(|policy| self.gateways.get(&policy));
            wanted.extend(policy.into_iter().flatten());
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
