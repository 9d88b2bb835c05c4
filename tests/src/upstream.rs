//! Servers whose every byte a test decides.

use std::{
    io::Write as _,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use meshring_core::limits::UPSTREAM_IDLE_ONCE_MS_MAX;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::{
    wait,
    wire::{FieldLines, Framing, Head, Tape, Wire},
};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// `GET /path HTTP/1.1`.
    pub line: String,
    /// In order.
    pub fields: FieldLines,
    /// Decoded.
    pub body: Vec<u8>,
    /// How its end was marked.
    pub framing: Framing,
    /// Of a chunked body.
    pub trailers: FieldLines,
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// How long the server had sent nothing when its head had been read, over whatever connection; zero for the first one. Nobody has
    /// kept a connection idle for longer in between, whatever the machine was busy with.
    pub silence: Duration,
}

impl Received {
    /// The target of the request line.
    #[must_use]
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// The method of the request line.
    #[must_use]
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    ended: AtomicUsize,
    received: Mutex<Vec<Received>>,
    /// When the server began to send what it has sent last.
    sent: Mutex<Option<Instant>>,
    streams: Mutex<Vec<TcpStream>>,
    tapes: Mutex<Vec<Tape>>,
    markers: Mutex<usize>,
    markers_seen: AtomicUsize,
}

/// Where connections come from that only mark a place in the queue of an accepting server.
const MARKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A server on a port of its own; its connections end with it.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Peer {
    wire: Wire<TcpStream>,
    shared: Arc<Shared>,
    /// Which connection, from 0.
    pub connection: usize,
}

impl Upstream {
    /// A server that runs `serve` for each connection on a thread of its own; the connection closes when it returns.
    #[must_use]
    pub fn scripted(serve: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::listening("127.0.0.1:0", serve)
    }

