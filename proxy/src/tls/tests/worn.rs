//! Keys that have been used for long, by us and by peers that never change theirs (RFC 8446 section 5.5).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    rc::Rc,
    thread,
};

use super::{joined, read_exactly, write_bytes};
use crate::{
    accept::{Direction, Listener},
    parse::Begin,
    request::{self, End},
    testing::{
        can_update_keys, kernel_tls, on_each_driver_within,
        peer::{Peer, Received, Town, Version},
    },
    worker::{
        Worker,
        conn::{Conn, end, write_all},
        limits::Limits,
    },
};

pub(super) const RECORDS_MAX: u64 = 8;
pub(super) const ROUNDS: usize = 100;

pub(super) fn limits() -> Limits {
    Limits { tls_records_per_key_max: RECORDS_MAX, ..Limits::default() }
}

async fn echo(conn: &mut Conn, worker: &Worker) {
    for _ in 0..ROUNDS {
        let received = read_exactly(conn, worker, 1).await;
        write_bytes(conn, worker, &received).await;
    }
}

/// One record each way, again and again; then how many went under the keys that are in use at the end.
fn rounds(peer: &mut Peer) -> (u64, u64) {
    for round in 0..ROUNDS {
        peer.send(&[round as u8]);
        assert_eq!(peer.receive(1), [round as u8]);
    }
    peer.records_under_keys()
}

#[test]
fn we_change_our_keys_in_time_and_ask_peers_that_do_not() {
    if !can_update_keys() {
        return;
    }
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        let (mut conn, client) = town.client(&worker, true, rounds).await;
        echo(&mut conn, &worker).await;
        let (mut lease, upstream) = town.upstream(&worker, true, rounds).await;
        echo(&mut lease.conn, &worker).await;
        for (sent, received) in [joined(client).await, joined(upstream).await] {
            assert!(received <= RECORDS_MAX + 1, "{received} records under one key of ours");
            // Alone rustls would go on for 2^24 records.
            assert!(sent <= 2 * RECORDS_MAX + 1, "the peer was not asked: {sent} records under one key of its own");
        }
        assert!(!conn.is_worn() && !lease.conn.is_worn());
    });
}

#[test]
fn a_peer_that_never_changes_its_key_is_read_all_the_same() {
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in [Version::Tls12, Version::Tls13] {
            let script = |peer: &mut Peer| {
                for round in 0..ROUNDS {
                    peer.send(&[round as u8]);
                }
                assert_eq!(peer.receive(4), b"done");
            };
            let (mut conn, client) = town.client_speaking(&worker, Some(version), script).await;
            let expected: Vec<_> = (0..ROUNDS).map(|round| round as u8).collect();
            for byte in expected {
                assert_eq!(read_exactly(&mut conn, &worker, 1).await, [byte], "{version:?}");
            }
            write_bytes(&mut conn, &worker, b"done").await;
            joined(client).await;
        }
    });
}

/// Where there are no other keys: TLS 1.2, and TLS 1.3 in a kernel before Linux 6.14.
pub(super) fn without_new_keys() -> Vec<Version> {
    let mut versions = vec![Version::Tls12];
    if !can_update_keys() {
        versions.push(Version::Tls13);
    }
    versions
}

/// What the kernel is given in one call is counted as two records at least, since it does not say.
fn writes_max() -> usize {
    let records = 2 * RECORDS_MAX as usize;
    if kernel_tls().is_some() { records / 2 - 1 } else { records }
}

#[test]
fn a_worn_key_without_a_successor_ends_its_connection_with_the_message_that_it_carries() {
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in without_new_keys() {
            let (mut conn, client) = town.client_speaking(&worker, Some(version), |peer| peer.rest()).await;
            let mut written = 0;
            while !conn.is_worn() {
                write_bytes(&mut conn, &worker, b"a").await;
                written += 1;
                assert!(written <= RECORDS_MAX, "{version:?}: it does not wear out");
            }
            // The message goes on.
            write_bytes(&mut conn, &worker, b"b").await;
            end(&mut conn.write).await.unwrap();
            let (bytes, how) = joined(client).await;
            assert_eq!((bytes.len() as u64, how), (written + 1, Received::End), "{version:?}");
        }
    });
}

#[test]
fn a_message_that_outlasts_a_key_without_a_successor_is_cut_and_does_not_look_whole() {
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in without_new_keys() {
            let (mut conn, client) = town.client_speaking(&worker, Some(version), |peer| peer.until_alert()).await;
            let mut out = worker.buffers.take();
            out.extend_from_slice(b"a");
            let mut written = 0;
            let error = loop {
                match write_all(&mut conn.write, &mut out).await {
                    Ok(()) => written += 1,
                    Err(error) => break error,
                }
                assert!(written < ROUNDS, "{version:?}: nothing stops it");
            };
            assert_eq!((written, conn.is_worn()), (writes_max(), true), "{version:?}: {error}");
            assert!(error.to_string().contains("too many TLS records"), "{error}");
            // Neither a further write nor an end comes behind the alert.
            assert!(write_all(&mut conn.write, &mut out).await.is_err());
            drop(conn);
            let (bytes, alert) = joined(client).await;
            assert_eq!(bytes.len(), written, "{version:?}");
            assert!(alert.contains("InternalError"), "{version:?}: {alert}");
        }
    });
}

/// Answers each request of each connection.
fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut request) = (stream.unwrap(), [0; 4096]);
            // What is asked here comes in one piece.
            while let Ok(1..) = stream.read(&mut request) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
            }
        }
    });
    address
}

/// One request after the other on a connection: how many are answered, and how it ends if that is before the last of them.
fn requests(peer: &mut Peer) -> (usize, Option<Received>) {
    let mut answers = 0;
    while answers < ROUNDS {
        let (mut out, mut answer) = (&b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n"[..], Vec::new());
        while !answer.ends_with(b"hello") {
            match peer.exchange(std::mem::take(&mut out), answer.len() + 1, &mut answer) {
                Received::All => {}
                how => {
                    assert!(answer.is_empty(), "in the middle of an answer: {}", String::from_utf8_lossy(&answer));
                    return (answers, Some(how));
                }
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
        answers += 1;
    }
    peer.finish_sending();
    (answers, None)
}

#[test]
fn no_answer_is_lost_to_a_worn_key() {
    let application = application();
    on_each_driver_within(limits(), async |worker: Rc<Worker>| {
        let town = Town::new();
        for version in [Version::Tls12, Version::Tls13] {
            let (mut conn, client) = town.client_speaking(&worker, Some(version), requests).await;
            let listener = Listener::new(0, application, Direction::Inbound { application });
            loop {
                match request::serve(&worker, &mut conn, &listener, Begin::Readable, &mut false).await {
                    End::Closed => break,
                    End::Idle => conn.readable().await.unwrap(),
                    other => panic!("{version:?}: {other:?}"),
                }
            }
            drop(conn);
            let (answers, how) = joined(client).await;
            if without_new_keys().contains(&version) {
                assert_eq!(how, Some(Received::End), "{version:?}: after {answers} answers");
                assert!((1..=RECORDS_MAX as usize).contains(&answers), "{version:?}: {answers}");
            } else {
                assert_eq!((answers, how), (ROUNDS, None), "{version:?}");
            }
        }
    });
}
