//! What a handshake proves with a certificate's key, and by which keys it is secret.

use std::{
    io::{Read as _, Write as _},
    rc::Rc,
    sync::Arc,
    thread,
};

use rustls::{
    ClientConfig, ClientConnection, Connection, NamedGroup, ServerConfig, ServerConnection, StreamOwned,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{
            self,
            kx_group::{SECP256R1, X25519, X25519MLKEM768},
            sign::any_supported_type,
        },
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

use super::{PRODUCTPAGE, REVIEWS, accepted, any_server, asked, blocking, joined, key, materials, mutual, roots};
use crate::{
    testing::{Authority, Leaf, on_each_driver, pair},
    tls::{handshake, materials::Offer},
    worker::Worker,
};

/// The certificate of one and the key of another.
fn stolen(authority: &Authority, uri: &'static str) -> Arc<SingleCertAndKey> {
    let (certificate, _) = authority.sign(&Leaf::of(uri));
    let (_, other) = authority.sign(&Leaf::of(uri));
    let key = any_supported_type(&key(other)).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate.into()], key)))
}

#[test]
fn a_client_without_the_key_of_its_certificate_is_refused() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        for version in [&TLS13, &TLS12] {
            let (mut conn, peer) = pair(&worker);
            let mut config = ClientConfig::builder_with_protocol_versions(&[version])
                .with_root_certificates(roots(&authority))
                .with_client_cert_resolver(stolen(&authority, PRODUCTPAGE));
            config.dangerous().set_certificate_verifier(any_server());
            let thread = thread::spawn(move || {
                let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
                let mut stream = StreamOwned::new(client, blocking(peer));
                stream.write_all(b"hello").and_then(|()| stream.read(&mut [0; 16])).unwrap_err().to_string()
            });
            let error = accepted(&worker, &mut conn, &materials).await.unwrap_err();
            assert_eq!(error.code(), "tls.bad_certificate", "{error}");
            assert!(conn.secured_peer().is_none());
            conn.drain(1_000, 1_000).await;
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains("DecryptError"), "{version:?}: {told}");
        }
    });
}

#[test]
fn a_server_without_the_key_of_its_certificate_gets_no_request() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, PRODUCTPAGE);
        for version in [&TLS13, &TLS12] {
            let (mut conn, peer) = pair(&worker);
            let config = ServerConfig::builder_with_protocol_versions(&[version])
                .with_no_client_auth()
                .with_cert_resolver(stolen(&authority, REVIEWS));
            let thread = thread::spawn(move || {
                let server = ServerConnection::new(Arc::new(config)).unwrap();
                StreamOwned::new(server, blocking(peer)).read(&mut [0; 16]).unwrap_err().to_string()
            });
            let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
            let error = handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap_err();
            assert_eq!(error.code(), "tls.bad_certificate", "{error}");
            drop(conn);
            let told = joined(thread).await;
            assert!(told.contains("DecryptError"), "{version:?}: {told}");
        }
    });
}

type Groups = &'static [&'static dyn SupportedKxGroup];

/// What a peer can do, and what comes of it as our client and as our server. The client's order counts, which is rustls' way and
/// spares a round trip: ours has the hybrid first.
const CASES: [(Groups, NamedGroup, NamedGroup); 4] = [
    (&[X25519MLKEM768, X25519], NamedGroup::X25519MLKEM768, NamedGroup::X25519MLKEM768),
    (&[SECP256R1, X25519MLKEM768], NamedGroup::secp256r1, NamedGroup::X25519MLKEM768),
    (&[X25519, SECP256R1], NamedGroup::X25519, NamedGroup::X25519),
    (&[SECP256R1], NamedGroup::secp256r1, NamedGroup::secp256r1),
];

fn provider(groups: Groups) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() })
}

fn chosen(mut connection: Connection, socket: std::net::TcpStream) -> thread::JoinHandle<NamedGroup> {
    let mut socket = blocking(socket);
    thread::spawn(move || {
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).unwrap();
        }
        connection.negotiated_key_exchange_group().unwrap().name()
    })
}

#[test]
fn clients_that_want_a_post_quantum_key_exchange_get_it() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        let (certificate, der) = authority.sign(&Leaf::of(PRODUCTPAGE));
        for (groups, expected, _) in CASES {
            let (mut conn, peer) = pair(&worker);
            let mut config = ClientConfig::builder_with_provider(provider(groups))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots(&authority))
                .with_client_auth_cert(vec![certificate.clone().into()], key(der.clone()))
                .unwrap();
            config.dangerous().set_certificate_verifier(any_server());
            let client = ClientConnection::new(Arc::new(config), asked()).unwrap();
            let client = chosen(client.into(), peer);
            accepted(&worker, &mut conn, &materials).await.unwrap();
            assert_eq!(joined(client).await, expected, "{groups:?}");
        }
    });
}

#[test]
fn servers_that_have_a_post_quantum_key_exchange_get_it() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, PRODUCTPAGE);
        let (certificate, der) = authority.sign(&Leaf::of(REVIEWS));
        for (groups, _, expected) in CASES {
            let (mut conn, peer) = pair(&worker);
            let config = ServerConfig::builder_with_provider(provider(groups))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone().into()], key(der.clone()))
                .unwrap();
            let server = chosen(ServerConnection::new(Arc::new(config)).unwrap().into(), peer);
            let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
            handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap();
            assert_eq!(joined(server).await, expected, "{groups:?}");
        }
    });
}
