//! A mesh of two sidecars, whose authority is in the test's hand, and TLS clients beside them.

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, Error, NamedGroup, RootCertStore,
    SignatureScheme, StreamOwned, SupportedProtocolVersion,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;

use crate::{
    client::{Client, Response, request},
    control::Control,
    h2::{Connection, Opening},
    pki::{Authority, Issued, Leaf},
    proxy::{Driver, Proxy, ProxyBuilder},
    wait,
};

/// A connection over TLS.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What a read or write may take before it fails the test.
const IO_PATIENCE: Duration = Duration::from_secs(20);

/// How a client comes.
#[derive(Debug, Clone)]
pub struct Caller {
    config: Arc<ClientConfig>,
    name: String,
}

/// Believes every server that a root has signed, whatever its name: SVIDs have none that DNS knows.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Resumes a session with whatever server: it keeps all of them under one name.
#[derive(Debug)]
struct AnySession(ClientSessionMemoryCache);

/// The one name.
fn any() -> ServerName<'static> {
    ServerName::try_from("any").expect("a name")
}

impl ClientSessionStore for AnySession {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(any(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&any())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(any(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&any())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&any());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(any(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&any())
    }
}

/// Why there is no connection, or no response over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The server has said why.
    Alert(AlertDescription),
    /// It has closed or reset the connection without a word, or something else went wrong.
    Other(String),
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => Self::Alert(*alert),
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Caller {
    /// One that trusts an authority and shows a certificate, in TLS 1.3.
    #[must_use]
    pub fn new(trusted: &Authority, identity: Option<&Issued>) -> Self {
        Self::speaking(&TLS13, trusted, identity)
    }

    /// Likewise, in TLS 1.2.
    #[must_use]
    pub fn old(trusted: &Authority, identity: Option<&Issued>) -> Self {
        Self::speaking(&TLS12, trusted, identity)
    }

    fn speaking(version: &'static SupportedProtocolVersion, trusted: &Authority, identity: Option<&Issued>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyName { roots: trusted.roots(), provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version that is there")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let (chain, key) = issued.certified();
                builder.with_client_auth_cert(chain, key).expect("a certificate with its key")
            }
        };
        Self { config: Arc::new(config), name: "reviews.default.svc.cluster.local".into() }
    }

    /// Shows a session ticket to every server name, whichever it was made for.
    #[must_use]
    pub fn mixing_sessions(mut self) -> Self {
        const SESSIONS_MAX: usize = 8;
        let store = AnySession(ClientSessionMemoryCache::new(SESSIONS_MAX));
        Arc::make_mut(&mut self.config).resumption = Resumption::store(Arc::new(store));
        self
    }

    /// With another server name.
    #[must_use]
    pub fn asking_for(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Connects; the handshake is over on this side, the server may still refuse.
    pub fn try_connect(&self, address: SocketAddr) -> Result<Client<Stream>, Refused> {
        self.shake_hands(address).map(Client::over)
    }

    /// Connects to speak HTTP/2, agreed upon by ALPN.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn connect_http2(mut self, address: SocketAddr) -> Connection<Stream> {
        Arc::make_mut(&mut self.config).alpn_protocols = vec![b"h2".to_vec()];
        let stream = self.shake_hands(address).expect("a TLS connection");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
        Connection::client(stream, &Opening::default())
    }

    fn shake_hands(&self, address: SocketAddr) -> Result<Stream, Refused> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(IO_PATIENCE))?;
        socket.set_write_timeout(Some(IO_PATIENCE))?;
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name).expect("a client");
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    /// Connects.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn connect(&self, address: SocketAddr) -> Client<Stream> {
        match self.try_connect(address) {
            Ok(client) => client,
            Err(why) => panic!("no TLS connection to {address}: {why:?}"),
        }
    }

    /// Connects and sends a request, only to be refused.
    ///
    /// # Panics
    /// When there is an answer.
    #[track_caller]
    pub fn refused(&self, address: SocketAddr) -> Refused {
        let mut client = match self.try_connect(address) {
            Ok(client) => client,
            Err(why) => return why,
        };
        // The alert may be here before the request is out: reading tells.
        let _ = client.try_send(request("GET", "reviews", "/", &[]));
        let mut answer = [0; 1024];
        match client.stream_mut().read(&mut answer) {
            Ok(0) => Refused::Other("closed".into()),
            Ok(len) => panic!("an answer in place of a refusal: {}", String::from_utf8_lossy(&answer[..len])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither an answer nor a refusal"),
            Err(error) => error.into(),
        }
    }
}

/// Asserts the alert by which a caller is refused.
///
/// # Panics
/// When it is another one, or none.
#[track_caller]
pub fn expect_alert(refused: &Refused, alert: AlertDescription) {
    assert_eq!(*refused, Refused::Alert(alert));
}

/// Control with an operator's authority, the proxy of `default/client`, and the one of `default/reviews-v1` before
/// its applications.
#[derive(Debug)]
pub struct Mesh {
    /// Control; its authority is [`authority`](Self::authority).
    pub control: Control,
    /// Signs for everybody in the mesh.
    pub authority: Arc<Authority>,
    /// Of `default/client`.
    pub client: Proxy,
    /// Of `default/reviews-v1`.
    pub server: Proxy,
}

/// A service on a port of the mesh whose endpoint is one inbound listener of the server.
fn service(name: &str, port: SocketAddr, is_mutual: bool) -> String {
    let label = if is_mutual { ", security.istio.io/tlsMode: istio" } else { "" };
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}]
  endpoints:
  - address: {ip}
    ports: {{http: {port}}}
    labels: {{app: {name}{label}}}
    serviceAccount: reviews
",
        ip = port.ip(),
        port = port.port(),
    )
}

