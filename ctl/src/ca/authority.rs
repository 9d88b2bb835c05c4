//! Our own certificate authority, or an operator's.

use std::{
    io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use meshring_core::{
    identity::TrustBundle,
    limits::{INTERMEDIATE_LIFETIME_S, ROOT_LIFETIME_S, SVID_LIFETIME_S_MIN},
};
use tokio::sync::watch;

use super::{
    BadSpiffeId, IdentitySource, IssueError, SpiffeId, Svid,
    certificate::{Signer, fingerprint, shown, unix_s},
    operator::{BadOperatorCa, Operator, OperatorFiles},
    pem,
    rotation::{Phase, RotationError},
    store::{AUTHORITY_FILE, Folder, Secret, Stored, StoredSigner},
};

/// A root that lives shorter than this, in seconds, is replaced without being asked.
const ROOT_RENEWAL_S: u64 = ROOT_LIFETIME_S / 10;

/// What the authority is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of all identities.
    pub trust_domain: String,
    /// Life of an SVID, [`SVID_LIFETIME_S_MIN`] to [`meshring_core::limits::SVID_LIFETIME_S_MAX`].
    pub svid_lifetime: Duration,
    /// Where its files are.
    pub folder: PathBuf,
    /// The operator's CA in place of our own.
    pub operator: Option<OperatorFiles>,
}

/// The authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// `--trust-domain`.
    #[error("--trust-domain {0:?}: {1}")]
    TrustDomain(String, BadSpiffeId),
    /// See [`BadOperatorCa`].
    #[error(transparent)]
    Operator(#[from] BadOperatorCa),
    /// Its files.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Its file is of another mesh, or damaged.
    #[error("{path}: {reason}", path = path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Nothing can be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// One certificate of the authority, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    /// `root` or `intermediate`.
    pub role: &'static str,
    /// `issuing`, or `trusted` for a root that is in the bundle only.
    pub state: &'static str,
    /// Its subject.
    pub subject: String,
    /// See [`fingerprint`].
    pub fingerprint: String,
    /// Hexadecimal.
    pub serial: String,
    /// End of its validity.
    pub not_after: SystemTime,
    /// The certificate itself.
    pub der: Vec<u8>,
}

#[derive(Debug)]
struct Own {
    stored: Stored,
    roots: Vec<Signer>,
    intermediate: Signer,
}

#[derive(Debug)]
enum Issuer {
    Own(Box<Own>),
    Operator(Box<Operator>),
}

/// The certificate authority of this control process.
#[derive(Debug)]
pub struct Authority {
    settings: Settings,
    folder: Folder,
    issuer: Mutex<Issuer>,
    changes: watch::Sender<u64>,
    issued: AtomicU64,
    clock: fn() -> SystemTime,
}

