//! The keys and roots that control has sent, as ready TLS configurations. The main thread installs them; a worker asks
//! when it begins a handshake. Connections keep what they were made with.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use meshring_core::{
    certificate::Names,
    identity::{Material, OWN},
    limits::{MATERIALS_MAX, TLS_SESSIONS_MAX},
    spiffe::SpiffeId,
    table::security::{ArchivedServerTls, ClusterTls, ClusterTlsMode, ServerTlsMode},
};
use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{NoServerSessionStorage, ParsedCertificate},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

use super::{
    overflow,
    verify::{Anchors, Expected, Verifier},
};

/// What sidecars of Istio and of ours offer each other, and what everybody understands.
const MESH_PROTOCOLS: [&[u8]; 3] = [b"istio-http/1.1", b"istio", HTTP11];
/// Likewise where HTTP/2 is wanted; an upstream that has none may say so.
const MESH_HTTP2_PROTOCOLS: [&[u8]; 4] = [b"istio-h2", b"istio", HTTP2, HTTP11];
/// What sidecars offer each other for bytes.
const MESH_BYTES_PROTOCOLS: [&[u8]; 1] = [MESH];
const MESH: &[u8] = b"istio";
const HTTP11: &[u8] = b"http/1.1";
pub(crate) const HTTP2: &[u8] = b"h2";
const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS13], &[&TLS13, &TLS12]];

/// What a client asks a server to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Offer {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, or else HTTP/1.1.
    Http2,
    /// Nothing that anybody but the two ends knows of.
    Bytes,
}

/// Why there is no TLS configuration for a connection; for the log and the body of a 503.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTls {
    /// Control has not given this workload an identity.
    #[error("this workload has no identity yet")]
    NoIdentity,
    /// Control has not sent what the table names.
    #[error("the credential {0} is not here yet")]
    NoMaterial(String),
    /// A credential without what is needed of it.
    #[error("the credential {0} has no {1}")]
    Incomplete(String, &'static str),
    /// Rejected by the TLS library.
    #[error("the TLS settings are unusable: {0}")]
    Unusable(String),
}

/// One material, checked.
pub(crate) struct Credential {
    name: String,
    /// Chain and key, where it has them.
    key: Option<Arc<CertifiedKey>>,
    /// The workload's identity, of [`OWN`].
    pub(crate) identity: Option<Arc<SpiffeId>>,
    anchors: Vec<Arc<Anchors>>,
    /// End of the leaf's validity in seconds since 1970.
    pub(crate) not_after_s: u64,
    servers: RwLock<HashMap<ServerKey, Arc<Server>>>,
    clients: RwLock<HashMap<ClientKey, Arc<Client>>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A way to receive connections.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: Arc<ServerConfig>,
    /// For sessions that are resumed: the handshake checks no certificate then. `None`: clients have none.
    pub(crate) verifier: Option<Arc<Verifier>>,
    /// Our own identity on it.
    pub(crate) identity: Option<Arc<SpiffeId>>,
}