/// With it the two sidecars speak HTTP/2 to each other for `second`, whatever its clients speak: so all that is in flight at a time
/// shares one connection, and needs no handshake of its own.
pub const SECOND_OVER_HTTP2: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: second, namespace: default}
spec:
  host: second.default.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
";

/// Who the proxies are.
const WORKLOADS: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: default}
spec:
  address: 127.0.0.1
  labels: {app: reviews}
  serviceAccount: reviews
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: default}
spec:
  address: 127.0.0.1
  labels: {app: client}
  serviceAccount: client
";

/// PeerAuthentication of the namespace; `more` is added to its spec.
#[must_use]
pub fn peer_authentication(mode: &str, more: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
         default}}\nspec:\n  mtls: {{mode: {mode}}}\n{more}"
    )
}

impl Mesh {
    /// With these applications: the first one is `reviews`, the second `second`, both on port 9080 of the mesh.
    #[must_use]
    pub fn start(driver: Driver, applications: &[SocketAddr], files: &[(&str, &str)]) -> Self {
        Self::launch(driver, applications, files, &[], true, |both| both)
    }

    /// Likewise, with further settings of the server.
    #[must_use]
    pub fn configured(
        driver: Driver,
        applications: &[SocketAddr],
        files: &[(&str, &str)],
        configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
    ) -> Self {
        Self::launch(driver, applications, files, &[], true, |[server, client]| [configure(server), client])
    }

    /// Likewise, with the same further settings of both proxies.
    #[must_use]
    pub fn alike(
        driver: Driver,
        applications: &[SocketAddr],
        files: &[(&str, &str)],
        configure: impl Fn(ProxyBuilder) -> ProxyBuilder,
    ) -> Self {
        Self::launch(driver, applications, files, &[], true, |both| both.map(configure))
    }

    /// Likewise, with control's own authority: [`authority`](Self::authority) is a stranger then.
    #[must_use]
    pub fn self_signed(
        driver: Driver,
        applications: &[SocketAddr],
        files: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        Self::launch(driver, applications, files, arguments, false, |both| both)
    }

    fn launch(
        driver: Driver,
        applications: &[SocketAddr],
        files: &[(&str, &str)],
        arguments: &[&str],
        is_operated: bool,
        configure: impl FnOnce([ProxyBuilder; 2]) -> [ProxyBuilder; 2],
    ) -> Self {
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::new("operator");
        let (certificate, key) = authority.write(dir.path(), "operator");
        std::fs::create_dir(dir.path().join("config")).expect("a directory");
        let write =
            |name: &str, text: &str| std::fs::write(dir.path().join("config").join(name), text).expect("a file");
        write("workloads.yaml", WORKLOADS);
        for (name, text) in files {
            write(name, text);
        }
        let shown = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let (certificate, key) = (shown(&certificate), shown(&key));
        let operator = ["--ca-cert", &certificate, "--ca-key", &key];
        let all = [arguments, if is_operated { &operator } else { &[] }].concat();
        let control = Control::start_with_arguments(dir, "config", &all);
        let builders = ["default/reviews-v1", "default/client"].map(|who| control.proxy(who).driver(driver));
        let [server, client] = configure(builders);
        let server = applications.iter().fold(server, |builder, &application| builder.inbound(application)).start();
        let client = client.start();
        let mesh = Self { control, authority, client, server };
        mesh.control.wait_for_proxies(2);
        let inbound = mesh.server.inbound();
        let services: String = ["reviews", "second"]
            .iter()
            .zip(&inbound)
            .map(|(name, &address)| service(name, address, true) + &service(&format!("plain-{name}"), address, false))
            .collect();
        mesh.change("services.yaml", &services);
        mesh.wait_for_identities(2);
        mesh
    }

    /// Writes a configuration file and waits until every proxy goes by it.
    pub fn change(&self, name: &str, text: &str) {
        let before = self.control.generation();
        self.control.write(name, text);
        wait::until(&format!("the generation with the new {name}"), || {
            (self.control.generation() > before).then_some(())
        });
        self.control.wait_for_proxies(2);
    }

    /// Waits until so many proxies have a certificate.
    pub fn wait_for_identities(&self, count: usize) {
        wait::until(&format!("{count} installed certificates"), || {
            let certs = self.control.api("/v1/certs");
            let identities = certs["identities"].as_array()?;
            (identities.iter().filter(|item| item["state"] == "installed").count() >= count).then_some(())
        });
    }

    /// Where the mesh reaches the first application.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.server.inbound()[0]
    }

    /// A client with a certificate of the mesh's authority.
    #[must_use]
    pub fn caller(&self, leaf: &Leaf) -> Caller {
        Caller::new(&self.authority, Some(&self.authority.issue(leaf)))
    }

    /// One request over the client's sidecar, on a connection of its own.
    #[track_caller]
    pub fn get(&self, host: &str, target: &str) -> Response {
        self.client.connect().get(host, target)
    }

    /// A counter of the server's proxy.
    #[must_use]
    pub fn server_metric(&self, name: &str) -> i64 {
        self.control.metric(&format!("meshring_{name}"), "default/reviews-v1")
    }

    /// The first line of the server's proxy that contains one of these texts, waited for: what a process has written is
    /// read on a thread of its own.
    pub fn wait_for_log(&self, texts: &[&str]) -> String {
        wait::until(&format!("a line with one of {texts:?}"), || {
            texts.iter().find_map(|text| self.server.process.line(text))
        })
    }

    /// Waits until a counter of the server's proxy is above a value, and returns it.
    pub fn wait_for_metric_above(&self, name: &str, before: i64) -> i64 {
        wait::until(&format!("{name} above {before}"), || {
            let now = self.server_metric(name);
            (now > before).then_some(now)
        })
    }
}
