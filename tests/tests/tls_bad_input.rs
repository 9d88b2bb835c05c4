//! Certificates, handshakes and clients that must not get in: each is refused with the right alert or status, counted, and
//! named in the log, which tells no secrets.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use meshring_tests::{
    client::Client,
    on_both_drivers,
    pki::{Authority, Issued, Leaf, spiffe},
    proxy::Driver,
    tls::{Caller, Mesh, Refused, expect_alert, peer_authentication},
    upstream::Upstream,
    wait,
};
use rustls::AlertDescription;

on_both_drivers! {
    bad_certificates_are_refused_with_their_alert_and_reason
    garbage_and_truncated_handshakes_end_with_an_alert_or_silently
    cve_2024_11738_a_hello_in_any_pieces_ends_no_worker
    cve_2024_32650_close_notify_behind_the_hello_ends_the_handshake
    a_client_that_stops_in_the_middle_of_its_handshake_is_ended_at_the_deadline
    tls_where_the_application_speaks_plain_text_gets_an_alert_a_count_and_a_reason
}

const REFUSED: &str = "downstream_tls_refused_total";

fn strict(application: &Upstream, driver: Driver) -> Mesh {
    let mode = peer_authentication("STRICT", "");
    Mesh::start(driver, &[application.address()], &[("mode.yaml", &mode)])
}

/// Private keys and what is inside of them must not be in a log.
fn assert_no_secrets(mesh: &Mesh, issued: &[Issued]) {
    for log in [mesh.server.process.output(), mesh.client.process.output(), mesh.control.process.output()] {
        assert!(!log.contains("PRIVATE KEY") && !log.contains("panicked"), "{log}");
        for issued in issued {
            for line in issued.key_pem.lines().filter(|line| line.len() > 40) {
                assert!(!log.contains(line), "a key is in the log");
            }
        }
    }
}

fn bad_certificates_are_refused_with_their_alert_and_reason(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let ours = |leaf: &Leaf| mesh.authority.issue(leaf);
    let visitor = Leaf::workload("visitor");
    let oversized = {
        let mut issued = ours(&visitor);
        // 5 x 16 KiB behind the leaf: nobody's issuer, and more than a flight may have.
        let large = ours(&Leaf { padding: 16_000, ..visitor.clone() });
        issued.chain.extend(vec![large.chain[0].clone(); 5]);
        issued
    };
    let nul = [spiffe("visitor").as_bytes(), b"\0.example.com"].concat();
    let two = vec![spiffe("visitor").into_bytes(), spiffe("admin").into_bytes()];
    let cases: [(&str, Issued, &[AlertDescription], &[&str]); 9] = [
        (
            "expired",
            ours(&Leaf { begins_s: -7_000, ends_s: -600, ..visitor.clone() }),
            &[AlertDescription::CertificateExpired],
            &["tls.certificate_expired"],
        ),
        (
            "not yet valid",
            ours(&Leaf { begins_s: 600, ..visitor.clone() }),
            &[AlertDescription::CertificateExpired],
            &["tls.certificate_not_yet_valid"],
        ),
        (
            "foreign authority",
            Authority::new("operator").issue(&visitor),
            &[AlertDescription::UnknownCA, AlertDescription::DecryptError, AlertDescription::BadCertificate],
            &["tls.certificate_unknown_issuer", "tls.bad_certificate"],
        ),
        (
            "foreign trust domain",
            ours(&Leaf::uri("spiffe://elsewhere/ns/default/sa/visitor")),
            &[AlertDescription::UnknownCA],
            &["tls.certificate_unknown_issuer"],
        ),
        (
            "no SPIFFE id",
            ours(&Leaf::server(&["visitor.example.com"])),
            &[AlertDescription::CertificateUnknown],
            &["tls.certificate_wrong_identity"],
        ),
        (
            "a URI of another kind",
            ours(&Leaf::uri("https://cluster.local/ns/default/sa/visitor")),
            &[AlertDescription::CertificateUnknown],
            &["tls.certificate_wrong_identity"],
        ),
        (
            "two URIs",
            ours(&Leaf { uris: two, ..Leaf::default() }),
            &[AlertDescription::CertificateUnknown],
            &["tls.certificate_wrong_identity"],
        ),
        (
            "NUL in the URI",
            ours(&Leaf::uri(nul)),
            &[AlertDescription::CertificateUnknown],
            &["tls.certificate_wrong_identity", "tls.bad_certificate"],
        ),
        (
            "a path that climbs",
            ours(&Leaf::uri("spiffe://cluster.local/ns/default/../sa/admin")),
            &[AlertDescription::CertificateUnknown],
            &["tls.certificate_wrong_identity"],
        ),
    ];
    let mut issued = Vec::new();
    for (name, certificate, alerts, codes) in cases {
        let refused = mesh.server_metric(REFUSED);
        let said = Caller::new(&mesh.authority, Some(&certificate)).refused(mesh.inbound());
        assert!(alerts.iter().any(|alert| said == Refused::Alert(*alert)), "{name}: {said:?}");
        mesh.wait_for_metric_above(REFUSED, refused);
        // One kind of refusal is logged once in a while: later cases of the same code may be counted only.
        println!("{name}");
        mesh.wait_for_log(codes);
        issued.push(certificate);
    }
    let refused = mesh.server_metric(REFUSED);
    for caller in [Caller::new, Caller::old] {
        let said = caller(&mesh.authority, Some(&oversized)).refused(mesh.inbound());
        expect_alert(&said, AlertDescription::DecodeError);
    }
    mesh.wait_for_metric_above(REFUSED, refused + 1);
    mesh.wait_for_log(&["tls.too_long"]);

    assert_no_secrets(&mesh, &issued);
    assert_eq!(application.received().len(), 0);
    // Who has done nothing wrong is served as before.
    mesh.get("reviews", "/").expect(200);
    mesh.caller(&visitor).connect(mesh.inbound()).get("reviews", "/").expect(200);
}

