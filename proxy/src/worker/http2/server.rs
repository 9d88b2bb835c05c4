//! The server's side of HTTP/2: a downstream connection and its streams.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason, RecvStream,
    ext::Protocol,
    server::{Builder, Connection, SendResponse},
};
use http::Request;
use meshring_core::{
    http::{
        head::Method,
        http2::{self, Pseudo, Refused},
    },
    limits::{
        HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_DATA_FRAME_BUDGET_BYTES, HTTP2_HEADER_LIST_BYTES_MAX,
        HTTP2_LOCAL_RESETS_MAX, HTTP2_PENDING_RESETS_MAX, HTTP2_RESETS_REMEMBERED_MAX, HTTP2_SEND_BUFFER_BYTES_MAX,
        HTTP2_STREAM_WINDOW_BYTES, HTTP2_STREAMS_MAX, LINGER_BYTES_MAX,
    },
    stats::Counter,
};

use super::{
    Origin, Stream,
    connection::{Care, Pulse, drive},
    incoming::lines,
    outgoing::Extended,
    transport::{Pumps, Transport, transport},
};
use crate::{
    accept::Listener,
    worker::{
        Worker,
        buffers::Held,
        conn::{Conn, Wear},
        deadlines::{Expiry, Timer, now_ms},
        interrupt::Interrupt,
        tasks,
    },
};

/// How long a client may take to read why its connection ends, in milliseconds.
const LINGER_MS: u64 = 1_000;

/// Serves a connection, of which `first` has been read, until it ends.
pub(crate) async fn serve(worker: &Rc<Worker>, conn: &mut Conn, listener: &Rc<Listener>, first: Held) {
    worker.stats.add(Counter::Http2Connections, 1);
    let (transport, pumps) = transport(&worker.buffers, &first);
    drop(first);
    let bell = Rc::<Interrupt>::default();
    let server = Server {
        worker,
        listener,
        origin: Origin::of(conn),
        wear: conn.wear(),
        pumps: pumps.clone(),
        timer: worker.deadlines.interrupting(&bell),
        bell,
    };
    let result = drive(conn, &pumps, pin!(server.run(transport))).await;
    if let Err(error) = &result {
        worker.log_refusal(code(error), conn.peer(), &format_args!("HTTP/2 connection ended: {error}"));
        worker.stats.add(Counter::Http2ConnectionErrors, 1);
    }
    // The last word must not be taken from the client by a reset.
    conn.drain(LINGER_BYTES_MAX, LINGER_MS).await;
}

/// A stable short name for why a connection ends.
fn code(error: &h2::Error) -> &'static str {
    match error.reason() {
        _ if error.is_io() => "http2.closed",
        _ if error.is_remote() => "http2.ended_by_client",
        Some(Reason::ENHANCE_YOUR_CALM) => "http2.enhance_your_calm",
        Some(Reason::FLOW_CONTROL_ERROR) => "http2.flow_control_error",
        Some(Reason::COMPRESSION_ERROR) => "http2.compression_error",
        Some(Reason::FRAME_SIZE_ERROR) => "http2.frame_size_error",
        _ => "http2.protocol_error",
    }
}

/// How a connection's bell rings: there is nothing to shut.
const RING: Expiry = Expiry::ShutdownRead;

/// A connection's server.
struct Server<'a> {
    worker: &'a Rc<Worker>,
    listener: &'a Rc<Listener>,
    origin: Rc<Origin>,
    wear: Wear,
    pumps: Pumps,
    /// Rings when the connection is to be looked at, and when the worker drains.
    bell: Rc<Interrupt>,
    timer: Timer,
}

/// What a connection waits for, beside requests.
enum Event {
    Bell,
    Ended(Result<(), h2::Error>),
}

