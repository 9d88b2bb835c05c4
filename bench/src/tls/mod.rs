//! TLS of the generator and the backend: rustls over sockets that do not wait.
//!
//! The generator offers X25519 alone unless it is told otherwise, so that all contenders do the same key exchange:
//! proxies prefer different groups, and a post-quantum one costs about twice as much.

pub(crate) mod certificates;
mod socket;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::ValueEnum;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};

pub(crate) use self::socket::{Negotiated, Socket, is_tls_error};

/// The application protocol that a client offers (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http1,
    Http2,
}

impl Alpn {
    const fn id(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Sessions that one connection of the generator remembers: it resumes the last one.
const SESSIONS_REMEMBERED: usize = 1;

/// How a client speaks TLS with https:// URLs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsArgs {
    /// Roots that the server's certificate must lead to (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Accept any certificate of the server, and check none of its signatures: a handshake costs the client far less
    #[arg(long, conflicts_with = "ca")]
    pub(crate) insecure: bool,
    /// Certificate to show to the server (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of --cert (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Speak this version only; without it the better one that the server speaks
    #[arg(id = "tls_version", long = "tls", value_enum, value_name = "VERSION")]
    pub(crate) version: Option<Version>,
    /// Name to ask for and to find in the certificate, instead of the URL's host
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// Key exchange groups to offer, in order of preference
    #[arg(long = "groups", value_enum, value_delimiter = ',', default_value = "x25519")]
    pub(crate) groups: Vec<Group>,
    /// Offer this cipher suite only, such as TLS13_AES_128_GCM_SHA256
    #[arg(long, value_name = "SUITE")]
    pub(crate) cipher_suite: Option<String>,
}

impl TlsArgs {
    /// One version, one group, one suite: what every implementation has (RFC 8446, section 9.1), so that all servers do
    /// the same work.
    pub(crate) fn narrow(ca: PathBuf, name: &str) -> Self {
        Self {
            ca: Some(ca),
            insecure: false,
            cert: None,
            key: None,
            version: Some(Version::Tls13),
            sni: Some(name.to_owned()),
            groups: vec![Group::X25519],
            cipher_suite: Some("TLS13_AES_128_GCM_SHA256".to_owned()),
        }
    }

    /// The same, but any certificate will do.
    pub(crate) fn without_checks(self) -> Self {
        Self { ca: None, insecure: true, ..self }
    }

    /// The arguments that give the same again.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut push = |name: &str, value: Option<OsString>| {
            arguments.extend(value.into_iter().flat_map(|value| [OsString::from(name), value]));
        };
        let groups: Vec<String> = self.groups.iter().filter_map(value_name).collect();
        push("--ca", self.ca.clone().map(Into::into));
        push("--cert", self.cert.clone().map(Into::into));
        push("--key", self.key.clone().map(Into::into));
        push("--tls", self.version.as_ref().and_then(value_name).map(Into::into));
        push("--sni", self.sni.clone().map(Into::into));
        push("--groups", Some(groups.join(",").into()));
        push("--cipher-suite", self.cipher_suite.clone().map(Into::into));
        arguments.extend(self.insecure.then(|| "--insecure".into()));
        arguments
    }
}

/// As it is written on the command line.
fn value_name(value: &impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// A key exchange group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    #[value(name = "x25519mlkem768")]
    X25519MlKem768,
    #[value(name = "x25519")]
    X25519,
    #[value(name = "secp256r1")]
    Secp256r1,
}

/// Opens TLS connections as a client.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// `host` is the URL's, without brackets; it is asked for unless the arguments name another one. Nothing is resumed.
    pub(crate) fn new(args: &TlsArgs, host: &str, alpn: Alpn) -> anyhow::Result<Self> {
        let name = args.sni.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).with_context(|| format!("{name:?} is not a server's name"))?;
        let provider = Arc::new(provider(args)?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(args.version))
            .context("--cipher-suite does not belong to --tls")?;
        let builder = match (&args.ca, args.insecure) {
            (Some(file), _) => builder.with_root_certificates(roots(file)?),
            (None, true) => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate {
                algorithms: provider.signature_verification_algorithms,
            })),
            (None, false) => bail!("an https:// URL needs --ca FILE, or --insecure to accept any certificate"),
        };
        let mut config = match (&args.cert, &args.key) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(chain(cert)?, private_key(key)?)
                .with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.id().to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), name })
    }

    /// The same, with a memory of its own for the session to resume.
    pub(crate) fn with_memory(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::in_memory_sessions(SESSIONS_REMEMBERED);
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    /// A connection whose handshake is about to begin.
    pub(crate) fn connection(&self) -> std::io::Result<ClientConnection> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(socket::to_io)
    }
}

/// Takes TLS connections as a server.
#[derive(Debug, Clone)]
pub(crate) struct Server(Arc<ServerConfig>);

impl Server {
    /// Certificate with its chain, and its key, from PEM files.
    pub(crate) fn new(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain(cert)?, private_key(key)?)
            .with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))?;
        config.alpn_protocols = [Alpn::Http2, Alpn::Http1].map(|alpn| alpn.id().to_vec()).into();
        Ok(Self(Arc::new(config)))
    }

    /// A connection that waits for its client's hello.
    pub(crate) fn connection(&self) -> std::io::Result<ServerConnection> {
        ServerConnection::new(Arc::clone(&self.0)).map_err(socket::to_io)
    }
}

fn provider(args: &TlsArgs) -> anyhow::Result<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = args
        .groups
        .iter()
        .map(|group| match group {
            Group::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
            Group::X25519 => aws_lc_rs::kx_group::X25519,
            Group::Secp256r1 => aws_lc_rs::kx_group::SECP256R1,
        })
        .collect();
    if let Some(wanted) = &args.cipher_suite {
        let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
        let known: Vec<String> = provider.cipher_suites.iter().map(name).collect();
        provider.cipher_suites.retain(|suite| name(suite).eq_ignore_ascii_case(wanted));
        if provider.cipher_suites.is_empty() {
            bail!("there is no cipher suite {wanted}; these are known: {}", known.join(", "));
        }
    }
    Ok(provider)
}

fn versions(version: Option<Version>) -> &'static [&'static SupportedProtocolVersion] {
    const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
    const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    match version {
        None => rustls::ALL_VERSIONS,
        Some(Version::Tls12) => TLS12,
        Some(Version::Tls13) => TLS13,
    }
}

fn roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file)? {
        roots.add(certificate).with_context(|| format!("{} holds no usable root", file.display()))?;
    }
    Ok(roots)
}

/// At least one certificate.
fn chain(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    let chain = read().with_context(|| format!("cannot read certificates from {}", file.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate", file.display());
    }
    Ok(chain)
}

fn private_key(file: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).with_context(|| format!("cannot read a private key from {}", file.display()))
}

/// Accepts whatever the server shows. Signatures are not checked either: who asks for this wants to know how much work
/// the server does, and verifying would cost this side more than signing costs the server.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
