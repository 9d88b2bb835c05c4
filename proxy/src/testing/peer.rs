//! Peers that tests play: each in a thread of its own, plain or over TLS by rustls' own connections, both directions at once.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use rustls::{ClientConnection, Connection, ServerConnection};

use super::{Authority, Leaf, pair};
use crate::{
    tls::{
        handshake,
        materials::{Materials, Offer},
        tests::{REVIEWS, any_server, asked, client_config, materials, mutual, server_config},
    },
    upstream::{Lease, Reuse},
    worker::{Worker, conn::Conn},
};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/productpage";
const PATIENCE: Duration = Duration::from_secs(120);

/// One end of a connection whose other one is ours.
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    tls: Option<Connection>,
}

/// What has come of an [`exchange`](Peer::exchange).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So much as was waited for.
    All,
    /// An end that the other side has meant: close_notify, or FIN without TLS.
    End,
    /// An end that may be a cut.
    Cut,
}

impl Peer {
    /// Sends all of `out` and at the same time receives, until `count` bytes are there or the end. What has come is appended to `into`.
    /// A connection that breaks while something is unsent is a cut; what had come before is still read.
    pub(crate) fn exchange(&mut self, mut out: &[u8], count: usize, into: &mut Vec<u8>) -> Received {
        let began = Instant::now();
        let mut received = (count == 0).then_some(Received::All);
        let mut can_send = true;
        while received.is_none() || can_send && (!out.is_empty() || self.owes_records()) {
            assert!(began.elapsed() < PATIENCE, "{} bytes are unsent, {} of {count} have come", out.len(), into.len());
            let sent = can_send
                && self.send_some(&mut out).unwrap_or_else(|_| {
                    can_send = false;
                    false
                });
            if received.is_none() {
                received = match self.receive_some(into) {
                    Ok(0) => Some(Received::End),
                    Ok(_) => (into.len() >= count).then_some(Received::All),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if !sent {
                            self.wait(can_send && !out.is_empty());
                        }
                        None
                    }
                    Err(_) => Some(Received::Cut),
                };
            }
        }
        match received.unwrap() {
            _ if !out.is_empty() => Received::Cut,
            Received::All if self.owes_records() => Received::Cut,
            received => received,
        }
    }

    fn owes_records(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// As far as the socket takes it: whether anything was sent. An error: nothing will be any more.
    fn send_some(&mut self, out: &mut &[u8]) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            // The kernel tells one operation of a reset, and that must be a read.
            if out.is_empty() {
                return Ok(false);
            }
            return match self.socket.write(out) {
                Ok(count) => {
                    *out = &out[count..];
                    Ok(count > 0)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(error),
            };
        };
        if !tls.wants_write() && !out.is_empty() {
            // Records of every size, and the largest.
            let part = out.len().min(if out.len().is_multiple_of(3) { 100_000 } else { 10_000 });
            let count = tls.writer().write(&out[..part]).unwrap();
            *out = &out[count..];
        }
        let mut sent = false;
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => sent = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn receive_some(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let Some(tls) = &mut self.tls else {
                let count = self.socket.read(&mut bytes)?;
                into.extend_from_slice(&bytes[..count]);
                return Ok(count);
            };
            match tls.reader().read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tls.read_tls(&mut self.socket)?;
                    tls.process_new_packets().map_err(io::Error::other)?;
                }
                result => {
                    into.extend_from_slice(&bytes[..result.as_ref().map_or(0, |count| *count)]);
                    return result;
                }
            }
        }
    }

    /// Until something can be done.
    pub(crate) fn wait(&self, writes: bool) {
        let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.socket.as_fd(), flags)], Some(&limit)).unwrap();
    }

    /// Sends all of this.
    pub(crate) fn send(&mut self, out: &[u8]) {
        assert_eq!(self.exchange(out, 0, &mut Vec::new()), Received::All);
    }

    /// The next bytes.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut into = Vec::new();
        assert_eq!(self.exchange(b"", count, &mut into), Received::All);
        assert_eq!(into.len(), count);
        into
    }

    /// All that comes until the other side says by an alert what is wrong, and what that is.
    pub(crate) fn until_alert(&mut self) -> (Vec<u8>, String) {
        let (began, mut into) = (Instant::now(), Vec::new());
        loop {
            assert!(began.elapsed() < PATIENCE, "nothing comes behind {} bytes", into.len());
            match self.receive_some(&mut into) {
                Ok(0) => panic!("an end like any other, behind {} bytes", into.len()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(false),
                Err(error) => {
                    // What has come in the same read as the alert.
                    if let Some(tls) = &mut self.tls {
                        let _ = tls.reader().read_to_end(&mut into);
                    }
                    return (into, error.to_string());
                }
            }
        }
    }

    /// How many records it has sent and received under the keys that are in use now. Nothing can be said any more.
    pub(crate) fn records_under_keys(&mut self) -> (u64, u64) {
        let secrets = self.tls.take().unwrap().dangerous_extract_secrets().unwrap();
        (secrets.tx.0, secrets.rx.0)
    }

    /// All that comes, and how it ends.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, Received) {
        let mut into = Vec::new();
        let how = self.exchange(b"", usize::MAX, &mut into);
        (into, how)
    }

    /// Ends this side as it should.
    pub(crate) fn finish_sending(&mut self) {
        self.say_the_end();
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Says close_notify, where there is TLS, and leaves the connection open.
    pub(crate) fn say_the_end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            while self.owes_records() {
                if !self.send_some(&mut &b""[..]).unwrap() {
                    self.wait(true);
                }
            }
        }
    }

    /// In a thread, once the handshake is over.
    fn run<T: Send + 'static>(
        socket: TcpStream,
        tls: Option<Connection>,
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        thread::spawn(move || {
            socket.set_nodelay(true).unwrap();
            let mut peer = Peer { socket, tls };
            if let Some(tls) = &mut peer.tls {
                peer.socket.set_nonblocking(false).unwrap();
                while tls.is_handshaking() {
                    if let Err(error) = tls.complete_io(&mut peer.socket) {
                        // An alert may come right behind the handshake, and be read with it: that is the script's, which meets it again.
                        assert!(!tls.is_handshaking(), "{error}");
                    }
                }
            }
            peer.socket.set_nonblocking(true).unwrap();
            script(&mut peer)
        })
    }
}