/// A way to reach others.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) config: Arc<ClientConfig>,
    /// As [`Server::verifier`].
    pub(crate) verifier: Arc<Verifier>,
    /// Our own identity on it.
    pub(crate) identity: Option<Arc<SpiffeId>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ServerKey {
    expected: Option<Expected>,
    optional: bool,
    tls12: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    expected: Expected,
    has_key: bool,
    skips: bool,
    is_mesh: bool,
    tls12: bool,
    offer: Offer,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn unusable(error: impl fmt::Display) -> NoTls {
    NoTls::Unusable(error.to_string())
}

impl Credential {
    fn new(material: &Material, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let key = certified_key(material, provider)?;
        let mut identity = None;
        if let Some(leaf) = material.chain.first() {
            let names = Names::of(leaf).map_err(|error| error.to_string())?;
            if material.name == OWN {
                identity = Some(Arc::new(names.identity().map_err(|error| error.to_string())?));
            }
        } else if material.name == OWN {
            return Err("it has no certificate".into());
        }
        let anchors = material
            .bundles
            .iter()
            .filter(|bundle| !bundle.roots.is_empty())
            .map(|bundle| Anchors::new(&bundle.trust_domain, &bundle.roots, provider).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name: material.name.clone(),
            key,
            identity,
            anchors,
            not_after_s: material.not_after_s,
            servers: RwLock::default(),
            clients: RwLock::default(),
        })
    }

    fn anchors(&self, system: &SystemRoots) -> Result<Vec<Arc<Anchors>>, NoTls> {
        if self.anchors.is_empty() { system.get().map(|anchors| vec![anchors]) } else { Ok(self.anchors.clone()) }
    }

    fn server(&self, key: ServerKey, provider: &Arc<CryptoProvider>) -> Result<Arc<Server>, NoTls> {
        if let Some(server) = read(&self.servers).get(&key) {
            return Ok(Arc::clone(server));
        }
        let certified = self.key.clone().ok_or_else(|| NoTls::Incomplete(self.name.clone(), "certificate and key"))?;
        let verifier = match &key.expected {
            None => None,
            Some(_) if self.anchors.is_empty() => {
                return Err(NoTls::Incomplete(self.name.clone(), "roots to verify clients by"));
            }
            Some(expected) => {
                let verifier = Verifier::new(self.anchors.clone(), expected.clone(), provider);
                Some(Arc::new(verifier.optional(key.optional)))
            }
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(VERSIONS[usize::from(key.tls12)])
            .map_err(unusable)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::<Verifier>::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.enable_secret_extraction = true;
        // Of the mesh's names for HTTP a server needs to know the plain one only: Envoy's offers contain it, too. Whoever has bytes
        // for us offers nothing else.
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP11.to_vec(), MESH.to_vec()];
        // Tickets that only this process can read; they die with this material, and so do the sessions in them.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        config.send_tls13_tickets = 1;
        let server = Arc::new(Server { config: Arc::new(config), verifier, identity: self.identity.clone() });
        write(&self.servers).insert(key, Arc::clone(&server));
        Ok(server)
    }

    fn client(
        &self,
        key: ClientKey,
        provider: &Arc<CryptoProvider>,
        system: &SystemRoots,
    ) -> Result<Arc<Client>, NoTls> {
        if let Some(client) = read(&self.clients).get(&key) {
            return Ok(Arc::clone(client));
        }
        let anchors = if key.skips { Vec::new() } else { self.anchors(system)? };
        let verifier = Arc::new(Verifier::new(anchors, key.expected.clone(), provider).skipping(key.skips));
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(VERSIONS[usize::from(key.tls12)])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier));
        let mut config = match key.has_key {
            true => {
                let certified =
                    self.key.clone().ok_or_else(|| NoTls::Incomplete(self.name.clone(), "certificate and key"))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            false => builder.with_no_client_auth(),
        };
        config.enable_secret_extraction = true;
        config.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_MAX);
        let offers: &[&[u8]] = match (key.is_mesh, key.offer) {
            (true, Offer::Http2) => &MESH_HTTP2_PROTOCOLS,
            (true, Offer::Http1) => &MESH_PROTOCOLS,
            (true, Offer::Bytes) => &MESH_BYTES_PROTOCOLS,
            (false, Offer::Http2) => &[HTTP2, HTTP11],
            (false, Offer::Http1) => &[HTTP11],
            (false, Offer::Bytes) => &[],
        };
        config.alpn_protocols = offers.iter().map(|name| name.to_vec()).collect();
        let client = Arc::new(Client { config: Arc::new(config), verifier, identity: self.identity.clone() });
        write(&self.clients).insert(key, Arc::clone(&client));
        Ok(client)
    }
}

fn certified_key(material: &Material, provider: &CryptoProvider) -> Result<Option<Arc<CertifiedKey>>, String> {
    if material.chain.is_empty() && material.key.is_empty() {
        return Ok(None);
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(material.key.as_slice()));
    let key = provider.key_provider.load_private_key(key.clone_key());
    // The library's reason may quote what it has read.
    let key = key.map_err(|_| "its private key is no PKCS #8 key that can be used".to_owned())?;
    let chain: Vec<_> = material.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    if let Some(leaf) = chain.first() {
        ParsedCertificate::try_from(leaf).map_err(|error| format!("its certificate is unusable: {error}"))?;
    }
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| format!("its key is not that of its certificate: {error}"))?;
    Ok(Some(Arc::new(certified)))
}

/// The system's roots, read at their first use.
#[derive(Debug)]
struct SystemRoots {
    provider: Arc<CryptoProvider>,
    anchors: RwLock<Option<Arc<Anchors>>>,
}

impl SystemRoots {
    fn get(&self) -> Result<Arc<Anchors>, NoTls> {
        if let Some(anchors) = &*read(&self.anchors) {
            return Ok(Arc::clone(anchors));
        }
        let found = rustls_native_certs::load_native_certs();
        let roots: Vec<_> = found.certs.iter().map(|der| der.to_vec()).collect();
        if roots.is_empty() {
            return Err(NoTls::Unusable("this system has no root certificates (package ca-certificates)".into()));
        }
        let anchors = Anchors::new("", &roots, &self.provider).map(Arc::new).map_err(NoTls::Unusable)?;
        *write(&self.anchors) = Some(Arc::clone(&anchors));
        Ok(anchors)
    }
}