impl Server<'_> {
    async fn run(&self, transport: Transport) -> Result<(), h2::Error> {
        let Some(mut connection) = self.shake_hands(transport).await? else { return Ok(()) };
        let mut ping = connection.ping_pong();
        let mut pulse = Pulse::new(now_ms());
        let mut is_ending = false;
        self.timer.set_idle(now_ms(), RING);
        loop {
            if !is_ending && (self.worker.draining() || self.wear.is_worn()) {
                is_ending = true;
                connection.graceful_shutdown();
            }
            match poll_fn(|cx| self.poll_event(cx, &mut connection, ping.as_mut(), &mut pulse)).await {
                Event::Ended(result) => return result,
                Event::Bell => {
                    let (care, next_ms) = pulse.check(now_ms(), self.pumps.received_bytes(), connection.has_streams());
                    self.timer.set_idle(next_ms, RING);
                    match care {
                        Care::None => {}
                        // An error is the end of the connection, which is met next.
                        Care::Ping => drop(ping.as_mut().map(|ping| ping.send_ping(Ping::opaque()))),
                        Care::Dead => connection.abrupt_shutdown(Reason::NO_ERROR),
                        Care::Idle if !is_ending => {
                            is_ending = true;
                            connection.graceful_shutdown();
                        }
                        Care::Idle => {}
                    }
                }
            }
        }
    }

    /// The preface and the first frames. `None`: they have not come in time.
    async fn shake_hands(&self, transport: Transport) -> Result<Option<Connection<Transport, Bytes>>, h2::Error> {
        // Not as one that is idle: a worker that drains says so with GOAWAY, once there is a connection to say it on.
        self.timer.set(now_ms() + self.worker.limits.head_ms_max, RING);
        let mut shaking = pin!(builder().handshake(transport));
        poll_fn(|cx| {
            if let Poll::Ready(result) = shaking.as_mut().poll(cx) {
                return Poll::Ready(result.map(Some));
            }
            self.bell.register(cx);
            if self.bell.take_rung() { Poll::Ready(Ok(None)) } else { Poll::Pending }
        })
        .await
    }

    fn poll_event(
        &self,
        cx: &mut Context<'_>,
        connection: &mut Connection<Transport, Bytes>,
        ping: Option<&mut PingPong>,
        pulse: &mut Pulse,
    ) -> Poll<Event> {
        while let Poll::Ready(next) = connection.poll_accept(cx) {
            match next {
                Some(Ok((request, respond))) => self.accept(request, respond),
                Some(Err(error)) => return Poll::Ready(Event::Ended(Err(error))),
                None => return Poll::Ready(Event::Ended(Ok(()))),
            }
        }
        if let Some(ping) = ping
            && ping.poll_pong(cx).is_ready()
        {
            pulse.pong();
        }
        self.bell.register(cx);
        if self.bell.take_rung() { Poll::Ready(Event::Bell) } else { Poll::Pending }
    }

    /// A request: served on a task of its own, unless it is malformed (RFC 9113 section 8.1.1).
    fn accept(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let worker = self.worker;
        let (parts, body) = request.into_parts();
        let mut text = Vec::with_capacity(TEXT_BYTES);
        let refusal = match self.translate(&mut text, &parts, body.is_end_stream()) {
            Ok(()) => None,
            Err(Refused::Status(refusal)) => Some(refusal),
            Err(Refused::Malformed(malformed)) => {
                worker.stats.add(Counter::RequestsRefused, 1);
                worker.log_refusal(malformed.code(), self.origin.peer, &malformed);
                respond.send_reset(Reason::PROTOCOL_ERROR);
                return;
            }
        };
        // The method of the text: an extended CONNECT is a GET there.
        let extended = parts.extensions.get::<Protocol>().map(|_| Extended::of(&text));
        let method = match extended {
            Some(_) => Method::Get,
            None => Method::named(parts.method.as_str().as_bytes()),
        };
        let stream = Stream::accepted(&self.origin, text, (method, extended), body, respond);
        tasks::guarded_stream(worker, stream, Rc::clone(self.listener), refusal);
    }

    fn translate(&self, text: &mut Vec<u8>, parts: &http::request::Parts, ended: bool) -> Result<(), Refused> {
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        // Without :authority (Host stands for it) h2 keeps no :scheme, which it has insisted on; a CONNECT has neither.
        let own: &[u8] = if self.origin.secured.is_some() { b"https" } else { b"http" };
        let unkept = (authority.is_none() && parts.method != http::Method::CONNECT).then_some(own);
        let pseudo = Pseudo {
            method: parts.method.as_str().as_bytes(),
            scheme: parts.uri.scheme_str().map(str::as_bytes).or(unkept),
            authority,
            path: parts.uri.path_and_query().map(|path| path.as_str().as_bytes()),
            protocol: parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().as_bytes()),
        };
        http2::request_to_text(text, &pseudo, lines(&parts.headers), ended, self.worker.random.bytes())
    }
}

/// What a request head usually takes as text, in bytes.
const TEXT_BYTES: usize = 512;

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .data_frame_budget(HTTP2_DATA_FRAME_BUDGET_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP2_HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(HTTP2_SEND_BUFFER_BYTES_MAX)
        .max_concurrent_reset_streams(HTTP2_RESETS_REMEMBERED_MAX)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(HTTP2_LOCAL_RESETS_MAX))
        .enable_connect_protocol();
    builder
}

/// Runs what serves a stream until it is done or the client has cancelled it: then it is dropped, and with it whatever it has
/// open upstream.
pub(crate) async fn until_cancelled<T>(
    stream: &Stream,
    mut serving: Pin<&mut impl Future<Output = T>>,
) -> io::Result<T> {
    poll_fn(|cx| {
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        stream.poll_cancelled(cx).map(|()| Err(io::ErrorKind::ConnectionReset.into()))
    })
    .await
}
