//! Handshakes and what follows, against rustls' own buffered connections on the other side of a socket, on both drivers.

mod overflow;
mod proofs;
mod worn;
mod worn_http2;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use meshring_core::{
    limits::BUFFER_BYTES,
    stats::TlsCounter,
    table::security::{ClusterTls, ClusterTlsMode},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use super::{
    handshake,
    materials::{Materials, Offer},
};
use crate::{
    testing::{Authority, Leaf, can_update_keys, kernel_tls, on_each_driver, pair},
    worker::{
        Worker,
        buffers::{Input, never_cancelled},
        conn::{Conn, write_all},
    },
};

pub(crate) const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/default/sa/productpage";
const PATIENCE: Duration = Duration::from_secs(20);

fn blocking(peer: TcpStream) -> TcpStream {
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    peer
}

pub(crate) fn materials(authority: &Authority, uri: &'static str) -> Materials {
    let materials = Materials::default();
    materials.install(&authority.material(&Leaf::of(uri), "cluster.local")).unwrap();
    materials
}

fn key(der: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}

fn roots(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.root.clone())).unwrap();
    roots
}

/// Trusts any name: these tests are about the other side.
pub(crate) fn client_config(
    trusted: &Authority,
    identity: Option<(&Authority, &Leaf)>,
    is_tls13: bool,
) -> ClientConfig {
    let versions = if is_tls13 { &[&TLS13] } else { &[&TLS12] };
    let builder = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots(trusted));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((authority, leaf)) => {
            let (certificate, der) = authority.sign(leaf);
            builder.with_client_auth_cert(vec![certificate.into()], key(der)).unwrap()
        }
    };
    config.alpn_protocols = vec![b"istio".to_vec(), b"http/1.1".to_vec()];
    config
}

pub(crate) fn server_config(authority: &Authority, leaf: &Leaf, is_tls13: bool) -> ServerConfig {
    let versions = if is_tls13 { &[&TLS13] } else { &[&TLS12] };
    let (certificate, der) = authority.sign(leaf);
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(authority))).build().unwrap();
    ServerConfig::builder_with_protocol_versions(versions)
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.into()], key(der))
        .unwrap()
}

/// Reads exactly so many bytes through the stages' own way.
async fn read_exactly(conn: &mut Conn, worker: &Worker, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut input = Input::new(worker.buffers.lazy());
    while all.len() < count {
        let at_most = count - all.len();
        let read = input.fill_cancelable(&mut conn.read, at_most, BUFFER_BYTES, never_cancelled()).await.unwrap();
        assert!(read > 0, "ended after {} of {count} bytes", all.len());
        all.extend_from_slice(input.unread());
        input.clear();
    }
    all
}

