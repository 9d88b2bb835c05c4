//! Whose certificate is accepted, on either side.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use meshring_core::certificate::{BadCertificate, Names};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

/// The roots of one trust domain, for both sides of a connection.
pub(crate) struct Anchors {
    /// Empty: not bound to one.
    pub(crate) trust_domain: String,
    pub(crate) roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchors").field("trust_domain", &self.trust_domain).field("roots", &self.roots.len()).finish()
    }
}

impl Anchors {
    /// From DER certificates; at least one.
    pub(crate) fn new(trust_domain: &str, roots: &[Vec<u8>], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store
                .add(CertificateDer::from_slice(root).into_owned())
                .map_err(|error| format!("a root of {trust_domain:?} is unusable: {error}"))?;
        }
        let roots = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|error| format!("the roots of {trust_domain:?} are unusable: {error}"))?;
        Ok(Self { trust_domain: trust_domain.to_owned(), roots, clients })
    }
}

/// What a certificate must say beside being signed by a root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Expected {
    /// A SPIFFE id of the roots' trust domain: one of these, or any where there is none.
    Mesh(Vec<String>),
    /// One of these names.
    Names(Vec<String>),
    /// The name of the server that was asked for.
    Host,
    /// Nothing (of a gateway's clients).
    Anything,
}

/// Judges the other side's certificate.
pub(crate) struct Verifier {
    anchors: Vec<Arc<Anchors>>,
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
    /// `insecureSkipVerify`.
    skips: bool,
    /// Whether a client may come without a certificate.
    optional: bool,
    /// Whether somebody was told already that nothing is verified.
    warned: AtomicBool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("anchors", &self.anchors).field("expected", &self.expected).finish()
    }
}

fn not_acceptable(why: BadCertificate) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// A name that was asked for is not in the certificate.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is for {found}, not for {wanted}")]
struct WrongIdentity {
    found: String,
    wanted: String,
}

fn listed(names: &[String]) -> String {
    // A service may have many accounts: the first ones tell what was meant.
    let mut text = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(" or ");
    if names.len() > 4 {
        text.push_str(" or ...");
    }
    if text.is_empty() { "nobody".into() } else { text }
}

impl Verifier {
    pub(crate) fn new(anchors: Vec<Arc<Anchors>>, expected: Expected, provider: &CryptoProvider) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { anchors, expected, algorithms, skips: false, optional: false, warned: AtomicBool::new(false) }
    }

    /// `insecureSkipVerify`: any certificate is as good as another.
    pub(crate) fn skipping(self, skips: bool) -> Self {
        Self { skips, ..self }
    }

    /// `OPTIONAL_MUTUAL`.
    pub(crate) fn optional(self, optional: bool) -> Self {
        Self { optional, ..self }
    }

    /// Checks a chain. `host`: what a server was asked for; `None` for a client.
    pub(crate) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.skips {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "certificates of a service are not verified: its DestinationRule says insecureSkipVerify"
                );
            }
            return Ok(());
        }
        let names = Names::of(end_entity).map_err(not_acceptable)?;
        let trust_domain = match self.expected {
            Expected::Mesh(_) => Some(names.identity().map_err(not_acceptable)?.trust_domain().to_owned()),
            _ => None,
        };
        let mut result = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        for anchors in &self.anchors {
            // An identity counts only under the roots of its own trust domain.
            if trust_domain.as_ref().is_some_and(|domain| *domain != anchors.trust_domain) {
                continue;
            }
            result = self.check_chain(anchors, end_entity, intermediates, host.is_some(), now);
            if result.is_ok() {
                break;
            }
        }
        result?;
        self.check_names(&names, end_entity, host)
    }

    fn check_chain(
        &self,
        anchors: &Anchors,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        is_server: bool,
        now: UnixTime,
    ) -> Result<(), Error> {
        if is_server {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            return rustls::client::verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &anchors.roots,
                intermediates,
                now,
                self.algorithms.all,
            );
        }
        anchors.clients.verify_client_cert(end_entity, intermediates, now).map(drop)
    }

    fn check_names(
        &self,
        names: &Names,
        end_entity: &CertificateDer<'_>,
        host: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        let wrong = |wanted: String| {
            let found = listed(&names.uris.iter().chain(&names.dns).cloned().collect::<Vec<_>>());
            let why = WrongIdentity { found, wanted };
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why)))))
        };
        match (&self.expected, host) {
            (Expected::Mesh(ids), _) if ids.is_empty() => Ok(()),
            (Expected::Mesh(wanted) | Expected::Names(wanted), _) if names.has_any_of(wanted) => Ok(()),
            (Expected::Mesh(wanted) | Expected::Names(wanted), _) => wrong(listed(wanted)),
            (Expected::Host, Some(host)) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, host)
            }
            (Expected::Host, None) | (Expected::Anything, _) => Ok(()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, Some(server_name), now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Workloads have one identity: a hint would only tell strangers whom we trust.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        !self.optional
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, None, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
