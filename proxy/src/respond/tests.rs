//! Deadlines of writing, and of reading a response, on a worker whose clock the tests turn; large bodies, which go from socket to socket
//! where the kernel has TLS (tests/vm).

use std::{
    cell::Cell,
    future::{Future as _, poll_fn},
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use meshring_core::{
    clock::monotonic_ns,
    http::{
        fields::Fields,
        head::{BodyFraming, Bounds, Method, Version},
    },
    limits::{BODY_IDLE_MS_MAX, BUFFER_BYTES, BUFFERS_IN_A_ROW_MAX, LINGER_BYTES_MAX, RESPONSE_HEAD_MS_MAX},
};

use super::{
    body::{BadBody, Body, BodyError, BodyRate, Patience, Side, Upload, relay_body},
    local, relay,
};
use crate::{
    observe::Record,
    policy::Edits,
    testing::{
        kernel_tls, on_each_driver, pair,
        peer::{Peer, Received, Town, pattern},
    },
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, write_all},
        deadlines::{Expiry, now_ms},
        join::both,
        pause,
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
        pause(Duration::from_millis(1)).await;
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
fn item_64_no_more_than_64_kib_are_drained() {
    on_each_driver(async |worker| {
        for (sent, taken) in [(LINGER_BYTES_MAX - 1, 0), (LINGER_BYTES_MAX + 4_321, 0), (LINGER_BYTES_MAX, 16 * 1024)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, _) = listener.accept().unwrap();
            let mut rest = ours.try_clone().unwrap();
            ours.set_nonblocking(true).unwrap();
            let mut conn = Conn::from_std(ours, &worker.deadlines).unwrap();
            let sender = thread::spawn(move || {
                peer.write_all(&vec![b'x'; sent]).unwrap();
                peer.shutdown(std::net::Shutdown::Write).unwrap();
                peer
            });
            local::linger(&mut conn, &mut Input::new(worker.buffers.lazy()), taken).await;
            // What it has left is still there.
            rest.set_nonblocking(false).unwrap();
            let mut left = Vec::new();
            rest.read_to_end(&mut left).unwrap();
            assert_eq!(sent - left.len(), sent.min(LINGER_BYTES_MAX - taken), "of {sent} bytes");
            drop(sender.join().unwrap());
        }
    });
}

#[test]
fn the_deadline_of_a_response_head_is_gone_once_the_head_has_come() {
    on_each_driver(async |worker| {
        let (mut upstream, mut server) = pair(&worker);
        let (mut client, mut reader, filled) = stalled_pair(&worker);
        let record = Record::start(&worker.stats, monotonic_ns());
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
            hot: None,
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
            let from = Side { half: &mut upstream.read, timer: &upstream.timer };
            let to = Side { half: &mut client.write, timer: &client.timer };
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

/// Passes wake-ups on, and counts them.
struct Counted {
    to: Waker,
    count: AtomicUsize,
}

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.to.wake_by_ref();
    }
}

/// An answer to a body that is whole may be there with the end of its last write: others get their turn before or behind it.
#[test]
fn nobody_comes_between_the_last_piece_of_a_body_and_its_end() {
    on_each_driver(async |worker| {
        let in_a_row = BUFFERS_IN_A_ROW_MAX as usize;
        for (pieces, turns) in [(in_a_row - 1, 0), (in_a_row, 0), (in_a_row + 1, 1), (2 * in_a_row, 1)] {
            let (mut upstream, mut server) = pair(&worker);
            server.set_nonblocking(false).unwrap();
            // A piece is a little less than a buffer.
            let len = pieces * BUFFER_BYTES - BUFFER_BYTES / 2;
            let server = thread::spawn(move || server.read_exact(&mut vec![0; len]));
            let mut input = Input::new(worker.buffers.lazy());
            input.extend(&vec![b'x'; len]);
            let (mut client, _peer) = pair(&worker);
            let mut body = Body::new(BodyFraming::Length(len as u64), BodyFraming::Length(len as u64));
            let mut out = worker.buffers.lazy();
            {
                let from = Side { half: &mut client.read, timer: &client.timer };
                let to = Side { half: &mut upstream.write, timer: &upstream.timer };
                let mut up = pin!(relay_body(&mut body, &mut input, from, to, &mut out, to_the_end(None)));
                let mut own = 0;
                let passed = poll_fn(|cx| {
                    // The drivers wake between two polls only: what does so in one is ours.
                    let counted = Arc::new(Counted { to: cx.waker().clone(), count: AtomicUsize::new(0) });
                    let polled = up.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&counted))));
                    own += counted.count.load(Ordering::Relaxed);
                    polled
                });
                passed.await.unwrap();
                assert_eq!(own, turns, "{pieces} pieces");
            }
            server.join().unwrap().unwrap();
        }
    });
}

/// Of a body: several pipes full.
const LARGE: usize = 600_000;

fn whole() -> Body {
    let length = BodyFraming::Length(LARGE as u64);
    Body::new(length, length)
}

fn to_the_end<'a>(upload: Option<Upload<'a>>) -> Patience<'a> {
    Patience { total_at_ms: None, silence_ms_max: RESPONSE_HEAD_MS_MAX, upload, is_alone: true, hot: None }
}

/// With kernel TLS what has come before it is taken through a buffer; the rest of a body is spliced.
fn assert_spliced(body: &Body) {
    let spliced = body.spliced_bytes();
    assert_eq!(spliced > LARGE as u64 / 2, kernel_tls().is_some(), "{spliced} bytes spliced");
}