async fn write_bytes(conn: &mut Conn, worker: &Worker, bytes: &[u8]) {
    for part in bytes.chunks(BUFFER_BYTES) {
        let mut out = worker.buffers.take();
        out.extend_from_slice(part);
        write_all(&mut conn.write, &mut out).await.unwrap();
        assert_eq!(&out[..], part, "the buffer holds the same bytes afterwards");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Sizes around the bounds of records and buffers.
const SIZES: [usize; 7] = [1, 100, 16_383, 16_384, 16_385, BUFFER_BYTES + 1, 300_000];

/// Sends and gets back each of the sizes, with new keys of its own and asked for in between.
fn talk<C, D>(mut stream: StreamOwned<C, TcpStream>, is_tls13: bool)
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    D: rustls::SideData,
{
    for size in SIZES {
        let sent = pattern(size);
        stream.write_all(&sent).unwrap();
        let mut received = vec![0; size];
        stream.read_exact(&mut received).unwrap();
        assert!(sent == received, "{size} bytes came back changed");
        if is_tls13 && can_update_keys() {
            stream.conn.refresh_traffic_keys().unwrap();
        }
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    // Our last word, too, is an end and not a cut.
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

async fn echo(conn: &mut Conn, worker: &Worker) {
    for size in SIZES {
        let received = read_exactly(conn, worker, size).await;
        write_bytes(conn, worker, &received).await;
    }
    let mut input = Input::new(worker.buffers.lazy());
    assert_eq!(input.fill_cancelable(&mut conn.read, 1, BUFFER_BYTES, never_cancelled()).await.unwrap(), 0);
    assert!(!conn.read.is_truncated());
}

async fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn accepted(worker: &Worker, conn: &mut Conn, materials: &Materials) -> Result<(), handshake::HandshakeError> {
    let server = materials.mesh_server(true).unwrap();
    let opening = handshake::opening(worker, conn).await?;
    handshake::accept(worker, conn, &server, opening, None).await
}

pub(crate) fn mutual(names: &[&str]) -> ClusterTls {
    ClusterTls {
        mode: ClusterTlsMode::AutoMutual,
        sni: String::new(),
        subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
        material: String::new(),
        insecure_skip_verify: false,
    }
}

pub(crate) fn asked() -> ServerName<'static> {
    ServerName::try_from("outbound_.9080_._.reviews.default.svc.cluster.local").unwrap()
}

#[test]
fn a_client_is_served_in_either_version_with_new_keys_in_between() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        for is_tls13 in [true, false] {
            let (mut conn, peer) = pair(&worker);
            let mut leaf = Leaf::of(PRODUCTPAGE);
            leaf.dns = vec!["ignored.example.com"];
            let mut config = client_config(&authority, Some((&authority, &leaf)), is_tls13);
            // rustls' own verifier knows no SPIFFE id.
            config.dangerous().set_certificate_verifier(any_server());
            let thread = thread::spawn(move || {
                let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
                talk(StreamOwned::new(client, blocking(peer)), is_tls13);
            });
            accepted(&worker, &mut conn, &materials).await.unwrap();
            let peer = Rc::clone(conn.secured_peer().unwrap());
            assert_eq!(peer.identity.as_ref().unwrap().as_str(), PRODUCTPAGE);
            assert_eq!(peer.sni.as_deref(), Some("outbound_.9080_._.reviews.default.svc.cluster.local"));
            let element = String::from_utf8(peer.element.as_ref().unwrap().to_vec()).unwrap();
            assert!(element.starts_with(&format!("By={REVIEWS};Hash=")), "{element}");
            assert!(
                element.ends_with(&format!(";Subject=\"\";URI={PRODUCTPAGE};DNS=ignored.example.com")),
                "{element}"
            );
            echo(&mut conn, &worker).await;
            drop(conn);
            joined(thread).await;
            assert_eq!(worker.buffers.used_bytes(), 0);
        }
    });
}

#[test]
fn a_server_is_reached_in_either_version_and_the_session_is_resumed() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        for is_tls13 in [true, false] {
            // Of each version its own: a ticket of the newer one would be offered first, and there is only one of them.
            let materials = materials(&authority, PRODUCTPAGE);
            let config = Arc::new(server_config(&authority, &Leaf::of(REVIEWS), is_tls13));
            for is_resumed in [false, true] {
                let (mut conn, peer) = pair(&worker);
                let config = Arc::clone(&config);
                let thread = thread::spawn(move || {
                    let server = ServerConnection::new(config).unwrap();
                    talk(StreamOwned::new(server, blocking(peer)), is_tls13);
                });
                let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
                handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap();
                let peer = conn.secured_peer().unwrap();
                assert_eq!(peer.identity.as_ref().unwrap().as_str(), REVIEWS);
                assert_eq!(peer.is_resumed, is_resumed, "TLS 1.3: {is_tls13}");
                echo(&mut conn, &worker).await;
                drop(conn);
                joined(thread).await;
            }
        }
    });
}