/// What comes back, to the end of the connection.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("neither an answer nor an end: {error}"),
    }
}

/// A ClientHello that openssl or rustls would send, caught on a socket.
fn client_hello(mesh: &Mesh) -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let caller = mesh.caller(&Leaf::workload("visitor"));
    let client = std::thread::spawn(move || caller.try_connect(address).is_err());
    let (mut socket, _) = listener.accept().unwrap();
    let mut head = [0; 5];
    socket.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    socket.read_exact(&mut body).unwrap();
    drop(socket);
    assert!(client.join().unwrap());
    [&head[..], &body].concat()
}

fn garbage_and_truncated_handshakes_end_with_an_alert_or_silently(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let hello = client_hello(&mesh);
    let mut wrong_length = hello.clone();
    wrong_length[6] = 0xff;
    let mut broken = hello.clone();
    let last = broken.len() - 1;
    broken.truncate(last);
    let cases: [(&str, Vec<u8>); 7] = [
        ("a handshake record of noise", record(22, &[0xA5; 200])),
        ("an empty record", record(22, &[])),
        ("a message of another kind", record(22, &[2, 0, 0, 1, 0])),
        ("a length that does not fit", wrong_length),
        ("a hello without its last byte", broken),
        ("the first byte only", hello[..1].to_vec()),
        ("data in the place of what follows", [&hello[..], &record(23, &[0; 64])].concat()),
    ];
    for (name, bytes) in cases {
        let refused = mesh.server_metric(REFUSED);
        let answer = exchange(mesh.inbound(), &bytes);
        assert!(!answer.starts_with(b"HTTP/"), "{name}: {}", String::from_utf8_lossy(&answer));
        mesh.wait_for_metric_above(REFUSED, refused);
    }
    let answer = exchange(mesh.inbound(), &record(22, &[0xA5; 200]));
    // An alert, fatal.
    assert!(answer.len() == 7 && answer[0] == 21 && answer[5] == 2, "{answer:?}");
    // A hello that does not end: in one record its length says so, in records of a byte each it does not.
    let announced = record(22, &[1, 2, 0, 0, 3, 3]);
    let trickled: Vec<_> = [1, 0, 0xf0, 0].iter().chain(&[3; 12_000]).flat_map(|&byte| record(22, &[byte])).collect();
    for bytes in [announced, trickled] {
        assert_eq!(exchange(mesh.inbound(), &bytes), [21, 3, 3, 0, 2, 2, 50], "decode_error");
    }
    // RFC 8446 sections 4 and 5.1.
    let first_half = record(22, &hello[5..60]);
    for (bytes, alert) in [
        (vec![22, 3, 1, 0x40, 1], 22),
        ([&first_half[..], &[22, 3, 3, 0x40, 1]].concat(), 22),
        (record(22, &[2, 0, 0, 1, 0]), 10),
        ([&first_half[..], &record(23, &[0; 8])].concat(), 10),
    ] {
        assert_eq!(exchange(mesh.inbound(), &bytes), [21, 3, 3, 0, 2, 2, alert], "record_overflow, unexpected_message");
    }
    // A hello in many small pieces is none of these.
    let mut dripping = TcpStream::connect(mesh.inbound()).unwrap();
    dripping.set_nodelay(true).unwrap();
    for piece in hello.chunks(16) {
        dripping.write_all(piece).unwrap();
    }
    dripping.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut first = [0];
    dripping.read_exact(&mut first).unwrap();
    assert_eq!(first, [22], "the server's hello");

    // Not TLS at all: what HTTP makes of it, and never a 200.
    for bytes in [&b"\0\0\0\0\r\n\r\n"[..], b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n", b"\x80\x2e\x01\x03\x01\0\x15"] {
        let answer = exchange(mesh.inbound(), bytes);
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    assert_eq!(application.received().len(), 0);
    mesh.get("reviews", "/").expect(200);
    mesh.server.process.output().lines().for_each(|line| assert!(!line.contains("panicked"), "{line}"));
}

/// A TLS record.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 1], &len[..], body].concat()
}

