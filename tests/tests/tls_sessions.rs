//! A session that is resumed is what it was made as: it keeps its identity and its name, and ends with the certificate that it was
//! made with. In TLS 1.3 and, where the mesh takes it, in TLS 1.2.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::io::Read as _;

use meshring_tests::{
    client::request,
    on_both_drivers,
    pki::{Leaf, spiffe},
    proxy::Driver,
    tls::{Caller, Mesh, Refused, peer_authentication},
    upstream::Upstream,
    wait,
};
use rustls::{AlertDescription, HandshakeKind};

on_both_drivers! {
    a_resumed_session_has_the_identity_that_it_was_made_with
    a_session_ends_with_its_certificate
}

const RESUMED: &str = "downstream_tls_resumed_total";

/// Takes mutual TLS only, of both versions.
fn mesh(driver: Driver, application: &Upstream) -> Mesh {
    let strict = peer_authentication("STRICT", "");
    let older = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                 meshMTLS: {minProtocolVersion: TLSV1_2}\n";
    Mesh::start(driver, &[application.address()], &[("mode.yaml", &strict), ("mesh.yaml", older)])
}

/// Both versions for one identity.
fn callers(mesh: &Mesh, leaf: &Leaf) -> [(&'static str, Caller); 2] {
    let issued = mesh.authority.issue(leaf);
    let (new, old) = (Caller::new(&mesh.authority, Some(&issued)), Caller::old(&mesh.authority, Some(&issued)));
    [("TLS 1.3", new), ("TLS 1.2", old)]
}

fn a_resumed_session_has_the_identity_that_it_was_made_with(driver: Driver) {
    let application = Upstream::echoing();
    let mesh = mesh(driver, &application);
    for (version, caller) in callers(&mesh, &Leaf::workload("visitor")) {
        let mut resumed = mesh.server_metric(RESUMED);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut client = caller.connect(mesh.inbound());
            let kind = client.stream_mut().conn.handshake_kind();
            assert_eq!(kind.map(is_resumed), Some(is_resumed(expected)), "{version}: {kind:?}");
            let text = client.get("reviews", "/").expect(200).text();
            assert!(text.contains(&format!("URI={}\n", spiffe("visitor"))), "{version}: {text}");
            if is_resumed(expected) {
                resumed = mesh.wait_for_metric_above(RESUMED, resumed);
            }
        }
    }
}

fn is_resumed(kind: HandshakeKind) -> bool {
    kind == HandshakeKind::Resumed
}

/// One request on a session that the caller holds.
fn on_a_session(mesh: &Mesh, caller: &Caller, version: &str) -> Result<(), Refused> {
    let mut client = caller.try_connect(mesh.inbound())?;
    let kind = client.stream_mut().conn.handshake_kind();
    assert!(kind.is_some_and(is_resumed), "{version}: {kind:?}");
    // The alert may be here before the request is out: reading tells.
    let _ = client.try_send(request("GET", "reviews", "/", &[]));
    match client.stream_mut().read(&mut [0; 1024])? {
        0 => Err(Refused::Other("closed".into())),
        _ => Ok(()),
    }
}

fn a_session_ends_with_its_certificate(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = mesh(driver, &application);
    for which in [0, 1] {
        let callers = callers(&mesh, &Leaf { ends_s: 4, ..Leaf::workload("visitor") });
        let (version, caller) = &callers[which];
        caller.connect(mesh.inbound()).get("reviews", "/").expect(200);
        let refused = wait::until("the end of the certificate", || on_a_session(&mesh, caller, version).err());
        assert_eq!(refused, Refused::Alert(AlertDescription::CertificateExpired), "{version}");
    }
    mesh.wait_for_log(&["TLS session resumed with a certificate that is not acceptable now"]);
}