#[test]
fn a_client_that_sends_much_at_once_does_not_keep_its_records_from_the_kernel() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let (mut conn, peer) = pair(&worker);
        let mut config = client_config(&authority, Some((&authority, &Leaf::of(PRODUCTPAGE))), true);
        config.dangerous().set_certificate_verifier(any_server());
        const MUCH: usize = 60_000;
        let thread = thread::spawn(move || {
            let mut client = ClientConnection::new(Arc::new(config), asked()).unwrap();
            // It goes out with the last message of the handshake, as four records.
            client.writer().write_all(&pattern(MUCH)).unwrap();
            let mut stream = StreamOwned::new(client, blocking(peer));
            let mut received = [0; 4];
            stream.flush().and_then(|()| stream.read_exact(&mut received)).unwrap();
            received
        });
        accepted(&worker, &mut conn, &materials).await.unwrap();
        let expected = if kernel_tls().is_some() { TlsCounter::Kernel } else { TlsCounter::Userspace };
        assert_eq!(conn.tls_runs_in(), expected);
        assert!(read_exactly(&mut conn, &worker, MUCH).await == pattern(MUCH), "the bytes have changed");
        write_bytes(&mut conn, &worker, b"done").await;
        assert_eq!(&joined(thread).await, b"done");
    });
}

#[test]
fn a_cut_is_told_from_an_end() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let (mut conn, peer) = pair(&worker);
        let mut config = client_config(&authority, Some((&authority, &Leaf::of(PRODUCTPAGE))), true);
        config.dangerous().set_certificate_verifier(any_server());
        let thread = thread::spawn(move || {
            let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
            let mut stream = StreamOwned::new(client, blocking(peer));
            stream.write_all(b"all of it?").unwrap();
            stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
            stream
        });
        accepted(&worker, &mut conn, &materials).await.unwrap();
        assert_eq!(read_exactly(&mut conn, &worker, 10).await, b"all of it?");
        let mut input = Input::new(worker.buffers.lazy());
        assert_eq!(input.fill_cancelable(&mut conn.read, 1, BUFFER_BYTES, never_cancelled()).await.unwrap(), 0);
        assert!(conn.read.is_truncated());
        joined(thread).await;
    });
}

#[test]
fn new_keys_that_cannot_be_taken_end_the_connection_and_the_peer_is_told() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let (mut conn, peer) = pair(&worker);
        let mut config = client_config(&authority, Some((&authority, &Leaf::of(PRODUCTPAGE))), true);
        config.dangerous().set_certificate_verifier(any_server());
        let thread = thread::spawn(move || {
            let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
            let mut stream = StreamOwned::new(client, blocking(peer));
            stream.write_all(b"first").unwrap();
            stream.conn.refresh_traffic_keys().unwrap();
            stream.write_all(b"second").unwrap();
            stream.read(&mut [0; 16]).unwrap()
        });
        accepted(&worker, &mut conn, &materials).await.unwrap();
        assert_eq!(read_exactly(&mut conn, &worker, 5).await, b"first");
        if can_update_keys() {
            assert_eq!(read_exactly(&mut conn, &worker, 6).await, b"second");
        } else {
            let mut input = Input::new(worker.buffers.lazy());
            let error = input.fill_cancelable(&mut conn.read, 6, BUFFER_BYTES, never_cancelled()).await.unwrap_err();
            assert!(error.to_string().contains("new TLS keys"), "{error}");
        }
        drop(conn);
        // Either way it hears close_notify: an end, and no cut.
        assert_eq!(joined(thread).await, 0);
    });
}

