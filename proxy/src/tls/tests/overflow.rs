//! A record whose header announces more than any may have, at every point of a handshake.

use rustls::{AlertDescription, ConnectionCommon, Error as TlsError};

use super::*;

/// Beyond what may come in the clear (RFC 8446 section 5.1), and sealed (section 5.2).
const PLAIN: [u8; 5] = [22, 3, 3, 0x40, 1];
const SEALED: [u8; 5] = [23, 3, 3, 0x41, 1];
/// Such an alert in the clear, behind its version.
const ALERT_TAIL: [u8; 4] = [0, 2, 2, 22];

/// The first alert that comes.
fn alert<D>(connection: &mut ConnectionCommon<D>, socket: &mut TcpStream) -> AlertDescription {
    loop {
        assert_ne!(connection.read_tls(socket).unwrap(), 0, "an end without an alert");
        match connection.process_new_packets() {
            Ok(_) => {}
            Err(TlsError::AlertReceived(alert)) => return alert,
            Err(error) => panic!("no alert: {error}"),
        }
    }
}

/// What a connection has to say.
fn said<D>(connection: &mut ConnectionCommon<D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn a_client_whose_record_is_too_long_is_told_so() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, REVIEWS);
        for (is_tls13, header) in [(true, SEALED), (true, PLAIN), (false, PLAIN)] {
            let (mut conn, peer) = pair(&worker);
            let mut config = client_config(&authority, Some((&authority, &Leaf::of(PRODUCTPAGE))), is_tls13);
            config.dangerous().set_certificate_verifier(any_server());
            let thread = thread::spawn(move || {
                let mut client = ClientConnection::new(Arc::new(config), asked()).unwrap();
                let mut socket = blocking(peer);
                socket.write_all(&[&said(&mut client)[..], &header].concat()).unwrap();
                alert(&mut client, &mut socket)
            });
            let error = accepted(&worker, &mut conn, &materials).await.unwrap_err();
            assert_eq!(error.code(), "tls.too_long", "{error}");
            conn.drain(1_000, 1_000).await;
            drop(conn);
            assert_eq!(joined(thread).await, AlertDescription::RecordOverflow, "TLS 1.3: {is_tls13}, {header:?}");
        }
    });
}

/// When a server's record is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    First,
    /// In TLS 1.3, where the server begins to seal.
    BehindItsHello,
    /// In TLS 1.2, where the client has begun to.
    BehindTheClientsEnd,
}

#[test]
fn a_server_whose_record_is_too_long_is_told_so() {
    on_each_driver(async |worker: Rc<Worker>| {
        let authority = Authority::new();
        let materials = materials(&authority, PRODUCTPAGE);
        let cases = [(true, When::First), (true, When::BehindItsHello), (false, When::BehindTheClientsEnd)];
        for (is_tls13, when) in cases {
            let (mut conn, peer) = pair(&worker);
            let config = server_config(&authority, &Leaf::of(REVIEWS), is_tls13);
            let thread = thread::spawn(move || {
                let mut server = ServerConnection::new(Arc::new(config)).unwrap();
                let mut socket = blocking(peer);
                let mut flight = Vec::new();
                while flight.is_empty() {
                    assert_ne!(server.read_tls(&mut socket).unwrap(), 0);
                    server.process_new_packets().unwrap();
                    flight = said(&mut server);
                }
                match when {
                    When::First => {
                        socket.write_all(&PLAIN).unwrap();
                        let mut answer = Vec::new();
                        socket.read_to_end(&mut answer).unwrap();
                        assert!(answer.len() == 7 && answer[0] == 21 && answer.ends_with(&ALERT_TAIL), "{answer:?}");
                        return AlertDescription::RecordOverflow;
                    }
                    When::BehindItsHello => {
                        let hello = 5 + usize::from(u16::from_be_bytes([flight[3], flight[4]]));
                        socket.write_all(&[&flight[..hello], &SEALED].concat()).unwrap();
                    }
                    When::BehindTheClientsEnd => {
                        socket.write_all(&flight).unwrap();
                        while server.is_handshaking() {
                            assert_ne!(server.read_tls(&mut socket).unwrap(), 0);
                            server.process_new_packets().unwrap();
                        }
                        socket.write_all(&PLAIN).unwrap();
                    }
                }
                alert(&mut server, &mut socket)
            });
            let client = materials.cluster(&mutual(&[REVIEWS]), true, Offer::Http1).unwrap();
            let error = handshake::connect(&worker, &mut conn, &client, &asked(), 10_000).await.unwrap_err();
            assert_eq!(error.code(), "tls.too_long", "{error}");
            conn.drain(1_000, 1_000).await;
            drop(conn);
            assert_eq!(joined(thread).await, AlertDescription::RecordOverflow, "TLS 1.3: {is_tls13}, {when:?}");
        }
    });
}