/// What a peer speaks, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Tls12,
    Tls13,
}

/// Both sides' certificates for the tests' peers.
pub(crate) struct Town {
    authority: Authority,
    ours: Materials,
}

impl Town {
    pub(crate) fn new() -> Self {
        let authority = Authority::new();
        let ours = materials(&authority, REVIEWS);
        Self { authority, ours }
    }

    /// A client's connection to us.
    pub(crate) async fn client<T: Send + 'static>(
        &self,
        worker: &Worker,
        is_secured: bool,
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> (Conn, JoinHandle<T>) {
        self.client_speaking(worker, is_secured.then_some(Version::Tls13), script).await
    }

    /// Likewise, of a given version.
    pub(crate) async fn client_speaking<T: Send + 'static>(
        &self,
        worker: &Worker,
        version: Option<Version>,
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> (Conn, JoinHandle<T>) {
        let (mut conn, socket) = pair(worker);
        let tls = version.map(|version| {
            let leaf = Leaf::of(CLIENT);
            let is_tls13 = version == Version::Tls13;
            let mut config = client_config(&self.authority, Some((&self.authority, &leaf)), is_tls13);
            config.enable_secret_extraction = true;
            config.dangerous().set_certificate_verifier(any_server());
            Connection::from(ClientConnection::new(Arc::new(config), asked()).unwrap())
        });
        let client = Peer::run(socket, tls, script);
        if let Some(version) = version {
            let server = self.ours.mesh_server(version == Version::Tls12).unwrap();
            let opening = handshake::opening(worker, &mut conn).await.unwrap();
            handshake::accept(worker, &mut conn, &server, opening, None).await.unwrap();
        }
        (conn, client)
    }

    /// Our connection to an upstream.
    pub(crate) async fn upstream<T: Send + 'static>(
        &self,
        worker: &Worker,
        is_secured: bool,
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> (Lease, JoinHandle<T>) {
        self.upstream_speaking(worker, is_secured.then_some(Version::Tls13), script).await
    }

    /// Likewise, of a given version.
    pub(crate) async fn upstream_speaking<T: Send + 'static>(
        &self,
        worker: &Worker,
        version: Option<Version>,
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> (Lease, JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = worker.endpoints.of(listener.local_addr().unwrap(), None);
        let mut lease = endpoint.lease(worker, Reuse::Never, 10_000).await.unwrap();
        let (socket, _) = listener.accept().unwrap();
        let tls = version.map(|version| {
            let mut config = server_config(&self.authority, &Leaf::of(REVIEWS), version == Version::Tls13);
            config.enable_secret_extraction = true;
            Connection::from(ServerConnection::new(Arc::new(config)).unwrap())
        });
        let upstream = Peer::run(socket, tls, script);
        if let Some(version) = version {
            let way = self.ours.cluster(&mutual(&[REVIEWS]), version == Version::Tls12, Offer::Bytes).unwrap();
            handshake::connect(worker, &mut lease.conn, &way, &asked(), 10_000).await.unwrap();
        }
        (lease, upstream)
    }
}

/// Bytes in which nothing can be lost, doubled or moved without a trace.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}