#[test]
fn clients_that_prove_nothing_are_refused_and_told_why() {
    on_each_driver(async |worker: Rc<Worker>| {
        let (authority, other) = (Authority::new(), Authority::new());
        let materials = materials(&authority, REVIEWS);
        let leaf = Leaf::of(PRODUCTPAGE);
        type Identity<'a> = Option<(&'a Authority, Leaf)>;
        let cases: [(&str, Identity<'_>, &str, &str); 8] = [
            ("none", None, "tls.no_certificate", "CertificateRequired"),
            ("foreign", Some((&other, leaf.clone())), "tls.certificate_unknown_issuer", "UnknownCA"),
            (
                "expired",
                Some((&authority, Leaf { is_expired: true, ..leaf.clone() })),
                "tls.certificate_expired",
                "CertificateExpired",
            ),
            (
                "not yet valid",
                Some((&authority, Leaf { is_early: true, ..leaf.clone() })),
                "tls.certificate_not_yet_valid",
                "CertificateExpired",
            ),
            (
                "an authority",
                Some((&authority, Leaf { is_authority: true, ..leaf.clone() })),
                "tls.certificate_wrong_identity",
                "CertificateUnknown",
            ),
            (
                "no identity",
                Some((&authority, Leaf { uris: vec![], dns: vec!["a.example"], ..leaf.clone() })),
                "tls.certificate_wrong_identity",
                "CertificateUnknown",
            ),
            (
                "two identities",
                Some((&authority, Leaf { uris: vec![PRODUCTPAGE, REVIEWS], ..leaf.clone() })),
                "tls.certificate_wrong_identity",
                "CertificateUnknown",
            ),
            (
                "another trust domain",
                Some((&authority, Leaf::of("spiffe://elsewhere/ns/default/sa/productpage"))),
                "tls.certificate_unknown_issuer",
                "UnknownCA",
            ),
        ];
        for (what, identity, code, alert) in cases {
            let (mut conn, peer) = pair(&worker);
            let identity = identity.as_ref().map(|(authority, leaf)| (*authority, leaf));
            let mut config = client_config(&authority, identity, true);
            config.dangerous().set_certificate_verifier(any_server());
            let thread = thread::spawn(move || {
                let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
                let mut stream = StreamOwned::new(client, blocking(peer));
                stream.write_all(b"hello").and_then(|()| stream.read(&mut [0; 16])).unwrap_err().to_string()
            });
            let error = accepted(&worker, &mut conn, &materials).await.unwrap_err();
            assert_eq!(error.code(), code, "{what}: {error}");
            conn.drain(1_000, 1_000).await;
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains(alert), "{what}: {told}");
        }
    });
}

#[test]
fn a_chain_that_is_too_long_ends_the_handshake_and_nothing_else() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let cases: [(bool, Chain, Option<usize>); 3] = [
            // A message beyond what rustls takes, which is found in its first record.
            (true, LONG, None),
            (false, LONG, None),
            // One that it would take, in records whose overhead makes them too long for us.
            (true, (3, 20_000), Some(40)),
        ];
        for (is_tls13, chain, fragment) in cases {
            let (mut conn, peer) = pair(&worker);
            let (chain, key) = with_chain(&authority, PRODUCTPAGE, chain);
            let versions = if is_tls13 { &[&TLS13] } else { &[&TLS12] };
            let mut config = ClientConfig::builder_with_protocol_versions(versions)
                .with_root_certificates(roots(&authority))
                .with_client_auth_cert(chain, key)
                .unwrap();
            config.max_fragment_size = fragment;
            config.dangerous().set_certificate_verifier(any_server());
            let thread = thread::spawn(move || {
                let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
                let mut stream = StreamOwned::new(client, blocking(peer));
                stream.write_all(b"hello").and_then(|()| stream.read(&mut [0; 16])).unwrap_err().to_string()
            });
            let error = accepted(&worker, &mut conn, &materials).await.unwrap_err();
            assert_eq!(error.code(), "tls.too_long", "{error}");
            conn.drain(1 << 20, 1_000).await;
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains("DecodeError"), "TLS 1.3: {is_tls13}, fragments {fragment:?}: {told}");
            assert_eq!(worker.buffers.used_bytes(), 0);
        }
    });
}

#[test]
fn a_server_with_too_long_a_chain_is_told_so() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, PRODUCTPAGE);
        for is_tls13 in [true, false] {
            let (mut conn, peer) = pair(&worker);
            let (chain, key) = with_chain(&authority, REVIEWS, LONG);
            let versions = if is_tls13 { &[&TLS13] } else { &[&TLS12] };
            let config = ServerConfig::builder_with_protocol_versions(versions)
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
            let thread = thread::spawn(move || {
                let server = ServerConnection::new(Arc::new(config)).unwrap();
                let mut stream = StreamOwned::new(server, blocking(peer));
                stream.read(&mut [0; 16]).unwrap_err().to_string()
            });
            let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
            let error = handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap_err();
            assert_eq!(error.code(), "tls.too_long", "{error}");
            conn.drain(1 << 20, 1_000).await;
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains("DecodeError"), "TLS 1.3: {is_tls13}: {told}");
        }
    });
}

/// How many certificates of how many bytes come behind the leaf.
type Chain = (usize, usize);

/// More than any handshake may have.
const LONG: Chain = (5, 16 * 1024);