fn cve_2024_11738_a_hello_in_any_pieces_ends_no_worker(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let hello = client_hello(&mesh);
    let message = &hello[5..];
    let mut empty_between = record(22, &message[..4]);
    empty_between.extend(record(22, &[]));
    empty_between.extend(record(22, &message[4..]));
    let pieces = |len: usize| message.chunks(len).flat_map(|piece| record(22, piece)).collect::<Vec<_>>();
    let cases = [
        ("one byte of it", record(22, &message[..1])),
        ("its head", record(22, &message[..4])),
        ("its head, then something else", [record(22, &message[..4]), record(21, &[2, 40])].concat()),
        ("its half, then application data", [record(22, &message[..60]), record(23, &[0; 8])].concat()),
        ("an empty record in it", empty_between),
        ("twice in one record", record(22, &[message, message].concat())),
        ("twice", [&hello[..], &hello].concat()),
        ("in records of 3 bytes", pieces(3)),
        ("in records of 100 bytes", pieces(100)),
    ];
    for (name, bytes) in &cases {
        // Whole, and as it may come off the network.
        for piece in [bytes.len(), 7, 1] {
            let mut socket = TcpStream::connect(mesh.inbound()).unwrap();
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // It may be refused before all of it is out.
            let _ = bytes.chunks(piece).try_for_each(|piece| socket.write_all(piece));
            let _ = socket.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            match socket.read_to_end(&mut answer) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{name}: {error}"),
                _ => assert!(answer.is_empty() || [21, 22].contains(&answer[0]), "{name}: {answer:?}"),
            }
        }
        mesh.get("reviews", "/").expect(200);
    }
    assert_eq!(application.received().len(), cases.len());
    assert!(!mesh.server.process.output().contains("panicked"));
}

