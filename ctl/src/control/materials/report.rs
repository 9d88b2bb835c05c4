//! Who has which certificate, until when, by which root: for `meshring certs` and the metrics.

use std::{collections::BTreeMap, time::SystemTime};

use meshring_core::link::Hello;
use serde::{Deserialize, Serialize};

use super::{Materials, State, hash, missing};
use crate::ca::{CaCertificate, Phase, fingerprint, pem, unix_s};

/// Everything about certificates. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// Of the identities.
    pub trust_domain: String,
    /// The authority's own chain; with identities from elsewhere their roots.
    pub authority: Vec<CaItem>,
    /// The replacement of the root.
    pub rotation: RotationItem,
    /// One per connected proxy.
    pub identities: Vec<CertificateItem>,
    /// One per credential that the active table names.
    pub credentials: Vec<CredentialItem>,
}

/// A certificate of the authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaItem {
    /// `root` or `intermediate`.
    pub role: String,
    /// `issuing` or `trusted`.
    pub state: String,
    /// Its subject.
    pub subject: String,
    /// The first 16 digits of its SHA-256.
    pub fingerprint: String,
    /// Hexadecimal.
    pub serial: String,
    /// End of its validity.
    pub not_after_s: u64,
    /// The certificate.
    pub pem: String,
}

/// How far the replacement of the root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationItem {
    /// See [`Phase`].
    #[serde(flatten)]
    pub phase: Phase,
    /// Proxies that do not trust every root of the bundle yet; a prepared one waits for them.
    pub missing: Vec<String>,
}

/// A proxy's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateItem {
    /// Of the workload.
    pub namespace: String,
    /// Of the workload.
    pub workload: String,
    /// Of the proxy.
    pub pid: u32,
    /// `installed`, `sent`, `missing`, `refused` (by the proxy), `failed` (here), `denied`.
    pub state: String,
    /// Why it is not `installed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The SPIFFE id, where it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Of the last certificate that it was sent, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Fingerprint of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Begin of its validity.
    pub not_before_s: u64,
    /// End of its validity; 0 without one.
    pub not_after_s: u64,
    /// When it is replaced.
    pub rotate_at_s: u64,
}

/// A credential of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialItem {
    /// `file:CERT:KEY:CA` or `secret:NAMESPACE/NAME`.
    pub name: String,
    /// `ok`; `outdated`: the present content is bad and an earlier one in use; `unusable`: there is no good one.
    pub state: String,
    /// What is wrong with the present content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Of the leaf in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Of the leaf in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Fingerprint of its root, or of the last certificate of its chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// End of the leaf's validity; 0 without a leaf.
    pub not_after_s: u64,
    /// Proxies that use it.
    pub installed: usize,
    /// `default/reviews (pid 12): reason` of proxies that do not take it.
    pub refused: Vec<String>,
    /// How often its content was refused.
    pub failures: u64,
}

impl From<CaCertificate> for CaItem {
    fn from(certificate: CaCertificate) -> Self {
        Self {
            role: certificate.role.to_owned(),
            state: certificate.state.to_owned(),
            subject: certificate.subject,
            fingerprint: certificate.fingerprint,
            serial: certificate.serial,
            not_after_s: unix_s(certificate.not_after),
            pem: pem::of_certificate(&certificate.der),
        }
    }
}

fn state(state: &State) -> (&'static str, Option<String>) {
    match state {
        State::Missing => ("missing", None),
        State::Sent => ("sent", Some("the proxy has not answered".into())),
        State::Installed => ("installed", None),
        State::Refused(reason) => ("refused", Some(reason.clone())),
        State::Failed(reason) => ("failed", Some(reason.clone())),
    }
}

impl Materials {
    /// The SPIFFE ids that proxies have been given, by namespace, workload and process id.
    #[must_use]
    pub fn identities(&self) -> BTreeMap<(String, String, u32), String> {
        let inner = self.lock();
        let given = inner.holders.values().filter_map(|holder| {
            let Hello { namespace, workload, pid, .. } = &*holder.hello;
            Some(((namespace.clone(), workload.clone(), *pid), holder.identity.as_ref()?.id.to_string()))
        });
        given.collect()
    }

    /// The picture of this moment.
    #[must_use]
    pub fn report(&self) -> Certificates {
        let bundles = self.source.bundles();
        let authority = match &self.authority {
            Some(authority) => authority.certificates().into_iter().map(CaItem::from).collect(),
            None => bundles.iter().flat_map(|bundle| &bundle.roots).filter_map(|der| foreign_root(der)).collect(),
        };
        let phase = self.authority.as_ref().map(|authority| authority.phase()).unwrap_or_default();
        let inner = self.lock();
        let missing = if phase == Phase::Steady { Vec::new() } else { missing(&inner, hash(&bundles)) };
        let identities = inner.holders.values().map(|holder| {
            let (mut state, mut detail) = state(&holder.state);
            if let Some(reason) = &holder.denied {
                (state, detail) = ("denied", Some(reason.clone()));
            }
            let has = holder.identity.as_ref();
            let at = |time: fn(&super::Identity) -> SystemTime| has.map_or(0, |identity| unix_s(time(identity)));
            CertificateItem {
                namespace: holder.hello.namespace.clone(),
                workload: holder.hello.workload.clone(),
                pid: holder.hello.pid,
                state: state.to_owned(),
                detail,
                identity: has.map(|identity| identity.id.to_string()),
                serial: has.map(|identity| identity.serial.clone()),
                root: has.map(|identity| identity.root.clone()),
                not_before_s: at(|identity| identity.not_before),
                not_after_s: at(|identity| identity.not_after),
                rotate_at_s: at(|identity| identity.rotate_at),
            }
        });
        let credentials = inner.credentials.iter().map(|(name, credential)| {
            let leaf = credential.good.as_ref().and_then(|good| good.leaf.as_ref());
            let given = |holder: &super::Holder| holder.credentials.get(name).map(|given| given.state.clone());
            let refused = inner.holders.values().filter_map(|holder| match given(holder) {
                Some(State::Refused(reason)) => Some(format!("{}: {reason}", super::title(&holder.hello))),
                _ => None,
            });
            let state = match (&credential.problem, &credential.good) {
                (None, _) => "ok",
                (Some(_), Some(_)) => "outdated",
                (Some(_), None) => "unusable",
            };
            CredentialItem {
                name: name.clone(),
                state: state.to_owned(),
                detail: credential.problem.clone(),
                subject: leaf.map(|leaf| leaf.subject.clone()),
                serial: leaf.map(|leaf| leaf.serial.clone()),
                issuer: leaf.map(|leaf| leaf.issuer.clone()),
                not_after_s: leaf.map_or(0, |leaf| unix_s(leaf.not_after)),
                installed: inner.holders.values().filter(|holder| given(holder) == Some(State::Installed)).count(),
                refused: refused.collect(),
                failures: credential.failures,
            }
        });
        Certificates {
            trust_domain: self.trust_domain.clone(),
            authority,
            rotation: RotationItem { phase, missing },
            identities: identities.collect(),
            credentials: credentials.collect(),
        }
    }
}

fn foreign_root(der: &[u8]) -> Option<CaItem> {
    let facts = crate::ca::Facts::of(der).ok()?;
    Some(CaItem {
        role: "root".into(),
        state: "trusted".into(),
        fingerprint: fingerprint(der),
        subject: facts.subject,
        serial: facts.serial,
        not_after_s: unix_s(facts.not_after),
        pem: pem::of_certificate(der),
    })
}