#[test]
fn ktls_an_upload_is_exact_while_an_answer_comes_down() {
    on_each_driver(async |worker| {
        for (is_client_secured, is_upstream_secured) in [(true, false), (false, true)] {
            let town = Town::new();
            let both_ways = |peer: &mut Peer| {
                let mut received = Vec::new();
                assert_eq!(peer.exchange(&pattern(1, LARGE), LARGE, &mut received), Received::All);
                received
            };
            let (mut client, from_client) = town.client(&worker, is_client_secured, both_ways).await;
            let (mut lease, at_upstream) =
                town.upstream(&worker, is_upstream_secured, |peer| peer.receive(LARGE)).await;
            let mut body = whole();
            let (ends_at_ms, begun) = (Cell::new(u64::MAX), Cell::new(true));
            let upload = Upload { rate: BodyRate::new(1, 60_000), ends_at_ms: &ends_at_ms, begun: &begun };
            {
                let up = async {
                    let mut input = Input::new(worker.buffers.lazy());
                    let from = Side { half: &mut client.read, timer: &client.timer };
                    let to = Side { half: &mut lease.conn.write, timer: &lease.conn.timer };
                    let mut out = worker.buffers.lazy();
                    relay_body(&mut body, &mut input, from, to, &mut out, to_the_end(Some(upload))).await
                };
                let down = async {
                    for part in pattern(2, LARGE).chunks(10_000) {
                        let mut out = worker.buffers.take();
                        out.extend_from_slice(part);
                        write_all(&mut client.write, &mut out).await.unwrap();
                    }
                };
                both(pin!(up), pin!(down)).await.0.unwrap();
            }
            assert_spliced(&body);
            assert!(at_upstream.join().unwrap() == pattern(1, LARGE), "the upload has changed");
            assert!(from_client.join().unwrap() == pattern(2, LARGE), "the answer has changed");
            drop((client, lease));
            assert_eq!(worker.buffers.used_bytes(), 0);
        }
    });
}

#[test]
fn ktls_a_client_that_stops_in_mid_upload_is_too_slow() {
    on_each_driver(async |worker| {
        let town = Town::new();
        let (stop, stopped) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel::<()>();
        let (mut client, from_client) = town
            .client(&worker, true, move |peer| {
                peer.send(&pattern(3, LARGE / 2));
                tell.send(()).unwrap();
                // Until the other side has given up.
                let _ = stopped.recv();
            })
            .await;
        let (mut lease, at_upstream) = town.upstream(&worker, false, |peer| peer.rest().0).await;
        let mut body = whole();
        let (ends_at_ms, begun) = (Cell::new(u64::MAX), Cell::new(true));
        let upload = Upload { rate: BodyRate::new(1_000_000_000, 60_000), ends_at_ms: &ends_at_ms, begun: &begun };
        let done = Cell::new(false);
        let up = async {
            let mut input = Input::new(worker.buffers.lazy());
            let from = Side { half: &mut client.read, timer: &client.timer };
            let to = Side { half: &mut lease.conn.write, timer: &lease.conn.timer };
            let mut out = worker.buffers.lazy();
            let result = relay_body(&mut body, &mut input, from, to, &mut out, to_the_end(Some(upload))).await;
            done.set(true);
            result
        };
        let mut has_stopped = false;
        let clock = held(|| {
            has_stopped |= told.try_recv().is_ok();
            if has_stopped {
                worker.deadlines.tick(now_ms() + 61_000);
            }
            done.get()
        });
        let (result, is_over) = both(pin!(up), pin!(clock)).await;
        assert!(is_over, "the upload has no deadline");
        assert!(matches!(result, Err(BodyError::Bad(BadBody::TooSlow))), "{result:?}");
        drop((client, lease, stop));
        from_client.join().unwrap();
        assert!(at_upstream.join().unwrap().len() <= LARGE / 2);
    });
}

#[test]
fn ktls_a_response_that_ends_too_early_is_an_error_at_once() {
    on_each_driver(async |worker| {
        type End = fn(&mut Peer);
        let ends: [(&str, End); 3] = [
            ("close_notify and FIN", Peer::finish_sending),
            ("FIN alone", |peer| peer.socket.shutdown(std::net::Shutdown::Write).unwrap()),
            ("close_notify alone", Peer::say_the_end),
        ];
        for (what, end) in ends {
            let town = Town::new();
            let (stop, stopped) = mpsc::channel::<()>();
            let (mut lease, from_upstream) = town
                .upstream(&worker, true, move |peer| {
                    peer.send(&pattern(4, LARGE / 2));
                    end(peer);
                    let _ = stopped.recv();
                })
                .await;
            let (mut client, at_client) = town.client(&worker, false, |peer| peer.rest().0).await;
            let mut body = whole();
            let mut input = Input::new(worker.buffers.lazy());
            let from = Side { half: &mut lease.conn.read, timer: &lease.conn.timer };
            let to = Side { half: &mut client.write, timer: &client.timer };
            let mut out = worker.buffers.lazy();
            let result = relay_body(&mut body, &mut input, from, to, &mut out, to_the_end(None)).await;
            assert!(matches!(result, Err(BodyError::Bad(_) | BodyError::Read(_))), "{what}: {result:?}");
            drop((client, lease, stop));
            from_upstream.join().unwrap();
            assert_eq!(at_client.join().unwrap().len(), LARGE / 2, "{what}");
        }
    });
}