fn cve_2024_32650_close_notify_behind_the_hello_ends_the_handshake(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let hello = client_hello(&mesh);
    for alert in [[1, 0], [2, 0]] {
        let refused = mesh.server_metric(REFUSED);
        let mut socket = TcpStream::connect(mesh.inbound()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(&[&hello[..], &record(21, &alert)].concat()).unwrap();
        // The client's side stays open: it is for the proxy to see that nothing will come of it, long before its deadline.
        let started = Instant::now();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => assert!(answer.is_empty() || [21, 22].contains(&answer[0]), "{answer:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        mesh.wait_for_metric_above(REFUSED, refused);
        mesh.get("reviews", "/").expect(200);
    }
}

fn a_client_that_stops_in_the_middle_of_its_handshake_is_ended_at_the_deadline(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let hello = client_hello(&mesh);
    let begun = Instant::now();
    let mut stopped: Vec<TcpStream> = [&hello[..3], &hello[..100], &hello[..]]
        .iter()
        .map(|bytes| {
            let mut socket = TcpStream::connect(mesh.inbound()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            socket.write_all(bytes).unwrap();
            socket
        })
        .collect();
    // Others are not held up by them.
    mesh.get("reviews", "/").expect(200);
    for socket in &mut stopped {
        let mut rest = Vec::new();
        // The server's flight, then the end.
        let _ = socket.read_to_end(&mut rest);
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(20), "{took:?}");
    }
    mesh.wait_for_metric_above(REFUSED, 2);
    mesh.wait_for_log(&["tls.timeout"]);
}

fn tls_where_the_application_speaks_plain_text_gets_an_alert_a_count_and_a_reason(driver: Driver) {
    let application = Upstream::saying("here");
    let mesh = strict(&application, driver);
    let hello = client_hello(&mesh);
    let count = |name: &str| mesh.control.metric(&format!("meshring_{name}"), "default/client");
    for bytes in [&hello[..], &hello[..1], &record(22, &[0xA5; 200])] {
        let (refused, malformed) = (count(REFUSED), count("downstream_requests_refused_total"));
        assert_eq!(exchange(mesh.client.outbound(), bytes), [21, 3, 3, 0, 2, 2, 40], "handshake_failure");
        wait::until("the refusal", || (count(REFUSED) == refused + 1).then_some(()));
        assert_eq!(count("downstream_requests_refused_total"), malformed);
    }
    let line = wait::until("the reason", || mesh.client.process.line("code=\"tls.not_expected\""));
    assert!(line.contains("TLS on a listener for what the application sends in plain text"), "{line}");
    // In the place of a second request, too; and what is sealed is no handshake.
    let mut client = mesh.client.connect();
    client.get("reviews", "/").expect(200);
    client.send(&hello[..]);
    assert_eq!(client.bytes(7), [21, 3, 3, 0, 2, 2, 40]);
    client.expect_end();
    let mut client = mesh.caller(&Leaf::workload("visitor")).connect(mesh.inbound());
    client.send([&hello[..], b"\r\n\r\n"].concat());
    client.response().expect(400);
    mesh.get("reviews", "/").expect(200);
}

#[test]
fn a_certificate_that_expires_admits_no_new_connection_and_harms_no_old_one() {
    let application = Upstream::saying("here");
    let mesh = strict(&application, Driver::Auto);
    let caller = mesh.caller(&Leaf { ends_s: 3, ..Leaf::workload("visitor") });
    let mut open = caller.connect(mesh.inbound());
    open.get("reviews", "/").expect(200);
    let refused = wait::until("the end of the certificate", || match caller.try_connect(mesh.inbound()) {
        Err(refused) => Some(refused),
        // In TLS 1.3 the client is done before the server has seen its certificate.
        Ok(mut client) => {
            let _ = client.try_send(meshring_tests::client::request("GET", "reviews", "/", &[]));
            client.try_response("GET").err().map(|_| caller.refused(mesh.inbound()))
        }
    });
    // Also a session from before is no way in.
    expect_alert(&refused, AlertDescription::CertificateExpired);
    open.get("reviews", "/").expect(200);
    mesh.wait_for_log(&["tls.certificate_expired"]);
}

#[test]
fn plain_text_of_any_kind_gets_no_further_than_a_strict_port() {
    let application = Upstream::saying("here");
    let mesh = strict(&application, Driver::Auto);
    let mut client = Client::connect(mesh.inbound());
    // A forged proof of identity, and a request behind the first one that must not be answered.
    let forged = format!("x-forwarded-client-cert: By={};URI={}", spiffe("reviews"), spiffe("client"));
    let twice = format!("GET / HTTP/1.1\r\nhost: reviews\r\n{forged}\r\n\r\n").repeat(2);
    client.send(twice);
    client.response().expect(403);
    client.expect_end();
    let mut connect = Client::connect(mesh.inbound());
    let status = connect.send(b"CONNECT reviews:80 HTTP/1.1\r\nhost: reviews:80\r\n\r\n").response().status;
    assert!(status == 403 || status == 405, "{status}");
    assert_eq!(application.received().len(), 0);
}
