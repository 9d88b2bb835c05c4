//! The certificate authority: who a workload is, proved by X.509-SVIDs (SPIFFE X509-SVID standard).
//!
//! [`IdentitySource`] is what the rest of control sees of it: [`Authority`] is our own root and intermediate, or an
//! operator's; an external SPIRE is another source. What is issued lives for hours and is never stored; only the
//! authority's own keys are, in files that their owner alone can read.

mod authority;
mod certificate;
pub mod jwt_key;
mod operator;
pub mod pem;
mod rotation;
pub mod spire;
mod store;
pub mod tokens;

use std::{fmt, time::SystemTime};

pub use meshring_core::spiffe::{BadSpiffeId, SpiffeId};
use meshring_core::{identity::TrustBundle, secret::SecretBytes};

pub use authority::{Authority, AuthorityError, CaCertificate, Settings};
pub use certificate::{BadCertificate, Facts, fingerprint};
pub(crate) use certificate::{shown, unix_s};
pub use operator::{BadOperatorCa, OperatorFiles};
pub use rotation::{Phase, RotationError};

/// An identity with its proof: a certificate chain and the key to it.
#[derive(Clone)]
pub struct Svid {
    /// The only URI of the leaf.
    pub id: SpiffeId,
    /// DER, the leaf first, then intermediates; without the root.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8 DER; wiped when dropped.
    pub key: SecretBytes,
    /// Begin of the leaf's validity, a little before it was issued.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The leaf's serial number, hexadecimal.
    pub serial: String,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("certificates", &self.chain.len())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// No SVID, and why. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Only identities of the own trust domain are issued.
    #[error("{id} is not of the trust domain {trust_domain}")]
    ForeignTrustDomain {
        /// What was asked for.
        id: SpiffeId,
        /// What is issued.
        trust_domain: String,
    },
    /// An external source does not have this identity (now).
    #[error("{id}: {reason}")]
    NoSuchIdentity {
        /// What was asked for.
        id: SpiffeId,
        /// Why.
        reason: String,
    },
    /// Nothing can be issued that does not outlive its issuer.
    #[error("the issuing certificate {issuer} has expired or is about to: {remedy}")]
    IssuerExpired {
        /// Its subject.
        issuer: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Key generation or signing fails, or the source cannot be reached.
    #[error("cannot issue: {0}")]
    Failed(String),
}

/// The root of a trust bundle that a chain leads to, by its [`fingerprint`].
#[must_use]
pub fn root_of(chain: &[Vec<u8>], bundles: &[TrustBundle]) -> Option<String> {
    let last = chain.last()?;
    let mut roots = bundles.iter().flat_map(|bundle| &bundle.roots);
    roots.find(|root| certificate::is_signed_by(last, root)).map(|root| fingerprint(root))
}

/// Where identities come from.
pub trait IdentitySource: Send + Sync + fmt::Debug {
    /// A new SVID for a workload, with a fresh key where the source makes keys.
    ///
    /// # Errors
    /// See [`IssueError`]; the caller tries again later.
    fn issue(&self, id: &SpiffeId) -> Result<Svid, IssueError>;

    /// Whom to trust, one bundle per trust domain; the own one first. Several roots while a root is being replaced.
    fn bundles(&self) -> Vec<TrustBundle>;

    /// Changes whenever bundles or the issuer change, so that SVIDs in use should be replaced; the number means nothing.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
}