impl Authority {
    /// Reads its files, or makes root and intermediate at the first start.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn open(settings: Settings) -> Result<Self, AuthorityError> {
        Self::with_clock(settings, SystemTime::now)
    }

    fn with_clock(settings: Settings, clock: fn() -> SystemTime) -> Result<Self, AuthorityError> {
        let trust_domain = &settings.trust_domain;
        SpiffeId::of_trust_domain(trust_domain)
            .map_err(|error| AuthorityError::TrustDomain(trust_domain.clone(), error))?;
        let file = |source| AuthorityError::File { path: settings.folder.clone(), source };
        let folder = Folder::open(&settings.folder).map_err(file)?;
        let now = clock();
        let issuer = match &settings.operator {
            Some(files) => Issuer::Operator(Box::new(files.load(trust_domain, now)?)),
            None => Issuer::Own(Box::new(Own::open(&settings, &folder, now)?)),
        };
        let authority = Self {
            settings,
            folder,
            issuer: Mutex::new(issuer),
            changes: watch::Sender::new(0),
            issued: AtomicU64::new(0),
            clock,
        };
        Ok(authority)
    }

    fn lock(&self) -> MutexGuard<'_, Issuer> {
        self.issuer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.settings.trust_domain
    }

    /// SVIDs that were issued since the start.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// How far the replacement of the root is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &*self.lock() {
            Issuer::Own(own) => own.stored.phase,
            Issuer::Operator(_) => Phase::Steady,
        }
    }

    /// The authority's own certificates, the issuing ones first.
    #[must_use]
    pub fn certificates(&self) -> Vec<CaCertificate> {
        let shown = |role, state, der: &[u8], facts: &super::Facts| CaCertificate {
            role,
            state,
            subject: facts.subject.clone(),
            fingerprint: fingerprint(der),
            serial: facts.serial.clone(),
            not_after: facts.not_after,
            der: der.to_vec(),
        };
        match &*self.lock() {
            Issuer::Own(own) => {
                let issuing = &own.intermediate;
                let roots = own.roots.iter().enumerate().map(|(at, root)| {
                    let state = if at == own.stored.active { "issuing" } else { "trusted" };
                    shown("root", state, &root.der, &root.facts)
                });
                let mut all = vec![shown("intermediate", "issuing", &issuing.der, &issuing.facts)];
                all.extend(roots);
                all.sort_by_key(|certificate| certificate.state != "issuing");
                all
            }
            Issuer::Operator(operator) => {
                let chain = operator.above.iter().map(|der| ("intermediate", "issuing", der));
                let roots = operator.roots.iter().enumerate();
                let roots = roots.map(|(at, der)| ("root", if at == 0 { "issuing" } else { "trusted" }, der));
                let all = chain.chain(roots);
                all.filter_map(|(role, state, der)| Some(shown(role, state, der, &super::Facts::of(der).ok()?)))
                    .collect()
            }
        }
    }

    /// Begins to replace the root: a new one enters the bundle.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub fn prepare_root(&self) -> Result<(), RotationError> {
        self.step(|own, settings, folder, now| {
            if own.stored.phase != Phase::Steady {
                return Err(RotationError::UnderWay);
            }
            let mut stored = own.stored.clone();
            let root = add_root(&mut stored, settings, now)?;
            stored.phase = Phase::Prepared { since_s: unix_s(now) };
            folder.store(AUTHORITY_FILE, &stored).map_err(|error| unwritten(folder, &error))?;
            own.stored = stored;
            tracing::info!("a new root {} ({}) enters the bundle", fingerprint(&root.der), root.facts.subject);
            own.roots.push(root);
            Ok(())
        })
    }

    /// Takes a prepared root back.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub fn abort_root(&self) -> Result<(), RotationError> {
        self.step(|own, _, folder, _| {
            let Phase::Prepared { .. } = own.stored.phase else { return Err(RotationError::NotPrepared) };
            let mut stored = own.stored.clone();
            stored.phase = Phase::Steady;
            stored.roots = vec![stored.roots[stored.active].clone()];
            let active = std::mem::take(&mut stored.active);
            folder.store(AUTHORITY_FILE, &stored).map_err(|error| unwritten(folder, &error))?;
            own.stored = stored;
            own.roots = vec![own.roots.swap_remove(active)];
            tracing::info!("the new root is taken back");
            Ok(())
        })
    }

    /// Lets the prepared root issue from now on.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub fn activate_root(&self) -> Result<(), RotationError> {
        self.step(|own, settings, folder, now| {
            let Phase::Prepared { .. } = own.stored.phase else { return Err(RotationError::NotPrepared) };
            let mut stored = own.stored.clone();
            stored.active = stored.roots.len() - 1;
            // Certificates count in whole seconds.
            let longest_s = settings.svid_lifetime.as_secs() + 1;
            stored.phase = Phase::Draining { until_s: stored.earlier_until_s.max(unix_s(now) + longest_s) };
            let (intermediate, secret) = new_intermediate(&own.roots[stored.active], settings, now)?;
            stored.intermediate = secret;
            folder.store(AUTHORITY_FILE, &stored).map_err(|error| unwritten(folder, &error))?;
            own.stored = stored;
            own.intermediate = intermediate;
            tracing::info!("root {} issues from now on", fingerprint(&own.roots[own.stored.active].der));
            Ok(())
        })
    }

    /// What the time brings: an old root leaves when nothing of it is valid, a root near its end is replaced.
    ///
    /// # Errors
    /// See [`RotationError`]; the next call tries again.
    pub fn tend(&self) -> Result<(), RotationError> {
        let now = (self.clock)();
        self.outlive(now);
        let due = match &*self.lock() {
            Issuer::Operator(_) => return Ok(()),
            Issuer::Own(own) => match own.stored.phase {
                Phase::Draining { until_s } if unix_s(now) >= until_s => true,
                Phase::Steady => {
                    let root = &own.roots[own.stored.active].facts;
                    let left = root.not_after.duration_since(now).unwrap_or_default();
                    if left >= Duration::from_secs(ROOT_RENEWAL_S) || root.valid_at(now).is_err() {
                        return Ok(());
                    }
                    false
                }
                _ => return Ok(()),
            },
        };
        if !due {
            tracing::info!("the root has less than a year left: a new one is brought in");
            return self.prepare_root();
        }
        self.step(|own, _, folder, _| {
            let Phase::Draining { .. } = own.stored.phase else { return Ok(()) };
            let mut stored = own.stored.clone();
            let active = std::mem::take(&mut stored.active);
            stored.roots = vec![stored.roots[active].clone()];
            stored.phase = Phase::Steady;
            folder.store(AUTHORITY_FILE, &stored).map_err(|error| unwritten(folder, &error))?;
            own.stored = stored;
            own.roots = vec![own.roots.swap_remove(active)];
            tracing::info!("the old root leaves the bundle");
            Ok(())
        })
    }

    /// Replaces what a clock that has jumped leaves invalid, before anybody gets a certificate: so the first one comes with the
    /// root that it needs, to those who are shown it, too. What fails here fails when a certificate is issued, and is told then.
    fn outlive(&self, now: SystemTime) {
        let changed = match &mut *self.lock() {
            Issuer::Own(own) if !own.is_valid_at(now) => own.renew(&self.settings, &self.folder, now),
            _ => return,
        };
        if let Ok(true) = changed {
            self.changed();
        }
    }

    fn step(
        &self,
        step: impl FnOnce(&mut Own, &Settings, &Folder, SystemTime) -> Result<(), RotationError>,
    ) -> Result<(), RotationError> {
        match &mut *self.lock() {
            Issuer::Operator(_) => return Err(RotationError::Operator),
            Issuer::Own(own) => step(own, &self.settings, &self.folder, (self.clock)())?,
        }
        self.changed();
        Ok(())
    }
}