fn with_chain(
    authority: &Authority,
    uri: &'static str,
    (count, bytes): Chain,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (certificate, der) = authority.sign(&Leaf::of(uri));
    let mut chain = vec![CertificateDer::from(certificate)];
    chain.extend((0..count).map(|_| CertificateDer::from(vec![0x30; bytes])));
    (chain, key(der))
}

#[test]
fn servers_that_are_not_who_is_meant_get_no_request() {
    on_each_driver(async |worker: Rc<Worker>| {
        let (authority, other) = (Authority::new(), Authority::new());
        let materials = materials(&authority, PRODUCTPAGE);
        let expired = Leaf { is_expired: true, ..Leaf::of(REVIEWS) };
        let cases: [(&Authority, Leaf, &str); 4] = [
            (&authority, Leaf::of("spiffe://cluster.local/ns/default/sa/ratings"), "tls.certificate_wrong_identity"),
            (&other, Leaf::of(REVIEWS), "tls.certificate_unknown_issuer"),
            (&authority, expired, "tls.certificate_expired"),
            (&authority, Leaf::of("spiffe://elsewhere/ns/default/sa/reviews"), "tls.certificate_unknown_issuer"),
        ];
        for (signer, leaf, code) in cases {
            let (mut conn, peer) = pair(&worker);
            let config = Arc::new(server_config(signer, &leaf, true));
            let thread = thread::spawn(move || {
                let server = ServerConnection::new(config).unwrap();
                let mut stream = StreamOwned::new(server, blocking(peer));
                stream.read(&mut [0; 16]).unwrap_err().to_string()
            });
            let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
            let error = handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains("alert"), "{told}");
        }
    });
}

#[test]
fn garbage_and_cut_handshakes_end() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let cases: [(&[u8], &str); 5] = [
            (b"\x16\x03\x01\0\x05\x01\0\0\x01\0", "tls.bad_hello"),
            (b"\x16\x03\x01\0\x04\x02\0\0\0", "tls.bad_hello"),
            (b"\x16\x03\x01\xff\xff", "tls.too_long"),
            (b"\x16\x03\x01\0\x10\x01", "tls.closed"),
            (b"", "tls.closed"),
        ];
        for (bytes, code) in cases {
            let (mut conn, mut peer) = pair(&worker);
            peer.write_all(bytes).unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            let error = accepted(&worker, &mut conn, &materials).await.unwrap_err();
            assert_eq!(error.code(), code, "{bytes:?}: {error}");
        }
    });
}

#[test]
fn materials_that_do_not_fit_are_refused_and_change_nothing() {
    let authority = Authority::new();
    let materials = materials(&authority, REVIEWS);
    let good = authority.material(&Leaf::of(PRODUCTPAGE), "cluster.local");
    let other = authority.material(&Leaf::of(PRODUCTPAGE), "cluster.local");
    let broken: [(&str, meshring_core::identity::Material); 5] = [
        ("not that of its certificate", meshring_core::identity::Material { key: other.key, ..good.clone() }),
        ("PKCS #8", meshring_core::identity::Material { key: b"secret".to_vec().into(), ..good.clone() }),
        ("unusable", meshring_core::identity::Material { chain: vec![b"junk".to_vec()], ..good.clone() }),
        ("exactly one", authority.material(&Leaf::default(), "cluster.local")),
        ("no certificate", meshring_core::identity::Material { chain: vec![], key: Vec::new().into(), ..good.clone() }),
    ];
    for (expected, material) in broken {
        let reason = materials.install(&material).unwrap_err();
        assert!(reason.contains(expected), "{expected}: {reason}");
        assert!(!reason.contains("secret"));
    }
    assert_eq!(materials.mesh_server(true).unwrap().identity.as_ref().unwrap().as_str(), REVIEWS);
    materials.install(&good).unwrap();
    assert_eq!(materials.mesh_server(true).unwrap().identity.as_ref().unwrap().as_str(), PRODUCTPAGE);
}

/// For clients of these tests: whoever answers is fine.
pub(crate) fn any_server() -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    use super::verify::{Expected, Verifier};
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(Verifier::new(Vec::new(), Expected::Anything, &provider).skipping(true))
}
