//! Deadlines of writing, and of reading a response, on a worker whose clock the tests turn.

use std::{
    cell::Cell,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    pin::pin,
    time::{Duration, Instant},
};

use meshring_core::{
    http::{
        fields::Fields,
        head::{Bounds, Method, Version},
    },
    limits::{BODY_IDLE_MS_MAX, RESPONSE_HEAD_MS_MAX},
};

use super::{local, relay};
use crate::{
    observe::Record,
    policy::Edits,
    testing::{on_each_driver, pair},
    worker::{
        Worker,
        buffers::Input,
        conn::Conn,
        deadlines::{Expiry, now_ms},
        join::both,
    },
};

/// What no wait of these tests reaches unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// As [`pair`], but the peer reads nothing and all buffers on the way to it are full. Says how many bytes are in them.
fn stalled_pair(worker: &Worker) -> (Conn, TcpStream, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut ours, _) = listener.accept().unwrap();
    peer.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut filled = 0;
    let mut refused_since = Instant::now();
    // The kernel moves bytes from one buffer to the other on its own time, and widens them.
    while refused_since.elapsed() < Duration::from_millis(100) {
        match ours.write(&[b'x'; 4096]) {
            Ok(count) => {
                filled += count;
                refused_since = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    (Conn::from_std(ours, &worker.deadlines).unwrap(), peer, filled)
}

/// Lets other tasks run until a condition holds, for [`PATIENCE`] at most; whether it held.
async fn held(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

#[test]
fn a_refusal_that_nobody_reads_is_given_up_at_its_deadline() {
    on_each_driver(async |worker| {
        let (mut conn, peer, _) = stalled_pair(&worker);
        let done = Cell::new(false);
        let refusing = async {
            local::refuse(&worker, &mut conn, 400, "meshring: Bad Request\n").await;
            done.set(true);
        };
        let clock = async {
            let over = held(|| {
                worker.deadlines.tick(now_ms() + BODY_IDLE_MS_MAX + 1);
                done.get()
            })
            .await;
            // Ends the write all the same, so that a failure does not hang.
            drop(peer);
            over
        };
        let ((), over) = both(pin!(refusing), pin!(clock)).await;
        assert!(over, "the write has no deadline");
    });
}

#[test]
fn the_deadline_of_a_response_head_is_gone_once_the_head_has_come() {
    on_each_driver(async |worker| {
        let (mut upstream, mut server) = pair(&worker);
        let (mut client, mut reader, filled) = stalled_pair(&worker);
        let record = Record::start(&worker.stats);
        let uploading = Cell::new(false);
        let continued = Cell::new(true);
        let exchange = relay::Exchange {
            worker: &worker,
            record: &record,
            method: Method::Get,
            version: Version::Http11,
            is_websocket: false,
            keep_alive: true,
            edits: Edits::default(),
            extra: b"",
            total_at_ms: None,
            silence_ms_max: RESPONSE_HEAD_MS_MAX,
            head_at_ms: Cell::new(now_ms() + RESPONSE_HEAD_MS_MAX),
            awaits_head: Cell::new(true),
            continued: &continued,
            bounds: Bounds::FIRST_HOP,
            uploading: &uploading,
        };
        // The head has come just before its deadline, with the first half of the body.
        const HALF: usize = 1_000;
        let head_at_ms = now_ms() + RESPONSE_HEAD_MS_MAX / 2;
        upstream.timer.set(head_at_ms, Expiry::ShutdownBoth);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * HALF);
        let mut begin = worker.buffers.take();
        begin.extend([head.as_bytes(), &[b'a'; HALF]].concat());
        let mut input = Input::new(begin);
        let mut fields = Fields::new();
        let done = Cell::new(false);
        let relaying = async {
            let from = relay::Side { half: &mut upstream.read, timer: &upstream.timer };
            let to = relay::Side { half: &mut client.write, timer: &client.timer };
            let mut out = worker.buffers.lazy();
            let result = relay::relay_response(&exchange, &mut fields, &mut input, from, to, &mut out).await;
            done.set(true);
            result
        };
        let others = async {
            // The relay was polled first: the first half waits for a client that takes nothing yet. The deadline passes.
            worker.deadlines.tick(head_at_ms + 1);
            let sent = server.write_all(&[b'b'; HALF]);
            let mut received = vec![0; filled + 4096];
            let mut len = 0;
            let came = held(|| {
                while let Ok(count @ 1..) = reader.read(&mut received[len..]) {
                    len += count;
                }
                done.get()
            })
            .await;
            drop((server, reader));
            received.truncate(len);
            (sent, came, received.split_off(filled.min(len)))
        };
        let (result, (sent, came, received)) = both(pin!(relaying), pin!(others)).await;
        sent.unwrap();
        assert!(came, "the response did not end");
        result.unwrap();
        assert!(received.ends_with(&[[b'a'; HALF], [b'b'; HALF]].concat()), "{}", String::from_utf8_lossy(&received));
    });
}