/// All materials of a process.
#[derive(Debug)]
pub(crate) struct Materials {
    provider: Arc<CryptoProvider>,
    by_name: RwLock<HashMap<String, Arc<Credential>>>,
    system: SystemRoots,
    /// SIMPLE without a material of its own.
    bare: Arc<Credential>,
}

impl Default for Materials {
    fn default() -> Self {
        let provider = Arc::new(overflow::provider());
        let bare = Credential {
            name: String::new(),
            key: None,
            identity: None,
            anchors: Vec::new(),
            not_after_s: 0,
            servers: RwLock::default(),
            clients: RwLock::default(),
        };
        Self {
            system: SystemRoots { provider: Arc::clone(&provider), anchors: RwLock::default() },
            provider,
            by_name: RwLock::default(),
            bare: Arc::new(bare),
        }
    }
}

impl Materials {
    /// Checks a material and uses it from now on.
    pub(crate) fn install(&self, material: &Material) -> Result<Arc<Credential>, String> {
        let credential = Arc::new(Credential::new(material, &self.provider)?);
        let mut by_name = write(&self.by_name);
        if by_name.len() >= MATERIALS_MAX && !by_name.contains_key(&material.name) {
            return Err(format!("more than {MATERIALS_MAX} credentials"));
        }
        by_name.insert(material.name.clone(), Arc::clone(&credential));
        Ok(credential)
    }

    /// What the table names no more.
    pub(crate) fn forget(&self, names: &[String]) {
        write(&self.by_name).retain(|name, _| name == OWN || !names.contains(name));
    }

    fn named(&self, name: &str) -> Result<Arc<Credential>, NoTls> {
        read(&self.by_name).get(name).cloned().ok_or_else(|| match name {
            OWN => NoTls::NoIdentity,
            _ => NoTls::NoMaterial(name.to_owned()),
        })
    }

    /// For connections from other workloads: both sides prove who they are.
    pub(crate) fn mesh_server(&self, tls12: bool) -> Result<Arc<Server>, NoTls> {
        let key = ServerKey { expected: Some(Expected::Mesh(Vec::new())), optional: false, tls12 };
        self.named(OWN)?.server(key, &self.provider)
    }

    /// For a gateway's port.
    pub(crate) fn gateway(&self, tls: &ArchivedServerTls) -> Result<Arc<Server>, NoTls> {
        let names = || -> Vec<String> { tls.subject_alt_names.iter().map(|name| name.to_string()).collect() };
        let (material, expected, optional) = match ServerTlsMode::from(tls.mode) {
            ServerTlsMode::Simple => (tls.material.as_str(), None, false),
            ServerTlsMode::IstioMutual => (OWN, Some(Expected::Mesh(names())), false),
            mode => {
                let expected =
                    if tls.subject_alt_names.is_empty() { Expected::Anything } else { Expected::Names(names()) };
                (tls.material.as_str(), Some(expected), mode == ServerTlsMode::OptionalMutual)
            }
        };
        let key = ServerKey { expected, optional, tls12: tls.tls12 };
        self.named(material)?.server(key, &self.provider)
    }

    /// For connections to a cluster's endpoints. `tls12`: whether the mesh allows it between workloads.
    pub(crate) fn cluster(&self, tls: &ClusterTls, tls12: bool, offer: Offer) -> Result<Arc<Client>, NoTls> {
        let names = tls.subject_alt_names.clone();
        let mode = tls.mode;
        let is_mesh = matches!(mode, ClusterTlsMode::AutoMutual | ClusterTlsMode::IstioMutual);
        let expected = match names.is_empty() {
            _ if is_mesh => Expected::Mesh(names),
            true => Expected::Host,
            false => Expected::Names(names),
        };
        let key = ClientKey {
            expected,
            has_key: mode != ClusterTlsMode::Simple,
            skips: tls.insecure_skip_verify && !is_mesh,
            is_mesh,
            tls12: tls12 || !is_mesh,
            offer,
        };
        let credential = match tls.material.as_str() {
            "" if mode == ClusterTlsMode::Simple => Arc::clone(&self.bare),
            name => self.named(name)?,
        };
        credential.client(key, &self.provider, &self.system)
    }
}