    fn listening(address: &str, serve: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("the bound address");
        let shared = Arc::<Shared>::default();
        let upstream = Self { address, shared: Arc::clone(&shared) };
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if stream.peer_addr().is_ok_and(|peer| peer.ip() == MARKER) {
                    shared.markers_seen.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                // Answers go out at once, as those of any real server do.
                let _ = stream.set_nodelay(true);
                if let Ok(second) = stream.try_clone() {
                    shared.streams.lock().unwrap_or_else(PoisonError::into_inner).push(second);
                }
                let tape = Tape::default();
                shared.tapes.lock().unwrap_or_else(PoisonError::into_inner).push(tape.clone());
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
                let wire = Wire::recorded(stream, tape);
                let mut peer = Peer { wire, shared: Arc::clone(&shared), connection };
                let serve = Arc::clone(&serve);
                thread::spawn(move || {
                    serve(&mut peer);
                    // The registry of streams holds a second descriptor, so that dropping ours would not close.
                    let _ = peer.wire.stream.shutdown(Shutdown::Both);
                    peer.shared.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        upstream
    }

    /// A keep-alive server that answers each request with the bytes that `respond` makes of it.
    #[must_use]
    pub fn answering<B: Into<Vec<u8>>>(respond: impl Fn(&Received) -> B + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0", respond)
    }

    /// As [`answering`](Self::answering), on an address of its own: port 0 takes a free one.
    #[must_use]
    pub fn on<B: Into<Vec<u8>>>(address: &str, respond: impl Fn(&Received) -> B + Send + Sync + 'static) -> Self {
        Self::listening(address, move |peer| {
            while let Some(request) = peer.request() {
                let response: Vec<u8> = respond(&request).into();
                if !peer.send(response) {
                    return;
                }
            }
        })
    }

    /// Answers 200 with the given body.
    #[must_use]
    pub fn saying(text: &'static str) -> Self {
        Self::answering(move |_| ok(text))
    }

    /// Answers 200 with the request that it received: request line and fields, one per line.
    #[must_use]
    pub fn echoing() -> Self {
        Self::answering(|request| {
            let mut text = format!("{}\n", request.line);
            for (name, value) in &request.fields.0 {
                text += &format!("{name}: {value}\n");
            }
            ok(&text)
        })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until every connection so far has ended.
    pub fn wait_until_all_ended(&self) {
        self.catch_up();
        wait::until("the end of every upstream connection", || {
            (self.shared.ended.load(Ordering::SeqCst) == self.connections()).then_some(())
        });
    }

    /// The exact bytes that each connection has brought since this was asked last, as far as they were read.
    #[must_use]
    pub fn take_bytes(&self) -> Vec<Vec<u8>> {
        self.shared.tapes.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Tape::take).collect()
    }

    /// Returns once every connection that anybody has made before is counted: connections are accepted in their order,
    /// and one of our own, from a marker field and not counted, is the last.
    pub fn catch_up(&self) {
        let mut markers = self.shared.markers.lock().unwrap_or_else(PoisonError::into_inner);
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        bind(&socket, &SocketAddr::from((MARKER, 0))).expect("a loopback address");
        connect(&socket, &self.address).expect("a listening server");
        *markers += 1;
        wait::until("the marker", || (self.shared.markers_seen.load(Ordering::SeqCst) == *markers).then_some(()));
    }

    /// Requests received so far, each to the end of its body.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asserts that requests of one client, one after the other, came on one connection. A request that must not be sent twice gets a
    /// new one after a second without any: that is right, and a busy machine takes a second for nothing.
    ///
    /// # Panics
    /// When one came on another connection sooner, or there are connections that brought none.
    #[track_caller]
    pub fn expect_reuse(&self) {
        // The proxy reads a clock that is behind by a tick of the kernel, 10 ms at the most.
        let idle_max = Duration::from_millis(UPSTREAM_IDLE_ONCE_MS_MAX - 20);
        let received = self.shared.received.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connections = usize::from(!received.is_empty());
        for pair in received.windows(2) {
            let [before, request] = pair else { continue };
            if request.connection != before.connection {
                let (line, silence) = (&request.line, request.silence);
                assert!(silence >= idle_max, "{line}: on a new connection {silence:?} after the answer before it");
                connections += 1;
            }
        }
        assert_eq!(self.connections(), connections, "connections that brought no request");
    }

    /// Waits for `count` requests.
    #[must_use]
    pub fn wait_for(&self, count: usize) -> Vec<Received> {
        wait::until(&format!("{count} requests at the upstream"), || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Peer {
    /// The next request to the end of its body; `None` when the connection has ended or broke.
    pub fn request(&mut self) -> Option<Received> {
        let head = self.head()?;
        let sent = *self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = sent.map_or(Duration::ZERO, |sent| sent.elapsed());
        let (framing, body, trailers) = self.wire.body(&head.fields, Framing::None).ok()?;
        let (line, fields, connection) = (head.line, head.fields, self.connection);
        let received = Received { line, fields, body, framing, trailers, connection, silence };
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).push(received.clone());
        Some(received)
    }

    /// The next request head, its body unread.
    pub fn head(&mut self) -> Option<Head> {
        self.wire.head().ok().flatten()
    }

    /// The body that belongs to a head; an error where the client gave up in the middle.
    pub fn body(&mut self, head: &Head) -> anyhow::Result<Vec<u8>> {
        self.wire.body(&head.fields, Framing::None).map(|(_, body, _)| body)
    }

    /// The next bytes, whatever they are; none when the connection has ended or broke.
    pub fn some(&mut self) -> Vec<u8> {
        self.wire.some().unwrap_or_default()
    }

    /// Sends bytes; false when the connection is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        *self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.wire.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.wire.stream
    }

    /// Ends the connection with RST instead of FIN.
    pub fn reset(&mut self) {
        let _ = sockopt::set_socket_linger(&self.wire.stream, Some(Duration::ZERO));
        // The second descriptor would keep the connection open.
        let address = self.wire.stream.peer_addr().ok();
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.peer_addr().ok() != address);
        drop(streams);
        let placeholder = TcpListener::bind("127.0.0.1:0").and_then(|l| TcpStream::connect(l.local_addr()?));
        if let Ok(placeholder) = placeholder {
            self.wire.stream = placeholder;
        }
    }

    /// Everything until the client closes; false where it broke instead.
    pub fn wait_for_end(&mut self) -> bool {
        self.wire.rest().is_ok()
    }
}

/// A 200 with content-length.
#[must_use]
pub fn ok(text: &str) -> Vec<u8> {
    response(200, &[], text.as_bytes())
}

/// Any final response with content-length.
#[must_use]
pub fn response(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status} Some Reason\r\n").into_bytes();
    for (name, value) in fields {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}
