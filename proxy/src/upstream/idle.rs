//! The idle connections of an endpoint.

use meshring_core::limits::{UPSTREAM_DISTRUST_MS, UPSTREAM_IDLE_ONCE_MS_MAX};

use super::Reuse;
use crate::worker::conn::Conn;

/// What a response has shown of the server that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing.
    Nothing,
    /// Its end, which nobody can mistake.
    End,
    /// Bytes behind its end.
    Excess,
}

#[derive(Debug)]
struct Idle {
    conn: Conn,
    since_ms: u64,
    /// When it is not to be used any more: our limit, or what the server has announced less a margin.
    until_ms: u64,
    /// When it was seen to be quiet, unless that says nothing.
    quiet_ms: Option<u64>,
}

/// Idle connections, oldest first.
#[derive(Debug, Default)]
pub(super) struct IdleConns {
    conns: Vec<Idle>,
    /// Until then each is looked at: the server closes connections, or says more on them, when nobody expects it.
    distrust_until_ms: u64,
}

impl IdleConns {
    pub(super) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.conns.len()
    }

    /// One more, for so many milliseconds.
    pub(super) fn put(&mut self, conn: Conn, now_ms: u64, ms_max: u64, seen: Seen) {
        // Not now: to write the response may have taken its client minutes.
        let quiet_ms = conn.quiet_ms().filter(|_| seen == Seen::End && now_ms >= self.distrust_until_ms);
        self.conns.push(Idle { conn, since_ms: now_ms, until_ms: now_ms + ms_max, quiet_ms });
    }

    /// One that is still open, newest first: the older ones age out under low load.
    ///
    /// Each is asked for FIN and for bytes that nobody wants, which costs 5 to 10 % of a request. Not so one that was seen to be quiet in
    /// this very tick of the coarse clock, for a request that can be sent again: whoever waits for readiness, as others do, knows no more
    /// of it than its last pass through its events has told, and what comes later meets the request on its way in any case.
    pub(super) fn take(&mut self, reuse: Reuse, now_ms: u64) -> Option<Conn> {
        loop {
            let newest = self.conns.last()?;
            if reuse == Reuse::Recent && now_ms >= newest.since_ms + UPSTREAM_IDLE_ONCE_MS_MAX {
                // The others are older; they are good for requests that can be sent again.
                return None;
            }
            let idle = self.conns.pop()?;
            let is_trusted = reuse == Reuse::Any && idle.quiet_ms == Some(now_ms);
            if now_ms < idle.until_ms {
                if is_trusted || idle.conn.is_quiet() {
                    return Some(idle.conn);
                }
                if idle.quiet_ms.is_some_and(|quiet_ms| now_ms < quiet_ms + UPSTREAM_IDLE_ONCE_MS_MAX) {
                    self.distrust(now_ms);
                }
            }
        }
    }

    /// The server has closed one soon after its use, or said something on it that nobody has asked for: for a while all are looked at.
    pub(super) fn distrust(&mut self, now_ms: u64) {
        self.distrust_until_ms = now_ms + UPSTREAM_DISTRUST_MS;
        self.conns.iter_mut().for_each(|idle| idle.quiet_ms = None);
    }

    /// Drops those that are too old or no longer open.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        self.conns.retain(|idle| now_ms < idle.until_ms && idle.conn.is_quiet());
        if self.conns.is_empty() {
            self.conns.shrink_to_fit();
        }
    }

    pub(super) fn clear(&mut self) {
        self.conns.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        time::{Duration, Instant},
    };

    use meshring_core::limits::BUFFER_BYTES;

    use super::*;
    use crate::{
        testing::{on_each_driver, pair},
        worker::{Worker, buffers::Input, deadlines::now_ms, pause},
    };

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
    const TICK: Duration = Duration::from_micros(100);

    /// A connection that has carried a request and its response; the response was read with so much room.
    async fn used(worker: &Worker, room: usize) -> (Conn, TcpStream) {
        let (mut conn, mut server) = pair(worker);
        server.write_all(RESPONSE).unwrap();
        let mut out = worker.buffers.lazy();
        out.ensure();
        out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        let mut input = Input::new(worker.buffers.lazy());
        let count = conn.ask(&mut out, true, &mut input, (room, BUFFER_BYTES), None).await.unwrap();
        assert_eq!(count, RESPONSE.len());
        server.set_nonblocking(false).unwrap();
        server.read_exact(&mut vec![0; out.len()]).unwrap();
        (conn, server)
    }

    /// Something has come that nobody has asked for: bytes, or an end.
    async fn disturb(conn: &Conn, server: &mut TcpStream, ends: bool) {
        if ends {
            server.shutdown(std::net::Shutdown::Write).unwrap();
        } else {
            server.write_all(RESPONSE).unwrap();
        }
        while conn.is_quiet() {
            pause(TICK).await;
        }
    }

    #[test]
    fn what_was_quiet_just_now_is_not_asked_again() {
        on_each_driver(async |worker| {
            let mut was_in_time = false;
            for _ in 0..200 {
                let began_ms = now_ms();
                let (conn, mut server) = used(&worker, BUFFER_BYTES).await;
                disturb(&conn, &mut server, false).await;
                let mut idle = IdleConns::default();
                idle.put(conn, now_ms(), 60_000, Seen::End);
                let taken = idle.take(Reuse::Any, now_ms());
                if began_ms == now_ms() {
                    assert!(taken.is_some());
                    was_in_time = true;
                }
            }
            assert!(was_in_time);
        });
    }

    #[test]
    fn all_others_are_asked() {
        on_each_driver(async |worker| {
            let cases = [
                ("seen nothing", BUFFER_BYTES, Seen::Nothing, Reuse::Any),
                ("seen too much", BUFFER_BYTES, Seen::Excess, Reuse::Any),
                ("a response that took its client long", BUFFER_BYTES, Seen::End, Reuse::Any),
                // More may have been there.
                ("a read that was filled", RESPONSE.len(), Seen::End, Reuse::Any),
                ("a request that must not be sent twice", BUFFER_BYTES, Seen::End, Reuse::Recent),
                ("distrusted before", BUFFER_BYTES, Seen::End, Reuse::Any),
                ("distrusted since", BUFFER_BYTES, Seen::End, Reuse::Any),
                ("later", BUFFER_BYTES, Seen::End, Reuse::Any),
            ];
            for (case, room, seen, reuse) in cases {
                for (is_disturbed, ends) in [(false, false), (true, false), (true, true)] {
                    let (conn, mut server) = used(&worker, room).await;
                    if is_disturbed {
                        disturb(&conn, &mut server, ends).await;
                    }
                    let mut idle = IdleConns::default();
                    let later = async |than_ms: u64| {
                        while now_ms() == than_ms {
                            pause(TICK).await;
                        }
                    };
                    match case {
                        "distrusted before" => idle.distrust(now_ms()),
                        "a response that took its client long" => later(now_ms()).await,
                        _ => {}
                    }
                    idle.put(conn, now_ms(), 60_000, seen);
                    let given_back_ms = now_ms();
                    match case {
                        "distrusted since" => idle.distrust(now_ms()),
                        "later" => later(given_back_ms).await,
                        _ => {}
                    }
                    assert_eq!(idle.take(reuse, now_ms()).is_none(), is_disturbed, "{case}, {is_disturbed}, {ends}");
                }
            }
        });
    }

    #[test]
    fn trust_comes_back() {
        on_each_driver(async |worker| {
            let (conn, _server) = used(&worker, BUFFER_BYTES).await;
            let mut idle = IdleConns::default();
            let now_ms = now_ms();
            idle.distrust(now_ms);
            idle.put(conn, now_ms + UPSTREAM_DISTRUST_MS, 60_000, Seen::End);
            assert!(idle.conns[0].quiet_ms.is_some());
        });
    }

    #[test]
    fn a_server_that_closes_soon_is_distrusted_and_one_that_closes_late_is_not() {
        on_each_driver(async |worker| {
            for (is_known, seen) in [(true, Seen::End), (false, Seen::Nothing)] {
                let began = Instant::now();
                let (conn, mut server) = used(&worker, BUFFER_BYTES).await;
                disturb(&conn, &mut server, true).await;
                let mut idle = IdleConns::default();
                idle.put(conn, now_ms(), 60_000, seen);
                assert!(idle.take(Reuse::Recent, now_ms()).is_none());
                let was_soon = began.elapsed() < Duration::from_millis(UPSTREAM_IDLE_ONCE_MS_MAX);
                assert!(!was_soon || (idle.distrust_until_ms > 0) == is_known);
            }
        });
    }
}