fn unwritten(folder: &Folder, error: &io::Error) -> RotationError {
    RotationError::Failed(format!("{}: {error}; nothing has changed", folder.join(AUTHORITY_FILE).display()))
}

impl From<IssueError> for RotationError {
    fn from(error: IssueError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn stored_signer(signer: &Signer, key: &[u8]) -> StoredSigner {
    StoredSigner { certificate: pem::of_certificate(&signer.der), key: Secret::of_key(key) }
}

fn new_root(settings: &Settings, now: SystemTime) -> Result<(Signer, StoredSigner), IssueError> {
    let (root, key) = Signer::root(&settings.trust_domain, now, Duration::from_secs(ROOT_LIFETIME_S))?;
    let stored = stored_signer(&root, &key);
    Ok((root, stored))
}

fn add_root(stored: &mut Stored, settings: &Settings, now: SystemTime) -> Result<Signer, IssueError> {
    let (root, secret) = new_root(settings, now)?;
    stored.roots.push(secret);
    Ok(root)
}

fn new_intermediate(root: &Signer, settings: &Settings, now: SystemTime) -> Result<(Signer, StoredSigner), IssueError> {
    let life = Duration::from_secs(INTERMEDIATE_LIFETIME_S);
    let (intermediate, key) = root.intermediate(&settings.trust_domain, now, life)?;
    let stored = stored_signer(&intermediate, &key);
    Ok((intermediate, stored))
}

impl Own {
    fn open(settings: &Settings, folder: &Folder, now: SystemTime) -> Result<Self, AuthorityError> {
        let path = folder.join(AUTHORITY_FILE);
        let unusable = |reason: String| AuthorityError::Unusable { path: path.clone(), reason };
        let remedy = "restore it, or move it away: then a new CA is made, and every proxy gets a certificate of it";
        let found = folder.load::<Stored>(AUTHORITY_FILE).map_err(|error| unusable(format!("{error}; {remedy}")))?;
        let lifetime_s = settings.svid_lifetime.as_secs();
        let Some(mut stored) = found else {
            let (root, root_secret) = new_root(settings, now)?;
            let (intermediate, secret) = new_intermediate(&root, settings, now)?;
            let stored = Stored {
                trust_domain: settings.trust_domain.clone(),
                roots: vec![root_secret],
                active: 0,
                intermediate: secret,
                phase: Phase::Steady,
                lifetime_s,
                earlier_until_s: 0,
            };
            folder
                .store(AUTHORITY_FILE, &stored)
                .map_err(|source| AuthorityError::File { path: path.clone(), source })?;
            tracing::info!(
                "certificate authority: new root {} for {}, in {}",
                fingerprint(&root.der),
                settings.trust_domain,
                path.display()
            );
            return Ok(Self { stored, roots: vec![root], intermediate });
        };
        if stored.trust_domain != settings.trust_domain {
            return Err(unusable(format!(
                "is the CA of the trust domain {}, not of {}: start with --trust-domain {}, or move it away and a new CA is made",
                stored.trust_domain, settings.trust_domain, stored.trust_domain
            )));
        }
        let signer = |stored: &StoredSigner| {
            let der = pem::certificates(stored.certificate.as_bytes()).ok()?.into_iter().next()?;
            let signer = Signer::new(der, &stored.key.key()?).ok()?;
            signer.is_whole().then_some(signer)
        };
        let roots: Option<Vec<_>> = stored.roots.iter().map(signer).collect();
        let whole = roots.zip(signer(&stored.intermediate)).filter(|(roots, _)| stored.active < roots.len());
        let (roots, intermediate) =
            whole.ok_or_else(|| unusable(format!("a certificate or key in it is damaged; {remedy}")))?;
        if stored.lifetime_s != lifetime_s {
            stored.earlier_until_s = stored.earlier_until_s.max(unix_s(now) + stored.lifetime_s);
            stored.lifetime_s = lifetime_s;
            folder
                .store(AUTHORITY_FILE, &stored)
                .map_err(|source| AuthorityError::File { path: path.clone(), source })?;
        }
        Ok(Self { stored, roots, intermediate })
    }

    fn is_valid_at(&self, now: SystemTime) -> bool {
        [&self.roots[self.stored.active], &self.intermediate].iter().all(|signer| signer.facts.valid_at(now).is_ok())
    }

    /// Sees to it that root and intermediate are valid now and for the life of an SVID, whatever the clock has done. Whether
    /// the bundle has changed.
    fn renew(&mut self, settings: &Settings, folder: &Folder, now: SystemTime) -> Result<bool, IssueError> {
        let mut stored = self.stored.clone();
        let mut new_root = None;
        if self.roots[stored.active].facts.valid_at(now).is_err() {
            // The clock has jumped, or control was away for years.
            stored.active = match self.roots.iter().position(|root| root.facts.valid_at(now).is_ok()) {
                Some(valid) => valid,
                None => {
                    new_root = Some(add_root(&mut stored, settings, now)?);
                    stored.roots.len() - 1
                }
            };
            // From any phase: one that began at another time might not end for years.
            if stored.roots.len() > 1 {
                stored.phase = Phase::Draining { until_s: unix_s(now) + settings.svid_lifetime.as_secs() };
            }
        }
        let root = new_root.as_ref().unwrap_or_else(|| &self.roots[stored.active]);
        let facts = &self.intermediate.facts;
        let usable = facts.valid_at(now).is_ok() && facts.issuer_raw == root.facts.subject_raw;
        let left = facts.not_after.duration_since(now).unwrap_or_default();
        let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
        // An intermediate that ends with its root is not renewed for that.
        let fresh = left > life / 2 || facts.not_after >= root.facts.not_after;
        if usable && fresh && new_root.is_none() {
            return Ok(false);
        }
        let (intermediate, secret) = new_intermediate(root, settings, now)?;
        stored.intermediate = secret;
        if let Err(error) = folder.store(AUTHORITY_FILE, &stored) {
            let path = folder.join(AUTHORITY_FILE);
            if usable && new_root.is_none() {
                // A full disk must not stop what still works.
                tracing::error!("{}: {error}; the intermediate certificate is not renewed yet", path.display());
                return Ok(false);
            }
            return Err(IssueError::Failed(format!("{}: {error}", path.display())));
        }
        if let Some(root) = &new_root {
            let root = fingerprint(&root.der);
            tracing::warn!(
                "certificate authority: new root {root}, since none is valid at the time that the clock shows"
            );
        }
        tracing::info!("certificate authority: new intermediate, valid until {}", shown(intermediate.facts.not_after));
        let changed = new_root.is_some() || stored.active != self.stored.active;
        self.roots.extend(new_root);
        self.stored = stored;
        self.intermediate = intermediate;
        Ok(changed)
    }
}

impl IdentitySource for Authority {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, IssueError> {
        if id.trust_domain() != self.settings.trust_domain {
            let trust_domain = self.settings.trust_domain.clone();
            return Err(IssueError::ForeignTrustDomain { id: id.clone(), trust_domain });
        }
        let now = (self.clock)();
        let mut issuer = self.lock();
        let mut changed = false;
        let (signer, above, remedy) = match &mut *issuer {
            Issuer::Own(own) => {
                changed = own.renew(&self.settings, &self.folder, now)?;
                let above = vec![own.intermediate.der.clone()];
                (&own.intermediate, above, "run `meshring certs rotate-root`")
            }
            Issuer::Operator(operator) => {
                let remedy = "replace the files of --ca-cert and --ca-key and restart control";
                (&operator.signer, operator.above.clone(), remedy)
            }
        };
        let left = signer.facts.not_after.duration_since(now).unwrap_or_default();
        if left < Duration::from_secs(SVID_LIFETIME_S_MIN) || signer.facts.valid_at(now).is_err() {
            return Err(IssueError::IssuerExpired { issuer: signer.facts.subject.clone(), remedy });
        }
        let svid = signer.svid(id, now, self.settings.svid_lifetime, &above)?;
        drop(issuer);
        self.issued.fetch_add(1, Ordering::Relaxed);
        if changed {
            self.changed();
        }
        Ok(svid)
    }

    fn bundles(&self) -> Vec<TrustBundle> {
        let roots = match &*self.lock() {
            Issuer::Own(own) => own.roots.iter().map(|root| root.der.clone()).collect(),
            Issuer::Operator(operator) => operator.roots.clone(),
        };
        vec![TrustBundle { trust_domain: self.settings.trust_domain.clone(), roots }]
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
